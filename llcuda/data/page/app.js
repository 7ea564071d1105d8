// The page: what its parts do together, the message field, the keys.

import { modelNames } from "./api.js";
import { readFiles } from "./attach.js";
import { Chat } from "./chat.js";
import { at, button, complain, make } from "./dom.js";
import { ConversationList } from "./list.js";
import { read, write } from "./local.js";
import { checkSettings, openSettings, startSettings } from "./settings.js";
import { openStore } from "./store.js";
import { ConversationView } from "./view.js";

const RETRY_MODELS = 5000; // milliseconds until a server that is busy or gone is asked again
const KEEP_DRAFT = 200; // milliseconds without a key

const { store, problem } = await openStore();
export const chat = new Chat(store);
const view = new ConversationView(chat);
new ConversationList(chat, openId);
let files = []; // of the message that is being written
let draft = null; // what of the message is not stored yet, as a row of the store
let draftClock = 0;
let isOpen = false; // whether a conversation was opened yet

// --- which conversation is open: its id is the fragment of the address ---

const idOfAddress = () => location.hash.slice(1);

function openId(id) {
  showSide(false);
  if (id === idOfAddress() && id === chat.draftKey) at("message").focus();
  else if (id === idOfAddress()) chat.open(id);
  else location.hash = id;
}

addEventListener("hashchange", () => chat.open(idOfAddress()));

chat.addEventListener("open", async () => {
  const { conversation } = chat;
  at("system").value = conversation.system;
  at("system-box").open = false;
  showState();
  storeDraft();
  if (isOpen) showDraft("", []); // what was written while the page was loaded stays
  isOpen = true;
  if (!matchMedia("(pointer: coarse)").matches) at("message").focus();
  const kept = await chat.draft();
  const isUntouched = !at("message").value && !files.length;
  if (chat.conversation === conversation && isUntouched) showDraft(kept.text, kept.files);
});

chat.addEventListener("change", () => {
  const { id, created } = chat.conversation;
  if (created && idOfAddress() !== id) history.replaceState(null, "", `#${id}`);
  showState();
});
chat.addEventListener("problem", ({ detail }) => complain(detail));

function showState() {
  at("send").hidden = Boolean(chat.running);
  at("stop").hidden = !chat.running;
  at("system-state").textContent = chat.conversation.system.trim() ? "set" : "none";
}

at("system").oninput = async () => {
  await chat.update({ system: at("system").value });
  showState();
};

// --- the message field ---

function showDraft(text, list) {
  at("message").value = text;
  files = list;
  at("files").replaceChildren();
  for (const file of files) {
    const item = make("li", at("files"), file.name);
    button(item, "×", () => {
      showDraft(at("message").value, files.filter(one => one !== file));
      keepDraft();
    }, `Remove ${file.name}`);
  }
}

async function attach(list) {
  const { files: texts, problems } = await readFiles(list, files.length);
  complain(problems.join(". "));
  showDraft(at("message").value, [...files, ...texts]);
  keepDraft();
}

function keepDraft() {
  draft = { conversation: chat.draftKey, text: at("message").value, files };
  clearTimeout(draftClock);
  draftClock = setTimeout(storeDraft, KEEP_DRAFT);
}

async function storeDraft() {
  clearTimeout(draftClock);
  const row = draft;
  draft = null;
  if (row) await chat.keepDraft(row);
}

addEventListener("pagehide", () => { if (draft) chat.leaveDraft(draft); });

async function send() {
  const text = at("message").value;
  if ((!text.trim() && !files.length) || chat.running || !checkSettings()) return;
  const sent = files;
  showDraft("", []);
  keepDraft();
  storeDraft(); // before another conversation can be the open one
  navigator.storage?.persist?.(); // or the browser may delete conversations when the disk is full
  await chat.send(text, sent);
}

at("message").oninput = keepDraft;
at("message").onkeydown = event => {
  if (event.key === "ArrowUp" && !at("message").value) {
    event.preventDefault();
    view.editLast();
  }
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
};
at("write").onsubmit = event => {
  event.preventDefault();
  send();
};
at("stop").onclick = () => {
  chat.stop();
  at("message").focus();
};
at("attach").onclick = () => at("choose-files").click();
at("choose-files").onchange = async event => {
  await attach(event.target.files);
  event.target.value = "";
};
at("message").onpaste = event => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  attach(event.clipboardData.files);
};
const hasFiles = event => event.dataTransfer.types.includes("Files");
document.ondragover = event => { if (hasFiles(event)) event.preventDefault(); };
document.ondrop = event => {
  if (!hasFiles(event)) return; // a text that is dragged into the field
  event.preventDefault();
  attach(event.dataTransfer.files);
};

// --- the list at the side, over the conversation where the window is narrow ---

const narrow = matchMedia("(max-width: 50rem)");

function showSide(open) {
  document.body.classList.toggle("side-open", open);
  at("chat").inert = open && narrow.matches;
  at("open-side").ariaExpanded = String(open);
}

at("open-side").onclick = () => {
  showSide(true);
  at("new").focus();
};
at("close-side").onclick = () => {
  showSide(false);
  at("open-side").focus();
};
narrow.onchange = () => showSide(false);
document.onclick = event => { // beside the list, where the conversation takes no clicks
  if (event.target === document.body) showSide(false);
};
at("new").onclick = () => openId("");

document.addEventListener("keydown", event => {
  const command = event.ctrlKey || event.metaKey;
  if (event.key === "Escape") {
    if (document.body.classList.contains("side-open")) at("close-side").click();
    else chat.stop();
  } else if (command && event.key.toLowerCase() === "k") {
    event.preventDefault();
    if (narrow.matches) showSide(true);
    at("search").focus();
  } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    openId("");
  }
});

// --- the models ---

async function loadModels() {
  try {
    const names = await modelNames();
    const before = at("model").value || read("model");
    at("model").replaceChildren(...names.map(name => new Option(name, name)));
    if (names.includes(before)) at("model").value = before;
    complain(problem);
  } catch (error) {
    complain(error.message);
    if (error.kind === "key") openSettings("key");
    if (["busy", "gone"].includes(error.kind)) setTimeout(loadModels, RETRY_MODELS);
  }
}

at("model").onchange = () => write("model", at("model").value);

startSettings(loadModels);
complain(problem);
await chat.recover();
await chat.open(idOfAddress());
loadModels();
