// Small values that the browser keeps for this address, or for this tab; nothing where it refuses.

const areas = { browser: () => localStorage, tab: () => sessionStorage };

export function read(name, area = "browser") {
  try {
    return JSON.parse(areas[area]().getItem(name));
  } catch {
    return null; // the browser refuses, or another page wrote something else
  }
}

// value: null removes it.
export function write(name, value, area = "browser") {
  try {
    if (value === null) areas[area]().removeItem(name);
    else areas[area]().setItem(name, JSON.stringify(value));
  } catch { /* full or refused: the page goes on without */ }
}

export function names(prefix) {
  try {
    return Object.keys(localStorage).filter(name => name.startsWith(prefix));
  } catch {
    return [];
  }
}
