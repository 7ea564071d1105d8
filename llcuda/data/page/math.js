// Formulas in Markdown, as models write them: $a$, $$a$$, \(a\) and \[a\].

const MOST = 2000; // letters of one formula
const MOST_LINES = 100;

const INLINE = [["$$", "$$", true], ["\\[", "\\]", true], ["\\(", "\\)", false], ["$", "$", false]];

function isEscaped(source, at) {
  let first = at;
  while (source[first - 1] === "\\") first--;
  return (at - first) % 2 === 1;
}

// Returns where the formula ends; -1 if nothing ends it. One dollar is a mark only beside a letter,
// and no digit follows the second: "$5 and $6" are prices.
function endOf(source, from, close) {
  const part = source.slice(0, from + MOST + close.length);
  for (let at = part.indexOf(close, from); at >= 0; at = part.indexOf(close, at + 1)) {
    if (close[0] === "$" && isEscaped(source, at)) continue;
    if (close === "$" && (/\s/.test(source[at - 1]) || /\d/.test(source[at + 1] ?? ""))) continue;
    return at;
  }
  return -1;
}

function inlineRule(state, silent) {
  const { src, pos } = state;
  const kind = INLINE.find(([open]) => src.startsWith(open, pos));
  if (!kind) return false;
  const [open, close, display] = kind;
  const from = pos + open.length;
  if (open === "$" && /\s/.test(src[from] ?? " ")) return false;
  const end = endOf(src.slice(0, state.posMax), from, close);
  if (end < 0 || !src.slice(from, end).trim()) return false;
  if (!silent) {
    const token = state.push("formula", "code", 0);
    token.content = src.slice(from, end);
    token.meta = { display };
  }
  state.pos = end + close.length;
  return true;
}

function blockRule(state, start, end, silent) {
  const lineAt = i => state.src.slice(state.bMarks[i] + state.tShift[i], state.eMarks[i]).trimEnd();
  const first = lineAt(start);
  const close = { "$$": "$$", "\\[": "\\]" }[first.slice(0, 2)];
  if (!close || state.sCount[start] - state.blkIndent >= 4) return false;
  const lines = [first.slice(2)];
  let last = start;
  while (!lines.at(-1).endsWith(close)) {
    last++;
    if (last >= end || last - start > MOST_LINES || state.sCount[last] < state.blkIndent) return false;
    lines.push(lineAt(last));
  }
  const content = lines.join("\n").slice(0, -close.length);
  if (!content.trim() || content.includes(close)) return false;
  if (silent) return true;
  const token = state.push("formula", "code", 0);
  token.block = true;
  token.content = content;
  token.map = [start, last + 1];
  token.meta = { display: true };
  state.line = last + 1;
  return true;
}

// A plugin of markdown-it: formulas become <code class="formula">, with "display" for those that
// stand alone.
export function formulas(md) {
  md.inline.ruler.before("escape", "formula", inlineRule);
  md.block.ruler.before("fence", "formula", blockRule,
    { alt: ["paragraph", "reference", "blockquote", "list"] });
  md.renderer.rules.formula = (tokens, i) => {
    const { content, meta } = tokens[i];
    const name = meta.display ? "formula display" : "formula";
    return `<code class="${name}">${md.utils.escapeHtml(content)}</code>`;
  };
}
