// What the page shows, in two halves.
//
// `state` is what the person chose. All of it stands in the address (after the #), so that a reload, a link
// or the browser's Back shows the same view again. Change it with set(changes) alone:
//   set({ tab: "circuit" })                     a step: Back undoes it
//   set({ size: 40 }, { live: "size" })         one of many in a row (a drag, typing): Back undoes them together
//   set({ head: "0.0" }, { quiet: true })       what follows from something else, and is no step of its own
// `known` is what the server has said last. Change it with learn(changes).
// subscribe(names, f): f() is called after one of these entries of state or known has changed; once for a
// change of several, and not at the start.
//
// A view is a module that exports start(panel): it fills its part of the page, subscribes, and returns a
// function exported(kind) -> what a "script", "picture" or "csv" of it is asked for with, {of: "attention", ...the
// fields of that request}, or null where there is none (yet). It asks the server through api.js. It looks at `known.pair`:
// while that is null or has a problem there is nothing to ask; and while state.tab is not its own it rests.

const START = {
  model: "", clean: "", corrupted: "",
  clean_answer: null, corrupted_answer: null, // null: the differing token; a number: a token's id; or a text
  tab: "patch", // "patch", "attention", "circuit"
  site: "resid_post", direction: "denoise", measure: "logit_diff",
  at: null, // {layer, head}: the positions of this head, at a site with heads
  // The selected ones: {layer, position, head}; head null where the site has none, position null for a whole head.
  cells: [],
  run: "clean", head: null, query: null, key: null, against: null, // attention; head: "5.3"
  method: "eap", size: null, removed: [], // circuit; removed: [{sender, reader}]
};
export const state = { ...START };

export const known = {
  facts: null, // the answer of `facts`
  loaded: null, // the answer of `model`, of the model that is there: name, title, layers, heads, ...
  // Of the pair as it stands: tokens, differs, first, problem (a sentence or null); and, once the runs are done,
  // tops, answers, unpatched. Its fields are the sweep's events'.
  pair: null,
  // The heatmap that is shown: values (rows of numbers, null where none has come), rows, columns, first, quantity,
  // body (the request that it answers), and done (true once it is whole).
  sweep: null,
  attention: null, // the answer of `attention`
  circuit: null, // the answer of `circuit`, once it is whole
};

// What a pair is, in a request.
export const pairFields = () => ({
  model: state.model, clean: state.clean, corrupted: state.corrupted,
  clean_answer: state.clean_answer, corrupted_answer: state.corrupted_answer,
});

const number = { write: String, read: text => /^\d{1,9}$/.test(text) ? Number(text) : null };
const json = { write: JSON.stringify, read: text => JSON.parse(text) };
const cell = {
  write: ({ layer, position, head }) => [layer, position ?? "all", head].filter(part => part !== null).join("."),
  read: text => {
    const [layer, position, head = null] = text.split(".").map(number.read);
    return layer === null || (position ?? head) === null ? null : { layer, position, head };
  },
};
const edge = {
  write: ({ sender, reader }) => `${sender}>${reader}`,
  read: text => {
    const [sender, reader] = text.split(">");
    return reader ? { sender, reader } : null;
  },
};
const list = item => ({
  write: items => items.map(item.write).join(","),
  read: text => text.split(",").map(item.read).filter(one => one !== null),
});
// How what is no text is written in the address.
const FORMS = {
  clean_answer: json, corrupted_answer: json, query: number, key: number, size: number,
  at: {
    write: ({ layer, head }) => `${layer}.${head}`,
    read: text => {
      const [layer, head] = text.split(".").map(number.read);
      return layer === null || typeof head !== "number" ? null : { layer, head };
    },
  },
  cells: list(cell), removed: list(edge),
};

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function toAddress() {
  const fields = new URLSearchParams();
  for (const [name, value] of Object.entries(state))
    if (!same(value, START[name])) fields.set(name, FORMS[name] ? FORMS[name].write(value) : value);
  return `#${fields}`;
}

// An address may come from anywhere: what cannot be read is as if it were not there.
function fromAddress() {
  const read = { ...START }, fields = new URLSearchParams(location.hash.slice(1));
  for (const [name, text] of fields) {
    if (!(name in START)) continue;
    try {
      read[name] = FORMS[name] ? FORMS[name].read(text) : text;
    } catch {
      read[name] = START[name];
    }
  }
  return read;
}

const listeners = [];
export const subscribe = (names, listener) => listeners.push({ names, listener });

function tell(changed) {
  for (const { names, listener } of listeners) if (names.some(name => changed.includes(name))) listener();
}

export function learn(changes) {
  Object.assign(known, changes);
  tell(Object.keys(changes));
}

let latest = ""; // the kind of the latest change, of those that Back undoes together
let step = history.state?.step ?? Date.now(); // the browser's own numbers of its entries cannot be had
let waiting = 0; // a timer, until the address is written

export function writeAddress() {
  clearTimeout(waiting);
  waiting = 0;
  history.replaceState({ step }, "", toAddress());
}

// Which step this is; a new one for what Back undoes by itself.
export const currentStep = () => step;

function replaceAll(next, write) {
  const changed = Object.keys(START).filter(name => !same(state[name], next[name]));
  if (!changed.length) return;
  Object.assign(state, next);
  // Before the others are told, who may change more.
  write();
  tell(changed);
}

export function set(changes, { live = "", quiet = false } = {}) {
  replaceAll({ ...state, ...changes }, () => {
    if (quiet || (live && live === latest)) {
      // Not at once: browsers allow 20 a second, and a key that is held is faster.
      waiting ||= setTimeout(writeAddress, 150);
      return;
    }
    latest = live;
    if (waiting) clearTimeout(waiting);
    waiting = 0;
    step = Date.now();
    history.pushState({ step }, "", toAddress());
  });
}

// At the start, and when the address has changed: go where it says.
export function readAddress() {
  clearTimeout(waiting);
  waiting = 0;
  latest = "";
  step = history.state?.step ?? Date.now();
  replaceAll(fromAddress(), () => {});
}
