"""`llcuda run`: how its arguments are read, and what it does with stdin and a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import llcuda
from llcuda import Engine, Model, demo_model
from tests.support import models
from tests.support.commands import Finished, call
from tests.support.terminal import terminal


def run(*arguments: str, text: bytes = b"") -> Finished:
    """Call the command with one thread and a few tokens."""
    options = ("--threads", "1", "-n", "8", "--temperature", "0")
    return call("run", *arguments, *options, text=text)


def document(*arguments: str, text: bytes = b"") -> dict[str, object]:
    """Return what --json prints."""
    result = run(*arguments, "--json", text=text)
    assert 0 == result.status, result.stderr
    read: dict[str, object] = json.loads(result.stdout)
    return read


def base_model(folder: Path) -> str:
    """Write a model without a chat template and return its path."""
    metadata, tensors = models.llama()
    metadata.pop("tokenizer.chat_template")
    return str(models.write(folder / "base.gguf", metadata, tensors))


@pytest.fixture(scope="module")
def answers() -> Callable[[str], str]:
    """Return the beginning of the demo model's answer, from the engine."""
    model = Model("demo")
    engine = Engine(model, threads=1, ubatch_size=128)

    def answer(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        return str(engine.chat(messages, max_tokens=8, temperature=0).result())

    return answer


@pytest.mark.parametrize(
    ("arguments", "text", "question"),
    [
        (("demo", "Who are you?"), b"", "Who are you?"),
        (("-m", "demo", "Who are you?"), b"", "Who are you?"),
        (("demo", "Who", "are", "you?"), b"", "Who are you?"),
        (("-m", "demo", "demo", "me"), b"", "demo me"),
        (("Who are you?",), b"", "Who are you?"),
        (("demo",), b"Who are you?\n", "Who are you?"),
        (("-",), b"Who are you?\n", "Who are you?"),
        (("demo", "-"), b"Who are you?\n", "Who are you?"),
        ((), b"Who are you?\n", "Who are you?"),
        (("demo", "Answer:"), b"Who are you?\n", "Answer:\n\nWho are you?"),
        (("demo", "caf\udce9"), b"", "caf�"),
    ],
)
def test_model_and_prompt(
    arguments: tuple[str, ...], text: bytes, question: str, answers: Callable[[str], str]
) -> None:
    """The model answers what the arguments and stdin say, and nothing is on stderr."""
    result = run(*arguments, text=text)
    assert (0, "") == (result.status, result.stderr)
    assert f"{answers(question)}\n" == result.stdout


@pytest.mark.parametrize(
    "name", ["./model.gguf", "model.gguf", "two words.gguf", "demo", "file://{folder}/model.gguf"]
)
def test_one_argument_that_is_a_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stdin is the prompt then."""
    monkeypatch.chdir(tmp_path)
    for file in ("model.gguf", "two words.gguf"):
        (tmp_path / file).symlink_to(llcuda.demo_model())
    found = document(name.format(folder=tmp_path), text=b"Hello")
    expected = llcuda.demo_model() if name == "demo" else tmp_path / Path(name).name
    assert str(expected) == str(tmp_path / str(found["model"]))


@pytest.mark.parametrize("name", ["qwen", "gemma3", "qwen9-1b", "/no/such.gguf", "nosuch.gguf"])
def test_one_argument_that_may_be_a_model(name: str) -> None:
    """It is looked up, so that a wrong name is not taken for a prompt."""
    result = run(name, text=b"Hello")
    assert (1, "") == (result.status, result.stdout)
    assert name in result.stderr


@pytest.mark.parametrize("name", ["qwen", "demoo", "qwen2.5-1.5b"])
def test_a_model_of_several_words_that_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known or near name is the model's, so nothing is said about quotes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    result = run(name, "hi")
    assert (1, False) == (result.status, "in quotes" in result.stderr)
    assert "did you mean" in result.stderr or "HF_HUB_OFFLINE forbids" in result.stderr


@pytest.mark.parametrize("word", ["Hello", "x", "請用一句話解釋什麼是人工智能", "w" * 300])
def test_one_word_that_is_a_prompt(word: str) -> None:
    """The demo model gets it, and a line on stderr says so."""
    result = run(word)
    assert 0 == result.status
    assert f"no model is named '{word}', so it is a prompt for the demo model" in result.stderr


def test_a_base_model_continues(tmp_path: Path) -> None:
    """A line on stderr says so, but with --raw; --system needs a template."""
    path = base_model(tmp_path)
    result, raw = run(path, "One day"), run(path, "One day", "--raw")
    assert (0, 0) == (result.status, raw.status)
    assert result.stdout == raw.stdout
    line = "base.gguf has no chat template, so it continues the text (--raw omits this line)\n"
    assert (line, "") == (result.stderr, raw.stderr)
    refused = run(path, "One day", "--system", "Be brief.").stderr
    assert refused.startswith("error: --system: base.gguf has no chat template")


def test_a_template_makes_a_base_model_answer(tmp_path: Path) -> None:
    """From a file; its text is what the model gets."""
    path = base_model(tmp_path)
    template = tmp_path / "say.jinja"
    template.write_text("{{ messages[0].content }}!")
    counts = [
        document(path, "One day", *options)["prompt_tokens"]
        for options in (("--chat-template", str(template)), ("--raw",))
    ]
    assert 1 == int(str(counts[0])) - int(str(counts[1]))


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (("demo", "x"), b"\x89PNG\r\n\x1a\n\0\0", "stdin is binary data (it has bytes of value 0)"),
        (("demo",), "Zoë".encode("utf-16"), "stdin is UTF-16; convert it"),
        (("demo",), b"caf\xe9", "stdin is not UTF-8 (byte 3 is 0xe9); convert it"),
        (("demo", "x", "--raw", "--system", "y"), b"", "--system: a continuation has no chat"),
        (("demo", "x", "--raw", "--overflow", "drop"), b"", "--overflow drop: only a chat has"),
        (("demo", "x", "--overflow", "all"), b"", "--overflow all: expected one of drop, error"),
        (
            ("demo", "x", "--adapter", "/no/such.gguf"),
            b"",
            "--adapter: GGUF file not found: /no/such.gguf",
        ),
        (("Who", "are", "you"), b"", "put a prompt in quotes, or give -m MODEL"),
        (
            ("demo", "x", "--chat-template", "no.jinja"),
            b"",
            "--chat-template no.jinja: cannot be read: No such",
        ),
        (("demo", "x", "--ctx-size", "100000000"), b"", "free; choose a smaller --ctx-size\n"),
        (("demo", "x", "--adapter", str(demo_model())), b"", "demo.gguf: is not an adapter; give"),
        (("demo", "x", "--adapter", "y=z"), b"", "--adapter y=z: expected FILE or FILE=SCALE"),
        (("demo", "x", "--regex", "a", "--grammar", __file__), b"", "give one of --json-schema"),
        (("demo",), b"", "stdin is empty"),
        (("demo", ""), b"", "PROMPT is empty"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], text: bytes, message: str) -> None:
    """They are named by their option."""
    result = run(*arguments, text=text)
    assert result.status in (1, 2)
    assert ("", True) == (result.stdout, message in result.stderr), result.stderr


@pytest.mark.parametrize("command", [("run", "demo", "x"), ("chat", "demo"), ("serve", "demo")])
@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--grammar", b"caf\xe9", "is not UTF-8 (byte 3 is 0xe9); convert it, e.g.: iconv"),
        ("--json-schema", "{}".encode("utf-16"), "is UTF-16; convert it, e.g.: iconv"),
        ("--json-schema", b"{", "is not JSON: Expecting property name"),
        (
            "--chat-template",
            b"\x7fELF\0\xe9",
            "is binary data (it has bytes of value 0); give a text",
        ),
        ("--chat-template", b"{{ messages", "the chat template does not parse: "),
        ("--chat-template", b"messages", "is not a Jinja template, which has {{ or {%"),
        ("--grammar", b"\n", "is empty; give a text"),
        ("--grammar", None, "cannot be read: Is a directory"),
        ("--adapter", b"caf\xe9", "is not a GGUF file"),
        ("--api-key-file", b"\n", "is empty; write a key on each line"),
        ("--api-key-file", b"caf\xe9", "is not UTF-8 (byte 3 is 0xe9); convert it, e.g.: iconv"),
    ],
)
def test_a_file_of_an_option_is_read_before_the_model(
    command: tuple[str, ...],
    option: str,
    content: bytes | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is wrong with it is said by its option's name, before anything is loaded."""
    is_served, is_wanted = command[0] == "serve", option in ("--chat-template", "--api-key-file")
    if is_served != is_wanted and (is_served or option == "--api-key-file"):
        pytest.skip("the command has no such option")
    monkeypatch.setattr(Model, "__init__", lambda *_, **__: pytest.fail("a model is loaded"))
    path = tmp_path / "file"
    path.mkdir() if content is None else path.write_bytes(content)
    result = call(*command, option, str(path), text=b"Hello\n")
    assert (2, "") == (result.status, result.stdout)
    assert re.search(rf"error: {option}:? .*{re.escape(message)}", result.stderr), result.stderr


def test_a_file_of_windows(tmp_path: Path) -> None:
    """A byte order mark and line breaks of Windows are not part of the text."""
    path = tmp_path / "grammar"
    path.write_bytes(b'\xef\xbb\xbfroot ::= "ye" rest\r\nrest ::= "s"\r\n')
    assert "yes\n" == run("demo", "Is it so?", "--grammar", str(path)).stdout


def test_an_unknown_name_of_a_template() -> None:
    """The model's names are said."""
    result = run("demo", "x", "--chat-template", "tool_use")
    assert "demo.gguf has no template of this name; its templates: default" in result.stderr


def test_an_adapter_changes_the_text(tmp_path: Path) -> None:
    """With a scale of 0 it does not."""
    path = base_model(tmp_path)
    adapter = str(models.write(tmp_path / "adapter.gguf", *models.lora()))
    texts = [
        document(path, "One day", "--raw", *options)["text"]
        for options in ((), ("--adapter", f"{adapter}=0"), ("--adapter", f"{adapter}=8"))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_prompt_in_a_terminal_it_is_a_chat(tmp_path: Path) -> None:
    """Also without a model; Ctrl-D ends it."""
    with terminal(tmp_path, "run", "--threads", "1", "-n", "4") as chat:
        chat.waits("demo.gguf, context of", "/help for help", "\n> ")
        chat.send("Hello\r")
        chat.waits("(ended: --max-tokens is reached)", "\n> ")
        chat.send("\x04")
        assert 0 == chat.ends()


def test_ctrl_c_in_a_terminal_stops_the_answer(tmp_path: Path) -> None:
    """What there is stays on the screen; the status is 130."""
    grammar = tmp_path / "endless.gbnf"
    grammar.write_text("root ::= [a-z ] root")
    options = ("--threads", "1", "--ctx-size", "40000", "--grammar", str(grammar))
    with terminal(tmp_path, "run", "demo", "Tell me.", *options) as opened:
        opened.waits(letters=200)
        opened.send("\x03")
        assert 130 == opened.ends()
        assert "Traceback" not in opened.text


def test_a_model_does_not_control_the_terminal(tmp_path: Path) -> None:
    """Its escapes are not sent there, also in a continuation."""
    grammar = tmp_path / "escape.gbnf"
    grammar.write_text(r'root ::= "a\x1b[2Jb"')
    options = ("--threads", "1", "--grammar", str(grammar))
    for mode in ("--raw", "--system=x"):
        with terminal(tmp_path, "run", "demo", "Say it.", mode, *options) as opened:
            assert 0 == opened.ends()
            assert "a[2Jb" in opened.text
