// Draws the parts of a cell's detail: draw(box, data, about) puts what an event of the server says into an empty box.
// about: {cell, tokens, answers, direction, unpatched, open(head)}; for several cells {names, direction}.

import { add, inkOn, mix, rounded } from "./common.js";
import { SCALES, heatmap } from "./heatmap.js";
import { percent } from "./pair.js";
import { decimalsFor, written } from "./sweep_picture.js";

const RUNS = ["clean", "corrupted"];
const TARGET = { denoise: "corrupted", noise: "clean" }; // the run that is patched

// Both ends of the colours are this far from 0, so that white is 0.
export const reachOf = values => Math.max(1e-9, ...values.map(Math.abs));

export function addNumber(row, value, reach) {
  const cell = add(row, "td", written(value), "number");
  if (!reach) return;
  const colour = mix(SCALES.diverging, (value / reach + 1) / 2);
  cell.style.backgroundColor = `rgb(${colour})`;
  cell.style.color = inkOn(colour);
}

// The body of a table with these heads; those that begin with "#" stand over numbers.
export function addTable(box, label, heads) {
  const table = add(box, "table");
  table.setAttribute("aria-label", label);
  const row = add(add(table, "thead"), "tr");
  for (const text of heads) add(row, "th", text.replace("#", ""), text.startsWith("#") ? "number" : "").scope = "col";
  return add(table, "tbody");
}

export function drawValue(box, { value, unpatched, sentence }, { direction }) {
  const target = TARGET[direction], source = RUNS.find(run => run !== target);
  const line = add(box, "p");
  add(line, "b", written(value), "number");
  const way = (value - unpatched[target]) / (unpatched[source] - unpatched[target]);
  const share = Number.isFinite(way) ? `: ${rounded(100 * way, 0).replace("-", "−")} % of the way` : "";
  add(line, "span", ` logit difference, from ${written(unpatched[target])} (${target}) towards ${
    written(unpatched[source])} (${source})${share}`);
  add(box, "p", `${sentence}.`, "note");
}

export function drawTops(box, { unpatched, patched }, { answers }) {
  const body = addTable(box, "The most probable next tokens", ["", "without", "with the patch", "rank"]);
  patched.forEach((token, rank) => {
    const row = add(body, "tr");
    add(row, "td", rank + 1, "number");
    addToken(row, unpatched[rank], answers);
    addToken(row, token, answers);
    addMove(row, unpatched.findIndex(other => other.id === token.id), rank);
  });
}

function addToken(row, { id, text, probability }, answers) {
  const cell = add(row, "td", "", "probable");
  const bar = add(cell, "span", "", "share");
  bar.style.width = `${100 * probability}%`;
  const name = add(cell, "span", text, "token");
  for (const run of RUNS) {
    if (answers[run].id !== id) continue;
    name.classList.add("answer", run);
    name.title = `the ${run} answer`;
  }
  add(cell, "span", percent(probability), "number");
}

// How a token has moved against the list without the patch, where it stood at `before`; -1: nowhere.
function addMove(row, before, rank) {
  const cell = add(row, "td", "", "move");
  if (before === rank) return;
  const isUp = before < 0 || before > rank;
  cell.classList.add(isUp ? "up" : "down");
  cell.textContent = before < 0 ? "▲ new" : `${isUp ? "▲" : "▼"} ${Math.abs(before - rank)}`;
  cell.title = before < 0 ? "not among these without the patch" : `number ${before + 1} without the patch`;
}

// values: the logit difference with each head's z alone patched.
export function drawHeads(box, values, { cell, direction, unpatched, open }) {
  const names = values.map((_, head) => `${cell.layer}.${head}`);
  const reach = 1.25 * reachOf([...values, unpatched.clean, unpatched.corrupted]);
  const map = add(box, "div");
  const says = add(box, "p", `A run for each head's z. Without a patch: ${written(unpatched[TARGET[direction]])}.`, "note");
  says.setAttribute("aria-live", "polite");
  const { fill } = heatmap(map, {
    label: "Logit difference with the z of one head patched", rows: ["z"], columns: names,
    low: -reach, high: reach, onEnter: (_, head) => open(head),
    onPoint: (_, head) => {
      says.textContent = `The z of head ${names[head]} alone: ${written(values[head])}. Enter or a click opens the head.`;
    },
  });
  const decimals = decimalsFor({ low: -reach, high: reach });
  fill(0, values, values.map(value => rounded(value, decimals)));
}

export function drawLens(box, lens, { cell }) {
  const heads = ["layer", "clean run says", "#diff.", "corrupted run says", "#diff."];
  const body = addTable(box, "The logit lens at this position", heads);
  const reach = 1.25 * reachOf(RUNS.flatMap(run => lens[run].map(layer => layer.logit_diff)));
  lens.clean.forEach((_, layer) => {
    const row = add(body, "tr", "", layer === cell.layer ? "here" : "");
    add(row, "th", layer).scope = "row";
    for (const run of RUNS) {
      const { top, logit_diff } = lens[run][layer];
      const says = add(row, "td", "", "probable");
      says.title = top.map(({ text, probability }) => `${text} ${percent(probability)}`).join("\n");
      add(says, "span", top[0].text, "token");
      add(says, "span", percent(top[0].probability), "number");
      addNumber(row, logit_diff, reach);
    }
  });
  add(box, "p", "diff.: logit of the corrupted answer minus that of the clean one, if no layer came after.", "note");
}

export function drawNeurons(box, neurons, { cell, unpatched }) {
  const heads = ["neuron", "#clean", "#corrupted", "#writes", "#alone"];
  const body = addTable(box, "Neurons of this layer", heads);
  const reach = 1.25 * reachOf([unpatched.clean, unpatched.corrupted]);
  for (const { neuron, clean, corrupted, direct, patched } of neurons) {
    const row = add(body, "tr");
    add(row, "th", `${cell.layer}.${neuron}`).scope = "row";
    for (const value of [clean, corrupted, direct]) addNumber(row, value);
    addNumber(row, patched, reach);
  }
  add(box, "p", "Activations in both runs; what the change between them writes towards the answer here; the logit "
    + "difference with this neuron alone patched.", "note");
}

// Several cells in one run, beside what each does in a run of its own.
export function drawJoint(box, { unpatched, single, joint, sum }, { names, direction }) {
  const start = unpatched[TARGET[direction]];
  add(box, "h2", `${names.length} cells patched together`);
  const line = add(box, "p");
  add(line, "b", written(joint), "number");
  add(line, "span", ` logit difference, all in one run; ${written(start)} without a patch. ${inWords(joint - start, sum - start)}`);
  const body = addTable(box, "One by one", ["by itself", "#logit diff.", "#moves by"]);
  const reach = 1.25 * reachOf([unpatched.clean, unpatched.corrupted, joint]);
  const rows = names.map((name, i) => [name, single[i]]);
  for (const [name, value] of [...rows, ["the sum of these moves", sum], ["together", joint]]) {
    const row = add(body, "tr");
    add(row, "th", name).scope = "row";
    addNumber(row, value, reach);
    addNumber(row, value - start);
  }
}

// What both moves of the answer say about each other.
function inWords(joint, sum) {
  const apart = `${written(joint)} together, ${written(sum)} as a sum`;
  if (Math.abs(joint - sum) <= .05 * Math.max(Math.abs(joint), Math.abs(sum))) return `The moves add up: ${apart}.`;
  if (joint * sum < 0) return `Together they move the answer the other way: ${apart}.`;
  if (Math.abs(joint) < Math.abs(sum)) return `Together they do less than the sum, as if they carried the same in part: ${apart}.`;
  return `Together they do more than the sum, as if they needed each other: ${apart}.`;
}
