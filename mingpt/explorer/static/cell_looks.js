// Where the heads of a cell's layer look from its position: a row for each head, the clean run above the corrupted one.

import { WEIGHTS } from "./attention_picture.js";
import { add, choices, mix, rounded, step } from "./common.js";
import { paintPixels } from "./sweep_picture.js";

const RUNS = ["clean", "corrupted"];
const MOST_NAMES = 24; // tokens; more could not be read

const placeOfLargest = weights => weights.indexOf(Math.max(...weights));

// looks: for each run and head the weights of the tokens up to the cell's position.
export function drawLooks(box, looks, { cell, tokens, open }) {
  const T = looks.clean[0].length;
  const weightOf = (run, head, key) => `${tokens[run][key].text} ${rounded(looks[run][head][key], 2)}`;
  const list = add(box, "div", "", "rows");
  list.setAttribute("role", "group");
  list.setAttribute("aria-label", "Heads; up and down leads from head to head, left and right along the tokens");
  const says = add(box, "p", "The upper half of a row is the clean run; white is 0, dark is 1.", "note");
  says.setAttribute("aria-live", "polite");
  let head = 0, key = placeOfLargest(looks.clean[0]);

  function point(newHead, newKey) {
    head = newHead;
    key = newKey;
    mark(head, 0);
    says.textContent = `Head ${cell.layer}.${head} at position ${key}: clean ${weightOf("clean", head, key)}, corrupted ${
      weightOf("corrupted", head, key)}. Enter or a click opens the head.`;
    for (const line of list.querySelectorAll(".key")) line.style.left = `${100 * (key + .5) / T}%`;
  }

  const buttons = looks.clean.map((_, h) => {
    const most = RUNS.map(run => weightOf(run, h, placeOfLargest(looks[run][h])));
    const button = addHead(list, `${cell.layer}.${h}`, RUNS.map(run => looks[run][h]), most);
    button.addEventListener("click", () => open(h));
    return button;
  });
  if (T <= MOST_NAMES) addNames(list, tokens, T);
  const mark = choices(list, buttons.map(button => [button]), h => point(h, key), ["focusin"]);
  list.addEventListener("pointermove", event => {
    const strip = event.target.closest(".strip");
    if (!strip) return;
    const { left, width } = strip.getBoundingClientRect();
    const over = Math.floor(T * (event.clientX - left) / width);
    point(buttons.indexOf(strip.parentElement), Math.max(0, Math.min(T - 1, over)));
  });
  list.addEventListener("keydown", event => {
    // Up and down are choices'.
    if (event.key === "ArrowUp" || event.key === "ArrowDown") return;
    const next = step(event, 0, key, [T]);
    if (next) point(head, next[1]);
  });
}

function addHead(list, name, weights, most) {
  const button = add(list, "button", "", "look");
  button.setAttribute("aria-label", `Head ${name} looks most at ${most[0]} in the clean run, at ${most[1]} in the corrupted`);
  add(button, "span", name);
  const strip = add(button, "span", "", "strip");
  paintPixels(add(strip, "canvas"), weights.map(row => row.map(weight => mix(WEIGHTS, weight))));
  add(strip, "span", "", "key");
  const says = add(button, "span", "", "most token");
  for (const line of most) add(says, "span", line);
  return button;
}

// Below the rows: where the texts differ, both tokens.
function addNames(list, tokens, T) {
  const row = add(list, "div", "", "names");
  row.setAttribute("aria-hidden", "true"); // each token is named in the sentence
  for (let t = 0; t < T; t++) {
    const [clean, corrupted] = RUNS.map(run => tokens[run][t].text);
    add(row, "span", clean === corrupted ? clean : `${clean}/${corrupted}`, "token");
  }
}
