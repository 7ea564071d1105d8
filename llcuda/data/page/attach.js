// Text files that are sent with a message.

const MOST_BYTES = 2 ** 20;
const MOST_FILES = 20;

// Returns {name, text}. Throws an Error that says why a file cannot be attached.
async function readText(file) {
  if (file.size > MOST_BYTES)
    throw new Error(`${file.name}: larger than 1 MiB; attach a part of it`);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (!text.includes("\0")) return { name: file.name, text };
  } catch { /* not UTF-8, or not readable */ }
  throw new Error(`${file.name}: not a text file in UTF-8; convert it to text first`);
}

// Returns {files, problems}: the texts of those that can be attached beside `before` others.
export async function readFiles(list, before) {
  const files = [], problems = [];
  for (const file of list) {
    if (before + files.length >= MOST_FILES) {
      problems.push(`${file.name}: a message has at most ${MOST_FILES} files`);
      continue;
    }
    try {
      files.push(await readText(file));
    } catch (error) {
      problems.push(error.message);
    }
  }
  return { files, problems };
}

// Returns the text that the model reads: each file between fences that are longer than any in it.
export function withFiles(content, files) {
  const parts = files.map(({ name, text }) => {
    const ticks = Math.max(2, ...[...text.matchAll(/`+/g)].map(([run]) => run.length));
    const fence = "`".repeat(ticks + 1);
    return `File ${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
  });
  return [...parts, content].filter(Boolean).join("\n\n");
}
