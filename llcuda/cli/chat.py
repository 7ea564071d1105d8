"""The command `llcuda chat`; lines are edited by the standard library's readline."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli.console import DecodeThreads
from llcuda.errors import ArgumentError, DecodeAbortedError, LlcudaError

if TYPE_CHECKING:
    from llcuda.cli.chat_commands import Conversation
    from llcuda.inference import InferenceEngine

app = typer.Typer()
MAX_HISTORY = 2000  # lines
DEFAULT_CONTEXT = 8192  # tokens, if the model was trained on as many
HELP = {
    "/help": "show this list",
    "/regenerate": "answer the last question again",
    "/exit": "leave, like Ctrl-D",
}
KEYS = "Ctrl-C stops an answer; a line that ends with \\ continues in the next one"


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(help="GGUF file, short name (llcuda list), or repo/id.")
    ] = "demo",
    system: Annotated[str | None, typer.Option("--system", "-s", help="System prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Default: 0.7.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Default: 40.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: 0.9.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Default: 0.")] = None,
    repeat_penalty: Annotated[float | None, typer.Option(help="Default: 1, off.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sampling, to repeat answers.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", "-n", help="Of an answer; default: the context's rest."),
    ] = None,
    ctx_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the conversation; default: up to 8,192.")
    ] = None,
    gpu_layers: Annotated[int | None, typer.Option(min=0, help="Default: all that fit.")] = None,
    threads: DecodeThreads = None,
    chat_template: Annotated[
        str | None, typer.Option(help="A Jinja file, or the name of one of the model's templates.")
    ] = None,
) -> None:
    """Chat with a model; /help lists the commands."""
    from llcuda.chat.template import ChatTemplate
    from llcuda.cli.chat_commands import Conversation
    from llcuda.engine.request import request_params
    from llcuda.hub.resolver import resolve
    from llcuda.inference import InferenceEngine
    from llcuda.native.estimate import read_facts
    from llcuda.progress import is_visible

    options = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    parameters = {name: value for name, value in options.items() if value is not None}
    request_params(parameters)
    template = _template(chat_template)
    path = resolve(model, progress=is_visible())
    size = ctx_size or min(DEFAULT_CONTEXT, read_facts(path).train_ctx_size or DEFAULT_CONTEXT)
    load_options: dict[str, Any] = {} if threads is None else {"threads": threads}
    with InferenceEngine() as engine:
        engine.load_model(path, ctx_size=size, gpu_layers=gpu_layers, silent=True, **load_options)
        ChatTemplate.of(engine.model, template)
        repl = ChatREPL(engine, Conversation(system, parameters), template)
        with _line_editing(["/help", "/regenerate", "/exit", *repl.conversation.commands()]):
            repl.run()


class ChatREPL:
    """Reads lines, runs those that begin with / as commands, and answers the others.

    Args:
        engine: The engine, with a loaded model.
        conversation: The messages and settings.
        template: The name or the text of the chat template, None for the main one.
    """

    def __init__(
        self, engine: InferenceEngine, conversation: Conversation, template: str | None
    ) -> None:
        self.conversation = conversation
        self._engine = engine
        self._template = template
        self._interactive = sys.stdin.isatty() and sys.stdout.isatty()

    def run(self) -> None:
        """Run until /exit or the end of the input."""
        if self._interactive:
            print(f"{self._engine.model.path.name}; /help for help, Ctrl-D to leave")
        while True:
            try:
                text = self._read()
                if text.strip() == "/exit":
                    return
                self._run_line(text)
            except EOFError:
                if self._interactive:
                    print()
                return
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print("\n(Ctrl-D leaves)")
            except LlcudaError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)

    def _read(self) -> str:
        """Return the next message, of one line or of several."""
        lines = [input("> " if self._interactive else "")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input(". " if self._interactive else ""))
        return "\n".join(lines)

    def _run_line(self, text: str) -> None:
        if not text.strip():
            return
        if not text.startswith("/"):
            self._answer(self.conversation.messages, text)
            return
        name, _, rest = text.partition(" ")
        commands = self.conversation.commands()
        if name == "/help":
            purposes = {**{key: purpose for key, (purpose, _) in commands.items()}, **HELP}
            print("\n".join(f"{key:<12} {purposes[key]}" for key in sorted(purposes)))
            print(KEYS)
        elif name == "/regenerate":
            self._answer(*self.conversation.last_question())
        elif name in commands:
            print(commands[name][1](rest.strip()))
        else:
            raise ArgumentError(f"{name}: no such command; /help lists them")

    def _answer(self, before: list[dict[str, Any]], question: Any) -> None:
        """Show the answer as it comes; an answer that Ctrl-C stops stays in the conversation.

        Args:
            before: The messages before the question; later ones are replaced.
            question: The content of the question.
        """
        from llcuda.cli.markdown import answer_writer

        conversation = self.conversation
        messages = [*before, {"role": "user", "content": question}]
        chat = self._engine.chat(messages, template=self._template, **conversation.parameters)
        begun = stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True
            chat.cancel()
            if not begun:  # a step of a long prompt takes seconds
                self._engine.engine.context.cancel()

        reason = ""
        with _on_ctrl_c(stop), answer_writer() as writer, contextlib.suppress(DecodeAbortedError):
            for delta in chat:
                begun = True
                writer.add(delta.content, delta.reasoning)
            answer = chat.result()
            reason = answer.finish_reason
            conversation.messages = [*messages, answer.message]
            conversation.last = answer.completion
        if stopped:
            print("(stopped)", file=sys.stderr, flush=True)
            if not self._interactive:
                raise KeyboardInterrupt
        elif reason in ("length", "context", "timeout"):
            print(f"(ended: {reason})", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _on_ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` on Ctrl-C, in another thread: a lock that this one holds may be needed."""
    pressed: queue.SimpleQueue[bool] = queue.SimpleQueue()  # put() may interrupt put()

    def wait() -> None:
        if pressed.get():
            action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.put(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        pressed.put(False)
        thread.join()


def _template(given: str | None) -> str | None:
    """Return the text of a template when `given` is a file, else `given`."""
    file = Path(given) if given else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else given


@contextlib.contextmanager
def _line_editing(commands: list[str]) -> Iterator[None]:
    """In a terminal, edit and complete lines, and keep their history in a file."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if not sys.stdin.isatty():
        yield
        return
    import readline

    from llcuda.files import atomic_write, state_folder

    def match(text: str, number: int) -> str | None:
        matches = [name for name in commands if text and name.startswith(text)]
        return f"{matches[number]} " if number < len(matches) else None

    readline.set_completer(match)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(MAX_HISTORY)
    path = state_folder() / "chat_history"
    with contextlib.suppress(OSError):  # none yet
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk that is full or read-only takes no history
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            with atomic_write(path) as partial:
                readline.write_history_file(partial)
