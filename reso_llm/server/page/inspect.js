// What was measured of one token, in the panel at the side.

import { byId, make, percent, shown } from "./dom.js";
import { kindOf, mark, sentence } from "./events.js";

const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎") || "∅";

/** Show no token. */
export function inspectNothing() {
  const words = "Point at a token to see what was measured of it.";
  byId("inspected").replaceChildren(make("p", { class: "quiet" }, words));
}

/** Show token t of a text. */
export function inspect(mind, token, text, t) {
  const p = Math.exp(-token.surprise_nats);
  const rows = [
    ["probability", percent(p)],
    ["surprise", `${shown(token.surprise_nats)} nats`],
    ["entropy", `${shown(token.entropy_nats)} of ${shown(mind.max_entropy_nats, 1)} nats`],
    ["order parameter", token.coherence === undefined ? null : shown(token.coherence)],
    ["layers", token.layers === undefined ? null : `${token.layers} of ${mind.num_layers}`],
    ["temperature", shown(token.temperature)],
    ["stability", token.stability && `${token.stability}, warning ${shown(token.warning)}`],
    ["exponent", token.lyapunov === undefined ? null : `${shown(token.lyapunov)} nats a token`],
    ["read before", source(token.source)],
  ].filter(([, value]) => value);
  const list = make("dl", {}, ...rows.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
  byId("inspected").replaceChildren(
    make("p", { class: "shown-token" }, make("code", {}, visible(token.text)), ` ${t + 1} of ${text.tokens.length}`),
    ...(token.events ?? []).map((event) =>
      make("p", { class: "event" }, mark(kindOf(event, token.temperature, text.temperature), sentence(event)), ` ${sentence(event)}`),
    ),
    list,
    ...alternatives(token, p),
  );
}

function source(found) {
  if (!found) return "not these words in a row";
  const where = found.memory ? `in memory: “${found.memory}”` : "in this conversation";
  return `last ${found.tokens} tokens ${where}`;
}

function alternatives(token, p) {
  const others = token.alternatives ?? [];
  if (!others.length) return [];
  const most = Math.max(p, ...others.map((other) => other.p));
  const isToken = (other) => Math.abs(other.p - p) < 1e-6;
  const rows = others.map((other) => {
    const bar = make("span", { class: "bar" });
    bar.style.setProperty("--share", other.p / most);
    const chosen = isToken(other);
    return make(
      "li",
      chosen ? { class: "chosen" } : {},
      make("code", {}, visible(other.token)),
      bar,
      make("span", { class: "p" }, percent(other.p)),
      ...(chosen ? [make("span", { class: "tick", title: "chosen" }, "✓")] : []),
    );
  });
  const title = others.some(isToken) ? "Best alternatives" : "Best alternatives; another was drawn";
  return [make("h3", {}, title), make("ol", { class: "alternatives" }, ...rows)];
}
