"""/v1/responses as data: a request becomes a conversation, its answer items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llcuda.params import wrong_argument, wrong_value
from llcuda.server.chunks import event, new_id, unix_time
from llcuda.server.custom_tools import (
    CUSTOM,
    arguments_of,
    custom_function,
    has_grammar,
    input_of,
)
from llcuda.server.errors import ApiError
from llcuda.server.fields import field_of, text_of
from llcuda.server.leniency import ignore
from llcuda.server.protocol import ChatBody, ResponsesBody, ToolChoice
from llcuda.server.response_store import ResponseStore
from llcuda.structured import Relaxation
from llcuda.structured.grammar import INPUT_GRAMMAR

TEXT_PARTS = ("input_text", "output_text", "text", "refusal")


def input_items(body: ResponsesBody) -> list[dict[str, Any]]:
    """Return the items of a request's input.

    Args:
        body: The request.
    """
    if isinstance(body.input, str):
        part = {"type": "input_text", "text": body.input}
        return [{"type": "message", "role": "user", "content": [part]}]
    return body.input


def as_chat(
    body: ResponsesBody, earlier: Sequence[dict[str, Any]], store: ResponseStore
) -> ChatBody:
    """Return the conversation of a request.

    Args:
        body: The request.
        earlier: The items of the conversation that it continues.
        store: Has the items that its input refers to.

    Raises:
        ArgumentError: An item or a tool is not supported.
    """
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    reader = _InputReader(messages, store)
    reader.read("earlier", earlier)
    reader.read("input", input_items(body))
    if not messages:
        raise wrong_argument("input", "expected at least one message")
    tools = _tools(body)
    chat_body = ChatBody.model_construct(
        **{
            name: getattr(body, name)
            for name in (
                "model",
                "temperature",
                "top_p",
                "stream",
                "parallel_tool_calls",
                "priority",
            )
        },
        messages=messages,
        tools=tools or None,
        # Nothing checks the grammar of a call without delimiters.
        bare_tool_calls=False if any(INPUT_GRAMMAR in t["function"] for t in tools) else None,
        tool_choice=_tool_choice(body.tool_choice),
        max_completion_tokens=body.max_output_tokens,
        response_format=_response_format(body.text.format if body.text else None),
        logprobs=body.wants_logprobs(),
        top_logprobs=body.top_logprobs if body.wants_logprobs() else None,
        reasoning=body.reasoning,
        overflow="drop" if body.truncation == "auto" else None,
    )
    chat_body.places = body.places
    return chat_body


class _InputReader:
    """Turns the items of an input into messages, which it appends to a list."""

    def __init__(self, messages: list[dict[str, Any]], store: ResponseStore) -> None:
        self._messages = messages
        self._store = store
        self._reasoning = ""

    def read(self, name: str, items: Sequence[dict[str, Any]]) -> None:
        readers = {
            "message": self._message,
            "function_call": self._call,
            "function_call_output": self._output,
            "custom_tool_call": self._custom_call,
            "custom_tool_call_output": self._output,
            "reasoning": self._reason,
        }
        for i, item in enumerate(items):
            where = f"{name}[{i}]"
            kind = text_of(where, {"type": "message", **item}, "type")
            if kind == "item_reference":
                item = self._store.item(where, text_of(where, item, "id"))
                kind = item["type"]
            if kind not in readers:
                expected = ", ".join([*readers, "item_reference"])
                raise wrong_value(f"{where}.type", kind, f"expected one of {expected}")
            readers[kind](where, item)

    def _message(self, where: str, item: dict[str, Any]) -> None:
        message = {
            "role": text_of(where, item, "role"),
            "content": _content(where, item, "content"),
        }
        if item["role"] == "assistant" and self._reasoning:
            message["reasoning_content"], self._reasoning = self._reasoning, ""
        self._messages.append(message)

    def _call(self, where: str, item: dict[str, Any]) -> None:
        self._add_call(where, item, text_of(where, item, "arguments"))

    def _custom_call(self, where: str, item: dict[str, Any]) -> None:
        self._add_call(where, item, arguments_of(text_of(where, item, "input")))

    def _add_call(self, where: str, item: dict[str, Any], arguments: str) -> None:
        function = {"name": text_of(where, item, "name"), "arguments": arguments}
        call = {"id": text_of(where, item, "call_id"), "type": "function", "function": function}
        last = self._messages[-1] if self._messages else {}
        if last.get("role") != "assistant":
            last = {"role": "assistant", "content": None}
            if self._reasoning:
                last["reasoning_content"], self._reasoning = self._reasoning, ""
            self._messages.append(last)
        last.setdefault("tool_calls", []).append(call)

    def _output(self, where: str, item: dict[str, Any]) -> None:
        output = _content(where, item, "output")
        call_id = text_of(where, item, "call_id")
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": output})

    def _reason(self, where: str, item: dict[str, Any]) -> None:
        field = "content" if item.get("content") else "summary"
        parts = item.get(field) or ()
        if not isinstance(parts, Sequence) or isinstance(parts, str):
            raise wrong_value(f"{where}.{field}", parts, "expected a list")
        for i, part in enumerate(parts):
            self._reasoning += text_of(f"{where}.{field}[{i}]", part, "text")


def _content(where: str, item: Any, name: str) -> str | list[dict[str, Any]]:
    """Return a content as /v1/chat/completions has it: a text, or its parts."""
    content = field_of(where, item, name)
    where = f"{where}.{name}"
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_value(where, content, "expected a text or a list")
    parts = []
    for i, part in enumerate(content):
        kind = text_of(f"{where}[{i}]", part, "type")
        if kind not in TEXT_PARTS:
            rule = f"expected one of {', '.join(TEXT_PARTS)}"
            if kind.startswith("input_"):
                rule = "images and other files cannot be read yet, only text"
            raise wrong_value(f"{where}[{i}].type", kind, rule)
        field = "refusal" if kind == "refusal" else "text"
        parts.append({"type": "text", "text": text_of(f"{where}[{i}]", part, field)})
    return parts


def _tools(body: ResponsesBody) -> list[dict[str, Any]]:
    """Return the functions that may be called, without the tools of OpenAI's servers."""
    choice, allowed = body.tool_choice, None
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        tools = field_of("tool_choice", choice, "tools")
        if not isinstance(tools, list):
            raise wrong_value("tool_choice.tools", tools, "expected a list")
        allowed = {text_of(f"tool_choice.tools[{i}]", tool, "name") for i, tool in enumerate(tools)}
    functions: list[dict[str, Any]] = []
    for i, tool in enumerate(body.tools or ()):
        kind = text_of(f"tools[{i}]", tool, "type")
        if kind not in ("function", CUSTOM):
            ignore(f"tools[{i}]", f"no tool of the type {kind[:60]} is here")
        elif allowed is None or tool.get("name") in allowed:
            if kind == CUSTOM:
                function = custom_function(f"tools[{i}]", tool)
            else:
                function = {name: value for name, value in tool.items() if name != "type"}
            place = f"tools[{len(functions)}]"
            body.places |= {place: f"tools[{i}]", f"{place}.function": f"tools[{i}]"}
            functions.append({"type": "function", "function": function})
    return functions


def custom_names(body: ResponsesBody) -> dict[str, int]:
    """Return the names of the custom tools, and their indices in `tools`.

    Args:
        body: The request, whose tools are checked.
    """
    tools = enumerate(body.tools or ())
    return {str(tool["name"]): i for i, tool in tools if tool["type"] == CUSTOM}


def check_formats(body: ResponsesBody, relaxed: Sequence[Relaxation], *, restricted: bool) -> None:
    """Refuse a format of a custom tool that an answer would not keep.

    Args:
        body: The request.
        relaxed: The parts of the tools' schemas that are not enforced.
        restricted: Whether calls follow schemas at all.

    Raises:
        ArgumentError: An answer would not keep a format.
    """
    custom = custom_names(body)
    for i in custom.values():
        if not restricted and has_grammar((body.tools or [])[i]):
            rule = "cannot be kept: this model does not write calls as JSON"
            raise wrong_argument(f"tools[{i}].format", rule)
    for part in relaxed:
        if part.tool in custom:
            where = f"tools[{custom[part.tool]}].format.definition"
            raise wrong_argument(where, f"cannot be kept: {part.reason}")


def _tool_choice(choice: ToolChoice | None) -> ToolChoice | None:
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        mode = choice.get("mode", "auto")
        if mode == "required":
            return "required"
        if mode != "auto":
            raise wrong_value("tool_choice.mode", mode, "expected auto or required")
        return "auto"
    is_tool = isinstance(choice, dict) and choice.get("type") in ("function", CUSTOM)
    if isinstance(choice, dict) and is_tool and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _response_format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a format as /v1/chat/completions has it."""
    if given is not None and given.get("type") == "json_schema":
        inner = {k: v for k, v in given.items() if k != "type"}
        return {"type": "json_schema", "json_schema": inner}
    return given


class _CallNames(NamedTuple):
    """The field of an item with what is given to the tool, and the beginning of its events."""

    field: str
    event: str


_CALLS = {
    "function_call": _CallNames("arguments", "function_call_arguments"),
    "custom_tool_call": _CallNames("input", "custom_tool_call_input"),
}
_PREFIXES = {  # of ids
    "message": "msg_",
    "reasoning": "rs_",
    "function_call": "fc_",
    "custom_tool_call": "ctc_",
}


class ResponseBuilder:
    """Builds a response from deltas, and returns the events of each.

    Args:
        body: The request.
        model: The name of the model.

    Attributes:
        document: The response as it is now.
    """

    def __init__(self, body: ResponsesBody, model: str) -> None:
        self._count = 0
        self._output: list[dict[str, Any]] = []
        self._open: str | None = None  # the type of the unfinished item
        self._custom = custom_names(body)
        self._arguments = ""  # of the unfinished call of a custom tool
        self._scores: list[dict[str, Any]] = []
        self.document: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": unix_time(),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": self._output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "store": body.store is not False,
            "temperature": body.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "user": body.user,
        }

    def begin(self) -> str:
        """Return the first events."""
        created = self._event("response.created", response=self.document)
        return created + self._event("response.in_progress", response=self.document)

    def add(
        self, content: str, reasoning: str, calls: list[dict[str, Any]], scores: list[Any]
    ) -> str:
        """Return the events of a delta.

        Args:
            content: Further content.
            reasoning: Further reasoning.
            calls: Further calls, as in `ChatDelta.tool_calls`.
            scores: The log-probabilities of the content, in OpenAI's form.
        """
        events = ""
        if reasoning:
            events += self._opened("reasoning") + self._text("reasoning_text", reasoning)
        if content:
            self._scores += scores
            events += self._opened("message")
            events += self._text("output_text", content, logprobs=scores)
        for call in calls:
            function = call["function"]
            if "id" in call:
                is_custom = function["name"] in self._custom
                kind = "custom_tool_call" if is_custom else "function_call"
                fields = {"call_id": call["id"], "name": function["name"], _CALLS[kind].field: ""}
                events += self._closed() + self._opened(kind, **fields)
            if arguments := function.get("arguments"):
                events += self._call_delta(arguments)
        return events

    def _call_delta(self, arguments: str) -> str:
        """Return the event of further arguments of a call; a custom tool's has its input alone."""
        item, delta = self._output[-1], arguments
        names = _CALLS[item["type"]]
        if item["type"] == "custom_tool_call":
            self._arguments += arguments
            delta = (input_of(self._arguments) or "")[len(item["input"]) :]
        if not delta:
            return ""
        item[names.field] += delta
        return self._event(f"response.{names.event}.delta", **self._place(), delta=delta)

    def end(self, usage: dict[str, Any], complete: bool) -> str:
        """Return the last events.

        Args:
            usage: The usage, as /v1/chat/completions has it.
            complete: Whether the model ended the answer, and no limit did.
        """
        events = self._closed("completed" if complete else "incomplete")
        self.document["status"] = "completed" if complete else "incomplete"
        if not complete:
            self.document["incomplete_details"] = {"reason": "max_output_tokens"}
        self.document["usage"] = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cache_write_tokens": 0, **usage["prompt_tokens_details"]},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        }
        kind = "response.completed" if complete else "response.incomplete"
        return events + self._event(kind, response=self.document)

    def failed(self, error: ApiError) -> str:
        """Return the last event of an answer that failed."""
        self.document["status"] = "failed"
        self.document["error"] = {"code": error.code or error.kind, "message": error.message}
        return self._event("response.failed", response=self.document)

    def _event(self, kind: str, **fields: Any) -> str:
        text = event({"type": kind, "sequence_number": self._count, **fields}, kind)
        self._count += 1
        return text

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _opened(self, kind: str, **fields: Any) -> str:
        """Return the events that begin an item, none if an item of this type is unfinished."""
        if self._open == kind and kind not in _CALLS:
            return ""
        events = self._closed()
        item: dict[str, Any] = {"id": new_id(_PREFIXES[kind]), "type": kind}
        if kind != "custom_tool_call":  # whose item has no status
            item["status"] = "in_progress"
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        self._output.append(item | fields)
        self._open, self._arguments = kind, ""
        index = len(self._output) - 1
        events += self._event(
            "response.output_item.added", output_index=index, item=self._output[-1]
        )
        if kind not in _CALLS:
            part = _part(kind)
            self._output[-1]["content"].append(part)
            events += self._event(
                "response.content_part.added", **self._place(), content_index=0, part=part
            )
        return events

    def _text(self, kind: str, text: str, **fields: Any) -> str:
        self._output[-1]["content"][0]["text"] += text
        return self._event(
            f"response.{kind}.delta", **self._place(), content_index=0, delta=text, **fields
        )

    def _closed(self, status: str = "completed") -> str:
        """Return the events that end the unfinished item."""
        kind, self._open = self._open, None
        if kind is None:
            return ""
        item, place = self._output[-1], self._place()
        fields: dict[str, Any]
        if kind in _CALLS:
            names = _CALLS[kind]
            fields = {"name": item["name"]} if kind == "function_call" else {}
            fields[names.field] = item[names.field]
            events = self._event(f"response.{names.event}.done", **place, **fields)
        else:
            part = item["content"][0]
            fields = {"text": part["text"]}
            if kind == "message":
                part["logprobs"], self._scores = self._scores, []
                fields["logprobs"] = part["logprobs"]
            name = part["type"]
            events = self._event(f"response.{name}.done", **place, content_index=0, **fields)
            events += self._event("response.content_part.done", **place, content_index=0, part=part)
        if "status" in item:
            item["status"] = status
        index = place["output_index"]
        return events + self._event("response.output_item.done", output_index=index, item=item)


def _part(kind: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": ""}
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
