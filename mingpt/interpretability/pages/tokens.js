// Tokens as chips: a row of them, or two rows under each other.
//
//   tokenRow(box, texts, { tag, notes })    -> the chips, elements `tag` (left out: "span"); with
//                                              notes, each has room for a small text below
//   tokenPairs(box, first, second, differs) -> [chips of first, chips of second], aligned column by
//                                              column also where the line is full; differs[t] is
//                                              marked; the shorter row is filled up with no chips
//   colourChip(chip, colour, note)             [red, green, blue], or null for none; the small text
//
// What can be pointed at: choices(box, [chips], choose) of common.js.
import { add, inkOn } from "./common.js";

export function tokenRow(box, texts, { tag = "span", notes = false } = {}) {
  box.classList.add("tokens");
  return texts.map(text => {
    const chip = add(box, tag, text, "chip");
    if (notes) add(chip, "small");
    return chip;
  });
}

export function colourChip(chip, colour, note) {
  chip.style.backgroundColor = colour ? `rgb(${colour})` : "";
  chip.style.color = colour ? inkOn(colour) : "";
  if (note !== undefined) chip.querySelector("small").textContent = note;
}

export function tokenPairs(box, first, second, differs) {
  box.replaceChildren();
  box.classList.add("tokens", "pairs");
  const rows = [[], []];
  for (let t = 0; t < Math.max(first.length, second.length); t++) {
    const column = add(box, "div", "", differs[t] ? "pair differs" : "pair");
    [first, second].forEach((texts, r) => {
      if (t < texts.length) rows[r].push(add(column, "span", texts[t], "chip"));
      else add(column, "span", "no token", "missing");
    });
    add(column, "small", differs[t] ? `${t} ≠` : t);
  }
  return rows;
}
