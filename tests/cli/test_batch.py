"""llcuda batch: a file of requests becomes a file of answers, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.batches import chat_line
from tests.support.commands import run

OPTIONS = ("--threads", 1, "--ctx-size", 256, "--parallel", 2, "--pooling", "mean")


def write(path: Path, lines: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answers(path: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["custom_id"]: line["response"] for line in lines}
    assert len(found) == len(lines)
    return found


def test_answers_and_resume(tmp_path: Path) -> None:
    """Refusals stand beside answers; a cut line is answered again, whole ones are kept."""
    body = {"input": ["a", "b"], "zzz": 1}
    embed = {"custom_id": "e", "url": "/v1/embeddings", "body": body}
    lines = [*(chat_line(str(i)) for i in range(4)), chat_line("bad", max_tokens="x"), embed]
    source = write(tmp_path / "in.jsonl", lines)
    target = tmp_path / "out.jsonl"
    first = run("batch", source, target, *OPTIONS)
    assert (1, "") == (first.status, first.stdout)
    assert "6 answers" in first.stderr
    assert "1 of them refusals" in first.stderr
    assert "ignored: zzz\n" in first.stderr
    found = answers(target)
    assert {*"0123", "bad", "e"} == set(found)
    assert (400, "max_tokens") == (
        found["bad"]["status_code"],
        found["bad"]["body"]["error"]["param"],
    )
    assert 2 == len(found["e"]["body"]["data"])
    assert 4 == found["1"]["body"]["usage"]["completion_tokens"]
    whole = target.read_bytes()
    target.write_bytes(whole[:-9])
    again = run("batch", source, target, *OPTIONS)
    assert "1 answers" in again.stderr
    assert "5 were there" in again.stderr
    assert set(found) == set(answers(target))
    assert target.read_bytes().startswith(whole[: whole.rindex(b"\n", 0, -1)])
    last = run("batch", source, target, *OPTIONS)
    assert 1 == last.status
    assert "all 6 requests are answered" in last.stderr
    assert "1 of them with refusals" in last.stderr


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "has no requests"),
        ([chat_line("1"), chat_line("1")], "custom_id='1': several"),
        ([chat_line("1"), 5], "in.jsonl, line 2: expected a JSON object, not 5"),
        ([{"url": "/v1/completions", "body": {}}], "in.jsonl, line 1: custom_id: missing"),
        ([{**chat_line("1"), "custom_id": ""}], "in.jsonl, line 1: custom_id: expected 1 to 512"),
        ([{**chat_line("1"), "method": "GET"}], "in.jsonl, line 1: method='GET'"),
        ([{**chat_line("1"), "url": "/v1/models"}], "in.jsonl, line 1: url='/v1/models'"),
        ([{**chat_line("1"), "url": "http://127.0.0.1/v1/completions"}], "in.jsonl, line 1: url"),
        ([{**chat_line("1"), "url": "file:///etc/passwd"}], "in.jsonl, line 1: url"),
        ([{**chat_line("1"), "body": []}], "in.jsonl, line 1: body=[]"),
        ([chat_line("1", stream=True)], "in.jsonl, line 1: body.stream"),
    ],
)
def test_wrong_requests(tmp_path: Path, lines: list[Any], words: str) -> None:
    """A wrong line is named before anything is written."""
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    result = run("batch", source, target)
    assert 2 == result.status
    assert words in result.stderr
    assert not target.exists()


def test_wrong_files(tmp_path: Path) -> None:
    """Another file in place of OUT stays as it is."""
    source = write(tmp_path / "in.jsonl", [chat_line("1")])
    for content in (b"notes\n", b"notes", b'{"id": "other"}\n', b"\xff"):
        target = tmp_path / "out.jsonl"
        target.write_bytes(content)
        result = run("batch", source, target)
        assert (2, content) == (result.status, target.read_bytes())
        assert "name another file for OUT" in result.stderr
    assert "is IN too" in run("batch", source, source).stderr
    assert "JSON" in run("batch", write(tmp_path / "x", []), tmp_path / "y").stderr
    missing = run("batch", tmp_path / "missing.jsonl", tmp_path / "y")
    assert (2, f"{tmp_path}/missing.jsonl: No such file or directory") == (
        missing.status,
        missing.stderr.removeprefix("error: ").strip(),
    )
    assert "tory" in run("batch", tmp_path, tmp_path / "y").stderr  # a directory
    assert "tory" in run("batch", write(tmp_path / "z", [chat_line("1")]), tmp_path).stderr
    assert "No such file" in run("batch", tmp_path / "z", tmp_path / "no" / "y").stderr
    other = tmp_path / "other.gguf"
    assert str(other) in run("batch", source, tmp_path / "y", "--model", other).stderr
    (tmp_path / "in.jsonl").write_bytes(b"{\n")
    assert "line 1" in run("batch", source, tmp_path / "y").stderr
