"""Chat templates: a model's own program that makes a prompt of a conversation.

    template = ChatTemplate.of(model)
    print(template.render([{"role": "user", "content": "Hello"}]))

Messages and tools have OpenAI's shapes, and are brought into those that the template reads.
"""

from __future__ import annotations

import json
import weakref
import zlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from llcuda.chat.formats import ChatSyntax, detect
from llcuda.chat.jinja_sandbox import Program
from llcuda.chat.messages import check_messages, check_tools, plain
from llcuda.chat.prompt import ControlTexts, Prompt
from llcuda.errors import ArgumentError
from llcuda.native.model import Model

KEY = "tokenizer.chat_template"
DEFAULT = "default"
PROBE_SECONDS = 2.0  # 1 ms is usual
MOST_KEPT = 64  # templates of a model
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


class ChatTemplate:
    """A Jinja template, compiled in a sandbox; any number of threads may render with it.

    source: its text. bos, eos: what it may put before and after texts. controls: the model's
    control tokens by their texts.
    Raises ArgumentError for a text that is no template.
    """

    def __init__(
        self, source: str, *, bos: str = "", eos: str = "", controls: Mapping[str, int] = _NONE
    ) -> None:
        if not isinstance(source, str):
            raise ArgumentError(
                f"template: expected a text, not {type(source).__name__}", parameter="template"
            )
        self.source = source
        self._fixed = {"bos_token": bos, "eos_token": eos}
        self._controls = controls
        self._texts = ControlTexts(controls)
        self._program = _program(source)

    @classmethod
    def of(cls, model: Model, name: str | None = None) -> ChatTemplate:
        """Return the model's template of that name; None = the main one.

        name: also the text of a template, which is used in place of the model's.
        Raises ArgumentError for a model without one, and for an unknown name.
        """
        kept = _templates.setdefault(model, {})
        if name not in kept:
            if len(kept) >= MOST_KEPT:
                kept.clear()
            unknown = int(model.metadata.get("tokenizer.ggml.unknown_token_id", -1))
            kept[name] = cls(
                _source(model, name),
                bos=_text(model, model.bos),
                eos=_text(model, model.eos),
                controls={_text(model, unknown): unknown, **model.control_tokens},
            )
        return kept[name]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the prompt's text.

        messages: {"role", "content", ...} each. tools: OpenAI's definitions, or Python functions.
        add_generation_prompt: end where the model's answer begins. variables: what else the
            template knows, e.g. enable_thinking=False.
        Raises ArgumentError for messages and tools of other shapes, and with what the template
        raises.
        """
        given = check_messages(messages, self._program.strings)
        checked = None if tools is None else check_tools(tools)
        return self._render(given, checked, add_generation_prompt, variables)

    def prompt(
        self,
        model: Model,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> Prompt:
        """Return what `render` returns with its tokens; only the template makes control tokens.

        What looks like one in a message, a tool or a variable becomes tokens of ordinary text.
        """
        given = check_messages(messages, self._program.strings)
        checked = None if tools is None else check_tools(tools)
        whole = [given, checked, plain(variables, "template_variables")]
        known = [mark for pair in self.syntax.reasoning for mark in pair]
        breaker = self._texts.break_up(whole, self.source, known)
        text = self._render(given, checked, add_generation_prompt, whole[2])
        return Prompt.of(model, text, breaker)

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        reserved = _OWN & variables.keys()
        if reserved:
            raise ArgumentError(
                f"template_variables: {min(reserved)!r} is not for the caller",
                parameter="template_variables",
            )
        if tools and not self.takes_tools:
            raise ArgumentError(
                "tools: this model's chat template has no place for them", parameter="tools"
            )
        values = {
            "documents": None,
            **self._old_names(tools),
            **plain(variables, "template_variables"),
            **self._fixed,
            "messages": self._adapted(messages),
            "tools": tools,
            "add_generation_prompt": bool(add_generation_prompt),
        }
        return self._program.render(values, _size(values))

    def _old_names(self, tools: list[dict[str, Any]] | None) -> dict[str, Any]:
        """Return what firefunction's template wants for tools."""
        if "functions" not in self._program.names:
            return {}
        today = datetime.now().strftime("%B %d %Y %H:%M:%S GMT")
        return {"functions": json.dumps(tools or [], indent=4), "datetime": today}

    # --- what the template can read ---

    @property
    def takes_tools(self) -> bool:
        """Whether the template looks at tools."""
        return not self._program.names.isdisjoint({"tools", "functions", "available_tools"})

    @cached_property
    def syntax(self) -> ChatSyntax:
        """How the model marks reasoning and calls, by the template and by what it makes of some."""
        shown = [self.source]
        for reasoning in (False, True):
            extra = {"reasoning_content": "probe_why", "thinking": "probe_why"} if reasoning else {}
            for content, arguments in self._shapes(None):
                shown.append(self._try([_USER, {**_call(content, arguments), **extra}]) or "")
        return detect("\n".join(shown))

    @cached_property
    def shown_tokens(self) -> frozenset[int]:
        """The control tokens that `syntax` has to see."""
        marks = "\0".join(self.syntax.delimiters)
        return frozenset(token for text, token in self._controls.items() if text and text in marks)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The control token that ends an answer, where the model's file may not name it."""
        rest = self.turn_end.lstrip()
        found = max((t for t in self._controls if t and rest.startswith(t)), key=len, default="")
        return frozenset({self._controls[found]} - self.shown_tokens if found else ())

    @cached_property
    def turn_end(self) -> str:
        """What stands behind an answer in a conversation that goes on."""
        answer = {"role": "assistant", "content": "probe_answer"}
        text = self._try([_USER, answer, {"role": "user", "content": "probe_more"}], None) or ""
        return text.partition("probe_answer")[2].partition("probe_more")[0]

    def _try(self, messages: list[Any], tools: Any = (_TOOL,)) -> str | None:
        """Render a probe; None where the template refuses it."""
        values = {
            **self._old_names([_TOOL]),
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

    def _shapes(self, content: str | None) -> list[tuple[str | None, Any]]:
        """Return the contents and arguments of a call to try: those given first, then others."""
        others = (content, "" if content is None else None)
        return [(c, a) for a in (_OBJECT, json.dumps(_OBJECT)) for c in others]

    @cached_property
    def _call_shapes(self) -> dict[str | None, tuple[str | None, bool]]:
        """For an empty content: what to give in its place, and whether arguments are a text."""
        found: dict[str | None, tuple[str | None, bool]] = {}
        for content in ("", None):
            for shape, arguments in self._shapes(content):
                text = self._try([_USER, _call(shape, arguments)]) or ""
                written = "probe_key" in text.rpartition("probe_user")[2]
                quoted = r"\"probe_key" in text or "'probe_key'" in text
                if written and not quoted and "None" not in text.rpartition("probe_user")[2]:
                    found[content] = (shape, isinstance(arguments, str))
                    break
            else:
                found[content] = ("", False)
        return found

    @cached_property
    def _reads_parts(self) -> tuple[bool, bool]:
        """Whether content may be a text, and whether it may be a list of parts."""
        parts = [{"type": "text", "text": "probe_part"}]
        text = self._try([{"role": "user", "content": parts}], None) or ""
        listed = "probe_part" in text and "'text'" not in text and '"text"' not in text
        plain_text = "probe_user" in (self._try([_USER], None) or "")
        return plain_text or not listed, listed

    @cached_property
    def _wants_short_ids(self) -> bool:
        """Whether ids of calls must be nine letters and digits, as Mistral has them."""
        long = self._try([_USER, _call("", _OBJECT, "call_0123456789")])
        return long is None and self._try([_USER, _call("", _OBJECT)]) is not None

    def _adapted(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages in the shapes that the template reads."""
        names: dict[str, str] = {}
        found = []
        for i, given in enumerate(messages):
            message = dict(given)
            if message["role"] == "developer" and "developer" not in self.source:
                message["role"] = "system"
            if "tool_calls" in message:
                self._adapt_calls(message, f"messages[{i}]", names)
            if message["role"] == "tool":
                self._adapt_result(message, names)
            content = message["content"]
            if isinstance(content, list) and not self._reads_parts[1]:
                message["content"] = "\n".join(part["text"] for part in content)
            elif isinstance(content, str) and not self._reads_parts[0]:
                message["content"] = [{"type": "text", "text": content}]
            found.append(message)
        return found

    def _adapt_calls(self, message: dict[str, Any], where: str, names: dict[str, str]) -> None:
        content = message["content"]
        shape, as_text = self._call_shapes["" if content == "" else None]
        if not content:
            message["content"] = shape
        calls = []
        for j, call in enumerate(message["tool_calls"]):
            function = dict(call["function"])
            place = f"{where}.tool_calls[{j}].function.arguments"
            function["arguments"] = _arguments(function["arguments"], as_text, place)
            calls.append({**call, "function": function})
            if call.get("id"):
                names[call["id"]] = function["name"]
                calls[-1]["id"] = self._short(call["id"])
        message["tool_calls"] = calls

    def _adapt_result(self, message: dict[str, Any], names: Mapping[str, str]) -> None:
        identity = message.get("tool_call_id")
        if identity:
            message["tool_call_id"] = self._short(identity)
            if identity in names:
                message.setdefault("name", names[identity])

    def _short(self, identity: str) -> str:
        """Return a call's id as the template takes it."""
        if not self._wants_short_ids or (len(identity) == 9 and identity.isalnum()):
            return identity
        return f"{zlib.crc32(identity.encode()) % 10**9:09d}"


def _arguments(given: str | dict[str, Any], as_text: bool, where: str) -> Any:
    """Return a call's arguments as a text or as an object."""
    if isinstance(given, dict):
        return json.dumps(given, ensure_ascii=False) if as_text else given
    if as_text:
        return given
    try:
        found = json.loads(given)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ArgumentError(f"{where}: expected a JSON object, not {given[:80]!r}", parameter=where)
    return found


def _call(content: str | None, arguments: Any, identity: str = "probe0123") -> dict[str, Any]:
    function = {"name": "probe_tool", "arguments": arguments}
    call = {"id": identity, "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _size(value: Any) -> int:
    """Return about how many characters plain data has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + _size(item) for key, item in value.items())
    return sum(map(_size, value)) if isinstance(value, list) else 1


def _source(model: Model, name: str | None) -> str:
    """Return the text of a model's template, or the one that `name` is."""
    if name is not None and not isinstance(name, str):
        raise ArgumentError(
            f"template: expected a name or a text, not {type(name).__name__}", parameter="template"
        )
    if name is not None and ("{%" in name or "{{" in name):
        return name
    names = template_names(model)
    key = KEY if name in (None, DEFAULT) else f"{KEY}.{name}"
    source = model.metadata.get(key)
    if isinstance(source, str):
        return source
    if name is None and not names:
        raise ArgumentError(
            f"{model.path.name} has no chat template: give template=, a Jinja template as text, "
            "or use infer() with a prompt of your own"
        )
    raise ArgumentError(
        f"template={name!r}: {model.path.name} has {', '.join(names) or 'none'}",
        parameter="template",
    )


def _text(model: Model, token: int | None) -> str:
    if token is None or not 0 <= token < model.vocab_size:
        return ""
    return model.piece_bytes(token, special=True).decode(errors="replace")


_program = lru_cache(maxsize=64)(Program)
_templates: weakref.WeakKeyDictionary[Model, dict[str | None, ChatTemplate]] = (
    weakref.WeakKeyDictionary()
)
