// What a person gives a model, and what it answers, by the kind of the task's view.
import { VISIBLE, box, labelled, options, percent, short, steadily, tint } from "play/boxes";

const later = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });

// Labels of steps, each of which leads to its step.
class Letters {
  constructor(go, words = false) {
    this.go = go;
    this.element = box("div", { className: words ? "text words" : "text", role: "group" });
    this.element.setAttribute("aria-label", "The input, coloured by the chosen unit");
    this.element.addEventListener("click", (event) => {
      const at = [...this.element.children].indexOf(event.target.closest("span"));
      if (at >= 0) go(at);
    });
  }

  set(labels) {
    const { element } = this;
    while (element.children.length > labels.length) element.lastChild.remove();
    labels.forEach((label, k) => {
      const made = element.children[k] ?? element.appendChild(box("span"));
      const text = label === "↵" ? "↵\n" : label === "·" ? " " : label;
      if (made.textContent !== text) made.textContent = text;
    });
  }

  colour(values) {
    [...this.element.children].forEach((letter, k) => { letter.style.background = tint(values(k)); });
  }

  at(time) {
    this.element.querySelector(".now")?.classList.remove("now");
    const now = this.element.children[time];
    now?.classList.add("now");
    const view = this.element;
    if (now && (now.offsetTop < view.scrollTop || now.offsetTop > view.scrollTop + view.clientHeight - 24)) {
      view.scrollTop = now.offsetTop - view.clientHeight / 2;
    }
  }
}

class Text {
  constructor(view, page) {
    Object.assign(this, { view, page });
    this.given = view.given;
    this.likely = page.runs.map(() => []);
    this.letters = new Letters((at) => page.go(at));
    this.next = page.runs.map(() => box("div", { className: "likely" }));
    this.tracks = box("div", { className: "tracks" });
    this.element = box("div", {}, ...(page.live ? this.controls() : []), this.letters.element, ...this.next, this.tracks);
  }

  controls() {
    const { view, page } = this;
    this.text = box("textarea", { rows: 2, maxLength: view.longest, value: view.given.text, spellcheck: false });
    this.typed = steadily(async () => {
      this.running = false;
      await this.read({ ...this.given, text: this.text.value });
    });
    this.text.addEventListener("input", this.typed);
    this.choice = options(box("select"), view.choices.map((name) => [name, name]), view.given.choice);
    this.choice.addEventListener("change", () => this.read({ ...this.given, choice: this.choice.value }));
    const number = (value, low, high, step) => box("input", { type: "number", value, min: low, max: high, step });
    this.how = {
      temperature: number(0.8, 0, 100, "any"), top_k: number(0, 0, view.symbols.length, 1),
      top_p: number(1, 0.001, 1, "any"), seed: number(1, 0, 2 ** 31, 1),
    };
    this.count = number(200, 1, view.longest, 1);
    this.run = box("button", { type: "button", textContent: "Go on" });
    this.run.addEventListener("click", () => (this.running ? this.stop() : this.goOn()));
    const parts = [
      labelled("Characters", this.count), labelled("Temperature", this.how.temperature), labelled("Top k (0: all)", this.how.top_k),
      labelled("Top p", this.how.top_p), labelled("Seed", this.how.seed), this.run,
    ];
    if (view.choices.length) parts.unshift(labelled("Kind", this.choice));
    if (view.tracks) {
      const ask = box("button", { type: "button", textContent: "What do units track?" });
      ask.addEventListener("click", () => this.rank(ask));
      parts.push(ask);
    }
    return [labelled("Text", this.text), box("div", { className: "controls" }, ...parts)];
  }

  get draw() {
    return Object.fromEntries(Object.entries(this.how).map(([key, input]) => [key, Number(input.value)]));
  }

  // The longest beginning that has been read already, in steps.
  known(given) {
    const { text, choice } = this.given;
    return this.done && given.choice === choice && given.text.startsWith(text) ? this.done : 0;
  }

  async read(given, further = {}) {
    const answers = await this.page.read(given, { known: () => this.known(given), further, toEnd: true });
    if (answers && document.activeElement !== this.text) this.text.value = given.text;
    return answers;
  }

  reply(answers, have) {
    answers.forEach((answer, k) => { this.likely[k] = [...this.likely[k].slice(0, have), ...answer.likely]; });
    this.done = this.likely[0].length;
    this.letters.set(this.page.labels);
  }

  async goOn() {
    this.running = true;
    this.run.textContent = "Stop";
    this.text.blur();
    await this.page.turn; // what was typed is read first
    let { text } = this.given;
    for (let left = Number(this.count.value); this.running && left >= 0; left -= 1) {
      const begun = performance.now();
      const answers = await this.read({ ...this.given, text }, { draw: this.draw });
      const drawn = this.view.symbols[answers?.[0].drawn];
      if (!answers || !left || !this.running || drawn === undefined || drawn.length !== 1 || drawn === "■" || text.length >= this.view.longest) break;
      text = this.given.text + drawn;
      await later(Math.max(0, 40 - (performance.now() - begun)));
    }
    this.stop();
  }

  stop() {
    this.running = false;
    this.run.textContent = "Go on";
    if (document.activeElement !== this.text) this.text.value = this.given.text;
  }

  // The other road: what was read up to a step, and a symbol of one's own choice.
  turn(time, symbol) {
    this.stop();
    this.read({ ...this.given, text: this.given.text.slice(0, time + 1 - this.view.offset) + symbol });
  }

  async rank(button) {
    button.disabled = true;
    const found = await this.page.more(0, { ...this.given, what: "units" });
    button.disabled = false;
    if (!found) return;
    this.tracks.replaceChildren(...found.units.map(([property, units]) => box(
      "span", {}, `${property}: `, ...units.map(([unit, correlation]) => {
        const chip = box("button", { type: "button", textContent: `${unit} (${short(correlation)})` });
        chip.addEventListener("click", () => this.page.panels[0].lead(unit));
        return chip;
      }),
    )));
  }

  at(time) {
    this.letters.at(time);
    this.page.runs.forEach((run, k) => {
      const shown = (this.likely[k][time] ?? []).map(([code, share]) => {
        const symbol = this.view.symbols[code];
        const button = box("button", { type: "button", textContent: VISIBLE[symbol] ?? symbol, disabled: !this.page.live || symbol === "■" });
        button.dataset.share = percent(share);
        button.addEventListener("click", () => this.turn(time, symbol));
        return button;
      });
      this.next[k].replaceChildren(box("span", { className: "note", textContent: this.page.runs.length > 1 ? `${run.title}, next:` : "Next:" }), ...shown);
    });
  }

  colour(values) {
    this.letters.colour(values);
  }
}

class Words {
  constructor(view, page) {
    Object.assign(this, { view, page });
    this.given = view.given;
    this.letters = new Letters((at) => page.go(at), true);
    this.meter = box("meter", { min: 0, max: 1, low: 0.5, high: 0.5, optimum: 1 });
    this.verdict = box("span");
    this.by = options(box("select"), [["unit", "the chosen unit"], ["running", "the score so far"], ["gradient", "gradient × input"], ["without", "leaving the word out"]], "unit");
    this.by.addEventListener("change", () => this.pull());
    this.found = {};
    const top = box("div", { className: "controls meter" }, this.meter, this.verdict, labelled("Words coloured by", this.by));
    this.note = box("p", { className: "note" });
    this.element = box("div", {}, ...(page.live ? [this.writing()] : []), top, this.note, this.letters.element);
  }

  writing() {
    this.text = box("textarea", { rows: 3, maxLength: this.view.longest, value: this.given.text });
    const typed = steadily(async () => {
      await this.page.read({ text: this.text.value }, { toEnd: true });
    });
    this.text.addEventListener("input", typed);
    return labelled("Review", this.text);
  }

  reply(answers) {
    this.found = {};
    this.scores = answers.map((answer) => answer.score);
    [this.meter.value] = this.scores;
    this.verdict.textContent = this.scores.map((score) => `${score > 0.5 ? "positive" : "negative"}, P(positive) = ${score.toFixed(3)}`).join("; ");
    this.letters.set(this.page.labels);
    if (this.by.value !== "unit") setTimeout(() => this.pull());
  }

  async pull() {
    const what = this.by.value;
    const said = { unit: "", running: "P(positive) − ½ of the review up to each word.", gradient: "How far each word pulls the logit: gradient × input, as a share of the largest.", without: "How much the logit falls without the word, as a share of the largest." };
    this.note.textContent = said[what];
    if (what !== "unit" && !this.found[what]) {
      const found = await this.page.more(0, { ...this.given, what });
      if (!found) return;
      this.found[what] = found.pulls;
    }
    this.page.recolour();
  }

  at(time) {
    this.letters.at(time);
  }

  colour(values) {
    const pulls = this.found[this.by.value];
    const largest = this.by.value === "running" ? 0.5 : Math.max(1e-9, ...(pulls ?? []).map(Math.abs));
    this.letters.colour(pulls ? (k) => (pulls[k] ?? 0) / largest : values);
  }
}

const SVG = "http://www.w3.org/2000/svg";

class Series {
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
      if (answer.following.length) found.push([k ? "other" : "following", onwards(answer.following)]);
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

// Lines of words under the steps: what was read, what is answered, what is true.
class Lines {
  constructor(view, page) {
    Object.assign(this, { view, page });
    this.given = view.given;
    this.letters = new Letters((at) => page.go(at), true);
    this.table = box("div", { className: "lines" });
    this.note = box("span", { className: "note" });
    const parts = [];
    if (page.live && "number" in view.given) {
      this.number = box("input", { type: "number", min: 0, value: 0 });
      this.number.addEventListener("input", () => page.read({ number: Math.round(Number(this.number.value)) || 0 }));
      parts.push(labelled("Example", this.number), this.note);
    } else if (page.live) {
      const text = box("input", { type: "text", maxLength: view.longest, value: view.given.text });
      text.addEventListener("input", () => page.read({ text: text.value }));
      parts.push(labelled("Question", text));
    }
    this.element = box("div", {}, box("div", { className: "controls" }, ...parts), this.letters.element, this.table);
  }

  reply(answers) {
    this.letters.set(this.page.labels);
    if (answers[0].count) this.note.textContent = `of ${answers[0].count.toLocaleString("en")}`;
    const rows = answers.flatMap((answer, k) => answer.lines.map(([name, text]) => {
      const cells = typeof text === "string" ? [box("td", { textContent: text, colSpan: this.page.labels.length })] : text.map((each, t) => {
        const cell = box("td", { textContent: each });
        cell.addEventListener("click", () => this.page.go(t));
        return cell;
      });
      const title = answers.length > 1 ? `${name} (${k + 1})` : name;
      return box("tr", {}, box("th", { scope: "row", textContent: title }), ...cells);
    }));
    this.table.replaceChildren(box("table", {}, box("tbody", {}, ...rows)));
  }

  at(time) {
    this.letters.at(time);
    for (const now of this.table.querySelectorAll(".now")) now.classList.remove("now");
    for (const row of this.table.querySelectorAll("tr")) if (row.cells.length > 2) row.cells[time + 1]?.classList.add("now");
  }

  colour(values) {
    this.letters.colour(values);
  }
}

export const INPUTS = { text: Text, words: Words, series: Series, examples: Lines, asked: Lines };
