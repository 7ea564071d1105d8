// OpenAI's package for Node.js: chats, and responses beside them.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import * as checks from "./checks.mjs";

const client = new OpenAI({ baseURL: `${checks.URL}/v1`, apiKey: "none", maxRetries: 0 });
const common = { model: checks.MODEL, temperature: 0, max_tokens: 40 };
const hello = [{ role: "user", content: "Say hello." }];
const ask = [{ role: "user", content: checks.QUESTION }];

async function calls(options, wanted) {
  const answer = await client.chat.completions.create({
    messages: ask, tools: checks.TOOLS, ...common, ...options,
  });
  const [choice] = answer.choices;
  const found = choice.message.tool_calls ?? [];
  checks.assert.equal(choice.finish_reason === "tool_calls", found.length > 0);
  return found.map((call) => checks.isCall(call.function.name, call.function.arguments, wanted));
}

async function forced(options, wanted) {
  const found = await calls(options, wanted);
  checks.assert.ok(found.length);
  return found;
}

await checks.check("chat", async () => {
  const response = await client.responses.create({
    model: checks.MODEL, input: "Say hello.", max_output_tokens: 30, temperature: 0,
  });
  checks.isText(response.output_text);
  const answer = await client.chat.completions.create({ messages: hello, ...common });
  return checks.isText(answer.choices[0].message.content);
});

await checks.check("stream", async () => {
  const stream = client.chat.completions.stream({ messages: hello, ...common });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
  checks.assert.equal(text, await stream.finalContent());
  return checks.isText(text);
});

await checks.check("auto", () => calls({ tool_choice: "auto" }));
await checks.check("required", () => forced({ tool_choice: "required" }));
await checks.check("named", () => forced({ tool_choice: checks.NAMED }, "get_time"));

await checks.check("parallel", async () => {
  const single = await forced({ tool_choice: "required", parallel_tool_calls: false });
  checks.assert.equal(single.length, 1);
  const answer = await client.chat.completions.create({
    messages: checks.TWO_CALLS, tools: checks.TOOLS, tool_choice: "none", ...common,
  });
  return checks.isText(answer.choices[0].message.content);
});

await checks.check("round_trip", async () => {
  const first = await client.chat.completions
    .stream({ messages: ask, tools: checks.TOOLS, tool_choice: "required", ...common })
    .finalMessage();
  const results = first.tool_calls.map((call) => ({
    role: "tool", tool_call_id: call.id, content: "18 degrees and sunny",
  }));
  const answer = await client.chat.completions.create({
    messages: [...ask, first, ...results], tools: checks.TOOLS, tool_choice: "none", ...common,
  });
  return checks.isText(answer.choices[0].message.content);
});

await checks.check("structured", async () => {
  const person = z.object({ name: z.string().max(20), age: z.number().int().min(0).max(120) });
  const answer = await client.chat.completions.parse({
    messages: [{ role: "user", content: checks.PERSON }],
    response_format: zodResponseFormat(person, "person"),
    ...common,
  });
  return checks.isPerson(answer.choices[0].message.parsed);
});
