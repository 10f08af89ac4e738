"use strict";
const form = document.getElementById("filters");
const list = document.querySelector(".cards");
const cards = [...list.children];

function shown({ dataset: d }, wanted) {
  const number = (name, fallback) => (wanted.get(name) === "" ? fallback : Number(wanted.get(name)));
  const words = wanted.get("search").toLowerCase().split(/\s+/);
  return words.every((word) => d.text.includes(word))
    && ["family", "kind", "gates"].every((key) => ["", d[key]].includes(wanted.get(key)))
    && Number(d.year) >= number("since", 0) && Number(d.year) <= number("until", 9999)
    && Number(d.parameters) <= number("parameters", Infinity);
}

function update() {
  const wanted = new FormData(form);
  const sort = wanted.get("sort");
  let count = 0;
  for (const card of cards) {
    card.hidden = !shown(card, wanted);
    count += !card.hidden;
  }
  const order = (a, b) => (sort === "name" ? 0 : Number(a.dataset[sort]) - Number(b.dataset[sort]))
    || (a.dataset.name < b.dataset.name ? -1 : 1);
  list.append(...cards.sort(order));
  const told = document.getElementById("count");
  told.textContent = count === 1 ? told.dataset.one : told.dataset.many.replace("N", count);
}

form.addEventListener("input", update);
form.addEventListener("reset", () => setTimeout(update));
form.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
  event.preventDefault();
  const visible = cards.filter((card) => !card.hidden);
  if (visible.length === 1) visible[0].querySelector("a").click();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    form.elements.search.focus();
  }
});
update();
