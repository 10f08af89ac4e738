"""Ridge regression in one pass against the closed form of all rows at once, and runs that learn by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rnnzoo import UserError
from rnnzoo.lightning.checkpoints import read_checkpoint
from rnnzoo.lightning.ridge import Ridge
from rnnzoo.tasks.forecast import Forecast
from rnnzoo.tasks.windows import Windows

FORECAST = (
    "hardware=cpu", "task=forecast", "model=esn", "model.hidden_size=30", "optimizer=ridge", "task.rows=400",
    "task.window=40", "task.horizon=3", "task.batch_size=50", "task.linear=false", "engine=reference",
)  # fmt: skip


def closed_form(features: np.ndarray, answers: np.ndarray, penalty: float) -> np.ndarray:
    """Weights and, in the last row, bias: least squares in which the penalty's rows stand below the data's."""
    rows, columns = features.shape
    below = np.sqrt(penalty * rows) * np.eye(columns, columns + 1)
    system = np.concatenate([np.concatenate([features, np.ones((rows, 1))], 1), below])
    wanted = np.concatenate([answers, np.zeros((columns, answers.shape[1]))])
    solution: np.ndarray = np.linalg.lstsq(system, wanted, rcond=None)[0]
    return solution


@pytest.mark.parametrize("penalty", [0.0, 1e-10, 0.1])
def test_batches_lead_to_what_all_rows_at_once_do(penalty: float) -> None:
    """Also before there are as many rows as features, and where features are nearly dependent."""
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 12))
    features[:, 11] = features[:, 10] + 1e-7 * random.normal(size=60)
    answers = features @ random.normal(size=(12, 2)) + 3 + 0.1 * random.normal(size=(60, 2))
    head = torch.nn.Linear(12, 2).double()
    ridge = Ridge(head.parameters(), penalty=penalty)
    for start in (0, 5, 37):
        end = {0: 5, 5: 37, 37: 60}[start]
        ridge.see(torch.from_numpy(features[start:end]), torch.from_numpy(answers[start:end]))
        ridge.step()
        if penalty or end > 12:
            expected = closed_form(features[:end], answers[:end], penalty)
            found = head(torch.from_numpy(features[:end])).detach().numpy()
            fitted = features[:end] @ expected[:-1] + expected[-1]
            assert np.allclose(found, fitted, rtol=0, atol=1e-7)
            error, count = ridge.error()
            assert float(error) == pytest.approx(np.square(found - answers[:end]).mean()) and count == 2 * end
    if penalty == 0.1:
        assert np.allclose(head.weight.detach().numpy().T, expected[:-1]) and np.allclose(
            head.bias.detach(), expected[-1]
        )


def test_a_step_goes_its_share_of_the_way() -> None:
    head = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    ridge = Ridge(head.parameters(), lr=0.25, penalty=0.0)
    ridge.see(torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0], [12.0]]))
    ridge.step()
    assert head.weight.item() == pytest.approx(2.0) and head.bias.item() == pytest.approx(1.0)


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
def test_a_run_finds_the_closed_form(strategy: str, train: Callable[..., Path]) -> None:
    folder = train(*FORECAST, f"task.strategy={strategy}", "trainer.precision=64", "optimizer.penalty=1e-5")
    model = Forecast.load_from_checkpoint(folder / "checkpoints" / "best.ckpt", weights_only=True).double()
    data = Windows(rows=400, window=40, horizon=3)
    data.setup()
    batch = data.windows_at(data.train)
    with torch.no_grad():
        features = model.layer(batch.x.double())[0][-1].numpy()
    ahead = batch.y[:1] if strategy == "recursive" else batch.y
    answers = (ahead - batch.x[-1:]).double()[:, :, 0].T.numpy()
    expected = closed_form(features, answers, 1e-5)
    assert np.allclose(model.head.weight.detach().numpy().T, expected[:-1], atol=1e-6)
    assert np.allclose(model.head.bias.detach().numpy(), expected[-1], atol=1e-6)

    summary = json.loads((folder / "summary.json").read_text())
    fitted = features @ expected[:-1] + expected[-1]
    losses = (folder / "metrics.csv").read_text()
    assert summary["epochs"] == 1 and summary["parameters"] == len(expected) * answers.shape[1]
    assert f"{np.square(fitted - answers).mean():.4g}"[:4] in losses
    for baseline in ("persistence", "seasonal", "linear"):
        assert summary["metrics"]["test/rmse"] < summary["metrics"][f"baseline/{baseline}_rmse"]


def test_forecasts_are_read_as_the_next_rows(train: Callable[..., Path]) -> None:
    """The recursive forecast of three rows is three forecasts of one, each behind the row that was found before."""
    data = Windows(rows=400, window=40, horizon=3)
    data.setup()
    torch.manual_seed(0)
    options = {"model": {"cell": "gru", "hidden_size": 4}, "strategy": "recursive"}
    model = Forecast(**options, **data.facts()).double().eval()
    x = data.windows_at(data.test).x.double()
    found = model(x)
    one = Forecast(**options, **{**data.facts(), "horizon": 1}).double().eval()
    one.load_state_dict(model.state_dict())
    for row in found:
        [expected] = one(x)
        torch.testing.assert_close(row, expected)
        x = torch.cat([x, expected[None]])


def test_a_checkpoint_holds_what_was_seen(tmp_path: Path) -> None:
    """In double precision also for a head in single, as a run needs that goes on within its epoch."""
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randn(20, 5, generator=generator), torch.randn(20, 1, generator=generator)) for _ in range(3)]
    whole, part = (Ridge(torch.nn.Linear(5, 1).parameters()) for _ in range(2))
    for batch in rows[:2]:
        whole.see(*batch)
    torch.save(whole.state_dict(), tmp_path / "state")
    part.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for ridge in (whole, part):
        ridge.see(*rows[2])
        ridge.step()
    for ours, theirs in zip(whole.param_groups[0]["params"], part.param_groups[0]["params"]):
        assert torch.equal(ours, theirs)


def test_a_second_epoch_changes_nothing(train: Callable[..., Path]) -> None:
    once, twice = (
        read_checkpoint(train(*FORECAST, f"trainer.max_epochs={n}") / "checkpoints" / "last.ckpt")["state_dict"]
        for n in (1, 2)
    )
    torch.testing.assert_close(once["head.weight"], twice["head.weight"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("task=sine", "optimizer=ridge"), "optimizer=ridge: Sine has no linear head that is learned by least squares"),
        ((*FORECAST, "optimizer.penalty=-1"), "optimizer.penalty=-1: must not be negative"),
        ((*FORECAST, "optimizer.momentum=0.9"), "optimizer.momentum"),
        (
            ("task=forecast", "task.strategy=recursive", "model.bidirectional=true"),
            "model.bidirectional=true: task.strat",
        ),
        (("task=forecast", "task.every=0"), "task.every"),
        (("task=forecast", "task.every=1", "task.data=a.csv"), "task.rows and task.every are of the series made"),
    ],
)
def test_what_cannot_be_is_refused(
    overrides: tuple[str, ...], said: str, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(*overrides)
    assert said in capsys.readouterr().err


def test_a_recursive_forecast_needs_all_columns() -> None:
    facts = {"window": 5, "horizon": 2, "missing": "refuse", "columns": ["a", "b"], "targets": ["b"]}
    numbers = {"center": [0.0, 0.0], "scale": [1.0, 1.0], "naive_error": [1.0]}
    with pytest.raises(UserError, match=r"task\.targets must be all columns, a, b"):
        Forecast(strategy="recursive", **facts, **numbers)
