// Conversations to files and back.

import { withFiles } from "./attach.js";
import { newId } from "./dom.js";
import { pathOf } from "./tree.js";

const FORMAT = "llcuda-conversations";

export function toJson(rows) {
  return JSON.stringify({ format: FORMAT, version: 1, ...rows }, null, 1);
}

// Returns the shown branch of a conversation as Markdown.
export function toMarkdown(conversation, messages) {
  const parts = [`# ${conversation.title}`];
  if (conversation.system.trim()) parts.push("## System prompt", conversation.system.trim());
  const all = new Map(messages.map(message => [message.id, message]));
  for (const { message } of pathOf(all, conversation.choices)) {
    parts.push(message.role === "user" ? "## You" : `## ${message.model || "Answer"}`);
    parts.push(withFiles(message.content, message.files));
    for (const call of message.calls ?? [])
      parts.push(`Tool call: ${call.name}\n\n\`\`\`json\n${call.arguments}\n\`\`\``);
    if (message.error) parts.push(`*${message.error.text}*`);
  }
  return `${parts.filter(Boolean).join("\n\n")}\n`;
}

export function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name.replace(/[^\p{L}\p{N}._ -]/gu, "_").slice(0, 80);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// --- import ---

const isText = value => typeof value === "string";
const isTime = value => Number.isFinite(value) && value >= 0;
const isObject = value => typeof value === "object" && value !== null && !Array.isArray(value);
const isList = check => value => Array.isArray(value) && value.every(check);
const isScore = value => Array.isArray(value) && isText(value[0]) && typeof value[1] === "number";

const FILE = { name: isText, text: isText };
const CALL = { name: isText, arguments: isText };
const STATES = ["running", "done", "limit", "stopped", "failed"];
const CONVERSATION = { id: isText, title: isText, system: isText, choices: isObject,
  created: isTime, updated: isTime };
const QUESTION = { id: isText, conversation: isText, parent: value => value === null || isText(value),
  role: value => value === "user" || value === "assistant", content: isText, created: isTime,
  files: isList(value => has(value, FILE)) };
const ANSWER = { ...QUESTION, reasoning: isText, model: isText, note: isText,
  hasTokens: value => typeof value === "boolean", state: value => STATES.includes(value), calls: isList(value => has(value, CALL)),
  error: value => value === null || has(value, { kind: isText, text: isText }) };
const TOKEN = { text: isText, entries: isList(value => isScore(value) && isList(isScore)(value[2])) };
const TOKENS = { message: isText, chunk: isTime, conversation: isText,
  tokens: isList(value => has(value, TOKEN)) };

const has = (value, fields) =>
  isObject(value) && Object.entries(fields).every(([name, check]) => check(value[name]));

// Keeps the known fields of a row. Throws an Error that names the first wrong one.
function checked(row, fields, place) {
  if (!isObject(row)) throw new Error(`${place}: not an object`);
  const kept = {};
  for (const [name, check] of Object.entries(fields)) {
    if (!check(row[name])) throw new Error(`${place}.${name}: missing or of another kind`);
    kept[name] = row[name];
  }
  return kept;
}

// Returns the rows of an export under new ids, so that nothing is replaced. Throws an Error that
// says what is wrong with the file.
export function fromJson(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("not JSON; choose a file that this page exported");
  }
  if (file?.format !== FORMAT)
    throw new Error("not an export of this page; choose a file that it exported as JSON");
  if (file.version !== 1) throw new Error("a newer llcuda wrote it; open it with that version");
  const rows = {};
  for (const name of ["conversations", "messages", "tokens"]) {
    if (!Array.isArray(file[name])) throw new Error(`${name}: not a list`);
    rows[name] = file[name].map((row, i) => {
      const kind = { conversations: CONVERSATION, tokens: TOKENS }[name] ??
        (row?.role === "user" ? QUESTION : ANSWER);
      return checked(row, kind, `${name}[${i}]`);
    });
  }
  checkTree(rows);
  return renamed(rows);
}

// Parents come before their children, so that there is no circle.
function checkTree({ conversations, messages, tokens }) {
  const homes = new Set(conversations.map(one => one.id));
  const all = new Map(messages.map(one => [one.id, one]));
  if (homes.size < conversations.length || all.size < messages.length)
    throw new Error("an id occurs twice");
  const rooted = new Set();
  for (const message of messages) {
    const chain = new Set();
    for (let at = message; at && !rooted.has(at.id); at = all.get(at.parent)) {
      if (chain.has(at.id)) throw new Error(`the parents of message ${at.id} are a circle`);
      chain.add(at.id);
      const parent = at.parent === null ? at : all.get(at.parent);
      if (parent?.conversation !== at.conversation || !homes.has(at.conversation))
        throw new Error(`message ${at.id}: its parent or its conversation is not in the file`);
    }
    chain.forEach(id => rooted.add(id));
  }
  for (const row of tokens) {
    if (all.get(row.message)?.conversation !== row.conversation)
      throw new Error(`tokens of ${row.message}: the message is not in the file`);
  }
}

function renamed({ conversations, messages, tokens }) {
  const ids = new Map([[null, null], ["root", "root"]]);
  for (const { id } of [...conversations, ...messages]) ids.set(id, newId());
  const choices = given => Object.fromEntries(
    Object.entries(given).filter(pair => pair.every(id => ids.has(id)))
      .map(pair => pair.map(id => ids.get(id))));
  return {
    conversations: conversations.map(one => ({ ...one, id: ids.get(one.id), named: true, deleted: 0,
      choices: choices(one.choices) })),
    messages: messages.map(one => ({ ...one, id: ids.get(one.id), parent: ids.get(one.parent),
      conversation: ids.get(one.conversation) })),
    tokens: tokens.map(one => ({ ...one, message: ids.get(one.message),
      conversation: ids.get(one.conversation) })),
  };
}
