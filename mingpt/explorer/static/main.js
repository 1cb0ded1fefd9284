// The page: starts its parts, and keeps the tabs and the choice of the model.

import { ask } from "./api.js";
import * as attention from "./attention.js";
import * as circuit from "./circuit.js";
import { add } from "./common.js";
import * as past from "./history.js";
import * as keep from "./keep.js";
import * as pair from "./pair.js";
import { known, learn, readAddress, set, state, subscribe } from "./state.js";
import * as sweep from "./sweep.js";

// The tabs from left to right: what each is called, and the module that fills it.
const TABS = {
  patch: ["Patch", sweep],
  attention: ["Attention", attention],
  circuit: ["Circuit", circuit],
};
const find = selector => document.querySelector(selector);
const tabs = {}, panels = {}, exported = {};

function makeTab(name) {
  const [title, module] = TABS[name];
  const tab = tabs[name] = add(find("#tabs"), "button", title);
  const panel = panels[name] = add(find("#panels"), "div");
  tab.id = `tab-${name}`;
  panel.id = `panel-${name}`;
  tab.setAttribute("role", "tab");
  tab.setAttribute("aria-controls", panel.id);
  panel.setAttribute("role", "tabpanel");
  panel.setAttribute("aria-labelledby", tab.id);
  tab.addEventListener("click", () => set({ tab: name }));
  exported[name] = module.start(panel);
}

function showTab() {
  for (const name in TABS) {
    const isChosen = name === state.tab;
    panels[name].hidden = !isChosen;
    tabs[name].setAttribute("aria-selected", isChosen);
    tabs[name].tabIndex = isChosen ? 0 : -1;
  }
}

// The arrow keys lead along the tabs, as in every row of tabs.
function moveTab(event) {
  const names = Object.keys(TABS), at = names.indexOf(state.tab), last = names.length - 1;
  const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last };
  if (!(event.key in places) || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const next = names.at(places[event.key] % names.length);
  set({ tab: next });
  tabs[next].focus();
}

function say(sentence, isBad = false) {
  find("#notice").textContent = sentence;
  find("#notice").classList.toggle("problem", isBad);
}

function showStage({ stage, share }) {
  if (!stage) return;
  say(stage);
  find("#loading").hidden = false;
  if (typeof share === "number") find("#loading").value = share;
  else find("#loading").removeAttribute("value");
}

// Load a model; the one that is there stays until the other has come, and if it does not come. problem: why it is this
// one that is loaded, not the one that was wanted.
async function load(name, changes, problem = "") {
  let loaded = null;
  const last = await ask("model", { model: name }, event => {
    if (event.model) loaded = event.model;
    else showStage(event);
  });
  if (last.cancelled) return;
  find("#loading").hidden = true;
  say(last.error ?? problem, Boolean(last.error ?? problem));
  if (loaded && !last.error) {
    learn({ loaded: { ...loaded, name } });
    set({ model: name, ...changes }, { quiet: !changes });
  } else if (known.loaded) set({ model: known.loaded.name }, { quiet: true });
  else if (name !== known.facts.start) load(known.facts.start, undefined, last.error);
  showModel();
}

function showModel() {
  const name = known.loaded?.name ?? state.model;
  find("#model").value = name;
}

function chooseModel() {
  const name = find("#model").value;
  // Ids, heads and cells are this model's own.
  load(name, { clean_answer: null, corrupted_answer: null, at: null, cells: [], head: null, query: null,
    key: null, against: null, size: null, removed: [] });
}

// Where the address leaves something open, or says what there is not, it is as at the start.
function fillIn() {
  const { models, sites, measures, examples: [example], start } = known.facts, changes = {};
  const names = list => list.map(({ name }) => name);
  const choices = [["model", names(models), start], ["tab", Object.keys(TABS), "patch"],
    ["site", names(sites), "resid_post"], ["measure", names(measures), "logit_diff"],
    ["direction", ["denoise", "noise"], "denoise"]];
  for (const [name, allowed, usual] of choices) if (!allowed.includes(state[name])) changes[name] = usual;
  if (!state.clean && !state.corrupted) Object.assign(changes, pair.ofExample(example));
  set(changes, { quiet: true });
}

function goToAddress() {
  readAddress();
  fillIn();
}

async function start() {
  Object.keys(TABS).forEach(makeTab);
  find("#tabs").addEventListener("keydown", moveTab);
  find("#model").addEventListener("change", chooseModel);
  pair.start(find("#pair"));
  past.start(find("#history"));
  keep.start(find("#exports"), kind => exported[state.tab]?.(kind) ?? null);
  subscribe(["tab"], showTab);
  // What went wrong has been read by then.
  subscribe(["clean", "corrupted"], () => { if (find(".notice.problem")) say(""); });
  subscribe(["model"], () => {
    if (known.facts && state.model !== known.loaded?.name) load(state.model);
  });
  const last = await ask("facts", {}, event => learn({ facts: event }));
  if (last.error) return say(last.error, true);
  for (const { name, title } of known.facts.models) add(find("#model"), "option", title ?? name).value = name;
  addEventListener("popstate", goToAddress);
  goToAddress();
  showTab();
}

start();
