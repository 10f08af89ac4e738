"""Small sets of images: class k has its two brightest rows at 2k + 4 in IDX files, at 2k + 12 in CIFAR's, on noise."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """An IDX file of unsigned bytes, as its format's page describes it."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def images(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    pixels = random.integers(0, 60, (count, 28, 28))
    for image, label in zip(pixels, labels):
        image[2 * label + 4 : 2 * label + 6, 4:24] += 150
    return pixels.astype(np.uint8), labels.astype(np.uint8)


def write_digits(folder: Path, train: int, test: int) -> Path:
    """The four files, with so many images in each part; the training part's are compressed."""
    folder.mkdir(exist_ok=True)
    for kind, array in zip(("images-idx3", "labels-idx1"), images(train, seed=train)):
        (folder / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    for kind, array in zip(("images-idx3", "labels-idx1"), images(test, seed=test)):
        (folder / f"t10k-{kind}-ubyte").write_bytes(idx(array))
    return folder


def photographs(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pixels [N, 3, 32, 32] and labels [N]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    pixels = random.integers(0, 60, (count, 3, 32, 32))
    for image, label in zip(pixels, labels):
        image[:, 2 * label + 12 : 2 * label + 14] += 150
    return pixels.astype(np.uint8), labels.astype(np.uint8)


def records(pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> bytes:
    """A file of CIFAR-10's binary version, as the data set's page describes it."""
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(pixels, labels))


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return path


def write_photographs(path: Path, train: int, test: int) -> Path:
    """The archive, with so many images for training in each of its five files, and for the test."""
    parts = {f"data_batch_{number}.bin": photographs(train, number) for number in range(1, 6)}
    parts["test_batch.bin"] = photographs(test, 6)
    return archive(path, {f"cifar-10-batches-bin/{name}": records(*part) for name, part in parts.items()})
