// What can be taken along: the view as a script, a picture, a table, an address; and the dialog that shows texts.

import { ask } from "./api.js";
import { add } from "./common.js";
import { known, state, subscribe, writeAddress } from "./state.js";

const find = selector => document.querySelector(selector);
const KEYS = [
  ["arrows", "move in the heatmap, along tokens and tabs"],
  ["Enter", "look into the cell; again, to go into what is beside it"],
  ["Esc", "back up"],
  ["Space, Shift + arrows", "select several cells, to patch them together"],
  ["?", "this help"],
];

// What is asked for, its button, what the button says of itself, and what is done with the answer.
const KINDS = [
  ["script", "Script", "This view as a Python script that prints the same numbers", showScript],
  ["picture", "PNG", "This view as a picture", savePicture],
  ["csv", "CSV", "This view's numbers as a table", saveTable],
];

// exported(kind): what the view that is shown would be asked again as, with its name as `of`; or null where there is
// nothing to take along.
export function start(box, exported) {
  const buttons = KINDS.map(([kind, title, hint, take]) => {
    const act = () => make(kind, exported(kind), take);
    return [kind, addButton(box, title, hint, act)];
  });
  const link = addButton(box, "Copy link", "The address of this view", () => copyLink(link));
  const enable = () => buttons.forEach(([kind, button]) => { button.disabled = !exported(kind); });
  subscribe([...Object.keys(state), ...Object.keys(known)], enable);
  enable();
  find("#dialog-close").addEventListener("click", () => find("#dialog").close());
  find("#dialog-copy").addEventListener("click", () => copy(find("#dialog-body").textContent, find("#dialog-copy")));
  find("#help-button").addEventListener("click", showHelp);
  document.addEventListener("keydown", event => {
    if (event.key === "?" && !event.target.closest("textarea, input, select, dialog")) showHelp();
  });
}

function addButton(box, title, hint, act) {
  const button = add(box, "button", title);
  button.title = hint;
  button.addEventListener("click", act);
  return button;
}

function open(title, canCopy) {
  find("#dialog-title").textContent = title;
  find("#dialog-copy").hidden = !canCopy;
  find("#dialog-body").replaceChildren();
  find("#dialog").showModal();
  return find("#dialog-body");
}

function showHelp() {
  const body = open("How to read it", false);
  add(body, "p", "Both texts are run. A cell takes what the clean run has at one layer and position, puts it into the "
    + "corrupted run, and shows the answer then. Blue: the clean answer is ahead, so this cell carries what decides. "
    + "Red: the corrupted answer is still ahead. Layer 0 is on top; information flows down and to the right.");
  const list = add(body, "dl");
  for (const [keys, what] of KEYS) {
    add(add(list, "dt"), "kbd", keys);
    add(list, "dd", what);
  }
}

// Take what the server makes of the view: {text} or {png}. Where it cannot, its sentence is shown.
async function make(kind, request, take) {
  let made = null;
  const last = await ask(kind, request, event => { made = event; });
  if (last.error) add(open("This cannot be taken along", false), "p", last.error, "problem");
  if (last.end) take(made, request.of);
}

function showScript({ text }) {
  const script = add(open("This view as a script", true), "pre", text);
  script.tabIndex = 0;
  script.setAttribute("role", "group");
  script.setAttribute("aria-label", "Script");
}

function savePicture({ png }, name) {
  save(Uint8Array.from(atob(png), letter => letter.charCodeAt(0)), "image/png", `${name}.png`);
}

function saveTable({ text }, name) {
  save(text, "text/csv", `${name}.csv`);
}

function save(content, type, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function copyLink(button) {
  writeAddress();
  copy(location.href, button);
}

// A page that came over http from another machine has no clipboard: then the text is shown, to be copied by hand.
async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    if (!find("#dialog").open) add(open("Copy this", false), "p", text, "address");
    getSelection().selectAllChildren(find("#dialog-body"));
    return;
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1200);
}
