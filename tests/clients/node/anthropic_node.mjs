// Anthropic's package for JavaScript, on Anthropic's API.
import Anthropic from "@anthropic-ai/sdk";

import * as checks from "./checks.mjs";

const client = new Anthropic({ baseURL: checks.URL, apiKey: "none", maxRetries: 0 });
const common = { model: checks.MODEL, max_tokens: 40, temperature: 0 };
const hello = [{ role: "user", content: "Say hello." }];
const ask = [{ role: "user", content: checks.QUESTION }];
const tools = checks.TOOLS.map(({ function: { name, description, parameters } }) => ({
  name, description, input_schema: parameters,
}));

async function calls(choice, wanted) {
  const answer = await client.messages.create({
    messages: ask, tools, tool_choice: choice, ...common,
  });
  const found = answer.content.filter((block) => block.type === "tool_use");
  checks.assert.equal(answer.stop_reason === "tool_use", found.length > 0, answer.stop_reason);
  return found.map((block) => checks.isCall(block.name, block.input, wanted));
}

async function forced(choice, wanted) {
  const found = await calls(choice, wanted);
  checks.assert.ok(found.length);
  return found;
}

function results(ids) {
  const content = "18 degrees and sunny";
  return {
    role: "user",
    content: ids.map((id) => ({ type: "tool_result", tool_use_id: id, content })),
  };
}

async function told(messages) {
  const answer = await client.messages.create({
    messages, tools, tool_choice: { type: "none" }, ...common,
  });
  return checks.isText(answer.content[0].text);
}

await checks.check("chat", async () => {
  const count = await client.messages.countTokens({ model: checks.MODEL, messages: hello });
  checks.assert.ok(count.input_tokens);
  const answer = await client.messages.create({ messages: hello, ...common });
  return checks.isText(answer.content[0].text);
});

await checks.check("stream", async () => {
  let text = "";
  const events = client.messages.stream({ messages: hello, ...common });
  events.on("text", (part) => { text += part; });
  checks.assert.equal(await events.finalText(), text);
  return checks.isText(text);
});

await checks.check("auto", () => calls({ type: "auto" }));
await checks.check("required", () => forced({ type: "any" }));
await checks.check("named", () => forced({ type: "tool", name: "get_time" }, "get_time"));

await checks.check("parallel", async () => {
  const single = await forced({ type: "any", disable_parallel_tool_use: true });
  checks.assert.equal(single.length, 1);
  const uses = [
    { type: "tool_use", id: "a", name: "get_weather", input: { city: "Paris" } },
    { type: "tool_use", id: "b", name: "get_time", input: { zone: "CET" } },
  ];
  return told([
    checks.TWO_CALLS[0], { role: "assistant", content: uses }, results(["a", "b"]),
  ]);
});

await checks.check("round_trip", async () => {
  const first = await client.messages
    .stream({ messages: ask, tools, tool_choice: { type: "any" }, ...common })
    .finalMessage();
  const ids = first.content.filter((block) => block.type === "tool_use").map((block) => block.id);
  checks.assert.ok(ids.length);
  return told([...ask, { role: "assistant", content: first.content }, results(ids)]);
});

await checks.check("structured", async () => {
  const format = { type: "json_schema", schema: checks.PERSON_SCHEMA };
  const answer = await client.messages.create({
    messages: [{ role: "user", content: checks.PERSON }], output_config: { format }, ...common,
  });
  return checks.isPerson(answer.content[0].text);
});
