// Radio buttons beside each other: what an entry of the state may be. choices: {value: [title, hint]}

import { add } from "./common.js";
import { set, state, subscribe } from "./state.js";

export function segments(box, label, name, choices) {
  const group = add(box, "div", "", "segments");
  group.setAttribute("role", "radiogroup");
  group.setAttribute("aria-label", label);
  for (const [value, [title, hint = ""]] of Object.entries(choices)) {
    const field = add(group, "label"), button = add(field, "input");
    field.title = hint;
    Object.assign(button, { type: "radio", name, value, checked: value === state[name] });
    add(field, "span", title);
    button.addEventListener("change", () => set({ [name]: value }));
    subscribe([name], () => { button.checked = value === state[name]; });
  }
}
