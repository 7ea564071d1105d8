"""What clients see when replicas die, fail, are full or are removed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("ray")
import ray
from ray import serve

from llcuda.ray import build_app
from tests.support.cluster import NAME, SMALL, Clustered, engines, on_cluster
from tests.support.server import demo
from tests.support.waiting import ENDLESS, PATIENCE, eventually

N_PARALLEL = 4
LOST_SECONDS = 30


def events(response: httpx.Response) -> list[Any]:
    """Return the documents of a stream, its end as None."""
    lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    return [None if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def together(count: int, ask: Callable[[int], Any]) -> list[Any]:
    """Ask from eight threads at once; return the answers in order."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, range(count)))


def stream(server: Clustered, prompt: str, **more: Any) -> Any:
    """Begin a stream."""
    body = {"prompt": prompt, "stream": True, **more}
    return server.client.stream("POST", "/v1/completions", json=body)


def test_a_kill_loses_no_whole_answer_and_ends_few_streams(server: Clustered) -> None:
    """At a quarter of 200 requests; every third is a stream."""
    count, killed = 200, threading.Event()
    done = [0]

    def ask(number: int) -> Any:
        prompt = f"{number}: once upon a time"
        if number % 3:
            response = server.post("/v1/completions", prompt=prompt, max_tokens=24)
            answer: Any = response.status_code, response.json()["choices"][0]["finish_reason"]
        else:
            with stream(server, prompt, max_tokens=24) as response:
                answer = events(response)
        done[0] += 1
        if done[0] == count // 4:
            server.kill_one()
            killed.set()
        return answer

    started = time.monotonic()
    answers = together(count, ask)
    assert killed.is_set()
    whole = [answer for number, answer in enumerate(answers) if number % 3]
    assert {200} == {status for status, _ in whole}
    streams = [answer for number, answer in enumerate(answers) if not number % 3]
    lost = [answer for answer in streams if answer[-1] is not None]
    assert len(lost) <= N_PARALLEL
    assert {answer[-1]["error"]["code"] for answer in lost} <= {"replica_lost"}
    assert eventually(lambda: server.healthy_replicas() == 2)
    assert time.monotonic() - started < LOST_SECONDS + PATIENCE


def test_clients_that_leave_end_their_requests(server: Clustered) -> None:
    begun = threading.Barrier(5)

    def leave(number: int) -> None:
        with stream(server, f"{number}", **ENDLESS) as response:
            next(response.iter_lines())
            begun.wait()

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(leave, range(4 + 1)))
    assert eventually(lambda: server.unfinished() == 0)


def test_a_failed_engine_is_replaced(server: Clustered) -> None:
    """Its replica is asked no more, and clients get their answers from the other."""

    def fail(_: Any) -> None:
        from llcuda.errors import DeviceLostError

        def lose(*arguments: Any) -> None:
            raise DeviceLostError("a GPU failed")

        [engine] = engines()
        engine.context.decode_batch = lose

    pids = {*server.pids()}
    [first, *_] = server.actors().values()
    ray.get(first.__ray_call__.remote(fail), timeout=PATIENCE)
    answers = together(16, lambda n: server.post("/v1/completions", prompt=f"{n}", max_tokens=4))
    assert {200} == {answer.status_code for answer in answers}
    assert eventually(lambda: server.healthy_replicas() == 2 and {*server.pids()} != pids)


def test_a_full_server_refuses_in_the_shape_of_the_api(port: int) -> None:
    with on_cluster(port, demo(n_parallel=1), replica_queue=0, max_waiting=2) as server:

        def ask(number: int) -> httpx.Response:
            return server.post("/v1/chat/completions", max_tokens=40, messages=[
                {"role": "user", "content": f"{number}"}
            ])  # fmt: skip

        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(ask, range(24)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert {(429, "1", "rate_limit_exceeded")} == {
        (a.status_code, a.headers["retry-after"], a.json()["error"]["code"]) for a in refused
    }


@pytest.mark.parametrize("ends", [False, True], ids=["shrinks", "ends"])
def test_streams_finish_when_the_application(port: int, ends: bool) -> None:
    """Removed replicas finish what they have begun."""
    options: dict[str, Any] = {**SMALL, "drain_seconds": 300}
    with on_cluster(port, replicas=2, **options) as server, ThreadPoolExecutor(6) as pool:
        begun = threading.Barrier(7)

        def read(number: int) -> list[Any]:
            with stream(server, f"{number}", **{**ENDLESS, "max_tokens": 1000}) as response:
                lines = response.iter_lines()
                found = [next(lines)]
                begun.wait()
                return [*found, *lines]

        reading = [pool.submit(read, number) for number in range(6)]
        begun.wait()
        if ends:
            serve.delete(NAME)
        else:
            serve.run(build_app([demo()], **options, replicas=1), name=NAME, route_prefix="/")
            assert 1 == server.healthy_replicas()
        answers = [work.result(PATIENCE) for work in reading]
        assert ["data: [DONE]"] * 6 == [[line for line in a if line][-1] for a in answers]
