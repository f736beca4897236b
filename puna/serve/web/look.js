// What is the same in every conversation: the language, the theme, and the drawer of conversations.

import { $, setIcon, textButton } from "./dom.js";
import { label, switchLanguage, t, translate } from "./i18n.js";
import { KEYS } from "./panel.js";
import { recall, remember } from "./store.js";

const THEMES = ["auto", "light", "dark"];

const theme = () => (THEMES.includes(recall("theme")) ? recall("theme") : THEMES[0]);

/** Shows the page's own texts; a suggestion is given to `suggested` when it is taken. */
export function showLook(suggested) {
  translate();
  $("language").textContent = t("otherLanguage");
  label($("language"), t("switchLanguage"));
  $("new-chat-keys").textContent = KEYS.newChat;
  $("suggestions").replaceChildren(
    ...t("suggestions").map((text) => textButton(text, () => suggested(text), "suggestion")));
  showTheme();
}

function showTheme() {
  const name = theme();
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  setIcon($("theme"), name);
  label($("theme"), t("theme", { name: t(`theme${name[0].toUpperCase()}${name.slice(1)}`) }));
}

export const isSidebarOpen = () => $("app").classList.contains("with-sidebar");

function toggleSidebar(show) {
  $("app").classList.toggle("with-sidebar", show);
  $("scrim").hidden = !show;
  $("open-sidebar").setAttribute("aria-expanded", String(show));
  if (show) $("new-chat").focus();
}

export const closeSidebar = () => toggleSidebar(false);

/** Makes the buttons work; `changed()` is called after the language was switched. */
export function watchLook(changed, suggested) {
  $("open-sidebar").addEventListener("click", () => toggleSidebar(true));
  for (const id of ["close-sidebar", "scrim"]) $(id).addEventListener("click", closeSidebar);
  $("language").addEventListener("click", () => {
    switchLanguage();
    showLook(suggested);
    changed();
  });
  $("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
    remember("theme", next === "auto" ? null : next);
    showTheme();
  });
}
