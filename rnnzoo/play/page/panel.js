// One model: its states through time, the diagram of a step, and what a person holds at a value.
import { box, fullness, labelled, options, palette, short, unpack } from "play/boxes";
import { Bars, Diagram, Names } from "play/diagram";

export class Panel {
  // source: answers; go(step): to another time; inTurn(work): after what is under way; changed(): the input must be
  // read again; told(): colours of the steps have changed.
  constructor(run, about, source, { go, inTurn, changed, told }) {
    Object.assign(this, { run, about, source, go, inTurn, changed, told });
    this.cell = 0;
    this.name = about.cells[0].states[0];
    this.unit = null;
    this.holds = [];
    this.time = 0;
    this.values = null; // of the chosen variable, [T, n]
    this.free = null; // the same with nothing held
    this.build();
    this.choose(0);
  }

  get chosen() {
    return this.about.cells[this.cell];
  }

  build() {
    const { about } = this;
    this.cells = options(box("select"), about.cells.map((cell, k) => [k, `${cell.name}, ${cell.kind}`]), 0);
    this.cells.addEventListener("change", () => this.choose(Number(this.cells.value)));
    this.variables = box("select");
    this.variables.addEventListener("change", () => this.show({ name: this.variables.value, unit: null }));
    this.units = box("select");
    this.units.addEventListener("change", () => this.show({ unit: this.units.value === "" ? null : Number(this.units.value) }));
    this.change = box("input", { type: "checkbox" });
    this.change.addEventListener("change", () => this.paint());
    this.changeBox = labelled("", this.change, { className: "check", hidden: true });
    this.changeBox.append("only what the holds change");
    this.map = box("canvas", { className: "map", role: "img" });
    this.marker = box("div", { className: "marker" });
    this.mapBox = box("div", { className: "mapbox" }, this.map, this.marker);
    const drag = (event) => this.dragged(event);
    this.map.addEventListener("pointerdown", (event) => {
      this.map.setPointerCapture(event.pointerId);
      drag(event);
    });
    this.map.addEventListener("pointermove", (event) => event.buttons && drag(event));
    this.mapNote = box("p", { className: "note" });
    this.diagramBox = box("div");
    this.bars = new Bars((unit) => this.show({ unit }));
    this.element = box(
      "section", { className: "panel" }, box("h2", { textContent: about.title }),
      box("div", { className: "controls" }, labelled("Layer", this.cells), labelled("Show", this.variables), labelled("Unit", this.units), this.changeBox),
      this.mapBox, this.mapNote, this.diagramBox, this.bars.element, this.holder(),
    );
  }

  // The form that holds a value, and the list of what is held.
  holder() {
    this.held = box("ul", { className: "held" });
    if (!this.source.live) return this.held;
    const value = box("input", { type: "number", step: "any", value: "0", required: true });
    const when = options(box("select"), [["on", "from this step on"], ["now", "at this step only"], ["all", "always"]], "on");
    this.holdWhat = box("b");
    const form = box(
      "form", { className: "controls hold" }, box("span", {}, "Hold ", this.holdWhat),
      labelled("at", value), labelled("when", when), box("button", { textContent: "Hold" }),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const start = when.value === "all" ? 0 : this.step;
      const hold = { cell: this.cell, name: this.name, unit: this.unit, value: Number(value.value), start };
      if (when.value === "now") hold.stop = start + 1;
      this.holds.push(hold);
      this.list();
      this.changed(this);
    });
    return box("div", {}, form, this.held);
  }

  list() {
    this.changeBox.hidden = !this.holds.length;
    if (!this.holds.length) this.change.checked = false;
    this.held.replaceChildren(...this.holds.map((hold, k) => {
      const free = box("button", { type: "button", textContent: "let go" });
      free.addEventListener("click", () => {
        this.holds.splice(k, 1);
        this.list();
        this.changed(this);
      });
      const what = hold.unit === null ? hold.name : `${hold.name}, unit ${hold.unit},`;
      const since = hold.start ? ` from step ${hold.start + 1}` : "";
      const until = hold.stop === undefined ? "" : hold.stop === hold.start + 1 ? ` at step ${hold.stop} only` : ` to ${hold.stop}`;
      return box("li", {}, `${what} held at ${short(hold.value)}${until.includes("only") ? until : since + until} `, free);
    }));
  }

  choose(cell) {
    this.cell = cell;
    const about = this.chosen;
    this.name = about.states.includes(this.name) ? this.name : about.states[0];
    this.unit = null;
    this.lit = about.variables ? Math.max(0, about.variables.indexOf(this.name)) : null;
    this.values = null;
    if (about.svg) {
      this.diagram = new Diagram(about, (wire) => this.pick(wire));
      this.named = new Names(about, (wire) => this.pick(wire));
      this.diagramBox.replaceChildren(this.named.element, this.diagram.element);
    } else {
      this.diagram = null;
      this.diagramBox.replaceChildren(box("p", { className: "note", textContent: `No diagram: ${about.reason}.` }));
    }
    if (this.given) this.refresh();
  }

  pick(wire) {
    this.lit = wire;
    this.diagram.light(wire);
    this.look();
  }

  // Another variable or unit; a name without a row of its own in what is shown is fetched.
  async show({ name = this.name, unit = this.unit }) {
    const other = name !== this.name;
    this.name = name;
    this.unit = unit;
    if (other) await this.refresh();
    else this.paint();
    const wire = this.chosen.variables?.indexOf(this.name) ?? -1;
    if (wire >= 0 && this.diagram) this.pick(wire);
  }

  // To a unit of the output's layer, as the units that track something are counted.
  lead(unit) {
    const last = this.about.cells.length - 1;
    if (this.cell !== last) {
      this.cells.value = String(last);
      this.choose(last);
    }
    return this.show({ name: this.chosen.states[0], unit });
  }

  // Read an input; `have` steps of it are known already. Returns the answer.
  async read(given, have = 0, further = {}) {
    const request = { ...given, ...further, holds: this.holds, cell: this.cell, name: this.name, have };
    const answer = await this.source.answer(this.run, request);
    this.given = given;
    this.names = answer.names;
    this.start = answer.start;
    this.steps = answer.steps;
    const fresh = answer.values ? unpack(answer.values) : null;
    if (have && this.values && fresh) {
      const joined = new Float32Array(this.values.data.length + fresh.data.length);
      joined.set(this.values.data);
      joined.set(fresh.data, this.values.data.length);
      this.values = { shape: [joined.length / fresh.shape[1], fresh.shape[1]], data: joined };
    } else if (fresh) {
      this.values = fresh;
    }
    this.total = (have ? this.total : 0) + answer.labels.length;
    this.free = null;
    return answer;
  }

  refresh() {
    return this.inTurn(async () => {
      await this.read(this.given);
      this.paint();
      await this.look();
    });
  }

  // The step of this cell at the page's time.
  get step() {
    const at = Math.max(0, Math.min(this.steps - 1, this.time - this.start));
    return this.chosen.backward ? this.steps - 1 - at : at;
  }

  async at(time) {
    this.time = time;
    this.mark();
    await this.look();
  }

  async look() {
    this.say();
    if (!this.given || !this.diagram) return;
    const { cell, step } = this;
    const wires = await this.source.look(this.run, { ...this.given, holds: this.holds, cell, step });
    if (cell !== this.cell) return;
    this.diagram.show(wires);
    this.diagram.light(this.lit);
    this.named.show(wires, this.lit);
    const about = this.chosen;
    const name = about.variables[this.lit] || about.wires[this.lit];
    const unit = about.variables[this.lit] === this.name ? this.unit : null;
    this.bars.show(name, wires[this.lit] ?? [], unit);
  }

  say() {
    if (this.holdWhat) {
      this.holdWhat.textContent = this.unit === null ? `all of ${this.name}` : `${this.name}, unit ${this.unit}`;
    }
  }

  // Colours of the states through time.
  async paint() {
    const about = this.chosen;
    options(this.variables, this.names.map((name) => [name, about.states.includes(name) ? `${name} (state)` : name]), this.name);
    const [steps, count] = this.values.shape;
    options(this.units, [["", "all"], ...Array.from({ length: count }, (_, k) => [k, String(k)])], this.unit ?? "");
    let { data } = this.values;
    if (this.change.checked) {
      this.free ??= unpack((await this.source.answer(this.run, { ...this.given, cell: this.cell, name: this.name })).values);
      data = data.map((value, k) => value - this.free.data[k]);
    }
    const rows = this.unit === null ? Array.from({ length: count }, (_, k) => k) : [this.unit];
    this.map.width = steps;
    this.map.height = rows.length;
    const context = this.map.getContext("2d");
    const image = context.createImageData(steps, rows.length);
    const { negative, positive, ground } = palette();
    rows.forEach((unit, row) => {
      for (let t = 0; t < steps; t += 1) {
        const value = data[(about.backward ? steps - 1 - t : t) * count + unit];
        const full = fullness(value);
        const hue = value < 0 ? negative : positive;
        const place = 4 * (row * steps + t);
        for (let k = 0; k < 3; k += 1) image.data[place + k] = ground[k] + (hue[k] - ground[k]) * full;
        image.data[place + 3] = 255;
      }
    });
    context.putImageData(image, 0, 0);
    this.map.style.height = `${Math.max(24, Math.min(160, rows.length * 8))}px`;
    const what = this.unit === null ? `${count} units of ${this.name}, one row each,` : `Unit ${this.unit} of ${this.name}`;
    this.mapNote.textContent = `${what} over ${steps} steps; below zero blue, above orange, full from 1 on.`;
    this.map.setAttribute("aria-label", this.mapNote.textContent);
    this.mark();
    this.told(this);
  }

  mark() {
    const share = Math.max(0, Math.min(this.steps - 1, this.time - this.start)) + 0.5;
    this.marker.style.left = `${(100 * share) / (this.steps || 1)}%`;
  }

  dragged(event) {
    const share = Math.max(0, Math.min(0.9999, event.offsetX / this.map.clientWidth));
    this.go(Math.floor(share * this.steps) + this.start);
  }

  // What colours the page's step t: the chosen unit, or the mean of all.
  colour(t) {
    if (!this.values) return 0;
    const [steps, count] = this.values.shape;
    const at = t - this.start;
    if (at < 0 || at >= steps) return 0;
    const row = this.chosen.backward ? steps - 1 - at : at;
    if (this.unit !== null) return this.values.data[row * count + this.unit];
    let sum = 0;
    for (let k = 0; k < count; k += 1) sum += this.values.data[row * count + k];
    return sum / count;
  }
}
