"""`llcuda chat`, as a process: with pipes, and in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda.cli.chat_commands import Conversation
from llcuda.cli.markdown import MarkdownWriter, complete_length, printable
from llcuda.errors import ArgumentError
from tests.support.waiting import PATIENCE

COMMAND = [sys.executable, "-m", "llcuda", "chat", "demo", "--threads", "1"]
ENDLESS = "/set grammar root ::= [a-z ] root"


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
    loaded, answer, stats = again.stdout.decode().splitlines()
    assert (loaded, answer) == ("5 messages", messages[-1]["content"])
    assert re.match(r"prompt \d+ tokens, .* first token after \d.*; stop; seed \d+", stats)


def test_a_line_that_goes_on() -> None:
    """A backslash at the end joins lines into one message; empty lines are none."""
    result = piped("Tell me \\", "a story.", "", "   ", "/exit", "Hello")
    assert result.returncode == 0
    assert result.stderr == b""
    assert len(result.stdout.decode().strip()) > 5


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
    ("/regenerate", "there is no question yet"),
    ("/clear all", "this command takes no arguments"),
    ("word " * 20_000, "tokens"),
]


def test_errors_are_one_message() -> None:
    """What cannot be done is one line on stderr, and the conversation goes on."""
    result = piped(*[line for line, _ in REFUSED], "Hello")
    assert result.returncode == 0
    lines = result.stderr.decode().splitlines()
    for (_, expected), line in zip(REFUSED, lines, strict=True):
        assert expected in line
        assert line.startswith("error: ")
    assert result.stdout.strip()


def test_bytes_that_are_no_text() -> None:
    """Invalid UTF-8 and control characters are a message like any."""
    result = piped(b"caf\xe9 \xff\x00\x1b[2J\n", "Hello")
    assert result.returncode == 0, result.stderr.decode()
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
    assert "temperature 0.5" in talk.set("").splitlines()
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


def visible(text: str) -> str:
    """Return what a terminal gets without its control sequences."""
    return re.sub(r"\x1b\[[\d;?]*\w", "", text)


class Terminal:
    """A process in a terminal of its own."""

    def __init__(self, *options: str, home: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x18\x00\x50\x00\0\0\0\0")  # 24 x 80
        environment = {**os.environ, "XDG_STATE_HOME": str(home), "TERM": "xterm"}
        self._process = subprocess.Popen(
            [*COMMAND, *options],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.text = ""

    def send(self, keys: str) -> None:
        """Type."""
        self.text = ""
        os.write(self._master, keys.encode())

    def waits(self, *said: str, letters: int = 0) -> str:
        """Return what is shown since the last keys, when each of `said` and `letters` are there."""
        deadline = time.monotonic() + PATIENCE
        while not all(part in self.text for part in said) or len(visible(self.text)) < letters:
            assert time.monotonic() < deadline, self.text
            if select.select([self._master], [], [], 0.1)[0]:
                self.text += os.read(self._master, 65536).decode(errors="replace")
        return self.text

    def ends(self) -> int:
        """Return the status."""
        with contextlib.suppress(OSError):  # the terminal has gone
            while os.read(self._master, 65536):
                pass
        return self._process.wait(120)

    def close(self) -> None:
        """End it if it runs still."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@contextlib.contextmanager
def terminal(home: Path, *options: str) -> Iterator[Terminal]:
    """Start a chat and wait until it asks."""
    opened = Terminal(*options, home=home)
    try:
        opened.waits("/help for help", "> ")
        yield opened
    finally:
        opened.close()


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(tmp_path: Path) -> None:
    """What there is stays in the conversation; at the prompt Ctrl-C only says how to leave."""
    with terminal(tmp_path, "--ctx-size", "40000") as chat:
        chat.send(f"{ENDLESS}\r")
        chat.waits("grammar", "> ")
        chat.send("Hello\r")
        chat.waits(letters=200)
        chat.send("\x03")
        chat.waits("(stopped)", "> ")
        chat.send("/stats\r")
        assert "cancelled" in chat.waits("seed")
        chat.send("/set grammar default\r")
        chat.waits("grammar: the default", "> ")
        chat.send("And now?\r")
        chat.waits("> ")
        chat.send("half a line")
        chat.waits("half a line")
        time.sleep(0.5)  # a signal between its echo and its wait, Python's readline sees late
        chat.send("\x03")
        chat.waits("(Ctrl-D leaves)", "> ")
        chat.send("\x04")
        assert chat.ends() == 0


def test_history(tmp_path: Path) -> None:
    """Lines can be called up again, in a later process too; nobody else may read them."""
    with terminal(tmp_path) as chat:
        chat.send("/stats\r")
        chat.waits("no answer yet", "> ")
        chat.send("/exit\r")
        assert chat.ends() == 0
    path = tmp_path / "llcuda" / "chat_history"
    assert path.read_text().splitlines()[-2:] == ["/stats", "/exit"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with terminal(tmp_path) as chat:
        chat.send("\x1b[A\x1b[A\r")
        chat.waits("no answer yet", "> ")
        chat.send("/sta\t\r")
        chat.waits("no answer yet", "> ")
        chat.send("/statz\x7fs\r")
        chat.waits("no answer yet", "> ")


def test_without_a_place_for_the_history(tmp_path: Path) -> None:
    """A folder that cannot be made, or a history that is none, keeps nobody from talking."""
    (tmp_path / "llcuda").write_bytes(b"\xff\xfe no folder")
    with terminal(tmp_path) as chat:
        chat.send("/stats\r")
        chat.waits("no answer yet", "> ")
        chat.send("\x04")
        assert chat.ends() == 0


def test_an_answer_in_a_terminal(tmp_path: Path) -> None:
    """It is drawn while it is written, and then stands there whole."""
    with terminal(tmp_path, "--temperature", "0") as chat:
        chat.send("Hello\r")
        shown = chat.waits("> ")
        plain = piped("Hello", options=("--temperature", "0")).stdout.decode().strip()
        assert plain.splitlines()[0][:40] in visible(shown)
