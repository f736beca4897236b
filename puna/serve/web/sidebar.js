// The list of conversations: open, rename, delete.

import { isRunning, titleOf } from "./chat.js";
import { $, h, iconButton, isSendKey } from "./dom.js";
import { t } from "./i18n.js";

/** Shows the list. `actions`: open(conversation), rename(conversation, title), remove(conversation). */
export function showConversations(conversations, current, actions) {
  const list = $("conversations");
  if (list.querySelector("input")) return; // a name is being typed; it is shown anew when that ends
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren(...conversations.map((conversation) => row(conversation, conversation === current, actions)));
  if (focused) list.querySelector(`[data-key="${focused}"]`)?.focus();
}

function row(conversation, isCurrent, actions) {
  const title = titleOf(conversation);
  const open = h("button", {
    type: "button", class: "open", title, "data-key": `${conversation.id}`, onclick: () => actions.open(conversation),
    ondblclick: () => renameIn(item, conversation, actions),
    onkeydown: (event) => {
      if (event.key === "F2") renameIn(item, conversation, actions);
      else if (event.key === "Delete") actions.remove(conversation);
      else moveFocus(event);
    },
  }, h("span", { dir: "auto" }, title));
  if (isCurrent) open.setAttribute("aria-current", "true");
  const item = h("li", { class: isRunning(conversation) ? "running" : "" }, open,
    h("div", { class: "row-tools" },
      iconButton("edit", "rename", () => renameIn(item, conversation, actions), "rename"),
      iconButton("trash", "remove", () => actions.remove(conversation), "remove")),
  );
  return item;
}

function moveFocus(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const all = [...$("conversations").querySelectorAll(".open")];
  all[all.indexOf(event.currentTarget) + step]?.focus();
}

function renameIn(item, conversation, actions) {
  const field = h("input", { class: "rename-field", value: conversation.title, maxLength: 200 });
  field.setAttribute("aria-label", t("renameLabel"));
  let ended = false;
  const end = (keep) => {
    if (ended) return;
    ended = true;
    field.remove();
    actions.rename(conversation, keep ? field.value.trim() : conversation.title);
  };
  field.addEventListener("keydown", (event) => {
    if (isSendKey(event)) end(true);
    else if (event.key === "Escape") {
      event.stopPropagation();
      end(false);
    }
  });
  field.addEventListener("blur", () => end(true));
  item.replaceChildren(field);
  field.select();
}
