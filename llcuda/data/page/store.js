// Conversations in the browser's IndexedDB, or in memory where the browser keeps nothing.
//
// conversations {id, title, named, system, choices, created, updated, deleted}
// messages      {id, conversation, parent, role, content, ...}
// tokens        {message, chunk, conversation, tokens}: log-probabilities, in the order of the text
// drafts        {conversation, text, files}: what is written and not sent

const STORES = {
  conversations: { key: "id", indexes: [] },
  messages: { key: "id", indexes: ["conversation"] },
  tokens: { key: ["message", "chunk"], indexes: ["conversation", "message"] },
  drafts: { key: "conversation", indexes: [] },
};

const result = request => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

const finished = transaction => new Promise((resolve, reject) => {
  transaction.oncomplete = resolve;
  transaction.onabort = () => reject(transaction.error ?? new Error("the transaction was aborted"));
});

class Database {
  #database;

  constructor(database) {
    this.#database = database;
    database.onversionchange = () => database.close(); // another tab has a newer page
  }

  get(name, key) {
    return result(this.#database.transaction(name).objectStore(name).get(key));
  }

  // Returns all rows, or those whose column `index` has this value.
  all(name, index, value) {
    const store = this.#database.transaction(name).objectStore(name);
    return result(index ? store.index(index).getAll(value) : store.getAll());
  }

  // Writes all rows, {store: [row]}, or none.
  async put(rows) {
    const transaction = this.#database.transaction(Object.keys(rows), "readwrite");
    const end = finished(transaction);
    for (const [name, list] of Object.entries(rows))
      for (const row of list) transaction.objectStore(name).put(row);
    await end;
  }

  async remove(conversation) {
    const transaction = this.#database.transaction(Object.keys(STORES), "readwrite");
    const end = finished(transaction);
    for (const name of ["messages", "tokens"]) {
      const store = transaction.objectStore(name);
      store.index("conversation").getAllKeys(conversation).onsuccess = event => {
        for (const key of event.target.result) store.delete(key);
      };
    }
    for (const name of ["conversations", "drafts"])
      transaction.objectStore(name).delete(conversation);
    await end;
  }
}

class Memory {
  #stores = Object.fromEntries(Object.keys(STORES).map(name => [name, new Map()]));

  async get(name, key) {
    return structuredClone(this.#stores[name].get(JSON.stringify([key].flat())));
  }

  async all(name, index, value) {
    const rows = [...this.#stores[name].values()].filter(row => !index || row[index] === value);
    return structuredClone(rows);
  }

  async put(rows) {
    for (const [name, list] of Object.entries(rows)) {
      for (const row of list) {
        const key = [STORES[name].key].flat().map(part => row[part]);
        this.#stores[name].set(JSON.stringify(key), structuredClone(row));
      }
    }
  }

  async remove(conversation) {
    for (const rows of Object.values(this.#stores)) {
      for (const [key, row] of rows)
        if ((row.conversation ?? row.id) === conversation) rows.delete(key);
    }
  }
}

// Returns {store, problem}: why the browser keeps nothing, or "".
export async function openStore() {
  try {
    const request = indexedDB.open("llcuda", 1);
    request.onupgradeneeded = () => {
      for (const [name, { key, indexes }] of Object.entries(STORES)) {
        const store = request.result.createObjectStore(name, { keyPath: key });
        for (const index of indexes) store.createIndex(index, index);
      }
    };
    return { store: new Database(await result(request)), problem: "" };
  } catch (error) {
    const problem = `This browser keeps no conversations (${error.message}). ` +
      "They last until this tab is closed: export what you need.";
    return { store: new Memory(), problem };
  }
}
