"""Images of ten classes read as sequences: what tasks on them share.

Shapes: T time steps, B batch, I input size, N images, each [rows, columns] or [channels, rows, columns] of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from rnnzoo import UserError
from rnnzoo.lightning.data import SequenceData
from rnnzoo.lightning.module import SequenceModule

CLASSES = 10

SHOWN = 40
"""So many mistakes are shown in the picture."""


class Images(NamedTuple):
    """pixels [N, ...] and labels [N], both uint8."""

    pixels: Tensor
    labels: Tensor


class ImageData(SequenceData):
    """Base of the data: a subclass sets the parts in `read`, the first two by `hold_out`."""

    def hold_out(self, known: Images, one_in: int) -> None:
        """Set aside one image in so many, drawn at random, for validation; at least one is needed."""
        order = torch.randperm(len(known.labels), generator=torch.Generator().manual_seed(self.seed))
        count = len(order) // one_in
        self.val, self.train = (
            Images(known.pixels[rows], known.labels[rows]) for rows in (order[:count], order[count:])
        )

    def batch(self, part: Images, rows: Tensor) -> Images:
        return Images(part.pixels[rows], part.labels[rows].long())

    def baseline(self) -> dict[str, float]:
        """A linear classifier of the pixels, see `softmax_regression`, and always the most frequent class."""
        most = self.train.labels.long().bincount().argmax()
        return {
            "baseline/test_accuracy": softmax_regression(self.train, self.test),
            "baseline/trivial_accuracy": float((self.test.labels == most).float().mean()),
        }


def softmax_regression(train: Images, test: Images) -> float:
    """Test accuracy of multinomial logistic regression on the pixels, the same whatever their order."""
    x, y = scaled(train.pixels), train.labels.long()
    weight = nn.Parameter(x.new_zeros(x.shape[1], CLASSES))
    bias = nn.Parameter(x.new_zeros(CLASSES))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y)
        loss.backward()
        return loss

    optimizer.step(closure)  # ended early, which is its only regularisation
    found = (scaled(test.pixels) @ weight + bias).argmax(1)
    return float((found == test.labels).float().mean())


def scaled(pixels: Tensor) -> Tensor:
    """Bytes [N, ...] to values in [0, 1], [N, values of an image]."""
    return pixels.flatten(1).float() / 255


class ImageModule(SequenceModule):
    """Base of the models: an image as a sequence through a recurrent layer, and a linear head on what it gave.

    A subclass gives `shape`, an image's, takes `pooling`, calls `make_layers` in `build`, and says in `sequence` what
    is read when. The head reads the last output, or the mean of all, as deep stacks of linear recurrences have it (S5,
    arXiv:2208.04933; LRU, arXiv:2303.06349).
    """

    monitor = "val/accuracy"
    names: ClassVar[Sequence[str]] = [str(label) for label in range(CLASSES)]
    """What the classes are called in the picture."""
    shape: tuple[int, ...]

    def make_layers(self, features: int) -> None:
        """The layer that reads so many features at a time, the head, and the metrics."""
        self.layer = self.recurrent(features)
        ends = 2 if self.layer.bidirectional and self.hparams["pooling"] == "last" else 1
        self.head = nn.Linear(ends * self.layer.output_size, CLASSES)
        self.add_metrics(accuracy=MulticlassAccuracy(CLASSES, average="micro", validate_args=False))
        self.confusion = MulticlassConfusionMatrix(CLASSES, validate_args=False)
        self.mistakes: list[tuple[Tensor, int, int]] = []

    def sequence(self, pixels: Tensor) -> Tensor:
        """Images [B, ...] of bytes to what is read of them [T, B, I]."""
        raise NotImplementedError

    def example_inputs(self, steps: int, batch: int) -> dict[str, Tensor]:
        return {"pixels": torch.randint(256, (batch, *self.shape), dtype=torch.uint8)}

    def forward(self, pixels: Tensor) -> Tensor:
        """Images [B, ...] of bytes to the logits of the classes [B, 10]."""
        output, _ = self.layer(self.sequence(pixels).to(self.head.weight.dtype))
        return self.single(self.head(self._pool(output)))

    def _pool(self, output: Tensor) -> Tensor:
        if self.hparams["pooling"] == "mean":
            return output.mean(0)
        if self.layer.bidirectional:  # the backward direction has seen all of an image at its first piece
            return torch.cat([output[-1], output[0]], -1)
        return output[-1]

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Images [N, ...] of brightness 0 to 255 to the probabilities of the ten classes [N, 10].

        Raises `UserError` for another shape.
        """
        if images.shape[1:] != self.shape:
            raise UserError(f"images must be [images, {', '.join(map(str, self.shape))}], not {list(images.shape)}")
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
        self.draw("mistakes", lambda: draw_mistakes(confusion, self.mistakes, self.names))


def draw_mistakes(confusion: Tensor, mistakes: list[tuple[Tensor, int, int]], names: Sequence[str]) -> Figure:
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
    upright = max(map(len, names)) < 3
    axes.set(xlabel="found", ylabel="right")
    axes.set_xticks(range(CLASSES), names, rotation=0 if upright else 90)
    axes.set_yticks(range(CLASSES), names)
    axes.set_title(f"{int(wrong.sum())} of {int(confusion.sum())} wrong")
    for axes, mistake in zip(right.subplots(5, SHOWN // 5).flat, [*mistakes, *[None] * SHOWN]):
        axes.set_axis_off()
        if mistake is not None:
            pixels, label, found = mistake
            in_colour = pixels.dim() == 3 and len(pixels) == 3
            shown = pixels.permute(1, 2, 0) if in_colour else pixels.reshape(pixels.shape[-2:])
            axes.imshow(shown.numpy(), cmap="gray" if pixels.dim() == 3 else "gray_r")
            axes.set_title(f"{names[label]} → {names[found]}", fontsize=8 if upright else 6)
    return figure
