"""Handwritten digits read as sequences: MNIST row by row or pixel by pixel, in order or permuted.

The four files are LeCun's in their IDX format; other sets of 28 × 28 images in ten classes (Fashion-MNIST) do as well.

Shapes: T time steps, B batch, I input size (T·I = 784), N images.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.files import expanded

from .download import download
from .images import CLASSES, ImageData, ImageModule, Images, scaled
from .text_files import LARGEST

SIDE = 28
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"
FILES = {
    "train-images-idx3-ubyte": "gzip-sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "gzip-sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "gzip-sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "gzip-sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The names of the files, with the checksums of what they unpack to, however they were compressed."""

HELD_OUT = 12
"""One training image in so many is for validation, 5,000 of the 60,000."""

PERMUTATIONS: dict[str, Callable[[int], Tensor]] = {
    "numpy-92916": lambda n: torch.from_numpy(np.random.RandomState(92916).permutation(n)),
    "torch-5544": lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(5544)),
}
"""The orders of pixels that papers use: that of the code of Arjovsky, Shah & Bengio 2016 (arXiv:1511.06464) and of many
after them, as expRNN and LMU; and that of the code of Rusch & Mishra 2021 (UnICORNN, arXiv:2103.05487)."""


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of unsigned bytes in an IDX file, compressed by gzip if its name says so.

    Raises `UserError` naming the file when it is damaged, no such file, or of another size than its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or not gzip ({error}); fetch it again") from error
    if len(raw) > LARGEST:  # a few kilobytes can unpack to any number
        raise UserError(f"{path}: more than {LARGEST:,} bytes when unpacked; it is no set of 28 × 28 images")
    # the magic number: two zeros, 8 for unsigned bytes, then how many dimensions' sizes follow, four bytes each
    if len(raw) < 4:
        raise UserError(f"{path}: has {len(raw)} bytes, fewer than any IDX file; fetch it again")
    if raw[:4] not in (b"\0\0\x08\1", b"\0\0\x08\3"):
        raise UserError(
            f"{path}: starts with {raw[:4].hex(' ')}, not 00 00 08 and 01 or 03; it is no IDX file of bytes"
        )
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise UserError(f"{path}: cut off within its header; fetch it again")
    sizes = struct.unpack(f">{raw[3]}I", raw[4:start])
    contents = np.frombuffer(raw, np.uint8, offset=start)
    try:
        return contents.reshape(sizes)
    except ValueError:  # for sizes of which one is 0, too, and the others have a product beyond all numbers
        shape = " × ".join(map(str, sizes))
        raise UserError(f"{path}: its header says {shape} bytes, {len(contents)} follow; fetch it again") from None


def read_images(pixels: Path, labels: Path) -> Images:
    """The images of a pair of IDX files; `UserError` naming the file that does not fit."""
    x, y = read_idx(pixels), read_idx(labels)
    if x.shape[1:] != (SIDE, SIDE):
        raise UserError(f"{pixels}: its shape is {list(x.shape)}, not [images, {SIDE}, {SIDE}]")
    if y.shape != x.shape[:1]:
        raise UserError(f"{labels}: its shape is {list(y.shape)}, but {pixels.name} holds {len(x)} images")
    if len(y) == 0 or y.max() >= CLASSES:
        raise UserError(f"{labels}: " + (f"label {y.max()} is not below {CLASSES}" if len(y) else "it is empty"))
    return Images(torch.from_numpy(x.copy()), torch.from_numpy(y.copy()))


def find(data: str | None, name: str) -> Path:
    """The file of that name in the folder `data`, with or without .gz; downloaded if `data` is None."""
    if data is None:
        return download(f"{MIRROR}/{name}.gz", f"{name}.gz", FILES[name], "task.data=FOLDER", 20_000_000)
    paths = [expanded(data) / (name + suffix) for suffix in ("", ".gz")]
    for path in paths:
        if path.is_file():
            return path
    raise UserError(f"task.data={data}: holds neither {name} nor {name}.gz")


class Digits(ImageData):
    """Images and labels; a twelfth of the training images, drawn at random, are held out for validation.

    Args:
        data: the folder with the four IDX files, compressed or not; None downloads them into the cache.
        batch_size: images in a batch.
        seed: of held-out images and order.
    """

    def __init__(self, data: str | None = None, batch_size: PositiveInt = 128, seed: int = 1) -> None:
        super().__init__()
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def prepare_data(self) -> None:
        for name in FILES:
            find(self.data, name)

    def read(self) -> None:
        train_pixels, train_labels, test_pixels, test_labels = (find(self.data, name) for name in FILES)
        known, self.test = read_images(train_pixels, train_labels), read_images(test_pixels, test_labels)
        if len(known.labels) < HELD_OUT:
            raise UserError(f"{train_labels}: {len(known.labels)} images are too few to hold some out")
        self.hold_out(known, HELD_OUT)


class Digit(ImageModule):
    """An image in T pieces through a recurrent layer, and a linear head on its last output or the mean of all.

    Args:
        by: what is read at a time, a row (T = 28, I = 28) or a pixel (T = 784, I = 1).
        permute: whether the pixels are put in another order first, the same for all images.
        permutation: which order that is, see `PERMUTATIONS`.
        centered: pixels from -1 to 1 rather than from 0 to 1. Most images end with blank rows, and where those are
            zeros a cell whose output is its input times something, as that of Mamba is, ends with zeros as well.
        pooling: of the outputs over time: the last one, or their mean.
        base: see `SequenceModule`.
    """

    idle_without: ClassVar = {"permutation": "permute"}
    shape = (SIDE, SIDE)
    order: Tensor

    def __init__(
        self,
        by: Literal["row", "pixel"] = "row",
        permute: bool = False,
        permutation: Literal["numpy-92916", "torch-5544"] = "numpy-92916",
        centered: bool = False,
        pooling: Literal["last", "mean"] = "last",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        pixels = SIDE * SIDE
        order = PERMUTATIONS[self.hparams["permutation"]](pixels) if self.hparams["permute"] else torch.arange(pixels)
        self.register_buffer("order", order)  # recorded in each checkpoint
        self.features = SIDE if self.hparams["by"] == "row" else 1
        self.make_layers(self.features)

    def sequence(self, pixels: Tensor) -> Tensor:
        read = scaled(pixels)[:, self.order].unflatten(1, (-1, self.features)).transpose(0, 1)
        return 2 * read - 1 if self.hparams["centered"] else read
