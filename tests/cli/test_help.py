"""The help of each command, completion in a shell, and pipes that are closed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import llcuda
from llcuda.cli.main import app
from tests.support.commands import call, tool_folder
from tests.support.hub_cache import add_ollama_model
from tests.support.terminal import program_terminal


def commands(group: Any, path: str = "llcuda") -> Iterator[tuple[str, Any]]:
    """Yield the words and the object of each command below a group."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(get_command(app)))


@pytest.mark.parametrize("words", COMMANDS)
def test_examples(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command has at least one, which begins with its words and has valid arguments."""
    monkeypatch.chdir(tmp_path)
    command = COMMANDS[words]
    heading, *lines = (command.epilog or "").replace("\\[", "[").split("\n\n")
    assert heading in ("Example:", "Examples:")
    for line in lines:
        own = line.rpartition("| ")[2]
        assert own.startswith(words)
        arguments = shlex.split(own.removeprefix(words))
        for name in arguments:
            if re.fullmatch(r"[\w.-]+\.\w{2,}", name):
                Path(name).write_text("{}")
        with command.make_context(words, list(arguments)) as context:
            assert not context.args


@pytest.mark.parametrize("words", COMMANDS)
def test_each_parameter_has_help(words: str) -> None:
    """Also arguments."""
    missing = [p.name for p in COMMANDS[words].params if not getattr(p, "help", None)]
    assert [] == missing


@pytest.mark.parametrize("words", COMMANDS)
def test_help_has_no_types_of_python(words: str) -> None:
    """A metavar says what a value is; a flag has none."""
    command = COMMANDS[words]
    options = [p for p in command.params if not getattr(p, "is_flag", False)]
    assert [] == [p.name for p in options if not p.metavar]
    shown = call(*words.split()[1:], "--help").stdout
    assert not re.search(r"<(bool|float|int|path|str)\b|<list\[", shown)


@pytest.mark.parametrize("arguments", [("--version",), ("-v",), ("version",)])
def test_version(arguments: tuple[str, ...]) -> None:
    """The package's."""
    result = call(*arguments)
    assert (0, f"{llcuda.__version__}\n") == (result.status, result.stdout)


def test_help_has_headings() -> None:
    """Commands and options are grouped; -h is --help."""
    shown = call("-h").stdout
    assert all(heading in shown for heading in ("Generate", "Models", "Measure and diagnose"))
    shown = call("run", "-h").stdout
    assert all(heading in shown for heading in ("Chat", "Length and format", "Sampling", "Model"))
    assert call("run", "--help").stdout == shown
    assert call("help", "run").stdout == shown
    assert call("help").stdout == call("--help").stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llcuda ru", "run"),
        ("llcuda chat dem", "demo"),
        ("llcuda chat qwen2.5-1.5b-Q4", "qwen2.5-1.5b-Q4_K_M"),
        ("llcuda run ./mod", "./model.gguf"),
        ("llcuda run fold", "folder/"),
        ("llcuda run --tempe", "--temperature"),
        ("llcuda\nrun\nollama\n:\n//tin", "//tiny:1b"),
        ("llcuda\nrun\nollama://tin", "ollama://tiny:1b"),
    ],
)
def test_completion(
    line: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of commands, models, GGUF files, folders and options, as bash asks."""
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").touch()
    Path("model.txt").touch()
    Path("folder").mkdir()
    add_ollama_model(tmp_path / "ollama", "registry.ollama.ai/library/tiny/1b", b"GGUF")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("_LLCUDA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    result = call()
    assert (0, expected) == (result.status, result.stdout.strip())


SHELLS = {
    "zsh": (".zshrc", "PS1='ready> '"),
    "fish": (".config/fish/config.fish", "function fish_prompt; echo 'ready> '; end"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_first_tab(shell: str, tmp_path: Path) -> None:
    """After --install-completion a new shell completes at its first Tab."""
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"needs {shell}")
    variables = {
        "HOME": str(tmp_path),
        "PATH": f"{tool_folder(tmp_path)}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(tmp_path / ".config"),
        "ZDOTDIR": str(tmp_path),
    }
    subprocess.run(
        [program, "-c", "llcuda --install-completion; true"],  # which keeps the shell
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=120,
    )
    name, prompt = SHELLS[shell]
    settings = tmp_path / name
    settings.parent.mkdir(parents=True, exist_ok=True)
    before = settings.read_text() if settings.exists() else ""
    settings.write_text(f"{before}\n{prompt}\n")
    with program_terminal(tmp_path, program, "-i", **variables) as typed:
        typed.waits("ready>")
        typed.send("llcuda vers\t")
        typed.waits("llcuda version")


@pytest.mark.parametrize(
    "arguments",
    ["run demo 'Tell me a story.'", "run demo 'One day' --raw", "run --help", "inspect demo"],
)
def test_a_closed_pipe_is_quiet(arguments: str) -> None:
    """Nothing is on stderr when the reader of stdout has gone."""
    command = f"{shlex.quote(sys.executable)} -m llcuda {arguments} | head -c 1"
    result = subprocess.run(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (1, b"") == (len(result.stdout), result.stderr)


@pytest.mark.parametrize("stream", ["0<&-", "1>&-", "2>&-"])
def test_a_closed_stream_is_no_traceback(stream: str) -> None:
    """A process without stdin, stdout or stderr writes what it can."""
    command = f"{shlex.quote(sys.executable)} -m llcuda run demo Hello -n 2 {stream}"
    result = subprocess.run(
        command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=120
    )
    assert b"Traceback" not in result.stderr
    assert 0 == result.returncode


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour(variables: dict[str, str]) -> None:
    """Errors have no escapes where they are not wanted."""
    result = subprocess.run(
        [sys.executable, "-m", "llcuda", "run", "-m", "/no/such.gguf", "x"],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert b"error: GGUF file not found: /no/such.gguf\n" == result.stderr
