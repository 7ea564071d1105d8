"""llcuda tokenize, score and embed: texts as arguments, from files and from stdin."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Context, Embedder, Model
from tests.support.commands import documents, run

# One thread, as others may keep the processors busy.
SCORE = ("score", "demo", "--threads", 1)
EMBED = ("embed", "demo", "--threads", 1)
COMMANDS: dict[str, tuple[Any, ...]] = {
    "tokenize": ("tokenize", "demo"), "score": SCORE, "embed": (*EMBED, "--pooling", "mean"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo") as loaded:
        yield loaded


# --- tokenize ---


def test_tokens_are_those_of_the_model(model: Model) -> None:
    """With their texts, as a list, as a number, as a document."""
    text = "Once <|im_end|>\né"
    tokens = model.tokenize(text, parse_special=True)
    shown = run("tokenize", "demo", text)
    assert [int(line.split()[0]) for line in shown.stdout.splitlines()] == tokens
    assert "  3  '<|im_end|>'" in shown.stdout
    assert r"'\n'" in shown.stdout
    assert documents("tokenize", "demo", text, "--ids") == [tokens]
    assert documents("tokenize", "demo", text, "--count") == [len(tokens)]
    [document] = documents("tokenize", "demo", text, "--json")
    assert (document["count"], document["tokens"]) == (len(tokens), tokens)
    assert len(document["pieces"]) == len(tokens)
    plain = model.tokenize(text, add_special=False)
    asked = ("tokenize", "demo", text, "--ids", "--no-bos", "--no-special")
    assert documents(*asked) == [plain]


def test_tokens_of_a_file(model: Model, tmp_path: Path) -> None:
    """The line break at its end is no part of the text."""
    (tmp_path / "text").write_bytes(b"a \xc3\xa9 b\n")
    expected = [model.tokenize(b"a \xc3\xa9 b", parse_special=True)]
    for asked in (("-f", tmp_path / "text"), ("-f", "-"), ("-",), ()):
        stdin = b"" if asked == ("-f", tmp_path / "text") else b"a \xc3\xa9 b\n"
        assert documents("tokenize", "demo", *asked, "--ids", stdin=stdin) == expected


# --- score ---


def test_scores_are_those_of_the_context(model: Model) -> None:
    """Each token's log-probability, their sum, and the perplexity."""
    text = "Once upon a time there was a girl"
    tokens = model.tokenize(text)
    with Context(model, ctx_size=64, threads=1) as context:
        expected = context.score(tokens)
    [document] = documents(*SCORE, text, "--json", "--top", 2)
    assert [item["token"] for item in document["scores"]] == tokens[1:]
    found = [item["logprob"] for item in document["scores"]]
    assert found == pytest.approx(expected.tolist(), abs=1e-3)
    assert document["logprob"] == pytest.approx(sum(found))
    assert document["perplexity"] == pytest.approx(math.exp(-np.mean(found)))
    assert [len(item["top"]) for item in document["scores"]] == [2] * len(found)
    shown = run(*SCORE, text, "--top", 1).stdout
    assert f"perplexity {document['perplexity']:.4f}" in shown
    assert "' time'" in shown


def test_scores_after_a_prompt(model: Model) -> None:
    """The prompt's tokens are not scored; the likely text is the likelier one."""
    asked = (*SCORE, "--prompt", "Once upon a", " time", " ball")
    likely, unlikely = documents(*asked, "--json")
    assert likely["tokens"] == unlikely["tokens"] == 1
    assert likely["logprob"] > unlikely["logprob"] + 5
    assert [item["piece"] for item in likely["scores"]] == [" time"]
    rows = run(*asked).stdout.splitlines()
    assert rows[0].split() == ["Tokens", "Log-prob.", "Perplexity", "Text"]
    assert rows[1].endswith(" time")


def test_each_line_has_a_score() -> None:
    """Of stdin and of JSON lines."""
    plain = documents(*SCORE, "--lines", "--json", stdin=b"One day\r\na fox ran\n")
    rows = b'{"t": "One day"}\n\n{"t": "a fox ran", "n": 1}\n'
    objects = documents(*SCORE, "--field", "t", "--json", stdin=rows)
    assert [document["text"] for document in plain] == ["One day", "a fox ran"]
    assert objects == plain


# --- embed ---


def test_vectors_are_those_of_the_embedder(model: Model, tmp_path: Path) -> None:
    """As JSON lines and as an array, with a prefix and fewer numbers."""
    texts = ["The fox ran home.", "It rained."]
    with Embedder(model, pooling="mean", threads=1) as embedder:
        expected = embedder.embed_counted(["query: " + text for text in texts], dimensions=8)
    (tmp_path / "texts").write_text("".join(f"{text}\n" for text in texts))
    asked = (*EMBED, "--pooling", "mean", "--prefix", "query: ", "--dimensions", 8)
    lines = documents(*asked, *texts)
    assert [line["index"] for line in lines] == [0, 1]
    assert [line["tokens"] for line in lines] == [*expected.token_counts]
    values = np.array([line["embedding"] for line in lines], np.float32)
    assert np.allclose(values, expected.values, atol=1e-5)
    target = tmp_path / "vectors.npy"
    from_file = ("--lines", "-f", tmp_path / "texts")
    written = run(*asked, *from_file, "-o", target)
    assert (written.status, written.stdout) == (0, "")
    assert written.stderr.endswith("vectors.npy: 2 vectors\n")
    assert np.load(target).dtype == np.float32
    assert np.allclose(np.load(target), expected.values, atol=1e-5)
    run(*asked, *from_file, "-o", tmp_path / "vectors.jsonl")
    assert len((tmp_path / "vectors.jsonl").read_text().splitlines()) == 2
    raw = documents(*EMBED, "--pooling", "last", "--no-normalize", "x")
    assert np.linalg.norm(raw[0]["embedding"]) != pytest.approx(1, abs=0.1)


def test_texts_beyond_one_batch(model: Model) -> None:
    """Numbered on; a text at fault is named by its place among all."""
    lines = b"".join(b"text %d\n" % i for i in range(300))
    asked = (*EMBED, "--pooling", "mean", "--lines", "--dimensions", 1, "--ctx-size", 32)
    vectors = documents(*asked, stdin=lines)
    assert [vector["index"] for vector in vectors] == [*range(300)]
    failed = run(*asked, stdin=lines + b"a b c d e f g " * 9)
    assert failed.status == 2
    assert "text 301: has " in failed.stderr
    assert "at most 32 are allowed; --truncate drops its end, a larger --ctx-size" in failed.stderr
    assert run(*asked, "--truncate", stdin=b"a b c d e f g " * 9).status == 0


# --- wrong input ---


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        ((), b"", "stdin is empty; give a text"),
        ((), b"a\0b", "stdin is binary data"),
        ((), b"caf\xe9", "stdin is not UTF-8 (byte 3 is 0xe9); convert it, e.g.: iconv"),
        (("-f", "bytes"), b"", "bytes is binary data"),
        (("-f", "latin1"), b"", "latin1 is not UTF-8 (byte 3 is 0xe9); convert it, e.g.: iconv"),
        (("-f", "no-such-file"), b"", "no-such-file cannot be read: No such file"),
        (("-f", "."), b"", ". cannot be read: Is a directory"),
    ],
    ids=["empty", "binary", "latin1", "binary file", "latin1 file", "no file", "folder"],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_text(
    command: str,
    arguments: tuple[str, ...],
    stdin: bytes,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit status 2, and one sentence."""
    monkeypatch.chdir(tmp_path)
    Path("bytes").write_bytes(b"a\0\x93")
    Path("latin1").write_bytes(b"caf\xe9\n")
    result = run(*COMMANDS[command], *arguments, stdin=stdin)
    assert (result.status, result.stdout) == (2, "")
    assert says in result.stderr


@pytest.mark.parametrize(("text", "says"), [(b"a\0", "binary data"), (b"\xe9", "not UTF-8")])
def test_perplexity_of_other_data(text: bytes, says: str) -> None:
    """It is refused as by the other commands."""
    result = run("perplexity", "demo", "-f", "-", stdin=text)
    assert (2, True) == (result.status, f"stdin is {says}" in result.stderr)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("tokenize", "demo", "x", "-f", "y"), "give TEXT or --file, not both"),
        (("tokenize", "demo", "x", "--ids", "--count"), "give one of --count, --ids and --json"),
        (("tokenize", "no-such-model", "x"), "no-such-model"),
        ((*SCORE, ""), "text 1: has no token that can be scored"),
        ((*SCORE, "x " * 5000), "text 1: has 10,0"),
        ((*SCORE, "x", "--top", "101"), "--top"),
        ((*EMBED, "x"), "names no pooling, .*; --pooling mean or last gives vectors"),
        ((*EMBED, "-f", "bytes", "--pooling", "mean"), "bytes is not UTF-8"),
        ((*EMBED, "x", "--pooling", "best"), "--pooling 'best': expected one of"),
        ((*EMBED, "x", "--pooling", "mean", "-o", "x.txt"), r"ends in .npy or .jsonl"),
        ((*EMBED, "x", "--pooling", "mean", "-o", "no/x.npy"), "folder no does not exist"),
        (
            ("embed", "demo", "x", "--pooling", "mean", "--dimensions", "999"),
            "--dimensions 999: ex",
        ),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, tuple) else "",
)
def test_wrong_options(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named as the command line has them; nothing is written."""
    monkeypatch.chdir(tmp_path)
    Path("bytes").write_bytes(b"a \xff")
    result = run(*arguments)
    assert result.status in (1, 2)
    assert result.stdout == ""
    assert re.search(says, result.stderr), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bytes"]


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        (b"{}", "stdin, line 1: the object has no text 't'"),
        (b'{"t": 5}', "stdin, line 1: the object has no text 't'"),
        (b'{"t": "x"}\nhello', "stdin, line 2: is not JSON"),
        (b"[1]", "stdin, line 1: expected a JSON object, not list"),
        (b"[" * 100_000, "stdin, line 1: is not JSON"),
        (b"\n\n", "there is no text"),
    ],
    ids=["none", "number", "text", "list", "deep", "blank"],
)
def test_lines_that_are_no_objects(stdin: bytes, says: str) -> None:
    """The error names the line."""
    result = run(*EMBED, "--pooling", "mean", "--field", "t", stdin=stdin)
    assert (result.status, result.stdout) == (2, "")
    assert says in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_text_in_place_of_the_model(command: str) -> None:
    """The error names it, and stdin is not read."""
    result = run(command, "hello world", stdin=b"a\0b")
    assert (1, "") == (result.status, result.stdout)
    assert "'hello world'" in result.stderr
    assert "the first argument is MODEL, the next TEXT" in result.stderr
