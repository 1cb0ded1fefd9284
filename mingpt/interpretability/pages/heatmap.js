// A table of coloured cells with a head for each row and column, which stay while it scrolls.
//
//   const table = heatmap(box, {
//     label: "Effect of each patch",            // its name for those who do not see it
//     corner: "layer",                          // text in the corner
//     rows: ["0", "1"], columns: ["a", "b"],    // their heads, from the top and from the left
//     notes: [0, 1],                            // a small text below each column's head
//     compact: true,                            // small cells, columns' heads on their side
//     scale: SCALES.sequential, low: 0, high: 1,    // left out: SCALES.diverging from -1 to 1
//     grey: (row, column) => "why it cannot matter", // or "", for a cell that can
//     onPoint(row, column) {},    // the mouse, the arrow keys or a finger came to another cell
//     onEnter(row, column) {},    // a click or Enter on a cell that is not grey
//     onSelect(places) {},        // Space, Shift + arrows, or a click with Ctrl or Shift: all
//   });                           // selected cells, [[row, column], ...]; left out: none are
//
//   table.fill(row, values, words)   values may come row by row; null: not known yet. words: texts
//                                    in the cells, else each value is the cell's label
//   table.clear()                    no value is known
//   table.range(low, high)           the values with the first and the last colour
//   table.point(row, column)         as when the mouse came there; Tab then comes there too
//   table.select(places)             these are the selected cells
//   table.cells[row][column]         the elements
import { add, choices, inkOn, mix, rounded } from "./common.js";

export const SCALES = {
  // matplotlib's RdBu_r, as in the library's figures: red above the middle, blue below.
  diverging: [[5, 48, 97], [33, 102, 172], [67, 147, 195], [146, 197, 222], [209, 229, 240],
    [247, 247, 247], [253, 219, 199], [244, 165, 130], [214, 96, 77], [178, 24, 43], [103, 0, 31]],
  sequential: [[247, 251, 255], [8, 48, 107]],
};

export function heatmap(box, options) {
  const { scale = SCALES.diverging, onPoint = () => {}, onEnter = () => {}, onSelect } = options;
  let { low = -1, high = 1 } = options;
  const body = drawTable(box, options), cells = drawCells(body, options);
  const values = cells.map(row => row.map(() => null));

  function paint(row) {
    cells[row].forEach((cell, column) => {
      const value = values[row][column];
      const colour = value === null ? null : mix(scale, (value - low) / (high - low || 1));
      cell.style.backgroundColor = colour ? `rgb(${colour})` : "";
      cell.style.color = colour ? inkOn(colour) : "";
    });
  }

  function fill(row, numbers, words) {
    numbers.forEach((value, column) => {
      const cell = cells[row][column];
      if (isGrey(cell)) return;
      values[row][column] = value;
      if (words) cell.textContent = words[column];
      else cell.setAttribute("aria-label", value === null ? "not known yet" : rounded(value, 3));
    });
    paint(row);
  }

  function range(newLow, newHigh) {
    low = newLow;
    high = newHigh;
    cells.forEach((_, row) => paint(row));
  }

  function point(row, column) {
    mark(row, column);
    onPoint(row, column);
  }

  const mark = choices(body, cells, point);
  const clear = () => cells.forEach((row, r) => fill(r, row.map(() => null), row.map(() => "")));
  const select = selection(body, cells, onSelect);
  body.addEventListener("click", event => {
    const place = placeOf(cells, event.target);
    if (place && !(onSelect && (event.ctrlKey || event.metaKey || event.shiftKey))) onEnter(...place);
  });
  body.addEventListener("keydown", event => {
    const place = placeOf(cells, event.target);
    if (place && event.key === "Enter") onEnter(...place);
  });
  return { fill, clear, range, point, select, cells };
}

const isGrey = cell => cell.hasAttribute("aria-disabled");

// [row, column] of a cell that is not grey.
function placeOf(cells, target) {
  const cell = target.closest("td");
  if (!cell || isGrey(cell)) return undefined;
  const row = cell.parentElement.rowIndex - 1; // the first is the heads'
  return [row, cells[row].indexOf(cell)];
}

function drawTable(box, { label, corner = "", columns, notes, compact = false, onSelect }) {
  box.replaceChildren();
  box.classList.add("heatmap");
  box.classList.toggle("compact", compact);
  const table = add(box, "table");
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", label);
  if (onSelect) table.setAttribute("aria-multiselectable", "true");
  const heads = add(add(table, "thead"), "tr");
  add(heads, "th", corner);
  columns.forEach((text, column) => {
    const head = add(heads, "th");
    head.scope = "col";
    add(head, "span", text, "token");
    if (notes) add(head, "small", notes[column]);
  });
  return add(table, "tbody");
}

function drawCells(body, { rows, columns, grey = () => "" }) {
  return rows.map((text, r) => {
    const row = add(body, "tr");
    add(row, "th", text).scope = "row";
    return columns.map((_, c) => {
      const cell = add(row, "td", "", "token"), reason = grey(r, c);
      cell.setAttribute("role", "gridcell");
      if (reason) {
        cell.setAttribute("aria-disabled", "true");
        cell.setAttribute("aria-label", reason);
        cell.title = reason;
      }
      return cell;
    });
  });
}

// Which cells are selected, by mouse and keys. -> a function that selects these and no others
function selection(body, cells, onSelect) {
  let selected = new Set();
  function select(places) {
    for (const cell of selected) cell.removeAttribute("aria-selected");
    selected = new Set(places.map(([row, column]) => cells[row][column]));
    for (const cell of selected) cell.setAttribute("aria-selected", "true");
  }
  function change(changed) {
    const places = [...changed].map(cell => placeOf(cells, cell)).filter(Boolean);
    select(places);
    onSelect(places);
  }
  const without = cell => new Set([...selected].filter(other => other !== cell));
  const toggle = cell => change(selected.has(cell) ? without(cell) : [...selected, cell]);
  if (onSelect) {
    body.addEventListener("click", event => {
      if ((event.ctrlKey || event.metaKey || event.shiftKey) && placeOf(cells, event.target)) toggle(event.target);
    });
    body.addEventListener("keydown", event => {
      if (event.key === " " && placeOf(cells, event.target)) {
        event.preventDefault(); // the page would scroll
        toggle(event.target);
      }
      // choices() has moved on from the event's cell by now.
      if (event.shiftKey && event.key.startsWith("Arrow"))
        change(new Set([...selected, event.target, body.querySelector("[aria-current]")]));
    });
  }
  return select;
}
