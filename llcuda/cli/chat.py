"""`llcuda chat`; cli.py takes it in. Lines are edited by the standard library's readline."""

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

from llcuda.errors import ArgumentError, DecodeAbortedError, LlcudaError

if TYPE_CHECKING:
    from llcuda.cli.chat_commands import Conversation
    from llcuda.inference import InferenceEngine

app = typer.Typer()
MOST_LINES = 2000  # of the history
MOST_CONTEXT = 8192  # tokens, where the model allows it and none are asked for
HELP = {
    "/help": "this list",
    "/regenerate": "answer the last question again",
    "/exit": "leave; so does Ctrl-D",
}
KEYS = "Ctrl-C stops an answer; a line that ends with \\ goes on in the next one"


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
    seed: Annotated[int | None, typer.Option(help="For the same answers again.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", help="Of an answer; default: what fits.")
    ] = None,
    ctx_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the conversation; default: 8,192 at most.")
    ] = None,
    gpu_layers: Annotated[int | None, typer.Option(min=0, help="Default: all that fit.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: every processor.")] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="A Jinja file, or the name of one of the model's templates.")
    ] = None,
) -> None:
    """Talk with a model. /help says what there is besides."""
    from llcuda.chat.template import ChatTemplate
    from llcuda.cli.chat_commands import Conversation
    from llcuda.engine.request import request_params
    from llcuda.hub import registry as hub
    from llcuda.inference import InferenceEngine
    from llcuda.native.estimate import read_facts
    from llcuda.progress import is_visible

    asked = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    parameters = {name: value for name, value in asked.items() if value is not None}
    request_params(parameters)
    template = _template(chat_template)
    path = hub.resolve(model, progress=is_visible())
    size = ctx_size or min(MOST_CONTEXT, read_facts(path).train_ctx_size or MOST_CONTEXT)
    given: dict[str, Any] = {} if threads is None else {"threads": threads}
    with InferenceEngine() as engine:
        engine.load_model(path, ctx_size=size, gpu_layers=gpu_layers, silent=True, **given)
        ChatTemplate.of(engine.model, template)
        talk = Talk(engine, Conversation(system, parameters), template)
        with _edited(["/help", "/regenerate", "/exit", *talk.conversation.commands()]):
            talk.run()


class Talk:
    """Reads lines, obeys those that begin with /, and answers the others."""

    def __init__(
        self, engine: InferenceEngine, conversation: Conversation, template: str | None
    ) -> None:
        self.conversation = conversation
        self._engine = engine
        self._template = template
        self._seen = sys.stdin.isatty() and sys.stdout.isatty()

    def run(self) -> None:
        """Go on until /exit or the end of the input."""
        if self._seen:
            print(f"{self._engine.model.path.name}; /help for help, Ctrl-D to leave")
        while True:
            try:
                text = self._read()
                if text.strip() == "/exit":
                    return
                self._do(text)
            except EOFError:
                if self._seen:
                    print()
                return
            except KeyboardInterrupt:
                if not self._seen:
                    raise
                print("\n(Ctrl-D leaves)")
            except LlcudaError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)

    def _read(self) -> str:
        """Return the next message, of one line or of several."""
        lines = [input("> " if self._seen else "")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input(". " if self._seen else ""))
        return "\n".join(lines)

    def _do(self, text: str) -> None:
        if not text.strip():
            return
        if not text.startswith("/"):
            self._answer(self.conversation.messages, text)
            return
        name, _, rest = text.partition(" ")
        commands = self.conversation.commands()
        if name == "/help":
            lines = {**{key: said for key, (said, _) in commands.items()}, **HELP}
            print("\n".join(f"{key:<12} {lines[key]}" for key in sorted(lines)))
            print(KEYS)
        elif name == "/regenerate":
            self._answer(*self.conversation.asked())
        elif name in commands:
            print(commands[name][1](rest.strip()))
        else:
            raise ArgumentError(f"no command {name}; /help lists them")

    def _answer(self, before: list[dict[str, Any]], question: Any) -> None:
        """Show the answer as it comes; what Ctrl-C leaves of it is part of the conversation.

        before: the messages before the question; those after them are replaced.
        """
        from llcuda.cli.markdown import screen

        talk = self.conversation
        messages = [*before, {"role": "user", "content": question}]
        written = self._engine.chat(messages, template=self._template, **talk.parameters)
        begun = stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True
            written.cancel()
            if not begun:  # a long prompt takes many seconds
                self._engine.engine.context.cancel()

        reason = ""
        with _at_ctrl_c(stop), screen() as shown, contextlib.suppress(DecodeAbortedError):
            for delta in written:
                begun = True
                shown.add(delta.content, delta.reasoning)
            made = written.result()
            reason = made.finish_reason
            talk.messages = [*messages, made.message]
            talk.last = made.completion
        if stopped:
            print("(stopped)", file=sys.stderr, flush=True)
            if not self._seen:
                raise KeyboardInterrupt
        elif reason in ("length", "context", "timeout"):
            print(f"(ended: {reason})", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _at_ctrl_c(work: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C call `work` in a thread of its own: no lock that is held here is torn apart."""
    pressed: queue.SimpleQueue[bool] = queue.SimpleQueue()  # put() may interrupt put()

    def wait() -> None:
        if pressed.get():
            work()

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
    """Return a template's text where a file is named, else the name."""
    file = Path(given) if given else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else given


@contextlib.contextmanager
def _edited(commands: list[str]) -> Iterator[None]:
    """Let lines be edited, completed and found again, in a terminal, with a history that stays."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if not sys.stdin.isatty():
        yield
        return
    import readline

    from llcuda.files import state_folder

    def match(text: str, number: int) -> str | None:
        found = [name for name in commands if text and name.startswith(text)]
        return f"{found[number]} " if number < len(found) else None

    readline.set_completer(match)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(MOST_LINES)
    path = state_folder() / "chat_history"
    with contextlib.suppress(OSError):  # none yet
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk that is full or read-only takes no history
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.write_history_file(path)
