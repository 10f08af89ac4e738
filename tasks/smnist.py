"""Handwritten digits read as sequences: MNIST row by row or pixel by pixel, in order or permuted.

The four files are LeCun's in their IDX format; other sets of 28 × 28 images in ten classes (Fashion-MNIST) do as well.

Shapes: T time steps, B batch, I input size (T·I = 784), N images.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from pydantic import PositiveInt
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from rnnzoo import UserError
from rnnzoo.lightning.data import SequenceData
from rnnzoo.lightning.module import SequenceModule

from .download import download
from .text_files import LARGEST

SIDE, CLASSES = 28, 10
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"
FILES = {
    "train-images-idx3-ubyte": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "md5:9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}
"""The names of the files, with the checksums of the mirror's, compressed as they were first published."""

PERMUTATIONS: dict[str, Callable[[int], Tensor]] = {
    "numpy-92916": lambda n: torch.from_numpy(np.random.RandomState(92916).permutation(n)),
    "torch-5544": lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(5544)),
}
"""The orders of pixels that papers use: that of the code of Arjovsky, Shah & Bengio 2016 (arXiv:1511.06464) and of many
after them, as expRNN and LMU; and that of the code of Rusch & Mishra 2021 (UnICORNN, arXiv:2103.05487)."""

SHOWN = 40
"""So many mistakes are shown in the picture."""


class Images(NamedTuple):
    """pixels [N, 28, 28] and labels [N], both uint8."""

    pixels: Tensor
    labels: Tensor


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
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise UserError(f"{path}: starts with {raw[:4].hex(' ')}, not 00 00 08; it is no IDX file of bytes")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise UserError(f"{path}: cut off within its header; fetch it again")
    sizes = struct.unpack(f">{raw[3]}I", raw[4:start])
    contents = np.frombuffer(raw, np.uint8, offset=start)
    if math.prod(sizes) != len(contents):
        shape = " × ".join(map(str, sizes))
        raise UserError(f"{path}: its header says {shape} bytes, {len(contents)} follow; fetch it again")
    return contents.reshape(sizes)


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
    paths = [Path(data).expanduser() / (name + suffix) for suffix in ("", ".gz")]
    for path in paths:
        if path.is_file():
            return path
    raise UserError(f"task.data={data}: holds neither {name} nor {name}.gz")


class Digits(SequenceData):
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
        held_out = len(known.labels) // 12  # 5,000 of the 60,000
        if not held_out:
            raise UserError(f"{train_labels}: {len(known.labels)} images are too few to hold some out")
        order = torch.randperm(len(known.labels), generator=torch.Generator().manual_seed(self.seed))
        self.val, self.train = (
            Images(known.pixels[rows], known.labels[rows]) for rows in (order[:held_out], order[held_out:])
        )

    def batch(self, part: Images, rows: Tensor) -> Images:
        return Images(part.pixels[rows], part.labels[rows].long())

    def baseline(self) -> dict[str, float]:
        """A linear classifier of the pixels: see `softmax_regression`."""
        return {"baseline/test_accuracy": softmax_regression(self.train, self.test)}


def softmax_regression(train: Images, test: Images) -> float:
    """Test accuracy of multinomial logistic regression on the pixels, the same whatever their order."""
    x, y = _scaled(train.pixels), train.labels.long()
    weight = nn.Parameter(x.new_zeros(x.shape[1], CLASSES))
    bias = nn.Parameter(x.new_zeros(CLASSES))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y)
        loss.backward()
        return loss

    optimizer.step(closure)  # ended early, which is its only regularisation
    found = (_scaled(test.pixels) @ weight + bias).argmax(1)
    return float((found == test.labels).float().mean())


def _scaled(pixels: Tensor) -> Tensor:
    """Bytes [N, 28, 28] to values in [0, 1], [N, 784]."""
    return pixels.flatten(1).float() / 255


class Digit(SequenceModule):
    """An image in T pieces through a recurrent layer, and a linear head on its last output.

    Args:
        by: what is read at a time, a row (T = 28, I = 28) or a pixel (T = 784, I = 1).
        permute: whether the pixels are put in another order first, the same for all images.
        permutation: which order that is, see `PERMUTATIONS`.
        base: see `SequenceModule`.
    """

    monitor = "val/accuracy"
    order: Tensor

    def __init__(
        self,
        by: Literal["row", "pixel"] = "row",
        permute: bool = False,
        permutation: Literal["numpy-92916", "torch-5544"] = "numpy-92916",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        pixels = SIDE * SIDE
        order = PERMUTATIONS[self.hparams["permutation"]](pixels) if self.hparams["permute"] else torch.arange(pixels)
        self.register_buffer("order", order)  # recorded in each checkpoint
        self.features = SIDE if self.hparams["by"] == "row" else 1
        self.layer = self.recurrent(self.features)
        directions = 2 if self.layer.bidirectional else 1
        self.head = nn.Linear(directions * self.layer.output_size, CLASSES)
        self.add_metrics(accuracy=MulticlassAccuracy(CLASSES, average="micro", validate_args=False))
        self.confusion = MulticlassConfusionMatrix(CLASSES, validate_args=False)
        self.mistakes: list[tuple[Tensor, int, int]] = []

    def example_inputs(self, steps: int, batch: int) -> dict[str, Tensor]:
        return {"pixels": torch.randint(256, (batch, SIDE, SIDE), dtype=torch.uint8)}

    def forward(self, pixels: Tensor) -> Tensor:
        """Images [B, 28, 28] of bytes to the logits of the classes [B, 10]."""
        x = _scaled(pixels)[:, self.order].to(self.head.weight.dtype)
        output, _ = self.layer(x.unflatten(1, (-1, self.features)).transpose(0, 1))
        # the backward direction has seen all of an image at its first piece
        ends = torch.cat([output[-1], output[0]], -1) if self.layer.bidirectional else output[-1]
        return self.single(self.head(ends))

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Images [N, 28, 28] of brightness 0 to 255 to the probabilities of the ten classes [N, 10].

        Raises `UserError` for another shape.
        """
        if images.shape[1:] != (SIDE, SIDE):
            raise UserError(f"images must be [images, {SIDE}, {SIDE}], not {list(images.shape)}")
        training = self.training
        self.eval()
        probabilities = self(images.to(self.device)).softmax(-1)
        self.train(training)
        return probabilities

    def score(self, batch: Images) -> tuple[Tensor, int, Tensor, Tensor]:
        """Also the logits [B, 10] and the labels [B]."""
        logits = self(batch.pixels)
        return F.cross_entropy(logits, batch.labels), len(logits), logits, batch.labels

    def on_test_epoch_start(self) -> None:
        self.mistakes = []

    def test_step(self, batch: Images, batch_idx: int) -> None:
        loss, count, logits, labels = self.score(batch)
        self.test_metrics.update(loss, count, logits, labels)
        found = logits.argmax(-1)
        self.confusion.update(found, labels)
        for row in (found != labels).nonzero()[: SHOWN - len(self.mistakes), 0]:
            self.mistakes.append((batch.pixels[row].cpu(), int(labels[row]), int(found[row])))

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")
        confusion = self.confusion.compute().cpu()
        self.confusion.reset()
        self.draw("mistakes", lambda: _mistakes(confusion, self.mistakes))


def _mistakes(confusion: Tensor, mistakes: list[tuple[Tensor, int, int]]) -> Figure:
    """How often each class was taken for another, and the first wrong images as "right → found"."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.4))
    left, right = parts
    axes = left.subplots()
    wrong = confusion.clone().fill_diagonal_(0)
    axes.imshow(wrong.numpy(), cmap="Reds")
    for label, found in wrong.nonzero().tolist():
        color = "white" if wrong[label, found] > wrong.max() / 2 else "black"
        axes.text(found, label, int(wrong[label, found]), ha="center", va="center", fontsize=8, color=color)
    axes.set(xlabel="found", ylabel="right", xticks=range(CLASSES), yticks=range(CLASSES))
    axes.set_title(f"{int(wrong.sum())} of {int(confusion.sum())} wrong")
    for axes, mistake in zip(right.subplots(5, SHOWN // 5).flat, [*mistakes, *[None] * SHOWN]):
        axes.set_axis_off()
        if mistake is not None:
            pixels, label, found = mistake
            axes.imshow(pixels.numpy(), cmap="gray_r")
            axes.set_title(f"{label} → {found}", fontsize=8)
    return figure
