"""`llcuda run`: continues a text."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli.console import INTERRUPTED, DecodeThreads
from llcuda.errors import ArgumentError, ContextLengthError, DecodeAbortedError

if TYPE_CHECKING:
    from llcuda.engine.engine import Engine
    from llcuda.engine.request import Request
    from llcuda.params import ModelParams

app = typer.Typer()


@app.command()
def run(
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; - or nothing reads stdin.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="GGUF file, short name (llcuda list), or repo/id.")
    ] = "demo",
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 = always the most probable token.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Keep the k most probable tokens; 0 = all.")] = 40,
    top_p: Annotated[
        float, typer.Option(help="Keep the most probable tokens up to this sum.")
    ] = 0.9,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens below this share of the best one.")
    ] = 0.0,
    repeat_penalty: Annotated[float, typer.Option(help="1 = off.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Gives the same text again.")] = None,
    grammar: Annotated[
        Path | None, typer.Option(help="GBNF file to follow.", exists=True, dir_okay=False)
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="JSON schema to follow.", exists=True, dir_okay=False)
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Regular expression for the whole text.")
    ] = None,
    ctx_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens of context; default: as many as needed.")
    ] = None,
    gpu_layers: Annotated[
        int | None, typer.Option(min=0, help="Layers on the GPU; default: all that fit.")
    ] = None,
    threads: DecodeThreads = None,
    echo: Annotated[bool, typer.Option("--echo", help="Show the prompt before its text.")] = False,
    special: Annotated[
        bool,
        typer.Option(
            "--special/--no-special", help="Read control tokens in the prompt, e.g. <|im_end|>."
        ),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document with timings instead.")
    ] = False,
) -> None:
    """Continue a text, token by token. Ctrl-C stops and keeps the text so far."""
    from llcuda.engine.engine import Engine, tokenize_prompt
    from llcuda.engine.request import RequestParams
    from llcuda.hub.resolver import resolve
    from llcuda.native.model import Model
    from llcuda.native.prompt_length import too_long
    from llcuda.params import SamplingParams
    from llcuda.progress import is_visible

    text = _prompt(prompt)
    response_format = _response_format(json_schema, regex)
    params = RequestParams(max_tokens=max_tokens)
    sampling = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
        grammar=grammar.read_text(encoding="utf-8") if grammar else None,
    )
    show_bar = is_visible() and not as_json
    path = resolve(model, progress=show_bar)
    # Only the loaded model can count tokens. A text has hardly more of them than characters.
    model_params = place_layers(path, gpu_layers, ctx_size, len(text) + max_tokens)
    with Model(path, params=model_params, progress=show_bar) as loaded:
        try:
            tokens = tokenize_prompt(loaded, text, special, ctx_size or loaded.train_ctx_size)
            size = ctx_size or min(len(tokens) + max_tokens, loaded.train_ctx_size)
            if len(tokens) >= size:
                raise too_long(len(tokens), size)
        except ContextLengthError as error:
            remedy = "give a shorter prompt or a larger --ctx-size"
            raise ArgumentError(f"{error.problem}; {remedy}") from None
        with Engine(loaded, ctx_size=size, threads=threads) as engine:
            try:
                request = engine.submit(tokens, params, sampling, response_format=response_format)
            except ArgumentError as error:
                if error.parameter != "response_format":
                    raise
                option = "--json-schema" if regex is None else "--regex"
                problem = error.problem.removeprefix("response_format: ")
                raise ArgumentError(f"{option}: {problem}", remedy=error.remedy) from None
            if echo and not as_json:
                print(text if isinstance(text, str) else text.decode(errors="replace"), end="")
            generated, reason = stream_text(engine, request, silent=as_json)
            if as_json:
                document = _document(engine, request, generated, reason)
                print(json.dumps(document, ensure_ascii=False))
    if reason == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _prompt(argument: str | None) -> str | bytes:
    """Return the prompt; from stdin as bytes, so that the tokenizer gets exactly those."""
    if argument == "":
        raise ArgumentError("PROMPT is empty; give a text to continue")
    if argument is not None and argument != "-":
        return argument
    if sys.stdin.isatty():
        raise ArgumentError("give a text to continue, e.g.: llcuda run 'Once upon a time'")
    text = sys.stdin.buffer.read().removesuffix(b"\n")
    if not text:
        raise ArgumentError("stdin is empty; give a text to continue")
    return text


def _response_format(schema: Path | None, regex: str | None) -> dict[str, Any] | None:
    if schema is None:
        return None if regex is None else {"type": "regex", "regex": regex}
    if regex is not None:
        raise ArgumentError("give --json-schema or --regex, not both")
    try:
        document = json.loads(schema.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ArgumentError(f"--json-schema {schema}: is not JSON: {error}") from None
    return {"type": "json_schema", "json_schema": {"schema": document}}


def place_layers(
    path: Path, gpu_layers: int | None, ctx_size: int | None, max_tokens: int
) -> ModelParams:
    """Return parameters that put layers on GPUs, by default as many as fit beside the context.

    Args:
        path: The model's file.
        gpu_layers: The number of layers on GPUs; None is as many as fit.
        ctx_size: Tokens of context; None is `max_tokens`, at most what the model was trained on.
        max_tokens: Tokens of the prompt and the answer at most.
    """
    from llcuda.native import library
    from llcuda.params import ModelParams

    if gpu_layers is not None:
        return ModelParams(gpu_layers=gpu_layers)
    from llcuda.device import check_gpu_compatibility
    from llcuda.engine.autofit import fit, log_unused_gpu

    if all(device.kind != "gpu" for device in library.devices()):
        log_unused_gpu(check_gpu_compatibility())
        return ModelParams()
    from llcuda.engine.config import EngineConfig
    from llcuda.native.estimate import read_facts

    config = EngineConfig.from_kwargs(
        ctx_size=ctx_size or min(max_tokens, read_facts(path).train_ctx_size)
    )
    return fit(config, path).config.model


def stream_text(engine: Engine, request: Request, *, silent: bool) -> tuple[str, str]:
    """Print the text of a request while it is generated; Ctrl-C cancels the request.

    Args:
        engine: The engine of the request.
        request: The request to read.
        silent: Whether to print nothing.

    Returns:
        The whole text and the reason of its end, "interrupted" after Ctrl-C.
    """
    pieces = []

    def read() -> None:
        for piece in request:
            pieces.append(piece)
            if not silent:
                print(piece, end="", flush=True)

    try:
        read()
        reason = request.result().finish_reason
    except KeyboardInterrupt:
        request.cancel()
        engine.context.cancel()  # a long prompt decodes for many seconds
        with contextlib.suppress(DecodeAbortedError):
            read()
        reason = "interrupted"
    if not silent:
        print(flush=True)
    return "".join(pieces), reason


def _document(engine: Engine, request: Request, text: str, reason: str) -> dict[str, Any]:
    """Return the document of --json."""
    return {
        "model": str(engine.model.path),
        "text": text,
        "tokens_generated": len(request.tokens),
        "prompt_tokens": request.prompt_tokens,
        "finish_reason": reason,
        "seed": request.seed,
        "timings": engine.context.timings.as_dict(),
    }
