"use strict";
// One view at a time, chosen by the part of the address after #. Without this script, and on
// paper, all views stand one below the other.
const views = [...document.querySelectorAll(".view")];
const links = [...document.querySelectorAll("nav a")];
const firstTitle = document.title;

function target() {
  const id = decodeURIComponent(location.hash.slice(1));
  return id ? document.getElementById(id) : null;
}

function route(byUser) {
  const place = target();
  const view = place ? place.closest(".view") : null;
  // A link to a place outside the views (skip link) leaves the view as it is.
  if (!view && place && byUser) return;
  const shown = view || views[0];
  for (const item of views) item.classList.toggle("shown", item === shown);
  for (const link of links) {
    if (link.hash === "#" + shown.id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const heading = shown.querySelector("h2");
  document.title = shown === views[0] ? firstTitle : heading.firstChild.textContent.trim() + " – " + firstTitle;
  if (!byUser) return;
  if (!place || place === shown) {
    heading.focus({preventScroll: true});
    scrollTo(0, 0);
  } else place.scrollIntoView();
}

document.documentElement.classList.add("js");
addEventListener("hashchange", () => route(true));
route(false);

// Tables: click a heading to sort.
const key = cell => {
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const number = Number(text);
  return text === "" ? null : Number.isNaN(number) ? text : number;
};
// Cells without a value stay below, whichever way the column is sorted.
const compare = (a, b, way) => {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return way * (a - b);
  return way * String(a).localeCompare(String(b), undefined, {numeric: true});
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const first = head.classList.contains("num") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach(item => item.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const way = order === "ascending" ? 1 : -1;
    // Oracles are a body of their own, so that no order mixes them with results.
    for (const body of table.tBodies) {
      if (body.classList.contains("divider")) continue;
      const rows = [...body.rows];
      rows.sort((a, b) => compare(key(a.cells[column]), key(b.cells[column]), way));
      body.append(...rows);
    }
  }));
}

// The gallery of failures: sorted and filtered by what its cards say.
const gallery = document.querySelector(".failures");
if (gallery) {
  const form = document.querySelector(".controls");
  const count = document.querySelector(".count");
  const signs = {yes: " †", unknown: " ‡"};
  const digits = (value, places) =>
    Number.isFinite(value) ? value.toFixed(places).replace("-", "−") : "–";
  const signed = value => {
    const text = digits(value, 3).replace("−0.000", "0.000");
    return value > 0 && text !== "0.000" ? "+" + text : text;
  };
  const cards = [...gallery.children].map(item => {
    const scores = JSON.parse(item.dataset.scores);
    const at = item.dataset.method.replace(/^[^@]*/, "");
    const base = name => at && name.endsWith(at) ? name.slice(0, -at.length) : name;
    return {
      item, scores,
      leading: base(item.dataset.method),
      coarse: scores[base(item.dataset.reference)],
      member: item.querySelector(".by").textContent.split(", ").pop(),
    };
  });
  const value = {
    dice: card => card.shown ? card.shown.dice : null,
    hd95: card => card.shown && card.shown.hd95 !== null ? -card.shown.hd95 : null,
    delta: card => card.delta,
    small: card => Number(card.item.dataset.area) || null,
    large: card => -Number(card.item.dataset.area),
    name: card => card.item.dataset.name,
  };

  function show(card, method) {
    card.shown = card.scores[method || card.leading] || null;
    const {item, shown, coarse} = card;
    // An image without a lesion has no Dice.
    card.delta = shown && coarse && shown.dice !== null ? shown.dice - coarse.dice : null;
    const write = (name, text) => { item.querySelector(name).textContent = text; };
    write(".dice", digits(shown ? shown.dice : NaN, 3));
    write(".hd95", digits(shown ? shown.hd95 : NaN, 1));
    write(".delta", card.delta === null ? "" : `(${signed(card.delta)} to the coarse mask)`);
    const name = shown ? shown.method + (signs[shown.seen] || "") + (shown.oracle ? " (oracle)" : "") : "not scored here";
    write(".by", `${name}, ${card.member}`);
    write(".outcome", shown ? shown.outcome : "");
    item.querySelector(".outcome").hidden = !(shown && shown.outcome);
  }

  function fits(card, wanted) {
    for (const name of ["dataset", "label", "size", "overlay", "border"])
      if (wanted.get(name) && wanted.get(name) !== card.item.dataset[name]) return false;
    const outcome = wanted.get("outcome");
    return !outcome || (card.shown && (card.shown.outcome || "found") === outcome);
  }

  function update() {
    const wanted = new FormData(form);
    for (const card of cards) show(card, wanted.get("method"));
    const by = value[wanted.get("sort")];
    const order = [...cards].sort((a, b) => compare(by(a), by(b), 1) || compare(value.name(a), value.name(b), 1));
    gallery.append(...order.map(card => card.item));
    let shown = 0;
    for (const card of cards) {
      card.item.hidden = !fits(card, wanted);
      shown += !card.item.hidden;
    }
    count.textContent = shown === cards.length ? `${shown} case${shown === 1 ? "" : "s"}` : `${shown} of ${cards.length} cases`;
  }

  form.hidden = false;
  form.addEventListener("change", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", event => event.preventDefault());
  update();
}

addEventListener("beforeprint", () => {
  for (const item of document.querySelectorAll("details")) item.open = true;
});
