// What a person gives a model, and what it answers, by the kind of the task's view.
import { VISIBLE, box, labelled, options, percent, short, steadily, tint } from "play/boxes";
import { Series } from "play/series";

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
