// The messages of the open conversation as articles.

import { at, button, copyButton, make, say } from "./dom.js";
import { Markdown, showCode } from "./markdown.js";
import { openSettings } from "./settings.js";
import { hideTip, showTokens } from "./tokens.js";

const main = document.querySelector("main");
const atEnd = () => main.scrollHeight - main.scrollTop - main.clientHeight < 60;
const follow = low => { if (low) main.scrollTop = main.scrollHeight; };
const CUT = "This answer was cut off: the page was closed while it was written. What arrived is kept.";

const size = text => text.length < 1024 ? `${text.length} letters` : `${Math.ceil(text.length / 1024)} K`;

class MessageView {
  #chat;
  #tokensShown = false;

  constructor(chat, message) {
    this.#chat = chat;
    this.message = message;
    this.node = make("article", null, undefined, message.role);
    const isAnswer = message.role === "assistant";
    make("h3", this.node, isAnswer ? "Answer" : "You");
    if (isAnswer) {
      this.details = make("details", this.node, undefined, "reasoning");
      make("summary", this.details, "Reasoning");
      this.reasoning = make("div", this.details);
    }
    this.text = make("div", this.node, undefined, "text");
    if (isAnswer) {
      this.markdown = new Markdown(this.text);
      this.calls = make("div", this.node);
      this.error = make("p", this.node, undefined, "error");
    } else {
      this.#showQuestion();
    }
    this.foot = make("div", this.node, undefined, "foot");
    this.note = make("span", this.foot, undefined, "note");
    this.buttons = make("span", this.foot, undefined, "buttons");
  }

  #showQuestion() {
    this.text.textContent = this.message.content;
    this.text.hidden = !this.message.content;
    for (const file of this.message.files) {
      const details = make("details", null, undefined, "file");
      make("summary", details, `${file.name} (${size(file.text)})`);
      make("pre", details, file.text).tabIndex = 0;
      this.text.before(details);
    }
  }

  // isRunning: whether this tab writes the answer; canChange: whether it writes none here.
  update({ siblings, index }, isRunning, canChange) {
    this.node.ariaBusy = isRunning ? "true" : null;
    if (this.message.role === "assistant") this.showAnswer(isRunning);
    this.#offer(siblings, index, isRunning, canChange);
  }

  showAnswer(isRunning) {
    const { message } = this;
    const cut = message.state === "running" && !isRunning;
    if (!this.#tokensShown) this.markdown.show(message.content);
    this.details.hidden = !message.reasoning;
    this.reasoning.textContent = message.reasoning;
    this.#showCalls();
    this.error.textContent = cut ? CUT : message.error?.text ?? "";
    this.note.textContent = isRunning ? this.#chat.runs.get(message.id).note : message.note;
    if (message.model) this.node.firstChild.textContent = `Answer · ${message.model}`;
  }

  #showCalls() {
    const { calls } = this.message;
    while (this.calls.childElementCount < calls.length) {
      const details = make("details", this.calls, undefined, "call");
      details.open = true;
      make("summary", details);
      const code = make("code", make("pre", details));
      copyButton(details, () => code.textContent);
    }
    calls.forEach((call, i) => {
      const details = this.calls.children[i];
      details.firstChild.textContent = `Tool call: ${call.name}`;
      let text = call.arguments;
      try {
        text = JSON.stringify(JSON.parse(text), null, 2);
      } catch { /* not whole yet */ }
      showCode(details.querySelector("code"), text, "json");
    });
  }

  #offer(siblings, index, isRunning, canChange) {
    const { message } = this;
    const chat = this.#chat;
    const focused = this.buttons.contains(document.activeElement) && document.activeElement.dataset.name;
    const add = (name, label, work) => {
      const node = button(this.buttons, name, work, label);
      node.dataset.name = name;
      return node;
    };
    this.buttons.replaceChildren();
    if (siblings.length > 1) {
      const move = step => chat.choose(siblings[index + step]);
      add("‹", "Earlier version", () => move(-1)).disabled = index === 0;
      make("span", this.buttons, `${index + 1}/${siblings.length}`).ariaLabel =
        `Version ${index + 1} of ${siblings.length}`;
      add("›", "Later version", () => move(1)).disabled = index === siblings.length - 1;
    }
    if (isRunning) return;
    if (message.content) copyButton(this.buttons, () => message.content).dataset.name = "Copy";
    if (message.role === "user") {
      if (canChange) add("Edit", "Edit this message", () => this.edit());
    } else {
      if (canChange) {
        const failed = message.state === "failed" || message.state === "running";
        add(failed ? "Retry" : "Regenerate", undefined, () => chat.regenerate(message));
        if (message.state !== "done" && message.content)
          add("Continue", "Go on with this answer", () => chat.continue(message));
        if (message.error?.kind === "key") add("Enter key", undefined, () => openSettings("key"));
      }
      if (message.hasTokens) {
        const node = add("Tokens", "Show tokens and probabilities", () => this.#toggleTokens(node));
        node.ariaPressed = String(this.#tokensShown);
      }
    }
    if (focused) this.buttons.querySelector(`[data-name="${focused}"]:enabled`)?.focus();
  }

  async #toggleTokens(node) {
    this.#tokensShown = !this.#tokensShown;
    node.ariaPressed = String(this.#tokensShown);
    const leave = () => {
      this.#tokensShown = false;
      node.ariaPressed = "false";
      this.markdown.redraw(this.message.content);
      node.focus();
    };
    if (this.#tokensShown) showTokens(this.text, await this.#chat.tokensOf(this.message), leave);
    else leave();
  }

  // Opens the question for editing, in its place.
  edit() {
    const { message } = this;
    const form = make("form", null, undefined, "edit");
    const field = make("textarea", form);
    field.ariaLabel = "Edit the message; Enter sends it, Escape cancels";
    field.value = message.content;
    const bar = make("div", form, undefined, "buttons");
    make("button", bar, "Send", "main");
    const end = () => {
      form.remove();
      this.text.hidden = !message.content;
      this.foot.hidden = false;
      this.buttons.querySelector("[data-name=Edit]")?.focus();
    };
    button(bar, "Cancel", end);
    form.onsubmit = event => {
      event.preventDefault();
      if (!field.value.trim() && !message.files.length) return;
      end();
      this.#chat.send(field.value, message.files, message.parent);
    };
    form.onkeydown = event => {
      if (event.key === "Escape") {
        event.stopPropagation();
        end();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === field) {
        event.preventDefault();
        form.requestSubmit();
      }
    };
    this.text.hidden = this.foot.hidden = true;
    this.text.after(form);
    field.focus();
  }
}

// Shows the open conversation, and its answers as they grow.
export class ConversationView {
  #chat;
  #views = new Map(); // message id -> MessageView
  #frame = 0;
  #nextDraw = 0; // not before this time

  constructor(chat) {
    this.#chat = chat;
    chat.addEventListener("open", () => {
      this.#views.clear();
      at("log").replaceChildren();
      this.draw();
      follow(true);
    });
    chat.addEventListener("change", ({ detail }) => this.#changed(detail));
    chat.addEventListener("progress", ({ detail }) => this.#progress(detail));
    setInterval(() => this.#progress(chat.running?.message), 200); // the time it waits
    main.addEventListener("scroll", hideTip);
  }

  #changed(ended) {
    const { running } = this.#chat;
    const begins = running && !this.#views.has(running.message.id);
    const low = atEnd() || begins;
    this.draw();
    follow(low);
    if (ended?.conversation === this.#chat.conversation.id)
      say(ended.error?.text ?? this.#views.get(ended.id)?.text.textContent ?? "");
    else if (begins) say("The model answers");
  }

  // Draws what is new of a running answer, at most once a frame. A long answer takes longer to
  // draw and is drawn less often, so that the page stays responsive.
  #progress(message) {
    const view = message && this.#views.get(message.id);
    if (!view || this.#frame || performance.now() < this.#nextDraw) return;
    this.#frame = requestAnimationFrame(begin => {
      this.#frame = 0;
      if (!this.#chat.runs.has(message.id)) return;
      const low = atEnd();
      view.showAnswer(true);
      follow(low);
      const end = performance.now();
      this.#nextDraw = end + 3 * (end - begin);
    });
  }

  draw() {
    const { path, running } = this.#chat;
    path.forEach((place, i) => {
      const { message } = place;
      let view = this.#views.get(message.id);
      if (view?.message !== message) {
        view?.node.remove();
        view = new MessageView(this.#chat, message);
        this.#views.set(message.id, view);
      }
      const shown = at("log").children[i];
      if (shown !== view.node) at("log").insertBefore(view.node, shown ?? null);
      view.update(place, this.#chat.runs.has(message.id), !running);
    });
    for (const node of [...at("log").children].slice(path.length)) node.remove();
    at("empty").hidden = path.length > 0;
  }

  editLast() {
    const last = this.#chat.path.findLast(({ message }) => message.role === "user");
    if (last && !this.#chat.running) this.#views.get(last.message.id).edit();
  }
}
