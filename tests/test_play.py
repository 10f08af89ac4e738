"""`rnnzoo.play`: recorded sessions beside `layer.record` and the equations in NumPy, what the server refuses, and the
file that replays a session."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from served import ask, serving
from torch import Tensor, nn
from varied import VARIED

from rnnzoo import Cell, Recurrent, UserError, cli, list_cells
from rnnzoo.cell import gate
from rnnzoo.explain.living import Living
from rnnzoo.play import save, server, untrained
from rnnzoo.play.machine import Machine, pack
from rnnzoo.play.session import Hold, record
from rnnzoo.play.views import Text

ROWS = [[0.5], [-1.0], [0.25], [2.0]]


def sigmoid(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def lstm(cell: Any, x: Any, h: Any, c: Any, **held: Any) -> dict[str, Any]:
    """One step of an LSTM in NumPy (Gers et al. 2000), some of its gates held at values."""
    weight = {name: tensor.detach().double().numpy() for name, tensor in cell.named_parameters()}
    sums = {k: x @ weight[f"W_{k}"] + h @ weight[f"U_{k}"] + weight[f"b_{k}"] for k in "ifgo"}
    found = {k: (np.tanh if k == "g" else sigmoid)(a) for k, a in sums.items()} | held
    found["c"] = found["f"] * c + found["i"] * found["g"]
    return {**found, "h": found["o"] * np.tanh(found["c"]), "read": h @ weight["U_f"], "kept": found["f"] * c}


def layer_of(name: str, units: int = 5, **options: Any) -> Recurrent:
    torch.manual_seed(3)
    return Recurrent(name, 2, units, **options).eval()


def steps_of(found: list[Any], name: str) -> Tensor:
    return found[0].values(name)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_what_is_recorded_is_what_the_layer_records(options: dict[str, Any]) -> None:
    layer, x = layer_of("lstm", **options), torch.randn(6, 1, 2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    (output, _), found = record(layer, lambda module: module(x))
    torch.testing.assert_close(output, layer(x)[0])
    with torch.no_grad():
        for each, true in zip(found, layer.record(x)):
            assert set(each.names) == set(true)
            for name, values in true.items():
                values = values.flip(0) if each.backward else values
                torch.testing.assert_close(each.values(name), values[:, 0])
    assert layer.engine == "auto" and not layer.cells[0]._forward_pre_hooks
    torch.testing.assert_close(dict(layer.state_dict()), before)


def test_a_held_gate_acts_from_its_step_on() -> None:
    """Beside an LSTM in NumPy whose forget gate is 0 from the second step on, and unit 1 of whose c is 3 at the end."""
    layer, x = layer_of("lstm"), torch.randn(4, 1, 2)
    holds = [Hold(0, "f", 0.0, start=1), Hold(0, "c", 3.0, unit=1, start=3, stop=4)]
    _, found = record(layer, lambda module: module(x), holds)
    h = c = np.zeros(5)
    for t in range(4):
        held = {"f": np.zeros(5)} if t else {}
        true = lstm(layer.cells[0], x[t, 0].double().numpy(), h, c, **held)
        if t == 3:
            true["c"][1] = 3.0
            true["h"] = true["o"] * np.tanh(true["c"])
        for name in "ifgoch":
            np.testing.assert_allclose(steps_of(found, name)[t].numpy(), true[name], rtol=1e-5, atol=1e-6)
        h, c = true["h"], true["c"]
    assert steps_of(record(layer, lambda module: module(x))[1], "f")[1:].min() > 0  # the layer itself is as it was


def test_an_edited_state_changes_what_comes_after_it_and_nothing_before() -> None:
    layer, x = layer_of("gru"), torch.randn(5, 1, 2)
    _, free = record(layer, lambda module: module(x))
    _, held = record(layer, lambda module: module(x), [Hold(0, "h", -2.0, start=2, stop=3)])
    torch.testing.assert_close(steps_of(held, "h")[:2], steps_of(free, "h")[:2])
    assert steps_of(held, "h")[2].eq(-2).all()
    with torch.no_grad():
        output, _ = layer(x[3:], torch.full((1, 1, 5), -2.0))
    torch.testing.assert_close(steps_of(held, "h")[3:], output[:, 0])


def test_a_run_goes_on_where_another_ended() -> None:
    layer, x = layer_of("lstm"), torch.randn(6, 1, 2)
    holds = [Hold(0, "o", 0.5, start=4)]
    _, whole = record(layer, lambda module: module(x), holds)
    (_, state), _ = record(layer, lambda module: module(x[:3]), holds)
    _, rest = record(layer, lambda module: module(x[3:], state), holds, start=3)
    torch.testing.assert_close(steps_of(rest, "h"), steps_of(whole, "h")[3:])
    assert rest[0].start == 3


@pytest.mark.parametrize(
    ("hold", "words"),
    [
        (Hold(0, "forget", 0.0), "names no forget; known: c, f, g, h, i, o"),
        (Hold(0, "f", 0.0, unit=5), "f has 5 units, counted from 0"),
        (Hold(1, "f", 0.0), "there is no cell 1"),
    ],
    ids=str,
)
def test_what_cannot_be_held(hold: Hold, words: str) -> None:
    with pytest.raises(UserError, match=words):
        record(layer_of("lstm"), lambda module: module(torch.randn(3, 1, 2)), [hold])


def test_too_many_steps() -> None:
    with pytest.raises(UserError, match=r"^more than 2,000 steps of this model cannot be shown at once$"):
        record(layer_of("rnn", 1), lambda module: module(torch.zeros(2001, 1, 2)))
    with pytest.raises(UserError, match=r"^more than [\d,]+ steps of this model"):
        record(layer_of("mlstm", 256), lambda module: module(torch.zeros(700, 1, 2)))


@pytest.mark.parametrize("name", list_cells())
def test_every_cells_states_can_be_held(name: str) -> None:
    """The step that is compiled anew, with nothing held that acts, is the step."""
    torch.manual_seed(1)
    layer, x = Recurrent(name, 4, 6).eval(), torch.randn(3, 1, 4)
    states = layer._cell(0).state_names
    _, free = record(layer, lambda module: module(x))
    _, held = record(layer, lambda module: module(x), [Hold(0, states[0], 7.0, start=2)])
    for state in states:
        torch.testing.assert_close(steps_of(held, state)[:2], steps_of(free, state)[:2], equal_nan=True)
    assert steps_of(held, states[0])[2].eq(7).all()


@pytest.mark.parametrize("name", [*VARIED, "lstm"])
def test_lines_carry_what_the_step_computes(name: str) -> None:
    """Wherever a line has a name in the code, it carries what the step gave that name."""
    torch.manual_seed(1)
    layer, x = Recurrent(name, 4, 6).eval(), torch.randn(3, 1, 4)
    _, [found] = record(layer, lambda module: module(x))
    living = Living(layer._cell(0))
    states = dict(zip(found.cell.state_names, found.before[2]))
    values = living.values(found.x[2], states, {name: steps[2] for name, steps in found.names.items()})
    bare = living.values(found.x[2], states, {})  # by the equations alone
    assert len(values) == len(living.wires) > 3
    for known in (values, bare):
        for variable, value in zip(living.variables, known):
            if variable in found.names and value is not None and found.names[variable][2].dim() == 1:
                np.testing.assert_allclose(value, found.names[variable][2].numpy(), rtol=1e-4, atol=1e-5)
    assert sum(value is None for value in values) == 0 or name == "ltc"
    assert set(re.findall(r'data-wire="(\d+)"', living.svg)) == set(map(str, range(len(living.wires))))


def test_lines_without_a_name_carry_sums_and_products() -> None:
    layer, x = layer_of("lstm"), torch.randn(3, 1, 2)
    _, [found] = record(layer, lambda module: module(x), [Hold(0, "f", 0.25)])
    living = Living(layer._cell(0))
    h, c = found.before[2]
    named = {name: values[2] for name, values in found.names.items()}
    values = dict(zip(living.wires, living.values(found.x[2], {"h": h, "c": c}, named)))
    true = lstm(layer.cells[0], *(t.double().numpy() for t in (x[2, 0], h, c)), f=np.full(5, 0.25))
    for wire, name in (("f_t ⊙ c_{t−1}", "kept"), ("U_f h_{t−1}", "read"), ("c_t", "c"), ("h_t", "h")):
        np.testing.assert_allclose(values[wire], true[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values["f_t"], 0.25)  # what is held is seen to act


class Odd(Cell):
    """Branches on data, so that it cannot be read as equations."""

    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        if h.sum() > 1e9:
            return h
        return torch.tanh(x @ self.W + h @ self.U + self.b)


def test_what_has_no_diagram_says_why() -> None:
    with pytest.raises(UserError, match="branches on data"):
        Living(Odd(2, 3))
    with pytest.raises(UserError, match="layer norm"):
        Living(layer_of("lstm", layer_norm=True)._cell(0))


@pytest.mark.parametrize("bits", [8, 16])
def test_numbers_are_packed(bits: int) -> None:
    values = torch.tensor([[0.0, -3.0], [1.5, 0.1]])
    packed = pack(values, bits)
    whole = np.frombuffer(base64.b64decode(packed["data"]), f"<i{bits // 8}").reshape(packed["shape"])
    np.testing.assert_allclose(whole * packed["scale"], values.numpy(), atol=3 / (2 ** (bits - 1) - 1))
    assert unpacked(pack(torch.tensor([torch.inf, torch.nan]))).max() > 1e38


def unpacked(packed: dict[str, Any]) -> Any:
    whole = np.frombuffer(base64.b64decode(packed["data"]), f"<i{packed['bits'] // 8}")
    return whole.reshape(packed["shape"]) * packed["scale"]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(untrained.machine("lstm", 5, 8), untrained.machine("gru", 5, 8)) as port:
        yield port


def answered(port: int, what: str, **request: Any) -> dict[str, Any]:
    code, text = ask(port, f"/api/{what}", request)
    assert code == 200, text
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_page_and_its_files(port: int) -> None:
    code, page = ask(port, "/")
    assert code == 200 and "<main" in page and "IMPORTS" not in page
    for path in [*re.findall(r'(?:href|src)="(/[^"]+)"', page), *(f"/page/{name}.js" for name in save.MODULES)]:
        assert ask(port, path)[0] == 200, path
    for path in ("/page/save.py", "/page/..%2fsave.py", "/page/play.html", "/etc/passwd", "/page/../server.py"):
        assert ask(port, path)[0] == 404, path


def test_answers_are_the_models(port: int) -> None:
    """Both runs side by side, beside the layers called directly."""
    for run, name in enumerate(("lstm", "gru")):
        layer = untrained.machine(name, 5, 8).module.layer
        with torch.no_grad():
            [true] = layer.record(torch.tensor(ROWS)[:, None])
        for variable in ("h", "o" if name == "lstm" else "z"):
            found = answered(port, "answer", run=run, rows=ROWS, name=variable)
            assert found["steps"] == 4 and found["labels"] == ["0.5", "-1", "0.25", "2"]
            np.testing.assert_allclose(unpacked(found["values"]), true[variable][:, 0].numpy(), atol=1e-4)
        late = answered(port, "answer", run=run, rows=ROWS, have=3)
        np.testing.assert_allclose(unpacked(late["values"]), true["h"][3:, 0].numpy(), atol=1e-4)


def test_what_is_held_is_seen_on_the_lines(port: int) -> None:
    about = json.loads(ask(port, "/api/about")[1])["runs"][0]["cells"][0]
    hold = {"cell": 0, "name": "f", "value": 0.75, "start": 2}
    for step in (1, 2):
        wires = answered(port, "look", rows=ROWS, holds=[hold], cell=0, step=step)["wires"]
        gate = unpacked(wires[about["variables"].index("f")])
        assert np.allclose(gate, 0.75, atol=1e-4) == (step == 2)


BAD: list[tuple[str, Any, str]] = [
    ("answer", {"rows": "x"}, "rows: must be rows of 1 number"),
    ("answer", {"rows": [[1, 2]]}, "rows: must be rows of 1 number"),
    ("answer", {"rows": [[1e300]]}, "rows: must be finite numbers"),
    ("answer", {"rows": [[True]]}, "rows: must be finite numbers"),
    ("answer", {"rows": [[0.0]] * 2001}, "rows: must be 1 to 2,000 rows, not 2,001"),
    ("answer", {"rows": []}, "rows: must be 1 to 2,000 rows, not 0"),
    ("answer", {"rows": ROWS, "run": 2}, "run: must be below 2"),
    ("answer", {"rows": ROWS, "run": [0]}, "run: must be below 2"),
    ("answer", {"rows": ROWS, "cell": 1}, "cell: must be a number from 0 to 0"),
    ("answer", {"rows": ROWS, "name": "y"}, "name: y is not among"),
    ("answer", {"rows": ROWS, "have": 5}, "have: must be a number from 0 to 4"),
    ("answer", {"rows": ROWS, "have": 0.5}, "have: must be a whole number"),
    ("answer", {"rows": ROWS, "holds": [{}] * 65}, "holds: must be a list of at most 64"),
    ("answer", {"rows": ROWS, "holds": [{"cell": 0, "name": "f", "value": None}]}, "value: must be a number"),
    ("answer", {"rows": ROWS, "holds": [{"cell": 0, "name": "q", "value": 1}]}, "names no q"),
    ("look", {"rows": ROWS, "step": 4}, "step: must be a number from 0 to 3"),
    ("more", {"rows": ROWS, "what": "units"}, "there is no more to say of 'units'"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "request_", "words"), BAD, ids=str)
def test_bad_requests_get_one_line(what: str, request_: Any, words: str, port: int) -> None:
    code, text = ask(port, f"/api/{what}", request_)
    error = json.loads(text)["error"]
    assert code == 400 and words in error and "\n" not in error


def test_what_is_no_request(port: int) -> None:
    for body, code in (("{", 400), ("[1]", 400), ("[" * 100_000, 400), ("x" * (server.LARGEST + 1), 413)):
        assert ask(port, "/api/answer", body)[0] == code
    assert ask(port, "/api/answer", {"rows": ROWS}, Content_Type="text/plain")[0] == 415  # as a form of another site
    assert ask(port, "/api/answer")[0] == 405
    assert answered(port, "answer", rows=ROWS)["steps"] == 4  # and the server goes on


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:8765", 200), ("localhost", 200), ("[::1]:80", 200), ("127.9.9.9", 200), ("evil.example", 400),
        ("evil.example:8765", 400), ("127.0.0.1.evil.example", 400), ("192.168.1.5", 400), ("[", 400), ("", 400),
    ],
)  # fmt: skip
def test_requests_must_name_this_machine(host: str, code: int, port: int) -> None:
    """A name that leads here by another's DNS is refused, for the page and for the answers."""
    assert ask(port, "/", Host=host)[0] == code
    assert ask(port, "/api/answer", {"rows": ROWS}, Host=host)[0] == code


def test_a_page_for_others_is_reached_by_number_and_name() -> None:
    """With --host: what no other's DNS can say, an address or this machine's own name."""
    with serving(untrained.machine("rnn", 2, 4), named=("lab.example",), outside=True) as port:
        for host, code in (("192.168.1.5:80", 200), ("LAB.example", 200), ("localhost", 200), ("evil.example", 400)):
            assert ask(port, "/api/about", Host=host)[0] == code


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rnnzoo", "play", "rnn", "--port", "0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], text=True, **pipes) as server:
        assert server.stdout is not None
        said = re.fullmatch(r"open http://127\.0\.0\.1:(\d+) in a browser; Ctrl-C ends it\n", server.stdout.readline())
        assert said is not None
        assert answered(int(said[1]), "answer", rows=ROWS)["steps"] == 4
        server.send_signal(signal.SIGINT)
        assert (server.wait(30), server.communicate()) == (130, ("", "interrupted\n"))


def test_requests_must_come_from_the_page(port: int) -> None:
    assert ask(port, "/api/answer", {"rows": ROWS}, Origin=f"http://127.0.0.1:{port}")[0] == 200
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert ask(port, "/api/answer", {"rows": ROWS}, Origin=origin)[0] == 403


def test_an_error_of_the_models_own_is_one_line() -> None:
    machine = untrained.machine("lstm", 5, 8)
    machine.view.onwards = lambda module, rows: rows.missing  # type: ignore[attr-defined]
    with serving(machine) as port:
        code, text = ask(port, "/api/answer", {"rows": ROWS})
    assert code == 500 and json.loads(text)["error"].startswith("AttributeError: ")


def test_memory_is_bounded() -> None:
    machine = untrained.machine("rnn", 2, 4)
    for value in range(9):
        machine.answer({"rows": [[float(value)]]})
    assert len(machine._sessions) == 4


class Letters(nn.Module):
    """A language model of the letters abc."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.read = Recurrent("lstm", 3, 5, **options), []

    def forward(self, text: str, start: int, choice: str, state: Any) -> tuple[Tensor, Any]:
        codes = ["abc".index(letter) for letter in text[start:]]
        self.read.append(len(codes))
        return self.layer(torch.eye(3)[codes][:, None], state)


def letters(**options: Any) -> Machine:
    view = Text("abc", list("abcde"), lambda module, *given: module(*given), lambda *_: torch.tensor(0), "ab")
    return Machine("letters", Letters(**options).eval(), view)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}], ids=["one layer", "two"])
def test_only_what_may_have_changed_is_read_again(options: dict[str, Any]) -> None:
    """And the numbers are those of a machine that reads all of it."""
    first = {"cell": 0, "name": "f", "value": 0.5, "start": 2}
    late, edit = {**first, "name": "o", "start": 4}, {**first, "name": "c", "value": 2.0, "unit": 1, "stop": 3}
    requests: list[tuple[str, list[Any], int]] = [
        ("abcabc", [], 6), ("abcabca", [], 1), ("abcabca", [late], 3), ("abcabca", [first, late], 5),
        ("abcbbca", [first, late], 4), ("abcbbca", [late, first], 5), ("abcbbca", [edit, late], 5), ("bbc", [], 3),
        ("abcabca", [], 5), ("abc", [], 1),
    ]  # fmt: skip
    machine = letters(**options)
    for text, holds, read in requests:
        request = {"text": text, "holds": holds, "cell": 0, "name": "c"}
        found, true = machine.answer(request), letters(**options).answer(request)
        assert machine.module.read[-1] == read
        assert found.pop("values")["data"] == true.pop("values")["data"] and found == true
        step = len(text) - 1
        mine, theirs = (m.look({**request, "step": step}) for m in (machine, letters(**options)))
        assert mine == theirs


def test_a_text_that_begins_before_its_first_letter() -> None:
    view = Text("abc", list("abc"), lambda *_: None, lambda *_: torch.tensor(0), "", begins="□")
    for earlier, text, steps in (("ab", "", 0), ("", "a", 1), ("ab", "ab", 2), ("ab", "abc", 3), ("ab", "bb", 1)):
        assert view.shared({"choice": "", "text": earlier}, {"choice": "", "text": text}) == steps


def test_what_reads_backward_reads_all_of_it_again() -> None:
    machine = letters(bidirectional=True)
    for text in ("abcabc", "abcabb"):
        machine.answer({"text": text})
        assert machine.module.read[-1] == 6


def test_a_saved_session_holds_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["play", "lstm", "--save", str(tmp_path / "lstm.html")]) == 0
    page = (tmp_path / "lstm.html").read_text(encoding="utf-8")
    assert "written: " in capsys.readouterr().out
    assert not re.search(r'(?:href|src)="(?!data:|#)', page) and "http://" not in page.replace("http://www.w3.org", "")
    [text] = re.findall(r'<script type="application/json" id="session">(.*?)</script>', page, re.DOTALL)
    [run] = json.loads(text)["runs"]
    machine = untrained.machine("lstm")
    with torch.no_grad():
        [true] = machine.module.layer.record(torch.tensor(run["about"]["view"]["given"]["rows"])[:, None])
    [cell] = run["cells"]
    for name, values in true.items():
        np.testing.assert_allclose(unpacked(cell["names"][name]), values[:, 0].numpy(), atol=0.01)
    names = run["about"]["cells"][0]["variables"]
    np.testing.assert_allclose(unpacked(cell["lines"][names.index("f")]), true["f"][:, 0].numpy(), atol=0.01)


def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, words in (
            (["lstn"], "lstn: no run's folder, and no cell (no cell is named"),
            (["lstm", "gru", "rnn"], "one model, or two side by side"),
            (["lstm", "--text", "x"], "--text goes with --save"),
            (["lstm", "--save", str(tmp_path / "none" / "x.html")], "--save"),
            (["lstm", "--port", str(port)], f"--port {port}: "),
            (["lstm", "--port", "99999"], "--port 99999: "),
            (["lstm", "--host", "192.0.2.1"], "--host 192.0.2.1"),
            ([str(tmp_path)], "no run there"),
        ):
            assert cli.main(["play", *arguments]) == 1, arguments
            said = capsys.readouterr().err
            assert said.startswith("error: ") and words in said and said.count("\n") == 1, said


def test_a_cell_of_ones_own_can_be_played(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import tanh\nfrom rnnzoo import Cell, gate\n\n\nclass Mine(Cell):\n    W, U, b = gate()\n\n"
        "    def step(self, x, h):\n        return tanh(x @ self.W + h @ self.U + self.b)\n"
    )
    machine = untrained.machine(f"{path}:Mine", 3, 4)
    assert machine.answer({"rows": ROWS})["names"] == ["h"]


def test_modules_without_recurrence_are_refused() -> None:
    with pytest.raises(UserError, match="no recurrent layer"):
        record(nn.Linear(2, 2), lambda module: module(torch.zeros(2)))
