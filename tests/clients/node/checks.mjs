// What the scripts of the clients in JavaScript share; it needs Node.js only.
import assert from "node:assert/strict";

export { assert };
export const URL = process.env.LLCUDA_CLIENTS_URL;
export const MODEL = process.env.LLCUDA_CLIENTS_MODEL;
export const CITIES = ["Paris", "Rome", "Oslo"];
export const QUESTION = "What is the weather in Paris?";
export const PERSON = "Describe Anna, a nurse who is 31 years old.";
export const WEATHER = {
  type: "object",
  properties: { city: { type: "string", enum: CITIES } },
  required: ["city"],
};
export const TIME = {
  type: "object",
  properties: { zone: { type: "string", maxLength: 20 } },
  required: ["zone"],
};
export const PERSON_SCHEMA = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 20 },
    age: { type: "integer", minimum: 0, maximum: 120 },
  },
  required: ["name", "age"],
  additionalProperties: false,
};
// The tools in the shape of OpenAI's chats.
export const TOOLS = [
  ["get_weather", "Tell the weather in a city.", WEATHER],
  ["get_time", "Tell the time in a zone.", TIME],
].map(([name, description, parameters]) => ({
  type: "function",
  function: { name, description, parameters },
}));
export const NAMED = { type: "function", function: { name: "get_time" } };
export const TWO_CALLS = [
  { role: "user", content: "What are the weather in Paris and the time in CET?" },
  {
    role: "assistant",
    content: null,
    tool_calls: [
      ["call_1", "get_weather", '{"city": "Paris"}'],
      ["call_2", "get_time", '{"zone": "CET"}'],
    ].map(([id, name, text]) => ({ id, type: "function", function: { name, arguments: text } })),
  },
  { role: "tool", tool_call_id: "call_1", content: "18 degrees and sunny" },
  { role: "tool", tool_call_id: "call_2", content: "14:05" },
];

// Runs a check and prints its line of JSON.
export async function check(name, run) {
  let line;
  try {
    line = { check: name, ok: true, detail: JSON.stringify(await run()).slice(0, 200) };
  } catch (error) {
    console.error(error);
    line = { check: name, ok: false, detail: `${error.name}: ${error.message}`.slice(0, 500) };
  }
  console.log(JSON.stringify(line));
}

// Returns a text that has words and no delimiters of calls or turns.
export function isText(text) {
  assert.equal(typeof text, "string");
  assert.ok(text.trim(), "the answer is empty");
  assert.ok(!text.includes("<tool_call>") && !text.includes("<|im_"), text);
  return text;
}

// Returns a call whose arguments, an object or its JSON, follow the schema of its tool.
export function isCall(name, given, wanted) {
  const values = typeof given === "string" ? JSON.parse(given) : given;
  assert.ok((wanted ? [wanted] : ["get_weather", "get_time"]).includes(name), name);
  if (name === "get_weather") {
    assert.deepEqual(Object.keys(values), ["city"]);
    assert.ok(CITIES.includes(values.city), values.city);
  } else {
    assert.deepEqual(Object.keys(values), ["zone"]);
    assert.equal(typeof values.zone, "string");
  }
  return `${name}(${JSON.stringify(values)})`;
}

// Returns an object, or its JSON, that follows the schema of a person.
export function isPerson(given) {
  const values = typeof given === "string" ? JSON.parse(given) : given;
  assert.deepEqual(Object.keys(values).sort(), ["age", "name"]);
  assert.ok(values.name && Number.isInteger(values.age) && values.age >= 0 && values.age <= 120);
  return values;
}
