"""The command line `llcuda`: its commands and its entry point.

An error is one message on stderr without a traceback. The exit status is 1 after a failure, 2 for
wrong arguments, 130 after Ctrl-C. A command imports what it needs when it runs, so that
`llcuda run` starts quickly.
"""

from __future__ import annotations

import os
import sys

import typer
from typer.main import get_command

from llcuda.cli import bench, chat, diagnose, files, inspect, quantize, run, serve
from llcuda.cli.console import INTERRUPTED, print_error
from llcuda.errors import ArgumentError, LlcudaError

app = typer.Typer(
    help="GGUF language models inside a Python process.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (run, chat, serve, files, inspect, quantize, bench, diagnose):
    app.add_typer(module.app)


# Parameters of the library whose options have another name here.
OPTION_NAMES = {
    "body_bytes": "max_body",
    "memory_budget": "memory",
    "n_parallel": "parallel",
    "queue_size": "queue",
    "template": "chat_template",
}


@app.command()
def version() -> None:
    """Print the version."""
    import llcuda

    print(llcuda.__version__)


def main() -> None:
    """Entry point of `llcuda` and `python -m llcuda`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character
    try:
        app()
    except LlcudaError as error:
        print_error(_message(error))
        sys.exit(2 if isinstance(error, ArgumentError) else 1)
    except UnicodeDecodeError as error:
        print_error(f"a file is not UTF-8: {error}")
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing left to flush to
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _message(error: LlcudaError) -> str:
    """Return an error's message with the option in place of the library's parameter."""
    parameter = error.parameter
    commands = getattr(get_command(app), "commands", {})
    command = next((commands[word] for word in sys.argv[1:] if word in commands), None)
    for option in command.params if command and parameter else ():
        if option.name == OPTION_NAMES.get(str(parameter), parameter):
            is_option = option.param_type_name == "option"
            name = max(option.opts, key=len) if is_option else option.human_readable_name
            before, _, problem = error.problem.partition(f"{parameter}=")
            return str(error) if before else f"{name} {problem}"
    return str(error)
