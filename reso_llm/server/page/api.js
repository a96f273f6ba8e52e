// The server's API: plain requests, and texts that arrive token by token.

const KEY = "reso.token";

// A token stands behind # in the address that the server printed; it is moved out of sight.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname);
}

async function request(path, body, signal) {
  const token = sessionStorage.getItem(KEY);
  const answer = await fetch(path, {
    method: body ? "POST" : "GET",
    headers: {
      ...(body && { "Content-Type": "application/json" }),
      ...(token && { Authorization: `Bearer ${token}` }),
    },
    body: body && JSON.stringify(body),
    signal,
  });
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Error(said?.error?.message ?? `the server answered ${answer.status}`);
  }
  return answer;
}

/** The JSON of an answer; without a body it is asked for by GET. */
export async function ask(path, body) {
  return (await request(path, body)).json();
}

/** Yields the objects of a stream of server-sent events. */
export async function* stream(path, body, signal) {
  const answer = await request(path, { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const object = JSON.parse(data);
      if (object.error) throw new Error(object.error.message);
      yield object;
    }
  }
}
