// Every sentence that the page says, in its two languages, and how it is put on the page.

import { recall, remember } from "./store.js";

export const STRINGS = {
  en: {
    otherLanguage: "中文",
    newChat: "New chat", conversations: "Conversations", conversation: "Conversation",
    untitled: "New chat", rename: "Rename", remove: "Delete", close: "Close",
    renameLabel: "Name of the conversation", deleted: "Deleted “{title}”", undo: "Undo",
    export: "Export", import: "Import",
    exported: "{count} conversations exported", nothingToExport: "There is nothing to export yet",
    imported: "{count} conversations imported", importedSome: "{count} imported, {skipped} were here already",
    importFailed: "This file was not imported: {reason}",
    importTooLarge: "it is larger than {size} MB", importNotJson: "it is not JSON",
    importNotOurs: "it is not an export of Puna’s chat",
    importVersion: "it comes from a newer version of this page",
    importBroken: "conversation {number} is damaged ({field})",
    theme: "Theme: {name}", themeAuto: "as the system", themeLight: "light", themeDark: "dark",
    switchLanguage: "切换到中文",
    settings: "Settings", greeting: "What shall we talk about?",
    emptyNote: "You are talking with {model}.",
    emptyNoteNoModel: "Waiting for the server.",
    suggestions: [
      "Tell me a story about a young llama.",
      "Once upon a time, high in the mountains, …",
      "Write a short poem about rain.",
      "Explain why the sky is blue.",
    ],
    toEnd: "To the end", message: "Your message", placeholder: "Write a message",
    send: "Send", stop: "Stop", keysHint: "Enter sends, Shift+Enter begins a new line",
    caution: "Models make mistakes",
    you: "You", answering: "Answering", thinking: "Reading", answered: "Answer: {text}",
    copy: "Copy", copied: "Copied", copyFailed: "The browser did not let us copy",
    regenerate: "Answer again", edit: "Edit", saveAndAsk: "Ask again from here", cancel: "Cancel",
    editNote: "What follows this message is replaced.", editLabel: "Edit your message",
    stopped: "Stopped", cutAtLimit: "Cut off at the token limit. Max tokens in the settings raises it.",
    emptyAnswer: "The model ended without a word.", unanswered: "Without an answer; the model does not see this",
    tokens: "{count} tokens", tokensAbout: "about {count} tokens", rate: "{rate} tokens/s",
    details: "Prompt {prompt} tokens · first word after {first} s · {total} s in all",
    image: "Image", code: "code",
    retry: "Try again", save: "Save and try again", technical: "What the server said",
    errorNetwork: "The server cannot be reached. It may have stopped, or the connection is gone.",
    errorUnauthorized: "This server asks for an API key.",
    errorForbidden: "The server refused this request.",
    errorBusy: "The server is busy.", errorBusyFor: "The server is busy. Try again in {seconds} seconds.",
    errorContext: "The conversation has grown longer than the model can read. Edit an earlier message to ask from there, or begin a new chat.",
    errorModel: "The server does not have this model. Choose another in the settings.",
    errorRequest: "The server did not accept this request.",
    errorTooLarge: "The message is larger than the server accepts.",
    errorTimeout: "The server ran out of time before it could answer.",
    errorServer: "Something went wrong in the server.",
    errorBrokenOff: "The connection broke off in the middle of the answer.",
    errorStorage: "The browser could not keep this conversation: {reason}",
    storageUnavailable: "This browser keeps nothing for this page, so conversations end with it: {reason}",
    apiKey: "API key", apiKeyHint: "Kept in this browser alone. Leave it empty to forget it.",
    model: "Model", noModels: "no model", system: "System prompt",
    systemHint: "How the model should behave in this conversation.",
    systemPlaceholder: "For example: You answer in one short paragraph.",
    sampling: "Sampling", byDefault: "default",
    temperature: "Temperature", temperatureHint: "0 always takes the likeliest word; higher is freer.",
    top_p: "Top p", top_pHint: "Only the likeliest words that together have this probability.",
    top_k: "Top k", top_kHint: "Only this many of the likeliest words; 0 is all.",
    max_tokens: "Max tokens", max_tokensHint: "How long an answer may become.",
    seed: "Seed", seedHint: "The same seed, the same answer.",
    stops: "Stop at", stopsHint: "Up to four texts, one a line; \\n is a line’s end.",
    outOfRange: "A number from {min} to {max}", wholeNumber: "A whole number from {min} to {max}",
    tooManyStops: "At most four",
    reset: "Back to the defaults",
    scopeNote: "These belong to this conversation; the next new chat begins with them.",
    shortcuts: "Keyboard", keySend: "Send", keyNewline: "New line", keyStop: "Stop, close or cancel",
    keyNew: "New chat", keySettings: "Settings", keyEditLast: "Edit your last message",
    annotator: "Your name", batch: "This batch", batchText: "{done} of {size} in {batch} · {total} in all",
    whichIsBetter: "Which answer is better?", answerName: "Answer {name}",
    safety: "Safety", safe: "Safe", unsafe: "Unsafe",
    significantly_better: "significantly better", better: "better", slightly_better: "slightly better",
    negligibly_better: "negligibly better or unsure",
    submit: "Keep and go on", skip: "Skip this prompt", discard: "Discard", saved: "Kept", undone: "Taken back",
    compareKeys: "Keys: 1 to 8 rate, Enter keeps, S skips", newDialog: "New dialog",
    comparePlaceholder: "Write a prompt", writePrompt: "Write a prompt; two models answer it.",
    goOn: "The dialog goes on with the answer that you chose.",
    noPromptLeft: "No prompt of the list is left for you. Write one of your own.",
    nameFirst: "First say who you are: your name is kept with each comparison.",
    unsafeChosen: "The chosen answer is marked unsafe and the other safe. Choose the safe one, or skip.",
  },
  zh: {
    otherLanguage: "English",
    newChat: "新对话", conversations: "对话列表", conversation: "对话",
    untitled: "新对话", rename: "重命名", remove: "删除", close: "关闭",
    renameLabel: "对话名称", deleted: "已删除“{title}”", undo: "撤销",
    export: "导出", import: "导入",
    exported: "已导出 {count} 个对话", nothingToExport: "还没有可以导出的对话",
    imported: "已导入 {count} 个对话", importedSome: "已导入 {count} 个，{skipped} 个原本就在",
    importFailed: "此文件未导入：{reason}",
    importTooLarge: "文件大于 {size} MB", importNotJson: "不是 JSON 文件",
    importNotOurs: "不是 Puna 聊天导出的文件",
    importVersion: "它来自本页面的更新版本",
    importBroken: "第 {number} 个对话已损坏（{field}）",
    theme: "主题：{name}", themeAuto: "跟随系统", themeLight: "浅色", themeDark: "深色",
    switchLanguage: "Switch to English",
    settings: "设置", greeting: "今天聊点什么？",
    emptyNote: "正在与 {model} 对话。",
    emptyNoteNoModel: "正在等待服务器。",
    suggestions: [
      "给我讲一个小羊驼的故事。",
      "很久很久以前，在高高的山上……",
      "写一首关于雨的短诗。",
      "解释一下天空为什么是蓝色的。",
    ],
    toEnd: "到底部", message: "你的消息", placeholder: "输入消息",
    send: "发送", stop: "停止", keysHint: "Enter 发送，Shift+Enter 换行",
    caution: "模型也会出错",
    you: "你", answering: "正在回答", thinking: "正在阅读", answered: "回答：{text}",
    copy: "复制", copied: "已复制", copyFailed: "浏览器不允许复制",
    regenerate: "重新回答", edit: "编辑", saveAndAsk: "从这里重新提问", cancel: "取消",
    editNote: "这条消息之后的内容将被替换。", editLabel: "编辑你的消息",
    stopped: "已停止", cutAtLimit: "已达到 token 上限而中断。可在设置中调大“最大 token 数”。",
    emptyAnswer: "模型什么也没说就结束了。", unanswered: "没有得到回答，模型看不到这条消息",
    tokens: "{count} 个 token", tokensAbout: "约 {count} 个 token", rate: "{rate} token/秒",
    details: "提示 {prompt} 个 token · 首字 {first} 秒 · 共 {total} 秒",
    image: "图片", code: "代码",
    retry: "重试", save: "保存并重试", technical: "服务器的说明",
    errorNetwork: "无法连接服务器。它可能已停止，或者网络已断开。",
    errorUnauthorized: "此服务器需要 API 密钥。",
    errorForbidden: "服务器拒绝了这个请求。",
    errorBusy: "服务器正忙。", errorBusyFor: "服务器正忙，请在 {seconds} 秒后重试。",
    errorContext: "对话太长，超出了模型能读的长度。可以编辑较早的消息从那里重新提问，或开始新对话。",
    errorModel: "服务器没有这个模型，请在设置中另选一个。",
    errorRequest: "服务器没有接受这个请求。",
    errorTooLarge: "消息超出了服务器接受的大小。",
    errorTimeout: "服务器超时，未能回答。",
    errorServer: "服务器出了点问题。",
    errorBrokenOff: "回答到一半，连接中断了。",
    errorStorage: "浏览器无法保存此对话：{reason}",
    storageUnavailable: "此浏览器无法为本页保存内容，关闭后对话不会保留：{reason}",
    apiKey: "API 密钥", apiKeyHint: "只保存在此浏览器中。清空即可忘记。",
    model: "模型", noModels: "没有模型", system: "系统提示",
    systemHint: "模型在这个对话中应当如何表现。",
    systemPlaceholder: "例如：请用一小段话回答。",
    sampling: "采样", byDefault: "默认",
    temperature: "温度", temperatureHint: "0 总是取最可能的词；越高越自由。",
    top_p: "Top p", top_pHint: "只取概率合计达到此值的最可能的词。",
    top_k: "Top k", top_kHint: "只取这么多个最可能的词；0 表示全部。",
    max_tokens: "最大 token 数", max_tokensHint: "一次回答最长多少。",
    seed: "随机种子", seedHint: "种子相同，回答相同。",
    stops: "停止于", stopsHint: "最多四段文字，每行一段；\\n 表示换行。",
    outOfRange: "请输入 {min} 到 {max} 之间的数", wholeNumber: "请输入 {min} 到 {max} 之间的整数",
    tooManyStops: "最多四段",
    reset: "恢复默认",
    scopeNote: "这些设置属于当前对话；下一个新对话将沿用它们。",
    shortcuts: "快捷键", keySend: "发送", keyNewline: "换行", keyStop: "停止、关闭或取消",
    keyNew: "新对话", keySettings: "设置", keyEditLast: "编辑上一条消息",
    annotator: "你的名字", batch: "本批次", batchText: "{batch} 中 {done}/{size} · 共 {total}",
    whichIsBetter: "哪个回答更好？", answerName: "回答 {name}",
    safety: "安全性", safe: "安全", unsafe: "不安全",
    significantly_better: "明显更好", better: "更好", slightly_better: "略好",
    negligibly_better: "几乎一样或不确定",
    submit: "保存并继续", skip: "跳过此提示", discard: "放弃", saved: "已保存", undone: "已撤回",
    compareKeys: "按键：1 到 8 评分，Enter 保存，S 跳过", newDialog: "新对话",
    comparePlaceholder: "写一个提示", writePrompt: "写一个提示，两个模型会回答它。",
    goOn: "对话将以你选择的回答继续。",
    noPromptLeft: "列表中的提示已全部评完。可以自己写一个。",
    nameFirst: "请先填写你的名字：它会与每次比较一起保存。",
    unsafeChosen: "所选回答被标为不安全，而另一个是安全的。请选择安全的那个，或跳过。",
  },
};

const CODES = { en: "en", zh: "zh-Hans" };

let language = Object.hasOwn(STRINGS, recall("language") ?? "")
  ? recall("language")
  : navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

/** The sentence `key`, with {name}s filled in. */
export function t(key, values = {}) {
  const found = STRINGS[language][key];
  if (typeof found !== "string") return found;
  return found.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  remember("language", language);
}

/** A number as this language writes it. */
export const number = (value, digits = 0) =>
  value.toLocaleString(CODES[language], { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** Fills in all that `data-text`, `data-label` and `data-placeholder` name below `root`. */
export function translate(root = document) {
  document.documentElement.lang = CODES[language];
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  for (const node of root.querySelectorAll("[data-label]")) label(node, t(node.dataset.label));
  for (const node of root.querySelectorAll("[data-placeholder]")) node.placeholder = t(node.dataset.placeholder);
}

/** Names a control for a screen reader and, where it is a button, for the mouse. */
export function label(node, text) {
  node.setAttribute("aria-label", text);
  if (node.tagName === "BUTTON") node.title = text;
}
