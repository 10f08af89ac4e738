// A series that a person draws or drops as a file, and how a model goes on with it.
import { box, labelled, options, short, steadily } from "play/boxes";

const SVG = "http://www.w3.org/2000/svg";

export class Series {
  constructor(view, page) {
    Object.assign(this, { view, page, draws: true });
    this.given = view.given;
    this.truth = view.truth ?? [];
    this.column = 0;
    this.plot = document.createElementNS(SVG, "svg");
    this.plot.setAttribute("class", page.live ? "plot live" : "plot");
    this.plot.setAttribute("role", "img");
    const keys = box("p", { className: "note keys" });
    keys.append(box("b", { className: "given", textContent: "given" }));
    if (view.goes_on) keys.append(", ", box("b", { className: "following", textContent: "what the model goes on with" }));
    if (page.runs.length > 1 && view.goes_on) keys.append(", ", box("b", { className: "other", textContent: "the other model" }));
    if (view.goes_on) keys.append(", ", box("b", { className: "truth", textContent: "truth" }));
    this.element = box("div", {}, ...(page.live ? [this.controls()] : []), this.plot, keys);
    if (page.live) this.listen();
    new ResizeObserver(() => this.paint()).observe(this.plot);
  }

  controls() {
    const { view } = this;
    const parts = [];
    if (view.columns.length > 1) {
      const column = options(box("select"), view.columns.map((name, k) => [k, name]), 0);
      column.addEventListener("change", () => { this.column = Number(column.value); this.paint(); });
      parts.push(labelled("Column", column));
    }
    const shapes = { "": "as drawn", example: "the example", sine: "sine", impulse: "impulse", step: "step", noise: "noise", flat: "flat" };
    const shape = options(box("select"), Object.entries(shapes), "");
    shape.addEventListener("change", () => this.take(shape.value));
    const rows = box("input", { type: "number", min: view.fewest, max: view.most, value: this.given.rows.length });
    rows.addEventListener("change", () => {
      const count = Math.max(view.fewest, Math.min(view.most, Math.round(Number(rows.value)) || view.fewest));
      const { given } = this;
      const last = given.rows.at(-1);
      this.put(Array.from({ length: count }, (_, k) => given.rows[k] ?? [...last]), []);
    });
    const file = box("input", { type: "file", accept: ".csv,.txt,text/csv" });
    file.addEventListener("change", () => {
      if (file.files[0]) this.drop(file.files[0]);
      file.value = ""; // so that the same file, changed, can be chosen again
    });
    this.back = box("input", { type: "checkbox", checked: true });
    parts.push(labelled("Draw, or take", shape), labelled("Rows", rows), labelled("or drop a CSV file below", file));
    if (view.goes_on) {
      const back = labelled("", this.back, { className: "check" });
      back.append("keep a file's last rows back, as truth");
      parts.push(back);
    }
    this.rows = rows;
    return box("div", { className: "controls" }, ...parts);
  }

  listen() {
    let before = null;
    const draw = (event) => {
      const { rows } = this.given;
      const k = Math.max(0, Math.min(rows.length - 1, Math.round(this.place(event.offsetX))));
      const value = this.value(event.offsetY);
      const [from, start] = before ?? [k, value];
      const steps = Math.max(1, Math.abs(k - from));
      const drawn = rows.map((row) => [...row]);
      for (let s = 0; s <= steps; s += 1) {
        const at = Math.round(from + ((k - from) * s) / steps);
        drawn[at][this.column] = start + ((value - start) * s) / steps;
      }
      before = [k, value];
      this.given = { rows: drawn };
      this.truth = [];
      this.ask();
    };
    this.ask = steadily(async () => { await this.page.read(this.given); });
    this.plot.addEventListener("pointerdown", (event) => {
      this.plot.setPointerCapture(event.pointerId);
      [this.low, this.high] = this.range(); // stays while a person draws
      this.drawing = true;
      before = null;
      draw(event);
    });
    this.plot.addEventListener("pointermove", (event) => event.buttons && this.drawing && draw(event));
    this.plot.addEventListener("pointerup", () => { this.drawing = false; this.paint(); });
    this.plot.addEventListener("dragover", (event) => { event.preventDefault(); this.plot.classList.add("over"); });
    this.plot.addEventListener("dragleave", () => this.plot.classList.remove("over"));
    this.plot.addEventListener("drop", (event) => {
      event.preventDefault();
      this.plot.classList.remove("over");
      if (event.dataTransfer.files[0]) this.drop(event.dataTransfer.files[0]);
    });
  }

  take(shape) {
    const { view, column } = this;
    if (shape === "example") {
      this.put(view.given.rows, view.truth ?? []);
      return;
    }
    const count = this.given.rows.length;
    const values = this.given.rows.map((row) => row[column]);
    const middle = view.goes_on && count > 1 ? values.reduce((a, b) => a + b, 0) / count : 0;
    const high = view.goes_on ? Math.max(...values) - middle || 1 : 1;
    let seed = 1;
    const random = () => { seed = (seed * 16807) % 2147483647; return (2 * seed) / 2147483647 - 1; };
    const make = {
      sine: (k) => Math.sin((k * Math.PI) / 6), impulse: (k) => Number(k === 2), step: (k) => Number(k >= count / 2),
      noise: random, flat: () => 0,
    }[shape];
    if (!make) return;
    this.put(this.given.rows.map((row, k) => row.map((value, c) => (c === column ? middle + high * make(k) : value))), []);
  }

  async put(rows, truth) {
    const before = this.truth;
    this.truth = truth;
    if (await this.page.read({ rows })) this.given = { rows };
    else this.truth = before;
    if (this.rows) this.rows.value = this.given.rows.length;
    this.paint();
  }

  // A file's columns by name; a single column of any name will do where one is read.
  async drop(file) {
    const { view, page } = this;
    if (file.size > 5e6) return page.say(`${file.name}: larger than 5 MB`, true);
    const lines = (await file.text()).split(/\r?\n/).filter((line) => line.trim());
    const sign = [",", ";", "\t"].find((candidate) => lines[0]?.includes(candidate)) ?? ",";
    const cells = lines.map((line) => line.split(sign).map((text) => text.trim().replace(/^"|"$/g, "")));
    const header = cells[0] ?? [];
    const named = header.some((text) => text !== "" && Number.isNaN(Number(text)));
    let places = view.columns.map((name) => header.indexOf(name));
    if (places.includes(-1) && view.columns.length === 1) {
      const first = cells[1] ?? header;
      places = [first.findIndex((text) => text !== "" && !Number.isNaN(Number(text)))];
    }
    if (places.includes(-1)) return page.say(`${file.name}: has no column ${view.columns[places.indexOf(-1)]}`, true);
    const rows = cells.slice(named ? 1 : 0).map((row) => places.map((place) => (row[place] ? Number(row[place]) : NaN)));
    const bad = rows.findIndex((row) => row.some((number) => !Number.isFinite(number)));
    if (bad >= 0) return page.say(`${file.name}: row ${bad + 1} holds what is no number`, true);
    const ahead = this.back.checked && view.goes_on ? (this.answers?.[0].following.length ?? 0) : 0;
    const keep = rows.length - ahead >= view.fewest ? ahead : 0;
    const truth = keep ? rows.slice(-keep).map((row) => view.targets.map((name) => row[view.columns.indexOf(name)])) : [];
    const given = rows.slice(0, rows.length - keep).slice(-view.most);
    if (given.length < view.fewest) return page.say(`${file.name}: ${rows.length} rows, but the model reads ${view.fewest}`, true);
    return this.put(given, truth);
  }

  reply(answers) {
    this.answers = answers;
    this.paint();
  }

  // The column as lines of a plot: name and values by row.
  lines() {
    const { view, given, column } = this;
    const found = [["given", given.rows.map((row, k) => [k, row[column]])]];
    const target = view.goes_on ? view.targets.indexOf(view.columns[column]) : -1;
    if (target < 0) return found;
    const start = given.rows.length;
    const onwards = (rows) => [[start - 1, given.rows.at(-1)[column]], ...rows.map((row, k) => [start + k, row[target]])];
    if (this.truth.length) found.unshift(["truth", onwards(this.truth)]);
    (this.answers ?? []).forEach((answer, k) => {
      const name = k ? "other" : "following";
      for (const rows of answer.quantiles) found.push([`${name} quantile`, onwards(rows)]);
      if (answer.following.length) found.push([name, onwards(answer.following)]);
    });
    return found;
  }

  range() {
    const values = this.lines().flatMap(([, points]) => points.map(([, value]) => value));
    const low = Math.min(...values);
    const high = Math.max(...values);
    const room = (high - low) * 0.1 || 1;
    return this.view.goes_on ? [low - room, high + room] : [Math.min(low - room, -1.2), Math.max(high + room, 1.2)];
  }

  get last() {
    return Math.max(...this.lines().map(([, points]) => points.at(-1)[0]), 1);
  }

  place(x) {
    return ((x - 40) / (this.plot.clientWidth - 50)) * this.last;
  }

  value(y) {
    const share = Math.max(0, Math.min(1, (y - 8) / (this.plot.clientHeight - 16)));
    return this.high - share * (this.high - this.low);
  }

  paint() {
    const { plot } = this;
    const [wide, tall] = [plot.clientWidth, plot.clientHeight];
    if (!wide) return;
    if (!this.drawing) [this.low, this.high] = this.range();
    const { low, high, last } = this;
    const x = (k) => 40 + (k / last) * (wide - 50);
    const y = (value) => 8 + ((high - value) / (high - low)) * (tall - 16);
    plot.replaceChildren();
    const put = (tag, properties, text = "") => {
      const made = plot.appendChild(document.createElementNS(SVG, tag));
      for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
      made.textContent = text;
      return made;
    };
    put("title", {}, `${this.view.columns[this.column]}: ${this.given.rows.length} rows given`);
    put("text", { x: 4, y: 18 }, short(high));
    put("text", { x: 4, y: tall - 8 }, short(low));
    for (const [name, points] of this.lines()) {
      put("polyline", { class: name, points: points.map(([k, value]) => `${x(k).toFixed(1)},${y(value).toFixed(1)}`).join(" ") });
    }
    put("line", { class: "cursor", x1: x(this.time ?? 0), x2: x(this.time ?? 0), y1: 0, y2: tall });
  }

  at(time) {
    this.time = Math.min(time, this.last);
    this.paint();
  }

  colour() {}
}
