// What is behind the chosen cell, filled in as the server finds it; and several cells patched together.

import { drawHeads, drawJoint, drawLens, drawNeurons, drawTops, drawValue } from "./cell_parts.js";
import { drawFeatures, drawNone, hasFeatures } from "./cell_features.js";
import { drawLooks } from "./cell_looks.js";
import { ask, cancel } from "./api.js";
import { add } from "./common.js";
import { known, pairFields, set, state, subscribe } from "./state.js";

// The parts from top to bottom: the name of its event, its title, who draws it (features come in
// several events), and whether it is open at first.
const PARTS = [
  ["heads", "Each head here, patched by itself", drawHeads, true],
  ["tops", "The next token without the patch, and with it", drawTops, true],
  ["looks", "Where these heads look", drawLooks, false],
  ["lens", "What each layer would say here", drawLens, false],
  ["neurons", "The neurons that write the answer here", drawNeurons, false],
  ["features", "Features of the sparse autoencoder", null, false],
];
const parts = {};
let asked = ""; // what the detail is of, as text

// Fill `box`, a part of the Patch tab.
export function start(box) {
  parts.hint = add(box, "p", "What you choose is looked into here. Several cells, chosen with Space, Shift + arrows or "
    + "Ctrl + click, are patched together.", "note");
  parts.joint = add(box, "section", "", "joint card");
  parts.joint.setAttribute("aria-label", "Several cells together");
  parts.cell = add(box, "section", "", "cell");
  parts.cell.setAttribute("aria-label", "One cell");
  parts.title = add(parts.cell, "h2");
  parts.value = add(parts.cell, "div", "", "value");
  parts.value.setAttribute("aria-live", "polite");
  parts.problem = add(parts.cell, "p", "", "problem");
  parts.problem.setAttribute("role", "status");
  const folds = add(parts.cell, "div", "", "parts");
  // Where the style has two columns, all of them fit.
  const isWide = matchMedia("(min-width: 118rem)").matches;
  for (const [name, title, , isOpen] of PARTS) addFold(folds, name, title, isOpen || isWide);
  subscribe(["cells", "sweep", "tab"], show);
  subscribe(["pair"], () => box.classList.toggle("stale", Boolean(known.pair.problem)));
  show();
}

function addFold(box, name, title, isOpen) {
  const fold = add(box, "details", "", name);
  fold.open = isOpen;
  add(fold, "summary", title);
  parts[name] = add(fold, "div");
}

// The latest of the chosen cells is looked into; where there are several, all are patched together too.
function show() {
  const { cells } = state;
  parts.hint.hidden = cells.length > 0;
  parts.cell.hidden = !cells.length || !asked;
  parts.joint.hidden = cells.length < 2 || !asked;
  // The heatmap comes first. Until it is whole, the detail of an older one stays.
  if (state.tab !== "patch" || !known.sweep?.done || known.pair.problem) return;
  const fields = { ...pairFields(), site: state.site, direction: state.direction };
  const wanted = JSON.stringify([fields, cells]);
  if (wanted === asked) return;
  asked = wanted;
  if (cells.length) askCell(fields, cells.at(-1));
  else cancel("detail");
  if (cells.length > 1) askJoint(fields, cells);
  else cancel("joint");
}

function nameOf({ layer, position, head }, tokens) {
  const part = head === null ? `layer ${layer}` : `head ${layer}.${head}`;
  if (position === null) return `${part}, all positions`;
  return `${part}, position ${position} ${tokens[position]?.text ?? ""}`;
}

async function askCell(fields, cell) {
  parts.cell.hidden = false;
  const { tokens, answers } = known.pair;
  const about = { cell, tokens, answers, direction: fields.direction, open: head => openHead(about.cell, head) };
  parts.title.textContent = `${fields.site}, ${nameOf(cell, tokens.corrupted)}`;
  parts.problem.textContent = "";
  for (const name of ["value", ...PARTS.map(([name]) => name)]) parts[name].classList.add("stale");
  if (!hasFeatures(cell.layer)) redraw(parts.features, drawNone);
  parts.cell.setAttribute("aria-busy", "true");
  const last = await ask("cell", { ...fields, ...cell }, event => drawEvent(event, about), { lane: "detail" });
  if (last.cancelled) return;
  parts.cell.setAttribute("aria-busy", "false");
  if (last.error) showProblem(last.error);
}

function showProblem(sentence) {
  parts.problem.textContent = sentence;
  asked = ""; // the next choice asks again
}

function drawEvent(event, about) {
  if (event.sentence) {
    about.unpatched = event.unpatched;
    // Of a cell of all positions, what is looked at is the last one.
    about.cell = { ...about.cell, position: event.position };
    redraw(parts.value, drawValue, event, about);
  }
  for (const [name, , draw] of PARTS) if (draw && event[name]) redraw(parts[name], draw, event[name], about);
  if (!event.features) return;
  // Each autoencoder of this layer has an event of its own; the first takes the place of the older cell's.
  if (parts.features.classList.contains("stale")) redraw(parts.features, drawFeatures, event, about);
  else drawFeatures(parts.features, event, about);
}

function redraw(box, draw, data, about) {
  box.replaceChildren();
  box.classList.remove("stale");
  draw(box, data, about);
}

async function askJoint(fields, cells) {
  const names = cells.map(cell => nameOf(cell, known.pair.tokens.corrupted));
  const about = { names, direction: fields.direction };
  parts.joint.hidden = false;
  parts.joint.classList.add("stale");
  const last = await ask("joint", { ...fields, cells }, event => redraw(parts.joint, drawJoint, event, about));
  if (last.error) redraw(parts.joint, box => add(box, "p", last.error, "problem"));
}

// The same head in the Attention tab, at the cell's token.
function openHead({ layer, position }, head) {
  set({ tab: "attention", head: `${layer}.${head}`, query: position, key: null, against: null });
  document.querySelector("#tab-attention").focus();
}
