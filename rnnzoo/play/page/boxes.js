// What the page's other parts are made of: elements, numbers, colours.

export function box(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function labelled(text, input, properties = {}) {
  return box("label", properties, text, " ", input);
}

export function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => box("option", { value, textContent: text })));
  select.value = String(chosen);
  if (select.selectedIndex < 0) select.selectedIndex = 0;
  return select;
}

// Numbers as the server packs them: whole ones of a few bits in base64.
export function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
  const whole = packed.bits === 8 ? new Int8Array(bytes.buffer) : new Int16Array(bytes.buffer);
  return { shape: packed.shape, data: Float32Array.from(whole, (number) => number * packed.scale) };
}

// How full a value's colour is: all of it from 1 on, and small values still to be seen.
export const fullness = (value) => Math.min(1, Math.abs(value)) ** 0.6;

// The colours of values below zero and above, and what they lie on, as the reader's scheme has them: [r, g, b] each.
export function palette() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
  return { negative: read("--negative"), positive: read("--positive"), ground: read("--ground") };
}

export function tint(value) {
  return `rgb(var(${value < 0 ? "--negative" : "--positive"}) / ${(0.85 * fullness(value)).toFixed(3)})`;
}

export function short(number) {
  if (number === 0) return "0";
  const size = Math.abs(number);
  return size >= 1000 || size < 0.001 ? number.toExponential(1) : number.toPrecision(size < 1 ? 2 : 3).replace("-", "−");
}

export const percent = (share) => (share < 0.001 ? "< 0.1 %" : `${(100 * share).toPrecision(share < 0.1 ? 2 : 3)} %`);

export const VISIBLE = { "\n": "↵", " ": "·", "\t": "→" };

// Calls of `work` that come while one is under way are one call after it.
export function steadily(work) {
  let running = false;
  let again = false;
  return async function call() {
    again = true;
    if (running) return;
    running = true;
    try {
      while (again) {
        again = false;
        await work();
      }
    } finally {
      running = false;
    }
  };
}
