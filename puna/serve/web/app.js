// The page: which conversation is open, what the buttons and keys do, and what is shown when.

import { listModels } from "./api.js";
import * as chat from "./chat.js";
import { $, copyWith, grow, isSendKey, setIcon, toast } from "./dom.js";
import { label, t } from "./i18n.js";
import { closeSidebar, isSidebarOpen, showLook, watchLook } from "./look.js";
import { editLast, showEnded, showMessages, updateAnswer } from "./messages.js";
import { showPanel } from "./panel.js";
import { showConversations } from "./sidebar.js";
import { loadConversation, loadConversations, onOtherTab, openStore, recall, remember } from "./store.js";
import { exportAll, importFrom } from "./transfer.js";

const NEAR_END = 80; // pixels: whoever reads there is taken along as the answer grows

let conversations = [];
let current = null;
let models = [];
let askForKey = false;
let following = true;

/** The model that answers here: the one chosen, or the first where the server has that no more. */
const model = () => {
  const { model: chosen } = current.settings;
  return models.includes(chosen) ? chosen : models[0] ?? chosen;
};

const messageActions = {
  regenerate: (index) => run(() => chat.regenerate(current, index, model())),
  edit: (index, text) => run(() => chat.edit(current, index, text, model())),
  useKey: async (index, key) => {
    remember("key", key);
    await fetchModels();
    messageActions.regenerate(index);
  },
};

const listActions = {
  open: (conversation) => {
    open(conversation);
    closeSidebar();
    $("prompt").focus();
  },
  rename: (conversation, title) => {
    Object.assign(conversation, { title, named: conversation.named || title !== conversation.title });
    chat.save(conversation);
    showList();
    $("conversations").querySelector(`[data-key="${conversation.id}"]`)?.focus();
  },
  remove: (conversation) => {
    conversations = conversations.filter((other) => other !== conversation);
    chat.remove(conversation);
    if (conversation === current) open(conversations[0] ?? fresh());
    showList();
    const undo = () => {
      conversations.push(conversation);
      conversations.sort((a, b) => b.updated - a.updated);
      chat.restore(conversation);
      open(conversation);
    };
    toast(t("deleted", { title: chat.titleOf(conversation) }), { text: t("undo"), run: undo });
  },
};

const fresh = () => chat.newConversation(recall("settings") ?? {});

function open(conversation) {
  current = conversation;
  following = true;
  history.replaceState(null, "", conversation.messages.length ? `#${conversation.id}` : location.pathname);
  showAll();
  toEnd();
}

function startNew() {
  if (current.messages.length) open(fresh());
  closeSidebar();
  $("prompt").focus();
}

// ---- showing

function showAll() {
  showMessages(current, messageActions);
  showList();
  showState();
  if (!$("panel").hidden) fillPanel();
}

function showList() {
  showConversations(conversations, current, listActions);
}

function showState() {
  const running = chat.isRunning(current);
  const begun = current.messages.length > 0;
  $("title").textContent = chat.titleOf(current);
  $("title").classList.toggle("visually-hidden", !begun);
  document.title = begun ? `${chat.titleOf(current)} · Puna` : "Puna";
  $("model-name").textContent = model() || t("noModels");
  $("app").classList.toggle("running", running);
  label($("send"), t(running ? "stop" : "send"));
  setIcon($("send"), running ? "stop" : "send");
  $("send").disabled = !running && !$("prompt").value.trim();
  $("empty").hidden = begun;
  const waiting = t(askForKey ? "errorUnauthorized" : "emptyNoteNoModel");
  $("empty-note").textContent = models.length ? t("emptyNote", { model: model() }) : waiting;
}

function fillPanel() {
  const focused = $("panel").contains(document.activeElement) ? document.activeElement.id : "";
  showPanel(current, models, model(), askForKey, {
    changed: () => {
      remember("settings", current.settings);
      if (current.messages.length) chat.save(current);
      showState();
    },
    keyChanged: fetchModels,
  });
  if (focused) $(focused)?.focus();
}

function togglePanel(show = $("panel").hidden) {
  $("panel").hidden = !show;
  $("open-panel").setAttribute("aria-expanded", String(show));
  $("app").classList.toggle("with-panel", show);
  if (show) {
    fillPanel();
    $("panel").querySelector("input[type=password], select, textarea").focus();
  } else $("open-panel").focus();
}

function toEnd() {
  $("scroller").scrollTop = $("scroller").scrollHeight;
}

// ---- doing

async function run(ask) {
  await chat.stop(current);
  if (!models.length) await fetchModels();
  if (!conversations.includes(current)) conversations.unshift(current);
  following = true;
  await ask();
}

function submit(text) {
  if (!text.trim() || chat.isRunning(current)) return;
  $("prompt").value = "";
  grow($("prompt"));
  run(() => chat.send(current, text, model()));
}

async function fetchModels() {
  try {
    models = await listModels();
    askForKey = false;
  } catch (error) {
    models = [];
    askForKey = error.kind === "Unauthorized";
  }
  showState();
  if (!$("panel").hidden) fillPanel();
}

async function importFile(file) {
  const added = await importFrom(file, conversations);
  conversations = [...added, ...conversations].sort((a, b) => b.updated - a.updated);
  for (const conversation of added) await chat.save(conversation);
  if (added.length) open(added[0]);
}

// ---- events

const frames = new Map(); // answers to show at the next frame

chat.bus.addEventListener("change", ({ detail: conversation }) => {
  if (!conversations.includes(conversation)) return;
  conversations.sort((a, b) => b.updated - a.updated);
  showList();
  if (conversation === current) {
    showMessages(current, messageActions);
    showState();
    $("announcer").textContent = t("answering");
    history.replaceState(null, "", `#${conversation.id}`);
    if (following) toEnd();
  }
});

chat.bus.addEventListener("text", ({ detail: { reply } }) => {
  if (frames.has(reply)) return;
  frames.set(reply, requestAnimationFrame(() => {
    frames.delete(reply);
    updateAnswer(reply);
    if (following) toEnd();
  }));
});

chat.bus.addEventListener("end", ({ detail: { conversation, reply } }) => {
  showList();
  if (conversation !== current) return;
  showEnded(current, reply, messageActions);
  showState();
  if (following) toEnd();
  if (reply.content) $("announcer").textContent = t("answered", { text: reply.content });
});

chat.bus.addEventListener("unsaved", ({ detail: error }) => toast(t("errorStorage", { reason: error.message })));

function onEscape() {
  if (isSidebarOpen()) closeSidebar();
  else if (chat.isRunning(current)) chat.stop(current);
  else if (!$("panel").hidden) togglePanel(false);
}

document.addEventListener("keydown", (event) => {
  const command = (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey;
  const act = command ? { k: startNew, ".": () => togglePanel() }[event.key] : { Escape: onEscape }[event.key];
  if (!act || event.isComposing) return;
  event.preventDefault();
  act();
});

$("prompt").addEventListener("input", () => {
  grow($("prompt"));
  showState();
});
$("prompt").addEventListener("keydown", (event) => {
  if (isSendKey(event)) {
    event.preventDefault();
    submit($("prompt").value);
  } else if (event.key === "ArrowUp" && !$("prompt").value && !chat.isRunning(current)) {
    event.preventDefault();
    editLast();
  }
});
$("send").addEventListener("click", () => {
  if (chat.isRunning(current)) chat.stop(current);
  else submit($("prompt").value);
  $("prompt").focus();
});
$("messages").addEventListener("click", ({ target }) => {
  if (!target.classList.contains("copy-code")) return;
  copyWith(target, target.closest(".code").querySelector("code").textContent);
});
$("scroller").addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = $("scroller");
  following = scrollHeight - scrollTop - clientHeight < NEAR_END;
  $("to-end").hidden = following;
}, { passive: true });
$("to-end").addEventListener("click", toEnd); // and the scroll event begins to follow again
$("new-chat").addEventListener("click", startNew);
$("open-panel").addEventListener("click", () => togglePanel());
$("close-panel").addEventListener("click", () => togglePanel(false));
$("export").addEventListener("click", () => exportAll(conversations));
$("import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", async () => {
  const [file] = $("import-file").files;
  if (file) await importFile(file);
  $("import-file").value = "";
});

window.addEventListener("focus", () => models.length || askForKey || fetchModels());

onOtherTab(async (id) => {
  if (conversations.some((conversation) => conversation.id === id && chat.isRunning(conversation))) return;
  const stored = await loadConversation(id);
  conversations = conversations.filter((conversation) => conversation.id !== id);
  if (stored) conversations.push(stored);
  conversations.sort((a, b) => b.updated - a.updated);
  if (current.id === id) open(stored ?? fresh());
  else showList();
});

async function start() {
  watchLook(showAll, submit);
  showLook(submit);
  try {
    await openStore();
    conversations = await loadConversations();
  } catch (error) {
    toast(t("storageUnavailable", { reason: error.message }), null, 15_000);
  }
  for (const { messages } of conversations) {
    const last = messages.at(-1);
    if (last?.role === "assistant") last.finish ??= "stopped"; // the page was closed meanwhile
  }
  current = conversations.find(({ id }) => location.hash === `#${id}`) ?? fresh();
  $("app").hidden = false;
  open(current);
  $("prompt").focus();
  await fetchModels();
  if (askForKey && !current.messages.length) togglePanel(true);
}

start();
