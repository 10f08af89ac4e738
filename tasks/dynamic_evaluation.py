"""Evaluation of a model that goes on learning from what it has just been tested on."""

from __future__ import annotations

import copy
from typing import Any

import torch

from rnnzoo.lightning.metrics import MeanLoss
from rnnzoo.lightning.module import SequenceModule


class DynamicEvaluation:
    """A copy of a module that is scored on windows in their order, and takes a step of SGD after each.

    Dynamic evaluation (Krause et al. 2017, arXiv:1709.07432) in its plainest form, without the scaling by the training
    gradients' mean squares and without the pull back to the trained weights. Every window is scored before its
    gradient is taken, so nothing is predicted that has been learned from; streams read side by side are learned from
    together.

    Args:
        module: is left as it is; in evaluation mode.
        rate: the learning rate, of the gradient of a window's mean loss.
    """

    def __init__(self, module: SequenceModule, rate: float) -> None:
        with torch.inference_mode(False):  # in which Lightning evaluates, and makes what no gradient can reach
            self.module = copy.deepcopy(module).requires_grad_(True)
        self.rate, self.seen = rate, MeanLoss().to(module.device)

    def read(self, batch: torch.Tensor) -> None:
        """Score a batch, and learn from it."""
        with torch.inference_mode(False), torch.enable_grad():
            loss, count, *_ = self.module.score(batch.clone())
            weights = [*self.module.parameters()]
            gradients: Any = torch.autograd.grad(loss, weights, allow_unused=True)
        self.seen.update(loss.detach(), count)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients):
                if gradient is not None:
                    weight.sub_(gradient, alpha=self.rate)

    @property
    def loss(self) -> float:
        """The mean loss of all batches so far."""
        return float(self.seen.compute())
