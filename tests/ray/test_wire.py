"""The answers over a cluster are those of one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ray")
from tests.support.cluster import Clustered, comparable
from tests.support.server import Served, served

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
