// The open conversation: its tree of messages, the answers that are being written, what is stored.

import { Run } from "./answer.js";
import { withFiles } from "./attach.js";
import { newId } from "./dom.js";
import { names, read, write } from "./local.js";
import { requestSettings } from "./settings.js";
import { choose, pathOf } from "./tree.js";

const SAVE_EVERY = 400; // milliseconds
const UNDO_ENDS = 60_000; // milliseconds after which no tab offers to undo a deletion
const UNSAVED = "unsaved-"; // in localStorage: what a tab wrote while it was closed

const blank = () => ({
  id: newId(), title: "", named: false, system: "", choices: {}, created: 0, updated: 0, deleted: 0,
});

function titleOf(message) {
  const text = message.content.trim() || message.files.map(file => file.name).join(", ");
  return text.split("\n", 1)[0].slice(0, 80);
}

// Dispatches "open" (another conversation), "change" (other messages), "progress" (an answer has
// grown: detail is its message), "list" (a conversation is new or changed) and "problem".
export class Chat extends EventTarget {
  #store;
  #opening = 0;
  #others = new BroadcastChannel("llcuda");
  runs = new Map(); // message id -> Run, of all conversations
  conversation = blank();
  messages = new Map();

  constructor(store) {
    super();
    this.#store = store;
    this.#others.onmessage = ({ data }) => this.#changedElsewhere(data);
    addEventListener("pagehide", () => this.#leave());
    setInterval(() => this.#saveRuns(), SAVE_EVERY);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  get path() {
    return pathOf(this.messages, this.conversation.choices);
  }

  get running() {
    return [...this.runs.values()].find(run => run.message.conversation === this.conversation.id);
  }

  isRunning(id) {
    return [...this.runs.values()].some(run => run.message.conversation === id);
  }

  // Opens a conversation; one that does not exist is a new one.
  async open(id) {
    if (await this.#load(id)) this.#tell("open");
  }

  // Returns false where another one was opened meanwhile.
  async #load(id) {
    const turn = ++this.#opening;
    const conversation = id ? await this.#store.get("conversations", id) : null;
    const found = conversation && !conversation.deleted;
    const messages = found ? await this.#store.all("messages", "conversation", id) : [];
    if (turn !== this.#opening) return false;
    this.conversation = found ? conversation : blank();
    this.messages = new Map(messages.map(message => // those that are shown keep their objects
      [message.id, Object.assign(this.messages.get(message.id) ?? {}, message)]));
    for (const { message } of this.runs.values())
      if (message.conversation === this.conversation.id) this.messages.set(message.id, message);
    return true;
  }

  // Writes rows of the store; a failure is shown, and the page goes on. Returns whether they are kept.
  async #put(rows) {
    try {
      await this.#store.put(rows);
    } catch (error) {
      this.#tell("problem", `The browser cannot store this conversation (${error.message}). ` +
        "Export or delete conversations.");
      return false;
    }
    const changed = rows.messages?.[0]?.conversation ?? rows.conversations?.[0]?.id;
    if (changed) this.#others.postMessage(changed);
    return true;
  }

  async #changedElsewhere(id) {
    this.#tell("list");
    if (id !== this.conversation.id || this.running) return;
    if (await this.#load(id)) this.#tell("change");
  }

  #touch() {
    this.conversation.updated = Date.now();
    this.conversation.created ||= this.conversation.updated;
  }

  // Changes the open conversation; a new one is stored with its first message.
  async update(changes) {
    Object.assign(this.conversation, changes);
    if (this.conversation.created) await this.#put({ conversations: [this.conversation] });
    this.#tell("list");
  }

  #add(message) {
    const whole = {
      id: newId(), conversation: this.conversation.id, created: Date.now(), content: "", files: [],
      ...message,
    };
    this.messages.set(whole.id, whole);
    choose(this.conversation.choices, whole);
    this.#touch();
    return whole;
  }

  // Asks below `parent`, by default at the end of what is shown.
  async send(content, files, parent = this.path.at(-1)?.message.id ?? null) {
    const question = this.#add({ role: "user", parent, content, files });
    if (!this.conversation.title) this.conversation.title = titleOf(question);
    await this.#answer(question);
  }

  // Answers a question once more, beside the earlier answers.
  regenerate(answer) {
    const question = this.messages.get(answer.parent);
    const empty = !answer.content && !answer.reasoning && !answer.calls.length;
    return this.#answer(question, empty ? answer : undefined);
  }

  // Goes on with an answer that was cut off: the server continues a last message of the assistant.
  async continue(answer) {
    const parts = await this.#store.all("tokens", "message", answer.id);
    const begun = { role: "assistant", content: answer.content };
    if (answer.reasoning) begun.reasoning_content = answer.reasoning;
    Object.assign(answer, { state: "running", note: "", error: null });
    const messages = [...this.#requestMessages(answer), begun];
    await this.#write(answer, this.messages.get(answer.parent), messages, parts.length);
  }

  async choose(message) {
    choose(this.conversation.choices, message);
    await this.#put({ conversations: [this.conversation] });
    this.#tell("change");
  }

  stop() {
    this.running?.stop();
  }

  // Writes an answer to a question, in the place of one that failed before it began.
  async #answer(question, failed) {
    const settings = requestSettings();
    const fields = {
      role: "assistant", parent: question?.id ?? null, content: "", reasoning: "", calls: [],
      state: "running", model: settings.model, note: "", error: null, hasTokens: false,
    };
    const message = failed ? Object.assign(failed, fields) : this.#add(fields);
    choose(this.conversation.choices, message);
    await this.#write(message, question, this.#requestMessages(message));
  }

  // Writes what the model says to messages behind what an answer has; `chunk` parts of its tokens are stored.
  async #write(message, question, messages, chunk = 0) {
    const { conversation } = this;
    const run = new Run(message, { ...requestSettings(), messages }, () => this.#tell("progress", message));
    run.chunk = chunk;
    run.rows = { conversations: [conversation], messages: [question, message].filter(Boolean) };
    this.runs.set(message.id, run);
    await this.#put(run.rows);
    this.#tell("list");
    this.#tell("change");
    await run.go();
    await this.#save(run);
    this.runs.delete(message.id);
    this.#tell("list");
    this.#tell("change", message);
  }

  // A question without an answer is left out: templates want the roles to alternate.
  #requestMessages(answer) {
    const before = [];
    for (let at = this.messages.get(answer.parent); at; at = this.messages.get(at.parent))
      before.unshift(at);
    const last = before.at(-1);
    const sent = before.filter((one, i) =>
      one.role === "user" ? one === last || before[i + 1]?.content : one.content);
    const messages = sent.map(one => ({ role: one.role, content: withFiles(one.content, one.files) }));
    const system = this.conversation.system.trim();
    return system ? [{ role: "system", content: system }, ...messages] : messages;
  }

  // Returns what of a running answer is not stored yet, as rows.
  #rowsOf({ message, tokens, chunk }) {
    if (!tokens.length) return { messages: [message] };
    const { id, conversation } = message;
    message.hasTokens = true;
    return { messages: [message], tokens: [{ message: id, chunk, conversation, tokens: [...tokens] }] };
  }

  // Stores what is new of a running answer, after the part that is being stored.
  #save(run) {
    run.saves++;
    run.saved = run.saved.then(async () => {
      const count = run.tokens.length;
      if (await this.#put(this.#rowsOf(run)) && count) {
        run.tokens.splice(0, count);
        run.chunk++;
      }
      run.saves--;
    });
    return run.saved;
  }

  #saveRuns() {
    for (const run of this.runs.values()) if (!run.saves) this.#save(run);
  }

  // The tab closes, when only localStorage still writes.
  #leave() {
    for (const run of this.runs.values())
      write(UNSAVED + run.message.id, { ...this.#rowsOf(run), ...run.rows });
  }

  // Stores what tabs left behind that were closed, and forgets what was deleted.
  async recover() {
    for (const name of names(UNSAVED)) {
      const rows = read(name);
      if (rows) await this.#put(rows);
      write(name, null);
    }
    for (const { id, deleted } of await this.#store.all("conversations"))
      if (deleted && Date.now() - deleted > UNDO_ENDS) await this.#store.remove(id);
  }

  async tokensOf(message) {
    const rows = await this.#store.all("tokens", "message", message.id);
    const stored = rows.sort((a, b) => a.chunk - b.chunk).flatMap(row => row.tokens);
    return [...stored, ...(this.runs.get(message.id)?.tokens ?? [])];
  }

  // --- the list ---

  // Returns the conversations, the newest first; with `text`, those that contain it, with a snippet.
  async list(text) {
    const all = (await this.#store.all("conversations")).filter(one => !one.deleted);
    all.sort((a, b) => b.updated - a.updated);
    const wanted = text.trim().toLowerCase();
    if (!wanted) return all.map(conversation => ({ conversation, snippet: "" }));
    const snippets = new Map();
    for (const { conversation, content } of await this.#store.all("messages")) {
      const at = snippets.has(conversation) ? -1 : content.toLowerCase().indexOf(wanted);
      if (at >= 0) snippets.set(conversation, content.slice(Math.max(0, at - 20), at + 60));
    }
    return all
      .filter(one => snippets.has(one.id) || one.title.toLowerCase().includes(wanted))
      .map(conversation => ({ conversation, snippet: snippets.get(conversation.id) ?? "" }));
  }

  async rename(conversation, title) {
    await this.#change(conversation, { title, named: true });
  }

  // Hides a conversation, which `restore` brings back and `forget` removes.
  async hide(conversation) {
    for (const run of this.runs.values())
      if (run.message.conversation === conversation.id) run.stop();
    await this.#change(conversation, { deleted: Date.now() });
  }

  async restore(conversation) {
    await this.#change(conversation, { deleted: 0 });
  }

  async forget(conversation) {
    await this.#store.remove(conversation.id);
  }

  async #change(conversation, changes) {
    const own = conversation.id === this.conversation.id ? this.conversation : conversation;
    Object.assign(own, changes);
    await this.#put({ conversations: [own] });
    this.#tell("list");
  }

  // --- drafts ---

  // The key of the draft; a new conversation has no id that an address could name.
  get draftKey() {
    return this.conversation.created ? this.conversation.id : "";
  }

  async draft() {
    return await this.#store.get("drafts", this.draftKey) ?? { text: "", files: [] };
  }

  async keepDraft(row) {
    await this.#put({ drafts: [row] });
  }

  // As `keepDraft`, while the tab closes.
  leaveDraft(row) {
    write(`${UNSAVED}draft`, { drafts: [row] });
  }

  // --- export and import ---

  // Returns all rows of one conversation, or of each.
  async rows(conversation) {
    const chosen = conversation ? [conversation] :
      (await this.#store.all("conversations")).filter(one => !one.deleted);
    const rows = { conversations: chosen, messages: [], tokens: [] };
    for (const { id } of chosen) {
      rows.messages.push(...await this.#store.all("messages", "conversation", id));
      rows.tokens.push(...await this.#store.all("tokens", "conversation", id));
    }
    return rows;
  }

  async add(rows) {
    await this.#store.put(rows);
    this.#others.postMessage(null);
    this.#tell("list");
  }
}
