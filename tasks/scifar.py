"""Photographs of ten kinds of things read as sequences: CIFAR-10 row by row or pixel by pixel, or followed by noise.

The files are those of its binary version, which are bytes and nothing else; the Python version's are pickles, which can
run code and are not opened.

Shapes: T time steps, B batch, I input size, N images, C channels (3, or 1 for grey).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.files import expanded

from .archives import UNREADABLE, Archive
from .download import download
from .images import CLASSES, ImageData, ImageModule, Images, scaled
from .text_files import LARGEST

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
"""Bytes of an image: its label, then all of its red, green and blue, each row by row."""

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CHECKSUM = "md5:c32a1d4ab5d03f1284b67883e8d87530"
"""Of its 170,052,171 bytes, as the page of the data set has it."""

UNPACKED, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
"""The folders in its archive, and in that of the Python version."""

TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
TEST = ["test_batch.bin"]

HELD_OUT = 10
"""One training image in so many is for validation, 5,000 of the 50,000."""


def read_archive(path: Path) -> dict[str, bytes]:
    """The data set's files by name from a tar archive, whatever folder they lie in there; nothing is unpacked to disk.

    Raises `UserError` for what is no archive, is damaged or larger than the data set could be, or holds a file twice.
    """
    found: dict[str, bytes] = {}
    pickled = False
    together = 0
    try:
        with Archive.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                together += member.size
                if max(together, archive.offset) > LARGEST:  # a few kilobytes can unpack to any number
                    raise UserError(f"task.data={path}: more than {LARGEST:,} bytes when unpacked; it is not CIFAR-10")
                pickled |= f"{name}.bin" in TRAIN
                if name in (*TRAIN, *TEST):
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is None or name in found:
                        raise UserError(
                            f"task.data={path}: {name} is there twice or is a link; fetch the archive again"
                        )
                    found[name] = file.read()
            assert archive.fileobj is not None
            while together <= LARGEST and (rest := archive.fileobj.read(1 << 20)):  # at its end lies gzip's checksum
                together += len(rest)
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"task.data={path}: damaged or not a tar archive ({reason}); fetch it again") from error
    if pickled:
        raise _pickled(path)
    return found


def _pickled(source: Path) -> UserError:
    name = URL.rpartition("/")[2]
    return UserError(
        f"task.data={source}: the Python version, whose pickles can run code and are not opened; give {name}"
    )


def read_files(source: Path) -> dict[str, bytes]:
    """The contents of the six files by name, from an archive, the folder that they were unpacked to or the one above.

    Raises `UserError` naming what is not there.
    """
    if source.is_dir():
        folder = source / UNPACKED if (source / UNPACKED).is_dir() else source
        paths = [folder / name for name in (*TRAIN, *TEST)]
        large = next((path for path in paths if path.is_file() and path.stat().st_size > LARGEST), None)
        if large is not None:
            raise UserError(f"task.data={source}: {large.name} has more than {LARGEST:,} bytes; it is not CIFAR-10")
        found = {path.name: path.read_bytes() for path in paths if path.is_file()}
        if not found and any((source / below / "data_batch_1").is_file() for below in (".", PYTHON)):
            raise _pickled(source)
    elif source.exists():
        found = read_archive(source)
    else:
        raise UserError(f"task.data={source}: no such file or folder")
    for name in (*TRAIN, *TEST):
        if name not in found:
            raise UserError(
                f"task.data={source}: holds no {name}; give cifar-10-binary.tar.gz or what it unpacks to, {UNPACKED}"
            )
    return found


def images_of(files: dict[str, bytes], names: list[str], source: Path) -> Images:
    """The images of some of the files, one file after another: pixels [N, 3, 32, 32].

    Raises `UserError` naming the file that does not hold whole images, or a label above 9.
    """
    for name in names:
        if not files[name] or len(files[name]) % RECORD:
            raise UserError(
                f"task.data={source}: {name} has {len(files[name]):,} bytes, no multiple of {RECORD:,}, an image's; "
                f"fetch it again"
            )
    records = np.frombuffer(b"".join(files[name] for name in names), np.uint8).reshape(-1, RECORD)
    labels = records[:, 0].copy()
    if labels.max() >= CLASSES:
        raise UserError(f"task.data={source}: label {labels.max()} is not below {CLASSES}; it is not CIFAR-10")
    return Images(
        torch.from_numpy(records[:, 1:].copy()).unflatten(1, (3, SIDE, SIDE)),
        torch.from_numpy(labels),
    )


def grey_of(pixels: Tensor) -> Tensor:
    """Colours [N, 3, 32, 32] to their brightness [N, 1, 32, 32] by ITU-R 601-2, in bytes."""
    weights = (299, 587, 114)
    total = sum(weight * channel.int() for weight, channel in zip(weights, pixels.unbind(1)))
    assert isinstance(total, Tensor)
    return ((total + 500) // 1000).to(torch.uint8)[:, None]


class Photographs(ImageData):
    """Images and labels; a tenth of the training images, drawn at random, are held out for validation.

    Args:
        data: the archive of the binary version, or the folder it was unpacked to; None downloads it into the cache.
        grey: their brightness in place of red, green and blue.
        batch_size: images in a batch.
        seed: of held-out images and order.
    """

    def __init__(
        self, data: str | None = None, grey: bool = False, batch_size: PositiveInt = 100, seed: int = 1
    ) -> None:
        super().__init__()
        self.data, self.grey, self.batch_size, self.seed = data, grey, batch_size, seed

    def prepare_data(self) -> None:
        self._source()

    def _source(self) -> Path:
        if self.data is not None:
            return expanded(self.data)
        return download(URL, "cifar-10-binary.tar.gz", CHECKSUM, "task.data=FILE", 200_000_000)

    def read(self) -> None:
        source = self._source()
        files = read_files(source)
        known, test = (images_of(files, names, source) for names in (TRAIN, TEST))
        if self.grey:
            known, test = (part._replace(pixels=grey_of(part.pixels)) for part in (known, test))
        self.test = test
        if len(known.labels) < HELD_OUT:
            raise UserError(f"task.data={source}: {len(known.labels)} images are too few to hold some out")
        self.hold_out(known, HELD_OUT)


class Photograph(ImageModule):
    """An image in T pieces, perhaps noise after it, through a recurrent layer, and a linear head as `Digit` has it.

    With noise it is the task of Chang et al. 2019 (arXiv:1902.09689), as coRNN (Rusch & Mishra 2021, arXiv:2010.00951)
    and LEM (Rusch et al. 2022, arXiv:2110.04744) take it: rows, then normal noise up to 1,000 steps, which is drawn
    once and the same for all images, as in github.com/tk-rusch/coRNN, noisy_CIFAR10/noisy_cifar10_task.py.

    Args:
        by: what is read at a time, a row (T = 32, I = 32·C, all of a channel together) or a pixel (T = 1,024, I = C).
        grey: whether images have one channel.
        steps: time steps in all, those after the image being noise; None for the image alone.
        pooling: of the outputs over time: the last one, or their mean.
        base: see `SequenceModule`.

    Raises `UserError` for fewer steps than an image has.
    """

    names = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    noise: Tensor

    def __init__(
        self,
        by: Literal["row", "pixel"] = "row",
        grey: bool = False,
        steps: PositiveInt | None = None,
        pooling: Literal["last", "mean"] = "last",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        channels = 1 if self.hparams["grey"] else 3
        self.shape = (channels, SIDE, SIDE)
        by_row = self.hparams["by"] == "row"
        features, pieces = (SIDE * channels, SIDE) if by_row else (channels, SIDE * SIDE)
        steps = self.hparams["steps"] or pieces
        if steps < pieces:
            raise UserError(f"task.steps={steps}: an image alone has {pieces}; give as many or more, or null")
        generator = torch.Generator().manual_seed(self.hparams["seed"])
        self.register_buffer("noise", torch.randn(steps - pieces, 1, features, generator=generator))
        self.make_layers(features)

    def sequence(self, pixels: Tensor) -> Tensor:
        x = scaled(pixels).unflatten(1, self.shape)  # [B, C, 32, 32]
        pieces = x.permute(2, 0, 1, 3) if self.hparams["by"] == "row" else x.flatten(2).permute(2, 0, 1)[..., None]
        return torch.cat([pieces.flatten(2), self.noise.expand(-1, x.shape[0], -1)])
