"""Small sets of images in IDX files: class k has its two brightest rows at 2k + 4, on noise."""

from __future__ import annotations

import gzip
import struct
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
