"""What a layer learns of reviews before it judges them: to tell their words, each direction those that it has not read.

Semi-supervised sequence learning, Dai and Le 2015 (arXiv:1511.01432). Differs: the right word is told among words drawn
from the reviews as frequently as they stand there, not from the whole vocabulary, so that what is learned is how much
likelier than usual a word is where it stands.

Shapes: T time steps (words), B reviews, E features of a word, D directions, H outputs of each, M words told, K drawn.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnzoo import Recurrent, UserError
from rnnzoo.plain import printable

from .reviews import PADDING, UNKNOWN

DRAWN = 256


class NextWords(nn.Module):
    """From the outputs of a layer to the words that follow, by way of their own embedding.

    Args:
        layer: whose outputs are read; `UserError` for one of whose directions an upper layer sees both.
        embed: features of words; the words told are known by the same ones.
    """

    def __init__(self, layer: Recurrent, embed: nn.Embedding) -> None:
        super().__init__()
        if layer.bidirectional and not (len(layer.hidden_sizes) == 1 and layer.is_plain):
            raise UserError(
                "task.pretrain_epochs: what combines both directions sees the words that it is to tell; have one layer "
                "without block, projection and residual, or model.bidirectional=false, or no pretraining"
            )
        directions = 1 + layer.bidirectional
        self.features = nn.ModuleList(
            nn.Linear(layer.output_size // directions, embed.embedding_dim) for _ in range(directions)
        )
        self.embed = [embed]  # its owner trains it

    def forward(self, output: Tensor, words: Tensor) -> Tensor:
        """The mean loss of telling the words after (and before) each by outputs [T, B, D·H] at words [T, B]."""
        read = words > UNKNOWN
        drawn = words[read]
        drawn = drawn[torch.randint(len(drawn), (DRAWN,), device=words.device)]
        losses = []
        for direction, (map_, half) in enumerate(zip(self.features, output.chunk(len(self.features), -1))):
            here, there = (slice(1, None), slice(-1)) if direction else (slice(-1), slice(1, None))
            told = read[there] & (words[here] != PADDING)
            right = words[there][told]  # [M]
            features = map_(half[here][told])  # [M, E]
            likely = (features * self.embed[0](right)).sum(-1, keepdim=True)  # [M, 1]
            others = (features @ self.embed[0](drawn).T).masked_fill(right[:, None] == drawn, float("-inf"))  # [M, K]
            losses.append(F.cross_entropy(torch.cat([likely, others], 1), torch.zeros_like(right)))
        return torch.stack(losses).mean()


def pretrain(module: Any, data: Any, epochs: int) -> None:
    """Train the embedding and the layer of `module`, a `Sentiment`, to tell the words of the training reviews."""
    task = NextWords(module.layer, module.embed).to(module.device)
    optimizer = module.make_optimizer([*module.embed.parameters(), *module.layer.parameters(), *task.parameters()])
    for epoch in range(epochs):
        total, plan = 0.0, data.training_plan(epoch)
        for rows in plan:
            batch = data.batch(data.train, rows)
            words, lengths = batch.words.to(module.device).long(), batch.lengths.to(module.device)
            features = module.features(words, batch.folds.to(module.device))
            features[:, :, module.embed.embedding_dim :] = 0  # the ratios have seen the words after
            loss = task(module.layer(features, lengths=lengths)[0], words)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
            total += float(loss.detach())
        found = f"words told, epoch {epoch + 1}/{epochs}: loss {total / len(plan):.4f} among {DRAWN + 1}"
        print(printable(found), flush=True)
    optimizer.zero_grad()
