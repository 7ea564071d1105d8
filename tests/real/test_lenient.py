"""Requests of other servers' clients, answered by Qwen: hints ignored, other names followed."""

from __future__ import annotations

import json
from typing import Any

from llcuda.server import ModelSpec
from llcuda.server.leniency import HEADER
from tests.real.conftest import QWEN, file
from tests.support.server import is_error, served

MESSAGES = [{"role": "user", "content": "A person as JSON."}]
PERSON = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
}  # fmt: skip


def test_clients_of_other_servers() -> None:
    """One server, quantized KV cache: hints, names of formats, no limit, overflow."""
    settings = {"ctx_size": 2048, "n_parallel": 2, "type_k": "q8_0", "type_v": "q8_0"}
    spec = ModelSpec("coder", str(file(QWEN)), parameters={**settings, "flash_attention": True})
    with served(spec) as server:
        hints: dict[str, Any] = {
            "reasoning_effort": "high",
            "store": True,
            "options": {},
            "stop": "",
        }
        answer = server.post(
            "/v1/chat/completions",
            model="gpt-5",
            messages=MESSAGES,
            max_tokens=4,
            **hints,
        )
        assert (200, "coder") == (answer.status_code, answer.json()["model"])
        for name in ("reasoning_effort", "store", "options", "stop", "model"):
            assert name in answer.headers[HEADER]
        for given in (
            {"response_format": {"type": "json_object", "schema": PERSON}, "max_tokens": -1},
            {"guided_json": PERSON}, {"structured_outputs": {"json": PERSON}},
        ):  # fmt: skip
            body = {"messages": MESSAGES, "temperature": 0, **given}
            [choice] = server.post("/chat/completions", **body).json()["choices"]
            assert PERSON["required"] == [*json.loads(choice["message"]["content"])]
        long = [{"role": "user", "content": "word " * 5000}]
        error = is_error(server.post("/v1/chat/completions", messages=long), 400, "messages")
        assert "this model's maximum context length is 2048 tokens" in error["message"]
