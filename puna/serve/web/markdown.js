// What a model wrote -> nodes that can do nothing: Markdown by marked, cleaned by DOMPurify.
//
// Three walls: the renderer below makes no element of HTML that the model wrote and no image; DOMPurify
// keeps the few elements and attributes named here; the page's Content-Security-Policy runs nothing inline.

import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";
import hljs from "./vendor/highlight.min.js";
import { t } from "./i18n.js";

const { DOMPurify } = globalThis;
const SAFE_LINK = /^(?:https?|mailto):/i;

const CLEAN = {
  ALLOWED_TAGS: [
    "p", "br", "hr", "h3", "h4", "h5", "h6", "strong", "em", "del", "ul", "ol", "li", "blockquote", "pre", "code",
    "a", "table", "thead", "tbody", "tr", "th", "td",
  ],
  ALLOWED_ATTR: ["href", "align", "start", "class"],
  ALLOWED_URI_REGEXP: SAFE_LINK,
  ADD_URI_SAFE_ATTR: ["align", "start"], // no addresses, so not held to be safe links
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const CLEAN_CODE = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };

const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text) => text.replace(/[&<>"']/g, (character) => ENTITIES[character]);

const link = (href, content) =>
  SAFE_LINK.test(href) ? `<a href="${escape(href)}">${content}</a>` : content;

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text, block }) => (block ? `<p>${escape(text.trimEnd())}</p>` : escape(text)),
    image: ({ href, text }) => link(href, escape(`${t("image")}: ${text || href}`)),
    link({ href, tokens }) {
      return link(href, this.parser.parseInline(tokens));
    },
    heading({ depth, tokens }) {
      const level = Math.min(6, depth + 2); // the page itself has the first two
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    code({ text, lang }) {
      const language = /^[\w+#.-]*/.exec(lang ?? "")[0].toLowerCase();
      return `<pre><code${language ? ` class="language-${language}"` : ""}>${escape(text)}</code></pre>`;
    },
  },
});

/**
 * Shows `text` as Markdown in `container`. Called again while the text grows, it exchanges only the
 * blocks that changed, so that a selection and finished code stay as they are.
 */
export function showMarkdown(container, text) {
  const blocks = htmlBlocks(text);
  const old = [...container.children];
  blocks.forEach((html, index) => {
    if (old[index]?.source === html) return;
    const block = document.createElement("div");
    block.className = "block";
    block.source = html;
    block.append(DOMPurify.sanitize(html, CLEAN));
    finish(block);
    if (old[index]) old[index].replaceWith(block);
    else container.append(block);
  });
  for (const node of old.slice(blocks.length)) node.remove();
}

function htmlBlocks(text) {
  try {
    const tokens = marked.lexer(text);
    return tokens.filter(({ type }) => type !== "space" && type !== "def").map((token) => marked.parser([token]));
  } catch (error) {
    // Nesting that is deep enough ends any recursive parser. The text is then shown as it is.
    console.warn(error);
    return [`<pre>${escape(text)}</pre>`];
  }
}

function finish(block) {
  for (const node of block.querySelectorAll("[class]")) {
    if (node.tagName !== "CODE" || !/^language-\S+$/.test(node.className)) node.removeAttribute("class");
  }
  for (const anchor of block.querySelectorAll("a:not([href])")) anchor.replaceWith(...anchor.childNodes);
  for (const anchor of block.querySelectorAll("a")) {
    anchor.target = "_blank";
    anchor.rel = "noopener noreferrer nofollow";
    anchor.referrerPolicy = "no-referrer";
  }
  for (const table of block.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table-frame";
    frame.tabIndex = 0; // a wide table scrolls by keyboard too
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const code of block.querySelectorAll("pre > code")) frameCode(code);
}

function frameCode(code) {
  const language = code.className.replace("language-", "");
  if (hljs.getLanguage(language)) {
    const { value } = hljs.highlight(code.textContent, { language, ignoreIllegals: true });
    code.replaceChildren(DOMPurify.sanitize(value, CLEAN_CODE));
  }
  const figure = document.createElement("div");
  figure.className = "code";
  const bar = document.createElement("div");
  bar.className = "code-bar";
  const name = document.createElement("span");
  name.textContent = language || t("code");
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "copy-code";
  copy.textContent = t("copy");
  const frame = code.parentElement;
  frame.tabIndex = 0;
  frame.replaceWith(figure);
  bar.append(name, copy);
  figure.append(bar, frame);
}
