"""Text from files and people is shown without being obeyed: by a terminal, Markdown, a page, a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rnnzoo.cli import main
from rnnzoo.hydra.report import as_csv, as_html, as_markdown, collect
from rnnzoo.plain import csv_cell, markdown, masked, printable


def test_control_characters_are_spelt_out() -> None:
    assert printable("a\x1b[31mb\x07\r\x9b\u202e\ud800c\n\té") == "a\\x1b[31mb\\x07\\r\\x9b\\u202e\\ud800c\n\té"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg2://me:pass@word@host:5/db", "postgresql+psycopg2://me:***@host:5/db"),
        ("mysql://host/db?user=me&password=secret&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("postgresql://me@/db?host=/run", "postgresql://me@/db?host=/run"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert masked(f"sweep.storage='{url}': no") == f"sweep.storage='{shown}': no"


def test_a_spreadsheet_finds_no_formula() -> None:
    assert [csv_cell(v) for v in ("=1+1", "+a", "-a", "@a", "-1.5", "a=b", 3, None)] == [
        "'=1+1", "'+a", "'-a", "'@a", "-1.5", "a=b", 3, None,
    ]  # fmt: skip


def test_markdown_finds_no_html_and_no_cell() -> None:
    assert markdown("<b>|`\n\x1b&") == "&lt;b&gt;\\|\\` \\\\x1b&amp;"


EVIL = "=a<script>alert(1)</script>\x1b[2J|`"


def test_no_report_executes_what_a_run_is_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in "12":
        folder = tmp_path / f"run{number}\x1b<script>"
        (folder / ".hydra").mkdir(parents=True)
        OmegaConf.save(
            OmegaConf.create([f"task.text={EVIL}", f"task.window={number}"]), folder / ".hydra/overrides.yaml"
        )
        summary = {
            "task": EVIL, "model": EVIL, "seed": 1, "monitor": "val/" + EVIL, "mode": "min", "best_epoch": 1,
            "metrics": {"val/" + EVIL: 1.0}, "parameters": 1, "seconds_per_epoch": 1.0, "steps_per_second": 1.0,
            "peak_memory_mib": 1, "peak_gpu_memory_mib": None, "machine": EVIL,
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    found = collect([tmp_path])
    for text in (as_csv(found), as_markdown(found), as_html(found)):
        assert "\x1b" not in text
    outside = "\n".join(as_markdown(found).split("```")[::2])
    assert "<script" not in outside + as_html(found)
    for row in list(csv.reader(io.StringIO(as_csv(found)))):
        assert not [value for value in row if value[:1] in ("=", "@", "+")]
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert main(["eval", str(tmp_path / "\x1b]0;x")]) == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\\x1b]0;x: no such run" in said.err
