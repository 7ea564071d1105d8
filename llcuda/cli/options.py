"""The options that `run` and `chat` share, each declared once, and the model that they load."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from llcuda.cli.console import MODEL
from llcuda.cli.settings import ONE_TEXT, Config, takes_settings
from llcuda.cli.texts import option_text
from llcuda.errors import ArgumentError, LlcudaError
from llcuda.files import path_exists

if TYPE_CHECKING:
    from llcuda.inference import InferenceEngine

Options = TypeVar("Options")

CHAT, FORMAT, SAMPLING = "Chat", "Length and format", "Sampling"
OVERFLOWS = ("drop", "error", "shift")


def takes_options(kind: type[Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the fields of a dataclass as options.

    The command gets them as one object, its argument `options`, whose field `settings` has what
    was given of `ONE_TEXT`.

    Args:
        kind: The dataclass, whose annotations are typer's.
    """
    hints = get_type_hints(kind, include_extras=True)
    del hints["settings"]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(settings: dict[str, Any], **arguments: Any) -> None:
            given = {"settings": settings, **{name: arguments.pop(name) for name in hints}}
            function(options=kind(**given), **arguments)

        own = inspect.signature(function, eval_str=True).parameters.values()
        shared = [
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=item.default,
                annotation=hints[item.name],
            )
            for item in fields(kind)  # type: ignore[arg-type]
            if item.name in hints
        ]
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in (*(p for p in own if p.name != "options"), *shared)
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return takes_settings(ONE_TEXT)(command)

    return decorate


Adapters = Annotated[
    list[str] | None,
    typer.Option(
        help="A LoRA adapter's GGUF file, also FILE=SCALE; may be repeated.",
        metavar="FILE",
        rich_help_panel=MODEL,
    ),
]


@dataclass(frozen=True, slots=True)
class TextOptions:
    """The options of a command that generates text."""

    system: Annotated[
        str | None,
        typer.Option("--system", "-s", help="System prompt.", metavar="TEXT", rich_help_panel=CHAT),
    ] = None
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="A file with a Jinja template, or the name of one of the model's templates.",
            metavar="FILE",
            rich_help_panel=CHAT,
        ),
    ] = None
    overflow: Annotated[
        str | None,
        typer.Option(
            help="When the context is full: drop the oldest turns, error, or shift (drop the older"
            " half of the tokens and go on). Default: drop in a chat, error otherwise.",
            metavar="|".join(OVERFLOWS),
            rich_help_panel=CHAT,
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            "-n",
            min=1,
            help="Longest answer. Default: what the context has left; 256 for a continuation.",
            metavar="TOKENS",
            rich_help_panel=FORMAT,
        ),
    ] = None
    json_schema: Annotated[
        Path | None,
        typer.Option(
            help="A file with the JSON schema that an answer follows.",
            metavar="FILE",
            rich_help_panel=FORMAT,
        ),
    ] = None
    regex: Annotated[
        str | None,
        typer.Option(
            help="Regular expression that the whole answer matches.",
            metavar="REGEX",
            rich_help_panel=FORMAT,
        ),
    ] = None
    grammar: Annotated[
        Path | None,
        typer.Option(
            help="A file with the GBNF grammar that an answer follows.",
            metavar="FILE",
            rich_help_panel=FORMAT,
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            "--temp",
            help="Higher is more varied; 0 = always the most probable token. Default: 0.7.",
            metavar="NUMBER",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Choose among the k most probable tokens; 0 = all. Default: 40.",
            metavar="TOKENS",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Choose among the fewest tokens whose probabilities add up to at least this;"
            " 1 = all. Default: 0.9.",
            metavar="0-1",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Choose among the tokens at least this many times as probable as the most"
            " probable one, e.g. 0.05; 0 = all. Default: 0.",
            metavar="0-1",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        typer.Option(
            help="Above 1: tokens of the last 64 are less probable; 1 = off. Default: 1.",
            metavar="NUMBER",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed gives the same text. Default: a random one.",
            metavar="NUMBER",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    adapter: Adapters = None
    config: Config = None
    settings: dict[str, Any] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """Return the files that options name."""
        names = (self.chat_template, self.json_schema, self.grammar)
        return [path for name in names if name is not None and path_exists(path := Path(name))]

    def generation(self) -> dict[str, Any]:
        """Return the keywords of `Engine.submit` and `Engine.chat`: sampling, format, length.

        Raises:
            ArgumentError: A value is outside what is allowed, or options contradict each other.
        """
        from llcuda.engine.request import request_params

        if self.overflow is not None and self.overflow not in OVERFLOWS:
            expected = ", ".join(OVERFLOWS)
            raise ArgumentError(f"--overflow {self.overflow}: expected one of {expected}")
        grammar = None if self.grammar is None else option_text("--grammar", self.grammar)
        given: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "seed": self.seed,
            "grammar": grammar,
        }
        parameters = {name: value for name, value in given.items() if value is not None}
        request_params(parameters)
        if response_format := self._response_format():
            parameters["response_format"] = response_format
        return parameters

    def _response_format(self) -> dict[str, Any] | None:
        if sum(value is not None for value in (self.json_schema, self.regex, self.grammar)) > 1:
            raise ArgumentError("give one of --json-schema, --regex and --grammar")
        if self.regex is not None:
            return {"type": "regex", "regex": self.regex}
        if self.json_schema is None:
            return None
        try:
            document = json.loads(option_text("--json-schema", self.json_schema))
        except (json.JSONDecodeError, RecursionError) as error:
            problem = f"--json-schema {self.json_schema}: is not JSON: {error}"
            raise ArgumentError(problem) from None
        return {"type": "json_schema", "json_schema": {"schema": document}}

    def template(self, model: Path) -> str | None:
        """Return the chat template's text, or its name; None for the model's own.

        Args:
            model: The model's file, which is not loaded yet.

        Raises:
            ArgumentError: The file cannot be read, has no template, or the model has none of this
                name.
        """
        return None if self.chat_template is None else template_text(self.chat_template, model)

    @contextmanager
    def format_errors(self) -> Iterator[None]:
        """Name the option in an error of the format that it gave."""
        try:
            yield
        except ArgumentError as error:
            if error.parameter != "response_format":
                raise
            option = "--json-schema" if self.regex is None else "--regex"
            problem = error.problem.removeprefix("response_format: ")
            raise ArgumentError(f"{option}: {problem}", remedy=error.remedy) from None

    def load(self, engine: InferenceEngine, path: Path, needed: int | None = None) -> None:
        """Load a model as the options say, in place of the one before.

        Args:
            engine: The engine that loads it.
            path: The model's file.
            needed: Tokens that are needed at most, where that is known. If that is less than the
                automatic context, the context is as small.
        """
        from llcuda.engine.config import CTX_SIZE
        from llcuda.progress import is_visible

        settings = dict(self.settings)
        if needed is not None and needed <= CTX_SIZE:
            settings.setdefault("ctx_size", needed)
        adapters = checked_adapters(self.adapter or ())
        engine.load_model(path, verbose=False, progress=is_visible(), **settings)
        apply_adapters(engine, adapters)


def template_text(given: str, *models: Path) -> str:
    """Return the text of a chat template's file, or the name of a template that was given.

    Args:
        given: What --chat-template has: a file, a name, or the text itself.
        *models: The files of the models that it is for.

    Raises:
        ArgumentError: The file cannot be read, has no template, or a model has none of this name.
    """
    from llcuda.chat.template import DEFAULT, KEY, MARKS, ChatTemplate

    path = Path(given)
    is_text = any(mark in given for mark in MARKS)
    if is_text or path_exists(path) or path.suffix or len(path.parts) > 1:
        option = "--chat-template" if is_text else f"--chat-template {given}"
        text = given if is_text else option_text("--chat-template", path)
        if not any(mark in text for mark in MARKS):
            raise ArgumentError(f"{option}: is not a Jinja template, which has {{{{ or {{%")
        try:
            ChatTemplate(text)
        except ArgumentError as error:
            raise ArgumentError(f"{option}: {error.problem}") from None
        return text
    for model in models:
        names = [key.removeprefix(KEY).removeprefix(".") or DEFAULT for key in template_keys(model)]
        if given not in names:
            has = f"its templates: {', '.join(names)}" if names else "it has none"
            raise ArgumentError(
                f"--chat-template {given}: there is no such file, and {model.name} has no template"
                f" of this name; {has}"
            )
    return given


def template_keys(path: Path) -> list[str]:
    """Return the keys of the chat templates in a model's file, the main one first.

    Args:
        path: The file.
    """
    from llcuda.chat.template import KEY
    from llcuda.gguf_parser import GGUFReader

    with GGUFReader(path, split=False) as reader:
        return sorted(key for key in reader.metadata if key.startswith(KEY))


def checked_adapters(given: Iterable[str]) -> list[tuple[str, float]]:
    """Return the file and the scale of each adapter, all checked before a model is loaded.

    Args:
        given: What --adapter has, each FILE or FILE=SCALE.

    Raises:
        ArgumentError: A scale is not a number, or a file is not a LoRA adapter.
    """
    adapters = [_adapter_and_scale(text) for text in given]
    for file, _ in adapters:
        _check_adapter(file)
    return adapters


def _adapter_and_scale(given: str) -> tuple[str, float]:
    """Return the file and the scale of an adapter's option."""
    path, equals, scale = given.rpartition("=")
    if not equals or Path(given).exists():
        return given, 1.0
    try:
        return path, float(scale)
    except ValueError:
        raise ArgumentError(
            f"--adapter {given}: expected FILE or FILE=SCALE, with a number as the scale"
        ) from None


def _check_adapter(path: str) -> None:
    """Raise ArgumentError for the file of --adapter that is not a LoRA adapter."""
    from llcuda.gguf_parser import GGUFReader

    try:
        with GGUFReader(path, split=False) as reader:
            kind = reader.metadata.get("general.type")
    except LlcudaError as error:
        raise ArgumentError(f"--adapter: {error}") from None
    if kind != "adapter":
        raise ArgumentError(
            f"--adapter {path}: is not an adapter; give the GGUF file of a LoRA adapter"
        )


def apply_adapters(engine: InferenceEngine, adapters: list[tuple[str, float]]) -> None:
    """Load adapters and apply them to the model of an engine.

    Args:
        engine: The engine.
        adapters: The file and the scale of each.
    """
    from llcuda.native.adapter import Adapter

    if adapters:
        scales: Mapping[Adapter, float] = {
            Adapter(engine.model, path): scale for path, scale in adapters
        }
        engine.engine.context.set_adapters(scales)
