"""A model whose context fails: clients, /health and /metrics are told the truth."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llcuda import Engine
from llcuda.errors import DeviceLostError
from llcuda.native.timings import DecodeEvent
from llcuda.server.models import ModelSpec
from tests.support.failures import break_context, keep_broken
from tests.support.server import Served, is_error, served
from tests.support.waiting import eventually

PROMPT = list(range(5, 40))
ASKED: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 9}


@pytest.fixture
def failing(model_files: dict[str, Path]) -> Iterator[tuple[Served, Engine]]:
    """A server of the tiny hybrid model, which has cells, and its engine."""
    parameters = {"threads": 1, "ctx_size": 128, "n_parallel": 2}
    with served(ModelSpec("lfm2", str(model_files["lfm2"]), parameters=parameters)) as server:
        engine = server.service.models.loaded["lfm2"].engine
        assert 200 == server.post("/v1/completions", **ASKED).status_code
        yield server, engine


def metric(server: Served, name: str) -> float:
    """Return a sample of the model."""
    lines = server.client.get("/metrics").text.splitlines()
    [value] = [line.split()[-1] for line in lines if line.startswith(f'{name}{{model="lfm2"}}')]
    return float(value)


def test_what_ran_fails_and_the_server_goes_on(failing: tuple[Served, Engine]) -> None:
    """A whole answer is a 500, a stream ends with the error; the third request waits for a slot."""
    server, engine = failing
    expected = server.post("/v1/completions", **ASKED).json()["choices"]
    answers: dict[str, httpx.Response] = {}
    threads: dict[str, threading.Thread] = {}
    decodes = 0
    reached, go_on = threading.Event(), threading.Event()

    def hook(event: DecodeEvent) -> None:
        nonlocal decodes
        decodes += event.phase == "decode" and event.rows == 2
        if decodes == 3:
            reached.set()
            go_on.wait(120)
            break_context(engine)
            engine.context.hooks.clear()

    def ask(name: str, **more: Any) -> None:
        def post() -> None:
            answers[name] = server.post("/v1/completions", **ASKED, **more)

        threads[name] = threading.Thread(target=post)
        threads[name].start()

    engine.context.hooks.append(hook)
    with engine.loop.hold():
        ask("whole")
        ask("stream", stream=True)
        assert eventually(lambda: server.unfinished(engine) == 2)
    assert reached.wait(120)
    ask("waiting")
    assert eventually(lambda: server.unfinished(engine) == 3)
    go_on.set()
    for thread in threads.values():
        thread.join()
    assert "assertion" not in is_error(answers["whole"], 500)["message"]
    assert expected == answers["waiting"].json()["choices"]
    stream = answers["stream"]
    assert 200 == stream.status_code
    last = [line for line in stream.text.splitlines() if line][-1]
    assert "server_error" == json.loads(last.removeprefix("data: "))["error"]["type"]
    with engine.loop.hold():
        assert {"status": "ok"} == server.client.get("/health").json()
    assert (1, 1) == (metric(server, "llcuda_engine_up"), metric(server, "llcuda_recoveries_total"))
    assert expected == server.post("/v1/completions", **ASKED).json()["choices"]
    assert 1 == server.service.models.loads


def test_health_during_a_recovery(
    failing: tuple[Served, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and requests wait."""
    server, engine = failing
    go_on, renew = threading.Event(), engine.context.renew

    def wait() -> None:
        go_on.wait(120)
        renew()

    monkeypatch.setattr(engine.context, "renew", wait)
    with engine.loop.hold():
        break_context(engine)
    assert 500 == server.post("/v1/completions", **ASKED).status_code
    health = server.client.get("/health")
    assert (200, {"status": "recovering"}) == (health.status_code, health.json())
    assert 0 == metric(server, "llcuda_engine_up") == metric(server, "llcuda_kv_cache_usage")
    threading.Timer(0.05, go_on.set).start()
    assert 200 == server.post("/v1/completions", **ASKED).status_code
    assert {"status": "ok"} == server.client.get("/health").json()


@pytest.mark.parametrize("lost", [False, True], ids=["it always fails", "a lost GPU"])
def test_a_model_that_has_failed_for_good(
    failing: tuple[Served, Engine], monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """/health is 503, and every request says why; it is not loaded again and again."""
    server, engine = failing
    if lost:
        monkeypatch.setattr(engine.context, "decode_batch", lose)
        is_error(server.post("/v1/completions", **ASKED), 500)
    else:
        keep_broken(engine, monkeypatch)
        with engine.loop.hold():
            engine.context.decode([5, 6, 7], seq=1)
            break_context(engine)
        for _ in range(5):
            is_error(server.post("/v1/completions", **ASKED), 500)
    assert eventually(lambda: engine.closed)
    message = is_error(server.client.get("/health"), 503)["message"]
    assert ("a GPU failed" if lost else "failed again and again") in message
    for path, body in (
        ("/v1/completions", ASKED),
        ("/v1/completions", {**ASKED, "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1/responses", {"input": "Hello"}),
    ):
        error = is_error(server.post(path, **body), 503)
        assert (message, "model_failed") == (error["message"], error["code"])
    assert 0 == metric(server, "llcuda_engine_up")
    assert 1 == server.service.models.loads


def lose(*arguments: Any, **keywords: Any) -> None:
    """Fail as a computation on a GPU that is gone."""
    raise DeviceLostError("a GPU failed")


def test_a_lost_gpu_stays_lost(
    model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """/health is 503 although the model that noticed was unloaded: only another process helps."""
    parameters = {"threads": 1, "ctx_size": 64}
    specs = [
        ModelSpec(name, str(model_files[name]), parameters=parameters) for name in ("llama", "lfm2")
    ]
    needs = [spec.memory_needed(model_files[spec.name]) for spec in specs]
    budget = max(sum(device.needed for device in devices) for devices in needs)  # of one
    with served(*specs, memory_budget=budget) as server:
        engine = server.service.models.loaded["llama"].engine
        monkeypatch.setattr(engine.context, "decode_batch", lose)
        is_error(server.post("/v1/completions", model="llama", **ASKED), 500)
        assert eventually(lambda: engine.closed)
        message = "the model llama has failed: a GPU failed; restart the server"
        assert message == is_error(server.client.get("/health"), 503)["message"]
        assert 200 == server.post("/v1/completions", model="lfm2", **ASKED).status_code
        assert ["lfm2"] == [*server.service.models.loaded]
        assert (
            "a GPU failed; restart the server"
            == (is_error(server.client.get("/health"), 503)["message"])
        )


def test_a_gpu_that_is_lost_while_embeddings_are_computed(
    model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without an engine tells /health too."""
    spec = ModelSpec("bert", str(model_files["bert"]), parameters={"threads": 1})
    with served(spec) as server:
        assert {"status": "ok"} == server.client.get("/health").json()
        embedder = server.service.models.loaded["bert"].embedder()
        monkeypatch.setattr(embedder, "embed_counted", lose)
        is_error(server.post("/v1/embeddings", input="a"), 500)
        message = is_error(server.client.get("/health"), 503)["message"]
        assert "a GPU failed; restart the server" == message


def test_a_file_that_changes_under_a_server(model_files: dict[str, Path], tmp_path: Path) -> None:
    """Its clients and /health are told so; the other model goes on."""
    path = Path(shutil.copy(model_files["llama"], tmp_path / "model.gguf"))
    parameters = {"threads": 1, "ctx_size": 128}
    specs = [
        ModelSpec("spoilt", str(path), parameters=parameters),
        ModelSpec("lfm2", str(model_files["lfm2"]), parameters=parameters),
    ]
    reason = "file was changed while it was in use"
    with served(*specs) as server:
        for model in ("spoilt", "lfm2"):
            assert 200 == server.post("/v1/completions", model=model, **ASKED).status_code
        os.truncate(path, 4096)
        error = is_error(server.post("/v1/completions", model="spoilt", **ASKED), 503)
        assert (True, "model_failed") == (reason in error["message"], error["code"])
        assert eventually(lambda: server.service.models.loaded["spoilt"].state == "failed")
        error = is_error(server.post("/v1/completions", model="spoilt", **ASKED), 503)
        assert f"the model spoilt has failed: its {reason}; restart the server" == error["message"]
        assert error["message"] == is_error(server.client.get("/health"), 503)["message"]
        assert 200 == server.post("/v1/completions", model="lfm2", **ASKED).status_code
