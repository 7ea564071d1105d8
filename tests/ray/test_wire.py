"""The answers over a cluster are those of one process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

pytest.importorskip("ray")
from llcuda.server import Limits
from tests.support.cluster import Clustered, comparable, on_cluster
from tests.support.server import Served, served
from tests.support.waiting import ENDLESS

MESSAGES = [{"role": "user", "content": "Tell me about the fox."}]
GREEDY = {"temperature": 0, "max_tokens": 12}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, **GREEDY}),
    ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, **GREEDY}),
    ("/v1/chat/completions", {"messages": MESSAGES, "n": 3, "seed": 5, "max_tokens": 8}),
    ("/v1/completions", {"prompt": ["Once upon", "The wind"], **GREEDY}),
    ("/completion", {"prompt": "Once upon a time", "n_predict": 8, "temperature": 0, "seed": 1}),
    ("/v1/responses", {"input": "Once upon a time", "max_output_tokens": 8, "temperature": 0}),
    ("/v1/messages", {"messages": MESSAGES, **GREEDY}),
    (
        "/api/chat",
        {"messages": MESSAGES, "stream": False, "options": {"num_predict": 8, "seed": 1}},
    ),
    ("/v1/embeddings", {"input": ["one", "two"]}),
    ("/tokenize", {"content": "Once upon a time"}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": MESSAGES, "temperature": -1}),
    ("/v1/messages", {"messages": [], "max_tokens": 4}),
    ("/no/such/path", {}),
]
STREAMS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, **GREEDY}),
    ("/v1/completions", {"prompt": "Once upon", **GREEDY}),
    ("/v1/responses", {"input": "Once upon a time", "max_output_tokens": 8, "temperature": 0}),
    ("/v1/messages", {"messages": MESSAGES, **GREEDY}),
    ("/api/chat", {"messages": MESSAGES, "options": {"num_predict": 8, "temperature": 0}}),
    ("/completion", {"prompt": "Once upon a time", "n_predict": 8, "temperature": 0, "seed": 1}),
]


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_an_answer_is_that_of_one_process(number: int, server: Clustered, plain: Served) -> None:
    path, body = REQUESTS[number]
    assert comparable(server.post(path, **body)) == comparable(plain.post(path, **body))


def test_a_request_has_the_id_that_was_sent(server: Clustered) -> None:
    response = server.client.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert response.headers.get_list("x-request-id") == ["mine-1"]


@pytest.mark.parametrize("number", range(len(STREAMS)))
def test_a_stream_is_that_of_one_process(number: int, server: Clustered, plain: Served) -> None:
    """Events may be joined otherwise: their kinds and their text are compared."""
    path, body = STREAMS[number]

    def read(client: httpx.Client) -> tuple[int, str, list[str], str]:
        response = client.post(path, json={**body, "stream": True})
        text = response.text
        kinds = re.findall(
            r'(?m)^event: (\S+)$|"type": ?"([\w.]+)"|(\[DONE\])|"(done)": ?true', text
        )
        pieces = re.findall(r'"(?:text|content|delta|response)": ?"((?:[^"\\]|\\.)*)"', text)
        kind = response.headers["content-type"]
        return response.status_code, kind, [*dict.fromkeys(map("".join, kinds))], "".join(pieces)

    assert read(server.client) == read(plain.client)


def test_the_packages_of_openai_read_answers(server: Clustered) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": "demo", "messages": MESSAGES, **GREEDY}
        whole = client.chat.completions.create(**asked).choices[0].message.content
        chunks = client.chat.completions.create(**asked, stream=True)
        assert whole == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        with pytest.raises(openai.NotFoundError, match="no such path"):
            client.get("/nothing", cast_to=object)


def test_the_deadline_of_a_request_holds(server: Clustered) -> None:
    answer = server.post("/v1/completions", prompt="Once", **{**ENDLESS, "timeout": 0.5})
    assert (200, "length") == (answer.status_code, answer.json()["choices"][0]["finish_reason"])


def test_an_upload_above_the_limit_is_refused(port: int) -> None:
    limits = Limits(body_bytes=1000, file_bytes=2000, total_file_bytes=4000)
    with on_cluster(port, limits=limits, keys=["k"], cors_origins=["https://a"]) as server:
        files = {"file": ("lines.jsonl", b"x" * 100_000)}
        key = {"authorization": "Bearer k", "origin": "https://a"}
        sent: dict[str, Any] = {"files": files, "data": {"purpose": "batch"}, "headers": key}
        response = server.client.post("/v1/files", **sent)
        assert (413, "body_too_large") == (response.status_code, response.json()["error"]["code"])
        assert "https://a" == response.headers["access-control-allow-origin"]
        body = {"prompt": "x" * 2000}
        large = server.client.post("/v1/completions", json=body, headers=key)
        assert (413, "body_too_large") == (large.status_code, large.json()["error"]["code"])
        refused = server.post("/v1/completions", prompt="x")
        assert (401, "invalid_api_key") == (refused.status_code, refused.json()["error"]["code"])
        strange = server.client.get("/v1/models", headers={**key, "host": "evil"})
        assert (403, "unknown_host") == (strange.status_code, strange.json()["error"]["code"])
