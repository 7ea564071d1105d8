// Vercel's AI SDK with its provider for OpenAI's API.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import * as checks from "./checks.mjs";

const provider = createOpenAICompatible({
  name: "llcuda",
  baseURL: `${checks.URL}/v1`,
  apiKey: "none",
  supportsStructuredOutputs: true,
});
const common = {
  model: provider(checks.MODEL), temperature: 0, maxOutputTokens: 40, maxRetries: 0,
};
const tools = {
  get_weather: tool({
    description: "Tell the weather in a city.",
    inputSchema: z.object({ city: z.enum(checks.CITIES) }),
  }),
  get_time: tool({
    description: "Tell the time in a zone.",
    inputSchema: z.object({ zone: z.string().max(20) }),
  }),
};
// The schema of a record has propertyNames, which cannot be enforced.
const record = tool({
  description: "Save numbers by their names.",
  inputSchema: z.object({ numbers: z.record(z.string().min(1), z.number()) }),
});

async function calls(options, wanted) {
  const answer = await generateText({ prompt: checks.QUESTION, tools, ...common, ...options });
  return answer.toolCalls.map((call) => {
    checks.assert.ok(!call.invalid, call.error);
    return checks.isCall(call.toolName, call.input, wanted);
  });
}

async function forced(options, wanted) {
  const found = await calls(options, wanted);
  checks.assert.ok(found.length);
  return found;
}

function turn(count) {
  const uses = [
    { toolCallId: "call_1", toolName: "get_weather", input: { city: "Paris" } },
    { toolCallId: "call_2", toolName: "get_time", input: { zone: "CET" } },
  ].slice(0, count);
  return [
    { role: "user", content: checks.QUESTION },
    { role: "assistant", content: uses.map((use) => ({ type: "tool-call", ...use })) },
    {
      role: "tool",
      content: uses.map(({ toolCallId, toolName }) => ({
        type: "tool-result", toolCallId, toolName,
        output: { type: "text", value: "18 degrees and sunny" },
      })),
    },
  ];
}

await checks.check("chat", async () =>
  checks.isText((await generateText({ prompt: "Say hello.", ...common })).text));

await checks.check("stream", async () => {
  let text = "";
  for await (const part of streamText({ prompt: "Say hello.", ...common }).textStream) text += part;
  return checks.isText(text);
});

await checks.check("auto", async () => {
  const answer = await generateText({ prompt: "Say hello.", tools: { record }, ...common });
  checks.assert.ok(answer.text || answer.toolCalls.length);
  return calls({ toolChoice: "auto" });
});

await checks.check("required", () => forced({ toolChoice: "required" }));
await checks.check("named", () =>
  forced({ toolChoice: { type: "tool", toolName: "get_time" } }, "get_time"));

await checks.check("parallel", async () =>
  checks.isText((await generateText({
    messages: turn(2), tools, toolChoice: "none", ...common,
  })).text));

await checks.check("round_trip", async () => {
  const own = { get_weather: { ...tools.get_weather, execute: () => "18 degrees and sunny" } };
  const answer = await generateText({
    prompt: checks.QUESTION,
    tools: own,
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
    ...common,
  });
  checks.assert.equal(answer.steps.length, 2);
  return checks.isText(answer.text);
});

await checks.check("structured", async () => {
  const schema = z.object({ name: z.string().max(20), age: z.number().int().min(0).max(120) });
  const answer = await generateText({
    prompt: checks.PERSON, output: Output.object({ schema }), ...common,
  });
  return checks.isPerson(answer.output);
});
