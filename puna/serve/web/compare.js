// The page of `puna compare`: ask for two answers, pick one, rate it, say whether each is safe.

import { $, grow, h, isSendKey, textButton, toast } from "./dom.js";
import { label, number, switchLanguage, t, translate } from "./i18n.js";
import { showMarkdown } from "./markdown.js";
import { recall, remember } from "./store.js";

const SIDES = ["A", "B"];

const desk = {
  state: null, // what the server counts
  pair: null, // {id, messages, answers}
  messages: [], // the dialog that a person writes
  choice: null, // {chosen, rating}
  safe: [true, true],
  isWaiting: false,
};

async function call(path, body) {
  const options = body && {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch (error) {
    console.warn(error);
    throw Object.assign(new Error(t("errorNetwork")), { code: "network" });
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const { message, code } = answer?.error ?? {};
  throw Object.assign(new Error(message ?? t("errorServer")), { code });
}

const annotator = () => $("annotator").value.trim();

function hasName() {
  const ok = annotator() !== "";
  document.querySelector(".name-field").classList.toggle("wrong", !ok);
  if (!ok) {
    showProblem(t("nameFirst"));
    $("annotator").focus();
  }
  return ok;
}

/** Asks for a pair: to `desk.messages` where somebody writes, else to the next prompt of the list. */
async function nextPair(skip = null) {
  if (desk.isWaiting || !hasName()) return;
  const body = { annotator: annotator(), skip };
  if (isWritten()) body.messages = desk.messages;
  wait(true);
  try {
    desk.pair = await call("pair", body);
    desk.choice = null;
    desk.safe = [true, true];
    showProblem(null);
    showAll();
  } catch (error) {
    desk.pair = null;
    if (isWritten()) $("prompt").value = desk.messages.pop()?.content ?? "";
    showAll();
    if (error.code === "no_prompt") $("writing-note").textContent = t("noPromptLeft");
    else toast(error.message, isWritten() ? null : { text: t("skip"), run: () => nextPair() }, 60_000);
  } finally {
    wait(false);
  }
}

const isWritten = () => desk.messages.length > 0 || desk.state.num_prompts === 0;

async function submit() {
  if (!desk.pair || !desk.choice || desk.isWaiting || !hasName()) return;
  const { id, messages, answers } = desk.pair;
  wait(true);
  try {
    desk.state = await call("verdict", { annotator: annotator(), id, ...desk.choice, safe: desk.safe });
  } catch (error) {
    return showProblem(error.message);
  } finally {
    wait(false);
  }
  toast(t("saved"), { text: t("undo"), run: () => undo(id) });
  $("announcer").textContent = t("saved");
  const { chosen } = desk.choice;
  desk.pair = null;
  if (desk.messages.length) {
    desk.messages = [...messages, { role: "assistant", content: answers[chosen] }];
    showAll();
    $("prompt").focus();
    return;
  }
  showAll();
  if (desk.state.num_prompts) await nextPair();
}

async function undo(id) {
  try {
    desk.state = await call("undo", { id });
    if (desk.messages.length && !desk.pair) {
      desk.messages.pop(); // the answer that was chosen
      $("prompt").value = desk.messages.pop().content;
    }
    showAll();
    toast(t("undone"));
  } catch (error) {
    toast(error.message);
  }
}

async function skip() {
  const { id } = desk.pair;
  desk.pair = null;
  if (!isWritten()) return nextPair(id);
  desk.messages = [];
  showAll();
}

function write() {
  const text = $("prompt").value.trim();
  if (!text || desk.isWaiting || !hasName()) return;
  desk.messages = [...desk.messages, { role: "user", content: text }];
  $("prompt").value = "";
  showAll();
  nextPair();
}

function choose(chosen, rating) {
  desk.choice = { chosen, rating };
  showChoice();
}

function setSafe(side, isSafe) {
  desk.safe[side] = isSafe;
  showChoice();
}

// ---- what is seen

function showAll() {
  translate();
  $("language").textContent = t("otherLanguage");
  label($("language"), t("switchLanguage"));
  showBatch();
  const messages = desk.pair?.messages ?? desk.messages;
  $("dialog").replaceChildren(...messages.map(messageNode));
  $("answers").hidden = !desk.pair;
  $("writing").hidden = Boolean(desk.pair) || desk.isWaiting;
  $("new-dialog").hidden = desk.messages.length === 0;
  $("writing-note").textContent = t(desk.messages.length ? "goOn" : "writePrompt");
  $("skip").textContent = t(isWritten() ? "discard" : "skip");
  if (desk.pair) {
    desk.pair.answers.forEach((text, side) => showSide(side, text));
    showScale();
    showChoice();
  }
}

function showBatch() {
  const { in_batch, batch_size, total, batch } = desk.state;
  $("progress").max = batch_size;
  $("progress").value = in_batch;
  $("batch-text").textContent = t("batchText", {
    done: number(in_batch), size: number(batch_size), total: number(total), batch,
  });
}

function messageNode({ role, content }) {
  if (role === "system") return h("p", { class: "system", dir: "auto" }, content);
  if (role === "user") {
    return h("article", { class: "turn user", "aria-label": t("you") },
      h("div", { class: "bubble", dir: "auto" }, content));
  }
  const body = h("div", { class: "markdown", dir: "auto" });
  showMarkdown(body, content);
  return h("article", { class: "turn assistant" }, body);
}

function showSide(side, text) {
  const body = h("div", { class: "markdown", dir: "auto" });
  showMarkdown(body, text);
  const safety = h("div", { class: "safety", role: "group", "aria-label": t("safety") },
    textButton(t("safe"), () => setSafe(side, true), "safe"),
    textButton(t("unsafe"), () => setSafe(side, false), "unsafe"));
  const header = h("header", {}, h("h2", {}, t("answerName", { name: SIDES[side] })), safety);
  $(`side-${side}`).replaceChildren(header, body);
}

/** From "A significantly better" over the two closest to "B significantly better". */
function showScale() {
  const { ratings } = desk.state;
  const places = [
    ...ratings.map((rating) => ({ chosen: 0, rating })),
    ...[...ratings].reverse().map((rating) => ({ chosen: 1, rating })),
  ];
  document.querySelector(".scale").replaceChildren(
    ...places.map(({ chosen, rating }) =>
      h("button", {
        type: "button", role: "radio", "data-chosen": chosen, "data-rating": rating,
        onclick: () => choose(chosen, rating),
      }, h("b", {}, SIDES[chosen]), t(rating))));
}

function showChoice() {
  for (const button of document.querySelectorAll(".scale button")) {
    const { chosen, rating } = button.dataset;
    const isChosen = desk.choice?.rating === rating && String(desk.choice.chosen) === chosen;
    button.setAttribute("aria-checked", String(isChosen));
  }
  SIDES.forEach((_, side) => {
    const node = $(`side-${side}`);
    node.classList.toggle("preferred", desk.choice?.chosen === side);
    node.querySelector(".safe").setAttribute("aria-pressed", String(desk.safe[side]));
    node.querySelector(".unsafe").setAttribute("aria-pressed", String(!desk.safe[side]));
  });
  const { choice, safe } = desk;
  const isOdd = choice && !safe[choice.chosen] && safe[1 - choice.chosen];
  showProblem(isOdd ? t("unsafeChosen") : null);
  $("submit").disabled = !choice || isOdd;
}

function showProblem(text) {
  $("problem").textContent = text ?? "";
  $("problem").hidden = !text;
  if (text && $("answers").hidden) toast(text);
}

function wait(isWaiting) {
  desk.isWaiting = isWaiting;
  $("app").classList.toggle("wait", isWaiting);
  $("desk").setAttribute("aria-busy", String(isWaiting));
  $("writing").hidden = isWaiting || Boolean(desk.pair);
  if (isWaiting) $("announcer").textContent = t("answering");
}

// ---- keys and buttons

document.addEventListener("keydown", (event) => {
  if (["INPUT", "TEXTAREA"].includes(event.target.tagName) || !desk.pair) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const place = "12345678".indexOf(event.key);
  if (place >= 0) document.querySelectorAll(".scale button")[place].click();
  // On a rating or a label Enter keeps, as the page says; the space bar presses them.
  else if (event.key === "Enter" && !event.target.id) submit();
  else if (event.key === "s") skip();
  else return;
  event.preventDefault();
});

$("annotator").value = recall("annotator") ?? "";
$("annotator").addEventListener("change", () => {
  remember("annotator", annotator());
  document.querySelector(".name-field").classList.remove("wrong");
  // A name typed before the desk is known: the pair comes with it.
  if (annotator() && !desk.pair && desk.state?.num_prompts && !desk.messages.length) nextPair();
});
$("submit").addEventListener("click", submit);
$("skip").addEventListener("click", () => skip());
$("send").addEventListener("click", write);
$("new-dialog").addEventListener("click", () => {
  desk.messages = [];
  showAll();
  $("prompt").focus();
});
$("prompt").addEventListener("input", () => grow($("prompt")));
$("prompt").addEventListener("keydown", (event) => {
  if (!isSendKey(event)) return;
  event.preventDefault();
  write();
});
$("language").addEventListener("click", () => {
  switchLanguage();
  showAll();
});

try {
  desk.state = await call("state");
  showAll();
  if (annotator() && desk.state.num_prompts) nextPair();
  else if (!annotator()) $("annotator").focus();
} catch (error) {
  toast(error.message, { text: t("retry"), run: () => location.reload() }, 3_600_000);
}
