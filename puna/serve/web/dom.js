// Making nodes. Text only ever becomes text: nothing here parses HTML.

import { label, t } from "./i18n.js";

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An element with properties (`class`, `on...` listeners and ARIA attributes among them) and children. */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "role" || name.startsWith("aria-") || name.startsWith("data-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** One of the page's icons, as `index.html` defines them. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function setIcon(button, name) {
  button.querySelector("use").setAttribute("href", `#i-${name}`);
}

export function iconButton(name, key, onclick, className = "") {
  const button = h("button", { type: "button", class: `icon-button ${className}`.trim(), onclick }, icon(name));
  label(button, t(key));
  return button;
}

export function textButton(text, onclick, className = "button") {
  return h("button", { type: "button", class: className, onclick }, text);
}

/** Makes a text area as high as its text, up to what the style sheet allows. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** Whether a key is the Enter that sends: not with Shift, and not the one that picks Chinese words. */
export const isSendKey = (event) =>
  event.key === "Enter" && !event.shiftKey && !event.altKey && !event.isComposing && event.keyCode !== 229;

/** Says something for a moment, perhaps with something to do about it. */
export function toast(text, action = null, milliseconds = 6000) {
  const note = h("div", { class: "toast", role: "status" }, h("span", {}, text));
  const close = () => note.remove();
  for (const other of $("toasts").children) {
    if (other.firstChild.textContent === text) other.remove(); // said again, not twice
  }
  if (action) note.append(textButton(action.text, () => (close(), action.run()), "toast-action"));
  note.append(iconButton("close", "close", close));
  $("toasts").append(note);
  setTimeout(close, milliseconds);
}

export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Over plain http, as on a phone, there is no clipboard but this one.
  const area = h("textarea", { value: text, class: "visually-hidden", readOnly: true });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("copy");
}

/** Copies, and lets the button say so for a moment. */
export async function copyWith(button, text) {
  try {
    await copyText(text);
  } catch (error) {
    console.warn(error);
    toast(t("copyFailed"));
    return;
  }
  const before = button.querySelector("svg") ? "copy" : null;
  if (before) setIcon(button, "check");
  else button.textContent = t("copied");
  button.classList.add("done");
  $("announcer").textContent = t("copied");
  setTimeout(() => {
    if (before) setIcon(button, "copy");
    else button.textContent = t("copy");
    button.classList.remove("done");
  }, 1500);
}
