// LangChain's ChatOpenAI for JavaScript.
import { AIMessage, HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";

import * as checks from "./checks.mjs";

const llm = new ChatOpenAI({
  model: checks.MODEL,
  apiKey: "none",
  configuration: { baseURL: `${checks.URL}/v1` },
  temperature: 0,
  maxTokens: 80,
  maxRetries: 0,
});
const weather = tool(({ city }) => `18 degrees and sunny in ${city}`, {
  name: "get_weather",
  description: "Tell the weather in a city.",
  schema: z.object({ city: z.enum(checks.CITIES) }),
});
const time = tool(({ zone }) => `14:05 ${zone}`, {
  name: "get_time",
  description: "Tell the time in a zone.",
  schema: z.object({ zone: z.string().max(20) }),
});
const tools = [weather, time];

async function calls(options, wanted) {
  const answer = await llm.bindTools(tools, options).invoke(checks.QUESTION);
  checks.assert.deepEqual(answer.invalid_tool_calls ?? [], []);
  return answer.tool_calls.map((call) => checks.isCall(call.name, call.args, wanted));
}

async function forced(options, wanted) {
  const found = await calls(options, wanted);
  checks.assert.ok(found.length);
  return found;
}

await checks.check("chat", async () => checks.isText((await llm.invoke("Say hello.")).content));

await checks.check("stream", async () => {
  let text = "";
  for await (const part of await llm.stream("Say hello.")) text += part.content;
  return checks.isText(text);
});

await checks.check("auto", () => calls({ tool_choice: "auto" }));
await checks.check("required", () => forced({ tool_choice: "required" }));
await checks.check("named", () => forced({ tool_choice: "get_time" }, "get_time"));

await checks.check("parallel", async () => {
  const single = await forced({ tool_choice: "required", parallel_tool_calls: false });
  checks.assert.equal(single.length, 1);
  const history = [
    new HumanMessage("What are the weather in Paris and the time in CET?"),
    new AIMessage({
      content: "",
      tool_calls: [
        { name: "get_weather", args: { city: "Paris" }, id: "call_1" },
        { name: "get_time", args: { zone: "CET" }, id: "call_2" },
      ],
    }),
    new ToolMessage({ content: "18 degrees and sunny", tool_call_id: "call_1" }),
    new ToolMessage({ content: "14:05", tool_call_id: "call_2" }),
  ];
  const answer = await llm.bindTools(tools, { tool_choice: "none" }).invoke(history);
  return checks.isText(answer.content);
});

await checks.check("round_trip", async () => {
  const question = new HumanMessage(checks.QUESTION);
  const first = await llm.bindTools([weather], { tool_choice: "required" }).invoke([question]);
  const results = await Promise.all(first.tool_calls.map((call) => weather.invoke(call)));
  const bound = llm.bindTools([weather], { tool_choice: "none" });
  return checks.isText((await bound.invoke([question, first, ...results])).content);
});

await checks.check("structured", async () => {
  const person = z.object({ name: z.string().max(20), age: z.number().int().min(0).max(120) });
  let answer;
  for (const method of ["functionCalling", "jsonSchema"]) {
    answer = await llm.withStructuredOutput(person, { name: "person", method })
      .invoke(checks.PERSON);
    checks.isPerson(answer);
  }
  return answer;
});
