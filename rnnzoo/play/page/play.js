// The page: one input, one time, and a panel for each model; live from a server, or a session that was saved.
import { box, steadily, unpack } from "play/boxes";
import { INPUTS } from "play/inputs";
import { Panel } from "play/panel";

const main = document.getElementById("main");
const saved = document.getElementById("session");

async function asked(what, body) {
  const answer = await fetch(`/api/${what}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error ?? answer.statusText);
  return found;
}

const live = {
  live: true,
  about: async () => (await fetch("/api/about")).json(),
  answer: (run, body) => asked("answer", { ...body, run }),
  look: async (run, body) => (await asked("look", { ...body, run })).wires.map((wire) => wire && unpack(wire).data),
  more: (run, body) => asked("more", { ...body, run }),
};

// What a server would say, from a session in the page itself.
function replay(session) {
  const kept = new Map();
  const wiresOf = (run, cell) => {
    const key = `${run} ${cell}`;
    if (!kept.has(key)) kept.set(key, session.runs[run].cells[cell].lines.map((wire) => wire && unpack(wire)));
    return kept.get(key);
  };
  return {
    live: false,
    about: async () => ({ runs: session.runs.map(({ about }) => about) }),
    answer: async (run, { cell, name }) => {
      const { labels, reply, cells } = session.runs[run];
      const { names, start, steps } = cells[cell];
      return { labels, names: Object.keys(names), start, steps, values: names[name] ?? Object.values(names)[0], ...reply };
    },
    look: async (run, { cell, step }) => wiresOf(run, cell).map((wire) => {
      if (!wire) return null;
      const [, count] = wire.shape;
      return wire.data.subarray(step * count, (step + 1) * count);
    }),
  };
}

const SAVED = "A recorded session: of each value the first 32 numbers, and 64 units through time. rnnzoo play shows it alive.";

class Page {
  constructor(source, about) {
    Object.assign(this, { source, live: source.live, runs: about.runs, labels: [], time: 0 });
    this.status = box("p", { id: "status", role: "status" });
    this.slider = box("input", { type: "range", min: 0, max: 0, value: 0 });
    this.slider.setAttribute("aria-label", "Time step");
    this.where = box("output");
    this.player = box("button", { type: "button", textContent: "Play" });
    const button = (text, label, step) => {
      const made = box("button", { type: "button", textContent: text, title: label });
      made.setAttribute("aria-label", label);
      made.addEventListener("click", () => this.go(step()));
      return made;
    };
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.player.addEventListener("click", () => this.toggle());
    this.panels = about.runs.map((run, k) => new Panel(k, run, source, {
      go: (time) => this.go(time), inTurn: (work) => this.inTurn(work), changed: (panel) => this.changed(panel), told: (panel) => panel.run === 0 && this.recolour(),
    }));
    const [{ kind, view }] = about.runs;
    this.input = new INPUTS[kind](view, this);
    this.seen = steadily(async () => {
      try {
        await Promise.all(this.panels.map((panel) => panel.at(this.time)));
      } catch (error) {
        this.say(error.message, true);
      }
    });
    const title = about.runs.map((run) => run.title).join(" and ");
    document.title = `${title} – rnnzoo play`;
    main.replaceChildren(
      box("h1", { textContent: about.runs.length > 1 ? "Two models, one input" : title }), this.status, this.input.element,
      box("div", { className: "transport", role: "group" }, button("⇤", "To the beginning", () => 0), button("◀", "One step back", () => this.time - 1),
        this.player, button("▶", "One step forward", () => this.time + 1), button("⇥", "To the end", () => this.labels.length - 1), this.slider, this.where),
      box("div", { className: about.runs.length > 1 ? "panels two" : "panels" }, ...this.panels.map((panel) => panel.element)),
    );
    if (!this.live) main.append(box("p", { className: "note", textContent: SAVED }));
    if (about.runs.length === 1) this.panels[0].element.querySelector("h2").remove();
    document.addEventListener("keydown", (event) => this.key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      for (const panel of this.panels) panel.paint();
    });
  }

  say(text, wrong = false) {
    this.status.textContent = text;
    this.status.classList.toggle("wrong", wrong);
  }

  // What takes longer than a moment says that it is under way; what fails says why, and the page stays as it was.
  async busy(work) {
    const timer = setTimeout(() => this.say("computing …"), 150);
    try {
      const found = await work();
      this.say("");
      return found;
    } catch (error) {
      this.say(error.message, true);
      return null;
    } finally {
      clearTimeout(timer);
    }
  }

  // One thing after the other: an answer that is added to what is known must not overtake another.
  inTurn(work) {
    this.turn = (this.turn ?? Promise.resolve()).then(() => this.busy(work));
    return this.turn;
  }

  // All models read an input, of which they know as many steps as `known()` says in its turn; the answers, or null.
  read(given, { known = () => 0, further = {}, toEnd = false } = {}) {
    return this.inTurn(async () => {
      const have = known();
      const answers = await Promise.all(this.panels.map((panel) => panel.read(given, have, further)));
      this.labels = [...this.labels.slice(0, have), ...answers[0].labels];
      if (!this.input.draws) this.input.given = given; // what is drawn may be further already
      this.input.reply(answers, have);
      this.slider.max = this.labels.length - 1;
      for (const panel of this.panels) panel.paint();
      this.go(toEnd ? this.labels.length - 1 : Math.min(this.time, this.labels.length - 1));
      return answers;
    });
  }

  more(run, request) {
    return this.busy(() => this.source.more(run, request));
  }

  // Something else is held: the model reads the same again.
  async changed(panel) {
    const before = panel.holds.length;
    const answers = await this.read(this.input.given);
    if (!answers && before) {
      panel.holds.pop();
      panel.list();
    }
  }

  go(time) {
    this.time = Math.max(0, Math.min(this.labels.length - 1, time));
    this.slider.value = this.time;
    const label = this.labels[this.time] ?? "";
    this.where.textContent = `step ${this.time + 1} of ${this.labels.length}: ${label}`;
    this.slider.setAttribute("aria-valuetext", this.where.textContent);
    this.input.at(this.time);
    return this.seen();
  }

  recolour() {
    if (this.input) this.input.colour((t) => this.panels[0].colour(t));
  }

  toggle() {
    this.playing = !this.playing;
    this.player.textContent = this.playing ? "Pause" : "Play";
    if (!this.playing) return;
    if (this.time >= this.labels.length - 1) this.go(0);
    const tick = async () => {
      if (!this.playing) return;
      if (this.time >= this.labels.length - 1) {
        this.toggle();
        return;
      }
      const begun = performance.now();
      await this.go(this.time + 1);
      setTimeout(tick, Math.max(0, 120 - (performance.now() - begun)));
    };
    setTimeout(tick, 120);
  }

  key(event) {
    const tag = event.target.tagName;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(tag) || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: this.time - 1, ArrowRight: this.time + 1, Home: 0, End: this.labels.length - 1 };
    if (event.key in steps && !event.target.closest(".wide")) this.go(steps[event.key]);
    else if (event.key === " " && tag !== "BUTTON") this.toggle();
    else return;
    event.preventDefault();
  }
}

const source = saved ? replay(JSON.parse(saved.textContent)) : live;
const page = new Page(source, await source.about());
await page.read(page.input.given);
if (!page.live) await page.go(Math.floor(page.labels.length / 2)); // where more is to be seen than at the beginning
