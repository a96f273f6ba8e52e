// Strips under a reply: entropy, order parameter, stability, and the controllers' events in place.

import { draw, make, shown } from "./dom.js";
import { kindOf, mark, sentence } from "./events.js";

/** The strips of a text; `show(t)` is called for the token that somebody points at. */
export class Strips {
  constructor(text, mind, show) {
    Object.assign(this, { text, mind, show });
    this.element = make("div", { class: "strips", "aria-hidden": "false" });
    this.element.addEventListener("mousemove", (event) => {
      const chart = event.target.closest(".chart");
      if (!chart || !this.text.tokens.length) return;
      const box = chart.getBoundingClientRect();
      const t = Math.floor(((event.clientX - box.left) / box.width) * this.text.tokens.length);
      this.show(Math.max(0, Math.min(this.text.tokens.length - 1, t)));
    });
  }

  /** Draw a little later, once however often it is asked for meanwhile. */
  soon() {
    this.timer ??= setTimeout(() => this.redraw(), 100);
  }

  redraw() {
    clearTimeout(this.timer);
    this.timer = undefined;
    const { tokens } = this.text;
    const rows = [];
    if (tokens.some((token) => token.events)) rows.push(this.#events());
    const most = this.mind.max_entropy_nats;
    if (tokens.length) rows.push(this.#bars("entropy", tokens.map((k) => k.entropy_nats / most), this.#mean("entropy_nats", "nats")));
    if (tokens.some((k) => k.coherence !== undefined)) {
      rows.push(this.#line("coherence", tokens.map((k) => k.coherence ?? NaN), this.#mean("coherence", "")));
    }
    if (tokens.some((k) => k.stability)) rows.push(this.#stability());
    this.element.replaceChildren(...rows.flat());
  }

  /** Show the place of a token. */
  point(t) {
    const share = (t + 0.5) / this.text.tokens.length;
    this.element.style.setProperty("--at", `${100 * share}%`);
    this.element.classList.add("pointed");
  }

  #mean(key, unit) {
    const values = this.text.tokens.map((token) => token[key]).filter(Number.isFinite);
    const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
    return `mean ${shown(mean)} ${unit}`;
  }

  #row(name, chart, value) {
    const cell = make("div", { class: `chart ${name}` }, ...chart);
    return [make("span", { class: "name" }, name), cell, make("span", { class: "value" }, value)];
  }

  #svg(name, ...shapes) {
    const box = `0 0 ${this.text.tokens.length} 1`;
    return draw("svg", { viewBox: box, preserveAspectRatio: "none", role: "img", "aria-label": name }, ...shapes);
  }

  #bars(name, shares, value) {
    const bars = shares.map((y, t) => {
      const height = Math.max(0.03, Math.min(1, y));
      return draw("rect", { x: t + 0.1, width: 0.8, y: 1 - height, height });
    });
    return this.#row(name, [this.#svg(`${name}, ${value}`, ...bars)], value);
  }

  #line(name, values, value) {
    const points = values.flatMap((y, t) => (Number.isFinite(y) ? [`${t + 0.5},${1 - y}`] : []));
    const line = draw("polyline", { points: points.join(" ") });
    return this.#row(name, [this.#svg(`${name}, ${value}`, line)], value);
  }

  /** The warning as bars; the class in words wherever it changes. */
  #stability() {
    const { tokens } = this.text;
    const bars = tokens.map((k, t) => {
      const height = Math.max(0.03, k.warning ?? 0);
      return draw("rect", { x: t + 0.1, width: 0.8, y: 1 - height, height, class: k.stability });
    });
    const changes = tokens.flatMap((k, t) => {
      if (!k.stability || k.stability === tokens[t - 1]?.stability) return [];
      const label = make("span", { class: "class" }, k.stability);
      label.style.left = `${(100 * t) / tokens.length}%`;
      return [label];
    });
    const last = tokens.at(-1);
    const value = `warning ${shown(last.warning)}`;
    const name = `stability, ${last.stability}, ${value}`;
    return this.#row("stability", [this.#svg(name, ...bars), ...changes], value);
  }

  #events() {
    const { tokens, temperature } = this.text;
    let count = 0;
    const marks = tokens.flatMap((token, t) =>
      (token.events ?? []).map((event) => {
        count++;
        const shape = mark(kindOf(event, token.temperature, temperature), sentence(event));
        const place = make("span", { class: "place" }, shape);
        place.style.left = `${(100 * (t + 0.5)) / tokens.length}%`;
        return place;
      }),
    );
    return this.#row("events", marks, `${count} in ${tokens.length} tokens`);
  }
}
