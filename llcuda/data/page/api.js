// Requests to the server, its streams and its errors.

import { read } from "./local.js";

export class ApiError extends Error {
  // kind: "gone" (no connection), "key", "busy", "cut" (the stream broke off) or "refused".
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

const KINDS = { 401: "key", 429: "busy", 503: "busy" };
const LEAVING = 200; // milliseconds in which a page is gone that is being left

function headers() {
  const key = (read("key", "tab") ?? "").trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

// Throws an ApiError that says what is wrong and what to do.
async function send(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("gone",
      "The server cannot be reached. Start it again with “llcuda serve”, then retry.");
  }
  if (response.ok) return response;
  let reason = `the server answered with status ${response.status}`;
  try {
    reason = (await response.json()).error.message ?? reason;
  } catch { /* the answer is not JSON: a proxy's page */ }
  const kind = KINDS[response.status] ?? "refused";
  if (kind === "key") reason += ". Enter the key in the settings, then retry.";
  if (kind === "busy") {
    const seconds = response.headers.get("retry-after");
    reason += seconds ? `. Retry in ${seconds} s.` : ". Retry later.";
  }
  throw new ApiError(kind, reason);
}

export async function modelNames() {
  const response = await send("v1/models", { headers: headers() });
  return (await response.json()).data.map(model => model.id);
}

// Yields the events of a chat completion.
export async function* streamChat(body, signal) {
  const response = await send("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify(body),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(error => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) {
      // Firefox ends the stream before it leaves the page, where timers stop: the answer is still "running" then.
      await new Promise(resolve => setTimeout(resolve, LEAVING));
      throw new ApiError("cut", "The connection ended before the answer did. What arrived is kept.");
    }
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data:")) continue; // a comment that keeps the connection open
      const data = part.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError("refused", event.error.message);
      yield event;
    }
  }
}
