"""The computation of one step as a picture: old states enter at the left, new ones leave at the right, x comes from
below and the output leaves on top.

Blue lines are products with a weight matrix, or with a weight element by element where the label ends in ⊙. Lines that
meet in + are added, in × multiplied element by element. Red lines are applications of a function. What depends on
weights alone is written, not drawn.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from rnnzoo.cell import Cell
from rnnzoo.explain.diagram_graph import Graph, Vertex, graph
from rnnzoo.explain.diagram_layout import APART, PITCH, Layout, Net, extent, layout, offsets
from rnnzoo.explain.diagram_text import SIZE, SMALL, fonts, runs, width_of
from rnnzoo.explain.equations import read
from rnnzoo.explain.expression import Expression

RADIUS, CORNER, MARGIN = 9, 7, 14
"""Of + and ×, of a line that turns, and around the picture."""

LIFT = 8
"""Of a label above its line."""

MEETING = 24
"""How wide lines take to meet in + or ×."""

LIGHT = {"ink": "#24292f", "paper": "#ffffff", "matrix": "#1558d6", "function": "#c5221f"}
DARK = {"ink": "#d8dee6", "paper": "#14181d", "matrix": "#7fb2ff", "function": "#ff8f86"}
STYLE = """
.rnnzoo-diagram{font-family:STIXGeneral,"STIX Two Text",Cambria,"Times New Roman",serif}
.rnnzoo-diagram path{fill:none;stroke:INK;stroke-width:1.5;stroke-linecap:round}
.rnnzoo-diagram text{fill:INK;stroke:none}
.rnnzoo-diagram .node{fill:PAPER;stroke:INK;stroke-width:1.5}
.rnnzoo-diagram .dot{fill:INK;stroke:none}
.rnnzoo-diagram .paper{fill:PAPER}
.rnnzoo-diagram path.arrow{fill:INK;stroke:none}
.rnnzoo-diagram path.matrix,.rnnzoo-diagram path.diagonal{stroke:MATRIX}
.rnnzoo-diagram path.function{stroke:FUNCTION}
.rnnzoo-diagram text.matrix,.rnnzoo-diagram text.diagonal{fill:MATRIX}
.rnnzoo-diagram text.function{fill:FUNCTION}
"""


def svg(cell: Cell) -> str:
    """One step of a cell as a standalone SVG that can stand in a page too.

    It follows the reader's light or dark scheme; a page sets other colours by the CSS variables `--diagram-ink`,
    `--diagram-paper`, `--diagram-matrix` and `--diagram-function`. `UserError` where a cell cannot be read as
    equations.
    """
    return Drawing(cell).svg()


def _style() -> str:
    style = STYLE
    for name in LIGHT:
        style = style.replace(name.upper(), f"var(--diagram-{name},var(--{name}))")
    schemes = [";".join(f"--{name}:{colour}" for name, colour in scheme.items()) for scheme in (LIGHT, DARK)]
    light, dark = (f".rnnzoo-diagram{{{scheme}}}" for scheme in schemes)
    return f"{light}@media(prefers-color-scheme:dark){{{dark}}}{style}"


def png(cell: Cell, path: Path | str, width: int = 1600, dark: bool = False) -> None:
    """The same as an image, `width` pixels wide. `UserError` where a cell cannot be read as equations."""
    import resvg_py  # of the extra "gallery"

    style = STYLE
    for name, colour in (DARK if dark else LIGHT).items():
        style = style.replace(name.upper(), colour)
    files = [str(fonts() / name) for name in ("STIXGeneral.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBol.ttf")]
    image = resvg_py.svg_to_bytes(
        svg_string=Drawing(cell).svg(style), width=width, skip_system_fonts=True, font_files=files
    )
    Path(path).write_bytes(image)


class Drawing:
    """Lines, circles, boxes and texts, gathered in the order in which they lie on one another.

    If it `tells`, each line has the number of its value among `wires` as `data-wire`.
    """

    def __init__(self, cell: Cell, tells: bool = False) -> None:
        self.tells, self.wires = tells, dict[Expression, int]()
        self.title = f"One step of {type(cell).__name__}"
        self.graph: Graph = graph(read(cell))
        single = (equation for equation in self.graph.equations if len(equation.targets) == 1)
        self.named = {e.value: Expression("symbol", (), e.targets[0]) for e in single if e.value.op != "symbol"}
        self.layout: Layout = layout(self.graph)
        self.lines: list[str] = []
        self.nodes: list[str] = []
        self.texts: list[str] = []
        self._set_columns()
        for column, x in zip(self.layout.columns, self.lefts):
            for vertex in column:
                self._vertex(vertex, x)
        for k, channel in enumerate(self.layout.channels):
            for net in channel:
                if net.source is not self.graph.x:
                    self._net(net, k)
        self._input()
        self._notes()

    def _set_columns(self) -> None:
        """Left and right edges of columns, and the height of the picture."""
        heights = self.layout.heights
        self.top = min(y - extent(v)[0] for v, y in heights.items()) - APART
        self.rail = max(y + extent(v)[1] for v, y in heights.items()) + 2 * APART
        self.lefts, self.rights, x = [], [], float(MARGIN)
        for column, channel in zip(self.layout.columns, self.layout.channels):
            self.lefts.append(x)
            self.rights.append(x + max((self._width(v) for v in column), default=0))
            tracks = 1 + max((net.track for net in channel if not net.is_straight), default=-1)
            x = self.rights[-1] + APART * (tracks + 1) + 4
        self.width = self.rights[-1] + MARGIN

    def _track(self, channel: int, net: Net) -> float:
        return self.rights[channel] + APART * (net.track + 1) + 2

    def _width(self, vertex: Vertex) -> float:
        if vertex.kind == "given":
            return width_of(vertex.text) + 8
        if vertex.kind == "new":
            return 22 + width_of(vertex.text)
        x = self._head_width(vertex)
        needed = x - RADIUS + 4 + width_of(vertex.addend, SMALL) if vertex.addend else x
        for k, step in enumerate(vertex.steps):
            width = self._step_width(vertex, k)
            if step.role == "sum":
                needed = x + width / 2 + 4 + width_of(step.text, SMALL)
            x += width
        return max(x, needed)

    def _head_width(self, vertex: Vertex) -> float:
        if vertex.kind in ("sum", "product"):
            return MEETING + 2 * RADIUS
        if vertex.kind == "box":
            return width_of(vertex.text) + 16 if vertex.text else max(width_of(p, SMALL) for p in vertex.ports) + 14
        return 0

    def _step_width(self, vertex: Vertex, k: int) -> float:
        step = vertex.steps[k]
        if step.role == "sum":
            return 2 * RADIUS + 10
        if step.role != "name":
            return max(width_of(step.text) + 12, 30)
        return width_of(step.text) + 10

    def _vertex(self, vertex: Vertex, x: float) -> None:
        y = self.layout.heights[vertex]
        column = vertex.layer
        if vertex.kind == "way":
            self._path(f"M{x:.1f},{y} H{self.rights[column]:.1f}", self._colour_after(vertex), vertex.carried)
            return
        if vertex.kind == "given":
            self._text(self.rights[column] - 8, y + 5, vertex.text, anchor="end")
            start = f"M{self.rights[column] - 4:.1f},{y}"
            self._path(f"{start} H{self.rights[column]:.1f}", self._colour_after(vertex), vertex.carried)
            return
        if vertex.kind == "new":
            self._path(f"M{x:.1f},{y} h8", self._colour_into(vertex.inputs[0], vertex), vertex.carried)
            self._arrow(x + 14, y, 1, 0)
            self._text(x + 20, y + 5, vertex.text)
            return
        self._head(vertex, x, y)
        x += self._head_width(vertex)
        for k, step in enumerate(vertex.steps):
            width = self._step_width(vertex, k)
            middle = x + width / 2
            if step.role in ("name", "sum"):
                before = vertex.steps[k - 1].value if k else vertex.value or vertex.inputs[0].carried
                self._path(f"M{x:.1f},{y} H{middle:.1f}", self._role(vertex, k - 1), before)
                self._path(f"M{middle:.1f},{y} h{width / 2:.1f}", self._role(vertex, k + 1), step.value)
            if step.role == "name":
                self._dot(middle, y)
                self._text(middle, y - LIFT, step.text, anchor="middle")
            elif step.role == "sum":
                self._circle("sum", middle, y, step.text)
            else:
                if k and vertex.steps[k - 1].role not in ("name", "sum"):
                    self._dot(x, y)
                self._path(f"M{x:.1f},{y} h{width:.1f}", f"{step.role} step", step.value)
                self._text(middle, y - LIFT, step.text, step.role, anchor="middle")
            x += width
        if x < self.rights[column]:
            self._path(f"M{x:.1f},{y} H{self.rights[column]:.1f}", self._colour_after(vertex), vertex.carried)

    def _role(self, vertex: Vertex, k: int) -> str:
        """What is done on the k-th piece of the line that leaves a vertex; where it only has a name, nothing."""
        if not 0 <= k < len(vertex.steps):
            return "plain"
        role = vertex.steps[k].role
        return "plain" if role in ("name", "sum") else role

    def _head(self, vertex: Vertex, x: float, y: int) -> None:
        if vertex.kind in ("sum", "product"):
            centre = x + self._head_width(vertex) - RADIUS
            for source, offset, minus in zip(vertex.inputs, self._arriving(vertex), vertex.minus):
                bend = (centre - x) / 2
                colour = self._colour_into(source, vertex)
                curve = f"c{bend:.1f},0 {bend / 2:.1f},{-offset} {centre - x:.1f},{-offset}"
                self._path(f"M{x:.1f},{y + offset} {curve}", colour, source.carried)
                if minus:
                    self._text(x + 5, y + offset - 4, "−", size=SMALL, anchor="middle")
            self._circle(vertex.kind, centre, y, vertex.addend)
        elif vertex.kind == "box":
            top, width = y + offsets(vertex)[0] - PITCH // 2 + 2, self._head_width(vertex)
            height = PITCH * len(vertex.inputs) - 4
            self.nodes.append(
                f'<rect class="node" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}" rx="5"/>'
            )
            if vertex.text:
                self._text(x + width / 2, y + 5, vertex.text, anchor="middle")
            for port, offset in zip(vertex.ports, self._arriving(vertex)):
                self._text(x + 6, y + offset + 5, port, size=SMALL)

    def _colour_into(self, source: Vertex, target: Vertex | None) -> str:
        """Of the line from a vertex to one that uses it: what is done to the value next, or else was done last."""
        role = self._colour_ahead(target)
        return role if role != "plain" else self._colour_behind(source)

    def _colour_ahead(self, target: Vertex | None) -> str:
        if target is None or target.kind not in ("line", "way"):
            return "plain"
        if target.kind == "line":
            return self._role(target, 0)
        ends = self._ends(target)
        return self._colour_ahead(ends[0]) if len(ends) == 1 else "plain"

    def _colour_behind(self, source: Vertex) -> str:
        if len(self._ends(source)) != 1:
            return "plain"
        if source.kind == "way":
            return self._colour_behind(source.inputs[0])
        return self._role(source, len(source.steps) - 1)

    def _colour_after(self, vertex: Vertex) -> str:
        """Of the line that leaves a vertex before it branches."""
        ends = self._ends(vertex)
        return self._colour_into(vertex, ends[0]) if len(ends) == 1 else "plain"

    def _ends(self, source: Vertex) -> list[Vertex | None]:
        if source.layer >= len(self.layout.channels):
            return []
        return [v for net in self.layout.channels[source.layer] if net.source is source for _, v, _ in net.ends]

    def _net(self, net: Net, channel: int) -> None:
        start, x, stop = self.rights[channel], self._track(channel, net), self._following(channel)
        trunk, value = self._colour_after(net.source), net.source.carried
        if net.is_straight:
            for y, target, _ in net.ends:
                self._path(f"M{start:.1f},{y} H{stop:.1f}", self._colour_into(net.source, target), value)
            return
        y = net.start
        self._path(f"M{start:.1f},{y} H{x - CORNER:.1f}", trunk, value)
        for direction in (1, -1):
            at = float(y)
            for end, target, _ in sorted(net.ends, key=lambda end: direction * end[0]):
                colour = self._colour_into(net.source, target)
                if end == y and direction == 1:
                    self._path(f"M{x - CORNER:.1f},{y} H{stop:.1f}", colour, value)
                if (end - y) * direction <= 0:
                    continue
                r = direction * min(CORNER, abs(end - y) / 2)
                turned = (
                    f"M{x - CORNER:.1f},{y} H{x - abs(r):.1f} q{abs(r):.1f},0 {abs(r):.1f},{r:.1f}"
                    if at == y
                    else f"M{x:.1f},{at:.1f}"
                )
                if target is None:
                    self._path(f"{turned} V{self.top - 10}", trunk, value)
                    self._arrow(x, self.top - 16, 0, -1)
                    self._text(x, self.top - 22, self.graph.output_text, anchor="middle")
                    continue
                self._path(f"{turned} V{end - r:.1f}", trunk, value)
                self._path(f"M{x:.1f},{end - r:.1f} q0,{r:.1f} {abs(r):.1f},{r:.1f} H{stop:.1f}", colour, value)
                at = end - r

    def _arriving(self, vertex: Vertex) -> list[int]:
        """At what heights, relative to its line, the inputs of a vertex come in."""
        before = self.layout.channels[vertex.layer - 1]
        found = {port: y for net in before for y, v, port in net.ends if v is vertex}
        return [found[port] - self.layout.heights[vertex] for port in range(len(found))]

    def _following(self, channel: int) -> float:
        return self.lefts[channel + 1] if channel + 1 < len(self.lefts) else self.rights[channel] + APART

    def _input(self) -> None:
        """x enters from below, runs along a rail, and rises in each channel that needs it."""
        risers = [
            (k, net) for k, channel in enumerate(self.layout.channels) for net in channel if net.source is self.graph.x
        ]
        single = sum(len(net.ends) for _, net in risers) == 1
        self.foot = self.rail + 2 * APART
        entry = self._track(*risers[0]) if risers else float(MARGIN)
        rail = f"M{entry:.1f},{self.rail + CORNER} q0,{-CORNER} {CORNER},{-CORNER}"
        for number, (k, net) in enumerate(risers):
            x = self._track(k, net)
            at = float(self.foot)
            if number:
                self._path(f"{rail} H{x - CORNER:.1f} q{CORNER},0 {CORNER},{-CORNER}", "plain", net.source.carried)
                rail = f"M{x - CORNER:.1f},{self.rail}"
                at = self.rail - CORNER
            for y, target, _ in sorted(net.ends, key=lambda end: -end[0]):
                colour, value = self._colour_into(net.source, target), net.source.carried
                turn = f"q0,{-CORNER} {CORNER},{-CORNER} H{self._following(k):.1f}"
                self._path(f"M{x:.1f},{at:.1f} V{y + CORNER}", colour if single else "plain", value)
                self._path(f"M{x:.1f},{y + CORNER} {turn}", colour, value)
                at = y + CORNER
        if risers and self.graph.x is not None:
            self._text(entry, self.foot + 16, self.graph.x.text, anchor="middle")
        self.entry = entry

    def _notes(self) -> None:
        y, x = self.foot + 16, self.entry + 40
        for note in self.graph.notes:
            width = width_of(note, SMALL)
            if x > self.entry + 40 and x + width > self.width:
                x, y = self.entry + 40, y + 22
            self._text(x, y, note, size=SMALL)
            self.width = max(self.width, x + width + MARGIN)
            x += width + 28
        self.bottom = y + 12

    def _circle(self, kind: str, x: float, y: int, addend: str = "") -> None:
        self.nodes.append(f'<circle class="node {kind}" cx="{x:.1f}" cy="{y}" r="{RADIUS}"/>')
        reach = RADIUS - 4.5 if kind == "sum" else 3.2
        sign = f"M{x - reach:.1f},{y} h{2 * reach} M{x:.1f},{y - reach} v{2 * reach}"
        if kind == "product":
            sign = f"M{x - reach:.1f},{y - reach} l{2 * reach},{2 * reach} m0,{-2 * reach} l{-2 * reach},{2 * reach}"
        self.nodes.append(f'<path d="{sign}"/>')
        if addend:
            self._text(x + 2, y + RADIUS + 13, addend, size=SMALL)

    def _path(self, d: str, role: str, value: Expression) -> None:
        number = self.wires.setdefault(self.named.get(value, value), len(self.wires))
        told = f' data-wire="{number}"' if self.tells else ""
        self.lines.append(f'<path class="{role}"{told} d="{d}"/>')

    def _dot(self, x: float, y: float) -> None:
        self.nodes.append(f'<circle class="dot" cx="{x:.1f}" cy="{y}" r="2.6"/>')

    def _arrow(self, x: float, y: float, right: int, down: int) -> None:
        """The tip of an arrow at x, y."""
        back, side = 8, 3.5
        a = f"{x - back * right + side * down:.1f},{y - back * down - side * right}"
        b = f"{x - back * right - side * down:.1f},{y - back * down + side * right}"
        self.nodes.append(f'<path class="arrow" d="M{x:.1f},{y} L{a} L{b}Z"/>')

    def _text(
        self, x: float, y: float, text: str, role: str = "plain", size: float = SIZE, anchor: str = "start"
    ) -> None:
        x -= {"start": 0, "middle": 0.5, "end": 1}[anchor] * width_of(text, size)
        spans = []
        for run in runs(text, size):
            style = f' font-size="{run.size:.1f}"' if run.size != size else ""
            style += ' font-style="italic"' if run.italic else ""
            spans.append(f'<tspan x="{x + run.x:.1f}" y="{y + run.drop:.1f}"{style}>{escape(run.letters)}</tspan>')
        self.texts.append(f'<text class="{role}" font-size="{size}" xml:space="preserve">{"".join(spans)}</text>')

    def svg(self, style: str = "") -> str:
        style = style or _style()
        top = self.top - 22 - SIZE - 6
        width, height = round(self.width), round(self.bottom - top)
        parts = [
            '<svg xmlns="http://www.w3.org/2000/svg" class="rnnzoo-diagram" role="img" '
            f'viewBox="0 {top:.0f} {width} {height}" width="{width}" height="{height}">',
            f"<title>{escape(self.title)}</title>",
            f"<style>{style}</style>",
            f'<rect class="paper" x="0" y="{top:.0f}" width="{width}" height="{height}"/>',
            *self.lines,
            *self.nodes,
            *self.texts,
            "</svg>",
        ]
        return "\n".join(parts)
