"""The gallery as a person sees it, in Chromium; and the cards of single cells, in all their forms."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnzoo import Recurrent, UserError, cli, get, list_cells, load, registry
from rnnzoo.explain import gallery
from rnnzoo.explain.card import Card, html, in_notebook, latex, text
from rnnzoo.explain.notation import MathML
from rnnzoo.explain.rounds import lines

PAGES = ("lstm", "mlstm", "ltc")
"""A classic, one with a matrix memory, and the one with the most equations."""

ESSAYS = [essay.file.removesuffix(".html") for essay in gallery.essays()]
TRANSLATED = ["index", *ESSAYS]
"""Pages that there are in every language."""

OWN = '''\
from torch import Tensor, sigmoid

from rnnzoo import Cell, gate, register


@register("own_cell", source="me 2026, <i>a draft</i>, arXiv:2601.00001")
class Own(Cell):
    """A cell of one's own <b>& more</b>."""

    slope: float = 2.0
    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return sigmoid(self.slope * (x @ self.W + h @ self.U + self.b))


@register("branching", source="me")
class Branching(Cell):
    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        if h.sum() > 0:
            return h
        return x @ self.W + h @ self.U + self.b
'''
RESULTS = """\
# Results

## Speed of `my` run

| cell | seconds | size |
|---|---|---|
| own_cell | 1.5 | <b>4</b> |
| `lstm` | 2.5 | 8 |
| lstm | 3.5 | 9 |

| task | seconds |
|---|---|
| own_cell | 99 |
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The gallery of the whole zoo and two cells of one's own, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "own.py").write_text(OWN)
    (folder / "results.md").write_text(RESULTS)
    list_cells()
    entries, loaded = dict(registry._entries), dict(registry._loaded)
    load(str(folder / "own.py"))
    left_out = gallery.build(folder / "out", folder / "results.md")
    assert list(left_out) == ["branching"] and "branches on data" in left_out["branching"]
    whole = dict(registry._entries)
    for name in {*whole} - {*PAGES, "gru", "rnn"}:  # the cells' pages are the same
        del registry._entries[name]
    gallery.build(folder / "out" / "ja", language="ja")
    registry._entries.update(whole)
    yield folder / "out"
    for kept, before in ((registry._entries, entries), (registry._loaded, loaded)):
        kept.clear()
        kept.update(before)  # type: ignore[arg-type]


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Callable[..., Any]]:
    """`visit("lstm", width=400, dark=True)` opens a page; at the end nothing may have been said on the console."""
    contexts, said = [], []

    def visit(name: str, width: int = 1000, dark: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(f"{request.url}: {request.failure}"))
        page.goto((site / f"{name}.html").as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [line for line in said if "ERR_ABORTED" not in line] == []  # a picture still loading when the page was left


def visible(page: Any) -> list[str]:
    return page.locator(".cards > li:visible").evaluate_all("cards => cards.map(card => card.dataset.name)")


def test_the_index_shows_all_cells_with_a_picture_each(visit: Callable[..., Any], site: Path) -> None:
    page = visit("index")
    assert sorted(visible(page)) == sorted({*list_cells(), "own_cell"} - {"branching"})
    assert visible(page)[:4] == ["rnn", "lstm", "gru", "lstm_1997"]
    assert page.locator("#count").inner_text() == f"{len(list_cells()) - 1} cells"
    for name in ("antisymmetric", "own_cell"):
        image = page.locator(f'li[data-name="{name}"] img')
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete", arg=image.element_handle())
        assert image.evaluate("image => image.naturalWidth") > 100
        assert image.get_attribute("alt") == f"Diagram of {name}"


def test_search_and_filters(visit: Callable[..., Any]) -> None:
    page = visit("index")
    page.get_by_label("Search").fill("hochreiter")
    assert visible(page) == ["lstm_1997"]
    assert page.locator("#count").inner_text() == "1 cell"
    page.get_by_label("Search").fill("LSTM forget")
    assert "lstm" in visible(page) and "gru" not in visible(page)
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("parseInt(document.getElementById('count').textContent) > 100")
    page.get_by_label("Family").select_option("gru")
    assert sorted(visible(page)) == [name for name in list_cells() if get(name).__module__ == "rnnzoo.cells.gru"]
    page.get_by_label("Gates").select_option("2")
    assert {"gru", "mut1"} <= {*visible(page)} and "mgu" not in visible(page)
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Kind").select_option("parallel")
    assert "min_gru" in visible(page) and "lstm" not in visible(page)
    page.get_by_label("Kind").select_option("")
    page.get_by_label("Since").fill("2024")
    assert "own_cell" in visible(page) and "delta_net" in visible(page) and "gru" not in visible(page)
    page.get_by_label("Until").fill("2024")
    assert "own_cell" not in visible(page)
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Parameters up to").fill("25000")
    assert "rnn" in visible(page) and "lstm" not in visible(page)
    page.get_by_label("Parameters up to").fill("")
    page.get_by_label("Sort by").select_option("year")
    assert visible(page)[:2] == ["rnn", "lstm_1997"]


def test_the_keyboard_is_enough(visit: Callable[..., Any]) -> None:
    page = visit("index")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("/")
    page.keyboard.type("janet")
    page.keyboard.press("Enter")
    page.wait_for_url("**/janet.html")


@pytest.mark.parametrize("name", PAGES)
def test_a_cells_page(name: str, visit: Callable[..., Any]) -> None:
    page = visit(name)
    card = Card(registry.entry(name))
    assert page.locator("h1").inner_text() == name
    drawn = page.locator("#equations .equations math")
    assert drawn.count() == len(lines(card.reading, MathML()))
    for k in range(drawn.count()):
        box = drawn.nth(k).bounding_box()
        assert box["width"] > 60 and box["height"] > 10
    diagram = page.locator("#diagram svg").bounding_box()
    assert diagram["width"] > 400 and diagram["height"] > 200
    assert page.locator("#diagram svg text").count() > 5 and page.locator("#diagram svg path").count() > 5
    assert page.locator("#flow polyline").count() == 1
    assert "def step(self" in page.locator("#code").inner_text()
    assert page.locator("#code .k, #code .kn").count() > 1  # keywords in colour
    page.locator("#shapes summary").click()
    assert page.locator("#shapes tbody tr").count() == len(card.rows) + 4
    assert page.locator("#relatives h3").count() == 3
    assert page.locator("#relatives .differs").count() > 0
    page.locator("#relatives h3 a").first.click()
    assert page.locator("h1").inner_text() != name


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    "name", [*TRANSLATED, *PAGES, "own_cell", "phased_lstm", *(f"ja/{name}" for name in TRANSLATED), "ja/lstm"]
)
def test_narrow_screens_and_both_colours(name: str, dark: bool, visit: Callable[..., Any]) -> None:
    page = visit(name, width=400, dark=dark)
    if name in PAGES:
        page.locator("#shapes summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    paper, ink = (
        page.evaluate(f"getComputedStyle(document.body).{key}.match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b)")
        for key in ("backgroundColor", "color")
    )
    assert (int(paper) < 200 < 500 < int(ink)) if dark else (int(ink) < 200 < 500 < int(paper))
    images = page.locator("svg[role=img], img").evaluate_all(
        "all => all.map(e => e.alt || e.getAttribute('aria-label') || e.querySelector('title')?.textContent || '')"
    )
    assert all(images)


def test_the_japanese_edition(visit: Callable[..., Any]) -> None:
    page = visit("ja/index")
    assert page.locator("html").get_attribute("lang") == "ja"
    assert page.locator("#count").inner_text() == "5 種のセル"
    page.get_by_label("検索").fill("hochreiter")
    assert page.locator("#count").inner_text() == "0 種のセル" and visible(page) == []
    page.get_by_role("button", name="すべて表示").click()
    page.wait_for_function("document.getElementById('count').textContent.startsWith('5')")
    page.get_by_label("種類").select_option(label="逐次")
    assert "lstm" in visible(page)
    page.get_by_role("link", name="勾配はなぜ消失するのか、測ってみる").click()
    assert page.locator("h1").inner_text() == "勾配はなぜ消失するのか、測ってみる"
    page.get_by_role("link", name="時定数としてのゲート →").click()
    assert page.locator("h1").inner_text() == "時定数としてのゲート"
    assert visit("ja/lstm").locator("main [lang=en] h1").inner_text() == "lstm"


def test_essays_follow_one_another(visit: Callable[..., Any]) -> None:
    page = visit("index")
    page.locator("#essays a").first.click()
    seen = [page.locator("h1").inner_text()]
    while page.locator("a[rel=next]").count():
        page.locator("a[rel=next]").click()
        seen.append(page.locator("h1").inner_text())
    assert len(set(seen)) == len(seen) == len(ESSAYS)


def test_own_cells_and_results(visit: Callable[..., Any]) -> None:
    page = visit("own_cell")
    assert page.locator(".lead").inner_text() == "A cell of one's own <b>& more</b>."
    assert page.locator('a[href="https://arxiv.org/abs/2601.00001"]').inner_text() == "arXiv:2601.00001"
    assert "<i>a draft</i>" in page.locator(".facts").inner_text()
    table = page.locator("#results")
    assert "Speed of my run" in table.inner_text() and "<b>4</b>" in table.inner_text()
    assert "99" not in table.inner_text()
    assert page.locator("#relatives h3").count() == 3
    lstm = visit("lstm")
    assert lstm.locator("#results tbody tr").count() == 2
    assert visit("gru").locator("#results").count() == 0


def test_every_page_is_whole(site: Path) -> None:
    for name in {*list_cells(), "own_cell"} - {"branching"}:
        page = (site / f"{name}.html").read_text(encoding="utf-8")
        assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
        assert "{{" not in page and "None" not in page.split('id="code"')[0]
        ET.fromstring((site / "diagrams" / f"{name}.svg").read_text(encoding="utf-8"))
        assert "http://" not in page.replace("http://www.w3.org", "")


def test_where_a_gallery_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        gallery.build(tmp_path / "mine")
    with pytest.raises(UserError, match="is a file"):
        gallery.build(tmp_path / "mine" / "thesis.txt")
    with pytest.raises(UserError, match=r"--results .*none.md"):
        gallery.build(tmp_path / "new", tmp_path / "none.md")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["gru", "scrn", "clockwork"])
def test_the_forms_of_a_card(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    card = Card(registry.entry(name))
    for form, made in (("text", text), ("latex", latex), ("html", html)):
        assert cli.main(["show", name, f"--{form}"]) == 0
        assert capsys.readouterr().out == made(card) + "\n"
    assert cli.main(["show", name, "--svg"]) == 0
    ET.fromstring(capsys.readouterr().out)
    assert cli.main(["show", name, "--png", str(tmp_path / "cell.png")]) == 0
    assert (tmp_path / "cell.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["show", name, "--png", str(tmp_path / "none" / "cell.png")]) == 1
    assert "--png" in capsys.readouterr().err


def test_equations_for_terminals_and_papers() -> None:
    scrn = Card(registry.entry("scrn"))
    assert text(scrn).splitlines()[0] == "s_t = (1 − α) B x_t + α s_{t−1}"
    assert text(scrn).splitlines()[-1] == "with n_{context} = 40, α = 0.95"
    gru = latex(Card(registry.entry("gru"))).splitlines()
    assert gru[1] == r"\begin{align}" and gru[-1] == r"\end{align}"
    assert gru[-2] == r"  h_{t} &= z_{t} \odot h_{t-1} + \left( 1 - z_{t} \right) \odot n_{t}"


def test_notebooks_show_a_cells_card() -> None:
    from IPython.core.interactiveshell import InteractiveShell

    try:
        shell = InteractiveShell.instance()
        shell.run_cell("import importlib, rnnzoo; importlib.reload(rnnzoo); from rnnzoo import get")
        lstm, _ = shell.display_formatter.format(get("lstm"))
        layer = Recurrent("lstm", 4, 8, 2, bidirectional=True)
        stack, _ = shell.display_formatter.format(layer)
        instance, _ = shell.display_formatter.format(Recurrent("lstm", 5, 7).cells[0])
        other, _ = shell.display_formatter.format(dict)
    finally:
        InteractiveShell.clear_instance()
    assert "iframe" in lstm["text/html"] and "&lt;math" in lstm["text/html"]
    assert "text/html" not in other
    assert "7 × 5" in instance["text/html"]
    # an LSTM's parameters: four gates of inputs, states and a bias
    assert f"Recurrent, {2 * 4 * 8 * (4 + 8 + 1) + 2 * 4 * 8 * (16 + 8 + 1):,} parameters" in stack["text/html"]
    assert "2 backward" in stack["text/html"] and "16 → 8" in stack["text/html"] and "iframe" in stack["text/html"]
    assert "is not to be had" in str(in_notebook(_without_source()))


def _without_source() -> type:
    scope: dict[str, Any] = {}
    exec(OWN.split("@register")[0] + OWN[OWN.index("class Branching") :], scope)
    return scope["Branching"]
