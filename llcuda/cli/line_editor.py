"""Edits the messages of a chat in a terminal, with completion and a history in a file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle, PromptSession

from llcuda.files import state_folder

MAX_HISTORY = 2000  # messages
FILE_COMMANDS = ("/load", "/model", "/save")  # whose argument may be the path of a file


class LineEditor:
    """Edits messages in a terminal, of several lines if they are pasted.

    Args:
        commands: The commands that Tab completes.
    """

    def __init__(self, commands: Iterable[str]) -> None:
        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(history_path()),
            completer=_CommandCompleter(sorted(commands)),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            key_bindings=keys,
        )

    def read(self, prompt: str) -> str:
        """Return one message.

        Args:
            prompt: The text before it.

        Raises:
            EOFError: Ctrl-D.
            KeyboardInterrupt: Ctrl-C.
        """
        text = self._session.prompt(prompt)
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class FileHistory(History):
    """The last messages, in a file that only its owner may read: a JSON string in each line.

    A line that is not one is the text itself. A file that cannot be read or written keeps nobody
    from typing.

    Args:
        path: The file; None keeps the history in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self._path = path

    def load_history_strings(self) -> Iterator[str]:
        """Yield the messages, the last first, and shorten a file that has become long."""
        lines: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            if self._path is not None:
                lines = self._path.read_text(encoding="utf-8").splitlines()
        if len(lines) > 2 * MAX_HISTORY:
            lines = lines[-MAX_HISTORY:]
            with contextlib.suppress(OSError):
                self._write("".join(f"{line}\n" for line in lines), os.O_TRUNC)
        for line in reversed(lines[-MAX_HISTORY:]):
            yield _decoded(line)

    def store_string(self, string: str) -> None:
        """Append a message."""
        with contextlib.suppress(OSError):
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                plain = string.isprintable() and not string.startswith('"')
                self._write(f"{string if plain else json.dumps(string)}\n", os.O_APPEND)

    def _write(self, text: str, flag: int) -> None:
        descriptor = os.open(str(self._path), os.O_CREAT | os.O_WRONLY | flag, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)


def _decoded(line: str) -> str:
    with contextlib.suppress(ValueError, RecursionError):
        if line.startswith('"') and isinstance(text := json.loads(line), str):
            return text
    return line


def history_path() -> Path | None:
    """Return the file of the history, or None for a user without a home."""
    try:
        return state_folder() / "chat_history"
    except RuntimeError:
        return None


class _CommandCompleter(Completer):
    """Completes the name of a command, and the path after one that takes a file."""

    def __init__(self, commands: list[str]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        name, space, rest = document.text_before_cursor.partition(" ")
        if space and name in FILE_COMMANDS:
            yield from self._paths.get_completions(Document(rest), event)
        elif not space and name:
            matches = (command for command in self._commands if command.startswith(name))
            yield from (Completion(f"{command} ", -len(name)) for command in matches)
