// The tokens of an answer with their probabilities: shaded, with the alternatives on hover, on a
// tap, and token by token with the arrow keys.

import { at, make, say } from "./dom.js";

const SHADES = [0.9, 0.5, 0.2, 0.05]; // least probability of each shade

const probability = logprob => Math.exp(Math.min(0, logprob));
const percent = logprob => `${(100 * probability(logprob)).toFixed(1)} %`;
const named = text => JSON.stringify(text).slice(1, -1);
const groups = new WeakMap(); // element -> its tokens

// Shows the tokens in `target`; leave: called by Escape.
export function showTokens(target, tokens, leave) {
  const box = make("div", null, undefined, "tokens");
  box.role = "group";
  box.ariaLabel = "Tokens of the answer; the arrow keys go from one to the next";
  for (const group of tokens) {
    const likely = Math.min(...group.entries.map(([, logprob]) => probability(logprob)));
    const shade = SHADES.findIndex(least => likely >= least);
    const node = make("span", box, group.text, `token shade${shade < 0 ? SHADES.length : shade}`);
    node.tabIndex = -1;
    groups.set(node, group);
  }
  box.onkeydown = event => walk(event, box, leave);
  target.replaceChildren(box);
  box.firstChild?.focus();
}

function walk(event, box, leave) {
  if (event.key === "Escape") {
    event.stopPropagation();
    hideTip();
    leave();
  }
  const { activeElement } = document;
  const next = { ArrowRight: activeElement.nextSibling, ArrowLeft: activeElement.previousSibling,
    Home: box.firstChild, End: box.lastChild }[event.key];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function showTip(node) {
  const tip = at("tip");
  tip.replaceChildren();
  for (const [token, logprob, others] of groups.get(node).entries) {
    const table = make("table", tip);
    const row = (text, score, name) => {
      const line = make("tr", table, undefined, name);
      make("th", line, named(text)).scope = "row";
      make("td", line, percent(score));
      make("td", line, (score > -0.005 ? 0 : score).toFixed(2));
    };
    row(token, logprob, "chosen");
    for (const [other, score] of others) if (other !== token) row(other, score);
  }
  tip.hidden = false;
  const box = node.getClientRects()[0] ?? node.getBoundingClientRect();
  const left = Math.min(box.left, innerWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - tip.offsetHeight - 6)}px`;
}

export function hideTip() {
  at("tip").hidden = true;
}

document.addEventListener("mouseover", event => {
  if (groups.has(event.target)) showTip(event.target);
  else if (!groups.has(document.activeElement)) hideTip();
});
document.addEventListener("focusin", event => {
  const group = groups.get(event.target);
  if (!group) return hideTip();
  showTip(event.target);
  say(group.entries.map(([token, logprob]) => `${named(token)}: ${percent(logprob)}`).join(", "));
});
