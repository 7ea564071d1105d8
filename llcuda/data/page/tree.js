// A conversation as a tree: each message knows its parent, and a question or an answer that was
// written anew is a sibling of the earlier one.

const ROOT = "root"; // stands for the parent of first messages in `choices`

// Returns what is shown: [{message, siblings, index}], each message with those at its place.
export function pathOf(messages, choices) {
  const byParent = Map.groupBy(messages.values(), message => message.parent);
  const path = [];
  for (let parent = null; byParent.has(parent);) {
    const siblings = byParent.get(parent);
    siblings.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
    const chosen = siblings.findIndex(one => one.id === choices[parent ?? ROOT]);
    const index = chosen < 0 ? siblings.length - 1 : chosen;
    path.push({ message: siblings[index], siblings, index });
    parent = siblings[index].id;
  }
  return path;
}

export function choose(choices, message) {
  choices[message.parent ?? ROOT] = message.id;
}
