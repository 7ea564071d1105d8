"""`llcuda chat`: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli.answer import ENDED, end_of, show_text
from llcuda.cli.console import complete_model, examples, in_terminal, print_note
from llcuda.cli.options import TextOptions, takes_options, template_keys
from llcuda.cli.stdin import read_line
from llcuda.demo import DEMO_NAME
from llcuda.errors import (
    ArgumentError,
    ClosedError,
    ContextLengthError,
    DecodeAbortedError,
    LlcudaError,
)
from llcuda.progress import is_visible

if TYPE_CHECKING:
    from llcuda.cli.chat_commands import Conversation
    from llcuda.inference import InferenceEngine

app = typer.Typer()
QUOTES = '"""'  # around a message of several lines
OTHER_NAMES = {"/?": "/help", "/bye": "/exit", "/quit": "/exit", "/regenerate": "/retry"}
KEYS = (
    f"Ctrl-C stops an answer. A pasted text is one message; so are lines between {QUOTES} and"
    f" {QUOTES}.\nAlt-Enter, or \\ at the end of a line, continues a message in the next line."
)


@app.command(
    epilog=examples(
        "llcuda chat qwen2.5-1.5b", 'llcuda chat model.gguf --system "Answer in French."'
    )
)
@takes_options(TextOptions)
def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="GGUF file, short name (llcuda list --all), or repo/id.",
            autocompletion=complete_model,
        ),
    ] = DEMO_NAME,
    *,
    options: TextOptions,
) -> None:
    """Chat with a model; /help lists the commands, Ctrl-D leaves."""
    open_chat(model, options)


def open_chat(model: str, options: TextOptions) -> None:
    """Load a model and chat until the end of the input.

    Args:
        model: The model's name.
        options: The options of the command.
    """
    from llcuda.cli.chat_commands import Conversation
    from llcuda.inference import InferenceEngine

    parameters = options.generation()
    parameters["overflow"] = options.overflow or "drop"
    with InferenceEngine() as engine:
        repl = ChatREPL(engine, options, Conversation(options.system, parameters))
        repl.open(model)
        repl.run()
    if repl.has_failed:
        raise typer.Exit(1)


class ChatREPL:
    """Reads messages, runs those that begin with / as commands, and answers the others.

    Args:
        engine: The engine, which needs no model yet.
        options: How models are loaded.
        conversation: The messages and settings.

    Attributes:
        has_failed: Whether a line of a pipe was refused.
    """

    def __init__(
        self, engine: InferenceEngine, options: TextOptions, conversation: Conversation
    ) -> None:
        self.conversation = conversation
        self._engine = engine
        self._options = options
        self._template: str | None = None
        self._dropped = 0  # messages that the last answer did not see
        self._interactive = in_terminal()
        self.has_failed = False
        self._commands: dict[str, tuple[str, Callable[[str], str]]] = {
            **conversation.commands(),
            "/copy": ("copy the last answer to the clipboard", self._copy),
            "/exit": ("leave, like Ctrl-D", _nothing),
            "/help": ("show this list", self._help),
            "/model": ("NAME: continue with another model; without NAME: show it", self._model),
            "/retry": ("answer the last question again", self._retry),
        }

    def open(self, name: str) -> None:
        """Load a model in place of the one before.

        Args:
            name: The model's name.

        Raises:
            LlcudaError: It cannot be loaded, or cannot chat. The one before stays where possible.
        """
        from llcuda.chat.template import ChatTemplate
        from llcuda.hub.resolver import resolve
        from llcuda.structured import compile_response_format

        options = self._options
        path = resolve(name, progress=is_visible())
        if options.chat_template is None and not template_keys(path):
            raise ArgumentError(
                f"{path.name} has no chat template, so it cannot chat; give --chat-template FILE,"
                f" or continue a text: llcuda run {name} PROMPT"
            )
        template = options.template(path)
        self._dropped = 0
        options.load(self._engine, path)
        self._template = template
        ChatTemplate.of(self._engine.model, template)
        with options.format_errors():
            given = self.conversation.parameters.get("response_format")
            compile_response_format(self._engine.model, given)

    def run(self) -> None:
        """Run until /exit or the end of the input.

        Raises:
            ArgumentError: The input is binary data.
            KeyboardInterrupt: Ctrl-C, where nobody types.
        """
        read = self._reader()
        if self._interactive:
            print_note(f"{self._description()}\n/help for help, Ctrl-D to leave")
        while True:
            try:
                text = self._read(read)
                if split_command(text)[0] == "/exit":
                    return
                self._run(text)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print_note("(Ctrl-D leaves)")

    def _reader(self) -> Callable[[str], str]:
        """Return the function that reads a line, or a pasted text."""
        if not self._interactive:
            return lambda prompt: read_line()
        from llcuda.cli.line_editor import LineEditor  # imports prompt_toolkit

        return LineEditor(self._commands).read

    def _read(self, read: Callable[[str], str]) -> str:
        """Return the next message, of one line or of several."""
        text = read("> ")
        is_quoted = text.lstrip().startswith(QUOTES)
        if is_quoted:
            text = text.lstrip().removeprefix(QUOTES)
        with contextlib.suppress(EOFError):  # the end of the input ends the message
            while is_quoted and not text.rstrip().endswith(QUOTES):
                text += f"\n{read('. ')}"
            while not is_quoted and text.endswith("\\"):
                text = f"{text[:-1]}\n{read('. ')}"
        return text.rstrip().removesuffix(QUOTES).strip("\n") if is_quoted else text

    def _run(self, text: str) -> None:
        """Run a command, or answer a message; an error is a line, and the chat goes on."""
        name, rest = split_command(text)
        try:
            if name is None and text.strip():
                self._answer(self.conversation.messages, text)
            elif name in self._commands:
                if note := self._commands[name][1](rest):
                    print_note(note)
            elif name is not None:
                raise ArgumentError(f"{name}: no such command; /help lists them")
        except ClosedError:
            self._print_error("no model is loaded; /model NAME loads one")
        except ContextLengthError as error:
            drop = (
                ""
                if self.conversation.parameters.get("overflow") == "drop"
                else ", --overflow drop"
            )
            remedy = f"send less, or give a larger --ctx-size{drop} or --overflow shift"
            self._print_error(f"{error.problem}; {remedy}")
        except LlcudaError as error:
            self._print_error(str(error))

    def _print_error(self, text: str) -> None:
        """Print an error; where nobody types, the exit status says it too."""
        print_note(f"error: {text}")
        self.has_failed = not self._interactive

    def _help(self, rest: str) -> str:
        lines = [f"{name:<9} {purpose}" for name, (purpose, _) in sorted(self._commands.items())]
        return "\n".join([*lines, KEYS])

    def _retry(self, rest: str) -> str:
        self._answer(*self.conversation.last_question())
        return ""

    def _copy(self, rest: str) -> str:
        from llcuda.cli.clipboard import copy

        return copy(self.conversation.last_answer())

    def _model(self, rest: str) -> str:
        if rest:
            if self._options.adapter:
                print_note("(--adapter is for the model before, and is not applied to this one)")
                self._options = replace(self._options, adapter=None)
            self.open(rest)
        return self._description()

    def _description(self) -> str:
        engine = self._engine.engine
        return (
            f"{engine.model.path.name}, context of {engine.ctx_size:,} tokens"
            " (--ctx-size changes it)"
        )

    def _answer(self, before: list[dict[str, Any]], question: Any) -> None:
        """Show the answer as it comes; an answer that Ctrl-C stops stays in the conversation.

        Args:
            before: The messages before the question; later ones are replaced.
            question: The content of the question.
        """
        from llcuda.cli.markdown import answer_writer

        conversation = self.conversation
        messages = [*before, {"role": "user", "content": question}]
        engine = self._engine.engine
        chat = engine.chat(messages, template=self._template, **conversation.parameters)
        if chat.dropped_messages > self._dropped:
            print_note(
                f"(the context of {engine.ctx_size:,} tokens is full: the model no longer"
                f" sees the oldest {chat.dropped_messages} messages; --ctx-size makes it larger)"
            )
        self._dropped = chat.dropped_messages
        reason = ""
        with answer_writer() as writer:
            is_stopped = show_text(
                chat, engine.context, lambda delta: writer.add(delta.content, delta.reasoning)
            )
        with contextlib.suppress(DecodeAbortedError):  # by Ctrl-C, before the first token
            answer = chat.result()
            conversation.messages = [*messages, answer.message]
            conversation.last = answer.completion
            has_limit = "max_tokens" in conversation.parameters
            reason = end_of(answer.finish_reason, has_limit=has_limit)
        if is_stopped:
            print_note("(stopped)")
            if not self._interactive:
                raise KeyboardInterrupt
        elif reason in ENDED:
            print_note(f"({ENDED[reason]})")


def _nothing(rest: str) -> str:
    return ""


def split_command(text: str) -> tuple[str | None, str]:
    """Return the command that a message begins with and the rest; None for a message.

    A word with another slash is not a command: /usr/bin is text.

    Args:
        text: The message.
    """
    match = re.match(r"(/[\w?]*)(?:\s+|$)", text)
    if match is None:
        return None, text
    return OTHER_NAMES.get(match[1], match[1]), text[match.end() :].strip()
