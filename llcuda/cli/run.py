"""`llcuda run`: one answer or one continuation; without a prompt, a chat."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli.answer import ENDED, end_of, show_text
from llcuda.cli.chat import open_chat
from llcuda.cli.console import INTERRUPTED, complete_model, examples, is_terminal, print_note
from llcuda.cli.options import CHAT, FORMAT, TextOptions, takes_options, template_keys
from llcuda.cli.stdin import read_stdin
from llcuda.demo import DEMO_NAME
from llcuda.errors import ArgumentError, LlcudaError, ModelNotFoundError
from llcuda.files import path_exists

if TYPE_CHECKING:
    from llcuda.chat.session import Chat
    from llcuda.engine.engine import Engine
    from llcuda.engine.request import Request

app = typer.Typer()
CONTINUATION_TOKENS = 256  # of a continuation, which seldom ends by itself
ADDED_TOKENS = 16  # that a model adds to a text at most: its beginning and its end
TEMPLATE_TOKENS = 1024  # that a chat template adds at most, for the size of a small context
MAX_NAME = 250  # characters
MIN_NEAR = 2  # characters; only a longer word may be a model's name with a typing error
WAIT_SECONDS = 2.0  # for stdin beside a prompt, before a note says that it is read


@app.command(
    epilog=examples(
        'llcuda run qwen2.5-1.5b "Why is the sky blue?"',
        'cat notes.txt | llcuda run model.gguf "Summarise:"',
        'llcuda run model.gguf "Once upon a time" --raw -n 100',
    )
)
@takes_options(TextOptions)
def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL PROMPT",
            show_default=False,
            autocompletion=complete_model,
            help="The model: a GGUF file, a short name (llcuda list --all) or repo/id; by default"
            " the demo model. Then the prompt: further words; what stdin has is appended to it. A"
            " single argument is the model if it names one, otherwise the prompt.",
        ),
    ] = None,
    *,
    options: TextOptions,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="The model; all arguments are the prompt then.",
            autocompletion=complete_model,
        ),
    ] = None,
    prompt_text: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="The prompt, as llama-cli has it; the only argument is the model then.",
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Continue the prompt, without the chat template.", rich_help_panel=CHAT
        ),
    ] = False,
    echo: Annotated[
        bool,
        typer.Option(
            "--echo",
            help="Show the prompt before its continuation (as --raw).",
            rich_help_panel=CHAT,
        ),
    ] = False,
    special: Annotated[
        bool | None,
        typer.Option(
            "--special/--no-special",
            help="Whether control tokens in the prompt, e.g. <|im_end|>, are read as such (as"
            " --raw, which reads them).",
            show_default=False,
            rich_help_panel=CHAT,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON document with text and timings.",
            rich_help_panel=FORMAT,
        ),
    ] = False,
) -> None:
    """Answer a prompt, or open a chat if there is none.

    A model with a chat template answers, another one continues the prompt. Ctrl-C stops the text
    and keeps what there is.
    """
    from llcuda.hub.own_names import own_names
    from llcuda.hub.registry import near_names
    from llcuda.hub.resolver import resolve
    from llcuda.inference import InferenceEngine
    from llcuda.progress import is_visible

    raw = raw or echo or special is not None
    name, given = _model_and_prompt(words or [], model, prompt_text)
    parameters = options.generation()
    try:
        path = resolve(name, progress=is_visible() and not as_json)
    except ModelNotFoundError as error:
        near = near_names(name, [DEMO_NAME, *own_names()]) if len(name) > MIN_NEAR else []
        is_given = model is not None or len(words or []) < 2
        if is_given or near or "/" in name or path_exists(Path(name)) or _names_model(name):
            raise
        hint = "the first of several words is the model; put a prompt in quotes, or give -m MODEL"
        raise ModelNotFoundError(f"{error}; {hint}") from None
    prompt = _prompt(given, options)
    if prompt is None:
        if raw or as_json:
            raise ArgumentError("PROMPT is missing; give a text, e.g.: llcuda run demo 'One day'")
        open_chat(name, options)
        return
    if not raw and options.chat_template is None and not template_keys(path):
        if options.system:
            raise ArgumentError(
                f"--system: {path.name} has no chat template, which a system prompt needs; give"
                " --chat-template FILE, or leave --system out"
            )
        raw = True
        print_note(
            f"{path.name} has no chat template, so it continues the text (--raw omits this line)"
        )
    if raw:
        _check_continuation(options)
    template = options.template(path)
    with InferenceEngine() as engine:
        options.load(engine, path, _needed_tokens(prompt, options, raw=raw))
        handle: Chat[Any] | Request
        if raw:
            handle = _continue(engine.engine, prompt, options, parameters, special is not False)
        else:
            handle = _answer(engine.engine, prompt, options, template, parameters)
        if echo and not as_json:
            print(prompt.decode(errors="replace"), end="")
        is_stopped = _show(engine.engine, handle, parameters, as_json=as_json)
    if is_stopped:
        raise typer.Exit(INTERRUPTED)


def _model_and_prompt(
    words: list[str], model: str | None, prompt: str | None
) -> tuple[str, str | None]:
    """Return the model's name and the prompt, None without one.

    Args:
        words: The arguments.
        model: What --model gives.
        prompt: What --prompt gives.
    """
    if "" in words or prompt == "":
        raise ArgumentError("PROMPT is empty; give a text")
    if prompt is not None:
        if model is None:
            model, *words = words or [DEMO_NAME]
        if words:
            rule = f"the prompt is also given as {shlex.join(words)}"
            raise ArgumentError(f"--prompt: {rule}; leave out one of them")
        return model, prompt
    if model is None and (len(words) > 1 or (words and _names_model(words[0]))):
        model, *words = words
    elif model is None and words and len(words[0].split()) == 1 and words[0] != "-":
        print_note(
            f"no model is named {words[0]!r}, so it is a prompt for the demo model"
            " (llcuda run MODEL PROMPT)"
        )
    return model or DEMO_NAME, " ".join(words) if words else None


def _names_model(word: str) -> bool:
    """Return whether the single argument is a model, or looks so much like one that it is asked."""
    from llcuda.hub.names import local_text
    from llcuda.hub.registry import near_names
    from llcuda.hub.resolver import parse

    if path_exists(Path(word)) and Path(word).is_file():
        return True
    if len(word) > MAX_NAME or not re.fullmatch(r"[\w.~/:@=%+-]+", word, re.ASCII):
        return word.lower().endswith(".gguf")
    try:
        parse(word, notes=False)
    except ModelNotFoundError:
        return local_text(word) is not None or (len(word) > MIN_NEAR and bool(near_names(word)))
    except LlcudaError:  # a path or an address that is not a model
        return True
    return True


def _prompt(given: str | None, options: TextOptions) -> bytes | None:
    """Return the prompt with what stdin has; None if a chat has to ask for it.

    It is bytes, so that the tokenizer gets exactly those of stdin.
    """
    if given is None or given == "-":
        if given is None and is_terminal(sys.stdin):
            return None
        if not (text := read_stdin()):
            raise ArgumentError("stdin is empty; give a text, e.g.: llcuda run demo 'One day'")
        return text
    prompt = given.encode("utf-8", "surrogateescape")
    if is_terminal(sys.stdin) or _is_an_option(options):
        return prompt
    _note_wait()
    text = read_stdin()
    return prompt + b"\n\n" + text if text else prompt


def _is_an_option(options: TextOptions) -> bool:
    """Return whether stdin is the file of an option, such as --grammar /dev/stdin."""
    try:
        here = os.fstat(0)
    except OSError:  # closed
        return False
    return any(os.path.samestat(here, path.stat()) for path in options.files())


def _note_wait() -> None:
    """Say that stdin is read when a pipe has nothing for some time, to somebody who watches."""
    if sys.stdin is not None and is_terminal(sys.stderr):
        ready, _, _ = select.select([sys.stdin], [], [], WAIT_SECONDS)
        if not ready:
            print_note("reading stdin, to append it to the prompt (</dev/null: nothing)")


def _check_continuation(options: TextOptions) -> None:
    """Refuse the options of messages."""
    given = {"--system": options.system, "--chat-template": options.chat_template}
    for option, value in given.items():
        if value is not None:
            raise ArgumentError(f"{option}: a continuation has no chat template; leave it out")
    if options.overflow == "drop":
        raise ArgumentError("--overflow drop: only a chat has turns; give error or shift")


def _needed_tokens(prompt: bytes, options: TextOptions, *, raw: bool) -> int | None:
    """Return how many tokens prompt and text have at most, or None without a limit.

    A text has at most as many tokens as bytes, and those that the model adds to each text.
    """
    if raw:
        return len(prompt) + ADDED_TOKENS + (options.max_tokens or CONTINUATION_TOKENS)
    if options.max_tokens is None:
        return None
    return len(prompt) + len(options.system or "") + TEMPLATE_TOKENS + options.max_tokens


def _continue(
    engine: Engine, prompt: bytes, options: TextOptions, parameters: dict[str, Any], special: bool
) -> Request:
    """Queue the continuation of a prompt."""
    from llcuda.engine.engine import tokenize_prompt

    tokens = tokenize_prompt(engine.model, prompt, special, engine.ctx_size)
    parameters = {"max_tokens": CONTINUATION_TOKENS, **parameters}
    with options.format_errors():
        return engine.submit(tokens, overflow=options.overflow or "error", **parameters)


def _answer(
    engine: Engine,
    prompt: bytes,
    options: TextOptions,
    template: str | None,
    parameters: dict[str, Any],
) -> Chat[Any]:
    """Queue the answer to a prompt."""
    messages = [{"role": "user", "content": prompt.decode(errors="replace")}]
    if options.system:
        messages.insert(0, {"role": "system", "content": options.system})
    overflow = options.overflow or "error"
    with options.format_errors():
        return engine.chat(messages, template=template, overflow=overflow, **parameters)


def _show(
    engine: Engine, handle: Chat[Any] | Request, parameters: dict[str, Any], *, as_json: bool
) -> bool:
    """Print a text, or its document, and return whether Ctrl-C stopped it."""
    from llcuda.cli.markdown import PlainWriter, answer_writer
    from llcuda.engine.request import Request

    is_raw = isinstance(handle, Request)
    request: Any = handle if is_raw else handle.request  # type: ignore[union-attr]
    contents: list[str] = []
    reasoning: list[str] = []
    with contextlib.ExitStack() as stack:
        writer: Any = None
        if not as_json:
            writer = stack.enter_context(PlainWriter() if is_raw else answer_writer())

        def show(piece: Any) -> None:
            content, thoughts = (piece, "") if is_raw else (piece.content, piece.reasoning)
            contents.append(content)
            reasoning.append(thoughts)
            if writer is not None:
                writer.add(content, thoughts)

        is_stopped = show_text(handle, engine.context, show)
    if is_stopped:
        reason = "interrupted"
    else:
        reason = end_of(
            request.result().finish_reason, has_limit=is_raw or "max_tokens" in parameters
        )
    if as_json:
        document = {
            "model": str(engine.model.path),
            "text": "".join(contents),
            **({"reasoning": "".join(reasoning)} if any(reasoning) else {}),
            "tokens_generated": len(request.tokens),
            "prompt_tokens": request.prompt_tokens,
            "finish_reason": reason,
            "seed": request.seed,
            "timings": engine.context.timings.as_dict(),
        }
        print(json.dumps(document, ensure_ascii=False))
    elif reason == "context":
        print_note(f"({ENDED[reason]})")
    return is_stopped
