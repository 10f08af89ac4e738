"""The configuration: every file in conf/ is alive, every choice composes, and bad input ends in one line."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from digits import write_digits, write_photographs
from hydra import compose, initialize_config_dir
from hydra.utils import get_class

from rnnzoo import Recurrent, UserError, list_cells, registry
from rnnzoo.cli import main
from rnnzoo.hydra import command_line
from rnnzoo.hydra.models import register_models
from rnnzoo.hydra.settings import GROUPS, resolve
from rnnzoo.hydra.trainer import build_trainer
from rnnzoo.lightning.arguments import build
from rnnzoo.lightning.module import OPTIMIZERS
from rnnzoo.lightning.records import MetricsCSV

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml"))

SINE = (
    "hardware=cpu", "task=sine", "task.samples=20", "task.window=3", "task.prefix=2", "task.horizon=2",
    "model.hidden_size=2", "trainer.max_epochs=1",
)  # fmt: skip

CELL = """\
from rnnzoo import Cell, gate, register

@register("{name}")
class Mine(Cell):
    W, U, b = gate()

    def step(self, x, h):
        return h + x @ self.W
"""


@pytest.fixture
def tiny(reviews: Path, tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """For each task, overrides that make it small and keep it off the network."""
    text = tmp_path / "text.txt"
    text.write_text("ROMEO: hello world\n" * 20)
    digits = (f"task.data={write_digits(tmp_path / 'digits', train=24, test=12)}",)
    names = tmp_path / "names"
    names.mkdir()
    for label in ("one", "two"):
        (names / f"{label}.txt").write_text("\n".join(label[:3] * length for length in range(1, 20)))
    return {
        "sine": ("task.samples=20",),
        "char_lm": (f"task.text={text}", "task.window=5", "task.streams=2", "task.embedding=3"),
        "imdb": (f"task.data={reviews}", "task.batch_size=2", "task.embedding=3"),
        "forecast": ("task.window=48", "task.horizon=24", "task.split=fractions"),
        "smnist": digits,
        "psmnist": digits,
        "scifar": (f"task.data={write_photographs(tmp_path / 'cifar.tar.gz', train=4, test=12)}",),
        **dict.fromkeys(("copy", "adding", "selective_copy", "first", "frequency", "recall"), ()),
        **dict.fromkeys(("parity", "modular", "automaton"), ()),
        "addition": ("task.samples=20",),
        "names": (f"task.data={names}", "task.embedding=3"),
    }


def settings_of(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """The composed configuration as train.py sees it."""
    register_models(None)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return resolve(compose("config", overrides=list(overrides)), tmp_path)


@pytest.fixture
def refusal(train: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """`refusal(...)` runs train.py on bad input: exit code 1, one line on stderr, which it returns, and no folder."""

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(SystemExit) as end:
            train(*SINE, *arguments)
        error = capsys.readouterr().err
        assert end.value.code == 1
        assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1, error
        assert sorted(tmp_path.iterdir()) == before
        return error.strip()

    return run


# What is in conf/


def test_conf_has_choices_only() -> None:
    assert {option.partition("=")[0] for option in OPTIONS} >= {"task", "optimizer", "hardware", "logger", "experiment"}
    assert {f"task={name}" for name in ("sine", "char_lm", "imdb")} <= set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_can_be_built(
    option: str, tiny: dict[str, tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option composes, and data, module, optimizer and trainer come of it."""
    for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"):
        monkeypatch.setenv(name, "1")
    chosen = (option, *(("task=forecast", "model=esn") if option == "optimizer=ridge" else ()))  # what it can fit
    name = settings_of(tmp_path, *chosen)["task"]["name"]
    settings = settings_of(tmp_path, *chosen, *tiny[name], "model.hidden_size=2")
    task = settings["task"]
    data = build(get_class(task["datamodule"]), {**task, "seed": 1}, "task")
    data.setup()
    known = {key: settings[key] for key in ("model", "optimizer", "engine", "seed")}
    module = build(get_class(task["module"]), {**task, **known, **data.facts()}, "task")
    assert {layer.hidden_size for layer in module.modules() if isinstance(layer, Recurrent)} == {2}

    options = dict(settings["optimizer"])
    assert options.pop("schedule") in ("constant", "linear")
    OPTIMIZERS[options.pop("name")](module.parameters(), **options)

    if settings["hardware"]["accelerator"] == "gpu" and not torch.cuda.is_available():
        with pytest.raises(UserError):
            build_trainer(settings, tmp_path, MetricsCSV(tmp_path), module.monitor)
        return
    trainer = build_trainer(settings, tmp_path, MetricsCSV(tmp_path), module.monitor)
    assert trainer.max_epochs == settings["trainer"]["max_epochs"]
    expected = {"csv": 0, "tensorboard": 1, "wandb": 1}[settings["logger"]["name"]]
    assert len(trainer.loggers) == 1 + expected


@pytest.mark.parametrize("task", [option for option in OPTIONS if option.startswith("task=")])
def test_no_key_of_a_task_is_dead(task: str, tmp_path: Path) -> None:
    """Each key is an argument of the data module or the module, which `build` picks by name."""
    settings = settings_of(tmp_path, task)["task"]
    taken = {"name", "module", "datamodule", "preset"}
    for kind in ("module", "datamodule"):
        taken |= set(inspect.signature(get_class(settings[kind])).parameters)
    assert set(settings) <= taken


FOLLOWERS = {
    "hidden_size": "model.hidden_size",
    "num_layers": "model.num_layers",
    "bidirectional": "model.bidirectional",
    "dropout": "model.dropout",
    "lr": "optimizer.lr",
    "schedule": "optimizer.schedule",
    "max_epochs": "trainer.max_epochs",
}
"""What each key of a task's preset sets."""


@pytest.mark.parametrize("task", [option for option in OPTIONS if option.startswith("task=")])
def test_presets_follow_through_and_overrides_win(task: str, tmp_path: Path) -> None:
    def found(*overrides: str) -> dict[str, Any]:
        settings = settings_of(tmp_path, task, *overrides)
        assert settings["task"]["preset"].keys() - {"chrono"} == FOLLOWERS.keys()
        return {key: settings[key.split(".")[0]][key.split(".")[1]] for key in FOLLOWERS.values()}

    original = found()
    preset = settings_of(tmp_path, task)["task"]["preset"]
    assert original == {FOLLOWERS[k]: v for k, v in preset.items() if k != "chrono"}
    other = {
        "hidden_size": 17, "num_layers": 3, "bidirectional": not original["model.bidirectional"], "dropout": 0.125,
        "lr": 0.25, "schedule": "constant" if original["optimizer.schedule"] == "linear" else "linear",
        "max_epochs": 19,
    }  # fmt: skip
    presets = [f"task.preset.{key}={value}" for key, value in other.items()]
    assert found(*presets) == {FOLLOWERS[key]: value for key, value in other.items()}
    assert found(*presets, *(f"{key}={value}" for key, value in original.items())) == original


@pytest.mark.parametrize(
    ("arguments", "chrono"),
    [
        (["task=copy"], 120),
        (["task=copy", "model=lstm", "model.chrono=0"], 0),
        (["task=copy", "model=orthogonal"], 0),  # has no gate that could start so
        (["task=adding"], 0),
    ],
    ids=str,
)
def test_a_preset_may_have_chrono(arguments: list[str], chrono: int, tmp_path: Path) -> None:
    assert settings_of(tmp_path, *arguments)["model"]["chrono"] == chrono


SHARED = {
    "num_layers": 1, "bidirectional": False, "dropout": 0.0, "layer_norm": False, "recurrent_dropout": 0.0,
    "zoneout": 0.0, "weight_drop": 0.0, "projection": 0, "residual": False, "block": "none",
    "learn_initial_state": False, "initializer": "default", "forget_bias": None, "chrono": 0, "checkpoint_every": 0,
}  # fmt: skip
"""What every model has beside its size and its cell's own, as the layer and the tasks have it."""


@pytest.mark.parametrize("name", list_cells())
def test_every_cell_is_a_model_with_its_own_fields(name: str, tmp_path: Path) -> None:
    model = settings_of(tmp_path, f"model={name}", "model.hidden_size=2")["model"]
    assert model.pop("cell") == name
    own = {key: declared.default for key, declared in registry.get(name).hyperparameters.items()}
    assert model == {"hidden_size": 2, **SHARED, **own}
    output, _ = Recurrent(name, input_size=3, **model)(torch.zeros(4, 1, 3))
    assert output.shape[:2] == (4, 1)


def test_each_layer_may_have_a_size_of_its_own(tmp_path: Path) -> None:
    model = settings_of(tmp_path, "model.hidden_size=[4,3]", "model.num_layers=2")["model"]
    assert Recurrent(input_size=3, **model).hidden_sizes == (4, 3)


def test_a_cells_own_field_is_typed_and_can_be_set(tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert settings_of(tmp_path, "model=indrnn", "model.nonlinearity=tanh")["model"]["nonlinearity"] == "tanh"
    assert "model.forget_bias" in refusal("model=lstm", "model.forget_bias=abc")
    assert "model.nonlinearity: no such key" in refusal("model=gru", "model.nonlinearity=relu")


def test_every_cell_takes_the_options_of_the_layer(tmp_path: Path, refusal: Callable[..., str]) -> None:
    options = {"layer_norm": True, "zoneout": 0.1, "projection": 3, "initializer": "xavier", "forget_bias": 2.5}
    model = settings_of(tmp_path, "model=lstm", *(f"model.{key}={value}" for key, value in options.items()))["model"]
    assert {key: model[key] for key in options} == options
    for wrong in ("zoneout=1.5", "initializer=chrono", "chrono=2", "layer_norm=maybe"):
        assert f"model.{wrong.partition('=')[0]}" in refusal("model=lstm", f"model.{wrong}")


def test_experiments_yield_to_overrides(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "experiment=sine_article")
    assert (settings["model"]["cell"], settings["optimizer"]["name"], settings["task"]["window"]) == ("rnn", "sgd", 2)
    settings = settings_of(tmp_path, "experiment=sine_article", "model=gru", "optimizer.lr=0.1", "task.window=5")
    assert (settings["model"]["cell"], settings["optimizer"]["lr"], settings["task"]["window"]) == ("gru", 0.1, 5)


# Bad input


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("model=gruu", ["model=gruu", "did you mean gru", "cells=FILE.py"]),
        ("model=qqq", ["model=qqq", "known: ", " more; rnnzoo list shows all"]),
        ("task=sin", ["task=sin", "did you mean sine"]),
        ("optimizer=adm", ["optimizer=adm", "adam or adamw"]),
        ("hardware=gppu", ["hardware=gppu", "did you mean gpu"]),
        ("logger=tensorbord", ["logger=tensorbord", "did you mean tensorboard"]),
        ("experiment=sine_articl", ["experiment=sine_articl", "did you mean sine_article"]),
        ("engine=natve", ["engine", "did you mean native"]),
        ("optimizer.name=adm", ["optimizer.name=adm", "adam or adamw"]),
        ("optimizer.schedule=linera", ["optimizer.schedule=linera", "constant or linear"]),
    ],
)
def test_a_misspelt_choice(
    argument: str, said: list[str], refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if argument.partition("=")[0] in GROUPS:  # known without what takes seconds, and before anything is announced
        monkeypatch.setattr(command_line, "register_models", None)
        monkeypatch.setattr(command_line, "announced", None)
    error = refusal(argument)
    assert all(part in error for part in said), error


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("task.windw=3", ["task.windw", "did you mean window"]),
        ("task.qqq=3", ["task.qqq", "known: ", "batch_size"]),
        ("model.hiden_size=3", ["model.hiden_size", "did you mean hidden_size"]),
        ("trainer.max_epoch=3", ["trainer.max_epoch", "did you mean max_epochs"]),
        ("optimizer.learning_rate=3", ["optimizer.learning_rate", "known: ", "lr"]),
        ("checkpoint.every_n_step=3", ["checkpoint.every_n_step", "every_n_steps"]),
        ("averaging.patince=3", ["averaging.patince", "patience"]),
        ("early_stopping.patince=3", ["early_stopping.patince", "patience"]),
        ("task.preset.hiden_size=3", ["task.preset.hiden_size", "hidden_size"]),
        ("sed=3", ["sed", "did you mean seed"]),
        ("qqq=3", ["qqq", "known: ", "seed"]),
        ("+trainer.max_epoch=3", ["trainer.max_epoch"]),
        ("+model.hiden_size=3", ["hiden_size"]),
        ("+optimizer.learning_rate=3", ["optimizer.learning_rate"]),
        ("+task.windw=3", ["task.windw"]),
        ("+sed=3", ["sed"]),
    ],
)
def test_a_misspelt_key(argument: str, said: list[str], refusal: Callable[..., str]) -> None:
    error = refusal(argument)
    assert all(part in error for part in said), error


@pytest.mark.parametrize(
    "argument",
    [
        "model.bidirectional=perhaps",
        "model.dropout=abc",
        "task.batch_size=abc",
        "task.window=null",
        "task.step=abc",
        "task.probes=perhaps",
        "trainer.max_epochs=abc",
        "trainer.max_epochs=1.5",
        "trainer.gradient_clip_val=abc",
        "trainer.limit_train_batches=abc",
        "trainer.precision=abc",
        "optimizer.lr=abc",
        "optimizer.weight_decay=abc",
        "optimizer.schedule=3",
        "seed=x",
        "seed=null",
        "engine=3",
        "test_only=perhaps",
        "ckpt=3",
        "checkpoint.every_n_steps=abc",
        "early_stopping.patience=abc",
    ],
)
def test_a_value_of_the_wrong_type(argument: str, refusal: Callable[..., str]) -> None:
    key = argument.partition("=")[0]
    assert re.match(rf"error: (\w+: )?{key}\b(?!\.)", refusal(argument))


@pytest.mark.parametrize(
    "argument",
    [
        "model.hidden_size=0",
        "model.hidden_size=abc",
        "model.hidden_size=null",
        "model.hidden_size=[2,3]",
        "model.num_layers=0",
        "model.dropout=1",
        "task.window=-1",
        "task.batch_size=0",
        "task.warmup=-1",
        "task.warmup=3",
        "task.prefix=0",
        "task.horizon=0",
        "trainer.max_epochs=-2",
        "trainer.gradient_clip_val=-1",
        "trainer.accumulate_grad_batches=0",
        "trainer.limit_train_batches=2.5",
        "optimizer.lr=-1",
        "optimizer.weight_decay=-1",
        "seed=-1",
        "seed=4294967296",
        "checkpoint.every_n_steps=0",
        "early_stopping.patience=0",
        "averaging.patience=0",
        "hardware.devices=0",
    ],
)
def test_a_size_out_of_range(argument: str, refusal: Callable[..., str]) -> None:
    assert argument.partition("=")[0].split(".")[-1] in refusal(argument)


@pytest.mark.parametrize("argument", ["foo", "model", "task.window", "task.window={", "task.window=[1", "=3"])
def test_an_argument_that_cannot_be_read(argument: str, refusal: Callable[..., str]) -> None:
    assert argument in refusal(argument)


@pytest.mark.parametrize("argument", ["task.text=my novel (1).txt", "task.sample_prime=吾輩は", "task.text=a=b.txt"])
def test_a_value_that_must_be_quoted_is_told_so(argument: str, refusal: Callable[..., str]) -> None:
    error = refusal("task=char_lm", argument)
    assert argument in error and "quote" in error


@pytest.mark.parametrize("argument", ["model=lstm,gru", "seed=1,2", "task.window=3,4"])
def test_several_values_without_m(argument: str, refusal: Callable[..., str]) -> None:
    assert (
        refusal(argument)
        == f"error: {argument}: several values are several runs, which need -m; a list is written [a,b]"
    )


def test_a_checkpoint_of_another_cell(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = train(*SINE, "model=rnn") / "checkpoints" / "best.ckpt"
    with pytest.raises(SystemExit):
        train(*SINE, "model=gru", "test_only=true", f"ckpt={path}")
    assert capsys.readouterr().err == f"error: {path} was trained with model.cell=rnn, not model.cell=gru\n"


@pytest.mark.parametrize("argument", ["model=null", "task=5"])
def test_a_choice_that_is_no_name(argument: str, refusal: Callable[..., str]) -> None:
    assert argument.partition("=")[0] in refusal(argument)


def test_a_misspelt_key_is_known_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "announced", None)
    monkeypatch.setenv("RNNZOO_TRACEBACK", "1")
    for argument in ("task.windw=3", "trainer.max_epoch=3", "sed=3", "modle=gru", "checkpoint.every_n_step=3"):
        monkeypatch.setattr("sys.argv", ["train.py", argument])
        with pytest.raises(UserError, match="no such key; did you mean"):
            command_line.command(lambda: None)


def test_a_checkpoint_knows_its_task_and_model(
    train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(*SINE, "model=rnn")
    new = tmp_path / "tested"
    train("test_only=true", f"ckpt={run / 'checkpoints' / 'best.ckpt'}", f"hydra.run.dir={new}", "hardware=cpu")
    before, after = (json.loads((folder / "summary.json").read_text()) for folder in (run, new))
    assert (after["task"], after["model"]) == ("sine", "rnn")
    assert after["metrics"]["test/loss"] == pytest.approx(before["metrics"]["test/loss"], rel=1e-6)
    assert "task sine, model rnn, hardware cpu" in capsys.readouterr().out


def test_several_files_of_cells(train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / f"{name}.py" for name in ("one", "two")]
    for path in paths:
        path.write_text(CELL.format(name=f"{path.stem}_of_several"))
    for model, given in (("one", f"[{paths[0]},{paths[1]}]"), ("two", f"{paths[0]},{paths[1]}")):
        run = train(*SINE, f"cells={given}", f"model={model}_of_several")
        capsys.readouterr()
        assert main(["eval", str(run), "--cells", str(paths[0]), "--cells", str(paths[1])]) == 0
        assert "equal to the recorded ones" in capsys.readouterr().out
    paths[1].write_text(paths[1].read_text() + "# changed")
    with pytest.raises(SystemExit):
        train(f"resume={run}", f"cells={paths[0]},{paths[1]}", "trainer.max_epochs=2")
    assert "has changed since the run" in capsys.readouterr().err


def test_a_training_that_diverged_without_an_infinity_says_so(
    train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sine = (*SINE, "model=rnn", "trainer.max_epochs=3", "task.batch_size=4")
    train(*sine)
    assert "diverged" not in capsys.readouterr().err
    train(*sine, "optimizer.lr=1e3")
    assert re.search(r"the training has diverged: its loss was .* lower optimizer.lr\n", capsys.readouterr().err)


def test_checkpoint_and_test_only_need_each_other(refusal: Callable[..., str]) -> None:
    assert "test_only=true" in refusal("ckpt=some.ckpt")
    assert "ckpt=" in refusal("test_only=true")
    assert "none.ckpt: no such checkpoint" in refusal("test_only=true", "ckpt=none.ckpt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("hardware", ["gpu", "multi_gpu"])
def test_no_gpu(hardware: str, refusal: Callable[..., str]) -> None:
    error = refusal(f"hardware={hardware}")
    assert "hardware" in error and "gpu" in error.lower()


def test_cells_that_cannot_be_loaded(tmp_path: Path, refusal: Callable[..., str]) -> None:
    missing = tmp_path / "missing.py"
    assert refusal(f"cells={missing}") == f"error: cells={missing}: no such file: {missing}"
    assert "no such file or module" in refusal("cells=no_such_module")

    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\n\ndef broken(:\n")
    error = refusal(f"cells={broken}")
    assert str(broken) in error and "line 3: syntax error" in error

    raising = tmp_path / "raising.py"
    raising.write_text("x = 1\n\nraise RuntimeError('first\\nsecond')\n")
    error = refusal(f"cells={raising}")
    assert str(raising) in error and "line 3: RuntimeError: first second" in error

    twice = tmp_path / "twice.py"
    twice.write_text(CELL.format(name="gru"))
    assert "'gru' is already registered" in refusal(f"cells={twice}")

    good = tmp_path / "good.py"
    good.write_text(CELL.format(name="config_cell"))
    assert "did you mean config_cell" in refusal(f"cells={good}", "model=config_cel")


def test_a_folder_that_holds_a_run_is_left_alone(
    train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(*SINE)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for arguments in (SINE, (*SINE, "task.window=-1"), (*SINE, "task.windw=3")):
        with pytest.raises(SystemExit) as end:
            train(*arguments, f"hydra.run.dir={folder}")
        assert end.value.code == 1
        error = capsys.readouterr().err
        assert str(folder) in error or "task.wind" in error
        assert error.count("\n") == 1
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_of_somebody_elses_files_is_not_deleted(
    tmp_path: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """What a refused run takes back is what it made itself."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("years of work")
    with pytest.raises(SystemExit):
        train(*SINE, "task.window=-1", f"hydra.run.dir={folder}")
    assert "task.window" in capsys.readouterr().err
    assert (folder / "notes.txt").read_text() == "years of work"


def test_an_output_folder_that_cannot_be_made(
    tmp_path: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a regular file")
    with pytest.raises(SystemExit) as end:
        train(*SINE, f"hydra.run.dir={tmp_path / 'file' / 'run'}")
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.count("\n") == 1
    assert error.startswith(f"error: {tmp_path / 'file'}") and "Not a directory" in error


# Help


HELP = """
import runpy, sys
sys.argv = ["train.py", "--help"]
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    print("imported:", *sorted({"torch", "pytorch_lightning", "matplotlib"} & set(sys.modules)))
"""


def test_help_names_all_choices_and_does_not_wait_for_torch(
    interpreter: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = interpreter("-c", HELP)
    assert done.returncode == 0 and done.stderr == ""
    *text, imported = done.stdout.splitlines()
    assert imported == "imported:"
    joined = re.sub(r",\n +", ", ", "\n".join(text))  # long lists are folded
    listed = dict(line.split(": ", 1) for line in joined.splitlines() if re.match(r"\w+: \w", line))
    for option in OPTIONS:
        group, _, name = option.partition("=")
        assert name in listed[group].split(", ")
    assert set(listed["model"].split(", ")) == set(builtin_cells())


def builtin_cells() -> list[str]:
    return [name for name in list_cells() if registry.entry(name).module.startswith("rnnzoo.cells.")]


def test_the_names_in_help_are_those_registered() -> None:
    """Help reads the names off the text of the files: they must be the ones that importing them registers."""
    found = [name for path in (ROOT / "rnnzoo" / "cells").glob("*.py") for name in registry.scan(path)]
    assert sorted(found) == builtin_cells()


@pytest.mark.parametrize("arguments", [["model=gru"], ["model=gru,rnn"], []], ids=str)
def test_an_experiment_of_several_runs_names_no_folder_of_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["experiment=league/adding", *arguments]
    assert command_line.announced(given) == given
    said = capsys.readouterr().out
    assert said.startswith("task adding, model ") and said.endswith(": several runs\n")
    [*_, folder] = command_line.announced([*given, "model=gru", "hydra.mode=RUN"])
    assert folder.startswith("hydra.run.dir=outputs/adding/gru/")
