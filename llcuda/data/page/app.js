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

const RETRY_MODELS = 5000; // milliseconds until a server that is gone is asked again
const KEEP_DRAFT = 200; // milliseconds without a key

const { store, problem } = await openStore();
export const chat = new Chat(store);
const view = new ConversationView(chat);
new ConversationList(chat, openId);
let files = []; // of the message that is being written
let draftClock = 0;

// --- which conversation is open: its id is the fragment of the address ---

const idOfAddress = () => location.hash.slice(1);

function openId(id) {
  showSide(false);
  if (id === idOfAddress() && id === (chat.conversation.created ? chat.conversation.id : ""))
    at("message").focus();
  else if (id === idOfAddress()) chat.open(id);
  else location.hash = id;
}

addEventListener("hashchange", () => chat.open(idOfAddress()));

chat.addEventListener("open", async () => {
  const { conversation } = chat;
  at("system").value = conversation.system;
  at("system-box").open = false;
  showState();
  const draft = await chat.draft();
  if (chat.conversation !== conversation) return;
  at("message").value = draft.text;
  files = draft.files;
  showFiles();
  if (!matchMedia("(pointer: coarse)").matches) at("message").focus();
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

at("system").onchange = async () => {
  await chat.update({ system: at("system").value });
  showState();
};

// --- the message field ---

function showFiles() {
  at("files").replaceChildren();
  for (const file of files) {
    const item = make("li", at("files"), file.name);
    button(item, "×", () => {
      files = files.filter(one => one !== file);
      showFiles();
      keepDraft();
    }, `Remove ${file.name}`);
  }
}

async function attach(list) {
  const { files: texts, problems } = await readFiles(list, files.length);
  files = [...files, ...texts];
  complain(problems.join(". "));
  showFiles();
  keepDraft();
}

function keepDraft() {
  clearTimeout(draftClock);
  draftClock = setTimeout(() => chat.keepDraft(at("message").value, files), KEEP_DRAFT);
}

async function send() {
  const text = at("message").value;
  if ((!text.trim() && !files.length) || chat.running || !checkSettings()) return;
  const sent = files;
  clearTimeout(draftClock);
  await chat.keepDraft("", []);
  at("message").value = "";
  files = [];
  showFiles();
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
document.ondragover = event => event.preventDefault();
document.ondrop = event => {
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
    if (error.kind === "gone") setTimeout(loadModels, RETRY_MODELS);
  }
}

at("model").onchange = () => write("model", at("model").value);

startSettings(loadModels);
complain(problem);
await chat.recover();
await chat.open(idOfAddress());
loadModels();
