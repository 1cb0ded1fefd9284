// The Patch tab: what a patch of each cell does to the answer. A heatmap that grows as its rows are computed.

import { ask, cancel } from "./api.js";
import * as cell from "./cell.js";
import { add, rounded } from "./common.js";
import { heatmap } from "./heatmap.js";
import { segments } from "./segments.js";
import { known, learn, pairFields, set, state, subscribe } from "./state.js";
import {
  decimalsFor, DIRECTIONS, drawLegend, optionsOf, reasonFor, scaleOf, showsHeads, way, whatWasPut, written,
} from "./sweep_picture.js";

const MOST_WORDS = 24; // columns; in narrower cells numbers could not be read
const parts = {};
let table = null; // the heatmap, and what it was drawn for
let drawn = "";
let pointed = null; // [row, column]

const fields = () => ({
  ...pairFields(), site: state.site, direction: state.direction, measure: state.measure, at: state.at,
});

// The heatmap is of what the controls say, and all of it is there.
const isWhole = () => Boolean(known.sweep?.done) && JSON.stringify(known.sweep.body) === JSON.stringify(fields());

export function start(panel) {
  addControls(add(panel, "div", "", "toolbar"));
  const split = add(panel, "div", "", "split");
  const left = add(split, "section", "", "map");
  left.setAttribute("aria-label", "Heatmap");
  parts.legend = add(left, "div", "", "legend");
  parts.readout = add(left, "p", "", "readout");
  parts.readout.setAttribute("aria-live", "polite");
  parts.map = add(left, "div");
  parts.map.id = "heatmap";
  parts.detail = add(split, "section");
  parts.detail.id = "detail";
  parts.detail.tabIndex = -1;
  parts.detail.setAttribute("aria-label", "The chosen cell");
  cell.start(parts.detail);
  left.addEventListener("keydown", goUp);
  parts.detail.addEventListener("keydown", goUp);
  subscribe(["loaded", "model", "clean", "corrupted", "clean_answer", "corrupted_answer", "site", "direction",
    "measure", "at"], run);
  // What another tab did not wait for.
  subscribe(["tab"], () => { if (state.tab === "patch" && !isWhole()) run(); });
  subscribe(["sweep"], showSweep);
  subscribe(["cells"], showSelected);
  // It is of other texts then.
  subscribe(["pair"], () => {
    parts.map.inert = Boolean(known.pair.problem);
    parts.map.classList.toggle("stale", parts.map.inert);
  });
  return exported;
}

// With cells selected, the script is theirs.
function exported(kind) {
  if (!isWhole()) return null;
  const { cells } = state;
  if (kind !== "script" || !cells.length) return { of: "sweep", ...fields() };
  return cells.length === 1 ? { of: "cell", ...fields(), ...cells[0] } : { of: "joint", ...fields(), cells };
}

// --- The controls.

function addControls(box) {
  parts.site = addSelect(box, "Site", "site", changes => ({ ...changes, at: null, cells: [] }));
  const directions = Object.entries(DIRECTIONS).map(([name, of]) => [name, [way(of), of.question]]);
  segments(box, "What is put where", "direction", Object.fromEntries(directions));
  parts.measure = addSelect(box, "Measure", "measure");
  parts.crumb = add(box, "button", "", "crumb");
  parts.crumb.addEventListener("click", () => set({ at: null, cells: [] }));
  subscribe(["facts"], () => {
    for (const { name, about } of known.facts.sites) {
      const option = add(parts.site, "option", name);
      option.title = about;
    }
    for (const { name, title } of known.facts.measures) add(parts.measure, "option", title).value = name;
  });
  subscribe(["facts", "site", "measure", "at"], showControls);
}

function addSelect(box, title, name, more = changes => changes) {
  const field = add(box, "div", "", "field");
  const label = add(field, "label", title);
  const select = add(field, "select");
  select.id = `choose-${name}`;
  label.htmlFor = select.id;
  select.addEventListener("change", () => set(more({ [name]: select.value })));
  return select;
}

function showControls() {
  if (!known.facts) return;
  parts.site.value = state.site;
  parts.site.title = known.facts.sites.find(({ name }) => name === state.site)?.about ?? "";
  parts.measure.value = state.measure;
  parts.crumb.hidden = !state.at;
  if (state.at) parts.crumb.textContent = `\u2190 all heads (this is head ${state.at.layer}.${state.at.head})`;
}

// --- Asking.

async function run() {
  if (!known.facts || known.loaded?.name !== state.model) return;
  const body = fields();
  let sweep = null;
  parts.map.setAttribute("aria-busy", "true");
  const last = await ask("sweep", body, event => {
    if (event.tokens) learn({ pair: event });
    else if (event.tops) {
      // Where no answers are named yet, it is from these that they can be.
      const { tops, answers, unpatched } = event;
      if (answers) sweep = begin(event, body);
      learn({ pair: { ...known.pair, tops, answers, unpatched } });
      // The other tabs need the pair alone; the one worker is theirs then.
      if (state.tab !== "patch") rest();
    } else {
      event.layers.forEach((layer, i) => { sweep.values[body.at ? 0 : layer] = event.values[i]; });
      learn({ sweep: { ...sweep } });
    }
  });
  if (last.cancelled) return;
  if (last.error) learn({ pair: { ...noTokens, ...known.pair, problem: last.error } });
  else if (sweep) learn({ sweep: { ...sweep, done: true } });
  parts.map.setAttribute("aria-busy", "false");
}

function rest() {
  cancel("sweep");
  parts.map.setAttribute("aria-busy", "false");
}

const noTokens = { tokens: { clean: [], corrupted: [] }, differs: [], first: null };

function begin({ rows, columns, first, quantity, unpatched }, body) {
  const values = rows.map(() => columns.map(() => null));
  return { body, rows, columns, first, quantity, unpatched, values, done: false };
}

// --- The heatmap.

function draw(sweep) {
  const options = {
    ...optionsOf(sweep), label: "The answer with each cell patched", compact: sweep.columns.length > MOST_WORDS,
    onPoint: point, onEnter: enter, onSelect: select,
  };
  table = heatmap(parts.map, options);
  // What is left of the first difference need not be seen.
  parts.map.scrollLeft = table.cells[0][sweep.first].offsetLeft - parts.map.clientWidth / 3;
  pointed = null;
}

// What the old heatmap has stays until a row of the new one comes; in the same cells, row by row.
function showSweep() {
  const { sweep } = known;
  const { site, at, measure } = sweep.body;
  const shape = JSON.stringify([sweep.rows, sweep.columns, sweep.first, site, at, measure]);
  if (shape !== drawn) draw(sweep);
  drawn = shape;
  const scale = scaleOf([sweep]), decimals = decimalsFor(scale);
  table.range(scale.low, scale.high);
  sweep.values.forEach((values, row) => {
    const isOld = values.every(value => value === null);
    table.cells[row][0].parentElement.classList.toggle("stale", isOld);
    if (isOld) return;
    const words = sweep.columns.length <= MOST_WORDS ? values.map(value => rounded(value, decimals)) : undefined;
    table.fill(row, values, words);
  });
  drawLegend(parts.legend, scale, sweep.unpatched, sweep.quantity);
  showSelected();
  showReadout();
}

const placeOf = ({ layer, position, head }) => [state.at ? 0 : layer, position ?? head];

function cellAt([row, column]) {
  if (state.at) return { layer: state.at.layer, position: column, head: state.at.head };
  if (showsHeads(known.sweep)) return { layer: row, position: null, head: column };
  return { layer: row, position: column, head: null };
}

function showSelected() {
  if (!table) return;
  const places = state.cells.map(placeOf).filter(([row, column]) => table.cells[row]?.[column]);
  table.select(places);
}

function point(row, column) {
  pointed = [row, column];
  showReadout();
}

function select(places) {
  set({ cells: places.map(cellAt) }, { live: "cells" });
}

function enter(row, column) {
  if (showsHeads(known.sweep)) return set({ at: { layer: row, head: column }, cells: [] });
  const cell = cellAt([row, column]), [chosen, ...others] = state.cells;
  const isChosen = chosen && !others.length && JSON.stringify(chosen) === JSON.stringify(cell);
  if (isChosen) parts.detail.focus();
  else set({ cells: [cell] });
}

// Escape: from the detail to its cell, from there to no cell, from a head's positions to all heads.
function goUp(event) {
  if (event.key !== "Escape" || !table) return;
  if (parts.detail.contains(event.target)) {
    const [row, column] = placeOf(state.cells.at(-1) ?? { layer: 0, position: 0 });
    table.cells[row]?.[column]?.focus();
  } else if (state.cells.length) set({ cells: [] });
  else if (state.at) set({ at: null });
}

function showReadout() {
  const { sweep } = known;
  parts.readout.replaceChildren();
  if (!pointed) {
    const inside = showsHeads(sweep) ? "see its positions" : "look inside";
    add(parts.readout, "span", `Point at a cell to read it; click it to ${inside}.`, "note");
    return;
  }
  const [row, column] = pointed, value = sweep.values[row][column], reason = reasonFor(sweep, column);
  if (!reason) add(parts.readout, "b", value === null ? "\u2026" : written(value), "number value");
  add(parts.readout, "span", reason || ` ${whatWasPut(sweep, row, column)}`);
}
