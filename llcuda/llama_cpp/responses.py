"""Answers of a `Llama` as dicts in OpenAI's shapes, whole or chunk by chunk."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llcuda.chat.session import Chat, ChatCompletion
from llcuda.engine.logprobs import LogprobFormatter
from llcuda.engine.outputs import Completion, TokenLogprob
from llcuda.engine.request import Request
from llcuda.llama_cpp.context_request import ContextRequest
from llcuda.native.model import Model

OnEnd = Callable[[Completion], None]


@dataclass(frozen=True, slots=True)
class CompletionAnswer:
    """The answer of `Llama.create_completion`.

    Attributes:
        model: The model.
        name: The name of the model in the answer.
        request: Generates the text.
        prompt: The tokens of the prompt.
        echo: The text before the generated one.
        suffix: The text behind it.
        echoes_scores: Whether the prompt's log-probabilities are part of the answer.
        on_end: Called when the text has ended.
    """

    model: Model
    name: str
    request: Request | ContextRequest
    prompt: Sequence[int]
    echo: str
    suffix: str
    echoes_scores: bool
    on_end: OnEnd

    def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        completion = self.request.result()
        self.on_end(completion)
        scores = self._scores()
        logprobs = None
        if completion.logprobs is not None:
            taken = scores.take(completion.text, completion.logprobs)
            logprobs = scores.as_text([*self._echoed(), *taken])
        text = self.echo + completion.text + self.suffix
        choice = _choice(text, logprobs, finish_reason(completion.finish_reason))
        return {**self._head(), "choices": [choice], "usage": usage(completion)}

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Yield the answer piece by piece; the last chunk has the finish reason and no text."""
        head, scores, before = self._head(), self._scores(), self.echo
        echoed = True
        for text in self.request:
            logprobs = None
            if self.request.params.logprobs is not None:
                taken = scores.take(text, self.request.logprobs)
                logprobs = scores.as_text([*(self._echoed() if echoed else ()), *taken])
            yield {**head, "choices": [_choice(before + text, logprobs, None)]}
            before, echoed = "", False
        completion = self.request.result()
        self.on_end(completion)
        reason = finish_reason(completion.finish_reason)
        yield {**head, "choices": [_choice(before + self.suffix, None, reason)]}

    def _head(self) -> dict[str, Any]:
        return _head("cmpl-", "text_completion", self.name)

    def _scores(self) -> LogprobFormatter:
        return LogprobFormatter(self.model, echo=self.echo)

    def _echoed(self) -> list[int | TokenLogprob]:
        if not self.echoes_scores:
            return []
        return [*self.prompt[:1], *self.request.prompt_logprobs]


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """The answer of `Llama.create_chat_completion`.

    Attributes:
        model: The model.
        name: The name of the model in the answer.
        chat: Generates the answer.
        names_function: Whether the first call is also given as "function_call", OpenAI's older
            field.
        on_end: Called when the text has ended.
    """

    model: Model
    name: str
    chat: Chat[Completion]
    names_function: bool
    on_end: OnEnd

    def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        answer = self.chat.result()
        completion = answer.completion
        self.on_end(completion)
        message, logprobs = dict(answer.message), None
        if self.names_function and message.get("tool_calls"):
            message["function_call"] = dict(message["tool_calls"][0]["function"])
        if completion.logprobs is not None:
            scores = self._scores()
            logprobs = scores.as_chat(scores.take(completion.text, completion.logprobs))
        choice = {
            "index": 0,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish_reason(answer.finish_reason),
        }
        return {
            **_head("chatcmpl-", "chat.completion", self.name),
            "choices": [choice],
            "usage": usage(completion),
        }

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Yield the answer delta by delta: the role, the content, the finish reason."""
        head = _head("chatcmpl-", "chat.completion.chunk", self.name)
        scores, request = self._scores(), self.chat.request

        def chunk(delta: dict[str, Any], logprobs: Any = None, reason: Any = None) -> Any:
            choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            return {**head, "choices": [choice]}

        yield chunk({"role": "assistant"})
        for part in self.chat:
            delta: dict[str, Any] = {}
            if part.content:
                delta["content"] = part.content
            if part.reasoning:
                delta["reasoning_content"] = part.reasoning
            if part.tool_calls:
                delta["tool_calls"] = part.tool_calls
                if self.names_function and not part.tool_calls[0]["index"]:
                    delta["function_call"] = dict(part.tool_calls[0]["function"])
            logprobs = None
            if request.params.logprobs is not None:
                logprobs = scores.as_chat(scores.take(part.text, request.logprobs))
            yield chunk(delta, logprobs)
        answer: ChatCompletion[Completion] = self.chat.result()
        self.on_end(answer.completion)
        yield chunk({}, None, finish_reason(answer.finish_reason))

    def _scores(self) -> LogprobFormatter:
        return LogprobFormatter(self.model, self.chat.request.params.shown_tokens)


def as_chat(completion: dict[str, Any]) -> dict[str, Any]:
    """Return a completion as a chat completion whose content is the text."""
    [choice] = completion["choices"]
    message = {"role": "assistant", "content": choice["text"]}
    head = {"id": f"chat{completion['id']}", "object": "chat.completion"}
    logprobs = _chat_logprobs(choice["logprobs"])
    return {
        **completion,
        **head,
        "choices": [{**_without_text(choice), "message": message, "logprobs": logprobs}],
    }


def as_chat_chunks(chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a completion as those of a chat completion."""
    begins = True
    for chunk in chunks:
        [choice] = chunk["choices"]
        head = {**chunk, "id": f"chat{chunk['id']}", "object": "chat.completion.chunk"}
        plain = _without_text(choice)
        if begins:
            first = {**plain, "delta": {"role": "assistant"}, "finish_reason": None}
            yield {**head, "choices": [{**first, "logprobs": None}]}
            begins = False
        delta = {"content": choice["text"]} if choice["text"] else {}
        logprobs = _chat_logprobs(choice["logprobs"])
        yield {**head, "choices": [{**plain, "delta": delta, "logprobs": logprobs}]}


def _without_text(choice: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choice.items() if name != "text"}


def _chat_logprobs(logprobs: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return log-probabilities of a completion as those of a chat completion."""
    if logprobs is None:
        return None

    def entry(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    content = [
        {**entry(text, logprob), "top_logprobs": [entry(*pair) for pair in top.items()]}
        for text, logprob, top in zip(*columns, strict=True)
    ]
    return {"content": content, "refusal": None}


def _head(prefix: str, kind: str, name: str) -> dict[str, Any]:
    identity = f"{prefix}{uuid.uuid4()}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": name}


def _choice(text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": reason}


def finish_reason(reason: str) -> str:
    """Return OpenAI's finish reason: "length" also for a full context."""
    return reason if reason in ("stop", "tool_calls") else "length"


def usage(completion: Completion) -> dict[str, int]:
    """Return the usage of a completion."""
    prompt, generated = completion.prompt_tokens, len(completion.tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
