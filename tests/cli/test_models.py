"""`llcuda list`, `pull`, `show`, `cp`, `rm` and `ps`."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from llcuda.demo import demo_model
from llcuda.hub.registry import registry
from llcuda.running import announce
from tests.support.commands import call
from tests.support.hub_cache import add_repository
from tests.support.hub_server import Asker, Hub

COMMANDS = """
import json, shlex, sys
from typer.testing import CliRunner
from llcuda.cli import main

for line in json.loads(sys.argv[1]):
    sys.argv[1:] = line
    result = CliRunner().invoke(main.app, line)
    error = result.exception
    message = "" if error is None or isinstance(error, SystemExit) else main._message(error)
    print(json.dumps([result.exit_code, result.stdout, message or result.stderr]))
"""
SPLIT = [f"big-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]


class User(Asker):
    """A user of the command line."""

    def run(self, *commands: str) -> list[tuple[int, str, str]]:
        """Run commands in one process; return the status, stdout and the message of each."""
        lines = json.dumps([command.split() for command in commands])
        process = self.start(COMMANDS, lines)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return [tuple(json.loads(line)) for line in output.splitlines()]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    """A user whose cache has two models."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    cache = tmp_path / "home" / "hub"
    demo = demo_model().read_bytes()
    add_repository(cache, "some/model", {"model-Q8_0.gguf": demo, "model-Q4_0.gguf": b"GGUF"})
    return User(Hub(), tmp_path / "home")


def test_list(user: User) -> None:
    """What is here; with --all and --kind the registry too; as JSON both."""
    plain, everything, kind, document, wrong = user.run(
        *("list", "list --all", "list --kind embedding", "list --json --all", "list --kind x")
    )
    assert [line.split()[0] for line in plain[1].splitlines()] == [
        *("Name", "some/model:Q4_0", "some/model:Q8_0", "demo")
    ]
    assert [line.split()[0] for line in everything[1].splitlines()[6:]] == list(registry())
    kinds = {line.split()[1] for line in kind[1].splitlines()[1:]}
    assert kinds == {"embedding"}
    parsed = json.loads(document[1])
    assert [model["name"] for model in parsed["installed"]][-1] == "demo"
    assert len(parsed["registry"]) == len(registry())
    assert wrong[0] == 1
    assert wrong[2].startswith("--kind x: expected one of base, chat, ")


def test_show(user: User) -> None:
    """The facts of the header; the template alone; a name that is not a model's."""
    table, document, template, missing = user.run(
        *("show some/model:Q8_0", "show demo --json", "show demo --template", "show zzz")
    )
    rows = dict(line.split(maxsplit=1) for line in table[1].splitlines())
    assert rows["architecture"].strip() == "llama"
    assert rows["parameters"].strip() == "5,378,304"
    assert rows["quantization"].strip() == "Q8_0"
    facts = json.loads(document[1])
    assert (facts["context_length"], facts["license"]) == (1024, "MIT")
    assert facts["template"] in template[1]
    assert "no model is called 'zzz'" in missing[2]


def test_show_and_pull_from_the_hub(user: User) -> None:
    """`show` reads the header alone; `pull` brings the file, which `list` then has."""
    with Hub({"other/model": {"m-Q8_0.gguf": demo_model().read_bytes()}}) as hub:
        user.server = hub
        shown, listed, pulled, after = user.run(
            *("show other/model --json", "list", "pull other/model:q8_0 --silent", "list")
        )
        facts = json.loads(shown[1])
        assert (facts["path"], facts["quantization"]) == (None, "Q8_0")
        assert "other/model" not in listed[1]
        assert Path(pulled[1].strip()).read_bytes() == demo_model().read_bytes()
        assert "other/model:Q8_0" in after[1]


def test_cp_and_rm(user: User) -> None:
    """A name of one's own, its removal, and the removal of a download."""
    results = user.run(
        "cp some/model:Q8_0 mine",
        "show mine --json",
        "cp demo mine",
        "rm some/model:Q4_0",
        "rm --yes mine some/model:Q4_0",
        "list",
        "rm --yes mine",
        "rm --yes some/model:Q4_0",
        "rm --yes demo",
        "cp demo mine",
        "rm mine",
    )
    made, shown, taken, unasked, removed, listed, gone, again, demo, _made, name = results
    assert made[:2] == (0, "mine = hf://some/model:model-Q8_0.gguf\n")
    assert json.loads(shown[1])["quantization"] == "Q8_0"
    assert "forget it by `llcuda rm mine`" in taken[2]
    assert "give --yes" in unasked[2]
    assert removed[1].splitlines() == [
        "mine: only this name; its model stays",
        "some/model:Q4_0: 0.0 MB in 1 file",
        "mine: deleted",
        "some/model:Q4_0: deleted",
    ]
    assert [line.split()[0] for line in listed[1].splitlines()] == [
        "Name",
        "some/model:Q8_0",
        "demo",
    ]
    assert "no model is called 'mine'" in gone[2]
    assert "some/model has no Q4_0 model; it has Q8_0" in again[2]
    assert "is a part of llcuda" in demo[2]
    assert name[:2] == (0, "mine: only this name; its model stays\nmine: deleted\n")


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", True), (b"y\n", False), (b"\x04", True)])
def test_rm_asks_in_a_terminal(user: User, answer: bytes, left: bool) -> None:
    """Only "y" deletes; Ctrl-D does not."""
    ours, theirs = pty.openpty()
    program = "from llcuda.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "rm", "some/model:Q4_0"],
        env=user.environment(),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.write(ours, answer)
    output, _ = process.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert b"Delete? [y/N]" in output
    assert process.returncode == (1 if left else 0)
    present = [path for path in user.home.rglob("model-Q4_0.gguf") if path.exists()]
    assert bool(present) == left


def test_ps(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """None; one that does not answer; as JSON."""
    (none,) = user.run("ps")
    assert none[1].startswith("No llcuda server of this user runs on this machine")
    monkeypatch.setenv("XDG_STATE_HOME", str(user.home / "state"))
    with announce("http://127.0.0.1:9", ["first", "second"]):
        table, document = user.run("ps", "ps --json")
    row = table[1].splitlines()[1]
    assert row.startswith("http://127.0.0.1:9  first, second  no answer")
    (server,) = json.loads(document[1])
    assert (server["pid"], server["health"]) == (os.getpid(), "no answer")


def test_every_command_takes_the_same_names(user: User) -> None:
    """A name that is near others leads to the same message everywhere."""
    lines = (
        *(
            "run qwen2.5-1.5 hi",
            "run -m qwen2.5-1.5 hi",
            "chat qwen2.5-1.5",
            "serve qwen2.5-1.5 --port 0",
        ),
        *("bench qwen2.5-1.5", "inspect qwen2.5-1.5", "show qwen2.5-1.5", "pull qwen2.5-1.5"),
        *("cp qwen2.5-1.5 x", "rm qwen2.5-1.5", "quantize qwen2.5-1.5 x.gguf q8_0"),
    )
    for line, (status, _, message) in zip(lines, user.run(*lines), strict=True):
        assert message.startswith("no model is called 'qwen2.5-1.5' (did you mean qwen2.5-1.5b"), (
            line
        )
        assert status == 1


def test_a_name_that_is_a_folder_too(tmp_path: Path) -> None:
    """A line says which one is used, also of a command that loads the model; sizes are equal."""
    (tmp_path / "demo").mkdir()
    outputs = []
    for words in (("run", "demo", "hi", "-n", "2"), ("show", "demo", "--json"), ("list", "--json")):
        process = subprocess.run(
            [sys.executable, "-m", "llcuda", *words],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=120,
        )
        outputs.append(process.stdout)
        told = process.stderr.count(b"'demo' is a name of")
        assert told == (words[0] != "list")
    (listed,) = [m for m in json.loads(outputs[2])["installed"] if m["name"] == "demo"]
    assert json.loads(outputs[1])["size"] == listed["size"]


def test_a_misspelt_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF file here with a similar name is suggested."""
    monkeypatch.chdir(tmp_path)
    Path("d.gguf").touch()
    assert "(did you mean d.gguf?)" in call("run", "d.ggfu", "hi").stderr
