// The server's OpenAI-compatible API, as far as the page needs it.

/** What went wrong. kind: away (no connection), cut (it ended midway), key (401, 403), busy (429,
 *  503), context (too long), refused (another 4xx), server (5xx). */
export class ApiError extends Error {
  constructor(kind, message = "", retryAfterS = null) {
    super(message);
    this.kind = kind;
    this.retryAfterS = retryAfterS;
  }
}

/** Return the models: [{id, context_length, stage}]. */
export async function listModels(key) {
  const response = await request("/v1/models", { headers: headers(key) });
  const { data } = await response.json();
  return data.map(({ id, context_length = null, stage = null }) => ({ id, context_length, stage }));
}

/** Yield the chunks of a streamed answer: {delta, finish, usage}, each where there is one. */
export async function* streamChat(body, key, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const init = { method: "POST", headers: headers(key), body: JSON.stringify(asked), signal };
  const response = await request("/v1/chat/completions", init);
  let finish = null;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw errorFrom(chunk.error.code === "context_length_exceeded" ? 400 : 500, chunk, null);
    const choice = chunk.choices?.[0] ?? {};
    finish = choice.finish_reason ?? finish;
    yield { delta: choice.delta ?? {}, finish, usage: chunk.usage ?? null };
  }
  if (finish === null) throw new ApiError("cut");
}

function headers(key) {
  const authorization = key ? { Authorization: `Bearer ${key}` } : {};
  return { "Content-Type": "application/json", ...authorization };
}

async function request(path, init) {
  let response;
  try {
    response = await fetch(path, { ...init, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("away", error.message);
  }
  if (response.ok) return response;
  const text = await response.text();
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // A proxy's page, perhaps: the status says enough.
  }
  throw errorFrom(response.status, body ?? {}, response.headers.get("Retry-After"));
}

function errorFrom(status, body, retryAfter) {
  const { message = "", code = null } = body.error ?? {};
  const said = String(message ?? "").slice(0, 1000) || `HTTP ${status}`;
  if (status === 401 || status === 403) return new ApiError("key", said);
  if (status === 429 || status === 503) return new ApiError("busy", said, secondsOf(retryAfter));
  if (status < 500 && code === "context_length_exceeded") return new ApiError("context", said);
  return new ApiError(status < 500 ? "refused" : "server", said);
}

/** Return what Retry-After says in seconds: a number, or a date. */
function secondsOf(retryAfter) {
  if (retryAfter === null) return null;
  const seconds = Number(retryAfter);
  const until = Number.isFinite(seconds) ? seconds : (Date.parse(retryAfter) - Date.now()) / 1000;
  return Number.isFinite(until) ? Math.max(until, 0) : null;
}

/** Yield the data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("cut", error.message);
  } finally {
    reader.cancel().catch(() => {});
  }
}
