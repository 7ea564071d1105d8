// The list of conversations: search, open, rename, delete with undo, export and import.

import { askText, at, button, complain, make, say, toast } from "./dom.js";
import { fromJson, save, toJson, toMarkdown } from "./transfer.js";

const SEARCH_AFTER = 150; // milliseconds without a key

export class ConversationList {
  #chat;
  #openId;
  #clock = 0;
  #drawing = 0;
  #menuOf = null; // the conversation of the open menu

  // openId: opens the conversation with this id, "" a new one.
  constructor(chat, openId) {
    this.#chat = chat;
    this.#openId = openId;
    chat.addEventListener("list", () => this.#later(0));
    chat.addEventListener("open", () => this.#later(0));
    at("search").oninput = () => this.#later(SEARCH_AFTER);
    at("more").onclick = event => this.#openMenu(event.currentTarget, chat.conversation);
    at("export-all").onclick = () => this.#exportJson(null, "llcuda conversations");
    at("import").onchange = event => this.#import(event.target);
    at("delete-all").onclick = () => this.#deleteAll();
    const actions = { rename: this.#rename, markdown: this.#exportMarkdown,
      json: one => this.#exportJson(one, one.title), delete: one => this.#delete([one]) };
    for (const node of at("menu").querySelectorAll("button")) {
      node.onclick = () => {
        at("menu").hidePopover();
        actions[node.name].call(this, this.#menuOf);
      };
    }
  }

  #later(time) {
    clearTimeout(this.#clock);
    this.#clock = setTimeout(() => this.#draw(), time);
  }

  async #draw() {
    const turn = ++this.#drawing;
    const text = at("search").value;
    const found = await this.#chat.list(text);
    if (turn !== this.#drawing) return; // a later one is under way
    const box = at("conversations");
    const focused = box.contains(document.activeElement) && document.activeElement.dataset.name;
    box.replaceChildren();
    for (const { conversation, snippet } of found) this.#drawRow(box, conversation, snippet);
    if (focused) box.querySelector(`[data-name="${focused}"]`)?.focus();
    at("none").hidden = found.length > 0;
    at("none").textContent = text ? "Nothing found" : "No conversations yet";
    if (text && document.activeElement === at("search")) say(`${found.length} found`);
    const { conversation } = this.#chat;
    at("title").textContent = conversation.title || "New chat";
    document.title = conversation.title ? `${conversation.title} – llcuda` : "llcuda";
    at("more").hidden = !conversation.created;
  }

  #drawRow(box, conversation, snippet) {
    const row = make("li", box);
    const open = button(row, undefined, () => this.#openId(conversation.id));
    open.className = "open";
    open.dataset.name = `open-${conversation.id}`;
    make("span", open, conversation.title, "name");
    if (this.#chat.isRunning(conversation.id)) make("span", open, "answering …", "snippet");
    else if (snippet) make("span", open, snippet, "snippet");
    if (conversation.id === this.#chat.conversation.id) open.ariaCurrent = "page";
    const more = button(row, "⋯", event => this.#openMenu(event.currentTarget, conversation),
      `Rename, export or delete “${conversation.title}”`);
    more.dataset.name = `more-${conversation.id}`;
  }

  #openMenu(node, conversation) {
    this.#menuOf = conversation;
    const menu = at("menu");
    menu.showPopover({ source: node });
    const box = node.getBoundingClientRect();
    menu.style.left = `${Math.max(8, Math.min(box.left, innerWidth - menu.offsetWidth - 8))}px`;
    menu.style.top = `${Math.min(box.bottom + 4, innerHeight - menu.offsetHeight - 8)}px`;
    menu.querySelector("button").focus();
  }

  async #rename(conversation) {
    const title = await askText("Rename the conversation", conversation.title);
    if (title) await this.#chat.rename(conversation, title);
  }

  async #delete(conversations) {
    for (const one of conversations) await this.#chat.hide(one);
    if (conversations.some(one => one.id === this.#chat.conversation.id)) this.#openId("");
    const [first] = conversations;
    const text = conversations.length === 1 ? `Deleted “${first.title}”` :
      `Deleted ${conversations.length} conversations`;
    say(text);
    toast(text, "Undo", async () => {
      for (const one of conversations) await this.#chat.restore(one);
      if (conversations.length === 1) this.#openId(first.id);
      say("Restored");
    }, async () => {
      for (const one of conversations) await this.#chat.forget(one);
    });
  }

  async #deleteAll() {
    at("settings").close();
    const all = (await this.#chat.list("")).map(({ conversation }) => conversation);
    if (all.length) await this.#delete(all);
  }

  async #exportMarkdown(conversation) {
    const { messages } = await this.#chat.rows(conversation);
    save(`${conversation.title}.md`, "text/markdown", toMarkdown(conversation, messages));
  }

  async #exportJson(conversation, name) {
    save(`${name}.json`, "application/json", toJson(await this.#chat.rows(conversation)));
  }

  async #import(input) {
    const [file] = input.files;
    at("settings").close();
    try {
      const rows = fromJson(await file.text());
      await this.#chat.add(rows);
      complain("");
      say(`Imported ${rows.conversations.length} conversations`);
    } catch (error) {
      complain(`${file.name} was not imported: ${error.message}`);
    }
    input.value = "";
  }
}
