// Attention patterns: every head's, small, and one head's, large.
//
//   const patterns = unpackPatterns(data)     // data: tokens; heads: ["layer.head", ...], `across` to
//                                             // a row; weights: of web_pages.pack_patterns
//   patterns.weight(head, query, key)         in thousandths; heads by their numbers
//   const mark = drawHeads(box, patterns, choose)     a button a head: choose(head); mark(head) makes
//                                                     it the current one
//   const plot = drawPattern(box, patterns, { onPoint(query, key) {}, onEnter(query, key) {} })
//   plot.show(head)                           this head's pattern
//   plot.point(query, key)                    marks this weight and its row
import { add, choices, mix, step } from "./common.js";

// White through blue to near black: the lightness alone tells the weight.
export const WEIGHTS = [[255, 255, 255], [60, 130, 190], [8, 20, 60]];
const TICK = 13; // pixels from a token's name to the next

export const writtenWeight = thousandths => (thousandths / 1000).toFixed(3);

export function unpackPatterns({ tokens, heads, across, weights }) {
  const T = tokens.length, size = T * (T + 1) / 2; // weights of a head: the keys up to each query
  const bytes = Uint8Array.from(atob(weights), character => character.charCodeAt(0));
  const thousandths = new Uint16Array(bytes.buffer);
  const weight = (head, query, key) => thousandths[head * size + query * (query + 1) / 2 + key];
  return { tokens, heads, across, weight };
}

// A pixel a weight, of a colour for each thousandth.
function paintPattern(canvas, { tokens, weight }, head, palette) {
  const T = canvas.width = canvas.height = tokens.length;
  const pixels = new Uint32Array(T * T).fill(0xffeeeeee); // grey: no token sees a later one
  for (let query = 0; query < T; query++)
    for (let key = 0; key <= query; key++) pixels[query * T + key] = palette[weight(head, query, key)];
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), T, T), 0, 0);
}

const makePalette = () => Uint32Array.from({ length: 1001 }, (_, i) => {
  const [red, green, blue] = mix(WEIGHTS, i / 1000);
  return (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
});

export function drawHeads(box, patterns, choose) {
  const { heads, across } = patterns, palette = makePalette(), buttons = [];
  box.classList.add("heads");
  box.replaceChildren();
  box.style.gridTemplateColumns = `auto repeat(${across}, minmax(0, 48px))`;
  add(box, "span");
  for (let head = 0; head < across; head++) add(box, "span", head);
  heads.forEach((name, head) => {
    if (head % across === 0) {
      buttons.push([]);
      add(box, "span", buttons.length - 1);
    }
    const button = add(box, "button");
    button.title = `head ${name}`;
    button.setAttribute("aria-label", button.title);
    paintPattern(add(button, "canvas"), patterns, head, palette);
    buttons.at(-1).push(button);
  });
  const mark = choices(box, buttons, (row, column) => choose(row * across + column), ["focusin", "click"]);
  return head => mark(Math.floor(head / across), head % across);
}

export function drawPattern(box, patterns, { onPoint, onEnter = () => {} }) {
  const { tokens } = patterns, T = tokens.length, palette = makePalette();
  box.classList.add("frame");
  box.replaceChildren();
  const queries = add(box, "div", "", "ticks token queries");
  const plot = add(box, "div", "", "plot"), keys = add(box, "div", "", "ticks token keys");
  plot.tabIndex = 0;
  plot.setAttribute("role", "application");
  plot.setAttribute("aria-label", "Pattern: the arrow keys choose a cell");
  const canvas = add(plot, "canvas"), row = add(plot, "div", "", "row"), cell = add(plot, "div", "", "key");
  let place = [0, 0];

  // As many tokens are named as there is room for.
  function nameTicks() {
    const room = plot.clientHeight, every = Math.max(1, Math.ceil(TICK * T / room));
    for (const [ticks, side] of [[queries, "top"], [keys, "left"]]) {
      ticks.replaceChildren();
      for (let t = 0; t < T; t += every) add(ticks, "span", tokens[t]).style[side] = `${room * (t + .5) / T}px`;
    }
  }

  function point(query, key) {
    place = [query, key];
    for (const mark of [row, cell]) {
      mark.style.top = `${100 * query / T}%`;
      mark.style.height = `${100 / T}%`;
    }
    cell.style.left = `${100 * key / T}%`;
    cell.style.width = `${100 / T}%`;
  }

  const share = (x, side) => Math.max(0, Math.min(T - 1, Math.floor(T * x / side)));
  const placeOf = event => [share(event.offsetY, plot.clientHeight), share(event.offsetX, plot.clientWidth)];
  for (const kind of ["pointermove", "pointerdown"]) plot.addEventListener(kind, event => onPoint(...placeOf(event)));
  plot.addEventListener("click", event => onEnter(...placeOf(event)));
  plot.addEventListener("keydown", event => {
    const next = step(event, ...place, tokens.map((_, query) => query + 1));
    if (next) onPoint(...next);
    if (event.key === "Enter") onEnter(...place);
  });
  new ResizeObserver(nameTicks).observe(plot);
  return { point, show: head => paintPattern(canvas, patterns, head, palette) };
}
