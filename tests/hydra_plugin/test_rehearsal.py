"""A wrong step of one's own is one line with file and line, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_recorded import SINE

CELL = """
import torch
from rnnzoo import Cell, gate, register

@register("wrong_{name}")
class Wrong(Cell):
    W, U, b = gate()

    def step(self, x, h):
        {body}
"""
WRONG = {
    "shape": (
        "return torch.tanh(x @ self.U + h @ self.U)",
        "line 10: x @ self.U: [B, input=1] @ [hidden=5, hidden=5] do not fit; a weight for x is InputWeight()",
    ),
    "in_place": ("h += x @ self.W; return h", "line 10: step writes to h, which others read"),
    "weights": ("self.b.mul_(2); return h + x @ self.W", "line 10: step writes to self.b, which others read"),
    "rows": ("return h + x @ self.W + (x @ self.W).mean(0)", "line 9: step mixes rows of the batch: h of a row"),
    "states": ("return h, h", "line 9: step returns 2 tensors; write return h"),
    "narrower": ("return (h + x @ self.W)[:, :2]", "line 9: step returns h as [B, 2], and was given [B, hidden=5]"),
    "typo": ("return h + x @ self.Q", "line 10: self.Q: nothing of that name is declared; known: U, W, b"),
    "list": ("return [h]", "line 9: Wrong.step returns a list; write return h"),
    "chance": ("return h + torch.rand_like(h)", "line 10: step draws random numbers in evaluation, too"),
    "branch": (
        "h = h + x @ self.W; return h if h.sum() > 0 else -h",
        "line 10: step asks for a tensor's value, as a branch on data does, and one row decides for all",
    ),
    "numpy": (
        "return torch.tensor(h.numpy()) + x @ self.W",
        "line 10: RuntimeError: Can't call numpy()",
    ),
    "gradient": (
        "return (h + x @ self.W).exp().mul_(2).tanh()",
        "line 9: a tensor that the gradient needs has been modified by an inplace operation",
    ),
    "sum": ("return h + self.U", "line 10: h + self.U: [B, hidden=5] + [hidden=5, hidden=5] do not fit"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_step_is_one_line(
    name: str, tmp_path: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    body, said = WRONG[name]
    path = tmp_path / "own.py"
    path.write_text(CELL.format(name=name, body=body))
    own = [argument for argument in SINE if not argument.startswith("model")]
    with pytest.raises(SystemExit) as end:
        train(*own, f"cells={path}", f"model=wrong_{name}", "model.hidden_size=5")
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1, error
    assert f"{path} {said}" in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["own.py"]


def test_what_a_constructor_of_ones_own_raises_is_one_line(
    tmp_path: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.py"
    early = "    def __init__(self, *sizes):\n        self.extra = torch.nn.Linear(2, 2)\n\n    def step"
    path.write_text(CELL.format(name="early", body="return h").replace("    def step", early))
    with pytest.raises(SystemExit) as end:
        train(*[argument for argument in SINE if argument != "model=rnn"], f"cells={path}", "model=wrong_early")
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.count("\n") == 1
    assert (
        error.startswith(f"error: {path} line 10: AttributeError: cannot assign module") and "HYDRA_FULL_ERROR" in error
    )


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("drops", "return torch.dropout(torch.tanh(h + x @ self.W), 0.3, self.training)", "draws random numbers"),
        (
            "ponders",
            "h = h + x @ self.W; return h * 0.5 if (h > 1e9).any() else h",
            "asks for a tensor's value",
        ),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_what_only_the_plain_loop_runs_is_trained_with_a_warning(
    name: str, body: str, said: str, engine: str, tmp_path: Path, train: Callable[..., Path]
) -> None:
    path = tmp_path / "own.py"
    path.write_text(CELL.format(name=f"{name}_{engine}", body=body))
    own = [argument for argument in SINE if not argument.startswith(("model=", "engine="))]
    with pytest.warns(UserWarning, match=rf"{path} line 10: step {said}.*trained with the plain loop"):
        folder = train(*own, f"cells={path}", f"model=wrong_{name}_{engine}", f"engine={engine}")
    assert (folder / "summary.json").is_file()
