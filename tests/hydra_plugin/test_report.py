"""The table of results: numbers against NumPy, rows, order, what is left out, commands, and a multirun's end."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from omegaconf import OmegaConf

from rnnzoo import cli
from rnnzoo.explain import chart
from rnnzoo.hydra import report
from rnnzoo.hydra.report import as_csv, as_html, as_markdown, collect

ROOT = Path(__file__).parents[2]
SINE = (*small.SINE, "trainer.max_epochs=2")


def fabricate(folder: Path, *overrides: str, curve: tuple[float, ...] = (), **summary: Any) -> Path:
    """A run folder as train.py leaves it, of a model `gru` on a task `toy` unless told otherwise."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    numbers = {"parameters": 10, "seconds_per_epoch": 1.0, "steps_per_second": 5.0, "peak_memory_mib": 100}
    named = {"task": "toy", "model": "gru", "seed": 1, "monitor": "val/loss", "mode": "min", "machine": "here"}
    rest = {"best_epoch": 1, "peak_gpu_memory_mib": None, "metrics": {"val/loss": 1.0, "test/loss": 1.0}}
    (folder / "summary.json").write_text(json.dumps({**named, **numbers, **rest, **summary}))
    if curve:
        lines = (f"{5 * k + 4},{float(k)},0.5,{y}" for k, y in enumerate(curve))
        (folder / "metrics.csv").write_text("\n".join(["step,epoch,train/loss,val/loss", "0,0.0,0.5,", *lines]))
    return folder


def table_of(*folders: Path) -> list[dict[str, str]]:
    """The CSV's rows."""
    return list(csv.DictReader(io.StringIO(as_csv(collect(folders)))))


def order(*folders: Path) -> list[str]:
    return [row["model"] for row in table_of(*folders)]


def losses(value: float) -> dict[str, float]:
    return {"val/loss": value, "test/loss": 2 * value}


# Numbers


def test_a_number_that_no_float_holds_is_infinite(tmp_path: Path) -> None:
    [row] = table_of(fabricate(tmp_path / "a", parameters=10**400))
    assert float(row["parameters"]) == float("inf")


def test_means_and_spreads_are_numpys(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    val, test, seconds, rates = rng.uniform(0.1, 3, (4, 5))
    epochs, memory = rng.integers(1, 20, 5), rng.integers(100, 200, 5)
    for k in range(5):
        fabricate(
            tmp_path / str(k), f"seed={k}", seed=k, metrics={"val/loss": val[k], "test/loss": test[k], "test/mae": 9.0},
            seconds_per_epoch=seconds[k], steps_per_second=rates[k], peak_memory_mib=int(memory[k]),
            best_epoch=int(epochs[k]), peak_gpu_memory_mib=7 + k,
        )  # fmt: skip
    [row] = table_of(tmp_path)
    expected = {
        "val_mean": val.mean(), "val_sd": val.std(ddof=1), "test_mean": test.mean(), "test_sd": test.std(ddof=1),
        "seconds_per_epoch": seconds.mean(), "steps_per_second": rates.mean(), "peak_memory_mib": memory.max(),
        "peak_gpu_memory_mib": 11, "best_epoch": epochs.mean(), "parameters": 10, "runs": 5,
    }  # fmt: skip
    assert {key: float(row[key]) for key in expected} == pytest.approx(expected)
    assert (row["task"], row["model"], row["seeds"], row["metric"]) == ("toy", "gru", "0 1 2 3 4", "val/loss")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.5,), "0.5 ± –"),
        ((1.0, 2.0, 3.0), "2.0 ± 1.0"),
        ((0.91234, 0.91434), "0.9133 ± 0.0014"),
        ((123.4, 345.6), "234 ± 157"),
        ((2.0, 2.0), "2 ± 0"),
        ((1e-9, 3e-9), "2e-09 ± 1.4e-09"),
        ((1.0, float("nan")), "nan ± –"),
        ((1e308, 1e308), "inf ± –"),
        ((-(10.0**200), 1.0), "-inf ± –"),
    ],
)
def test_a_mean_is_shown_as_far_as_its_spread_reaches(tmp_path: Path, values: tuple[float, ...], shown: str) -> None:
    for k, value in enumerate(values):
        fabricate(tmp_path / str(k), seed=k, metrics={"val/loss": value})
    found = collect([tmp_path])
    [table] = found.tables
    cells = {heading: cell(table.rows[0]) for heading, cell in table.columns().items()}
    assert cells["val/loss"].replace("\u00a0", " ") == shown
    assert "test/loss" not in cells and "overrides" not in cells and "on the GPU, MiB" not in cells
    assert as_csv(found).splitlines()[1].split(",")[7] == ("" if "–" in shown else f"{np.std(values, ddof=1)}")


def test_curves_are_averaged_over_the_epochs_that_all_runs_have(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", seed=1, curve=(4.0, 2.0, 1.0))
    fabricate(tmp_path / "1", seed=2, curve=(2.0, 1.0))
    fabricate(tmp_path / "2", seed=3)  # as after test_only
    [table] = collect([tmp_path]).tables
    assert table.rows[0].mean_curve == [(1, 3.0), (2, 1.5)]
    [svg] = table.charts()
    curves = list(ET.fromstring(svg).iter("polyline"))
    assert [len(curve.get("points", "").split()) for curve in curves] == [3, 2, 0, 2]
    assert [curve.get("opacity") is not None for curve in curves] == [True, True, True, False]


def test_faint_curves_share_axes_and_colour_with_theirs() -> None:
    one, two = [(0.0, 1.0), (2.0, 3.0)], [(0.0, 0.0), (2.0, 2.0)]
    behind = {"two": [[(0.0, 0.0), (2.0, 8.0)], [(0.0, 0.0), (2.0, 2.0)]]}
    drawn = list(ET.fromstring(chart.lines({"one": one, "two": two}, "x", "y", "t", faint=behind)).iter("polyline"))
    assert [curve.get("class") for curve in drawn] == ["series1", "series1", "series0", "series1"]
    points = [[tuple(map(float, p.split(","))) for p in curve.get("points", "").split()] for curve in drawn]
    assert points[1] == points[3]
    assert min(y for curve in points for _, y in curve) == points[0][1][1] >= 0  # the highest, still in the picture


def test_a_single_epoch_is_a_dot(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", curve=(4.0,))
    [svg] = collect([tmp_path]).tables[0].charts()
    assert [e.get("class") for e in ET.fromstring(svg).iter("circle")] == ["series0", "series0"]  # the run, the mean


def test_many_rows_have_several_charts(tmp_path: Path) -> None:
    for k in range(12):
        fabricate(tmp_path / str(k), f"model=m{k}", model=f"m{k}", curve=(2.0, 1.0), metrics=losses(k))
    [table] = collect([tmp_path]).tables
    names = [[e.text for e in ET.fromstring(svg).iter("text") if e.get("class")] for svg in table.charts()]
    assert names == [[f"{k + 1} m{k}" for k in part] for part in (range(5), range(5, 10), range(10, 12))]


# Rows and their order


def test_runs_that_differ_in_the_seed_only_share_a_row(tmp_path: Path) -> None:
    fabricate(tmp_path / "a" / "0", "model=gru", "seed=2", "+x.y=1", "optimizer.lr=0.1", seed=2)
    fabricate(tmp_path / "a" / "1", "optimizer.lr=0.1", "task=toy", "+x.y=1", "hydra.verbose=true")
    fabricate(tmp_path / "b" / "0", "optimizer.lr=0.5", "+x.y=1", "optimizer.lr=0.1", seed=3)
    fabricate(tmp_path / "b" / "1", "+x.y=1", "optimizer.lr=0.2", "seed=1", metrics=losses(3))
    fabricate(tmp_path / "b" / "2", "+x.y=1", "optimizer.lr=0.1", "model=rnn", model="rnn", metrics=losses(2))
    fabricate(tmp_path / "c", "task=other", task="other")
    found = collect([tmp_path / "b", tmp_path / "a", tmp_path / "b" / "0", tmp_path / "c"])
    assert [(row.first.task, row.first.model, row.seeds) for table in found.tables for row in table.rows] == [
        ("other", "gru", "1"), ("toy", "gru", "1 2 3"), ("toy", "rnn", "1"), ("toy", "gru", "1"),
    ]  # fmt: skip
    toy = found.tables[1]
    assert toy.common == ["+x.y=1"]
    assert [toy.further(row) for row in toy.rows] == ["optimizer.lr=0.1", "optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert "All with +x.y=1" in toy.notes()


@pytest.mark.parametrize(
    ("monitor", "mode", "expected"), [("val/loss", "min", "cabd"), ("val/accuracy", "max", "bacd")]
)
def test_best_comes_first_and_what_is_unknown_last(tmp_path: Path, monitor: str, mode: str, expected: str) -> None:
    values = {"a": 0.5, "b": 0.9, "c": 0.1, "d": float("nan")}
    for model, value in values.items():
        fabricate(tmp_path / model, model=model, monitor=monitor, mode=mode, metrics={monitor: value})
    assert "".join(order(tmp_path)) == expected
    [table] = collect([tmp_path]).tables
    assert table.best.summary.model == expected[0]


def test_tested_only_runs_are_ordered_by_the_test_metric(tmp_path: Path) -> None:
    for model, value in (("a", 2.0), ("b", 1.0)):
        fabricate(tmp_path / model, model=model, best_epoch=None, metrics={"test/loss": value}, steps_per_second=None)
    assert order(tmp_path) == ["b", "a"]
    [table] = collect([tmp_path]).tables
    cells = {heading: cell(table.rows[0]) for heading, cell in table.columns().items()}
    assert "val/loss" not in cells and cells["best epoch"] == cells["steps a second"] == "–"


def test_the_best_run_need_not_be_in_the_best_row(tmp_path: Path) -> None:
    for model, values in (("steady", (1.0, 1.0)), ("lucky", (0.5, 9.0))):
        for seed, value in enumerate(values):
            fabricate(
                tmp_path / model / str(seed), f"model={model}", f"seed={seed}", model=model, seed=seed,
                metrics=losses(value),
            )  # fmt: skip
    [table] = collect([tmp_path]).tables
    assert [row.first.model for row in table.rows] == ["steady", "lucky"]
    assert table.best.command == "rnnzoo train model=lucky seed=0"


def test_different_machines_are_named(tmp_path: Path) -> None:
    fabricate(tmp_path / "0")
    assert not list(collect([tmp_path]).tables[0].notes())
    fabricate(tmp_path / "1", machine="there", seed=2)
    assert any("different machines" in note for note in collect([tmp_path]).tables[0].notes())


# What is left out


def test_unfinished_and_damaged_runs_are_named(tmp_path: Path) -> None:
    fabricate(tmp_path / "0")
    for number in (10, 9):
        (fabricate(tmp_path / str(number)) / "summary.json").unlink()
    (fabricate(tmp_path / "11") / "summary.json").write_text('{"task": "to')
    fabricate(tmp_path / "12", parameters="many")
    (fabricate(tmp_path / "13") / ".hydra" / "overrides.yaml").unlink()
    (fabricate(tmp_path / "14") / ".hydra" / "overrides.yaml").write_text("a: [")
    (fabricate(tmp_path / "15") / "metrics.csv").write_text("step,epoch,val/loss\n1,0,high\n")
    found = collect([tmp_path])
    unfinished, damaged = found.left_out
    assert unfinished == f"2 without summary.json, unfinished, pruned or failed: {tmp_path}/9, {tmp_path}/10"
    assert damaged.startswith("5 damaged: ") and "\n" not in damaged
    for number, reason in ((11, "summary.json: Invalid JSON"), (12, "summary.json: parameters"),
                           (13, ".hydra/overrides.yaml: No such file"), (14, ".hydra/overrides.yaml: unreadable"),
                           (15, "metrics.csv: could not convert string to float: 'high'")):  # fmt: skip
        assert f"{tmp_path}/{number} ({reason}" in damaged
    assert len(found.tables[0].rows[0].runs) == 1
    for text in (as_markdown(found), as_html(found)):
        assert f"{tmp_path}/9, {tmp_path}/10" in text and f"{tmp_path}/14" in text


def test_runs_of_other_applications_are_named_so(tmp_path: Path) -> None:
    fabricate(tmp_path / "mine")
    other = tmp_path / "other" / ".hydra"
    other.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create({"db": {"user": "me"}}), other / "config.yaml")
    assert collect([tmp_path]).left_out == [f"1 of other Hydra applications: {other.parent}"]


def test_overrides_are_shown_as_they_were_given(tmp_path: Path) -> None:
    fabricate(tmp_path / "a", "task.data='a b.csv'", "model.zoneout=0.1")
    fabricate(tmp_path / "b", "task.data='a b.csv'")
    text = as_markdown(collect([tmp_path]))
    assert "All with task.data='a b.csv'\n" in text and "| model.zoneout=0.1 |" in text


def test_runs_lie_anywhere_below_and_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fabricate(tmp_path / "deep" / "er" / "run")
    monkeypatch.chdir(tmp_path)
    found = collect([Path("deep"), Path("deep/er/run"), tmp_path, Path("deep/../deep/er")])
    assert len(found.tables[0].rows[0].runs) == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "no run there"),
        (lambda folder: (fabricate(folder / "0") / "summary.json").unlink(), "no finished run in"),
    ],
)
def test_nothing_to_report_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Any], says: str
) -> None:
    make(tmp_path / "runs")
    assert cli.main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error and f"{tmp_path}/runs" in error
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(tmp_path / "run")
    (tmp_path / "out").write_text("")
    assert cli.main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/out: is a file; name a folder for the results\n"


# Forms

ODD = (
    "task.text='it''s | \"my\" <b>novel</b> (1).txt'",
    "optimizer.betas=[0.9,0.99]",
    "+x=$HOME `id` \\ & ;",
    "+y=[red]",
)


def test_commands_survive_a_shell(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", *ODD, "seed=1", "hydra.run.dir=gone")
    found = collect([tmp_path])
    expected = ["rnnzoo", "train", *ODD, "seed=1"]
    [row] = table_of(tmp_path)
    assert shlex.split(row["command"]) == expected
    assert shlex.split(row["overrides"]) == sorted(ODD)
    fenced = re.search("```bash\n(.*)\n```", as_markdown(found))
    assert fenced and shlex.split(fenced[1]) == expected
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {row['command']}"], capture_output=True, text=True)
    assert shown.stdout.splitlines() == expected


def test_markdown_has_as_many_cells_in_each_line(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", "+x=a|b")
    fabricate(tmp_path / "1", "+x=c", metrics=losses(2))
    lines = [line for line in as_markdown(collect([tmp_path])).splitlines() if line.startswith("|")]
    assert len(lines) == 4 and "+x=a\\|b" in lines[2].replace("'", "")
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a page shows and what it asks for."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.asked: list[str | None] = []
        self.shown = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data


def test_the_page_stands_alone_and_shows_texts_as_they_are(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", *ODD, curve=(2.0, 1.0))
    fabricate(tmp_path / "1", "+y=<i>", model="<script>", curve=(3.0, 2.0), metrics=losses(2))
    text = as_html(collect([tmp_path]))
    page = Page(text)
    assert set(page.asked) <= {"data:,", "#main"}
    assert not {"script", "b", "i", "iframe", "img"} & set(page.tags)
    assert page.tags.count("table") == page.tags.count("svg") == 1 and page.tags.count("tr") == 3
    assert shlex.join(ODD) in page.shown and "<script>" in page.shown
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert not re.search(r"@import|url\((?!['\"]?data:)", text)


def test_the_command_prints_the_table_and_writes_three_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fabricate(tmp_path / "first" / "0", *ODD, metrics=losses(0.25))
    fabricate(tmp_path / "second" / "0", "seed=2", *ODD, seed=2, metrics=losses(0.75))
    (fabricate(tmp_path / "second" / "1") / "summary.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "first", "second"]) == 0
    shown = capsys.readouterr().out.replace("\u00a0", " ")
    for text in ("0.50 ± 0.35", "1.00 ± 0.71", "2 (1 2)", "best run: first/0\n", "1 without summary.json", "second/1"):
        assert text in shown
    assert f"repeat it: {shlex.join(['rnnzoo', 'train', *ODD])}\n" in shown
    assert sorted(path.name for path in Path("report").iterdir()) == ["results.csv", "results.html", "results.md"]
    [row] = csv.DictReader(Path("report/results.csv").read_text().splitlines())
    assert row["runs"] == "2"


# At the end of a multirun


def test_a_run_leaves_what_the_table_needs(train: Callable[..., Path]) -> None:
    """The best epoch of three is the one with the lowest loss in metrics.csv; peak memory is the run's own."""
    before = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]
    np.ones(1 << 27)  # 1 GiB that somebody else took and gave back
    folder = train(*SINE, "trainer.max_epochs=3", "optimizer.lr=0.3", "optimizer.schedule=constant")
    run = report.Run.read(folder)
    with (folder / "metrics.csv").open(newline="") as file:
        curve = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert [y for _, y in run.curve] == curve and [x for x, _ in run.curve] == [1, 2, 3]
    assert run.summary.best_epoch == 1 + int(np.argmin(curve))
    assert (run.summary.monitor, run.summary.mode) == ("val/loss", "min")
    assert before / 2 < run.summary.peak_memory_mib < before + 700
    assert set(run.choices) == {*SINE, "trainer.max_epochs=3", "optimizer.lr=0.3", "optimizer.schedule=constant"} - {
        "task=sine", "trainer.max_epochs=2",
    }  # fmt: skip

    tested = train(*SINE, "test_only=true", f"ckpt={folder / 'checkpoints' / 'best.ckpt'}")
    assert report.Run.read(tested).summary.best_epoch is None
    assert not (folder / "results.csv").exists() and not (folder.parent / "results.csv").exists()


def test_a_multirun_without_finished_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fabricate(tmp_path / "0") / "summary.json").unlink()
    report.AtTheEnd().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"no table of results: no finished run in {tmp_path}; 1 without")
    assert said.err.count("\n") == 1


def test_a_failing_multirun_still_fails(tmp_path: Path, train: Callable[..., Path]) -> None:
    with pytest.raises(SystemExit) as end:
        train("-m", *SINE, "optimizer.lr=1e-3,1e30", "optimizer.schedule=constant", f"hydra.sweep.dir={tmp_path}")
    assert end.value.code == 1
    assert collect([tmp_path]).left_out == [f"1 diverged: {tmp_path / '1'}"]


@pytest.mark.slow
def test_a_multirun_ends_with_a_table(tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("train.py", "-m", "model=rnn,gru", "seed=1,2", *SINE, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    end = done.stdout[done.stdout.index("sine, lowest val/loss first") :].replace("\u00a0", " ")
    rows = table_of(tmp_path)
    assert sorted(row["model"] for row in rows) == ["gru", "rnn"]
    for row in rows:
        own = [
            run["metrics"] for run in map(json.loads, (path.read_text() for path in tmp_path.glob("*/summary.json")))
            if run["model"] == row["model"]
        ]  # fmt: skip
        assert len(own) == 2
        for split in ("val", "test"):
            values = [metrics[f"{split}/loss"] for metrics in own]
            found = float(row[f"{split}_mean"]), float(row[f"{split}_sd"])
            assert found == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert float(rows[0]["val_mean"]) < float(rows[1]["val_mean"])
    assert end.index(rows[0]["model"]) < end.index(rows[1]["model"])
    assert end.count("2 (1 2)") == 2 and "repeat it: rnnzoo train " in end
    assert (tmp_path / "results.md").is_file() and (tmp_path / "results.html").is_file()
