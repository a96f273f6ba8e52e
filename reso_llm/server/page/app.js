// The page: a conversation at the left, instruments at the side.

import { ask, stream } from "./api.js";
import { byId, make, shown } from "./dom.js";
import { inspect, inspectNothing } from "./inspect.js";
import { Reply } from "./reply.js";
import { arrange, refreshMemories } from "./side.js";
import { load, save } from "./store.js";

const STARTERS = ["Hi! How was your weekend?", "What kind of music do you like?", "Do you have any pets?"];
const ALTERNATIVES = 5;
const READ_BACK = 200; // exchanges that a request holds, at most; the server reads those that fit

const state = { exchanges: [], settings: {}, ...load() };
let mind;
let writing; // the AbortController of the reply that is being written
let shownExchanges = [];

const inspectHere = (token, text, t) => inspect(mind, token, text, t);
const keep = () => save(state);
const trouble = (words) => (byId("trouble").textContent = words);

/** The part of a request that the settings decide; a stored reply keeps its own. */
function choices() {
  const { temperature, top_p, max_tokens, goal, without, controllers } = state.settings;
  return {
    temperature, top_p, max_tokens,
    reso: { goal: (goal ?? "").trim(), without: [...without].sort(), controllers: [...controllers].sort(), auto_temperature: false, alternatives: ALTERNATIVES },
  };
}

/** What is off or on in a request and not in another, in words; empty where they agree. */
function difference(asked, other) {
  const titles = Object.fromEntries([...mind.stages, ...mind.controllers].map((s) => [s.name, s.title]));
  const more = (list, a, b) => a.reso[list].filter((name) => !b.reso[list].includes(name)).map((name) => titles[name]);
  const without = [...more("without", asked, other), ...more("controllers", other, asked)];
  const added = [...more("controllers", asked, other), ...more("without", other, asked)];
  return [...without.map((title) => `without ${title}`), ...added.map((title) => `with ${title}`)].join(", ");
}

/** Why a reply ended early. The browser calls a lost connection, and a page that is left, a TypeError. */
function reasonOf(error) {
  const why = { AbortError: "stopped", TypeError: "the connection was lost" }[error.name];
  return why ? `${why}; the reply is kept as far as it went` : error.message;
}

/** Write a text into a reply; resolves when it has ended, however it ends. */
async function write(reply, asked) {
  writing = new AbortController();
  byId("stop").hidden = false;
  byId("send").hidden = true;
  reply.element.setAttribute("aria-busy", "true");
  try {
    for await (const chunk of stream("/v1/chat/completions", asked, writing.signal)) {
      const near = isNearEnd();
      reply.add(chunk);
      if (near) window.scrollTo({ top: document.body.scrollHeight });
    }
  } catch (error) {
    reply.cut(reasonOf(error));
  }
  reply.element.removeAttribute("aria-busy");
  byId("stop").hidden = true;
  byId("send").hidden = false;
  writing = undefined;
  keep();
  if (mind.has_memory) refreshMemories();
}

const isNearEnd = () => window.innerHeight + window.scrollY > document.body.scrollHeight - 160;
const newText = (asked) => ({ tokens: [], seed: asked.seed, temperature: asked.temperature });

/** The messages before an exchange, and its question. */
function messagesUpTo(index) {
  const before = state.exchanges.slice(Math.max(0, index - READ_BACK), index).flatMap(({ question, reply }) => [
    { role: "user", content: question },
    { role: "assistant", content: reply.tokens.map((token) => token.text).join("") },
  ]);
  return [...before, { role: "user", content: state.exchanges[index].question }];
}

async function send(question) {
  const seed = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  const asked = { seed, ...choices() };
  state.exchanges.push({ question, asked, reply: newText(asked) });
  keep();
  const reply = showExchange(state.exchanges.length - 1);
  byId("welcome").hidden = true;
  window.scrollTo({ top: document.body.scrollHeight });
  await write(reply, { ...asked, messages: messagesUpTo(state.exchanges.length - 1) });
}

/** Write the last reply again from the same prompt and seed, as the switches are now. */
async function again() {
  const index = state.exchanges.length - 1;
  if (index < 0 || writing) return;
  const exchange = state.exchanges[index];
  const now = choices();
  const asked = { ...exchange.asked, reso: { ...exchange.asked.reso, without: now.reso.without, controllers: now.reso.controllers } };
  const { pair, first } = shownExchanges[index];
  pair.querySelector(".other")?.remove();
  delete exchange.other;
  if (!difference(asked, exchange.asked)) {
    pair.classList.remove("double");
    keep();
    return;
  }
  exchange.other = { asked, ...newText(asked) };
  const other = showOther(pair, exchange);
  await write(other, { ...asked, messages: messagesUpTo(index) });
  other.compare(first.text);
  first.element.scrollIntoView({ block: "nearest" });
}

function showOther(pair, exchange) {
  const other = new Reply(exchange.other, mind, inspectHere, difference(exchange.other.asked, exchange.asked));
  other.element.classList.add("other");
  pair.classList.add("double");
  pair.append(other.element);
  return other;
}

function showExchange(index) {
  const exchange = state.exchanges[index];
  const first = new Reply(exchange.reply, mind, inspectHere);
  const { tokens, end, problem } = exchange.reply;
  if (problem ?? (!end && tokens.length)) first.cut(problem ?? "the page was left before the end");
  const pair = make("div", { class: "pair" }, first.element);
  shownExchanges[index] = { pair, first };
  const goal = exchange.asked.reso.goal;
  byId("exchanges").append(
    make(
      "section",
      { class: "exchange" },
      make("div", { class: "question" }, make("p", {}, exchange.question), ...(goal ? [make("small", {}, `goal: ${goal}`)] : [])),
      pair,
    ),
  );
  if (exchange.other) {
    const other = showOther(pair, exchange);
    if (exchange.other.end) other.compare(exchange.reply);
  }
  return first;
}

function arrangeComposer() {
  const question = byId("question");
  const submit = () => {
    const text = question.value.trim();
    if (!text || writing) return;
    trouble("");
    question.value = "";
    send(text);
  };
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    }
  });
  byId("stop").addEventListener("click", () => writing?.abort());
  byId("new").addEventListener("click", () => {
    writing?.abort();
    state.exchanges = [];
    shownExchanges = [];
    byId("exchanges").replaceChildren();
    byId("welcome").hidden = false;
    inspectNothing();
    keep();
    question.focus();
  });
  byId("close").addEventListener("click", inspectNothing);
  document.addEventListener("keydown", (event) => event.key === "Escape" && inspectNothing());
  const starters = STARTERS.map((text) => make("button", { type: "button", onclick: () => send(text) }, text));
  byId("starters").replaceChildren(...starters);
}

async function start() {
  try {
    mind = await ask("/reso/mind");
  } catch (error) {
    byId("about").textContent = "not connected";
    trouble(`${error.message}. Is the server running, and does the address have its token?`);
    return;
  }
  byId("about").textContent = `${mind.model}: ${mind.description}`;
  byId("most").textContent = `${shown(mind.max_entropy_nats, 1)} nats: every token is as likely`;
  arrange(mind, state.settings, keep, again);
  arrangeComposer();
  inspectNothing();
  byId("welcome").hidden = state.exchanges.length > 0;
  state.exchanges.forEach((_, index) => showExchange(index));
  window.addEventListener("pagehide", () => {
    writing?.abort();
    keep();
  });
  document.body.dataset.ready = "yes";
  byId("question").focus();
}

start();
