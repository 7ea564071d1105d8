"""`llcuda chat`, as a process: with pipes, and in a terminal."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llcuda
from llcuda.cli.chat_commands import Conversation
from llcuda.cli.markdown import MarkdownWriter, complete_length, printable
from llcuda.errors import ArgumentError
from tests.support import models
from tests.support.commands import call
from tests.support.terminal import Terminal, terminal

COMMAND = [sys.executable, "-m", "llcuda", "chat", "demo", "--threads", "1"]
ENDLESS = "/set grammar root ::= [a-z ] root"
PROMPT = "\n> "  # below the line that was typed


def piped(*lines: str | bytes, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
    """Send lines through a pipe."""
    text = b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines)
    return subprocess.run(
        [*COMMAND, *options], input=text, capture_output=True, check=False, timeout=120
    )


def test_answers_through_a_pipe() -> None:
    """Each line is a message, each answer plain text on stdout; the same seed, the same answers."""
    results = [piped("Hello", "Tell me a story.", options=("--seed", "1")) for _ in range(2)]
    assert [0, 0] == [result.returncode for result in results]
    assert results[0].stdout == results[1].stdout
    assert len(results[0].stdout.splitlines()) >= 2
    assert (b"", b"\x1b" in results[0].stdout) == (results[0].stderr, False)


def test_the_conversation_goes_on(tmp_path: Path) -> None:
    """It is saved with its system prompt, loaded in another process, and answered again."""
    path = tmp_path / "talk.json"
    options = ("--system", "Be brief.", "--temperature", "0")
    first = piped("Hello", "And you?", f"/save {path}", options=options)
    assert first.returncode == 0, first.stderr.decode()
    messages = json.loads(path.read_text())["messages"]
    assert ["system", "user", "assistant", "user", "assistant"] == [m["role"] for m in messages]
    again = piped(f"/load {path}", "/regenerate", "/stats", options=("--temperature", "0"))
    loaded, stats = again.stderr.decode().splitlines()
    assert ("5 messages", messages[-1]["content"]) == (loaded, again.stdout.decode().strip())
    assert re.match(r"prompt \d+ tokens, .* first token after \d.*; stop; seed \d+", stats)


def test_a_line_that_goes_on() -> None:
    """A backslash at the end joins lines into one message; empty lines are none."""
    result = piped("Tell me \\", "a story.", "", "   ", "/exit", "Hello")
    assert result.returncode == 0
    assert result.stderr == b""
    assert len(result.stdout.decode().strip()) > 5


@pytest.mark.parametrize(("overflow", "named"), [("error", True), ("drop", False)])
def test_a_full_context(overflow: str, named: bool) -> None:
    """The message names another way to go on; the exit status says that a message was refused."""
    options = ("--ctx-size", "96", "--overflow", overflow, "--threads", "1")
    result = call("chat", "demo", *options, text=b"word " * 200)
    assert (1, named) == (result.status, "--ctx-size, --overflow drop or" in result.stderr)
    assert "--overflow shift" in result.stderr


def test_an_unfinished_message_at_the_end(tmp_path: Path) -> None:
    """It is answered, and nothing of it is lost."""
    result = call("chat", "demo", "-n", "4", "--threads", "1", text=b'"""One\nday')
    assert (0, "(ended: --max-tokens is reached)\n") == (result.status, result.stderr)
    assert result.stdout.strip()


REFUSED = [
    ("/nonsense", "/nonsense: no such command; /help lists them"),
    ("/set temprature 1", "'temprature': no such setting"),
    ("/set temperature -1", "temperature=-1: expected"),
    ("/set temperature NaN", "temperature=nan"),
    ("/set stop [1]", "stop: expected texts"),
    ("/save", "give the name of a file"),
    ("/save /no/such/folder/x", "does not exist; make it first"),
    ("/load /no/such/file", "cannot read /no/such/file: No such file"),
    ("/load /dev", "cannot read /dev"),
    ("/load /etc/hostname", "is not a JSON document"),
    ("/retry", "there is no question yet"),
    ("/copy", "there is no answer yet"),
    ("/model /no/such.gguf", "GGUF file not found: /no/such.gguf"),
    ("/regenerate", "there is no question yet"),
    ("/clear all", "this command takes no arguments"),
    ("word " * 20_000, "tokens"),
]


def test_errors_are_one_message() -> None:
    """What cannot be done is one line on stderr, and the conversation goes on."""
    result = piped(*[line for line, _ in REFUSED], "Hello")
    assert result.returncode == 1
    lines = result.stderr.decode().splitlines()
    for (_, expected), line in zip(REFUSED, lines, strict=True):
        assert expected in line
        assert line.startswith("error: ")
    assert result.stdout.strip()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\n", "is not UTF-8 (byte 0"),
        (b"caf\xe9\n", "is not UTF-8 (byte 3 is 0xe9)"),
        (b"a\0\n", "is binary data (it has bytes of value 0); give a text"),
    ],
)
def test_bytes_that_are_not_utf8(line: bytes, said: str) -> None:
    """Control characters are a message like any; what is not text in UTF-8 ends the chat."""
    result = piped(b"caf\xc3\xa9 \x1b[2J\n", "Hello", line, "Hello")
    assert (2, True) == (result.returncode, f"error: stdin {said}" in result.stderr.decode())
    assert len(result.stdout.splitlines()) >= 2


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--temperature", "-1"), 2, "--temperature -1"),
        (("--chat-template", "nonsense"), 2, "nonsense"),
        (("--ctx-size", "0"), 2, "--ctx-size"),
        (("--max-tokens", "0"), 2, "--max-tokens 0"),
    ],
)
def test_wrong_options(options: tuple[str, ...], status: int, said: str) -> None:
    """They are named before anything is asked."""
    result = piped("Hello", options=options)
    assert (status, b"") == (result.returncode, result.stdout)
    assert said in result.stderr.decode()


def test_settings() -> None:
    """They change what comes next, are shown, and go back to the default."""
    talk = Conversation(None, {"seed": 1})
    assert talk.set("temperature 0.5") == "temperature 0.5"
    assert talk.set('stop ["a b", "c"]')
    assert talk.parameters == {"seed": 1, "temperature": 0.5, "stop": ["a b", "c"]}
    shown = talk.set("").splitlines()
    assert {"temperature 0.5", "seed 1", "top_k 40 (default)"} <= {*shown}
    talk.set("seed default")
    assert "seed" not in talk.parameters


def test_saving_overwrites_only_its_own_file(tmp_path: Path) -> None:
    """A file of another origin stays as it is; what was saved here may be saved again."""
    talk, other = Conversation("Be brief.", {}), tmp_path / "other.json"
    other.write_text("precious")
    with pytest.raises(ArgumentError, match=r"other\.json exists"):
        talk.save(str(other))
    assert other.read_text() == "precious"
    for _ in range(2):
        talk.save(str(tmp_path / "own.json"))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "3",
        '[{"role": "user"}]',
        '[{"role": "x", "content": "y"}]',
        "[" * 10_000,
        '"\\ud800"',
    ],
)
def test_broken_files_change_nothing(text: str, tmp_path: Path) -> None:
    """A file that holds no conversation is refused, and the one at hand stays."""
    path = tmp_path / "broken.json"
    path.write_text(text)
    talk = Conversation("Be brief.", {})
    before = list(talk.messages)
    with pytest.raises(ArgumentError):
        talk.load(str(path))
    assert before == talk.messages


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a", ""),
        ("a\n\n", ""),
        ("a\n\nb", "a\n\n"),
        ("a\n\nb\n\nc", "a\n\nb\n\n"),
        ("- a\n\n  more", ""),
        ("- a\n\n  more\n\nb", "- a\n\n  more\n\n"),
        ("```\na\n\nb", ""),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n"),
        ("~~~\n```\n\nb", ""),
        ("````\n```\n\nb", ""),
    ],
)
def test_complete(text: str, whole: str) -> None:
    """Blocks end at an empty line, but in code and where a list goes on."""
    assert whole == text[: complete_length(text)]


def test_printable() -> None:
    """Nothing that a model writes moves the cursor or names the window."""
    assert printable("a\x1b[2Jb\x07\r\n\tc\x9b1mé\x7f") == "a[2Jb\n\tc1mé"


def test_markdown_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Letter by letter it is printed once, whole, without its marks."""
    with MarkdownWriter() as shown:
        shown.add("", "I think.\x1b[2J")
        for letter in "# Title\n\nSome **bold** text.\n\n1. one\n2. two\n\n```\na = 1\n```\n":
            shown.add(letter)
    lines = [line.strip(" ┃┏┓┗┛━│") for line in capsys.readouterr().out.splitlines()]
    seen = [line for line in lines if line]
    assert ["I think.[2J", "Title", "Some bold text.", "1 one", "2 two", "a = 1"] == seen


@contextlib.contextmanager
def chatting(home: Path, *options: str, **variables: str) -> Iterator[Terminal]:
    """Start a chat in a terminal and wait until it asks."""
    with terminal(home, "chat", "demo", "--threads", "1", *options, **variables) as chat:
        chat.waits("/help for help", PROMPT)
        yield chat


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(tmp_path: Path) -> None:
    """What there is stays in the conversation; at the prompt Ctrl-C only says how to leave."""
    with chatting(tmp_path, "--ctx-size", "40000") as chat:
        chat.send(f"{ENDLESS}\r")
        chat.waits("grammar", PROMPT)
        chat.send("Hello\r")
        chat.waits(letters=200)
        chat.send("\x03")
        chat.waits("(stopped)", PROMPT)
        chat.send("/stats\r")
        assert "cancelled" in chat.waits("seed")
        chat.send("/set grammar default\r")
        chat.waits("grammar: the default", PROMPT)
        chat.send("And now?\r")
        chat.waits(PROMPT)
        chat.send("half a line")
        chat.waits("half a line")
        chat.send("\x03")
        chat.waits("(Ctrl-D leaves)", PROMPT)
        chat.send("\x04")
        assert chat.ends() == 0


def test_history(tmp_path: Path) -> None:
    """Lines can be called up again, in a later process too; nobody else may read them."""
    with chatting(tmp_path) as chat:
        chat.send("/stats\r")
        chat.waits("no answer yet", PROMPT)
        chat.send("/exit\r")
        assert chat.ends() == 0
    path = tmp_path / "llcuda" / "chat_history"
    assert path.read_text().splitlines()[-2:] == ["/stats", "/exit"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with chatting(tmp_path) as chat:
        chat.send("\x1b[A\x1b[A\r")
        chat.waits("no answer yet", PROMPT)
        chat.send("/sta\t\r")
        chat.waits("no answer yet", PROMPT)
        chat.send("/statz\x7fs\r")
        chat.waits("no answer yet", PROMPT)


def test_without_a_place_for_the_history(tmp_path: Path) -> None:
    """A folder that cannot be made, or a history that is none, keeps nobody from talking."""
    (tmp_path / "llcuda").write_bytes(b"\xff\xfe no folder")
    with chatting(tmp_path) as chat:
        chat.send("/stats\r")
        chat.waits("no answer yet", PROMPT)
        chat.send("\x04")
        assert chat.ends() == 0


def test_an_answer_in_a_terminal(tmp_path: Path) -> None:
    """It is drawn while it is written, and then stands there whole."""
    with chatting(tmp_path, "--temperature", "0") as chat:
        chat.send("Hello\r")
        shown = chat.waits(PROMPT)
        plain = piped("Hello", options=("--temperature", "0")).stdout.decode().strip()
        assert plain.splitlines()[0][:40] in shown


def test_a_paste_is_one_message(tmp_path: Path) -> None:
    """So are lines between quotes, and lines that Alt-Enter joins."""
    path = tmp_path / "talk.json"
    with chatting(tmp_path, "-n", "4") as chat:
        chat.send("\x1b[200~One day,\na fox\r\nran.\x1b[201~\r")
        chat.waits("(ended: --max-tokens is reached)", PROMPT)
        chat.send('"""Two\r')
        chat.waits("\n. ")
        chat.send('days"""\r')
        chat.waits("(ended: --max-tokens is reached)", PROMPT)
        chat.send("Three\x1b\rdays\r")
        chat.waits("(ended: --max-tokens is reached)", PROMPT)
        chat.send(f"/save {path}\r")
        chat.waits("6 messages", PROMPT)
    messages = json.loads(path.read_text())["messages"]
    questions = [message["content"] for message in messages if message["role"] == "user"]
    assert ["One day,\na fox\nran.", "Two\ndays", "Three\ndays"] == questions
    with chatting(tmp_path) as chat:  # the history has them whole
        chat.send("\x1b[A\x1b[A")
        chat.waits("> Three", "days")


def test_the_context_is_shown_and_the_oldest_turns_are_dropped(tmp_path: Path) -> None:
    """With the option that changes it; `--overflow error` refuses instead."""
    lines, sizes = ["Tell me a story."] * 4, ("--ctx-size", "160", "-n", "60")
    result = piped(*lines, options=(*sizes, "--temperature", "0"))
    notes = result.stderr.decode()
    assert 0 == result.returncode
    assert re.search(
        r"context of 160 tokens is full: the model no longer sees the oldest \d ", notes
    )
    assert "error" not in notes
    refused = piped(*lines, options=(*sizes, "--overflow", "error")).stderr.decode()
    assert "tokens, prompt and answer may have 160; send less, or give a larger --ctx" in refused


def test_another_model_in_the_same_conversation(tmp_path: Path) -> None:
    """A file that cannot chat changes nothing."""
    metadata, tensors = models.llama()
    metadata.pop("tokenizer.chat_template")
    base = models.write(tmp_path / "base.gguf", metadata, tensors)
    other = tmp_path / "other.gguf"
    other.symlink_to(llcuda.demo_model())
    result = piped("Hello", f"/model {base}", "Hello", f"/model {other}", "/retry", "/model")
    refused, *shown = result.stderr.decode().splitlines()
    assert "error: base.gguf has no chat template, so it cannot chat; give --chat" in refused
    assert ["other.gguf, context of"] * 2 == [line[:22] for line in shown]
    assert 3 == len(result.stdout.decode().strip().splitlines())


def test_copy(tmp_path: Path) -> None:
    """Without a desktop the terminal gets the text to copy."""
    with chatting(tmp_path, "--temperature", "0", DISPLAY="", WAYLAND_DISPLAY="") as chat:
        chat.send("Hello\r")
        answer = chat.waits(PROMPT).splitlines()[1].strip()
        chat.send("/copy\r")
        chat.waits("characters to the terminal", PROMPT)
        sequence = re.search(r"\x1b\]52;c;([\w+/=]+)\x07", chat.text)
        assert sequence
        assert answer == base64.b64decode(sequence[1]).decode().strip()


def test_a_terminal_without_cursor_and_utf8(tmp_path: Path) -> None:
    """Answers are plain text there, and characters that cannot be shown are replaced."""
    template = tmp_path / "say.jinja"
    template.write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    variables = {"TERM": "dumb", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    with chatting(tmp_path, "--chat-template", str(template), "-n", "4", **variables) as chat:
        chat.send("Zo\xeb\r")
        chat.waits("(ended: --max-tokens is reached)", PROMPT)
        assert "\x1b[" not in chat.text.replace("\x1b[?2004h", "")
        chat.send("\x04")
        assert chat.ends() == 0
