"""What `rnnzoo play` does with a classifier of reviews: its score as one types, and each word's pull.

Shapes: T words, E features of a word.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnzoo.play.view import Request, Session, View, text_in

from .reviews import number, tokenize

LONGEST = 20_000
"""Characters of a review that is typed."""

AT_ONCE = 50
"""Reviews of a batch."""

FIRST = "This is a wonderful film, the actors are great and so is the music, but the ending is a bit too long."


class Words(View):
    """A review, word by word.

    Args:
        vocabulary: the words by their numbers.
        maxlen: words of a review that are read, its last ones.
    """

    kind = "words"

    def __init__(self, vocabulary: list[str], maxlen: int) -> None:
        self.vocabulary, self.maxlen = vocabulary, maxlen

    def about(self) -> dict[str, Any]:
        return {"given": {"text": FIRST}, "longest": LONGEST}

    def read(self, request: Request) -> dict[str, Any]:
        return {"text": text_in(request, "text", LONGEST)}

    def _codes(self, given: dict[str, Any]) -> Tensor:
        return number(given["text"], self.vocabulary, self.maxlen)

    def run(self, module: Any, given: dict[str, Any], before: Session | None = None) -> tuple[list[str], float]:
        codes = self._codes(given)
        score = module(codes[:, None], torch.tensor([len(codes)])).sigmoid()
        return tokenize(given["text"])[-len(codes) :], float(score)

    def reply(self, session: Session, request: Request, have: int) -> dict[str, Any]:
        return {"score": session.found}

    def more(self, module: Any, given: dict[str, Any], request: Request) -> dict[str, Any]:
        """A number for each word: the score so far, or how far the word pulls the logit, told in one of two ways."""
        ways = {"running": self._running, "gradient": self._gradient, "without": self._without}
        what = request.get("what")
        if what not in ways:
            return super().more(module, given, request)
        return {"pulls": [round(pull, 5) for pull in ways[str(what)](module, self._codes(given))]}

    def _running(self, module: Any, codes: Tensor) -> list[float]:
        return [score - 0.5 for score in module.judge(codes, running=True)]

    def _gradient(self, module: Any, codes: Tensor) -> list[float]:
        """The gradient of the logit by the word's features, times these."""
        with torch.enable_grad():
            features = module.features(codes[:, None]).detach().requires_grad_()  # [T, 1, E]
            logit = module.of_features(features, torch.tensor([len(codes)]))
            (gradient,) = torch.autograd.grad(logit.sum(), features)
        return (gradient * features).sum(-1)[:, 0].tolist()

    @torch.no_grad()
    def _without(self, module: Any, codes: Tensor) -> list[float]:
        """How much the logit falls where the word is left out."""
        T = len(codes)
        logit = module(codes[:, None], torch.tensor([T]))
        if T == 1:
            return logit.tolist()
        rest = codes.expand(T, T)[~torch.eye(T, dtype=torch.bool)].view(T, T - 1)  # each without one word
        parts = rest.split(AT_ONCE)
        without = torch.cat([module(part.T, torch.full((len(part),), T - 1)) for part in parts])
        return (logit - without).tolist()
