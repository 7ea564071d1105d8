"""Large and wrong bodies: what they may cost, and who waits for them."""

import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llcuda.server import bodies
from llcuda.server.bodies import MAX_CONTAINERS, MAX_VALUES, parse_body
from llcuda.server.chunks import json_text
from llcuda.server.errors import ApiError
from llcuda.server.middleware import Limits
from llcuda.server.protocol import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    RerankBody,
    ResponsesBody,
    TokenizeBody,
)
from tests.support.server import Served, demo, is_error, post_bytes, served
from tests.support.waiting import ENDLESS, eventually

BODIES: dict[type[Body], dict[str, Any]] = {
    CompletionBody: {"prompt": "a"},
    ChatBody: {"messages": [{"role": "user", "content": "a"}]},
    ResponsesBody: {"input": "a"},
    EmbeddingBody: {"input": "a"},
    RerankBody: {"query": "a", "documents": ["b"]},
    TokenizeBody: {"content": "a"},
    DetokenizeBody: {"tokens": [1]},
}
FIELDS = [(kind, field) for kind in BODIES for field in kind.model_fields]
LARGE = "the quick brown fox, " * 20_000  # 400 KB, which take long to tokenize


def post(server: Served, path: str, data: bytes) -> httpx.Response:
    """Send bytes as JSON."""
    headers = {"content-type": "application/json"}
    return httpx.post(server.url + path, content=data, headers=headers, timeout=120)


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda v: getattr(v, "__name__", v))
def test_few_errors_are_collected(kind: type[Body], field: str) -> None:
    """However many values of a list or an object are wrong, an error for each is not made."""
    many = 20_000
    wrong: list[Any] = [[value] * many for value in (1.5, "\ud7ff", [], {}, None, [[1.5] * 9])]
    wrong += [{str(i): value for i in range(many)} for value in (1.5, "a", [], None)]
    for value in wrong:
        try:
            kind.model_validate({**BODIES[kind], field: value})
        except ValidationError as error:
            assert error.error_count() < 30


@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        ("/v1/completions", b"10,", b"1.5,"),
        ("/detokenize", b"10,", b"1.5,"),
        ("/v1/embeddings", b"10,", b"[],"),
    ],
)
def test_a_wrong_body_costs_no_more_than_a_right_one(
    server: Served, path: str, right: bytes, wrong: bytes
) -> None:
    """As many values that are wrong are refused as soon as right ones are read."""
    fields = {"/v1/completions": b"prompt", "/detokenize": b"tokens", "/v1/embeddings": b"input"}
    count = 60_000

    def seconds(element: bytes) -> float:
        body = b'{"%s":[%s]}' % (fields[path], (element * count)[:-1])
        started = time.perf_counter()
        post(server, path, body)
        return time.perf_counter() - started

    taken = {element: min(seconds(element) for _ in range(5)) for element in (right, wrong)}
    assert taken[wrong] < 5 * taken[right]


# --- the number of values ---


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        (b'{"tokens":[' + b"1," * (MAX_VALUES - 2) + b"1]}", False),
        (b'{"tokens":[' + b"1," * MAX_VALUES + b"1]}", True),
        (b'{"tokens":[' + b"[]," * MAX_CONTAINERS + b"1]}", True),
        (b'{"tokens":' + b"[" * MAX_CONTAINERS, True),
        (b'{"content":"' + b",{[:" * MAX_VALUES + b'"}', False),
        (b'{"content":"' + b'\\",' * (MAX_VALUES + 9) + b'"}', False),
        (b'{"content":[' + b'"",' * MAX_VALUES + b'""]}', True),
        (b'"",' * 9 + b"," * MAX_VALUES + b'"\\', True),
        (b"," * MAX_VALUES + b':"\\', True),
        (b"," * (MAX_VALUES - 9) + b'"' + b"," * 20 + b"\\", False),
    ],
    ids=lambda value: repr(value[:15]) if isinstance(value, bytes) else None,
)
def test_too_many_values(data: bytes, refused: bool) -> None:
    """Values of the document count, but not what looks like them within a text."""
    kind = DetokenizeBody if b"tokens" in data else TokenizeBody
    try:
        parse_body(kind, data)
    except ApiError as error:
        assert refused == (error.status == 413), error.message
        assert refused == ("1,048,576 values" in error.message)
    else:
        assert not refused


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=60,
)


@given(VALUES)
def test_json_in_parts_is_json(value: Any) -> None:
    """Long answers are written so."""
    assert value == json.loads(json_text(value))


JSON = st.recursive(
    st.none() | st.integers() | st.text('ab"\\,[{:}é\n', max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('ab"\\,'), inner, max_size=4)
    ),
    max_leaves=20,
)


def counted(value: Any) -> tuple[int, int]:
    """Return how many commas and colons a document has, and how many lists and objects."""
    if not isinstance(value, list | dict):
        return 0, 0
    parts = [counted(part) for part in (value.values() if isinstance(value, dict) else value)]
    own = max(len(value) - 1, 0) + (len(value) if isinstance(value, dict) else 0)
    return own + sum(part[0] for part in parts), 1 + sum(part[1] for part in parts)


@given(JSON, st.booleans(), st.integers(2, 9))
def test_values_are_counted_as_a_parser_counts_them(value: Any, escaped: bool, piece: int) -> None:
    """Wherever the pieces that are searched at once begin and end."""
    data = json.dumps(value, ensure_ascii=escaped).encode()
    values, containers = counted(value)

    def accepted(max_values: int, max_containers: int) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bodies, "PIECE", piece)
            patch.setattr(bodies, "MAX_VALUES", max_values)
            patch.setattr(bodies, "MAX_CONTAINERS", max_containers)
            try:
                parse_body(TokenizeBody, data)
            except ApiError as error:
                return error.status != 413
        return True

    assert accepted(values + data.count(b'"'), containers)
    assert not values or not accepted(values - 1, 10**9)
    assert not containers or not accepted(10**9, containers - 1)


@pytest.mark.parametrize("size", [20, 100_000])
def test_kinds_of_content(server: Served, size: int) -> None:
    """Any kind of JSON is read; of a page in a browser nothing that it may send unasked."""
    data = json.dumps({"content": "a" * size}).encode()
    for content_type, status in (
        ("application/json; charset=utf-8", 200), ("application/vnd.api+json", 200),
        ("text/plain", 400), ("application/x-www-form-urlencoded", 400), ("", 400),
        ("text/json", 400), ("application/jsonp", 400),
    ):  # fmt: skip
        headers = {"content-type": content_type}
        url = f"{server.url}/tokenize"
        by_page = httpx.post(url, content=data, headers={**headers, "sec-fetch-site": "cross-site"})
        assert (content_type, status) == (content_type, by_page.status_code)
        assert 200 == httpx.post(url, content=data, headers=headers).status_code


# --- who waits ---


@pytest.mark.parametrize(
    ("path", "large", "small"),
    [
        ("/v1/completions", {"prompt": LARGE}, {"prompt": "a", "max_tokens": 1}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": LARGE}]},
            {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
        ),
        ("/v1/responses", {"input": LARGE}, {"input": "a", "max_output_tokens": 1}),
        ("/tokenize", {"content": LARGE, "with_pieces": True}, {"content": "a"}),
        ("/detokenize", {"tokens": [300] * 200_000}, {"tokens": [300]}),
    ],
)
def test_small_requests_do_not_wait_for_large_ones(
    server: Served, path: str, large: dict[str, Any], small: dict[str, Any]
) -> None:
    """More large ones than there are threads for them are overtaken by a small one."""
    count = 8
    ended: list[str] = []

    bodies = {
        name: json.dumps(body).encode() for name, body in (("large", large), ("small", small))
    }

    def ask(name: str) -> None:
        post(server, path, bodies[name])
        ended.append(name)

    post(server, path, bodies["small"])  # what is made at the first request
    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(ask, "large")
        assert eventually(lambda: server.service.traffic.body_bytes > 0)
        ask("small")
    assert ended.index("small") < count - 1  # clients of a busy machine are slow: not the first


def test_a_stream_goes_on_beside_wrong_bodies(server: Served) -> None:
    """Its events come between the answers to large wrong bodies."""
    wrong = b'{"tokens":[' + b"1.5," * 400_000 + b"1]}"
    answered = threading.Event()
    with server.client.stream(
        "POST", "/v1/completions", json={"prompt": "a", "stream": True, **ENDLESS}
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        bad = threading.Thread(target=lambda: (post(server, "/detokenize", wrong), answered.set()))
        bad.start()
        before = 0
        while not answered.is_set():
            next(lines)
            before += 1
        bad.join()
    assert before > 1
    assert eventually(server.idle)


@contextmanager
def without_older_objects() -> Iterator[None]:
    """Keep what other tests left out of garbage collections, which would stop every thread."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "a", "logprobs": 100}),
        (
            "/v1/chat/completions",
            {**BODIES[ChatBody], "logprobs": True, "top_logprobs": 20, "n": 2},
        ),
    ],
)
def test_a_large_answer_keeps_nobody_waiting(
    server: Served, path: str, asked: dict[str, Any]
) -> None:
    """None waits for most of the time between the last token and the answer's end.

    Time of the processor: client and server are this process, and others may hold it up.
    """
    body = {**asked, **ENDLESS, "max_tokens": 800}
    server.client.get("/health")  # what is made at the first request
    with without_older_objects(), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, server, path, json.dumps(body).encode())
        assert eventually(lambda: server.unfinished() > 0)
        assert eventually(lambda: server.unfinished() == 0)
        times = [time.process_time()]
        while not answer.done():
            server.client.get("/health")
            times.append(time.process_time())
    assert 200 == answer.result().status_code
    longest = max(after - before for before, after in pairwise(times))
    assert longest < 0.6 * (times[-1] - times[0])


def test_a_client_that_leaves_a_large_request(server: Served) -> None:
    """What it asked for while its text was tokenized is not computed for nobody."""
    texts = ["fox " * 9000] * 8  # long to tokenize; too long for the context without overflow
    sent = post_bytes("/v1/completions", {"prompt": texts, **ENDLESS})
    for _ in range(2):
        server.connect(sent).close()
    done = server.post("/v1/completions", prompt="a" * 70_000, overflow="truncate", max_tokens=1)
    assert 200 == done.status_code  # behind them on the thread of large requests
    assert eventually(server.idle)


# --- bytes of all bodies ---


@pytest.fixture(scope="module")
def narrow() -> Iterator[Served]:
    """A server with room for one large body and a half."""
    limits = Limits(body_bytes=1_000_000, total_body_bytes=1_500_000, body_seconds=20)
    with served(demo(), limits=limits) as server:
        yield server


def _half_sent(server: Served, chunked: bool) -> socket.socket:
    """Return a connection over which most of a large body has come, and no more does."""
    size = 990_000
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size + 9}"
    head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n"
    sent = f"{size:x}\r\n" * chunked + "x" * size
    connection = server.connect((head + sent).encode())
    assert eventually(lambda: server.service.traffic.body_bytes > 900_000)
    return connection


@pytest.mark.parametrize("chunked", [False, True])
def test_the_bodies_of_all_requests_have_a_limit(narrow: Served, chunked: bool) -> None:
    """503 with the time to come again; small requests are answered meanwhile."""
    large = json.dumps({"content": "a" * 900_000}).encode()
    with _half_sent(narrow, chunked):
        refused = post(narrow, "/tokenize", large)
        assert "overloaded" == is_error(refused, 503)["code"]
        assert "1" == refused.headers["retry-after"]
        assert 200 == narrow.post("/tokenize", content="a" * 60_000).status_code
        assert 200 == narrow.client.get("/health").status_code
    assert eventually(lambda: narrow.service.traffic.body_bytes == 0)
    assert 200 == post(narrow, "/tokenize", large).status_code
    assert eventually(lambda: narrow.service.traffic.body_bytes == 0)


def test_a_body_counts_until_its_answer_is_complete(narrow: Served) -> None:
    """Also while its text is generated."""
    prompt = {"prompt": "a " * 400_000, "overflow": "truncate", "stream": True, **ENDLESS}
    with narrow.client.stream("POST", "/v1/completions", json=prompt) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert 800_000 - 2**16 < narrow.service.traffic.body_bytes < 900_000
        refused = post(narrow, "/tokenize", json.dumps({"content": "a" * 900_000}).encode())
        is_error(refused, 503)
    assert eventually(lambda: narrow.service.traffic.body_bytes == 0)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {"content": "a" * (2**20 + 1)},
         "content: expected at most 1048576 characters, not 1048577"),
        ("/detokenize", {"tokens": [1] * (2**20 + 1)},
         "the body has too many values: at most 1,048,576 values in 65,536 lists and objects"),
    ],
    ids=["tokenize", "detokenize"],
)  # fmt: skip
def test_limits_of_texts_and_tokens(
    server: Served, path: str, body: dict[str, Any], message: str
) -> None:
    """What these two take at once."""
    answer = post(server, path, json.dumps(body, separators=(",", ":")).encode())
    assert message == answer.json()["error"]["message"]


def test_long_answers_equal_short_ones(server: Served) -> None:
    """Lists that are written in parts are those of the model."""
    text = "One day, a fox. " * 3000
    model = server.engine.model
    answer = server.post("/tokenize", content=text, with_pieces=True).json()
    tokens = [piece["id"] for piece in answer["tokens"]]
    assert model.tokenize(text, False, True) == tokens
    pieces = [model.piece_bytes(token, special=True).decode() for token in tokens]
    assert pieces == [piece["piece"] for piece in answer["tokens"]]
    assert {"tokens": []} == server.post("/tokenize", content="", with_pieces=True).json()
    assert text == server.post("/detokenize", tokens=tokens).json()["content"]
