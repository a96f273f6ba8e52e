// One reply: its tokens as they arrive, and under them the strips of what was measured.

import { make, percent, shown } from "./dom.js";
import { kindOf, mark, sentence } from "./events.js";
import { Strips } from "./strips.js";

/** A reply on the page. `text` is {tokens, end, seed, temperature, problem}, as it is stored. */
export class Reply {
  constructor(text, mind, inspect, title = "") {
    Object.assign(this, { text, mind, inspect });
    this.spans = [];
    this.body = make("div", {
      class: "words",
      role: "group",
      "aria-label": title || "Reply; arrow keys go from token to token",
      onkeydown: (event) => this.#walk(event),
    });
    this.strips = new Strips(text, mind, (t) => this.#show(t));
    this.foot = make("div", { class: "foot" });
    this.element = make(
      "article",
      { class: "reply" },
      ...(title ? [make("h3", {}, title)] : []),
      this.body,
      this.strips.element,
      this.foot,
    );
    text.tokens.forEach((_, t) => this.#place(t));
    this.strips.redraw();
    if (text.end) this.finish();
  }

  /** Take one more chunk of the stream. */
  add(chunk) {
    const { tokens } = this.text;
    const piece = chunk.choices[0]?.delta?.content ?? "";
    if (chunk.choices[0]?.finish_reason) {
      this.text.end = chunk.reso;
      this.finish();
    } else if (chunk.reso) {
      tokens.push({ text: piece, ...chunk.reso });
      this.#place(tokens.length - 1);
    } else if (piece && tokens.length) {
      // Half a character at the end of a text has no token of its own.
      tokens.at(-1).text += piece;
      this.spans.at(-1).append(piece);
    }
    this.strips.soon();
  }

  get string() {
    return this.text.tokens.map((token) => token.text).join("");
  }

  #place(t) {
    const token = this.text.tokens[t];
    const span = make("span", {
      class: "token",
      tabindex: t === 0 ? 0 : -1,
      "data-t": t,
      onmouseenter: () => this.#show(t),
      onfocus: () => this.#show(t),
      onclick: () => span.focus(),
    });
    for (const event of token.events ?? []) {
      const before = this.text.temperature;
      span.append(mark(kindOf(event, token.temperature, before), sentence(event)));
    }
    span.append(token.text);
    const share = Math.min(1, token.entropy_nats / this.mind.max_entropy_nats);
    span.style.setProperty("--entropy", share.toFixed(3));
    if (token.source) span.classList.add(token.source.memory ? "from-memory" : "from-context");
    this.spans.push(span);
    this.body.append(span);
  }

  #show(t) {
    for (const other of document.querySelectorAll(".token.shown")) other.classList.remove("shown");
    this.spans[t].classList.add("shown");
    this.strips.point(t);
    this.inspect(this.text.tokens[t], this.text, t);
  }

  #walk(event) {
    const t = Number(event.target.dataset.t);
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -t, End: this.spans.length - 1 - t }[event.key];
    const next = this.spans[t + step];
    if (step === undefined || !next) return;
    event.preventDefault();
    this.spans[t].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  /** Mark the first token that differs from another text's. */
  compare(other) {
    const [own, others] = [this.text.tokens, other.tokens];
    let t = 0;
    while (t < own.length && t < others.length && own[t].text === others[t].text) t++;
    const same = t === own.length && t === others.length;
    this.spans[t]?.classList.add("differs");
    let words = t ? `They part at token ${t + 1}.` : "Other from the first token on.";
    if (same) words = "Token for token the same: here this changed nothing.";
    this.foot.append(make("p", { class: "difference" }, words));
  }

  finish() {
    const { end, tokens, seed } = this.text;
    if (end.stop_reason === "end") this.spans.at(-1)?.append("∎");
    this.strips.redraw();
    const facts = [`${tokens.length} tokens`, `ended by ${end.stop_reason.replaceAll("_", " ")}`];
    if (end.stability) facts.push(end.stability);
    if (Number.isFinite(end.lyapunov)) facts.push(`exponent ${shown(end.lyapunov)} nats a token`);
    for (const [goal, progress] of Object.entries(end.goal_progress ?? {})) {
      facts.push(`goal “${goal}” ${percent(progress)}`);
    }
    facts.push(`seed ${seed}`);
    this.foot.replaceChildren(make("p", { class: "facts" }, facts.join(" · ")));
    const used = end.memories_used ?? [];
    if (used.length) {
      const items = used.map((text) => make("li", {}, text));
      this.foot.append(make("div", { class: "used" }, make("b", {}, "Used from memory"), make("ul", {}, ...items)));
    }
    for (const note of end.notes ?? []) this.foot.append(make("p", { class: "note" }, note));
  }

  /** End a reply that came to nothing more: stopped by hand, or by an error. */
  cut(words) {
    this.text.problem = words;
    this.foot.replaceChildren(make("p", { class: "note" }, words));
    this.strips.redraw();
  }
}
