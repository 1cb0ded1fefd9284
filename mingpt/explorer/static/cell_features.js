// The features of a sparse autoencoder at a cell's layer and position.

import { ask } from "./api.js";
import { add } from "./common.js";
import { addNumber, addTable, reachOf } from "./cell_parts.js";
import { known, state } from "./state.js";

const COLUMNS = ["feature", "#clean", "#corrupted", "#writes", "#alone"];

let clicks = 0;

// The autoencoders of the model that is there.
const autoencoders = () => known.loaded?.autoencoders ?? [];

export const hasFeatures = layer => autoencoders().some(one => one.layer === layer);

// Where there is no autoencoder of the cell's layer: where there is one.
export function drawNone(box) {
  const places = new Set(autoencoders().map(({ layer, site }) => `layer ${layer} (${site})`));
  add(box, "p", places.size
    ? `This layer has no autoencoder. Choose a cell of ${[...places].join(" or ")}, which has one.`
    : "This model has no autoencoder here. The command takes one: --model, and with it --autoencoder.", "note");
}

// One autoencoder; where there are several of this layer, one stands below the other.
export function drawFeatures(box, { features, autoencoder, site, note }, { cell, unpatched }) {
  add(box, "p", `A sparse autoencoder describes ${site} as a sum of few features, each a direction of its own. This is `
    + `${autoencoder}.`, "note");
  if (note) add(box, "p", note, "problem");
  if (!features.length) {
    add(box, "p", "At this token both runs have the same features.");
    return;
  }
  const body = addTable(box, `Features of ${site}, layer ${cell.layer}`, COLUMNS);
  const reach = 1.25 * reachOf([unpatched.clean, unpatched.corrupted]);
  for (const { feature, clean, corrupted, direct, patched } of features) {
    const row = add(body, "tr");
    const name = add(row, "th");
    name.scope = "row";
    const button = add(name, "button", feature, "feature");
    button.setAttribute("aria-expanded", "false");
    button.title = "which tokens does it promote?";
    button.addEventListener("click", () => toggle(button, row, { autoencoder, feature }));
    for (const value of [clean, corrupted, direct]) addNumber(row, value);
    addNumber(row, patched, reach);
  }
  add(box, "p", "Those whose change writes most towards the answers: their values in both runs; what the change writes "
    + "towards the answer here; the logit difference with this feature alone patched, in a run of its own, all else as "
    + "it was. Click a number to see which tokens the feature promotes.", "note");
}

// Below its row, what one feature promotes; a second click takes it away.
async function toggle(button, row, fields) {
  const isOpen = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", !isOpen);
  if (isOpen) return row.nextElementSibling.remove();
  const below = document.createElement("tr");
  row.after(below);
  const cell = add(below, "td", "", "promoted");
  cell.colSpan = COLUMNS.length;
  cell.setAttribute("role", "status");
  // A lane of its own: one answer does not stop another.
  const last = await ask("feature", { model: state.model, ...fields }, event => {
    for (const [name, tokens] of Object.entries(event)) {
      const line = add(cell, "p", `${name} `);
      for (const text of tokens) {
        add(line, "span", text, "token");
        line.append(" ");
      }
    }
  }, { lane: `feature ${clicks++}` });
  if (last.error) add(cell, "p", last.error, "problem");
}
