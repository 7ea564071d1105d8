// The settings: sampling, theme and the API key. The browser keeps them, the tab keeps the key.

import { at } from "./dom.js";
import { read, write } from "./local.js";

const form = at("settings-form");

export function openSettings(field) {
  if (!at("settings").open) at("settings").showModal();
  if (field) form.elements[field].focus();
}

// Returns the fields of a request beside its messages.
export function requestSettings() {
  const fields = { model: at("model").value, stream: true, stream_options: { include_usage: true } };
  for (const input of form.querySelectorAll("input[type=number]"))
    if (input.value !== "") fields[input.name] = Number(input.value);
  if (form.elements.logprobs.checked) {
    fields.logprobs = true;
    fields.top_logprobs ??= 5;
  } else delete fields.top_logprobs;
  return fields;
}

// Whether each value is one that can be sent; shows the first that is not.
export function checkSettings() {
  if (form.checkValidity()) return true;
  openSettings();
  form.reportValidity();
  return false;
}

const showTheme = theme => { document.documentElement.dataset.theme = theme; };

function keep(event) {
  const values = {};
  for (const input of form.elements)
    if (input.name && !["key", "theme"].includes(input.name))
      values[input.name] = input.type === "checkbox" ? input.checked : input.value;
  write("settings", values);
  if (event.target.name !== "theme") return;
  showTheme(event.target.value);
  write("theme", event.target.value);
}

// keyChanged: called when another API key was entered.
export function startSettings(keyChanged) {
  const values = read("settings") ?? {};
  for (const input of form.elements) {
    if (!(input.name in values)) continue;
    if (input.type === "checkbox") input.checked = values[input.name] === true;
    else input.value = values[input.name];
  }
  form.elements.theme.value = document.documentElement.dataset.theme;
  form.elements.key.value = read("key", "tab") ?? "";
  form.oninput = keep;
  form.elements.key.onchange = () => {
    write("key", form.elements.key.value, "tab");
    keyChanged();
  };
  at("open-settings").onclick = () => openSettings();
}
