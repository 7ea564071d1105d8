// Markdown to elements. markdown-it makes HTML of it, DOMPurify elements of that HTML, then
// highlight.js colours the code and KaTeX sets the formulas. A model's text is hostile: HTML in it
// is text, links go to web addresses only, and images are links.

import { copyButton, make } from "./dom.js";
import { formulas } from "./math.js";

const MOST = 200_000; // letters of a message that are read as Markdown
const MOST_CODE = 50_000; // letters of one block of code that are coloured
const TAGS = ["a", "blockquote", "br", "code", "del", "em", "h4", "h5", "h6", "hr", "li", "ol", "p",
  "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"];

// Returns the libraries; null where the page was built without them.
async function load() {
  const names = ["markdown-it", "purify", "highlight", "katex"];
  let modules;
  try {
    modules = await Promise.all(names.map(name => import(`./lib/${name}.mjs`)));
  } catch {
    return null;
  }
  const style = make("link", document.head);
  style.rel = "stylesheet";
  style.href = new URL("lib/katex.css", import.meta.url);
  const [markdownIt, purify, highlight, katex] = modules.map(module => module.default);
  return { md: reader(markdownIt), purify, highlight, katex };
}

function reader(markdownIt) {
  const md = markdownIt({ html: false, linkify: true, maxNesting: 40 });
  md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
  md.validateLink = address => /^(https?:|mailto:)/i.test(address);
  md.use(formulas);
  const { rules } = md.renderer;
  rules.heading_open = rules.heading_close = (tokens, i) => {
    const level = Math.min(6, Number(tokens[i].tag[1]) + 3);
    return `<${tokens[i].nesting < 0 ? "/" : ""}h${level}>`;
  };
  rules.image = (tokens, i) => {
    const text = md.utils.escapeHtml(tokens[i].content || "image");
    return `<a href="${md.utils.escapeHtml(tokens[i].attrGet("src"))}">${text}</a>`;
  };
  rules.th_open = rules.td_open = (tokens, i) => {
    const side = /right|center/.exec(tokens[i].attrGet("style") ?? "");
    return `<${tokens[i].tag}${side ? ` class="${side[0]}"` : ""}>`;
  };
  return md;
}

const libraries = await load();

// Shows control characters, which terminals obey and readers do not see.
const visible = text => text
  .replace(/\r\n?/g, "\n")
  .replace(/[\0-\x08\x0b-\x1f]/g, letter => String.fromCharCode(0x2400 + letter.charCodeAt(0)));

// Shows marks that change the order in which letters are read.
const inOrder = text => text.replace(/[\u202a-\u202e\u2066-\u2069]/g, mark =>
  `[U+${mark.charCodeAt(0).toString(16).toUpperCase()}]`);

function clean(html) {
  return libraries.purify.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ["class", "href", "start", "title"],
    ADD_URI_SAFE_ATTR: ["start"],
    ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
    ALLOW_ARIA_ATTR: false,
    ALLOW_DATA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}

function finishCode(code) {
  const text = inOrder(code.textContent);
  const language = /^language-(.*)/.exec(code.className)?.[1] ?? "";
  code.removeAttribute("class");
  code.textContent = text;
  showCode(code, text, language);
  const box = make("div", null, undefined, "block");
  const bar = make("div", box, undefined, "bar");
  make("span", bar, language);
  copyButton(bar, () => text);
  code.parentNode.replaceWith(box);
  code.parentNode.tabIndex = 0; // arrow keys scroll it
  box.append(code.parentNode);
}

// Colours code whose language is known.
export function showCode(code, text, language) {
  code.textContent = text;
  const highlight = libraries?.highlight;
  if (!highlight?.getLanguage(language) || text.length > MOST_CODE) return;
  code.replaceChildren(clean(highlight.highlight(text, { language, ignoreIllegals: true }).value));
}

// Sets a formula; one that KaTeX does not read stays as it was written.
function finishFormula(code) {
  const displayMode = code.classList.contains("display");
  const node = make("span", null, undefined, code.className);
  try {
    const tree = libraries.katex.__renderToDomTree(code.textContent,
      { displayMode, throwOnError: true, strict: false, trust: false, maxSize: 20, maxExpand: 200 });
    moveStyles(tree);
    node.append(tree.toNode());
  } catch {
    return; // an error of the formula, or nested too deeply for the stack
  }
  for (const part of node.querySelectorAll("[data-style]")) part.style.cssText = part.dataset.style;
  code.replaceWith(node);
}

// The policy of the page forbids the attribute "style", which KaTeX writes for a few accents.
function moveStyles({ attributes, children }) {
  if (attributes?.style) {
    attributes["data-style"] = attributes.style;
    delete attributes.style;
  }
  children?.forEach(moveStyles);
}

function finish(fragment) {
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  fragment.querySelectorAll("pre > code").forEach(finishCode);
  fragment.querySelectorAll("code.formula").forEach(finishFormula);
  for (const table of fragment.querySelectorAll("table")) {
    const box = make("div", null, undefined, "scroll");
    box.tabIndex = 0;
    box.role = "region";
    box.ariaLabel = "Table";
    table.replaceWith(box);
    box.append(table);
  }
  return fragment;
}

// A text as it grows; parts that stay as they are keep their elements.
export class Markdown {
  #target;
  #parts = []; // {html, node}

  constructor(target) {
    this.#target = target;
  }

  show(source) {
    const text = visible(source);
    const plain = !libraries || text.length > MOST;
    this.#target.classList.toggle("plain", plain);
    if (plain) {
      this.#parts = [];
      this.#target.textContent = text;
      return;
    }
    if (!this.#parts.length) this.#target.replaceChildren();
    const all = blocks(text);
    all.forEach((html, i) => {
      const kept = this.#parts[i];
      if (kept?.html === html) return;
      const node = make("div");
      node.append(finish(clean(html)));
      if (kept) kept.node.replaceWith(node);
      else this.#target.append(node);
      this.#parts[i] = { html, node };
    });
    for (const { node } of this.#parts.splice(all.length)) node.remove();
  }

  // Draws the whole text again, after something else was shown in its place.
  redraw(source) {
    this.#parts = [];
    this.show(source);
  }
}

// Returns the HTML of each outermost block.
function blocks(text) {
  const { md } = libraries;
  const env = {};
  const all = [];
  let open = [];
  for (const token of md.parse(text, env)) {
    open.push(token);
    if (token.level || token.nesting > 0) continue;
    all.push(md.renderer.render(open, md.options, env));
    open = [];
  }
  return all;
}
