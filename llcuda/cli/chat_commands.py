"""The conversation of `llcuda chat`: messages, settings, and the commands that change them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llcuda.chat.messages import check_messages
from llcuda.engine.request import request_params
from llcuda.errors import ArgumentError
from llcuda.files import atomic_write, check_target
from llcuda.keywords import SamplingKeywords

if TYPE_CHECKING:
    from llcuda.engine.outputs import Completion

MAX_FILE_SIZE = 64 * 2**20  # bytes
SETTINGS = sorted(
    {*SamplingKeywords.__annotations__, "max_tokens", "stop", "timeout"}
    - {"logit_bias", "dry_breakers", "grammar_root"}
)


class Conversation:
    """The messages so far, with the system prompt first if there is one.

    Args:
        system: The system prompt.
        parameters: Keywords of `Engine.chat`.

    Attributes:
        messages: The messages.
        parameters: The keywords, as `/set` has changed them.
        last: The completion of the last answer.
    """

    def __init__(self, system: str | None, parameters: dict[str, Any]) -> None:
        self.messages: list[dict[str, Any]] = []
        self.parameters = parameters
        self.last: Completion | None = None
        self._file: Path | None = None
        if system:
            self.set_system(system)

    def set_system(self, text: str) -> str:
        """Change the system prompt; an empty text removes it."""
        others = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *others] if text else others
        return "system prompt set" if text else "no system prompt"

    def clear(self, rest: str) -> str:
        """Forget all messages except the system prompt."""
        _refuse_arguments(rest)
        self.messages = [message for message in self.messages if message["role"] == "system"]
        return "a new conversation"

    def last_question(self) -> tuple[list[dict[str, Any]], str]:
        """Return the messages before the last question, and the question."""
        places = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise ArgumentError("there is no question yet")
        return self.messages[: places[-1]], self.messages[places[-1]]["content"]

    def last_answer(self) -> str:
        """Return the text of the last answer."""
        for message in reversed(self.messages):
            if message["role"] == "assistant":
                return str(message.get("content") or "")
        raise ArgumentError("there is no answer yet")

    def set(self, rest: str) -> str:
        """Change a setting, or show all."""
        name, _, value = rest.partition(" ")
        if not name:
            changed = {key: self.parameters[key] for key in SETTINGS if key in self.parameters}
            current = {**_defaults(), **changed}
            lines = [
                f"{key} {json.dumps(current[key])}{'' if key in changed else ' (default)'}"
                for key in SETTINGS
            ]
            return "\n".join([*lines, "/set NAME VALUE changes one; /set NAME default resets it"])
        if name not in SETTINGS:
            raise ArgumentError(f"{name!r}: no such setting; expected one of {', '.join(SETTINGS)}")
        others = {key: given for key, given in self.parameters.items() if key != name}
        if value.strip() in ("", "default"):
            self.parameters = others
            return f"{name}: the default"
        try:
            given = json.loads(value)
        except ValueError:
            given = value
        request_params({key: others[key] for key in others if key in SETTINGS} | {name: given})
        self.parameters = {**others, name: given}
        return f"{name} {json.dumps(given)}"

    def save(self, rest: str) -> str:
        """Write the conversation into a file; only a file of this conversation is replaced."""
        path = _path(rest)
        check_target(path)
        if path.exists() and path != self._file:
            raise ArgumentError(f"{path} exists; give another name")
        document = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1)
        with atomic_write(path) as part:
            part.write_text(document + "\n", encoding="utf-8")
        self._file = path
        return f"{len(self.messages)} messages in {path}"

    def load(self, rest: str) -> str:
        """Continue a conversation that `save` wrote."""
        path = _path(rest)
        try:
            if path.stat().st_size > MAX_FILE_SIZE:
                raise ArgumentError(f"{path} is larger than {MAX_FILE_SIZE >> 20} MiB")
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ArgumentError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise ArgumentError(f"{path} is not a JSON document") from None
        messages = document.get("messages") if isinstance(document, dict) else document
        self.messages = check_messages(messages)
        self._file = path
        return f"{len(self.messages)} messages"

    def stats(self, rest: str) -> str:
        """Return the counts and times of the last answer."""
        _refuse_arguments(rest)
        last = self.last
        if last is None:
            return "no answer yet"
        first = last.queue_seconds + last.prefill_seconds
        rate = max(0, len(last.tokens) - 1) / last.decode_seconds if last.decode_seconds else 0.0
        return (
            f"prompt {last.prompt_tokens} tokens, {last.cached_tokens} of them cached; "
            f"first token after {first:.2f} s; {len(last.tokens)} tokens, {rate:.1f} a second; "
            f"{last.finish_reason}; seed {last.seed}"
        )

    def commands(self) -> dict[str, tuple[str, Callable[[str], str]]]:
        """Return the purpose and the function of each command."""
        return {
            "/clear": ("forget the conversation, keep the system prompt", self.clear),
            "/load": ("FILE: continue a saved conversation", self.load),
            "/save": ("FILE: write the conversation, as JSON", self.save),
            "/set": ("NAME VALUE: change a setting; without arguments: show all", self.set),
            "/stats": ("show tokens and times of the last answer", self.stats),
            "/system": ("TEXT: change the system prompt; without TEXT: remove it", self.set_system),
        }


def _defaults() -> dict[str, Any]:
    request, sampling = request_params({})
    values = {key: getattr(request, key, getattr(sampling, key, None)) for key in SETTINGS}
    return {**values, "max_tokens": None}  # what the context has left


def _refuse_arguments(rest: str) -> None:
    if rest:
        raise ArgumentError(f"{rest!r}: this command takes no arguments")


def _path(rest: str) -> Path:
    if not rest or "\0" in rest:
        raise ArgumentError("give the name of a file")
    return Path(rest).expanduser()
