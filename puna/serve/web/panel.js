// The settings of a conversation: model, system prompt, sampling, the key for the server.

import { DEFAULTS, stopTexts } from "./chat.js";
import { $, h, textButton } from "./dom.js";
import { t } from "./i18n.js";
import { recall, remember } from "./store.js";

// Ranges are those of the API; an empty field leaves the choice to the server.
const NUMBERS = [
  { name: "temperature", min: 0, max: 2, step: 0.05, slider: true, typical: 1 },
  { name: "top_p", min: 0.01, max: 1, step: 0.01, slider: true, typical: 1 },
  { name: "top_k", min: 0, max: 1_000_000, step: 1 },
  { name: "max_tokens", min: 1, max: 1_000_000, step: 1 },
  { name: "seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
];
const MAX_STOPS = 4;
const COMMAND = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘" : "Ctrl";

export const KEYS = { newChat: `${COMMAND} K`, settings: `${COMMAND} .` };

/**
 * Shows the panel's fields for a conversation. `changed()` is called after its settings were changed,
 * `keyChanged()` after the key was; `askForKey` shows the key's field first, as the server wants one.
 */
export function showPanel(conversation, models, model, askForKey, { changed, keyChanged }) {
  const { settings } = conversation;
  const set = (name, value) => {
    settings[name] = value;
    changed();
  };
  const key = keyField(keyChanged);
  const keyFirst = askForKey || recall("key");
  $("fields").replaceChildren(
    ...(keyFirst ? [key] : []),
    modelField(models, model, set),
    systemField(settings, set),
    h("h3", {}, t("sampling")),
    ...NUMBERS.map((field) => numberField(field, settings, set)),
    stopsField(settings, set),
    h("div", { class: "row" }, textButton(t("reset"), () => {
      Object.assign(settings, { ...DEFAULTS, model: settings.model, system: settings.system });
      changed();
      showPanel(conversation, models, model, askForKey, { changed, keyChanged });
    }, "button reset")),
    h("p", { class: "scope-note" }, t("scopeNote")),
    ...(keyFirst ? [] : [key]),
    shortcuts(),
  );
}

function framed(name, control, hint, extra = null) {
  const id = `field-${name}`;
  control.id = id;
  const note = h("p", { class: "field-hint", id: `${id}-hint` }, hint);
  control.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { htmlFor: id }, t(name === "stop" ? "stops" : name)),
    ...(extra ? [h("div", { class: "pair" }, extra, control)] : [control]), note);
}

function modelField(models, model, set) {
  const select = h("select", { onchange: () => set("model", select.value) },
    ...models.map((id) => h("option", { value: id, selected: id === model }, id)));
  if (!models.length) select.append(h("option", { value: "" }, t("noModels")));
  select.disabled = !models.length;
  const field = framed("model", select, "");
  field.querySelector(".field-hint").remove();
  return field;
}

function systemField(settings, set) {
  const area = h("textarea", { rows: 4, value: settings.system, placeholder: t("systemPlaceholder") });
  area.addEventListener("input", () => set("system", area.value));
  return framed("system", area, t("systemHint"));
}

function numberField({ name, min, max, step, slider, typical }, settings, set) {
  const hint = t(`${name}Hint`);
  const input = h("input", { type: "number", inputMode: step < 1 ? "decimal" : "numeric", min, max, step: "any",
    value: settings[name] ?? "", placeholder: t("byDefault") });
  const position = settings[name] ?? typical;
  const range = slider ? h("input", { type: "range", min, max, step, value: position, "aria-label": t(name) }) : null;
  const field = framed(name, input, hint, range);
  field.classList.toggle("unset", settings[name] === null);
  const take = () => {
    const value = input.value === "" && !input.validity.badInput ? null : input.valueAsNumber;
    const good = value === null || (value >= min && value <= max && (step < 1 || Number.isInteger(value)));
    mark(field, input, good, hint, t(step < 1 ? "outOfRange" : "wholeNumber", { min, max }));
    if (!good) return;
    if (range && value !== null) range.value = value;
    field.classList.toggle("unset", value === null);
    set(name, value);
  };
  input.addEventListener("input", take);
  range?.addEventListener("input", () => {
    input.value = range.value;
    take();
  });
  return field;
}

function stopsField(settings, set) {
  const area = h("textarea", { rows: 2, value: settings.stops, spellcheck: false });
  const field = framed("stop", area, t("stopsHint"));
  area.addEventListener("input", () => {
    const good = stopTexts(area.value).length <= MAX_STOPS;
    mark(field, area, good, t("stopsHint"), t("tooManyStops"));
    if (good) set("stops", area.value);
  });
  return field;
}

function mark(field, control, good, hint, problem) {
  control.setAttribute("aria-invalid", String(!good));
  field.classList.toggle("wrong", !good);
  field.querySelector(".field-hint").textContent = good ? hint : problem;
}

function keyField(keyChanged) {
  const input = h("input", { type: "password", autocomplete: "off", value: recall("key") ?? "" });
  input.addEventListener("change", () => {
    remember("key", input.value.trim());
    keyChanged();
  });
  return framed("apiKey", input, t("apiKeyHint"));
}

function shortcuts() {
  const rows = [
    ["keySend", "Enter"], ["keyNewline", "Shift Enter"], ["keyStop", "Esc"], ["keyNew", KEYS.newChat],
    ["keySettings", KEYS.settings], ["keyEditLast", "↑"],
  ];
  return h("section", { class: "shortcuts" }, h("h3", {}, t("shortcuts")),
    h("dl", {}, ...rows.flatMap(([key, keys]) => [
      h("dt", {}, t(key)),
      h("dd", {}, ...keys.split(" ").map((one) => h("kbd", {}, one))),
    ])));
}
