// Conversations and what happens in them: asking, answering, stopping, asking again.
//
// A conversation: {id, title, named, created, updated, settings, messages}. A message: {role, content}; an
// answer also has model, finish (stop | length | stopped | error), error, tokens, seconds.

import { ChatError, streamChat } from "./api.js";
import { t } from "./i18n.js";
import { deleteConversation, saveConversation } from "./store.js";

// Temperature and top p are those of Meta's chat example, and of `puna chat`.
export const DEFAULTS = {
  model: "", system: "", temperature: 0.6, top_p: 0.9, top_k: null, max_tokens: null, seed: null, stops: "",
};
const SAVE_EVERY_MS = 1000;
const TITLE_LENGTH = 60;
const BUNDLED_SECONDS = 0.1;

/** Changes are told as events: "change" (conversation), "text" (answer), "end" (answer), "unsaved" (error). */
export const bus = new EventTarget();
const tell = (type, detail) => bus.dispatchEvent(new CustomEvent(type, { detail }));

const running = new Map(); // conversation id -> {controller, over: a promise that its end is told}

const removed = new WeakSet(); // conversations that an ending answer must not bring back

export const isRunning = (conversation) => running.has(conversation.id);

export function newConversation(settings) {
  const now = Date.now();
  return {
    id: randomId(), title: "", named: false, created: now, updated: now,
    settings: { ...DEFAULTS, ...settings }, messages: [],
  };
}

// crypto.randomUUID exists on https and loopback alone; a phone comes by http.
export const randomId = () =>
  [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export const titleOf = (conversation) => conversation.title || t("untitled");

/** Saves a conversation. A browser that cannot keep it is told of, not fatal. */
export async function save(conversation) {
  if (!removed.has(conversation)) await kept(saveConversation(conversation));
}

/** Deletes a conversation, and stops the answer that is being written in it. */
export async function remove(conversation) {
  removed.add(conversation);
  stop(conversation);
  await kept(deleteConversation(conversation.id));
}

/** Undoes `remove`. */
export async function restore(conversation) {
  removed.delete(conversation);
  await save(conversation);
}

async function kept(change) {
  try {
    await change;
  } catch (error) {
    tell("unsaved", error);
  }
}

/** Adds a message of the user and asks for its answer. */
export async function send(conversation, text, model) {
  conversation.messages.push({ role: "user", content: text });
  if (!conversation.named && !conversation.title) conversation.title = titleFrom(text);
  await answer(conversation, model);
}

/** Asks again for the answer at `index`; what came after it goes. */
export async function regenerate(conversation, index, model) {
  conversation.messages.length = index;
  await answer(conversation, model);
}

/** Puts `text` in place of the message of the user at `index`, and asks from there. */
export async function edit(conversation, index, text, model) {
  conversation.messages.length = index;
  if (index === 0 && !conversation.named) conversation.title = "";
  await send(conversation, text, model);
}

/** Stops the answer that is being written, if one is; resolves when it has ended. */
export async function stop(conversation) {
  const run = running.get(conversation.id);
  run?.controller.abort();
  await run?.over;
}

function titleFrom(text) {
  const line = text.trim().split("\n")[0];
  const characters = [...line];
  return characters.length <= TITLE_LENGTH ? line : `${characters.slice(0, TITLE_LENGTH - 1).join("")}…`;
}

/** Whether the model may see an answer again: it has words, and they did not end in an error. */
export const isUsable = (message) => message.finish !== "error" && message.content.trim() !== "";

/** What is sent: roles alternate, so a question without a usable answer is left out, but for the last. */
export function messagesToSend({ settings, messages }) {
  const sent = [];
  messages.forEach((message, index) => {
    if (message.role !== "user") return;
    const reply = messages[index + 1];
    const last = index === messages.length - 1 || (index === messages.length - 2 && !reply.finish);
    if (last) sent.push({ role: "user", content: message.content });
    else if (reply?.role === "assistant" && isUsable(reply)) {
      sent.push({ role: "user", content: message.content }, { role: "assistant", content: reply.content });
    }
  });
  return settings.system.trim() ? [{ role: "system", content: settings.system }, ...sent] : sent;
}

function requestBody(conversation, model) {
  const body = { model, messages: messagesToSend(conversation) };
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    if (conversation.settings[name] !== null) body[name] = conversation.settings[name];
  }
  const stops = stopTexts(conversation.settings.stops);
  if (stops.length) body.stop = stops;
  return body;
}

/** "a\\n⏎b" -> ["a" and a line's end, "b"] */
export const stopTexts = (lines) =>
  lines.split("\n").filter((line) => line !== "").map((line) => line.replaceAll("\\n", "\n"));

function answer(conversation, model) {
  const controller = new AbortController();
  const over = write(conversation, model, controller);
  running.set(conversation.id, { controller, over });
  tell("change", conversation);
  return over;
}

async function write(conversation, model, controller) {
  const reply = { role: "assistant", content: "", model, finish: null, error: null, tokens: null, seconds: null };
  conversation.messages.push(reply);
  const body = requestBody(conversation, model);
  conversation.updated = Date.now();
  const clock = { start: performance.now(), first: null, last: null, pieces: 0, saved: performance.now() };
  await save(conversation);
  try {
    for await (const event of streamChat(body, controller.signal)) take(event, conversation, reply, clock);
    reply.finish ??= "stop";
  } catch (error) {
    if (error.name === "AbortError") reply.finish = "stopped";
    else fail(reply, error);
  } finally {
    running.delete(conversation.id);
  }
  reply.seconds = timings(clock);
  tell("end", { conversation, reply });
  await save(conversation);
}

function take(event, conversation, reply, clock) {
  if (event.finish) reply.finish = event.finish;
  if (event.usage) reply.tokens = { prompt: event.usage.prompt_tokens, completion: event.usage.completion_tokens };
  if (!event.text) return;
  const now = performance.now();
  clock.first ??= now;
  clock.last = now;
  clock.pieces += 1;
  reply.content += event.text;
  reply.pieces = clock.pieces;
  reply.seconds = timings(clock);
  tell("text", { conversation, reply });
  if (now - clock.saved > SAVE_EVERY_MS) {
    clock.saved = now;
    save(conversation);
  }
}

function fail(reply, error) {
  reply.finish = "error";
  if (error instanceof ChatError) {
    reply.error = { kind: error.kind, detail: error.detail, retryAfter: error.retryAfter };
  } else {
    console.error(error);
    reply.error = { kind: "BrokenOff", detail: String(error), retryAfter: null };
  }
}

/** Seconds until the first piece of text, from there to the last, and in all. */
function timings({ start, first, last }) {
  const seconds = (from, to) => (from === null || to === null ? null : (to - from) / 1000);
  return { first: seconds(start, first), writing: seconds(first, last), total: seconds(start, performance.now()) };
}

/**
 * Tokens a second from the first piece on. Of an answer so short that its pieces came bundled, with the
 * time before the first. Null where there is nothing to count.
 */
export function rateOf({ tokens, pieces, seconds }) {
  const written = tokens?.completion ?? pieces ?? 0;
  if (written < 2 || !seconds) return null;
  if (seconds.writing >= BUNDLED_SECONDS) return (written - 1) / seconds.writing;
  return written / (seconds.first + seconds.writing);
}
