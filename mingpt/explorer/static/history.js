// What was looked at: a card for each experiment, and two or more of them side by side.

import { add, mix } from "./common.js";
import { heatmap } from "./heatmap.js";
import { currentStep, known, set, subscribe } from "./state.js";
import { DIRECTIONS, drawLegend, optionsOf, paintPixels, reasonFor, scaleOf, way, written } from "./sweep_picture.js";

const MOST = 24; // cards that are kept
const STORE = "mingpt explorer's history"; // of this tab of the browser, so that a reload keeps it
const parts = {};
let cards = []; // {key, step, names, sweep}, the newest first
const compared = new Set(); // their keys

export function start(box) {
  const line = add(box, "div", "", "toolbar");
  const title = add(line, "h2", "History");
  title.id = "history-title";
  add(line, "p", "Each experiment leaves a card. Click one to go back to it; tick two or more to see them side by side.", "note");
  parts.clear = add(line, "button", "Clear", "plain");
  parts.clear.addEventListener("click", clear);
  parts.cards = add(box, "ul", "", "cards");
  parts.beside = add(box, "div", "", "beside");
  cards = stored();
  subscribe(["sweep"], keepSweep);
  subscribe(["facts"], show); // which have the measures' titles
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) ?? [];
  } catch {
    return [];
  }
}

function store() {
  try {
    sessionStorage.setItem(STORE, JSON.stringify(cards));
  } catch {
    // There is no room for more: the cards live as long as the page.
  }
}

// While a text is being typed there is one card, which changes with it.
function keepSweep() {
  if (!known.sweep.done) return;
  const key = JSON.stringify(known.sweep.body), step = currentStep();
  if (!cards.some(card => card.key === key)) {
    const { tokens, first } = known.pair;
    const names = ["clean", "corrupted"].map(run => tokens[run][first].text);
    const others = cards.filter(card => card.step !== step);
    cards = [{ key, step, names, sweep: known.sweep }, ...others].slice(0, MOST);
    store();
  }
  show();
}

function clear() {
  cards = [];
  compared.clear();
  store();
  show();
}

function show() {
  const current = known.sweep && JSON.stringify(known.sweep.body);
  parts.cards.replaceChildren();
  for (const card of cards) showCard(add(parts.cards, "li", "", "card"), card, card.key === current);
  parts.clear.hidden = !cards.length;
  showBeside();
}

const titleOf = ({ names, sweep: { body } }) => {
  const head = body.at ? ` ${body.at.layer}.${body.at.head}` : "";
  return [`${names[0]} | ${names[1]}`, `${body.site}${head}, ${way(DIRECTIONS[body.direction])}`, `${measureTitle(body.measure)}, ${body.model}`];
};

// Without what explains it.
const measureTitle = measure => known.facts.measures.find(({ name }) => name === measure)?.title.split(":")[0];

function showCard(item, card, isCurrent) {
  const button = add(item, "button", "", "go");
  if (isCurrent) button.setAttribute("aria-current", "true");
  button.title = `${card.sweep.body.clean}\n${card.sweep.body.corrupted}`;
  button.addEventListener("click", () => set({ ...card.sweep.body, cells: [], tab: "patch" }));
  paint(add(button, "canvas"), card.sweep);
  const [names, ...others] = titleOf(card);
  add(button, "b", names, "token");
  for (const line of others) add(button, "span", line);
  const label = add(item, "label", "", "tick note");
  const tick = add(label, "input");
  tick.type = "checkbox";
  tick.checked = compared.has(card.key);
  tick.addEventListener("change", () => {
    if (tick.checked) compared.add(card.key);
    else compared.delete(card.key);
    showBeside();
  });
  add(label, "span", "side by side");
}

function paint(canvas, sweep) {
  const { stops, low, high } = scaleOf([sweep]);
  paintPixels(canvas, sweep.values.map(row => row.map(value => mix(stops, (value - low) / (high - low)))));
}

// The ticked cards' heatmaps, large; in the same colours where they show the same measure. What is pointed at in one
// is read in all.
function showBeside() {
  const chosen = cards.filter(card => compared.has(card.key));
  parts.beside.replaceChildren();
  if (chosen.length < 2) return;
  const tables = chosen.map(card => {
    const alike = chosen.filter(other => other.sweep.body.measure === card.sweep.body.measure);
    return showLarge(card, scaleOf(alike.map(other => other.sweep)), readAll);
  });
  function readAll(row, column) {
    for (const read of tables) read(row, column);
  }
}

function showLarge(card, scale, onPoint) {
  const { sweep } = card, figure = add(parts.beside, "figure", "", "card");
  const caption = add(figure, "figcaption");
  titleOf(card).forEach((line, i) => add(caption, i ? "span" : "b", line, i ? "note" : "token"));
  drawLegend(add(figure, "div", "", "legend"), scale, sweep.unpatched, sweep.quantity);
  const readout = add(figure, "p", "\u00a0", "readout");
  readout.setAttribute("aria-live", "polite");
  const table = heatmap(add(figure, "div"), {
    ...optionsOf(sweep), label: titleOf(card).join(", "), compact: true, low: scale.low, high: scale.high, onPoint,
  });
  sweep.values.forEach((values, row) => table.fill(row, values));
  return (row, column) => {
    const value = sweep.values[row]?.[column];
    const place = `${sweep.rows[row]}, ${sweep.columns[column]}`;
    readout.textContent = value === undefined ? "no such cell here" : reasonFor(sweep, column) || `${written(value)} at ${place}`;
  };
}
