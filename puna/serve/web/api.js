// The server's API: its models, and an answer as a stream of events.

import { recall } from "./store.js";

/** What went wrong, as a `kind` that the page has a sentence for, and the server's own words. */
export class ChatError extends Error {
  constructor(kind, detail = "", retryAfter = null) {
    super(detail || kind);
    this.kind = kind;
    this.detail = detail;
    this.retryAfter = retryAfter;
  }
}

const KINDS_BY_STATUS = {
  401: "Unauthorized", 403: "Forbidden", 404: "Model", 408: "Timeout", 413: "TooLarge", 429: "Busy",
  503: "Busy", 504: "Timeout",
};

/** The ids of the models that the server has. */
export async function listModels() {
  const response = await ask("v1/models");
  const { data } = await response.json();
  return data.map((model) => String(model.id));
}

/**
 * Asks for an answer. Yields {text} for each piece, {finish} and {usage} when they are known.
 * Throws a ChatError; an AbortError when `signal` stopped it.
 */
export async function* streamChat(body, signal) {
  const request = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  let whole = false;
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw errorFrom(chunk.error, Number(chunk.error.code) || 500);
    if (chunk.usage) yield { usage: chunk.usage };
    for (const choice of chunk.choices ?? []) {
      if (choice.delta?.content) yield { text: choice.delta.content };
      if (choice.finish_reason) {
        whole = true;
        yield { finish: choice.finish_reason };
      }
    }
  }
  if (!whole) throw new ChatError("BrokenOff");
}

async function ask(path, options = {}) {
  const key = recall("key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // A header that cannot be sent fails like a network that is gone; here only the key can be one.
    if (key && /[^\x21-\x7e]/.test(key)) throw new ChatError("Unauthorized", error.message);
    throw new ChatError("Network", error.message);
  }
  if (response.ok) return response;
  const text = await response.text();
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    error = { message: text.slice(0, 300) };
  }
  throw errorFrom(error, response.status, response.headers.get("Retry-After"));
}

function errorFrom(error, status, retryAfter = null) {
  const message = String(error.message ?? "");
  const seconds = Number.parseInt(retryAfter, 10);
  return new ChatError(kindOf(error, status, message), message, Number.isNaN(seconds) ? null : seconds);
}

function kindOf(error, status, message) {
  if (error.code === "context_length_exceeded" || (status === 400 && /context/i.test(message))) return "Context";
  return KINDS_BY_STATUS[status] ?? (status >= 500 ? "Server" : "Request");
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ChatError("Server", data.slice(0, 300));
  }
}

/** The `data` of server-sent events, as the HTML standard splits them. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let data = [];
  try {
    while (true) {
      const { done, value } = await read(reader, signal);
      if (done) return;
      buffer += value;
      const lines = buffer.split(/\r\n|\n|\r(?!$)/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    if (signal?.aborted) throw new DOMException("stopped", "AbortError");
    throw new ChatError("BrokenOff", error.message);
  }
}
