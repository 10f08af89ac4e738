"""The pictures of the README, made anew: `python docs/make_images.py`, or some of them: `... make_images.py speed`.

`gallery` and `play` need Chromium; `closed_loop` and `play` train for a minute; `speed` draws the table of RESULTS.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
LARGEST = 300_000
"""Bytes of all pictures together: a README must be there at once."""


def rnnzoo(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "rnnzoo", *arguments], cwd=ROOT, check=True)


def diagram(png: Path) -> None:
    """One step of an LSTM, as `rnnzoo show lstm --png` draws it."""
    rnnzoo("show", "lstm", "--png", str(png))


def closed_loop(png: Path) -> None:
    """What the first run leaves: a wave that goes on from predictions alone."""
    with tempfile.TemporaryDirectory() as folder:
        rnnzoo("train", "model=gru", "task=sine", "seed=1", f"hydra.run.dir={folder}/run")
        shutil.copy(f"{folder}/run/plots/closed_loop.png", png)


@contextmanager
def visiting(address: str, width: int, height: int) -> Iterator[Any]:
    """A page in a browser."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": width, "height": height})
        page.goto(address)
        yield page
        opened.close()


def gallery(png: Path) -> None:
    """The gallery's first page in a browser."""
    site = ROOT / "docs" / "gallery"
    if not (site / "index.html").is_file():
        rnnzoo("gallery", str(site))
    with visiting((site / "index.html").as_uri(), 1200, 880) as page:
        page.screenshot(path=png)


def play(png: Path) -> None:
    """A text that an LSTM goes on with, and its diagram in the midst of it."""
    with tempfile.TemporaryDirectory() as folder:
        small = ("model.hidden_size=64", "trainer.max_epochs=4", "seed=1", f"hydra.run.dir={folder}/run")
        rnnzoo("train", "model=lstm", "task=char_lm", *small)
        command = [sys.executable, "-m", "rnnzoo", "play", "run", "--port", "8766"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split()[1]
                with visiting(address, 1100, 1240) as page:
                    page.get_by_label("Text", exact=True).fill("The following ")
                    page.get_by_label("Characters").fill("100")
                    page.get_by_role("button", name="Go on").click()
                    page.locator(".text span").nth(113).wait_for()
                    page.get_by_role("button", name="What do units track?").click()
                    page.locator(".tracks button").first.click()
                    page.wait_for_timeout(500)
                    page.locator(".text span").nth(60).click()
                    page.locator(".name", has_text=re.compile("^f$")).click()
                    page.wait_for_timeout(500)
                    page.screenshot(path=png)
            finally:
                server.terminate()


def measured() -> dict[str, dict[str, list[float]]]:
    """Of each cell, the ratios to each rival over all sizes, from the table of RESULTS.md headed "Speed"."""
    section = (ROOT / "RESULTS.md").read_text(encoding="utf-8").partition("### Speed")[2].partition("\n###")[0]
    rows = [[field.strip() for field in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", section, re.M)]
    heading, *rows = (row for row in rows if not set("".join(row)) <= set("-: "))
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for title, text in zip(heading, row):
            if title.startswith("÷") and text:
                found.setdefault(row[0], {}).setdefault(title.removeprefix("÷ "), []).append(float(text))
    return found


def speed(png: Path) -> None:
    """Forward and backward pass beside the alternatives: the geometric mean over the sizes, and each size as a dot."""
    rivals = {"loop": "plain PyTorch loop", "torch": "torch.nn", "torchrecurrent": "torchrecurrent"}
    colours = dict(zip(rivals, ("C0", "C1", "C2")))
    found = dict(sorted(measured().items()))
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for place, ratios in enumerate(found.values()):
        for k, (rival, values) in enumerate(sorted(ratios.items())):
            height, at = 0.8 / len(ratios), place - 0.4 + 0.8 * (k + 0.5) / len(ratios)
            label = None if rival in named else f"÷ {rivals[rival]}"
            axes.barh(at, geometric_mean(values), height * 0.9, color=colours[rival], alpha=0.75, label=label)
            axes.plot(values, [at] * len(values), ".", color="0.2", markersize=4)
            named.add(rival)
    axes.axvline(1, color="0.3", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    largest = max(max(values) for ratios in found.values() for values in ratios.values())
    axes.set(
        xlim=(0, 1.05 * max(largest, 1)), xlabel="time of rnnzoo ÷ time of the alternative (below 1: rnnzoo is faster)"
    )
    axes.set_title("forward and backward pass on two CPU cores, five sizes", fontsize=11)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=120)


PICTURES: dict[str, Callable[[Path], None]] = {
    "diagram": diagram, "closed_loop": closed_loop, "gallery": gallery, "play": play, "speed": speed,
}  # fmt: skip


def main(names: list[str]) -> None:
    matplotlib.rcParams["font.size"] = 10
    IMAGES.mkdir(exist_ok=True)
    for name in names or PICTURES:
        png = IMAGES / f"{name}.png"
        PICTURES[name](png)
        with Image.open(png) as image:
            image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(png, optimize=True)
        print(f"written: {png.relative_to(ROOT)}, {png.stat().st_size:,} bytes")
    if (size := sum(path.stat().st_size for path in IMAGES.glob("*.png"))) > LARGEST:
        sys.exit(f"all pictures have {size:,} bytes; {LARGEST:,} are allowed")


if __name__ == "__main__":
    main(sys.argv[1:])
