// What the browser keeps: conversations in IndexedDB, small choices in localStorage.

const DATABASE = "puna";
const CONVERSATIONS = "conversations";
const channel = new BroadcastChannel("puna");

let database = null;

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Opens the database; throws where the browser keeps none for this page. */
export async function openStore() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
  database = await done(request);
}

const objects = (mode) => database.transaction(CONVERSATIONS, mode).objectStore(CONVERSATIONS);

/** All conversations, the one that changed last first. */
export async function loadConversations() {
  if (!database) return [];
  for (const id of begunDeletions()) await deleteConversation(id);
  const all = await done(objects("readonly").getAll());
  return all.sort((a, b) => b.updated - a.updated);
}

export const loadConversation = (id) => done(objects("readonly").get(id));

export async function saveConversation(conversation) {
  if (!database) return;
  noteDeletion(conversation.id, false); // it was undone
  await done(objects("readwrite").put(conversation));
  channel.postMessage({ id: conversation.id });
}

/** Where the page is closed before the database has done it, the next page does: a note of it is kept at once. */
export async function deleteConversation(id) {
  if (!database) return;
  noteDeletion(id, true);
  await done(objects("readwrite").delete(id));
  noteDeletion(id, false);
  channel.postMessage({ id });
}

const begunDeletions = () => [recall("deleting") ?? []].flat().map(String);

function noteDeletion(id, isBegun) {
  const others = begunDeletions().filter((other) => other !== id);
  const ids = isBegun ? [...others, id] : others;
  remember("deleting", ids.length ? ids : null);
}

/** Calls `changed(id)` when another tab has saved or deleted a conversation. */
export function onOtherTab(changed) {
  channel.onmessage = (event) => changed(event.data.id);
}

// Small choices. Stored text may be anything: what does not parse counts as absent. A browser that keeps
// nothing throws at each use of localStorage; the page says so once, when the database fails to open.
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(`puna.${name}`));
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    if (value === null || value === "") localStorage.removeItem(`puna.${name}`);
    else localStorage.setItem(`puna.${name}`, JSON.stringify(value));
  } catch (error) {
    console.warn(error);
  }
}
