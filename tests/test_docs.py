"""README, guides and API reference: their Python runs, their commands are understood, their links lead somewhere.

A block whose introduction ends in a file's name and a colon is that file. All other Python of a page is run in order,
as one module; a line of a shell block is composed, parsed or run, by what it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from pydoc import locate
from typing import Any, NamedTuple

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import rnnzoo.hydra
import rnnzoo.lightning
from rnnzoo import cli, list_cells, registry
from rnnzoo.hydra.command_line import CONF, prepare
from rnnzoo.hydra.models import register_models
from rnnzoo.hydra.search.space import distribution
from rnnzoo.hydra.settings import resolve
from rnnzoo.hydra.verbs import Verb

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
PROJECT = ROOT / "docs" / "own_project.md"

ELSEWHERE = ("git", "cd", "source", "pre-commit", "ruff", "mypy")
"""Other people's programs."""


def name(value: Any) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


class Block(NamedTuple):
    """A block of a page: its language, the file that it is, if it is one, and its text."""

    language: str
    file: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = []
    for before, language, text in re.findall(r"([^\n]*)\n\n```(\w+)\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        file = re.search(r"`([\w/]+\.(?:py|yaml|toml))`[^`]*:$", before)
        found.append(Block(language, file[1] if file else "", text))
    assert len(found) == page.read_text("utf-8").count("\n```") / 2
    return found


def commands(page: Path) -> list[str]:
    """The lines of the page's shell blocks, their comments left out; NAME stands for a cell that the reader has."""
    shell = "".join(block.text for block in blocks(page) if block.language == "bash")
    parts = [part.strip() for line in shell.splitlines() for part in line.split("  #")[0].split(" && ")]
    return list(dict.fromkeys(re.sub(r"\bNAME\b", "mgu", part) for part in parts if part))


def spans(page: Path) -> list[str]:
    """What stands in the page's text as code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`files(page)` writes the files that a page shows to an empty folder, in which the test then is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(page: Path) -> None:
        for block in blocks(page):
            if block.file:
                path = tmp_path / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")

    return write


def code(page: Path) -> str:
    """The page's Python as one module; files with cells are loaded where they stand."""
    parts = []
    for block in blocks(page):
        if block.language == "python" and "@register" in block.text:
            parts.append(f"import rnnzoo\nrnnzoo.load({block.file!r})\n")
        elif block.language == "python" and not block.file:
            parts.append(block.text)
    return "\n".join(parts)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning's, see rnnzoo.hydra.trainer
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("page", [page for page in PAGES if code(page)], ids=name)
def test_python_runs(page: Path, files: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    files(page)
    Path("page.py").write_text(code(page), encoding="utf-8")
    before = set(sys.modules)
    try:
        shown = vars(registry.load("page.py"))
    finally:
        for module in sys.modules.keys() - before:
            if Path(f"{module}.py").is_file():
                del sys.modules[module]
    if "output" in shown and "lengths=" in code(page).splitlines()[-1]:
        assert shown["output"].shape == (50, 4, 2 * 32)
        assert shown["output"][1:, 3].eq(0).all() and shown["output"][0, 3].ne(0).any()


def compositions() -> list[Any]:
    """Each command of the pages that Hydra composes, once."""
    found: dict[str, Path] = {}
    for page in PAGES:
        for line in commands(page):
            if match := re.search(r"(?:^rnnzoo train|train\.py)\b(.*)", line):
                found.setdefault(match[1].strip(), page)
    return [pytest.param(page, line, id=f"{page.stem}: {line}") for line, page in found.items()]


@pytest.mark.parametrize(("page", "line"), compositions())
def test_trainings_compose(
    page: Path, line: str, files: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"):
        monkeypatch.setenv(variable, "1")
    files(page)
    run = tmp_path / "RUN"
    if "resume=" in line:
        register_models(None)
        (run / ".hydra").mkdir(parents=True)
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            OmegaConf.save(OmegaConf.create(resolve(compose("config"), tmp_path)), run / ".hydra" / "config.yaml")
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "last.ckpt").touch()
    arguments = shlex.split(line)
    if "--config-dir" in arguments:
        at = arguments.index("--config-dir")
        arguments[at : at + 2] = [f"hydra.searchpath=[file://{tmp_path / arguments[at + 1]}]"]
    flags = [a for a in arguments if a in ("--help", "--cfg", "job", "-m")]
    arguments = prepare([a for a in arguments if a not in flags])
    if "--multirun" in arguments:
        arguments.remove("--multirun")
        overrides = OverridesParser.create().parse_overrides(arguments)
        values = ((o, distribution(o)) if o.is_sweep_override() else (o, None) for o in overrides)
        jobs = [[f"{o.key_or_group}={space.to_external_repr(0)}" if space else o.input_line for o, space in values]]
    elif "-m" in flags:
        values = ((a.partition("=")[0], a.partition("=")[2].split(",")) for a in arguments)
        jobs = [list(job) for job in product(*([f"{key}={value}" for value in among] for key, among in values))]
        assert len(jobs) > 2
        jobs = [jobs[0], jobs[-1]]
    else:
        jobs = [arguments]
    for job in jobs:
        composes(job, run, tmp_path)


def composes(arguments: list[str], run: Path, tmp_path: Path) -> None:
    folder = CONF
    if "--config-path" in arguments:
        folder = Path(arguments[1])
        assert arguments[:4] == ["--config-path", str(run / ".hydra"), "--config-name", "config"]
        arguments = [a for a in arguments[4:] if not a.startswith("hydra/")]
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        settings = resolve(compose("config", overrides=arguments), tmp_path)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "model":
            assert settings["model"]["cell"] == value
        if key == "task":
            assert settings["task"]["name"] == value


def test_the_guides_cell_trains(
    files: Callable[[Path], None], train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files(ROOT / "docs" / "own_cell.md")
    folder = train(
        "cells=my_cells.py", "model=my_cell", "model.update_bias=0", "model.hidden_size=2", "hardware=cpu",
        "task.samples=20", "task.window=3", "task.prefix=2", "task.horizon=2", "trainer.max_epochs=1",
    )  # fmt: skip
    assert (folder / "summary.json").is_file()
    assert "layer.cells.0.U_z" in capsys.readouterr().out
    recorded = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert recorded.cells == str(Path("my_cells.py").resolve())  # absolute: the run can be resumed from anywhere
    assert (recorded.model.cell, recorded.model.hidden_size, recorded.model.update_bias) == ("my_cell", 2, 0.0)


def test_there_are_commands_to_test() -> None:
    assert len(compositions()) > 25


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_other_commands_are_understood(page: Path, files: Callable[[Path], None], capsys: Any) -> None:
    files(page)
    for line in commands(page):
        program, *words = shlex.split(line)
        if program == "rnnzoo":
            understood(words)
        elif program == "make":
            assert re.search(rf"^\.PHONY:.*\b{words[0]}\b", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        elif program == "pip":
            extras(line)
        elif program == "pytest":
            assert all((ROOT / word).is_file() for word in words if word.endswith(".py")), line
        elif program in ("python", "torchrun", "srun"):
            assert "train.py" in words or Path(words[0]).is_file(), line
        else:
            assert program in ELSEWHERE, line
    for span in spans(page):
        if span.startswith("pip install"):
            extras(span)


def understood(words: list[str]) -> None:
    """A command of rnnzoo: those that are quick are run, the others parsed."""
    if words[0] == "train":
        return  # composed above
    if words[0] in ("list", "show"):
        assert cli.main(words) == 0
        return
    given = argparse.ArgumentParser()
    given.add_argument("--cells")
    own, words = given.parse_known_args(words)
    known = cli._parser()[1]
    if words[0] in known:
        known[words[0]][0].parse_intermixed_args(words[1:])
        return
    assert any(answers(verb, words[1:]) for verb in cli._verbs(own.cells or "")[words[0]]), words


def answers(verb: Verb, words: list[str]) -> bool:
    asked = argparse.ArgumentParser(exit_on_error=False)
    asked.add_argument("run")
    verb.add_to(asked)
    try:
        return not asked.parse_known_args(words)[1]
    except argparse.ArgumentError:
        return False


def extras(line: str) -> None:
    """Those that a command installs exist."""
    declared = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().partition("optional-dep")[2], re.M)
    for extra in re.findall(r"rnnzoo\[(\w+)\]", line):
        assert extra in {*cli.EXTRAS, *declared}, line


@pytest.mark.parametrize("page", [*PAGES, *REFERENCE], ids=name)
def test_commands_and_choices_in_the_text_exist(page: Path) -> None:
    known = {*cli._parser()[1], *cli._verbs(), "recall"}  # `recall` is the guide's own
    for span in spans(page):
        if match := re.match(r"rnnzoo (\w+)", span):
            assert match[1] in known or match[1].isupper(), span
        if (match := re.fullmatch(r"(\w+)=(\w+)", span)) and (CONF / match[1]).is_dir():
            assert (CONF / match[1] / f"{match[2]}.yaml").is_file(), span
        if re.fullmatch(r"(?:conf|docs|rnnzoo|tasks|tests)/[a-z_0-9/.]+", span):
            assert (ROOT / span).exists(), span


@pytest.mark.parametrize("page", [*PAGES, *REFERENCE], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).is_file(), target


@pytest.mark.slow
def test_a_project_of_ones_own(files: Callable[[Path], None]) -> None:
    """The guide once more with Lightning by its other name, and the programs in it, in processes of their own."""
    for needed in ("lightning", "jsonargparse"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    files(PROJECT)
    Path("page.py").write_text(code(PROJECT), encoding="utf-8")
    for path in Path().glob("*.py"):
        path.write_text(path.read_text("utf-8").replace("pytorch_lightning", "lightning.pytorch"), encoding="utf-8")
    lines = [line for line in commands(PROJECT) if re.match(r"python \w+\.py", line)]
    assert len(lines) == 2
    started = {}
    for line in ["python page.py", *lines]:
        started[line] = subprocess.Popen(
            [sys.executable, *shlex.split(line)[1:]], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    for line, process in started.items():
        said, _ = process.communicate()
        assert process.returncode == 0, f"{line}\n{said}"
    assert Path("run/last.ckpt").is_file()
    assert Path("run/plots/gradient_flow_epoch_001.png").is_file()


def test_the_zoo_is_listed_in_full() -> None:
    table = re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", (ROOT / "docs" / "zoo.md").read_text("utf-8"), re.MULTILINE)
    listed = {family: sorted(text.partition(",")[0].split()) for family, text in table}
    found: dict[str, list[str]] = {}
    for cell in list_cells():
        if registry.entry(cell).module.startswith("rnnzoo.cells."):
            found.setdefault(registry.entry(cell).family, []).append(cell)
    assert {family: listed.get(family) for family in found} == found


def test_tasks_are_listed_in_full() -> None:
    text = (ROOT / "docs" / "first_run.md").read_text("utf-8")
    table = "".join(re.findall(r"^\| ([^|]+) \|", text.partition("## Tasks")[2], re.MULTILINE))
    assert {path.stem for path in (CONF / "task").glob("*.yaml")} == set(re.findall(r"`(\w+)`", table))


def test_every_public_name_has_a_reference() -> None:
    documented = [target for page in REFERENCE for target in re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.M)]
    assert len(documented) == len(set(documented))
    for package in (rnnzoo, rnnzoo.lightning, rnnzoo.hydra):
        assert {f"{package.__name__}.{public}" for public in package.__all__} <= set(documented)
    for target in documented:
        assert locate(target) is not None, target
    assert callable(rnnzoo.lightning.verb)  # and not its module, which has been imported by now


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ExactResume" in (tmp_path / "site" / "reference" / "lightning.html").read_text("utf-8")


def test_pictures_are_there_at_once() -> None:
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert len(pictures) == 5 and sum(path.stat().st_size for path in pictures) <= 300_000


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 109


def test_ci_runs_what_anybody_runs() -> None:
    """On every Python that is supported, and with the ruff that is pinned."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert {"run": ".ci/run"} in jobs["tests"]["steps"]
    lowest, highest = re.findall(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text())[0]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == [f"3.{n}" for n in range(int(lowest), int(highest))]
    [hooks] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={hooks['rev'].removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text()
