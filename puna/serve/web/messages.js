// The messages of a conversation as elements, what can be done with each, and how an error is told.

import { isUsable, rateOf } from "./chat.js";
import { $, copyWith, grow, h, icon, iconButton, isSendKey, textButton } from "./dom.js";
import { number, t } from "./i18n.js";
import { showMarkdown } from "./markdown.js";
import { recall } from "./store.js";

const elements = new WeakMap(); // message -> its article

/** Shows a whole conversation. `actions`: regenerate(index), edit(index, text), useKey(index, key). */
export function showMessages({ messages }, actions) {
  $("messages").replaceChildren(...messages.map((_, index) => articleOf(messages, index, actions)));
}

/** Shows an answer that has ended, and its question; not what is being edited. */
export function showEnded({ messages }, message, actions) {
  const end = messages.indexOf(message);
  for (const index of [end - 1, end]) {
    const old = elements.get(messages[index]);
    if (!old?.isConnected || old.classList.contains("editing")) continue;
    old.replaceWith(articleOf(messages, index, actions));
  }
}

function articleOf(messages, index, actions) {
  const message = messages[index];
  const article = message.role === "user"
    ? question(message, messages[index + 1], index, actions)
    : reply(message, index, actions);
  elements.set(message, article);
  return article;
}

/** Shows what an answer has become, without touching what did not change. */
export function updateAnswer(message) {
  const article = elements.get(message);
  if (!article?.isConnected) return;
  showMarkdown(article.querySelector(".markdown"), message.content);
  article.classList.toggle("waiting", !message.finish && message.content === "");
  article.querySelector(".meta").replaceChildren(...meta(message));
}

function question(message, answer, index, actions) {
  const unanswered = answer?.finish && !isUsable(answer);
  const bubble = h("div", { class: "bubble", dir: "auto" }, message.content);
  const tools = h("div", { class: "tools" },
    iconButton("edit", "edit", () => editInPlace(article, message, index, actions), "edit"),
    copyButton(() => message.content),
  );
  const article = h("article", { class: "turn user", "aria-label": t("you") }, bubble, tools);
  article.classList.toggle("unanswered", Boolean(unanswered));
  if (unanswered) bubble.title = t("unanswered");
  return article;
}

function reply(message, index, actions) {
  const body = h("div", { class: "markdown", dir: "auto" });
  showMarkdown(body, message.content);
  const done = message.finish !== null;
  const article = h("article", { class: "turn assistant", "aria-label": message.model }, body);
  article.setAttribute("aria-busy", String(!done));
  article.classList.toggle("waiting", !done && message.content === "");
  article.classList.toggle("writing", !done);
  const dots = h("span", { class: "waiting-note" }, h("i"), h("i"), h("i"));
  dots.append(h("span", { class: "visually-hidden" }, t("thinking")));
  article.append(dots);
  const note = noteOn(message);
  if (note) article.append(h("p", { class: "note" }, note));
  if (message.error) article.append(errorCard(message, index, actions));
  const tools = h("div", { class: "tools" });
  if (done && message.content) tools.append(copyButton(() => message.content));
  if (done && !message.error) {
    tools.append(iconButton("again", "regenerate", () => actions.regenerate(index), "regenerate"));
  }
  article.append(h("div", { class: "foot" }, h("span", { class: "meta" }, ...meta(message)), tools));
  return article;
}

const copyButton = (text) => iconButton("copy", "copy", (event) => copyWith(event.currentTarget, text()), "copy");

function noteOn(message) {
  if (message.finish === "stopped") return t("stopped");
  if (message.finish === "length") return t("cutAtLimit");
  return message.finish && !message.error && message.content.trim() === "" ? t("emptyAnswer") : null;
}

/** The model, the tokens that it wrote, and how fast. */
function meta(message) {
  const { tokens, seconds, finish } = message;
  const parts = finish && message.content ? [message.model] : [];
  const count = tokens?.completion ?? message.pieces;
  if (count) parts.push(t(tokens ? "tokens" : "tokensAbout", { count: number(count) }));
  const rate = rateOf(message);
  if (rate) parts.push(t("rate", { rate: number(rate, rate < 100 ? 1 : 0) }));
  const title = tokens && seconds?.first != null
    ? t("details", { prompt: number(tokens.prompt), first: number(seconds.first, 2), total: number(seconds.total, 2) })
    : "";
  return parts.map((text) => h("span", { title }, text));
}

function errorCard(message, index, actions) {
  const { kind, detail, retryAfter } = message.error;
  const known = t(`error${kind}`) ?? t("errorServer");
  const text = kind === "Busy" && retryAfter ? t("errorBusyFor", { seconds: number(retryAfter) }) : known;
  const card = h("div", { class: "error", role: "alert" }, h("p", {}, text));
  if (detail) card.append(h("details", {}, h("summary", {}, t("technical")), h("p", { class: "detail" }, detail)));
  const actionsRow = h("div", { class: "row" });
  if (kind === "Unauthorized") {
    const field = h("input", {
      type: "password", class: "key-field", autocomplete: "off", placeholder: t("apiKey"), value: recall("key") ?? "",
      "aria-label": t("apiKey"),
    });
    const use = () => actions.useKey(index, field.value.trim());
    field.addEventListener("keydown", (event) => isSendKey(event) && use());
    actionsRow.append(field, textButton(t("save"), use, "button primary"));
  } else {
    actionsRow.append(h("button", { type: "button", class: "button retry", onclick: () => actions.regenerate(index) },
      icon("again"), t("retry")));
  }
  card.append(actionsRow);
  return card;
}

function editInPlace(article, message, index, actions) {
  const area = h("textarea", { value: message.content, rows: 1, "aria-label": t("editLabel"), enterKeyHint: "send" });
  const before = [...article.childNodes];
  const leave = () => {
    article.classList.remove("editing");
    article.replaceChildren(...before);
    article.querySelector(".edit").focus();
  };
  const save = () => {
    if (area.value.trim()) actions.edit(index, area.value);
  };
  area.addEventListener("input", () => grow(area));
  area.addEventListener("keydown", (event) => {
    if (isSendKey(event)) {
      event.preventDefault();
      save();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      leave();
    }
  });
  article.classList.add("editing");
  article.replaceChildren(
    area,
    h("div", { class: "row" }, h("span", { class: "edit-note" }, t("editNote")),
      textButton(t("cancel"), leave), textButton(t("saveAndAsk"), save, "button primary")),
  );
  grow(area);
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

/** Begins to edit the last message of the user, if there is one. */
export function editLast() {
  [...document.querySelectorAll("#messages .turn.user .edit")].at(-1)?.click();
}
