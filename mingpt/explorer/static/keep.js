// What can be taken along: the view as a script, a picture, a table, an address; and the dialog that shows texts.

import { ask } from "./api.js";
import { add } from "./common.js";
import { subscribe, writeAddress } from "./state.js";

const find = selector => document.querySelector(selector);
const KEYS = [
  ["arrows", "move in the heatmap, along tokens and tabs"],
  ["Enter", "look into the cell; again, to go into what is beside it"],
  ["Esc", "back up"],
  ["Space, Shift + arrows", "select several cells, to patch them together"],
  ["?", "this help"],
];

// exported(): what the view that is shown would be asked again as, with its name as `of`; or null.
export function start(box, exported) {
  const button = (title, hint, act) => {
    const made = add(box, "button", title);
    made.title = hint;
    made.addEventListener("click", () => act(exported()));
    return made;
  };
  const needView = [
    button("Script", "This view as a Python script that prints the same numbers", showScript),
    button("PNG", "This view as a picture", savePicture),
    button("CSV", "This view's numbers as a table", saveTable),
  ];
  const link = button("Copy link", "The address of this view", () => copyLink(link));
  const enable = () => needView.forEach(made => { made.disabled = !exported(); });
  subscribe(["sweep", "pair", "tab", "at", "cells", "site", "circuit"], enable);
  enable();
  find("#dialog-close").addEventListener("click", () => find("#dialog").close());
  find("#dialog-copy").addEventListener("click", () => copy(find("#dialog-body").textContent, find("#dialog-copy")));
  find("#help-button").addEventListener("click", showHelp);
  document.addEventListener("keydown", event => {
    if (event.key === "?" && !event.target.closest("textarea, input, select, dialog")) showHelp();
  });
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

// What the server makes of the view: {text} or {png}. Where it cannot, its sentence is shown.
async function make(kind, request) {
  let made = null;
  const last = await ask(kind, request, event => { made = event; });
  if (last.error) add(open("This cannot be kept", false), "p", last.error, "problem");
  return last.end ? made : null;
}

async function showScript(request) {
  const made = await make("script", request);
  if (!made) return;
  const text = add(open("This view as a script", true), "pre", made.text);
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "Script");
}

async function savePicture(request) {
  const made = await make("picture", request);
  if (made) save(Uint8Array.from(atob(made.png), letter => letter.charCodeAt(0)), "image/png", `${request.of}.png`);
}

async function saveTable(request) {
  const made = await make("csv", request);
  if (made) save(made.text, "text/csv", `${request.of}.csv`);
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
