// One answer that is being written: its request, what has arrived, its time and its tokens.

import { streamChat } from "./api.js";

// Counts tokens and time. Without log-probabilities an event is at least one token.
class Meter {
  #begin = performance.now();
  #count = 0;

  constructor(exact) {
    this.exact = exact;
  }

  add(count) {
    this.last = performance.now();
    this.first ??= this.last;
    this.firstCount ??= count;
    this.#count += count;
  }

  total(count) {
    this.#count = count;
    this.exact = true;
  }

  note(reason) {
    if (this.first === undefined)
      return reason ?? `waiting ${((performance.now() - this.#begin) / 1000).toFixed(1)} s`;
    const seconds = (this.last - this.first) / 1000;
    const least = this.exact ? "" : "≥ ";
    const parts = [`first token after ${((this.first - this.#begin) / 1000).toFixed(2)} s`,
      `${least}${this.#count} token${this.#count === 1 ? "" : "s"}`];
    const more = this.#count - this.firstCount;
    if (seconds > 0 && more > 0) {
      const rate = more / seconds;
      parts.push(`${least}${rate.toFixed(rate < 100 ? 1 : 0)} tokens/s`);
    }
    if (reason) parts.push(reason);
    return parts.join(" · ");
  }
}

// Groups tokens that are a letter only together: [{text, entries: [[text, logprob, others]]}].
class TokenReader {
  #decoder = new TextDecoder();
  #entries = [];

  read(scores) {
    const groups = [];
    for (const { token, logprob, bytes, top_logprobs: top } of scores) {
      this.#entries.push([token, logprob, (top ?? []).map(one => [one.token, one.logprob])]);
      const data = bytes ? new Uint8Array(bytes) : new TextEncoder().encode(token);
      const text = this.#decoder.decode(data, { stream: true });
      if (!text) continue;
      groups.push({ text, entries: this.#entries });
      this.#entries = [];
    }
    return groups;
  }
}

const ENDS = { length: "ended at its limit", tool_calls: "calls tools" };

export class Run {
  #abort = new AbortController();
  #reader = new TokenReader();
  #meter;
  #reason;
  tokens = []; // those that are not stored yet
  chunk = 0; // how many parts of the tokens are stored
  rows = {}; // the conversation, the question and the answer, as rows of the store
  saves = 0; // how many parts are being stored
  saved = Promise.resolve(); // until the last of them is stored

  // changed: called after each event.
  constructor(message, body, changed) {
    this.message = message;
    this.body = body;
    this.changed = changed;
    this.#meter = new Meter(Boolean(body.logprobs));
  }

  get note() {
    return this.#meter.note(this.#reason);
  }

  stop() {
    this.#abort.abort();
  }

  async go() {
    const { message } = this;
    try {
      for await (const event of streamChat(this.body, this.#abort.signal)) {
        this.#take(event);
        this.changed();
      }
      message.state = this.#reason === ENDS.length ? "limit" : "done";
    } catch (error) {
      if (error.name === "AbortError") {
        this.#reason = message.state = "stopped";
      } else {
        this.#reason = message.state = "failed";
        message.error = { kind: error.kind ?? "refused", text: error.message };
      }
    }
    message.note = this.note;
  }

  #take({ usage, choices: [choice] }) {
    if (usage) this.#meter.total(usage.completion_tokens);
    if (!choice) return;
    const { message } = this;
    const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
    const scores = choice.logprobs?.content ?? [];
    if (content || reasoning || calls || scores.length) this.#meter.add(scores.length || 1);
    message.content += content ?? "";
    message.reasoning += reasoning ?? "";
    for (const { index, function: part } of calls ?? []) {
      const call = message.calls[index] ??= { name: "", arguments: "" };
      call.name += part?.name ?? "";
      call.arguments += part?.arguments ?? "";
    }
    this.tokens.push(...this.#reader.read(scores));
    if (choice.finish_reason) this.#reason = ENDS[choice.finish_reason];
  }
}
