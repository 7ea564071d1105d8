"""The command line `llcuda`: its commands and its entry point.

An error is one message on stderr without a traceback. The exit status is 1 after a failure, 2 for
wrong arguments, 130 after Ctrl-C. A command imports what it needs when it runs, so that
`llcuda run` starts quickly.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from llcuda.cli import (
    batch,
    bench,
    chat,
    convert,
    diagnose,
    embed,
    gguf,
    inspect,
    models,
    quantize,
    report,
    run,
    score,
    serve,
    tokenize,
)
from llcuda.cli.console import (
    INTERRUPTED,
    examples,
    join_bash_words,
    mend_zsh_completion,
    print_error,
)
from llcuda.cli.peers import command_advice, misread_advice, option_advice
from llcuda.cli.settings import SETTINGS
from llcuda.errors import (
    ArgumentError,
    ContextLengthError,
    LlcudaError,
    NoTextError,
    OutOfMemoryError,
)

# What Typer's errors on numbers expect, by pydantic's kinds.
NUMBER_RULES = {
    "int_parsing": "expected a whole number",
    "float_parsing": "expected a number",
    "greater_than_equal": "expected a number at least {ge:g}",
    "less_than_equal": "expected a number at most {le:g}",
}

# Those of stdout, where they name no file: other writers raise FileWriteError.
WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE}


@contextmanager
def _advice() -> Iterator[None]:
    """Say what to type in place of an option that peers have."""
    try:
        yield
    except Exception as error:  # Typer does not export its class of an unknown option
        name, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
        if name is None or context is None:
            raise
        here = {option for item in context.command.params for option in item.opts}
        if advice := option_advice(name, sys.argv[1:], here):
            raise ArgumentError(advice) from None
        raise


class _WithoutTypes:
    """Leaves Python's types out of a command's help: a metavar says what a value is."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", True):  # an argument's metavar stands before its type
                parameter.display_type_rich = _no_type
        return parameters


def _no_type(ctx: Any) -> None:
    """Return no type for the help."""


class _Command(_WithoutTypes, TyperCommand):
    """A command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        here = {option for item in self.params for option in item.opts}
        if not ctx.resilient_parsing and (advice := misread_advice(args, here)):
            raise ArgumentError(advice)
        return super().parse_args(ctx, args)


class _Group(_WithoutTypes, TyperGroup):
    """Commands below a command."""


class _Commands(_Group):
    """Reports a wrong number in the words of the library, and explains what only peers have."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        with _advice():
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        is_known = name in self.commands or ctx.resilient_parsing
        if not is_known and (advice := command_advice(name)):
            raise ArgumentError(advice)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _advice():
                return super().invoke(ctx)
        except typer.BadParameter as error:
            # Pydantic's, where Typer uses it.
            errors: list[Any] = getattr(error.__cause__, "errors", list)()
            rule = NUMBER_RULES.get(errors[0]["type"]) if errors else None
            if rule is None or error.param is None:
                raise
            expected = rule.format(**errors[0].get("ctx", {}))
            message = f"{_option_name(error.param)} {errors[0]['input']}: {expected}"
            raise ArgumentError(message) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog=examples('llcuda run demo "Who are you?"', "llcuda chat qwen2.5-1.5b"),
)
# The commands under their headings in --help, each module with those that it has.
HEADINGS = {
    "Generate": (run, chat, embed, batch, serve),
    "Models": (models, inspect, gguf, convert, quantize),
    "Measure and diagnose": (score, tokenize, bench, diagnose, report),
}
for heading, modules in HEADINGS.items():
    for module in modules:
        for command in module.app.registered_commands:
            command.rich_help_panel, command.cls = heading, _Command
        for group in module.app.registered_groups:
            group.rich_help_panel, group.cls = heading, _Group
            for command in group.typer_instance.registered_commands:
                command.cls = _Command
        app.add_typer(module.app)


# Parameters of the library whose options have another name here.
OPTION_NAMES = {
    **{keyword: setting.option for keyword, setting in SETTINGS.items() if setting.option},
    "body_seconds": "body_timeout",
    "drain_seconds": "drain",
    "idle_seconds": "idle_timeout",
    "memory_budget": "memory",
    "template": "chat_template",
}


# Loggers of the library whose lines say what its commands say already, or are llama.cpp's.
SILENT = ("llcuda", "llcuda.engine", "llcuda.native")


def _print_version(asked: bool) -> None:
    if asked:
        diagnose.print_version()
        raise typer.Exit


@app.callback()
def llcuda_(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", "-v", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """GGUF language models inside a Python process."""


def main() -> None:
    """Run the command of `sys.argv`, and exit with its status after a failure."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character
    try:
        status = _run_command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in WRITE_ERRORS:
            raise
        _drop_stdout()
        if error.errno != errno.EPIPE:  # a reader that has enough, such as head, is told nothing
            print_error(f"cannot write to stdout: {error.strerror}")
        status = 1
    sys.exit(status)


def _run_command() -> int | str | None:
    """Run the command of `sys.argv`, report its errors, and return its exit status."""
    join_bash_words()
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: record.name not in SILENT)
    logging.basicConfig(handlers=[handler], format="%(message)s")
    try:
        app(prog_name="llcuda")  # also of `python -m llcuda`
    except SystemExit as end:
        if "--install-completion" in sys.argv:
            mend_zsh_completion()
        return end.code
    except LlcudaError as error:
        print_error(_message(error))
        return 2 if isinstance(error, ArgumentError) else 1
    except UnicodeDecodeError as error:
        print_error(f"a file is not UTF-8: {error}")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _drop_stdout() -> None:
    """Drop what stdout holds, which the interpreter would write at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _message(error: LlcudaError) -> str:
    """Return an error's message with the option in place of the library's parameter."""
    parameter = error.parameter
    command: Any = get_command(app)
    for word in sys.argv[1:]:
        command = getattr(command, "commands", {}).get(word, command)
    options = command.params
    if isinstance(error, NoTextError):
        return f"{error.problem}; `llcuda embed` gives its embeddings"
    has_ctx_size = any(option.name == "ctx_size" for option in options)
    if isinstance(error, ContextLengthError) and has_ctx_size:
        return f"{error.problem}; give a shorter prompt or a larger --ctx-size"
    if isinstance(error, OutOfMemoryError) and parameter == "ctx_size" and has_ctx_size:
        fewer = ", or a smaller --parallel" if any(o.name == "parallel" for o in options) else ""
        return f"{error.problem}; choose a smaller --ctx-size{fewer}"
    for option in options if parameter else ():
        if option.name == OPTION_NAMES.get(str(parameter), parameter):
            before, _, problem = error.problem.partition(str(parameter))
            remedy = _option_remedy(error, options)
            if not before and problem[:1] == "=":
                return f"{_option_name(option)} {problem[1:]}{remedy}"
            if not before and problem[:1] == ":":
                return f"{_option_name(option)}{problem}{remedy}"
    return str(error)


def _option_remedy(error: LlcudaError, options: list[Any]) -> str:
    """Return the remedy that is another parameter as an option; "" where it is something else."""
    before, _, parameter = (error.remedy or "").partition("give ")
    for option in () if before else options:
        if option.name == OPTION_NAMES.get(parameter, parameter):
            return f"; give {_option_name(option)} {option.metavar}"
    return ""


def _option_name(option: Any) -> str:
    """Return the long name of an option, or the name of an argument."""
    if option.param_type_name == "option":
        return str(max(option.opts, key=len))
    return str(option.metavar or option.name).upper()
