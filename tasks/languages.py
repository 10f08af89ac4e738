"""Regular languages: the state of a finite automaton after each letter, learned from short words, asked of long ones.

Whether a network keeps track of a state shows where words are longer than any that it has learned from, as Delétang et
al. 2023 (arXiv:2207.02098) and Beck et al. 2024 (xLSTM, arXiv:2405.04517) measure it. A linear recurrence with
positive eigenvalues only cannot do parity (Grazzi et al. 2024, arXiv:2411.12537), and one that is diagonal should not
manage an automaton like the last of these (Merrill, Petty & Sabharwal 2024, arXiv:2404.08819).

Shapes: T letters of a word, B words.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt

from rnnzoo import UserError

from .drawn import IGNORED, TEST, Batch, Drawn

LANGUAGES: dict[str, list[list[int]]] = {
    "parity": [[0, 1], [1, 0]],
    "modular": [[(state + digit) % 5 for state in range(5)] for digit in range(5)],
    "automaton": [[1, 2, 3, 4, 0], [1, 0, 2, 3, 4], [0, 1, 2, 3, 4]],
}
"""For each language, for each letter, the state that follows each state; words begin in state 0.

parity: whether the number of ones is odd. modular: the sum of digits modulo 5. automaton: five states under the letters
"turn", "swap the first two" and "wait", which together make all 120 permutations of five things.
"""


class Words(Drawn):
    """Words of letters, drawn uniformly; the answer after each letter is the automaton's state.

    Input and answer are letters and states as numbers, [B, T] each. In the test, only what lies beyond the length of
    the words learned from is asked for.

    Args:
        language: parity, modular or automaton, see `LANGUAGES`.
        T: letters of a word in training and validation.
        test_T: letters of a word in the test.
        samples: words an epoch; a tenth as many are drawn for validation, and for the test.
        batch_size: words in a batch.
        seed: of all that is drawn.
    """

    def __init__(
        self,
        language: Literal["parity", "modular", "automaton"] = "parity",
        T: PositiveInt = 40,
        test_T: PositiveInt = 256,
        samples: PositiveInt = 16000,
        batch_size: PositiveInt = 64,
        seed: int = 1,
    ) -> None:
        super().__init__(T, samples, batch_size, seed)
        if test_T <= T:
            raise UserError(f"task.test_T={test_T}: must be more than task.T={T}, the length of the words learned from")
        self.test_T = test_T
        self.next = torch.tensor(LANGUAGES[language])  # [letters, states]

    def length(self, split: int) -> int:
        return self.test_T if split == TEST else self.T

    def draw(self, count: int, T: int, generator: torch.Generator) -> Batch:
        x = torch.randint(len(self.next), (count, T), generator=generator)
        state, states = torch.zeros(count, dtype=torch.long), []
        for letters in x.T:
            state = self.next[letters, state]
            states.append(state)
        y = torch.stack(states, 1)
        if T > self.T:
            y[:, : self.T] = IGNORED
        return Batch(x, y)

    def facts(self) -> dict[str, int]:
        letters, states = self.next.shape
        return {"read": letters, "answered": states}

    def baseline(self) -> dict[str, float]:
        """Always the state that is most frequent where the test asks, and what knowing how frequent all are costs."""
        follows = F.one_hot(self.next).double().mean(0)  # how probable it is after each state, [states, states]
        state = F.one_hot(torch.tensor(0), len(follows)).double()
        asked = torch.zeros_like(state)
        for letters in range(1, self.test_T + 1):
            state = state @ follows
            if letters > self.T:
                asked += state / (self.test_T - self.T)
        return {
            "baseline/trivial_accuracy": float(asked.max()),
            "baseline/trivial_loss": float(torch.special.entr(asked).sum()),
        }
