"""Requests made from the OpenAPI document, for every path of every API: none fails the server.

LLCUDA_FUZZ_EXAMPLES is how many of each kind (`make fuzz EXAMPLES=200`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from llcuda.server.protocol import Body
from tests.server.test_chat import TEMPLATE
from tests.server.test_errors import ELSEWHERE, fields_of
from tests.support.server import PYTHON, QUOTED, Served, demo, served
from tests.support.waiting import eventually

EXAMPLES = int(os.environ.get("LLCUDA_FUZZ_EXAMPLES", "2"))
CHAT = [{"role": "user", "content": "Who are you?"}]
TOOL = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
# Bodies that are answered, of which a request changes some fields.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {
        "messages": CHAT,
        "tools": [{"type": "function", "function": TOOL}],
    },
    "/v1/responses": {
        "input": "a",
        "max_output_tokens": 2,
        "tools": [{"type": "function", **TOOL}],
    },
    "/v1/embeddings": {"input": "a"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v2/rerank": {"query": "a", "documents": ["b"]},
    "/v1/classify": {"input": "a"},
    "/v1/score": {"text_1": "a", "text_2": "b"},
    "/v1/messages": {"messages": CHAT, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": CHAT},
    "/v1/batches": {"input_file_id": "file-0", "endpoint": "/v1/embeddings"},
    "/completion": {"prompt": "a", "n_predict": 2},
    "/completions": {"prompt": "a", "n_predict": 2},
    "/infill": {"input_prefix": "a", "input_suffix": "b", "n_predict": 2},
    "/apply-template": {"messages": CHAT},
    "/chat/completions/input_tokens": {"messages": CHAT},
    "/v1/chat/completions/input_tokens": {"messages": CHAT},
    "/lora-adapters": {"adapters": []},
    "/slots/{slot}": {"filename": "a"},
    "/tokenize": {"content": "a"},
    "/detokenize": {"tokens": [1]},
    "/api/chat": {"messages": CHAT, "options": {"num_predict": 2}},
    "/api/generate": {"prompt": "a", "options": {"num_predict": 2}},
    "/api/embed": {"input": "a"},
    "/api/embeddings": {"prompt": "a"},
    "/api/show": {"model": "demo"},
    "/api/pull": {"model": "demo"},
}
# Statuses of 500 and more that say what is wrong: with "busy" they name a time to come again.
REFUSALS = {501: "the server or the model lacks it", 503: "busy", 507: "no room for a file"}
# What the `param` of an error may begin with.
NAMES = {"", "slot", *ELSEWHERE, *fields_of(Body)}
# What this model cannot do, or what names a thing that is not there.
NOT_HERE = {"/infill", "/slots/{slot}", "/v1/batches", "/v1/classify", "/v1/rerank", "/v2/rerank"}
# Beside these a random request would generate for as long as the context has room.
BOUNDS: dict[str, Any] = {"timeout": 0.2, "max_tokens": 4}


@pytest.fixture(scope="module")
def every_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with all that an option turns on."""
    folders = [tmp_path_factory.mktemp(name) for name in ("slots", "files")]
    with served(demo(template=TEMPLATE), slot_folder=folders[0], file_folder=folders[1]) as running:
        yield running


def test_no_request_fails_the_server(every_api: Served) -> None:
    """Right and wrong requests, and right ones with some fields of these, on every path."""
    document = every_api.client.get("/openapi.json").json()
    answered: dict[str, Counter[int]] = {}
    for operation in schemathesis.openapi.from_dict(document).get_all_operations():
        path, has_body = operation.ok(), bool(operation.ok().body)
        for mode in GenerationMode:
            if mode is GenerationMode.POSITIVE or has_body:  # otherwise nothing can be wrong
                _ask(every_api, path.as_strategy(generation_mode=mode), answered)
    paths = {path for path in document["paths"] if path not in answered}
    assert not paths
    assert BODIES.keys() <= answered.keys()
    right = {path for path in BODIES if not answered[path][200]}
    assert right <= NOT_HERE
    assert eventually(every_api.idle)
    assert "ok" == every_api.client.get("/health").json()["status"]


def _ask(server: Served, cases: Any, answered: dict[str, Counter[int]]) -> None:
    @given(case=cases, data=st.data())
    @settings(max_examples=EXAMPLES)
    def check(case: Any, data: st.DataObject) -> None:
        kept = BODIES.get(case.path)
        _check(case.call(base_url=server.url), answered.setdefault(case.path, Counter()))
        if kept is not None:
            body = case.body if isinstance(case.body, dict) else {}
            names = data.draw(st.lists(st.sampled_from(sorted(body)), max_size=3)) if body else []
            case.body = {**BOUNDS, **kept, **{name: body[name] for name in names}}
            if "model" in case.body:
                case.body["model"] = "demo"
            _check(case.call(base_url=server.url), answered[case.path])

    check()


def _check(answer: httpx.Response, statuses: Counter[int]) -> None:
    status = answer.status_code
    statuses[status] += 1
    assert status < 500 or status in REFUSALS, answer.text
    assert status != 503 or "retry-after" in answer.headers, answer.text
    if status < 400:
        return
    error = answer.json().get("error")
    message = error["message"] if isinstance(error, dict) else error
    param = error.get("param") if isinstance(error, dict) else None
    assert re.split(r"[.[]", param or "")[0] in NAMES, answer.text
    assert message
    words = QUOTED.sub("''", message).replace("expected float or base64", "")  # OpenAI's words
    assert not PYTHON.search(words), message
    assert "Traceback" not in answer.text
