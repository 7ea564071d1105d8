"""`llcuda run` and `llcuda chat` on an instruct model and on a base model."""

from __future__ import annotations

import json
from pathlib import Path

from tests.real.conftest import GEMMA, QWEN, file
from tests.support.commands import call
from tests.support.terminal import terminal

GREEDY = ("--temperature", "0", "-n", "40")


def test_an_instruct_model_answers() -> None:
    """With stdin behind the prompt; --raw continues."""
    model = str(file(QWEN))
    answer = call("run", model, "What is the capital of France?", *GREEDY)
    assert (0, "") == (answer.status, answer.stderr)
    assert "The capital of France is Paris." == answer.stdout.strip()
    text = b"def add(a, b):\n    return a + b\n"
    answer = call("run", model, "In which language is this written?", *GREEDY, text=text)
    assert "Python" in answer.stdout
    continuation = call("run", "-m", model, "The capital of France is", "--raw", *GREEDY)
    assert continuation.stdout.startswith(" Paris")


def test_a_base_model_continues() -> None:
    """A line on stderr says so; it cannot chat."""
    model = file(GEMMA)
    result = call("run", str(model), "The capital of France is", *GREEDY)
    assert 0 == result.status
    assert result.stderr.startswith(f"{model.name} has no chat template, so it continues")
    assert "France" in result.stdout
    refused = call("chat", str(model))
    assert (2, "") == (refused.status, refused.stdout)
    assert f"{model.name} has no chat template, so it cannot chat" in refused.stderr


def test_an_answer_in_a_format(tmp_path: Path) -> None:
    """Of a JSON schema, also in a chat."""
    schema = tmp_path / "city.json"
    properties = {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}}
    schema.write_text(
        json.dumps({"type": "object", "properties": properties, "required": ["city", "people"]})
    )
    question, options = "Name a large city.", ("--json-schema", str(schema), *GREEDY)
    document = json.loads(call("run", str(file(QWEN)), question, "--json", *options).stdout)
    answer = json.loads(document["text"])
    assert {"city": str, "people": int} == {key: type(value) for key, value in answer.items()}
    lines = call("chat", str(file(QWEN)), *options, text=f"{question}\n".encode() * 2).stdout
    assert 2 == sum("city" in json.loads(line) for line in lines.splitlines() if line)


def test_a_chat_in_a_terminal(tmp_path: Path) -> None:
    """A paste is one message, Ctrl-C stops an answer, another model refuses to chat."""
    with terminal(tmp_path, "chat", str(file(QWEN)), *GREEDY[:2], "--ctx-size", "4096") as chat:
        chat.waits(f"{QWEN}, context of 4,096 tokens (--ctx-size changes it)", "\n> ")
        chat.send("\x1b[200~What is the sum of these numbers?\n1\n1\x1b[201~\r")
        assert "2" in chat.waits("\n> ").rpartition("\n1 ")[2]
        chat.send("Count from 1 to 1000, one number on each line.\r")
        chat.waits("7")
        chat.send("\x03")
        chat.waits("(stopped)", "\n> ")
        chat.send("/stats\r")
        assert "cancelled" in chat.waits("seed")
        chat.send(f"/model {file(GEMMA)}\r")
        chat.waits("it cannot chat", "\n> ")
        chat.send("/retry\r")
        chat.waits("7")
        chat.send("\x03")
        chat.waits("(stopped)", "\n> ")
        chat.send("\x04")
        assert 0 == chat.ends()
