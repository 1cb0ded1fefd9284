// What all pages and the explorer draw with. An ES module, which the explorer serves as it is;
// web_pages.save_page writes it into a page without `export`, and without imports.

// Text comes in as text alone, so that no token can become a part of the page.
export function add(parent, tag, text = "", style = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = style;
  return parent.appendChild(element);
}

// The colour [red, green, blue] at a share, from 0 to 1, of the way along equally spaced stops.
export function mix(stops, share) {
  const place = Math.max(0, Math.min(1, share)) * (stops.length - 1);
  const before = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = stops.slice(before, before + 2);
  return from.map((start, i) => Math.round(start + (to[i] - start) * (place - before)));
}

// The same colours as the background of a bar.
export const gradient = stops => `linear-gradient(to right, ${stops.map(stop => `rgb(${stop})`)})`;

// A number to so many decimals; what rounds to 0 has no sign.
export const rounded = (x, decimals) => x.toFixed(decimals).replace(/^-(0\.?0*)$/, "$1");

// Black or white, whichever reads better on a colour: at least 4.5 : 1 (WCAG's relative luminance).
export function inkOn(colour) {
  const [red, green, blue] = colour.map(part => (part / 255) ** 2.2);
  return .2126 * red + .7152 * green + .0722 * blue > .179 ? "#000" : "#fff";
}

// Where a key leads to from a place in rows of such lengths: [row, column], or nothing for other keys.
export function step(event, row, column, lengths) {
  const places = {
    ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column],
    ArrowDown: [row + 1, column], Home: [row, 0], End: [row, Infinity],
  };
  // With another key it may be the browser's: Alt and an arrow go back.
  if (!(event.key in places) || event.altKey || event.ctrlKey || event.metaKey) return undefined;
  event.preventDefault();
  const within = (number, count) => Math.max(0, Math.min(count - 1, number));
  const [wantedRow, wantedColumn] = places[event.key];
  const next = within(wantedRow, lengths.length);
  return [next, within(wantedColumn, lengths[next])];
}

// Rows of elements in a box, of which one is current: the one that was pointed at, or that the keys
// led to. Tab comes to that one alone. -> a function that makes the element at (row, column) current.
// It is mousemove, since "over" also comes where the keys scroll a page under a mouse that rests.
export function choices(box, rows, choose, kinds = ["mousemove", "focusin", "click"]) {
  const places = new Map(), lengths = rows.map(row => row.length);
  rows.forEach((row, r) => row.forEach((element, c) => {
    places.set(element, [r, c]);
    element.tabIndex = -1;
  }));
  let current = rows[0][0];
  current.tabIndex = 0;
  function mark(row, column) {
    current.tabIndex = -1;
    current.removeAttribute("aria-current");
    current = rows[row][column];
    current.tabIndex = 0;
    current.setAttribute("aria-current", "true");
  }
  const placeOf = event => places.get(event.target.closest("[tabindex]"));
  for (const kind of kinds) box.addEventListener(kind, event => {
    const place = placeOf(event);
    if (place && !event.target.closest("[aria-current]")) choose(...place);
  });
  box.addEventListener("keydown", event => {
    const place = placeOf(event), next = place && step(event, ...place, lengths);
    if (next) rows[next[0]][next[1]].focus();
  });
  return mark;
}
