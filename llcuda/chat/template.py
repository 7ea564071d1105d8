"""Chat templates: the program of a model that makes a prompt of a conversation.

    template = ChatTemplate.of(model)
    print(template.render([{"role": "user", "content": "Hello"}]))

Messages and tools have OpenAI's shapes. They are converted to the shapes that the template reads.
"""

from __future__ import annotations

import json
import weakref
import zlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from llcuda._pickling import stays_in_process
from llcuda.chat.formats import ChatSyntax, detect
from llcuda.chat.jinja_sandbox import Program
from llcuda.chat.messages import check_messages, check_tools, plain_data
from llcuda.chat.prompt import ControlTexts, Prompt, texts_of, unused_letter
from llcuda.errors import ArgumentError
from llcuda.native.model import Model, check_model
from llcuda.params import check_flag, wrong_argument, wrong_value

KEY = "tokenizer.chat_template"
DEFAULT = "default"
MARKS = ("{%", "{{")  # that a template has, and the name of one has not
PROBE_SECONDS = 2.0  # 1 ms is usual
MAX_TEMPLATES = 64  # that are kept of a model
_OWN = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}
_USER: dict[str, Any] = {"role": "user", "content": "probe_user"}
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "A tool.",
        "parameters": {
            "type": "object",
            "properties": {"probe_key": {"type": "string", "description": "A text."}},
            "required": ["probe_key"],
        },
    },
}
_OBJECT = {"probe_key": "probe_value"}
_NONE: Mapping[str, int] = {}


def template_names(model: Model) -> list[str]:
    """Return the names of the model's templates; its main one is "default"."""
    named = sorted(key.removeprefix(f"{KEY}.") for key in model.metadata if f"{KEY}." in key)
    return [DEFAULT, *named] if KEY in model.metadata else named


@stays_in_process("its source")
class ChatTemplate:
    """A Jinja template, compiled in a sandbox; any number of threads may render with it.

    Args:
        source: The text of the template.
        bos: The text of the token that begins a text.
        eos: The text of the token that ends a text.
        controls: The model's control tokens by their texts.

    Raises:
        ArgumentError: The text is not a template.

    Attributes:
        source: The text of the template.
    """

    def __init__(
        self, source: str, *, bos: str = "", eos: str = "", controls: Mapping[str, int] = _NONE
    ) -> None:
        if not isinstance(source, str):
            raise wrong_argument("template", f"expected a string, got {type(source).__name__}")
        self.source = source
        self._fixed = {"bos_token": bos, "eos_token": eos}
        self._controls = controls
        self._texts = ControlTexts(controls)
        self._program = _program(source)

    @classmethod
    def of(cls, model: Model, name: str | None = None) -> ChatTemplate:
        """Return a template of a model; it is compiled once.

        Args:
            model: The model.
            name: The name of one of its templates, None for the main one, or the text of another
                template.

        Raises:
            ArgumentError: The model has no template, none of this name, or the text is not a
                template.
        """
        check_model(model)
        templates = _templates.setdefault(model, {})
        if name not in templates:
            if len(templates) >= MAX_TEMPLATES:
                templates.clear()
            unknown = int(model.metadata.get("tokenizer.ggml.unknown_token_id", -1))
            templates[name] = cls(
                _source(model, name),
                bos=_token_text(model, model.bos),
                eos=_token_text(model, model.eos),
                controls={_token_text(model, unknown): unknown, **model.control_tokens},
            )
        return templates[name]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Return the text of the prompt.

        Args:
            messages: Objects with "role" and "content", in OpenAI's shapes.
            tools: OpenAI's definitions of tools, or Python functions.
            add_generation_prompt: End the prompt with the beginning of an answer.
            continue_final_message: End the prompt within the last message, an assistant's, so that
                the model continues it.
            **variables: Further variables of the template, such as enable_thinking=False.

        Raises:
            ArgumentError: Messages or tools have other shapes, or the template raises an error.
        """
        given = check_messages(messages, self._program.strings, self._program.keys)
        checked = None if tools is None else check_tools(tools)
        plain = plain_data(variables, "template_variables")
        if continue_final_message:
            data = [given, checked, plain]
            return self._continue(data, self._mark_end(data))[0]
        return self._render(given, checked, add_generation_prompt, plain)

    def prompt(
        self,
        model: Model,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> Prompt:
        """Return the text of the prompt with its tokens; see `render`.

        Only the template makes control tokens: the text of one in a message, a tool or a variable
        becomes tokens of ordinary text.
        """
        return self.prompt_up_to(
            None,
            model,
            messages,
            tools,
            add_generation_prompt,
            continue_final_message,
            variables=variables,
        )

    def prompt_up_to(
        self,
        limit: int | None,
        model: Model,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        *,
        variables: Mapping[str, Any],
    ) -> Prompt:
        """Return the prompt as `prompt` does, but refuse one that is far too long.

        Args:
            limit: Tokens of the context; None refuses no text.
            model: The model whose vocabulary is used.
            messages: See `render`.
            tools: See `render`.
            add_generation_prompt: See `render`.
            continue_final_message: See `render`.
            variables: Further variables of the template.

        Raises:
            ContextLengthError: The text is far too long. One that is a little too long may pass.
        """
        check_model(model)
        given = check_messages(messages, self._program.strings, self._program.keys)
        checked = None if tools is None else check_tools(tools)
        data = [given, checked, plain_data(variables, "template_variables")]
        reasoning = [text for row in self.syntax.reasoning for text in (row.begin, row.end)]
        mark = self._mark_end(data) if continue_final_message else ""
        breaker = self._texts.break_up(data, self.source, reasoning)
        if not continue_final_message:
            text = self._render(given, checked, add_generation_prompt, data[2])
            return Prompt.of(model, text, breaker, limit)
        text, begun = self._continue(data, mark)
        prompt = Prompt.of(model, text, breaker, limit)
        begun = begun.replace(breaker, "") if breaker else begun
        return replace(prompt, begun=begun, begins_reasoning=not given[-1]["content"])

    def _mark_end(self, data: list[Any]) -> str:
        """Put a letter that stands nowhere else behind the text that is to be continued.

        A content that opens reasoning becomes reasoning.

        Args:
            data: The messages, then other values.

        Raises:
            ArgumentError: The last message is not an assistant's, or has calls or no text.
        """
        message, where = data[0][-1], f"messages[{len(data[0]) - 1}]"
        if message["role"] != "assistant" or "tool_calls" in message:
            rule = "to be continued it has to be an assistant's, without calls"
            raise wrong_argument(where, rule)
        mark, content = unused_letter([self.source, *texts_of(data)]), message["content"]
        if isinstance(content, list):
            content = message["content"] = "".join(part["text"] for part in content)
        for row in self.syntax.reasoning:
            if content.lstrip().startswith(row.begin) and row.end not in content:
                message["reasoning_content"] = content.lstrip().removeprefix(row.begin).lstrip()
                message["thinking"] = message["reasoning_content"]
                content = message["content"] = ""
        if content:
            message["content"] = content + mark
        elif message.get("reasoning_content"):
            for name in ("reasoning_content", "thinking", "reasoning"):
                message[name] = message["reasoning_content"].removesuffix(mark) + mark
        else:
            raise wrong_argument(f"{where}.content", "expected a text to continue")
        return mark

    def _continue(self, data: list[Any], mark: str) -> tuple[str, str]:
        """Return the prompt of an answer that goes on at a mark, and the beginning of the answer.

        Args:
            data: The messages, the tools and the variables.
            mark: The letter behind the text that is to be continued.
        """
        messages, tools, variables = data
        content, reasoning = messages[-1]["content"], messages[-1].get("reasoning_content")
        begun = (content or reasoning).removesuffix(mark)
        try:
            text, found, _ = self._render(messages, tools, False, variables).rpartition(mark)
        except ArgumentError:  # a template that wants a question at the end
            found = ""
        if not found:  # or one that leaves the reasoning of earlier answers out
            text = self._render(messages[:-1], tools, True, variables) + begun
        if not text.endswith(begun):
            begun = begun.lstrip()
        head = text.replace(mark, "").removesuffix(begun)
        if content and self.syntax.open_reasoning(head) is not None:
            head += self.reasoning_ending(head)
        elif not content and not found:
            head = self._open_reasoning(head, f"messages[{len(messages) - 1}]")
        return head + begun, begun

    def _open_reasoning(self, prompt: str, where: str) -> str:
        """Return a prompt that opens the reasoning, which it may have closed without a text."""
        if self.syntax.open_reasoning(prompt) is not None:
            return prompt
        if not self.syntax.reasoning:
            rule = "this model's chat template has no place for the reasoning of an earlier answer"
            raise wrong_argument(where, rule)
        row, text = self.syntax.reasoning[0], prompt.rstrip()
        if text.endswith(row.end):
            prompt = text.removesuffix(row.end).rstrip().removesuffix(row.begin)
        return f"{prompt}{row.begin}\n"

    def reasoning_ending(self, prompt: str, with_space: bool = True) -> str:
        """Return the text that ends the reasoning of an answer, "" where the model has none.

        Args:
            prompt: The prompt of the answer, which may open the reasoning.
            with_space: Include what the template writes between the delimiter and the content.
        """
        if (channels := self.syntax.channels) is not None:
            return channels.ends[0] + channels.start + channels.content_header + channels.message
        row = self.syntax.open_reasoning(prompt) or next(iter(self.syntax.reasoning), None)
        if row is None:
            return ""
        before, end, after = self._behind_reasoning.partition(row.end)
        return before + end + (after if with_space else "") if end else row.end

    @cached_property
    def _behind_reasoning(self) -> str:
        """The text that the template writes between reasoning and content."""
        answer = {"role": "assistant", "content": "probe_answer", "reasoning_content": "probe_why"}
        text = self._probe([_USER, {**answer, "thinking": "probe_why"}], None) or ""
        return text.partition("probe_why")[2].partition("probe_answer")[0]

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        check_flag("add_generation_prompt", add_generation_prompt)
        reserved = _OWN & variables.keys()
        if reserved:
            rule = f"{min(reserved)!r} is set by llcuda"
            raise wrong_argument("template_variables", rule, "choose another name")
        if tools and not self.takes_tools:
            rule = "this model's chat template has no place for them"
            raise wrong_argument("tools", rule, "give template=, or describe them in a message")
        values = {
            "documents": None,
            **self.legacy_variables(tools),
            **variables,
            **self._fixed,
            "messages": self._adapt(messages),
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        return self._program.render(values)

    def legacy_variables(self, tools: list[dict[str, Any]] | None) -> dict[str, Any]:
        """Return the variables by which firefunction's template reads tools."""
        if "functions" not in self._program.names:
            return {}
        today = datetime.now().strftime("%B %d %Y %H:%M:%S GMT")
        return {"functions": json.dumps(tools or [], indent=4), "datetime": today}

    # --- properties of the template, seen from probes ---

    @property
    def takes_tools(self) -> bool:
        """Whether the template looks at tools."""
        return not self._program.names.isdisjoint({"tools", "functions", "available_tools"})

    @cached_property
    def syntax(self) -> ChatSyntax:
        """The delimiters of the model, by the template and by the texts that it renders."""
        texts = [self.source]
        for reasoning in (False, True):
            extra = {"reasoning_content": "probe_why", "thinking": "probe_why"} if reasoning else {}
            for content, arguments in self._call_variants(None):
                texts.append(self._probe([_USER, {**_call(content, arguments), **extra}]) or "")
        return detect("\n".join(texts))

    @cached_property
    def shown_tokens(self) -> frozenset[int]:
        """The control tokens that are part of a delimiter, and therefore of an answer's text."""
        delimiters = "\0".join(self.syntax.delimiters)
        return frozenset(t for text, t in self._controls.items() if text and text in delimiters)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The control token that ends an answer, which the model's file may not name."""
        rest = self.turn_end.lstrip()
        text = max((t for t in self._controls if t and rest.startswith(t)), key=len, default="")
        return frozenset({self._controls[text]} - self.shown_tokens if text else ())

    @cached_property
    def turn_end(self) -> str:
        """The text behind an answer in a conversation that goes on."""
        answer = {"role": "assistant", "content": "probe_answer"}
        text = self._probe([_USER, answer, {"role": "user", "content": "probe_more"}], None) or ""
        return text.partition("probe_answer")[2].partition("probe_more")[0]

    def _probe(self, messages: list[Any], tools: Any = (_TOOL,)) -> str | None:
        """Render a probe; None if the template refuses it."""
        values = {
            **self.legacy_variables([_TOOL]),
            **self._fixed,
            "documents": None,
            "messages": deepcopy(messages),
            "tools": deepcopy(list(tools)) if tools else None,
            "add_generation_prompt": False,
        }
        try:
            return self._program.render(values, seconds=PROBE_SECONDS)
        except ArgumentError:
            return None

    def _call_variants(self, content: str | None) -> list[tuple[str | None, Any]]:
        """Return contents and arguments of a call to probe, the given content first."""
        others = (content, "" if content is None else None)
        return [(c, a) for a in (_OBJECT, json.dumps(_OBJECT)) for c in others]

    @cached_property
    def _call_shapes(self) -> dict[str | None, tuple[str | None, bool]]:
        """For each empty content: its replacement, and whether arguments are a string.

        Nothing for a content with which the template writes no calls.
        """
        shapes: dict[str | None, tuple[str | None, bool]] = {}
        for content in ("", None):
            for shape, arguments in self._call_variants(content):
                text = self._probe([_USER, _call(shape, arguments)]) or ""
                text = text.rpartition("probe_user")[2]
                quoted = r"\"probe_key" in text or "'probe_key'" in text
                if "probe_key" in text and not quoted and "None" not in text:
                    shapes[content] = (shape, isinstance(arguments, str))
                    break
        return shapes

    @cached_property
    def _reads_parts(self) -> tuple[bool, bool]:
        """Whether content may be a string, and whether it may be a list of parts."""
        parts = [{"type": "text", "text": "probe_part"}]
        text = self._probe([{"role": "user", "content": parts}], None) or ""
        listed = "probe_part" in text and "'text'" not in text and '"text"' not in text
        text = self._probe([_USER], None) or ""
        return "probe_user" in text or not listed, listed

    @cached_property
    def _reads_thinking_parts(self) -> bool:
        """Whether reasoning is read as a part of the content, and not beside it."""
        if "'thinking'" not in self.source:
            return False
        text = {"type": "text", "text": "probe_answer"}
        parts = [_thinking_part("probe_why"), text]
        listed = self._probe([_USER, {"role": "assistant", "content": parts}], None) or ""
        beside = {"role": "assistant", "content": "probe_answer", "reasoning_content": "probe_why"}
        apart = self._probe([_USER, {**beside, "thinking": "probe_why"}], None) or ""
        return "probe_why" in listed and "'thinking'" not in listed and "probe_why" not in apart

    @cached_property
    def _wants_short_ids(self) -> bool:
        """Whether ids of calls must be nine letters and digits, as Mistral's templates demand."""
        long = self._probe([_USER, _call("", _OBJECT, "call_0123456789")])
        return long is None and self._probe([_USER, _call("", _OBJECT)]) is not None

    # --- messages in the shapes that the template reads ---

    def _adapt(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names: dict[str, str] = {}  # of functions, by the id of a call
        adapted = []
        for given in messages:
            message = dict(given)
            if message["role"] == "developer" and "developer" not in self.source:
                message["role"] = "system"
            if "tool_calls" in message:
                self._adapt_calls(message, names)
            if message["role"] == "tool":
                self._adapt_result(message, names)
            content = message["content"]
            if isinstance(content, list) and not self._reads_parts[1]:
                message["content"] = "\n".join(part["text"] for part in content)
            elif isinstance(content, str) and not self._reads_parts[0]:
                message["content"] = [{"type": "text", "text": content}]
            if message.get("reasoning_content") and self._reads_thinking_parts:
                content = message["content"] or []
                if isinstance(content, str):
                    content = [{"type": "text", "text": content}]
                message["content"] = [_thinking_part(message["reasoning_content"]), *content]
            adapted.append(message)
        return adapted

    def _adapt_calls(self, message: dict[str, Any], names: dict[str, str]) -> None:
        content = message["content"]
        shape, as_text = self._call_shapes.get("" if content == "" else None, ("", False))
        if not content:
            message["content"] = shape
        calls = []
        for call in message["tool_calls"]:
            function = dict(call["function"])
            function["arguments"] = self._arguments(function["arguments"], as_text)
            calls.append({**call, "function": function})
            if call.get("id"):
                names[call["id"]] = function["name"]
                calls[-1]["id"] = self._short(call["id"])
        message["tool_calls"] = calls
        if not self._call_shapes and (form := self.syntax.tool_calls) is not None:
            functions = [call["function"] for call in calls]
            written = form.write([(f["name"], f["arguments"]) for f in functions])
            if isinstance(message["content"], list):
                message["content"] = [*message["content"], {"type": "text", "text": written}]
            else:
                message["content"] += written

    def _arguments(self, given: str | dict[str, Any], as_text: bool) -> Any:
        """Return the arguments of a call as JSON in a string, or as an object.

        Arguments that are no JSON object, such as those of a call that was cut, stay the text that
        they are. A template that reads objects only gets them as the value of one key.
        """
        value = _decoded(given)
        if as_text and isinstance(value, dict):
            is_written = isinstance(given, str) and given.lstrip().startswith("{")
            return given if is_written else json.dumps(value, ensure_ascii=False)
        if as_text or isinstance(value, dict) or self._takes_text_arguments:
            return value
        return {"arguments": value}

    @cached_property
    def _takes_text_arguments(self) -> bool:
        """Whether the template writes arguments that are a text, which it wants as an object."""
        shapes = [shape for shape, _ in self._call_shapes.values()]
        text = self._probe([_USER, _call(shapes[0], "probe_key")]) if shapes else ""
        return "probe_key" in (text or "")

    def _adapt_result(self, message: dict[str, Any], names: Mapping[str, str]) -> None:
        identity = message.get("tool_call_id")
        if identity:
            message["tool_call_id"] = self._short(identity)
            if identity in names:
                message.setdefault("name", names[identity])

    def _short(self, identity: str) -> str:
        """Return the id of a call as the template takes it."""
        if not self._wants_short_ids or (len(identity) == 9 and identity.isalnum()):
            return identity
        return f"{zlib.crc32(identity.encode()) % 10**9:09d}"


def _thinking_part(text: str) -> dict[str, str]:
    return {"type": "thinking", "thinking": text}


def _decoded(given: str | dict[str, Any]) -> str | dict[str, Any]:
    """Return the object that a text holds, also one encoded twice; otherwise the text itself.

    An empty text and null are an object without keys.
    """
    text: Any = given
    for _ in range(2):
        if not isinstance(text, str):
            break
        try:
            text = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            break
    return text if isinstance(text, dict) else {} if text is None else given


def _call(content: str | None, arguments: Any, identity: str = "probe0123") -> dict[str, Any]:
    function = {"name": "probe_tool", "arguments": arguments}
    call = {"id": identity, "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _source(model: Model, name: str | None) -> str:
    """Return the text of a model's template, or `name` when it is the text of a template."""
    if name is not None and not isinstance(name, str):
        raise wrong_argument(
            "template",
            f"expected a name or the text of a template, got {type(name).__name__}",
            remedy="leave it out for the model's own template",
        )
    if name is not None and any(mark in name for mark in MARKS):
        return name
    names = template_names(model)
    key = KEY if name in (None, DEFAULT) else f"{KEY}.{name}"
    source = model.metadata.get(key)
    if isinstance(source, str):
        return source
    if name is None and not names:
        raise wrong_argument(
            "template",
            f"{model.path.name} has no chat template",
            remedy="give template=, a Jinja template as text, or use infer() with your own prompt",
        )
    rule = f"{model.path.name} has no template of this name, only {', '.join(names) or 'none'}"
    raise wrong_value("template", name, rule, "give one of its names, or a Jinja template as text")


def _token_text(model: Model, token: int | None) -> str:
    if token is None or not 0 <= token < model.vocab_size:
        return ""
    return model.piece_bytes(token, special=True).decode(errors="replace")


_program = lru_cache(maxsize=64)(Program)
_templates: weakref.WeakKeyDictionary[Model, dict[str | None, ChatTemplate]] = (
    weakref.WeakKeyDictionary()
)
