// The Attention tab: where every head looks in one of the runs, one head large, and why it looks where it does.

import { ask, cancel } from "./api.js";
import { drawHeads, drawPattern, unpackPatterns, WEIGHTS, writtenWeight } from "./attention_picture.js";
import { add, choices, gradient, mix } from "./common.js";
import { segments } from "./segments.js";
import { known, learn, pairFields, set, state, subscribe } from "./state.js";
import { written } from "./sweep_picture.js";
import { colourChip, tokenRow } from "./tokens.js";

const RUNS = { clean: "Clean run", corrupted: "Corrupted run" };
const parts = {};
let patterns = null, plot, markHead, chips, markToken;
let asked = ""; // what the patterns that are there, or under way, were asked with
let explained = ""; // the same of the explanation
let pointed = null; // [query, key]

const isShown = () => state.tab === "attention";
const fields = () => ({ ...pairFields(), run: state.run });

export function start(panel) {
  addControls(add(panel, "div", "", "toolbar"));
  parts.problem = add(panel, "p", "", "problem");
  parts.problem.setAttribute("role", "status");
  parts.found = add(panel, "div", "", "attention");
  parts.found.hidden = true;
  addPicture(add(parts.found, "div", "", "split"));
  parts.tokens = add(parts.found, "div", "", "weights");
  parts.tokens.setAttribute("role", "group");
  parts.tokens.setAttribute("aria-label", "What the chosen token looks at");
  parts.why = add(parts.found, "section", "", "why");
  addWhy(parts.why);
  subscribe(["model", "loaded", "clean", "corrupted", "run", "tab"], load);
  subscribe(["head", "query", "key", "against"], showChoice);
  return exported;
}

function exported() {
  if (!known.attention || !patterns) return null;
  const [layer, head] = patterns.heads[chosenHead()].split(".").map(Number);
  const request = { of: "attention", ...fields(), layer, head };
  return isChosen() ? { ...request, of: "explain", ...whyFields() } : request;
}

// --- The parts of the panel.

function addControls(box) {
  segments(box, "Which run is shown", "run", { clean: [RUNS.clean], corrupted: [RUNS.corrupted] });
  const scale = add(box, "div", "", "field");
  add(scale, "span", "Weight 0", "label");
  add(scale, "span", "", "bar-of-weights").style.background = gradient(WEIGHTS);
  add(scale, "span", "1", "label");
}

function addPicture(box) {
  const large = add(box, "section", "", "large");
  large.setAttribute("aria-label", "The pattern of one head");
  parts.name = add(large, "h2");
  parts.readout = add(large, "p", "", "readout");
  parts.readout.setAttribute("aria-live", "polite");
  parts.plot = add(large, "div");
  const all = add(box, "section");
  all.setAttribute("aria-label", "Heads");
  add(all, "h2", "All heads");
  add(all, "p", "Layers down, heads across; dark is much. A row is a token that looks (query), a column one that is looked at (key).", "note");
  parts.heads = add(all, "div");
  parts.heads.setAttribute("role", "group");
  parts.heads.setAttribute("aria-label", "Heads, named layer.head");
}

function addWhy(box) {
  box.setAttribute("aria-label", "Why the head looks there");
  parts.title = add(box, "h2");
  const line = add(box, "div", "", "toolbar");
  const label = add(line, "label", "", "field"), tick = parts.against = add(label, "input");
  tick.type = "checkbox";
  tick.addEventListener("change", () => set({ against: tick.checked ? "others" : null }));
  add(label, "span", "against the other keys");
  label.title = "What adds the same to every key moves no attention: take the other keys' mean score off";
  parts.score = add(line, "span");
  parts.wrong = add(box, "p", "", "problem");
  parts.wrong.setAttribute("role", "status");
  parts.tables = add(box, "div", "", "tables");
}

// --- Asking.

async function load() {
  if (!isShown() || known.loaded?.name !== state.model) return;
  const { model, clean, corrupted, run } = fields(), body = { model, clean, corrupted, run };
  const wanted = JSON.stringify({ model, run, text: body[run] });
  if (wanted === asked) return showChoice();
  asked = wanted;
  explained = "";
  cancel("explain");
  let found = null;
  const last = await ask("attention", body, event => { if (event.heads) found = event; });
  if (last.cancelled) return;
  parts.problem.textContent = last.error ?? "";
  parts.found.hidden = !found;
  if (found) draw(found);
  else asked = "";
  learn({ attention: found });
}

// The numbers of what is chosen. What an address names and this text or model has not is as if not named.
const chosenHead = () => Math.max(0, patterns.heads.indexOf(state.head));
const chosenQuery = () => state.query < patterns.tokens.length ? state.query ?? patterns.tokens.length - 1 : patterns.tokens.length - 1;
const isChosen = () => state.query !== null && state.key !== null && state.query < patterns.tokens.length && state.key <= state.query;

function whyFields() {
  return { query: state.query, key: state.key, against: state.against };
}

async function explain() {
  const [layer, head] = patterns.heads[chosenHead()].split(".").map(Number);
  const body = { ...fields(), layer, head, ...whyFields() }, wanted = JSON.stringify(body);
  if (wanted === explained) return;
  explained = wanted;
  let found = null;
  const last = await ask("explain", body, event => { if (event.largest) found = event; });
  if (last.cancelled) return;
  parts.wrong.textContent = last.error ?? "";
  parts.tables.replaceChildren();
  parts.score.textContent = "";
  if (found) showWhy(found);
}

// --- Showing.

function draw(found) {
  patterns = unpackPatterns(found);
  parts.plot.replaceChildren();
  plot = drawPattern(add(parts.plot, "div"), patterns, { onPoint: point, onEnter: choose });
  const heads = parts.heads.cloneNode(false);
  parts.heads.replaceWith(heads);
  parts.heads = heads;
  markHead = drawHeads(heads, patterns, head => set({ head: patterns.heads[head] }, { live: "head" }));
  const tokens = parts.tokens.cloneNode(false);
  parts.tokens.replaceWith(tokens);
  parts.tokens = tokens;
  chips = tokenRow(tokens, patterns.tokens, { tag: "button", notes: true });
  markToken = choices(tokens, [chips], (_, query) => point(query, largestKey(query)), ["focusin", "click"]);
  pointed = null;
  showChoice();
}

// The key that a query looks at most.
function largestKey(query) {
  const head = chosenHead();
  let largest = 0;
  for (let key = 1; key <= query; key++)
    if (patterns.weight(head, query, key) > patterns.weight(head, query, largest)) largest = key;
  return largest;
}

function showChoice() {
  if (!isShown() || !patterns || parts.found.hidden) return;
  const head = chosenHead(), query = chosenQuery();
  parts.name.textContent = `Head ${patterns.heads[head]}, ${RUNS[state.run].toLowerCase()}`;
  markHead(head);
  plot.show(head);
  point(...(isChosen() ? [state.query, state.key] : pointed ?? [query, largestKey(query)]));
  parts.against.checked = state.against === "others";
  parts.tables.hidden = parts.against.parentElement.hidden = !isChosen();
  if (isChosen()) {
    const [from, to] = [state.query, state.key].map(t => patterns.tokens[t]);
    parts.title.textContent = `Why does head ${patterns.heads[head]} look from ${from} to ${to}?`;
    explain();
  } else parts.title.textContent = "Click a weight, or press Enter on it: which parts make the head look there?";
}

function point(query, key) {
  const head = chosenHead();
  pointed = [query, key];
  plot.point(query, key);
  markToken(0, query);
  chips.forEach((chip, other) => {
    const weight = other <= query ? patterns.weight(head, query, other) : 0;
    colourChip(chip, weight ? mix(WEIGHTS, weight / 1000) : null, weight ? writtenWeight(weight) : "");
  });
  const [from, to] = [query, key].map(t => patterns.tokens[t]);
  parts.readout.textContent = key > query ? `${from} cannot see ${to}, which comes later.`
    : `${from} looks at ${to}: ${writtenWeight(patterns.weight(head, query, key))}`;
}

function choose(query, key) {
  if (key <= query) set({ head: patterns.heads[chosenHead()], query, key });
}

function showWhy({ score, baseline, weight, largest, by_query, by_key }) {
  const off = state.against ? `, ${written(score - baseline)} above the other keys' mean, which is explained here` : "";
  parts.score.textContent = `score ${written(score)}${off}; weight ${written(weight)}`;
  const sum = largest.reduce((total, { value }) => total + value, 0);
  const rest = { names: ["all other pairs", ""], value: score - baseline - sum };
  const pairs = largest.map(({ query, key, value }) => ({ names: [query, key], value }));
  const one = list => list.map(({ part, value }) => ({ names: [part], value }));
  addTable("Together, the largest", ["wrote the query", "wrote the key"], [...pairs, rest]);
  addTable("What wrote the query", ["part"], one(by_query));
  addTable("What wrote the key", ["part"], one(by_key));
}

function addTable(title, heads, rows) {
  const table = add(parts.tables, "table");
  add(table, "caption", title);
  const top = add(add(table, "thead"), "tr"), body = add(table, "tbody");
  for (const head of [...heads, "part of the score"]) add(top, "th", head).scope = "col";
  const largest = Math.max(...rows.map(({ value }) => Math.abs(value))) || 1;
  for (const { names, value } of rows) {
    const row = add(body, "tr");
    for (const name of names) add(row, "td", name, "token");
    const cell = add(row, "td", written(value), "number");
    const bar = add(cell, "span", "", value < 0 ? "amount less" : "amount");
    bar.style.width = `${100 * Math.abs(value) / largest}%`;
  }
}
