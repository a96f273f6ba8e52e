// Decisions of the controllers: a mark and words for each, in the text and on the strips.

import { draw } from "./dom.js";

const MARKS = {
  slip: ["M9 1 3 9h4l-2 6 7-9H8l3-5z", "slip"],
  stop: ["M3 3h10v10H3z", "stop"],
  deepen: ["M3 3l5 4 5-4M3 8l5 4 5-4", "deepening"],
  noise: ["M1 8c2-6 3-6 5 0s3 6 5 0 2-4 4-2", "noise"],
  cooler: ["M8 2v11M4 9l4 4 4-4", "cooler"],
  warmer: ["M8 14V3M4 7l4-4 4 4", "warmer"],
};
const LINES = new Set(["deepen", "noise", "cooler", "warmer"]);

/** The kind of an event; `before` is the temperature without it. */
export function kindOf(event, temperature, before) {
  if (event.controller === "phase_slip") return "slip";
  if (event.controller === "srb") return event.cause === "deepen" ? "deepen" : "stop";
  if (event.controller === "stochastic_resonance") return "noise";
  return temperature < before ? "cooler" : "warmer";
}

/** An event in words. */
export function sentence(event) {
  const cause = event.cause.replaceAll("_", " ");
  return `${event.controller.replaceAll("_", " ")}, ${cause}: ${event.effect}`;
}

/** The mark of a kind of event, with its words for those who cannot see it. */
export function mark(kind, words) {
  const [path, name] = MARKS[kind];
  const line = LINES.has(kind);
  return draw(
    "svg",
    { viewBox: "0 0 16 16", class: `mark ${kind}`, role: "img", "aria-label": `${name}: ${words}` },
    draw("title", {}, `${name}: ${words}`),
    draw("path", { d: path, ...(line && { class: "line" }) }),
  );
}
