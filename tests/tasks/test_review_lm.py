"""What is learned before judging: no direction sees the word that it tells, and what is learned is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rnnzoo import Recurrent, UserError
from rnnzoo.tasks.imdb import Sentiment, Sentiments
from rnnzoo.tasks.review_lm import NextWords, pretrain


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
def test_no_direction_sees_what_it_tells(bidirectional: bool) -> None:
    """Each told word's features have no gradient through the layer that could give the word away."""
    torch.manual_seed(0)
    embed, layer = torch.nn.Embedding(9, 3), Recurrent("gru", 3, 4, bidirectional=bidirectional)
    task = NextWords(layer, embed)
    words = torch.tensor([[2, 3], [4, 5], [6, 7], [8, 0]])
    lengths = torch.tensor([4, 3])
    for told in range(4):
        read = embed(words).detach().requires_grad_()
        output, _ = layer(read, lengths=lengths)
        half = [output[told - 1, 0, :4].sum()] if told else []  # tells the word after it
        half += [output[told + 1, 0, 4:].sum()] if bidirectional and told < 3 else []  # tells the word before it
        for seen in half:
            [gradient] = torch.autograd.grad(seen, read, retain_graph=True)
            assert gradient[told].eq(0).all() and gradient[:, 0].ne(0).any()

    # the loss by hand: with all words drawn alike, what matters is which outputs meet which words
    torch.manual_seed(1)
    output, _ = layer(embed(words), lengths=lengths)
    found = task(output, words)
    torch.manual_seed(1)
    known = words[words > 1]
    drawn = known[torch.randint(len(known), (256,))]
    losses = []
    for direction, place in enumerate(task.features):
        step, half = (-1, slice(4, 8)) if direction else (1, slice(4))
        each = []
        for row, length in enumerate(lengths.tolist()):
            for at in range(length):
                if 0 <= at + step < length:
                    features, right = place(output[at, row, half]), words[at + step, row]
                    others = [features @ embed.weight[word] for word in drawn if word != right]
                    logits = torch.stack([features @ embed.weight[right], *others])
                    each.append(F.cross_entropy(logits, torch.tensor(0)))
        losses.append(torch.stack(each).mean())
    assert torch.allclose(found, torch.stack(losses).mean(), atol=1e-5)


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"block": "glu"}, {"projection": 3}, {"residual": True}])
def test_what_combines_both_directions_is_refused(options: dict[str, Any]) -> None:
    embed = torch.nn.Embedding(5, 8)
    with pytest.raises(UserError, match=r"task\.pretrain_epochs: what combines both directions sees the words"):
        NextWords(Recurrent("gru", 8, 4, bidirectional=True, **options), embed)
    NextWords(Recurrent("gru", 8, 8, **options), embed)


def test_words_are_learned_to_be_told(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    data = Sentiments(str(reviews), vocabulary=50, maxlen=40, batch_size=8, val_fraction=0.25)
    data.setup()
    module = Sentiment(model={"hidden_size": 8, "bidirectional": True}, optimizer={"lr": 0.02, "schedule": "constant"},
                       embedding=8, ngrams=2, buckets=64, embedding_dropout=0.0, word_dropout=0.0)  # fmt: skip
    module.learn_from(data)
    assert module.ratios is not None
    module.ratios.count(data.train)
    pretrain(module, data, 4)
    losses = [
        float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines() if "told" in line
    ]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.5
    assert all(p.grad is None for p in module.parameters())


def test_a_run_is_pretrained_once(
    reviews: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    toy = ("hardware=cpu", "experiment=imdb_pretrained", f"task.data={reviews}", "task.batch_size=8",
           "task.embedding=4", "task.buckets=512", "task.val_fraction=0.25", "model.hidden_size=4",
           "task.pretrain_epochs=1", "optimizer.schedule=constant")  # fmt: skip
    folder = train(*toy, "trainer.max_epochs=1")
    assert "words told, epoch 1/1" in capsys.readouterr().out
    train(f"resume={folder}", "trainer.max_epochs=2")
    assert "words told" not in capsys.readouterr().out
