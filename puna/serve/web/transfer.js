// Conversations to a JSON file and back. A file may come from anyone: what it holds is checked and copied
// field by field, and everything else in it is dropped.

import { DEFAULTS, randomId } from "./chat.js";
import { toast } from "./dom.js";
import { number, t } from "./i18n.js";

const FORMAT = "puna-conversations";
const VERSION = 1;
const MAX_MEGABYTES = 50;
const MAX_TEXT = 2_000_000;
const FINISHES = ["stop", "length", "stopped", "error", "tool_calls", "content_filter"];

/** Why a file was refused: the key of a sentence, and its values. */
class ImportError extends Error {
  constructor(key, values = {}) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

/** Saves these conversations to a file. */
export function exportAll(conversations) {
  if (!conversations.length) {
    toast(t("nothingToExport"));
    return;
  }
  const exported = new Date().toISOString();
  const text = JSON.stringify({ format: FORMAT, version: VERSION, exported, conversations }, null, 1);
  download(text, `puna-${exported.slice(0, 10)}.json`);
  toast(t("exported", { count: number(conversations.length) }));
}

function download(text, name) {
  const anchor = document.createElement("a");
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  anchor.href = url;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** The conversations of a file that are not here in the same state; says how many, or what is wrong with it. */
export async function importFrom(file, here) {
  let read;
  try {
    read = await readExport(file);
  } catch (error) {
    if (!(error instanceof ImportError)) throw error;
    toast(t("importFailed", { reason: t(error.key, error.values) }));
    return [];
  }
  const known = new Map(here.map((conversation) => [conversation.id, conversation.updated]));
  const added = read.filter(({ id, updated }) => !(known.get(id) >= updated));
  for (const conversation of added) {
    if (known.has(conversation.id)) conversation.id = randomId();
  }
  const skipped = read.length - added.length;
  toast(t(skipped ? "importedSome" : "imported", { count: number(added.length), skipped: number(skipped) }));
  return added;
}

/** The conversations of an exported file; throws an ImportError. */
async function readExport(file) {
  if (file.size > MAX_MEGABYTES * 1e6) throw new ImportError("importTooLarge", { size: MAX_MEGABYTES });
  let document;
  try {
    document = JSON.parse(await file.text());
  } catch {
    throw new ImportError("importNotJson");
  }
  if (document?.format !== FORMAT || !Array.isArray(document.conversations)) throw new ImportError("importNotOurs");
  if (document.version !== VERSION) throw new ImportError("importVersion");
  return document.conversations.map((conversation, index) => readConversation(conversation, index + 1));
}

function readConversation(value, number) {
  const check = (good, field) => {
    if (!good) throw new ImportError("importBroken", { number, field });
  };
  const text = (found, field, limit = MAX_TEXT) => {
    check(typeof found === "string" && found.length <= limit, field);
    return found;
  };
  const finite = (found, field) => {
    check(Number.isFinite(found), field);
    return found;
  };
  check(value !== null && typeof value === "object", "conversation");
  check(Array.isArray(value.messages), "messages");
  const messages = value.messages.map((message, index) => {
    const role = index % 2 ? "assistant" : "user";
    check(message?.role === role, "role");
    const content = text(message.content, "content");
    return role === "user" ? { role, content } : { role, content, ...readAnswer(message, check, text, finite) };
  });
  return {
    id: /^[0-9a-f]{24}$/.test(value.id) ? value.id : randomId(),
    title: text(value.title, "title", 1000),
    named: value.named === true,
    created: finite(value.created, "created"),
    updated: finite(value.updated, "updated"),
    settings: readSettings(value.settings, check, text, finite),
    messages,
  };
}

function readAnswer(message, check, text, finite) {
  const { error, tokens, seconds } = message;
  const count = (found) => (found === null || found === undefined ? null : finite(found, "numbers"));
  check(message.finish === null || FINISHES.includes(message.finish), "finish");
  return {
    model: text(message.model, "model", 1000),
    finish: message.finish,
    error: error && {
      kind: text(error.kind, "error", 40), detail: text(error.detail, "error"), retryAfter: count(error.retryAfter),
    },
    tokens: tokens && { prompt: finite(tokens.prompt, "tokens"), completion: finite(tokens.completion, "tokens") },
    pieces: count(message.pieces),
    seconds: seconds && {
      first: count(seconds.first), writing: count(seconds.writing), total: count(seconds.total),
    },
  };
}

function readSettings(settings, check, text, finite) {
  check(settings !== null && typeof settings === "object", "settings");
  const read = {};
  for (const [name, normal] of Object.entries(DEFAULTS)) {
    const found = settings[name] ?? normal;
    read[name] = found === null ? null : typeof normal === "string" ? text(found, name) : finite(found, name);
  }
  return read;
}
