"""`rnnzoo bench`: what it measures, what it leaves, and how it refuses. No test depends on how long anything takes."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from torch import Tensor, nn

from rnnzoo import Recurrent, UserError, bench, bench_report, cli, list_cells
from rnnzoo.bench import OURS, SIZES, Case, Contender, Measured, Setting, Size
from rnnzoo.commands import benching

TINY = ["--sizes", "5,2,3,4", "--rounds", "2"]
SMALL = Size(5, 2, 3, 4)


@pytest.fixture
def rnnzoo_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`rnnzoo_bench("gru", ...)` runs the command into tmp_path / "out" and returns what it prints."""

    def run(*arguments: str) -> str:
        printed = io.StringIO()
        monkeypatch.setattr(benching, "Console", lambda: Console(file=printed))
        assert cli.main(["bench", *arguments, "--out", str(tmp_path / "out")]) == 0
        return printed.getvalue()

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[], dict[tuple[str, str], dict[str, str]]]:
    """The rows of bench.csv by cell and contender."""

    def read() -> dict[tuple[str, str], dict[str, str]]:
        with (tmp_path / "out" / "bench.csv").open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            found = {(row["cell"], row["contender"]): row for row in reader}
            assert tuple(reader.fieldnames or ()) == bench_report.COLUMNS
        return found

    return read


def made_up(cell: str, size: Size = SMALL, **ms: list[float]) -> Case:
    """A case whose contenders took `ms` in each round, half of it forward, and 1, 2, ... MB."""
    case = Case(cell, size)
    for number, (name, samples) in enumerate(ms.items(), 1):
        kinds = {"fwdbwd": samples, "fwd": [sample / 2 for sample in samples]}
        case.measured[name] = Measured("reference", kinds, memory_mb=float(number), first_s=0.5)
    return case


def test_what_it_leaves(
    rnnzoo_bench: Callable[..., str], rows: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = rnnzoo_bench("lstm", "mgu", *TINY, "--against", "torch,loop", "--engine", "reference", "--threads", "1")
    found = rows()
    assert set(found) == {("lstm", OURS), ("lstm", "torch"), ("lstm", "loop"), ("mgu", OURS), ("mgu", "loop")}
    for (_, contender), row in found.items():
        assert [row[key] for key in "TBIH"] == ["5", "2", "3", "4"]
        for key in ("fwd_ms", "fwdbwd_ms", "memory_mb", "first_s"):
            assert float(row[key]) > 0
        assert float(row["fwd_iqr_ms"]) >= 0 and float(row["fwdbwd_iqr_ms"]) >= 0
        assert row["engine"] == ("" if contender == "torch" else "reference")
        assert f", 1 thread, torch {torch.__version__}, float32" in row["machine"]
        for ratio in ("fwd_ratio", "fwdbwd_ratio", "memory_ratio"):
            assert (row[ratio] == "") == (contender == OURS)
    assert found["mgu", "loop"]["memory_ratio"] == "1"  # the same loop twice
    assert imread(tmp_path / "out" / "bench.png").shape[2] == 4

    assert found["lstm", OURS]["machine"] in printed and "÷ torch" in printed and "÷ loop" in printed
    assert str(tmp_path / "out") in printed.replace("\n", "")
    progress = capsys.readouterr().err.splitlines()
    assert [line.split(" ms")[0].rpartition(":")[0] for line in progress] == ["[1/2] lstm 5,2,3,4", "[2/2] mgu 5,2,3,4"]
    assert "of torch" in progress[0] and "of torch" not in progress[1]


@pytest.mark.parametrize("dtype", bench.DTYPES)
def test_ratios_follow_from_the_times(dtype: str, rnnzoo_bench: Callable[..., str], rows: Callable[..., Any]) -> None:
    """In a single round the median of the ratios is the ratio of the medians."""
    rnnzoo_bench("gru", "--sizes", "5,2,3,4", "--rounds", "1", "--dtype", dtype, "--engine", "native")
    found = rows()
    for rival in ("torch", "loop"):
        for ratio, key in (("fwd_ratio", "fwd_ms"), ("fwdbwd_ratio", "fwdbwd_ms"), ("memory_ratio", "memory_mb")):
            expected = float(found["gru", OURS][key]) / float(found["gru", rival][key])
            assert float(found["gru", rival][ratio]) == pytest.approx(expected, rel=1e-4)
    assert found["gru", OURS]["machine"].endswith(dtype)


def test_an_engine_that_refuses_a_cell(
    rnnzoo_bench: Callable[..., str], rows: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    printed = rnnzoo_bench("mgu", "gru", *TINY, "--engine", "native")
    found = rows()
    assert "engine=native cannot run this cell" in found["mgu", OURS]["refused"]
    assert found["mgu", OURS]["fwd_ms"] == "" and ("mgu", "loop") not in found
    assert found["gru", OURS]["engine"] == "native" and found["gru", OURS]["refused"] == ""
    assert "refused" in printed and "mgu: engine=native cannot run this cell" in printed
    assert "refused: engine=native cannot run this cell" in capsys.readouterr().err


def test_ratios_are_taken_inside_a_round() -> None:
    """A machine that becomes ten times slower in the last rounds leaves them as they are."""
    case = made_up("gru", rnnzoo=[2, 20, 20, 2], loop=[4, 40, 41, 4])
    assert case.ratio("fwdbwd", "loop") == case.ratio("fwd", "loop") == 0.5
    assert case.ratio("memory", "loop") == 0.5
    assert case.ratio("fwd", "torch") is None
    assert case.measured[OURS].median("fwdbwd") == 11 and case.measured[OURS].iqr("fwdbwd") == 18


def test_contenders_take_turns() -> None:
    """In each round everybody runs each kind once, and somebody else begins."""
    log: list[tuple[str, str, int]] = []

    class Logged:
        def __init__(self, name: str) -> None:
            self.name = name

        def repeats(self, kind: str) -> int:
            return {"fwd": 7, "fwdbwd": 1}[kind]

        def seconds(self, kind: str, repeats: int) -> float:
            log.append((self.name, kind, repeats))
            return 0.25

    contenders: Any = {name: Logged(name) for name in "abc"}
    ms = bench._rounds(contenders, 4)
    assert ms == {name: {"fwdbwd": [250.0] * 4, "fwd": [250.0] * 4} for name in "abc"}
    assert "".join(name for name, kind, _ in log if kind == "fwd") == "abcbcacababc"
    assert [kind for _, kind, _ in log[:6]] == ["fwdbwd"] * 3 + ["fwd"] * 3
    assert {(kind, repeats) for _, kind, repeats in log} == {("fwd", 7), ("fwdbwd", 1)}


class Greedy(nn.Module):
    """Takes 4 MB for a moment, and counts its calls."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, hidden_size)
        self.calls = 0

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        self.calls += 1
        gone = torch.zeros(1_000_000)
        return self.linear(x) + gone[0], None


def test_memory_is_the_peak_of_what_tensors_take() -> None:
    memory = Contender(Greedy, SMALL, Setting()).memory_mb()
    assert 4 <= memory < 4.1  # the momentary tensor too, which is freed long before backward ends


def test_a_call_starts_without_gradients() -> None:
    contender = Contender(Greedy, SMALL, Setting())
    assert contender.layer.calls == 1 and contender.first_s > 0
    once = contender.x.grad
    contender.seconds("fwdbwd", repeats=3)
    torch.testing.assert_close(contender.x.grad, once, rtol=0, atol=0)
    assert contender.layer.calls == 4
    contender.seconds("fwd")
    assert contender.x.grad is None


def test_short_calls_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    contender = Contender(Greedy, SMALL, Setting())
    for seconds, repeats in ((0.0001, 100), (0.0015, 7), (0.002, 1), (5.0, 1)):
        monkeypatch.setattr(contender, "seconds", lambda kind, seconds=seconds: seconds)
        assert contender.repeats("fwd") == repeats


def test_rows_come_as_cases_do(tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        yield made_up("gru", rnnzoo=[1.0], loop=[2.0])
        assert len((tmp_path / "bench.csv").read_text().splitlines()) == 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench_report.write_csv(cases(), tmp_path / "bench.csv", "a machine, 1 thread")
    with (tmp_path / "bench.csv").open(newline="") as file:
        assert [(row["contender"], row["fwd_ratio"]) for row in csv.DictReader(file)] == [(OURS, ""), ("loop", "0.5")]


def test_the_tables() -> None:
    cases = [
        made_up("gru", rnnzoo=[1.0], loop=[2.0]),
        made_up("gru", Size(6, 2, 3, 4), rnnzoo=[2.0], loop=[1.0]),
        made_up("own", rnnzoo=[1.0], torch=[4.0]),
        Case("mgu", SMALL, refused={OURS: "it [cannot]"}),
    ]
    printed = io.StringIO()
    for table in bench_report.tables(cases, ("torch", "loop")):
        Console(file=printed, width=200).print(table)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.getvalue().splitlines()]
    assert ["gru", "5,2,3,4", "reference", "0.5", "1", "0", "1", "0.5", "", "0.50  0.50  0.50"] in lines
    assert ["mgu", "5,2,3,4", "refused", *[""] * 7] in lines and "mgu: it [cannot]" in printed.getvalue()
    assert ["gru", "", "", "", "1.00", "1.00", "0.50"] in lines
    assert ["own", "0.25", "0.25", "0.50", "", "", ""] in lines
    assert ["all", "0.25", "0.25", "0.50", "1.00", "1.00", "0.50"] in lines
    worst = next(number for number, line in enumerate(lines) if line[:1] == ["worst"])
    assert [line[4] for line in lines[worst : worst + 3]] == ["2.00", "gru", "6,2,3,4"]


@pytest.mark.parametrize("count", [1, 60])
def test_the_plot(count: int, tmp_path: Path) -> None:
    cases = [made_up(f"cell_{number}", rnnzoo=[1.0], loop=[2.0 + number]) for number in range(count)]
    bench_report.plot(
        [*cases, Case("mgu", SMALL, refused={OURS: "no"})], ("torch", "loop"), "a machine", tmp_path / "a"
    )
    height, width, _ = imread(tmp_path / "a.png").shape
    assert width == 1560 and height > 100 + 30 * count


def test_a_plot_without_any_ratio(tmp_path: Path) -> None:
    bench_report.plot([made_up("mgu", rnnzoo=[1.0])], ("torch",), "a machine", tmp_path / "bench.png")
    assert imread(tmp_path / "bench.png").size


def test_a_rival_that_refuses_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrecurrent's IntersectionRNN wants I = H: the reason goes into the rival's row, the bench goes on."""

    def square(input_size: int, hidden_size: int) -> nn.Module:
        raise ValueError("input_size must be hidden_size")

    monkeypatch.setitem(bench.RIVALS, "square", lambda cell: square)
    case = bench.measure("gru", SMALL, Setting(rivals=("square", "torch"), engine="reference", rounds=1))
    assert case.refused == {"square": "input_size must be hidden_size"} and set(case.measured) == {OURS, "torch"}
    assert [row.get("refused") for row in bench_report._rows(case)] == ["input_size must be hidden_size", None, None]


def test_a_fault_of_ones_own_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> nn.Module:
        raise ValueError("a bug")

    monkeypatch.setattr(bench, "Recurrent", broken)
    with pytest.raises(ValueError, match="a bug"):
        bench.measure("gru", SMALL, Setting(rounds=1))


@pytest.mark.parametrize("cell", list_cells())
def test_every_cell_can_be_measured(cell: str) -> None:
    assert Contender(partial(Recurrent, cell, engine="reference"), SMALL, Setting()).seconds("fwdbwd") > 0


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    seen = [torch.get_num_threads() for _ in bench.run(["rnn"], [SMALL], Setting((), "reference", 2, rounds=1))]
    assert seen == [2] and torch.get_num_threads() == before


@pytest.mark.skipif(importlib.util.find_spec("torchrecurrent") is None, reason="torchrecurrent is not installed")
@pytest.mark.parametrize("cell", bench.TORCHRECURRENT)
def test_torchrecurrent_has_these_layers(cell: str) -> None:
    make = bench.RIVALS["torchrecurrent"](cell)
    assert make is not None
    assert Contender(make, Size(3, 2, 4, 4), Setting()).layer(torch.zeros(3, 2, 4))[0].shape == (3, 2, 4)


@pytest.mark.parametrize("cell", ["lstm", "lru", "gla", "ltc", "tau_gru"])
def test_jax_computes_what_the_plain_loop_does(cell: str) -> None:
    """Output and gradients, of a gated cell, one with a readout, a memory, a solver's rounds, and a delay line."""
    contender = Contender(bench.RIVALS["jax"](cell), SMALL, Setting())
    layer = Recurrent(cell, SMALL.I, SMALL.H, engine="reference")
    layer.cells[0].load_state_dict(contender.layer.cell.state_dict())
    x = contender.x.detach().requires_grad_()
    output, _ = layer(x)
    (output * contender.weights).sum().backward()
    torch.testing.assert_close(torch.from_dlpack(contender.layer(x)[0]), output)
    weights, by_x = contender.layer.gradients(x, contender.weights)
    torch.testing.assert_close(torch.from_dlpack(by_x), x.grad)
    assert set(weights) == {key for key, _ in layer.cells[0].named_parameters()}
    for key, parameter in layer.cells[0].named_parameters():
        torch.testing.assert_close(torch.from_dlpack(weights[key]), parameter.grad, msg=key)
    assert contender.memory_mb() > 0


def test_jax_says_what_it_has_no_form_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnzoo import bench_jax

    monkeypatch.delitem(bench_jax.FORMS, torch.ops.aten.mm.default)
    case = bench.measure("gru", SMALL, Setting(("jax",), "reference", rounds=1))
    assert case.refused == {"jax": "aten.mm.default is not written for jax"} and set(case.measured) == {OURS}


def test_rivals_have_what_they_have() -> None:
    assert [cell for cell in list_cells() if bench.RIVALS["torch"](cell)] == ["gru", "lstm", "rnn"]
    assert bench.RIVALS["torchrecurrent"]("lstm") is None


def test_sizes() -> None:
    assert bench.parse_size("25,128,1,64") == (25, 128, 1, 64)
    assert [bench.parse_size(str(size)) for size in SIZES] == list(SIZES)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["grv"], ["'grv'", "did you mean gru"]),
        (["gru", "--sizes", "1,2,3"], ["'1,2,3'", "T,B,I,H"]),
        (["gru", "--sizes", "5,2,3,4", "0,2,3,4"], ["'0,2,3,4'"]),
        (["--sizes", "5,2,3,4", "gru"], ["'gru'", "cells come first"]),
        (["gru", "--against", "torch,keras"], ["'keras'", "torchrecurrent"]),
        (["gru", "--engine", "nativ"], ["'nativ'", "did you mean native"]),
        (["gru", "--dtype", "float16"], ["'float16'", "bfloat16"]),
        (["gru", "--device", "tpu"], ["'tpu'", "cpu"]),
        (["gru", "--against", "jax", "--dtype", "float64"], ["jax", "float32"]),
        (["gru", "--rounds", "0"], ["rounds", "positive"]),
        (["gru", "--threads", "-1"], ["threads", "positive"]),
    ],
)
def test_bad_input(arguments: list[str], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments, "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert all(word in printed.err for word in named)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["bench", "gru", *TINY, "--out", str(tmp_path / "file")]) == 1
    assert f"--out {tmp_path / 'file'}" in capsys.readouterr().err


def test_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"device=cuda: .*use device=cpu"):
        Setting(device="cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"torchrecurrent is not installed; pip install 'rnnzoo\[bench\]'"):
        Setting(rivals=("torchrecurrent",))


def test_an_interrupted_bench_goes_on_and_leaves_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    size, options = "2,2,3,4", ("--rounds", "1", "--engine", "reference", "--against", "loop", "--out", str(out))
    assert cli.main(["bench", "rnn", "--sizes", size, *options]) in (0, None)
    first = (out / "bench.csv").read_text().splitlines()
    assert cli.main(["bench", "rnn", "mgu", "--sizes", size, *options, "--resume"]) in (0, None)
    assert "[1/1] mgu" in capsys.readouterr().err
    rows = (out / "bench.csv").read_text().splitlines()
    assert rows[: len(first)] == first and len(rows) == 2 * len(first) - 1
    table = (out / "bench.md").read_text().splitlines()
    assert (
        table[0] == "Forward and backward at (T, B, I, H) = (2, 2, 3, 4):"
        and table[2] == "| cell | engine | ms | ÷ loop |"
    )
    assert [line.split(" | ")[0] for line in table[4:6]] == ["| rnn", "| mgu"]
    ratio = next(row for row in rows if row.startswith("rnn,") and ",loop," in row).split(",")
    assert table[4].endswith(f"| {float(ratio[rows[0].split(',').index('fwdbwd_ratio')]):.2f} |")

    (out / "bench.csv").write_text("cell,T\nrnn,1\n")
    assert cli.main(["bench", "rnn", "--sizes", size, *options, "--resume"]) == 1
    assert "not the bench.csv of a bench (its columns are others)" in capsys.readouterr().err
