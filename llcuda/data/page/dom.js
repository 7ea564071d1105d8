// Elements, announcements and the clipboard.

export const at = id => document.getElementById(id);

export function make(tag, parent, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  parent?.append(node);
  return node;
}

// label: what a screen reader says instead of the text.
export function button(parent, text, work, label) {
  const node = make("button", parent, text);
  node.type = "button";
  if (label) node.ariaLabel = node.title = label;
  node.onclick = work;
  return node;
}

// Tells a screen reader, once it has finished its sentence.
export function say(text) {
  at("said").textContent = text;
}

// Shows a notice with an action for some seconds. ended is called when it leaves unused.
export function toast(text, action, work, ended) {
  const node = make("div", at("toasts"), undefined, "toast");
  make("span", node, text);
  const leave = used => {
    clearTimeout(clock);
    node.remove();
    if (used) work();
    else ended();
  };
  const clock = setTimeout(leave, 10_000, false);
  button(node, action, () => leave(true));
  button(node, "×", () => leave(false), "Dismiss");
}

// The problem of the whole page; "" removes it.
export function complain(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = make("textarea", document.body, undefined, "unseen"); // an address that is not trusted
  field.value = text;
  field.select();
  document.execCommand("copy");
  field.remove();
}

export function copyButton(parent, text) {
  const node = button(parent, "Copy", async () => {
    try {
      await copy(text());
    } catch {
      say("The browser does not allow copying");
      node.textContent = "Not allowed";
      return;
    }
    say("Copied");
    node.textContent = "Copied";
    setTimeout(() => { node.textContent = "Copy"; }, 1500);
  });
  return node;
}

// Asks for a line of text; null = cancelled.
export function askText(title, value) {
  const dialog = at("question");
  const field = dialog.querySelector("input");
  at("question-title").textContent = title;
  field.value = value;
  dialog.returnValue = "";
  dialog.showModal();
  field.select();
  return new Promise(resolve => {
    dialog.onclose = () => resolve(dialog.returnValue === "ok" ? field.value.trim() : null);
  });
}

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
}
