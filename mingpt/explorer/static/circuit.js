// The Circuit tab: which edges between the parts carry the answer of this pair, and what some of them are worth.

import { ask, cancel } from "./api.js";
import { circuitGraph } from "./circuit_graph.js";
import { add, step } from "./common.js";
import { segments } from "./segments.js";
import { written } from "./sweep_picture.js";
import { known, learn, pairFields, set, state, subscribe } from "./state.js";

const METHODS = {
  eap: ["estimate", "EAP: to first order, from one gradient. At once."],
  exact: ["exact", "Each edge is patched in a run of its own: seconds on names, minutes on gpt2."],
};
const SIZE = 40; // edges that are shown at first
const ROLES = { q: "as its query", k: "as its keys", v: "as its values" };
const parts = {};
let graph = null, rows = []; // the picture, and the list's buttons
let asked = ""; // what the circuit that is there, or under way, was asked with
let worth = null; // the latest answer of `faithfulness`
let pointed = null; // an edge's number

const isShown = () => state.tab === "circuit";
const fields = () => ({ ...pairFields(), method: state.method });
const size = () => Math.min(state.size ?? SIZE, known.circuit?.edges.length ?? Infinity);
const isOut = ({ sender, reader }) => state.removed.some(edge => edge.sender === sender && edge.reader === reader);

export function start(panel) {
  addControls(add(panel, "div", "", "toolbar"));
  parts.wait = add(panel, "div", "", "field wait");
  addWaiting(parts.wait);
  parts.problem = add(panel, "p", "", "problem");
  parts.problem.setAttribute("role", "status");
  parts.found = add(panel, "div");
  parts.wait.hidden = parts.found.hidden = true;
  parts.worth = add(parts.found, "div", "", "worth");
  addWorth(parts.worth);
  const split = add(parts.found, "div", "", "circuit");
  const picture = add(split, "section");
  picture.setAttribute("aria-label", "Graph");
  parts.readout = add(picture, "p", "", "readout");
  parts.readout.setAttribute("aria-live", "polite");
  parts.picture = add(picture, "div", "", "picture");
  addLegend(add(picture, "p", "", "note"));
  const list = add(split, "section");
  list.setAttribute("aria-label", "Edges");
  add(list, "h2", "Edges, the largest first");
  add(list, "p", "Click or Enter takes an edge out, and puts it back.", "note");
  parts.list = add(list, "div");
  subscribe(["model", "clean", "corrupted", "clean_answer", "corrupted_answer", "method"], forget);
  subscribe(["pair", "tab", "method"], search);
  subscribe(["size", "removed"], showChoice);
  return () => known.circuit ? { of: "circuit", ...fields(), size: size(), removed: state.removed } : null;
}

// --- The controls.

function addControls(box) {
  segments(box, "How the edges are scored", "method", METHODS);
  const field = parts.size = add(box, "div", "", "field size");
  const label = add(field, "label", "Edges");
  const slider = parts.slider = add(field, "input");
  Object.assign(slider, { type: "range", min: 1, id: "circuit-size" });
  label.htmlFor = slider.id;
  slider.addEventListener("input", () => set({ size: Number(slider.value) }, { live: "size" }));
  parts.threshold = add(field, "output", "", "number");
  parts.threshold.htmlFor = slider.id;
  parts.back = add(box, "button");
  parts.back.addEventListener("click", () => set({ removed: [] }));
  parts.size.hidden = parts.back.hidden = true;
}

function addWaiting(box) {
  parts.waits = add(box, "span");
  parts.progress = add(box, "progress");
  parts.progress.setAttribute("aria-label", "Edges that are scored");
  // What is done so far is kept for the next time.
  add(box, "button", "Stop").addEventListener("click", () => set({ method: "eap" }));
}

function addWorth(box) {
  const line = add(box, "p");
  parts.faithfulness = add(line, "b", "", "number value");
  parts.kept = add(line, "span");
  parts.bar = add(add(box, "div", "", "bar-of-worth"), "div");
  add(box, "p", "Faithfulness: all other edges carry the corrupted run. 1: the answer is as in the clean run, 0: as in the corrupted one.", "note");
}

function addLegend(box) {
  add(box, "span", "", "swatch");
  add(box, "span", "supports the clean answer, ");
  add(box, "span", "", "swatch against");
  add(box, "span", "works against it. The wider, the larger the score. A head reads as query, key and value: q, k, v.");
}

// --- Asking.

// Another pair or method: what is being computed is no longer wanted.
function forget() {
  cancel("circuit");
  cancel("faithfulness");
  asked = "";
  // The picture stays, faint, until the next one comes.
  parts.found.inert = true;
  parts.wait.hidden = true;
  if (known.circuit) learn({ circuit: null });
}

async function search() {
  if (!isShown()) {
    if (!known.circuit) forget();
    return;
  }
  const { pair } = known, body = fields(), wanted = JSON.stringify(body);
  if (pair?.problem) return show(null, pair.problem);
  if (!pair?.answers || known.loaded?.name !== state.model) return;
  if (wanted === asked) return showChoice();
  asked = wanted;
  let found = null;
  parts.wait.hidden = false;
  const last = await ask("circuit", body, event => {
    if (event.edges) found = event;
    else showShare(event);
  });
  if (last.cancelled) return;
  show(last.end ? found : null, last.error);
}

function showShare({ share, stage }) {
  const percent = Math.floor(100 * share);
  parts.waits.textContent = stage ?? `Scoring every edge: ${percent} %`;
  if (share) parts.progress.value = share;
  else parts.progress.removeAttribute("value");
}

async function weigh() {
  const body = { ...fields(), size: size(), removed: state.removed };
  parts.worth.setAttribute("aria-busy", "true");
  const last = await ask("faithfulness", body, event => {
    if (event.edges) worth = { ...event, size: body.size, edges: new Set(event.edges) };
  });
  if (last.cancelled) return;
  parts.worth.setAttribute("aria-busy", "false");
  parts.problem.textContent = last.error ?? "";
  if (last.end) showWorth();
}

// --- Showing.

function show(found, problem = "") {
  parts.wait.hidden = true;
  parts.problem.textContent = problem;
  parts.found.hidden = parts.size.hidden = !found;
  parts.found.inert = false;
  if (!found) asked = "";
  worth = null;
  learn({ circuit: found });
  if (!found) return;
  parts.picture.replaceChildren();
  graph = circuitGraph(parts.picture, { edges: found.edges, onPoint: point, onEnter: toggle });
  showList(found.edges);
  parts.slider.max = found.edges.length;
  point(null);
  showChoice();
}

function showList(edges) {
  const list = document.createElement("div");
  list.className = "edges";
  list.setAttribute("role", "group");
  list.setAttribute("aria-label", "Edges, the largest first");
  const largest = Math.abs(edges[0]?.score) || 1;
  rows = edges.map(({ sender, reader, score }, i) => {
    const row = add(list, "button", "", score < 0 ? "against" : "for");
    row.dataset.edge = i;
    row.tabIndex = i ? -1 : 0;
    add(row, "span", `${sender} \u2192 ${reader}`, "token");
    add(row, "span", written(score), "number");
    const bar = add(row, "span", "", "amount");
    bar.style.width = `${100 * Math.abs(score) / largest}%`;
    return row;
  });
  const numberOf = event => Number(event.target.closest("[data-edge]")?.dataset.edge ?? NaN);
  for (const kind of ["mousemove", "focusin"]) list.addEventListener(kind, event => {
    const number = numberOf(event);
    if (!Number.isNaN(number) && number !== pointed) point(number);
  });
  list.addEventListener("mouseleave", () => point(null));
  list.addEventListener("click", event => {
    const number = numberOf(event);
    if (!Number.isNaN(number)) toggle(number);
  });
  list.addEventListener("keydown", event => {
    const next = step(event, numberOf(event), 0, Array(size()).fill(1));
    const ends = { Home: 0, End: size() - 1 };
    if (next) rows[ends[event.key] ?? next[0]].focus();
  });
  list.addEventListener("focusin", event => {
    for (const row of rows) row.tabIndex = row === event.target ? 0 : -1;
  });
  parts.list.replaceChildren(list);
}

function toggle(number) {
  const { sender, reader } = known.circuit.edges[number], edge = { sender, reader };
  const others = state.removed.filter(other => other.sender !== sender || other.reader !== reader);
  set({ removed: isOut(edge) ? others : [...others, edge] });
}

// The slider or an edge: shown at once; what it is worth follows.
function showChoice() {
  if (!isShown() || !known.circuit) return;
  const { edges, total } = known.circuit, count = size();
  const smallest = Math.abs(edges[count - 1].score);
  parts.slider.value = count;
  const threshold = `${count} of ${total.toLocaleString("en")}, scores from ${written(smallest)}`;
  parts.threshold.textContent = threshold;
  parts.slider.setAttribute("aria-valuetext", threshold);
  parts.back.hidden = !state.removed.length;
  parts.back.textContent = `Put back ${state.removed.length}`;
  showEdges();
  weigh();
}

// Until it is known which edges connect, those that connected stay, and new ones are drawn.
function stateOf(number) {
  if (number >= size()) return "";
  if (isOut(known.circuit.edges[number])) return "out";
  return !worth || number >= worth.size || worth.edges.has(number) ? "in" : "loose";
}

function showEdges() {
  graph.show(number => stateOf(number).replace("loose", ""));
  rows.forEach((row, number) => {
    const stands = stateOf(number);
    row.hidden = !stands;
    row.className = `${known.circuit.edges[number].score < 0 ? "against" : "for"} ${stands}`;
    row.setAttribute("aria-pressed", stands === "in" || stands === "loose");
    row.title = stands === "loose" ? "leads nowhere: on no path of these edges from the text to the answer" : "";
  });
}

function showWorth() {
  const { clean, corrupted, quantity } = known.circuit;
  parts.faithfulness.textContent = written(worth.faithfulness);
  parts.kept.textContent = ` faithful: ${worth.edges.size} edges lead from the text to the answer, and put the clean answer `
    + `ahead by ${written(worth.metric)} (clean run ${written(clean)}, corrupted run ${written(corrupted)})`;
  parts.kept.title = quantity;
  parts.bar.style.width = `${100 * Math.max(0, Math.min(1, worth.faithfulness))}%`;
  showEdges();
}

function point(number) {
  pointed = number;
  graph.point(number);
  parts.readout.replaceChildren();
  if (number === null) {
    add(parts.readout, "span", "Point at an edge to read it; a click takes it out.", "note");
    return;
  }
  const { sender, reader, score } = known.circuit.edges[number], role = ROLES[reader.at(-1)];
  add(parts.readout, "b", written(score), "number value");
  const reads = role && reader.includes(".") ? `${reader.slice(0, -2)} reads ${sender} ${role}` : `${reader} reads ${sender}`;
  const out = { out: "; it is taken out", loose: "; it leads nowhere" }[stateOf(number)] ?? "";
  add(parts.readout, "span", ` logits are lost when ${reads} of the corrupted run${out}`);
}
