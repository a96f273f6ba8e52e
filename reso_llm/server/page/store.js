// What a reload keeps: the conversation and the settings, in this browser alone.

const KEY = "reso.page";

/** {exchanges, settings} as they were left; nothing where there is none. */
export function load() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {}; // written by another version
  }
}

/** Keep the state; measures of the oldest replies go first where there is no room for all. */
export function save(state) {
  const kept = structuredClone(state);
  for (const exchange of [null, ...kept.exchanges]) {
    if (exchange) forget(exchange);
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
      return;
    } catch {
      // the browser's room is used up: forget some more
    }
  }
}

function forget(exchange) {
  delete exchange.other;
  exchange.reply.tokens = exchange.reply.tokens.map(({ text, entropy_nats, surprise_nats, temperature }) => ({
    text, entropy_nats, surprise_nats, temperature,
  }));
}
