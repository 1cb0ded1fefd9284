// Which colours a sweep's numbers have, and how they are written: as in the library's pictures.

import { add, gradient, rounded } from "./common.js";
import { SCALES } from "./heatmap.js";

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
export const written = value => rounded(value, Math.abs(value) < .1 ? 4 : 2).replace("-", "\u2212");

// The bar of colours with its ends and the two unpatched runs.
export function drawLegend(box, { stops, low, high }, unpatched, quantity) {
  box.replaceChildren();
  add(box, "p", quantity, "note quantity");
  const bar = add(box, "div", "", "colours");
  bar.style.background = gradient(stops);
  for (const run of ["clean", "corrupted"]) {
    const mark = add(bar, "span", "", `run-mark ${run}`);
    const share = Math.max(0, Math.min(1, (unpatched[run] - low) / (high - low)));
    mark.style.left = `${100 * share}%`;
    // The text stays within the bar.
    mark.classList.toggle("left", share < .5);
    add(mark, "span", `${run} ${written(unpatched[run])}`);
  }
}
