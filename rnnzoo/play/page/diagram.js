// A cell's diagram whose lines carry their values: a strip of colours along each line, a bar for each number on demand.
import { box, fullness, palette, short, tint } from "play/boxes";

const SVG = "http://www.w3.org/2000/svg";
const PIECE = 4; // pixels of a colour along a line
const MOST = 24; // colours along a line

function drawn(parent, properties) {
  const made = parent.appendChild(document.createElementNS(SVG, "path"));
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  return made;
}

// Values in as many groups as there is room for: the mean of each.
function grouped(values, count) {
  return Array.from({ length: count }, (_, k) => {
    const start = Math.floor((k * values.length) / count);
    const end = Math.max(start + 1, Math.floor(((k + 1) * values.length) / count));
    let sum = 0;
    for (let at = start; at < end; at += 1) sum += values[at];
    return sum / (end - start);
  });
}

export class Diagram {
  // `pick(wire)` is called for the line that a person points at.
  constructor(about, pick) {
    this.about = about;
    this.element = box("div", { className: "wide drawing", tabIndex: 0, role: "group" });
    this.element.setAttribute("aria-label", "Diagram of one step, with the values on its lines");
    this.element.innerHTML = about.svg;
    this.svg = this.element.querySelector("svg");
    const wide = Number(this.svg.getAttribute("width"));
    this.svg.style.cssText = `width: min(100%, ${1.4 * wide}px); min-width: ${wide}px; height: auto`;
    this.lines = [...this.svg.querySelectorAll("path[data-wire]")];
    [this.hits, this.bands] = ["hits", "bands"].map((name) => {
      const group = document.createElementNS(SVG, "g");
      group.setAttribute("class", name);
      return group;
    });
    this.svg.querySelector("rect.paper").after(this.hits, this.bands);
    for (const line of this.lines) {
      const { wire } = line.dataset;
      const hit = drawn(this.hits, { d: line.getAttribute("d"), "data-wire": wire });
      hit.addEventListener("pointerenter", () => pick(Number(wire)));
      hit.addEventListener("click", () => pick(Number(wire)));
    }
    this.strips = null;
  }

  // One value's lines stand out.
  light(wire) {
    for (const line of this.hits.children) line.classList.toggle("lit", Number(line.dataset.wire) === wire);
  }

  show(wires) {
    this.strips ??= this.lines.map((line) => this.strip(line, wires[line.dataset.wire]));
    for (const { wire, pieces } of this.strips) {
      const values = wires[wire];
      if (!values) continue;
      const shown = grouped(values, pieces.length);
      pieces.forEach((piece, k) => {
        piece.setAttribute("class", shown[k] < 0 ? "negative" : "positive");
        piece.setAttribute("stroke-opacity", fullness(shown[k]).toFixed(2));
      });
    }
  }

  strip(line, values) {
    const { wire } = line.dataset;
    if (!values) return { wire, pieces: [] };
    const length = line.getTotalLength();
    const count = Math.max(1, Math.min(values.length, MOST, Math.floor(length / PIECE)));
    const corners = Math.max(1, Math.ceil(length / count / PIECE));
    const pieces = Array.from({ length: count }, (_, k) => {
      const points = Array.from({ length: corners + 1 }, (_, c) => {
        const { x, y } = line.getPointAtLength(((k + c / corners) * length) / count);
        return `${x.toFixed(1)},${y.toFixed(1)}`;
      });
      return drawn(this.bands, { d: `M${points.join("L")}` });
    });
    return { wire, pieces };
  }
}

// A bar for each number of a value; `pick(unit)` is called for a bar that is clicked.
export class Bars {
  constructor(pick) {
    this.values = [];
    this.canvas = box("canvas", { className: "bars", height: 110, role: "img" });
    this.text = box("p", { className: "note", textContent: "Point at a line, or at a name, to see its numbers." });
    this.element = box("div", { className: "numbers" }, this.text, this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.tell(this.unit(event)));
    this.canvas.addEventListener("pointerleave", () => this.tell(null));
    this.canvas.addEventListener("click", (event) => pick(this.unit(event)));
  }

  unit(event) {
    const share = event.offsetX / this.canvas.clientWidth;
    return Math.max(0, Math.min(this.values.length - 1, Math.floor(share * this.values.length)));
  }

  show(name, values, chosen) {
    this.name = name;
    this.values = values ?? [];
    this.chosen = chosen;
    const { canvas } = this;
    canvas.hidden = !this.values.length;
    this.tell(null);
    if (canvas.hidden) return;
    canvas.width = Math.max(canvas.clientWidth, 200);
    const context = canvas.getContext("2d");
    const { negative, positive } = palette();
    const low = Math.min(0, ...this.values);
    const high = Math.max(low + 1e-9, 0, ...this.values);
    const y = (value) => 4 + ((high - value) / (high - low)) * (canvas.height - 8);
    const wide = canvas.width / this.values.length;
    context.clearRect(0, 0, canvas.width, canvas.height);
    this.values.forEach((value, k) => {
      context.fillStyle = `rgb(${(value < 0 ? negative : positive).join(" ")})`;
      context.globalAlpha = chosen === null || chosen === k ? 1 : 0.6;
      context.fillRect(k * wide, Math.min(y(value), y(0)), Math.max(wide - (wide > 3), 0.5), Math.abs(y(value) - y(0)) || 1);
    });
    context.globalAlpha = 1;
  }

  tell(unit) {
    const { values, name } = this;
    if (!values.length) {
      this.text.textContent = name ? `${name}: no numbers` : this.text.textContent;
      return;
    }
    const shown = unit === null && values.length === 1 ? 0 : unit ?? this.chosen;
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const range = `${short(Math.min(...values))} to ${short(Math.max(...values))}`;
    const one = shown === null || shown >= values.length ? "" : `; unit ${shown}: ${short(values[shown])}`;
    this.text.textContent = `${name}: ${values.length} number${values.length > 1 ? "s" : ""}, ${range}, mean ${short(mean)}${one}`;
    this.canvas.setAttribute("aria-label", this.text.textContent);
  }
}

// The values that have a name in the cell's equations, each a button with its own strip, which light up together.
export class Names {
  constructor(about, pick) {
    this.buttons = about.variables.flatMap((name, wire) => (name ? [[wire, name]] : [])).map(([wire, name]) => {
      const strip = box("span", { className: "strip" });
      const button = box("button", { type: "button", className: "name", title: about.wires[wire] }, name, strip);
      button.addEventListener("pointerenter", () => pick(wire));
      button.addEventListener("focus", () => pick(wire));
      button.addEventListener("click", () => pick(wire));
      return { wire, button, strip };
    });
    this.element = box("div", { className: "names", role: "group" }, ...this.buttons.map(({ button }) => button));
    this.element.setAttribute("aria-label", "Named values");
  }

  show(wires, lit) {
    for (const { wire, button, strip } of this.buttons) {
      const values = wires[wire];
      const shown = values ? grouped(values, Math.min(values.length, MOST)) : [];
      while (strip.children.length < shown.length) strip.append(box("i"));
      shown.forEach((value, k) => { strip.children[k].style.background = tint(value); });
      button.classList.toggle("lit", wire === lit);
    }
  }
}
