"""The page of `rnnzoo play` as a person uses it, in Chromium: from a server, and saved as a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from served import serving

from rnnzoo.explain import gallery
from rnnzoo.play import save, untrained
from rnnzoo.play.machine import Machine
from rnnzoo.tasks.char_lm import Characters, CharLM
from rnnzoo.tasks.imdb import Sentiment
from rnnzoo.tasks.memory import Copies, Copy
from rnnzoo.tasks.sine import Sine

TEXT = 'say "hello there" and (then) go on\n' * 20
REFUSED = re.compile(r"Failed to load resource: the server responded with a status of 400")
"""What Chromium itself says of an input that was refused, as some here are meant to be."""

WORDS = ["<padding>", "<unknown>", "a", "good", "bad", "film", "is", "this"]


def character_model(cell: str = "lstm") -> Machine:
    torch.manual_seed(0)
    alphabet = "".join(sorted(set(TEXT)))
    module = CharLM(alphabet=alphabet, model={"cell": cell, "hidden_size": 8}, embedding=4).eval()
    data = Characters()
    data.val = torch.tensor([[alphabet.index(character) for character in TEXT]])
    return Machine(f"char_lm · {cell}", module, module.view(lambda: data))


def of(module: Any, title: str, data: Any = None) -> Machine:
    return Machine(title, module.eval(), module.view(lambda: data))


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """A server for each kind of page."""
    torch.manual_seed(0)
    model = {"cell": "gru", "hidden_size": 6}
    review = Sentiment(model={**model, "bidirectional": True}, words=WORDS, maxlen=50, embedding=4)
    copies = Copies(T=5)
    copies.setup()
    with (
        serving(untrained.machine("lstm", 8, 24)) as cell,
        serving(character_model()) as text,
        serving(character_model(), character_model("gru")) as two,
        serving(of(Sine(model=model, step=0.5, prefix=10, horizon=20), "sine")) as sine,
        serving(of(review, "imdb")) as words,
        serving(of(Copy(model=model), "copy", copies)) as copy,
    ):
        yield {"cell": cell, "text": text, "two": two, "sine": sine, "words": words, "copy": copy}


@pytest.fixture
def visit(browser: Any, ports: dict[str, int]) -> Iterator[Callable[..., Any]]:
    """`visit("text", width=400)` opens a page; at the end nothing may have been said on the console."""
    contexts, said = [], []

    def visit(name: str | Path, width: int = 1000, policed: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            offline=isinstance(name, Path), bypass_csp=not policed,  # for what waits evaluates text
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(name.as_uri() if isinstance(name, Path) else f"http://127.0.0.1:{ports[name]}/")
        page.locator(".map").first.wait_for()
        page.locator(".drawing .bands path").first.wait_for(state="attached")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [line for line in said if not REFUSED.match(line)] == []


def step(page: Any) -> int:
    return int(re.findall(r"step (\d+) of", page.locator(".transport output").inner_text())[0])


def colours(page: Any, wire: int) -> list[float]:
    """How full the colours of the first strip on a value's lines are, negative where they are those below zero."""
    found: list[float] = page.evaluate(
        """wire => {
            const line = document.querySelector(`.drawing svg > path[data-wire="${wire}"]`);
            const near = (a, b) => Math.hypot(a.x - b.x, a.y - b.y) < 0.2;
            let at = line.getPointAtLength(0);
            const strip = [];
            for (const band of document.querySelectorAll('.drawing .bands path')) {
                if (!near(band.getPointAtLength(0), at)) continue;
                strip.push(band.getAttribute('stroke-opacity') * (band.matches('.negative') ? -1 : 1));
                at = band.getPointAtLength(band.getTotalLength());
            }
            return strip;
        }""",
        wire,
    )
    return found


def numbers(page: Any) -> str:
    text: str = page.locator(".numbers .note").inner_text()
    return text


def name_button(page: Any, name: str) -> Any:
    return page.locator(".name", has_text=re.compile(rf"^{name}$"))


def test_time_can_be_dragged_played_and_stepped(visit: Callable[..., Any]) -> None:
    page = visit("cell")
    assert step(page) == 1
    page.get_by_role("button", name="One step forward").click()
    assert step(page) == 2
    page.wait_for_function("step => document.querySelector('.marker').style.left.startsWith(step)", arg="6.")
    page.locator("body").press("End")
    assert step(page) == 24
    page.locator("body").press("ArrowLeft")
    assert step(page) == 23
    page.get_by_role("slider", name="Time step").press("Home")
    assert step(page) == 1
    box = page.locator(".map").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.52, box["y"] + 5, steps=4)
    page.mouse.up()
    assert step(page) == 13
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("parseInt(document.querySelector('.transport output').textContent.match(/\\d+/)) >= 15")
    page.get_by_role("button", name="Pause").click()


def test_lines_have_the_colours_of_their_values(visit: Callable[..., Any]) -> None:
    """Those of the forget gate and of the new memory at the tenth step, a piece for each of the first units."""
    machine = untrained.machine("lstm", 8, 24)
    about = machine.about()
    with torch.no_grad():
        [true] = machine.module.layer.record(torch.tensor(about["view"]["given"]["rows"])[:, None])
    page = visit("cell")
    page.get_by_role("slider", name="Time step").fill("9")
    page.wait_for_function("document.querySelector('.numbers .note').textContent.includes('h: 8 numbers, −')")
    for name in ("f", "c"):
        values = true[name][9, 0]
        expected = values.sign() * values.abs().clamp(max=1) ** 0.6
        shown = colours(page, about["cells"][0]["variables"].index(name))
        assert shown[:6] == pytest.approx(expected[:6].tolist(), abs=0.011), name


def test_gates_are_named_and_opened_into_bars(visit: Callable[..., Any]) -> None:
    page = visit("cell")
    name_button(page, "f").hover()
    page.wait_for_function("document.querySelector('.numbers .note').textContent.startsWith('f: 8 numbers')")
    assert page.locator(".drawing path.lit").count() >= 1
    page.locator(".drawing .hits path").nth(3).hover(force=True)
    page.wait_for_function("!document.querySelector('.numbers .note').textContent.startsWith('f: ')")
    assert "mean" in numbers(page)


def test_a_gate_is_held_and_let_go(visit: Callable[..., Any]) -> None:
    page = visit("cell")
    page.locator("body").press("End")
    page.get_by_label("Show").select_option("f")
    page.get_by_label("at", exact=True).fill("0.25")
    page.get_by_label("when").select_option("all")
    page.get_by_role("button", name="Hold", exact=True).click()
    page.get_by_text("f held at 0.25").wait_for()
    page.wait_for_function("document.querySelector('.numbers .note').textContent.includes('0.25 to 0.25, mean 0.25')")
    page.get_by_label("only what the holds change").check()
    page.get_by_role("button", name="let go").click()
    page.wait_for_function("!document.querySelector('.numbers .note').textContent.includes('0.25 to 0.25')")


def test_a_state_is_edited_at_one_step(visit: Callable[..., Any]) -> None:
    page = visit("cell")
    for _ in range(4):
        page.locator("body").press("ArrowRight")
    page.get_by_label("Show").select_option("c")
    page.get_by_role("combobox", name="Unit", exact=True).select_option("3")
    page.get_by_label("at", exact=True).fill("-5")
    page.get_by_label("when").select_option("now")
    page.get_by_role("button", name="Hold", exact=True).click()
    page.get_by_text("c, unit 3, held at −5.00 at step 5 only").wait_for()
    page.wait_for_function("document.querySelector('.numbers .note').textContent.includes('unit 3: −5.00')")


def test_the_page_keeps_to_its_own_policy(visit: Callable[..., Any]) -> None:
    """Nothing that it loads, runs or styles is refused by the policy that it comes with."""
    page = visit("text", policed=True)
    page.locator("body").press("End")
    page.get_by_role("button", name="Go on").click()
    page.locator(".text span").nth(8).wait_for()


def test_an_input_is_drawn(visit: Callable[..., Any]) -> None:
    page = visit("cell")
    before = page.locator(".plot .given").get_attribute("points")
    box = page.locator(".plot").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 150, steps=8)
    page.mouse.up()
    page.wait_for_function(
        "before => document.querySelector('.plot .given').getAttribute('points') !== before", arg=before
    )
    page.get_by_label("Draw, or take").select_option("impulse")
    page.wait_for_function("document.querySelector('.transport output').textContent.includes('of 24')")


def test_a_text_goes_on_and_takes_another_road(visit: Callable[..., Any]) -> None:
    page = visit("text")
    area = page.get_by_label("Text", exact=True)
    area.fill("say he")
    page.wait_for_function("document.querySelectorAll('.text span').length === 6")
    assert step(page) == 6 and page.locator(".likely button").count() == 5
    shares = page.locator(".likely button").evaluate_all("all => all.map(each => parseFloat(each.dataset.share))")
    assert shares == sorted(shares, reverse=True)
    page.get_by_label("Characters").fill("12")
    page.get_by_role("button", name="Go on").click()
    page.wait_for_function("document.querySelectorAll('.text span').length === 18")
    page.get_by_role("button", name="Go on").wait_for()
    written = area.input_value()
    assert written.startswith("say he") and len(written) == 18
    page.locator(".text span").nth(5).click()
    assert step(page) == 6
    other = page.locator(".likely button").nth(4)
    symbol = other.inner_text()
    other.click()
    page.wait_for_function("document.querySelectorAll('.text span').length === 7")
    assert area.input_value() == "say he" + {"·": " ", "↵": "\n"}.get(symbol, symbol)
    area.fill("say héllo")
    page.get_by_text("the model has never seen 'é'").wait_for()
    area.fill("say hello")
    page.wait_for_function("document.querySelectorAll('.text span').length === 9")
    assert page.locator("#status").inner_text() == ""


def test_text_is_coloured_by_a_unit_that_tracks_something(visit: Callable[..., Any]) -> None:
    page = visit("text")
    page.get_by_role("button", name="What do units track?").click()
    page.locator(".tracks button").first.wait_for()
    assert "quotes:" in page.locator(".tracks").inner_text()
    chip = page.locator(".tracks button").first
    unit = chip.inner_text().split(" ")[0]
    chip.click()
    page.wait_for_function(
        "unit => [...document.querySelectorAll('select')].some(each => each.value === unit)", arg=unit
    )
    assert "Unit " + unit in page.locator(".panel > .note").first.inner_text()
    page.get_by_label("at", exact=True).fill("1")
    page.get_by_role("button", name="Hold", exact=True).click()
    page.get_by_text(f"h, unit {unit}, held at 1.00").wait_for()
    page.get_by_label("Characters").fill("3")
    page.get_by_role("button", name="Go on").click()  # with the unit held
    page.wait_for_function("document.querySelectorAll('.text span').length >= 6")


def test_two_models_keep_step(visit: Callable[..., Any]) -> None:
    page = visit("two", width=1300)
    page.get_by_label("Text", exact=True).fill("hello")
    page.wait_for_function("document.querySelectorAll('.text span').length === 5")
    assert page.locator(".likely").count() == 2 and page.locator(".panel").count() == 2
    markers = page.locator(".marker")
    page.get_by_role("button", name="To the beginning").click()
    places = markers.evaluate_all("all => all.map(each => each.style.left)")
    assert places == ["10%", "10%"]
    assert page.locator(".panel h2").all_inner_texts() == ["char_lm · lstm", "char_lm · gru"]


def test_a_wave_is_drawn_and_a_file_dropped(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit("sine")
    assert page.locator(".plot .following").count() == 1 and page.locator(".plot .truth").count() == 1
    box = page.locator(".plot").bounding_box()
    page.mouse.click(box["x"] + 80, box["y"] + 60)
    page.wait_for_function("document.querySelectorAll('.plot .truth').length === 0")
    path = tmp_path / "wave.csv"
    path.write_text("date,value\n" + "\n".join(f"2026-01-{1 + k:02},{(-1) ** k * 0.5}" for k in range(30)))
    page.locator("input[type=file]").set_input_files(path)
    page.wait_for_function("document.querySelectorAll('.plot .truth').length === 1")
    assert page.get_by_label("Rows", exact=True).input_value() == "10"  # 20 of the 30 are kept back
    path.write_text("value\n1\nx\n")
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_text("wave.csv: row 2 holds what is no number").wait_for()


def test_a_review_is_typed(visit: Callable[..., Any]) -> None:
    page = visit("words")
    page.get_by_label("Review").fill("this is a good film")
    page.wait_for_function("document.querySelectorAll('.words span').length === 5")
    assert "P(positive)" in page.locator(".meter").inner_text()
    for way in ("running", "gradient", "without"):
        before = page.locator(".words").inner_html()
        page.get_by_label("Words coloured by").select_option(way)
        page.wait_for_function("before => document.querySelector('.words').innerHTML !== before", arg=before)
    page.get_by_label("Layer").select_option("1")
    page.get_by_role("button", name="One step back").click()
    assert step(page) == 4


def test_examples_and_their_answers(visit: Callable[..., Any]) -> None:
    page = visit("copy")
    assert page.locator(".lines tr").count() == 3
    page.get_by_label("Example").fill("7")
    page.get_by_text("of 3,200").wait_for()
    page.get_by_label("Example").fill("99999")
    page.get_by_text("there are 3,200 examples").wait_for()


def test_the_keyboard_is_enough(visit: Callable[..., Any]) -> None:
    page = visit("cell")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
        )
    assert {"Time step", "One step forward", "Play", "Hold"} <= {text.strip() for text in reached}
    name_button(page, "o").focus()
    page.wait_for_function("document.querySelector('.numbers .note').textContent.startsWith('o: ')")


@pytest.mark.parametrize("name", ["cell", "text", "two", "sine", "words", "copy"])
def test_narrow_screens_and_both_colours(name: str, visit: Callable[..., Any]) -> None:
    page = visit(name, width=400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for scheme in ("dark", "light"):
        before = page.evaluate("document.querySelector('.map').toDataURL()")
        page.emulate_media(color_scheme=scheme)
        paper, ink = (
            page.evaluate(f"getComputedStyle(document.body).{key}.match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b)")
            for key in ("backgroundColor", "color")
        )
        assert int(paper) < 200 < 500 < int(ink) if scheme == "dark" else int(ink) < 200 < 500 < int(paper)
        page.wait_for_function("before => document.querySelector('.map').toDataURL() !== before", arg=before)


def test_a_saved_session_is_replayed(visit: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "session.html"
    path.write_text(save.page([character_model()], {"text": "hello there"}), encoding="utf-8")
    page = visit(path)
    assert page.locator(".text span").count() == 11 and page.locator("textarea, .hold").count() == 0
    page.locator("body").press("End")
    assert step(page) == 11 and page.locator(".likely button").count() == 5
    name_button(page, "f").hover()
    page.wait_for_function("document.querySelector('.numbers .note').textContent.startsWith('f: 8 numbers')")
    page.get_by_label("Show").select_option("o")
    page.wait_for_function("document.querySelector('.panel > .note').textContent.includes('units of o')")


def test_the_gallerys_pages_move(visit: Callable[..., Any], tmp_path: Path) -> None:
    assert gallery.FIRST == ("rnn", "lstm", "gru")
    path = tmp_path / "gru_play.html"
    path.write_text(save.page([untrained.machine("gru", *gallery.PLAYED)], {}), encoding="utf-8")
    assert path.stat().st_size < 150_000
    page = visit(path, width=400)
    page.locator("body").press("End")
    assert step(page) == 24 and page.evaluate("document.documentElement.scrollWidth") <= 400
