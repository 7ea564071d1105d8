"""Shared parts of the commands: terminals, the status line, notes, errors, Ctrl-C, examples."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
PIPE_WIDTH = 120  # columns where stdout is not a terminal, so that tables are not cut

MODEL = "Model"  # heading of the options that say how a model is loaded


def stdout_console(pipe_width: int = PIPE_WIDTH, *, quiet: bool = False) -> Console:
    """Return a console on stdout that does not colour values.

    Args:
        pipe_width: Columns where stdout is not a terminal.
        quiet: Whether to print nothing.
    """
    from rich.console import Console

    return Console(
        quiet=quiet, highlight=False, width=None if is_terminal(sys.stdout) else pipe_width
    )


def show_status(activity: str, share: float | None = None) -> None:
    """Replace the status line on stderr, which only a terminal shows.

    Args:
        activity: What the program does now; "" erases the line.
        share: How much of it is done, 0.0 to 1.0.
    """
    if is_terminal(sys.stderr):
        text = activity if share is None else f"{activity} {share:.0%}"
        print(f"\r{text[:78]:<78}\r", end="", file=sys.stderr, flush=True)


def in_terminal() -> bool:
    """Return whether a person types at stdin and reads stdout."""
    return is_terminal(sys.stdin) and is_terminal(sys.stdout)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is a terminal; a closed one is None."""
    return stream is not None and stream.isatty()


def draws() -> bool:
    """Return whether stdout is a terminal that can move its cursor."""
    return is_terminal(sys.stdout) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def examples(*commands: str) -> str:
    """Return the end of a command's help: lines that can be typed.

    Args:
        commands: The lines.
    """
    heading = "Examples:" if len(commands) > 1 else "Example:"
    lines = (command.replace("[", "\\[") for command in commands)  # rich's markup
    return "\n\n".join([heading, *lines])


COMPLETE = "_LLCUDA_COMPLETE"  # the variable by which a shell asks for completions
AT_FIRST_TAB = '[[ $zsh_eval_context[-1] = loadautofunc ]] && _llcuda_completion "$@"'
PREFIX = "_LLCUDA_PREFIX"  # what bash has split off the word that is completed


def complete_model(incomplete: str) -> list[str]:
    """Return the models that a shell completes: names, GGUF files and folders.

    Args:
        incomplete: The beginning of a name or path.
    """
    from llcuda.demo import DEMO_NAME
    from llcuda.errors import LlcudaError
    from llcuda.hub.installed import installed_models
    from llcuda.hub.registry import registry

    prefix = os.environ.get(PREFIX, "")
    incomplete = prefix + incomplete
    models = dict.fromkeys(entry.model for entry in registry().values())
    here: list[str] = []
    with contextlib.suppress(LlcudaError, OSError):
        here = [model.name for model in installed_models()]
    names = dict.fromkeys([DEMO_NAME, *here, *models, *registry()])
    matches = [name for name in names if name.startswith(incomplete)]
    folder, _, beginning = incomplete.rpartition("/")
    parent = Path(f"{folder}/" if "/" in incomplete else ".").expanduser()
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        for path in sorted(parent.iterdir()):
            if path.name.startswith(beginning) and (path.is_dir() or path.suffix == ".gguf"):
                start = incomplete[: len(incomplete) - len(beginning)]
                matches.append(f"{start}{path.name}{'/' if path.is_dir() else ''}")
    return [match[len(prefix) :] for match in matches]


def join_bash_words() -> None:
    """Join the words that bash splits at a colon, such as those of repo/id:Q4_K_M, to complete."""
    if os.environ.get(COMPLETE) != "complete_bash":
        return
    asked = os.environ.get("COMP_WORDS", "").split("\n")
    asked = asked[: int(os.environ.get("COMP_CWORD", "0")) + 1]
    words: list[str] = []
    for i, word in enumerate(asked):
        if i > 1 and (word.startswith(":") or asked[i - 1].endswith(":")):
            words[-1] += word
        else:
            words.append(word)
    prefix, colon, last = words[-1].rpartition(":")
    os.environ[PREFIX] = prefix + colon if len(words) < len(asked) else ""
    if os.environ[PREFIX]:
        os.environ["COMP_WORDS"] = "\n".join([*words[:-1], last])
        os.environ["COMP_CWORD"] = str(len(words) - 1)


def mend_zsh_completion() -> None:
    """Have the file that typer installs for zsh complete at the first Tab, not only define how."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home
        path = Path.home() / ".zfunc" / "_llcuda"
        text = path.read_text(encoding="utf-8")
        if AT_FIRST_TAB not in text:
            path.write_text(f"{text}\n{AT_FIRST_TAB}\n", encoding="utf-8")


def print_note(message: str) -> None:
    """Print a line on stderr, where it cannot be taken for a model's text."""
    print(message, file=sys.stderr, flush=True)


def print_error(message: str) -> None:
    """Print a message on stderr, after the word "error"."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(message)}")


@contextlib.contextmanager
def on_ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """Call a function on the first Ctrl-C; a second one raises KeyboardInterrupt.

    Args:
        action: The function. It is called in another thread, because a lock that this one holds
            may be needed.
    """
    pressed: queue.SimpleQueue[bool] = queue.SimpleQueue()  # put() may interrupt put()

    def wait() -> None:
        if pressed.get():
            action()

    def press(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        pressed.put(True)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        pressed.put(False)
        thread.join()
