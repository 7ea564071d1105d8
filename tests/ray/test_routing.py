"""Where requests go: shared beginnings, several models, what one replica keeps."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("ray")
from llcuda import demo_model
from llcuda.ray.forwarded import replica_tag
from tests.support.cluster import Clustered, on_cluster, visible_gpus
from tests.support.server import demo
from tests.support.waiting import ENDLESS, eventually

GROUPS, TURNS = 6, 6


def tag_of(document: dict[str, Any]) -> str:
    """Return the tag of the replica that made an answer."""
    return str(document["id"]).rpartition("-")[2].rpartition("_")[2][:8]


def shared_beginnings(server: Clustered, turns: int = TURNS) -> tuple[float, Counter[str]]:
    """Ask six beginnings; return the share of cached tokens, and the answers by replica."""

    def ask(number: int) -> dict[str, Any]:
        group, turn = number % GROUPS, number // GROUPS
        beginning = f"This is tale {group * 7919} of the old fox in the forest. " * 12
        body = {"prompt": f"{beginning} Part {turn}", "max_tokens": 1, "temperature": 0}
        answer: dict[str, Any] = server.post("/v1/completions", **body).json()
        return answer

    answers = [ask(number) for number in range(GROUPS)]
    with ThreadPoolExecutor(2) as pool:
        answers += pool.map(ask, range(GROUPS, GROUPS * turns))
    later = answers[GROUPS:]
    cached = sum(a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in later)
    counts = Counter(map(tag_of, answers))
    return cached / sum(a["usage"]["prompt_tokens"] for a in later), counts


def test_shared_beginnings_are_cached(port: int) -> None:
    """At least 0.75 of the prompts' tokens, and 1.5 times the share of Ray's own router."""
    spec = demo(n_parallel=3)  # room for half of the beginnings
    with on_cluster(port, spec, replicas=2) as server:
        share, counts = shared_beginnings(server)
    with on_cluster(port, spec, replicas=2, prefix_routing=False) as server:
        by_load, _ = shared_beginnings(server)
    assert share >= 0.75
    assert share >= 1.5 * by_load, by_load
    assert max(counts.values()) <= 0.8 * GROUPS * TURNS, counts


def test_a_response_is_continued_where_it_is_kept(server: Clustered) -> None:
    tags = {replica_tag(name.rpartition("#")[2]) for name in server.actors()}
    for number in range(4):
        body = {"input": f"{number}: the fox", "max_output_tokens": 4}
        first = server.post("/v1/responses", **body).json()
        assert tag_of(first) in tags
        assert first == server.client.get(f"/v1/responses/{first['id']}").json()
        later = server.post("/v1/responses", previous_response_id=first["id"], **body)
        assert (200, tag_of(first)) == (later.status_code, tag_of(later.json()))
    gone = "resp_" + "0" * 24
    assert 404 == server.client.get(f"/v1/responses/{gone}").status_code


def test_a_batch_runs_where_its_file_is(server: Clustered) -> None:
    line = {
        "custom_id": "one",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "demo", "prompt": "Once", "max_tokens": 2},
    }
    for _ in range(3):
        files = {"file": ("lines.jsonl", json.dumps(line).encode())}
        uploaded = server.client.post("/v1/files", files=files, data={"purpose": "batch"}).json()
        asked = {"input_file_id": uploaded["id"], "endpoint": "/v1/completions"}
        batch = server.post("/v1/batches", completion_window="24h", **asked).json()
        path = f"/v1/batches/{batch['id']}"
        assert eventually(lambda path=path: "completed" == server.client.get(path).json()["status"])
        output = server.client.get(path).json()["output_file_id"]
        content = server.client.get(f"/v1/files/{output}/content").json()
        assert ("one", 200) == (content["custom_id"], content["response"]["status_code"])
    assert 6 <= len(server.client.get("/v1/files").json()["data"])


def test_what_changes_one_replica_is_refused(server: Clustered) -> None:
    response = server.post("/lora-adapters")
    assert (501, "unsupported") == (response.status_code, response.json()["error"]["code"])
    assert 200 == server.client.get("/slots").status_code


def test_two_models_with_room_for_one(port: int) -> None:
    """A model in use stays; an unknown name unloads nothing; the other replica takes the other."""
    specs = demo("one"), demo("two")
    needed = sum(device.needed for device in specs[0].memory_needed(demo_model()))
    with on_cluster(port, *specs, replicas=1, memory_budget=int(1.5 * needed)) as server:
        body = {"model": "one", "prompt": "Once", "stream": True, **ENDLESS}
        with server.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            busy = server.post("/v1/completions", model="two", prompt="Once", max_tokens=2)
            assert (503, "model_unavailable") == (busy.status_code, busy.json()["error"]["code"])
            assert busy.headers["retry-after"]
            unknown = server.post("/v1/completions", model="three", prompt="Once")
            assert (404, "model_not_found") == (
                unknown.status_code,
                unknown.json()["error"]["code"],
            )
            assert '"text"' in next(line for line in lines if line)
        assert eventually(lambda: server.unfinished() == 0)
        answer = server.post("/v1/completions", model="two", prompt="Once", max_tokens=2)
        assert (200, "two") == (answer.status_code, answer.json()["model"])


def test_each_replica_has_its_gpu(port: int) -> None:
    """The GPUs are only counted: there is none."""
    with on_cluster(port, replicas=2, num_gpus=1) as server:
        assert 200 == server.post("/v1/completions", prompt="Once", max_tokens=2).status_code
        assert ["0", "1"] == sorted(server.in_replicas(visible_gpus))
