// How a sweep is drawn: its colours, as in the library's pictures, its numbers, its heads, and what a cell says.

import { add, gradient, rounded } from "./common.js";
import { SCALES } from "./heatmap.js";
import { known } from "./state.js";

const FAINT = .001; // differences that are smaller than this are not blown up
const REDS = [[255, 245, 240], [251, 106, 74], [103, 0, 13]];
const COLOURS = {
  logit_diff: SCALES.diverging, // red: the corrupted answer is ahead
  normalized: SCALES.diverging.toReversed(), // blue: the clean answer is restored
  probability: SCALES.sequential,
  kl: REDS,
};

// {stops, low, high} for the numbers of one or more sweeps of the same measure.
export function scaleOf(sweeps) {
  const { measure } = sweeps[0].body;
  const stops = COLOURS[measure];
  if (measure === "probability") return { stops, low: 0, high: 1 };
  const marks = sweeps.flatMap(({ unpatched }) => [unpatched.clean, unpatched.corrupted]);
  const numbers = sweeps.flatMap(({ values }) => values.flat().filter(value => value !== null));
  // The unpatched runs fill most of a picture: not in the darkest colour.
  const reach = numbers.concat(marks.map(mark => 1.25 * mark)).reduce((most, x) => Math.max(most, Math.abs(x)), FAINT);
  return { stops, low: measure === "kl" ? 0 : -reach, high: reach };
}

// How many decimals show about two digits of the largest number.
export function decimalsFor({ low, high }) {
  const largest = Math.max(Math.abs(low), Math.abs(high)) || 1;
  return Math.min(4, Math.max(1, 1 - Math.floor(Math.log10(largest / 2))));
}

// A number in a sentence.
export function written(value) {
  if (Number.isInteger(value)) return String(value);
  return rounded(value, Math.abs(value) < .1 ? 4 : 2).replace("-", "\u2212");
}

// Which run's activations are put into which run's, and what such a sweep asks.
export const DIRECTIONS = {
  denoise: { from: "clean", to: "corrupted", question: "Denoising: what suffices to bring the clean answer back?" },
  noise: { from: "corrupted", to: "clean", question: "Noising: what does the clean answer need?" },
};
export const way = ({ from, to }) => `${from} \u2192 ${to}`;

export const hasHeads = site => known.facts.sites.find(({ name }) => name === site)?.has_heads;
// Its columns are the heads of each layer, not positions.
export const showsHeads = ({ body }) => hasHeads(body.site) && !body.at;

// Why a column cannot matter; "" where it can.
export function reasonFor(sweep, column) {
  if (showsHeads(sweep) || column >= sweep.first) return "";
  return `Position ${column} is left of the first difference, which is at position ${sweep.first}: up to there both `
    + "runs are the same, and a patch puts in what is there already.";
}

// The heatmap's options that follow from the sweep. A column "3 token" is the token with its position below.
export function optionsOf(sweep) {
  const split = sweep.columns.map(label => /^(\d+) (.*)$/su.exec(label) ?? ["", "", label]);
  const heads = showsHeads(sweep);
  return {
    corner: heads || !sweep.body.at ? "layer" : "head", rows: sweep.rows,
    columns: heads ? sweep.columns : split.map(part => part[2]),
    notes: heads ? undefined : split.map(part => part[1]),
    grey: (_, column) => reasonFor(sweep, column),
    scale: COLOURS[sweep.body.measure],
  };
}

// What was done for a cell, in words.
export function whatWasPut(sweep, row, column) {
  const { site, at, direction } = sweep.body, { from, to } = DIRECTIONS[direction];
  const head = at ? `${at.layer}.${at.head}` : `${row}.${column}`;
  const where = hasHeads(site) ? `head ${head}` : `layer ${row}`;
  const when = showsHeads(sweep) ? "all positions" : `position ${sweep.columns[column]}`;
  return `with the ${from} run\u2019s ${site} of ${where}, ${when}, in the ${to} run`;
}

// The bar of colours with its ends and the two unpatched runs.
export function drawLegend(box, { stops, low, high }, unpatched, quantity) {
  box.replaceChildren();
  add(box, "p", quantity, "note quantity");
  const scale = add(box, "div"), bar = add(scale, "div", "", "colours"), names = add(scale, "div", "", "run-names");
  bar.style.background = gradient(stops);
  const marks = ["clean", "corrupted"].sort((a, b) => unpatched[a] - unpatched[b]);
  const [first, second] = marks.map(run => {
    const share = Math.max(0, Math.min(1, (unpatched[run] - low) / (high - low)));
    add(bar, "span", "", "run-mark").style.left = `${100 * share}%`;
    add(names, "span", `${run} ${written(unpatched[run])}`);
    return share;
  });
  // A name ends below its mark, unless the other one needs that place.
  const [lower, upper] = [first, second - first].map(part => `minmax(max-content, ${part}fr)`);
  names.style.gridTemplateColumns = `${lower} ${upper} ${1 - second}fr`;
}

// A pixel for each colour [red, green, blue] of these rows; the style makes it larger.
export function paintPixels(canvas, rows) {
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  const pixels = rows.flat().flatMap(colour => [...colour, 255]);
  const image = new ImageData(Uint8ClampedArray.from(pixels), canvas.width);
  canvas.getContext("2d").putImageData(image, 0, 0);
}
