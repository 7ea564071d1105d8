// Ollama's package for JavaScript, on ollama's API, which has no tool_choice.
import { Ollama } from "ollama";

import * as checks from "./checks.mjs";

const client = new Ollama({ host: checks.URL });
const common = { model: checks.MODEL, options: { temperature: 0, num_predict: 40 } };
const hello = [{ role: "user", content: "Say hello." }];
const uses = [
  { function: { name: "get_weather", arguments: { city: "Paris" } } },
  { function: { name: "get_time", arguments: { zone: "CET" } } },
];
const results = [
  { role: "tool", tool_name: "get_weather", content: "18 degrees and sunny" },
  { role: "tool", tool_name: "get_time", content: "14:05" },
];

function turn(count) {
  return [
    { role: "user", content: checks.QUESTION },
    { role: "assistant", content: "", tool_calls: uses.slice(0, count) },
    ...results.slice(0, count),
  ];
}

await checks.check("chat", async () => {
  const text = await client.generate({ prompt: "Say hello.", ...common });
  checks.isText(text.response);
  return checks.isText((await client.chat({ messages: hello, ...common })).message.content);
});

await checks.check("stream", async () => {
  let text = "";
  for await (const part of await client.chat({ messages: hello, stream: true, ...common })) {
    text += part.message.content ?? "";
  }
  return checks.isText(text);
});

await checks.check("auto", async () => {
  const messages = [{ role: "user", content: checks.QUESTION }];
  const { message } = await client.chat({ messages, tools: checks.TOOLS, ...common });
  return (message.tool_calls ?? []).map((call) =>
    checks.isCall(call.function.name, call.function.arguments));
});

await checks.check("parallel", async () =>
  checks.isText((await client.chat({ messages: turn(2), ...common })).message.content));

await checks.check("round_trip", async () => {
  const { message } = await client.chat({ messages: turn(1), tools: checks.TOOLS, ...common });
  for (const call of message.tool_calls ?? []) {
    checks.isCall(call.function.name, call.function.arguments);
  }
  return message.tool_calls ?? checks.isText(message.content);
});

await checks.check("structured", async () => {
  const messages = [{ role: "user", content: checks.PERSON }];
  const answer = await client.chat({ messages, format: checks.PERSON_SCHEMA, ...common });
  return checks.isPerson(answer.message.content);
});
