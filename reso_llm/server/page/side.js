// The instruments at the side: goal, memory, switches and sampling.

import { ask } from "./api.js";
import { byId, make, shown } from "./dom.js";

const SLIDERS = ["temperature", "top_p", "max_tokens"];

/** Show the settings, and call changed() after each change, switched(name) after a switch. */
export function arrange(mind, settings, changed, switched) {
  for (const name of SLIDERS) {
    const input = byId(name);
    const output = document.querySelector(`output[for="${name}"]`);
    settings[name] ??= mind.defaults[name];
    input.value = settings[name];
    output.value = settings[name];
    input.addEventListener("input", () => {
      settings[name] = Number(input.value);
      output.value = input.value;
      changed();
    });
  }
  const goal = byId("goal");
  goal.value = settings.goal ?? "";
  goal.closest("details").hidden = !mind.has_goals;
  goal.addEventListener("input", () => {
    settings.goal = goal.value;
    changed();
  });
  settings.without = (settings.without ?? []).filter((name) => mind.stages.some((s) => s.name === name));
  settings.controllers ??= mind.controllers.filter((c) => c.is_on).map((c) => c.name);
  const switchOf = ({ name, title, purpose }, list, isOn) => {
    const input = make("input", { type: "checkbox", id: `switch-${name}`, "data-switch": name });
    input.checked = isOn(name);
    input.addEventListener("change", () => {
      const others = settings[list].filter((other) => other !== name);
      const listed = input.checked === (list === "controllers");
      settings[list] = listed ? [...others, name] : others;
      changed();
      switched();
    });
    return make(
      "div",
      { class: "switch" },
      input,
      make("label", { for: `switch-${name}` }, title, make("small", {}, purpose)),
    );
  };
  const stages = mind.stages.map((s) => switchOf(s, "without", (name) => !settings.without.includes(name)));
  byId("stages").replaceChildren(...stages);
  byId("stages").closest("fieldset").hidden = !stages.length;
  byId("controllers").replaceChildren(
    ...mind.controllers.map((c) => switchOf(c, "controllers", (name) => settings.controllers.includes(name))),
  );
  byId("memories").closest("details").hidden = !mind.has_memory;
  if (mind.has_memory) arrangeMemory();
}

function arrangeMemory() {
  const form = byId("remember");
  const fact = byId("fact");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!fact.value.trim()) return;
    try {
      listMemories(await ask("/reso/memories", { text: fact.value }));
      fact.value = "";
    } catch (error) {
      byId("trouble").textContent = error.message;
    }
  });
  refreshMemories();
}

/** List what is remembered as it is now: every text written makes the others older. */
export async function refreshMemories() {
  listMemories(await ask("/reso/memories"));
}

function listMemories({ memories }) {
  const open = new Set([...document.querySelectorAll("#memories [open]")].map((d) => d.dataset.text));
  const items = memories.map((memory) =>
    make(
      "li",
      {},
      make("span", {}, memory.text),
      make(
        "details",
        { "data-text": memory.text, ...(open.has(memory.text) && { open: "" }) },
        make("summary", {}, "When did I learn this?"),
        make("p", {}, learned(memory)),
      ),
    ),
  );
  const nothing = make("li", { class: "quiet" }, "Nothing yet.");
  byId("memories").replaceChildren(...(items.length ? items : [nothing]));
}

function learned({ age, time, importance, weight }) {
  const texts = (n) => `${n} text${n === 1 ? "" : "s"}`;
  const when = age === 0 ? "Just now" : `${texts(age)} ago`;
  return `${when}, after the first ${texts(time)}. Importance ${shown(importance, 1)}, weight now ${shown(weight)}.`;
}
