// The two texts, their tokens under each other, the answers, and examples to start from.

import { add } from "./common.js";
import { known, set, state, subscribe } from "./state.js";
import { tokenPairs } from "./tokens.js";

const RUNS = { clean: "Clean", corrupted: "Corrupted" };
const parts = { texts: {}, says: {}, answers: {} };

// What an example fills in.
export const ofExample = ({ clean, corrupted, clean_answer = null, corrupted_answer = null }) =>
  ({ clean, corrupted, clean_answer, corrupted_answer });

export const percent = share => {
  if (share < .001) return "<0.1 %";
  return `${(100 * share).toFixed(share < .1 ? 1 : 0)} %`;
};

export function start(box) {
  addExamples(add(box, "div", "", "field examples"));
  const texts = add(box, "div", "", "texts");
  for (const run in RUNS) addText(texts, run);
  parts.tokens = add(box, "div");
  parts.tokens.setAttribute("role", "group");
  parts.tokens.setAttribute("aria-label", "The tokens of both texts");
  const line = add(box, "div", "", "toolbar");
  addAnswers(add(line, "div", "", "field answers"));
  parts.problem = add(line, "p", "", "problem");
  parts.problem.setAttribute("role", "status");
  subscribe(["clean", "corrupted"], showTexts);
  subscribe(["pair"], showPair);
}

function addText(box, run) {
  const label = add(box, "label", RUNS[run]);
  const text = parts.texts[run] = add(box, "textarea", "", "token");
  text.id = `text-${run}`;
  label.htmlFor = text.id;
  text.rows = 1;
  text.spellcheck = false;
  text.autocapitalize = "off";
  text.autocomplete = "off";
  // At each letter: the newest question cancels the one before.
  text.addEventListener("input", () => set({ [run]: text.value }, { live: "texts" }));
  const says = parts.says[run] = add(box, "p", "", "says");
  says.setAttribute("aria-label", `After the ${run} text`);
}

function addAnswers(box) {
  add(box, "span", "Answers", "label");
  for (const run in RUNS) {
    const select = parts.answers[run] = add(box, "select", "", "token");
    select.setAttribute("aria-label", `${RUNS[run]} answer`);
    select.title = `${RUNS[run]} answer: the token that differs (\u2260), or another one that a run may say`;
    select.addEventListener("change", () => {
      const value = select.value === "" ? null : Number(select.value);
      set({ [`${run}_answer`]: value });
    });
    if (run === "clean") add(box, "span", "against", "note");
  }
}

function addExamples(box) {
  add(box, "span", "Examples", "label");
  const buttons = add(box, "div", "", "buttons");
  subscribe(["facts"], () => {
    for (const example of known.facts.examples) {
      const button = add(buttons, "button", example.title);
      button.title = `${example.clean}\n${example.corrupted}`;
      if (example.models) button.title += `\n(for ${example.models.join(", ")})`;
      button.addEventListener("click", () => set({ ...ofExample(example), cells: [], at: null }));
    }
  });
}

function showTexts() {
  for (const run in RUNS)
    if (parts.texts[run].value !== state[run]) parts.texts[run].value = state[run];
}

function showPair() {
  const { tokens, differs, problem, tops } = known.pair;
  const [clean, corrupted] = Object.keys(RUNS).map(run => tokens[run].map(token => token.text));
  if (parts.shown !== tokens) {
    tokenPairs(parts.tokens, clean, corrupted, differs);
    // A long text scrolls, and then the keys must come to it too.
    parts.tokens.tabIndex = parts.tokens.scrollHeight > parts.tokens.clientHeight ? 0 : -1;
  }
  parts.shown = tokens;
  parts.problem.textContent = problem ?? "";
  for (const run in RUNS) parts.says[run].classList.toggle("unknown", Boolean(problem && !tops));
  if (!tops) return;
  for (const run in RUNS) {
    showSays(run, tops);
    showAnswers(run);
  }
}

// The most probable next token; the older one stays until the newer is known.
function showSays(run, tops) {
  const says = parts.says[run];
  const [{ text, probability }] = tops[run];
  says.replaceChildren();
  add(says, "span", "says ");
  add(says, "b", text, "token");
  add(says, "span", ` ${percent(probability)}`, "number");
}

function showAnswers(run) {
  const { tokens, first, differs, tops, answers } = known.pair, select = parts.answers[run];
  const chosen = state[`${run}_answer`];
  select.replaceChildren();
  const isOne = differs.filter(Boolean).length === 1;
  option(select, "", isOne ? `${tokens[run][first].text} \u2260` : "choose one");
  for (const from in RUNS) {
    const group = add(select, "optgroup");
    group.label = `The ${from} run says`;
    for (const { id, text, probability } of tops[from]) option(group, id, `${text}  ${percent(probability)}`);
  }
  if (chosen !== null && answers) {
    // One that is in neither list, or is given as a text, is an entry of its own.
    const isListed = Object.values(tops).some(top => top.some(token => token.id === chosen));
    if (!isListed) option(select, answers[run].id, answers[run].text);
  }
  select.value = answers && chosen !== null ? answers[run].id : chosen ?? "";
}

function option(parent, value, text) {
  add(parent, "option", text).value = value;
}
