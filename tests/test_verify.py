"""What no suite has proven is tried before it is trusted; here plans run step by step stand for what a GPU would run.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnzoo import Recurrent, UserError
from rnnzoo import engine as engines
from rnnzoo.check import everything
from rnnzoo.engine import scan, serial, steps, verify
from rnnzoo.engine.linear_scan import linear_scan
from rnnzoo.engine.plan import plan
from rnnzoo.engine.triton_cost import chunks

I, H = 3, 4  # noqa: E741  I is the input size everywhere in this project


class Right(steps.Steps):
    """Computes what it should, but nobody has proven it."""

    def __init__(self, plan: Any) -> None:
        super().__init__(plan, compiled=False)
        self.proven = False


class WrongForward(Right):
    def forward(self, tensors: Any, *others: Any) -> None:
        super().forward(tensors, *others)
        [stack] = [t for t in tensors if t.dim() == 3 and len(t) == verify.STEPS + 1]
        stack[-1, 0, 0] += 1e-2


class WrongBackward(Right):
    def backward(self, tensors: Any, *others: Any) -> None:
        super().backward(tensors, *others)
        tensors[len(self.given)][0, 0] += 1e-2


class WrongPastTheEnd(Right):
    """Takes no heed of lengths."""

    def forward(self, tensors: Any, slots: Any, lengths: Any, *others: Any) -> None:
        super().forward(tensors, slots, None, *others)


class Raising(Right):
    def forward(self, *arguments: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered\nand more")


class OutOfMemory(Right):
    def forward(self, *arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


class Uncompilable(Right):
    def __init__(self, plan: Any) -> None:
        super().__init__(plan)
        self.compiled = True

    def _compile(self, *arguments: Any) -> Any:
        raise UserError("MGU: its plan cannot be compiled: no ptxas; use engine=reference")


FAULTS: dict[type[Right], str] = {
    WrongForward: "differs",
    WrongBackward: "gradient of state h differs",
    WrongPastTheEnd: "differs",
    Raising: "illegal memory access",
    OutOfMemory: "out of memory",
    Uncompilable: "no ptxas",
}


@pytest.fixture(autouse=True)
def a_new_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what a new process would not know; so may a test, by calling it."""

    def forget() -> None:
        for module, names in (
            (serial, ("_programs", "_distrusted")),
            (scan, ("_distrusted",)),
            (verify, ("_verdicts",)),
            (engines, ("_failed", "_told")),
        ):
            for name in names:
                monkeypatch.setattr(module, name, type(getattr(module, name))())

    forget()
    return forget


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What each trial finds."""
    trial, found = verify.trial, []

    def kept(*arguments: Any) -> str | None:
        found.append(None)  # what raises counts as well
        found[-1] = trial(*arguments)
        return found[-1]

    monkeypatch.setattr(verify, "trial", kept)
    return found


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`by(Right)` has plans run by these loops, the first of them that is trusted."""

    def use(*kinds: type[Right]) -> None:
        for kind in kinds:
            kind.label = kind.__name__
            monkeypatch.setitem(serial.LOOPS, kind.label, lambda plan, half, kind=kind: kind(plan))
        monkeypatch.setattr(serial, "loops", lambda device: tuple(kind.label for kind in kinds))

    return use


def layer_of(engine: str) -> Recurrent:
    torch.manual_seed(0)
    layer = Recurrent("mgu", I, H, engine=engine).double()
    layer.expected_calls = 10**6
    return layer


def results(layer: Recurrent, lengths: Tensor | None = None) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x, state = torch.randn(7, 3, I, dtype=torch.float64), torch.randn(1, 3, H, dtype=torch.float64)
    return everything(layer, x, [state], lengths)


def assert_right(layer: Recurrent) -> None:
    for lengths in (None, torch.tensor([7, 1, 4])):
        expected, found = results(layer_of("reference"), lengths), results(layer, lengths)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, msg=lambda m, k=key: f"{k}: {m}")


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "kernels").glob("MGU-*.json"))


@pytest.mark.parametrize("engine", ["auto", "serial"])
def test_what_is_right_is_tried_once_and_used(
    engine: str, by: Any, trials: list[Any], a_new_process: Callable[[], None], own_cache: Path
) -> None:
    by(Right)
    for _ in range(2):
        layer = layer_of(engine)
        assert_right(layer)
        assert layer.engine_used == "serial"
        a_new_process()
    assert trials == [None]
    [path] = kept(own_cache)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    facts = json.loads(path.read_text().partition("\n")[2])
    assert facts["wrong"] is None and facts["torch"] == torch.__version__
    assert {"device", "driver", "plan", "triton", "CUDA", "rnnzoo"} <= facts.keys()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_auto_warns_once_of_what_is_not_and_uses_the_plain_loop(
    fault: Any, by: Any, trials: list[Any], a_new_process: Callable[[], None], own_cache: Path
) -> None:
    by(fault)
    for times in (1, 2):
        layer = layer_of("auto")
        with pytest.warns(UserWarning) as caught:
            assert_right(layer)
        assert layer.engine_used == "reference"
        [message] = {str(w.message) for w in caught}
        assert "MGU: engine=serial is not trusted on cpu" in message and FAULTS[fault] in message
        assert "\n" not in message and len(caught) == 1
        # of a device that was full for once nothing is kept, of what is wrong all is: a compile may take a minute
        lasting = fault is not OutOfMemory
        assert len(trials) == (1 if lasting else times)
        assert len(kept(own_cache)) == lasting
        assert (str(own_cache / "kernels") in message) == lasting  # what to remove
        a_new_process()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_forced_engine_raises(fault: Any, by: Any) -> None:
    by(fault)
    layer = layer_of("serial")
    for _ in range(2):
        with pytest.raises(UserError, match=rf"MGU: engine=serial is not trusted on .*{FAULTS[fault]}") as caught:
            results(layer)
        assert "\n" not in str(caught.value) and str(caught.value).endswith("; use engine=reference")


def test_another_loop_takes_over(by: Any, trials: list[Any]) -> None:
    by(WrongForward, Uncompilable, Right)
    layer = layer_of("auto")
    with pytest.warns(UserWarning, match="with what else can run its loop") as caught:
        assert_right(layer)
    assert layer.engine_used == "serial" and len(caught) == 2
    assert len(trials) == 3 and trials[-1] is None


def test_what_is_only_run_forward_is_only_tried_forward(by: Any, trials: list[Any]) -> None:
    by(WrongBackward)
    layer = layer_of("serial")
    with torch.inference_mode():
        layer(torch.randn(7, 3, I, dtype=torch.float64))
    assert trials == [None]
    with pytest.raises(UserError, match="gradient of"):
        results(layer)
    with torch.no_grad():
        layer(torch.randn(7, 3, I, dtype=torch.float64))


def test_a_damaged_verdict_is_found_anew(
    by: Any, trials: list[Any], a_new_process: Callable[[], None], own_cache: Path
) -> None:
    by(Right)
    results(layer_of("serial"))
    [path] = kept(own_cache)
    whole = path.read_text()
    damages: tuple[Callable[[], Any], ...] = (
        lambda: path.write_text(whole.replace("null", '"all"')),
        lambda: path.write_text(whole[:100]),
        lambda: path.write_bytes(b"\xff\xfe"),
        lambda: path.write_text(""),
        lambda: path.chmod(0o622),
        lambda: path.unlink(),
    )
    for count, damage in enumerate(damages, 2):
        damage()
        a_new_process()
        results(layer_of("serial"))
        assert len(trials) == count
        assert kept(own_cache) == [path] and path.read_text() == whole and path.stat().st_mode & 0o777 == 0o600


def test_a_verdict_is_of_one_device_and_of_one_version(
    by: Any, trials: list[Any], a_new_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    by(Right)
    results(layer_of("serial"))
    real = verify.versions()
    changes: tuple[tuple[str, Any], ...] = (
        ("device", lambda x: "another GPU"),
        *(("versions", lambda key=key: {**real, key: "another"}) for key in real),
    )
    for count, (name, other) in enumerate(changes, 2):
        a_new_process()
        with monkeypatch.context() as changed:
            changed.setattr(verify, name, other)
            results(layer_of("serial"))
        assert len(trials) == count
    a_new_process()
    results(layer_of("serial"))
    assert len(trials) == len(changes) + 1


def test_a_cache_that_cannot_be_written_costs_a_trial_a_process(
    by: Any, trials: list[Any], own_cache: Path, a_new_process: Callable[[], None]
) -> None:
    by(Right)
    (own_cache / "kernels").write_text("")
    for count in (1, 2):
        assert_right(layer_of("auto"))
        assert len(trials) == count
        a_new_process()


def test_scans_are_tried_where_the_suite_has_not_been(monkeypatch: pytest.MonkeyPatch, trials: list[Any]) -> None:
    monkeypatch.setattr(scan, "unproven", lambda *_: ("as on a GPU",))
    layer = Recurrent("min_gru", I, H, engine="scan")
    x = torch.randn(7, 3, I)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    assert trials == [None]
    run = scan.run
    monkeypatch.setattr(scan, "run", lambda *arguments: (1.01 * run(*arguments)[0], run(*arguments)[1]))
    monkeypatch.setattr(scan, "unproven", lambda *_: ("as on another GPU",))
    with pytest.raises(UserError, match=r"engine=scan is not trusted on .*output differs by"):
        layer(x)


def test_torch_solves_what_a_wrong_kernel_does_not(monkeypatch: pytest.MonkeyPatch, trials: list[Any]) -> None:
    def solve(a: Tensor, b: Tensor, h0: Tensor, anew: Tensor | None, kernel: bool) -> Tensor:
        return linear_scan(a, b, h0, anew) * (1.01 if kernel else 1.0)

    def way(made: Any, device: torch.device) -> str:
        return "operations" if made in scan._distrusted else "triton"

    monkeypatch.setattr(scan, "linear_scan", solve)
    monkeypatch.setattr(scan, "_way", way)
    monkeypatch.setattr(scan, "unproven", lambda prepared, cell, x: (way(plan(cell, x), x.device),))
    monkeypatch.setattr(engines, "choose", lambda *_: ("scan", ""))
    torch.manual_seed(0)
    layers = [Recurrent("min_gru", I, H, engine=engine).double() for engine in ("reference", "auto")]
    layers[1].load_state_dict(layers[0].state_dict())
    with pytest.warns(UserWarning, match=r"engine=scan is not trusted on .*output differs by .*with what else"):
        for x in torch.randn(2, 7, 3, I, dtype=torch.float64):
            torch.testing.assert_close(layers[1](x)[0], layers[0](x)[0])
    assert layers[1].engine_used == "scan" and len(trials) == 2 and trials[-1] is None


@pytest.mark.parametrize(("T", "long"), [(100, False), (16384, True)])
def test_a_trial_of_a_scan_is_cut_as_the_run_is(T: int, long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_way", lambda made, device: "triton")
    cell, x = Recurrent("min_gru", I, 128)._cell(0), torch.zeros(T, 16, I)
    steps = scan.tried(scan.prepare(cell, x), cell, x)
    assert (chunks(steps, 16 * 128, 4) > 1) == (chunks(T, 16 * 128, 4) > 1) == long
    assert steps < T / 10 and (steps > 1) == long


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is handed to Inductor, which takes it as it is."""
    given: list[Any] = []
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, *_, **__: given.append(graph) or graph)
    return given


@pytest.mark.parametrize("name", ["mgu", "lstm", "lem", "gla", "min_gru"])
def test_graphs_are_compiled_before_they_run(name: str, compiles: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and back at once for all lengths and smaller batches, and nothing while a backward pass waits."""
    monkeypatch.setattr(steps, "CHUNK", 3)
    run, before = steps.Steps.backward, []

    def backward(*arguments: Any) -> None:
        before.append(len(compiles))
        run(*arguments)
        assert len(compiles) == before[-1]

    monkeypatch.setattr(steps.Steps, "backward", backward)
    torch.manual_seed(0)
    layers = [Recurrent(name, I, H, engine=engine).double() for engine in ("reference", "serial")]
    layers[1].load_state_dict(layers[0].state_dict())
    with serial.only("graphs"):
        for T, B, count in ((7, 5, 2), (3, 8, 2), (1, 1, 2), (4, 3, 2), (5, 9, 4), (6, 2, 4)):
            for lengths in (None, 1 + torch.arange(B) % T):
                x = torch.randn(T, B, I, dtype=torch.float64)
                states = [torch.rand(1, *s.shape).to(s) for s in layers[0]._cell(0).initial_state(x[0])]
                expected, found = (everything(layer, x, states, lengths) for layer in layers)
                for key, value in expected.items():
                    torch.testing.assert_close(found[key], value, msg=lambda m, k=key: f"{k}: {m}")
                assert len(compiles) == count
        with torch.inference_mode():
            torch.testing.assert_close(*(layer(x)[0] for layer in layers))
        assert len(compiles) == 5  # what saves nothing
    assert before


def test_a_batch_too_many_is_refused_before_it_runs(compiles: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "CHUNK", 2)
    monkeypatch.setattr(steps, "COMPILES", 2)
    monkeypatch.setattr(serial, "loops", lambda device: ("graphs",))
    layer = layer_of("auto")
    for B in (8, 16):
        layer(torch.randn(2, B, I, dtype=torch.float64))[0].sum().backward()
        assert layer.engine_used == "serial"
    with pytest.warns(UserWarning, match="compiled for 2 ever larger batches"):
        layer(torch.randn(2, 17, I, dtype=torch.float64))[0].sum().backward()
    assert layer.engine_used == "reference"
