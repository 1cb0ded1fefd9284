// Questions to the server. An answer is a stream of lines, a JSON object each, as they are computed.

// Which page it is that asks: the server stops what an older question of the same page and lane wants.
const tab = Array.from(crypto.getRandomValues(new Uint32Array(2)), part => part.toString(36)).join("");
const asked = new Map(); // lane -> the AbortController of its latest question

// What was asked in this lane is no longer wanted.
export function cancel(lane) {
  asked.get(lane)?.abort();
  asked.delete(lane);
}

// Ask for a view; onEvent(event) is called with each event but the last, which is what comes back:
// {end: true, ...}, {error: a sentence}, or {cancelled: true} where a newer question in the same lane came.
export async function ask(view, body, onEvent = () => {}, { lane = view } = {}) {
  cancel(lane);
  const controller = new AbortController();
  asked.set(lane, controller);
  try {
    const answer = await fetch(`/api/${view}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, signal: controller.signal,
      body: JSON.stringify({ ...body, tab, lane }),
    });
    if (!answer.ok) return await refusal(answer);
    const last = await readEvents(answer.body.getReader(), onEvent, controller.signal);
    // An older question, broken off here, may come to the server after this one, and cancels it there.
    return last.cancelled && !controller.signal.aborted ? await ask(view, body, onEvent, { lane }) : last;
  } catch (error) {
    if (controller.signal.aborted) return { cancelled: true };
    if (!(error instanceof TypeError)) throw error;
    return { error: "The explorer does not answer. Does it still run in its terminal?" };
  }
}

async function refusal(answer) {
  const said = await answer.json().catch(() => ({}));
  return { error: said.error ?? `The explorer refused (${answer.status}). Open the address that its terminal shows.` };
}

const isLast = event => event.end || event.error || event.cancelled;

async function readEvents(reader, onEvent, signal) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return { error: "The answer broke off. Does the explorer still run in its terminal?" };
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (signal.aborted) return { cancelled: true };
      const event = JSON.parse(line);
      if (isLast(event)) return event;
      onEvent(event);
    }
  }
}
