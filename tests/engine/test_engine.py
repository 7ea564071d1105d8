"""The engine on the demo model: many requests, one batch, each result its own."""

import asyncio
import gc
import logging
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Context, Engine, InferenceEngine, Model, Request, Sampler
from llcuda.errors import ArgumentError, ClosedError, DecodeError, QueueFullError
from tests.support.greedy import check_greedy
from tests.support.programs import run
from tests.support.waiting import ENDLESS, PATIENCE, eventually

# Their greedy texts have no near ties: the best logit leads by 0.14 or more at every token, so that
# the rounding of another batch size does not turn them.
PROMPTS = [
    "Once upon a time, there was a little girl named Ruby who lived in the town",
    "There was a brave fox named Lily",
    "Once upon a time, there was a brave fox named Lily",
    "One day, a clever boy named Otto",
    "There was a clever boy named Otto",
    "One day, a quiet mouse named Nora",
]


@pytest.fixture(scope="module")
def cpu_model() -> Iterator[Model]:
    """On the CPU, where the logits of a row do not depend on the other rows of the batch."""
    with Model("demo", gpu_layers=0) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def alone(model: Model) -> dict[str, tuple[str, list[int], str]]:
    """What each prompt gives under greedy in a plain loop, without the engine."""
    return {prompt: plain_loop(model, prompt, 60) for prompt in PROMPTS}


def plain_loop(model: Model, prompt: str, max_tokens: int) -> tuple[str, list[int], str]:
    """Return text, tokens and finish reason of decode and sample by turns."""
    tokens: list[int] = []
    sampler = Sampler(temperature=0)
    with Context(model, ctx_size=512, threads=1) as context:
        context.decode(model.tokenize(prompt))
        while len(tokens) < max_tokens and not model.is_eog(token := sampler.sample(context)):
            tokens.append(token)
            context.decode([token])
    return model.detokenize(tokens), tokens, "length" if len(tokens) == max_tokens else "stop"


def facts(completion: Any) -> tuple[str, list[int], str]:
    return completion.text, completion.tokens, completion.finish_reason


def test_results_equal_the_plain_loop(engine: Engine, alone: dict[str, Any]) -> None:
    """Six requests on four slots, joined and left at any step, each as if it were alone."""
    requests = {p: engine.submit(p, max_tokens=60, temperature=0) for p in PROMPTS}
    assert {p: facts(r.result(PATIENCE)) for p, r in requests.items()} == alone


def test_a_stream_is_the_text_in_pieces(engine: Engine) -> None:
    """Iterating gives the text of the result; a second reader gets nothing and no hang."""
    request = engine.submit("Once upon a time", max_tokens=30, temperature=0)
    pieces = list(request)
    assert len(pieces) > 5
    assert "".join(pieces) == request.result().text
    assert list(request) == []


def test_coroutines_share_the_engine(engine: Engine, alone: dict[str, Any]) -> None:
    """Await and async for, many at once."""

    async def read(prompt: str) -> str:
        return "".join([text async for text in engine.submit(prompt, max_tokens=60, temperature=0)])

    async def main() -> None:
        awaited = [engine.submit(p, max_tokens=60, temperature=0) for p in PROMPTS]
        texts = await asyncio.gather(*(read(p) for p in PROMPTS))
        results = await asyncio.gather(*awaited)
        assert {p: facts(r) for p, r in zip(PROMPTS, results, strict=True)} == alone
        assert texts == [alone[p][0] for p in PROMPTS]

    asyncio.run(main())


def test_cancelling_the_task_cancels_the_request(engine: Engine) -> None:
    """A cancelled await ends the request with what it has."""

    async def main() -> Any:
        request = engine.submit("Once upon a time", **ENDLESS)
        task = asyncio.ensure_future(asyncio.wait_for(_await(request), 0.05))
        with pytest.raises(TimeoutError):
            await task
        return request

    assert asyncio.run(main()).result(PATIENCE).finish_reason == "cancelled"


async def _await(request: Any) -> Any:
    return await request


def test_a_closed_event_loop_harms_nobody(engine: Engine) -> None:
    """A loop that is closed while its request runs: the request ends, the engine goes on."""

    async def main() -> Any:
        request = engine.submit("Once upon a time", max_tokens=200, ignore_eos=True)
        task = asyncio.ensure_future(_await(request))
        await asyncio.sleep(0)
        task.cancel()
        return request

    request = asyncio.run(main())
    assert request.result(PATIENCE).finish_reason in ("cancelled", "length")
    assert engine.submit("One day", max_tokens=3).result(PATIENCE).tokens


@pytest.mark.parametrize("stop", ["the", "One day, there", "a", ". "])
def test_stop_texts_are_never_shown(engine: Engine, alone: dict[str, Any], stop: str) -> None:
    """A stop text ends the request wherever the token borders are."""
    prompt = PROMPTS[1]
    whole = alone[prompt][0]
    completion = engine.submit(prompt, max_tokens=60, temperature=0, stop=[stop, "zzz"]).result(
        PATIENCE
    )
    assert completion.text == whole.split(stop)[0]
    assert completion.finish_reason == ("stop" if stop in whole else alone[prompt][2])
    assert completion.stop_text == (stop if stop in whole else None)


def test_stop_tokens(engine: Engine, alone: dict[str, Any]) -> None:
    """A stop token ends the request and is not among its tokens."""
    prompt = PROMPTS[1]
    tokens = alone[prompt][1]
    done = engine.submit(prompt, max_tokens=60, temperature=0, stop_tokens=[tokens[7]]).result(
        PATIENCE
    )
    assert done.tokens == tokens[: tokens.index(tokens[7])]
    assert done.finish_reason == "stop"


def test_seeds_do_not_depend_on_the_neighbours(cpu_model: Model) -> None:
    """The same seed gives the same text, alone and in a full batch."""
    with Engine(cpu_model, n_parallel=4, ctx_size=512, threads=1) as engine:
        check_seeds(engine)


def check_seeds(engine: Engine) -> None:
    alone = engine.submit("Once upon a time", max_tokens=40, seed=5, temperature=1.0).result(
        PATIENCE
    )
    crowd = [
        engine.submit("Once upon a time", max_tokens=40, seed=s, temperature=1.0) for s in range(8)
    ]
    texts = [request.result(PATIENCE).text for request in crowd]
    assert texts[5] == alone.text
    assert alone.seed == 5
    assert len(set(texts)) > 3


def test_completions_of_one_prompt(engine: Engine) -> None:
    """N completions share the prefill, and each has its own seed."""
    prompt = "Once upon a time, there was a little girl who lived in a small house."
    requests = engine.submit_n(prompt, 3, max_tokens=20, seed=1, temperature=1.0)
    results = [request.result(PATIENCE) for request in requests]
    assert [r.seed for r in results] == [1, 2, 3]
    assert len({r.text for r in results}) == 3
    assert [r.cached_tokens for r in results[1:]] == [results[0].prompt_tokens - 1] * 2


def test_prefix_reuse_changes_no_result(model: Model) -> None:
    """A prompt that shares its beginning computes the rest only, and says the same."""
    head = "Once upon a time, there was a brave fox named Arlo who lived in the village. "
    tails = ["One day, he", "In the morning, Arlo", "His friend was"]
    with Engine(model, n_parallel=1, ctx_size=256, threads=1) as other:
        first = [
            facts(other.submit(head + t, max_tokens=20, temperature=0).result(PATIENCE))
            for t in tails
        ]
        again = [
            other.submit(head + t, max_tokens=20, temperature=0).result(PATIENCE) for t in tails
        ]
    assert [facts(r) for r in again] == first
    assert all(r.cached_tokens > 15 for r in again)


def test_speculation_changes_no_result(cpu_model: Model, alone: dict[str, Any]) -> None:
    """Guessing from the text is exact, greedy and sampled."""
    with (
        Engine(cpu_model, n_parallel=3, ctx_size=512, threads=1, speculation=4) as guessing,
        Engine(cpu_model, n_parallel=3, ctx_size=512, threads=1) as plain,
    ):
        greedy = {p: guessing.submit(p, max_tokens=60, temperature=0) for p in PROMPTS}
        assert {p: facts(r.result(PATIENCE)) for p, r in greedy.items()} == alone
        copy = "Tom had a red ball. Tom had a red ball. Tom had a red ball. Tom had"
        for seed in range(4):
            asked: dict[str, Any] = {"max_tokens": 40, "seed": seed, "temperature": 0.8}
            results = [facts(e.submit(copy, **asked).result(PATIENCE)) for e in (guessing, plain)]
            assert results[0] == results[1]


def test_logprobs_of_answer_and_prompt(engine: Engine, model: Model) -> None:
    """Reported log-probabilities are those of the logits; echo scores the prompt."""
    prompt = "The fox was happy"
    asked: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "logprobs": 3, "echo": True}
    done = engine.submit(prompt, **asked).result(PATIENCE)
    assert done.logprobs is not None
    assert done.prompt_logprobs is not None
    assert [report.token for report in done.logprobs] == done.tokens
    assert all(r.top[0] == (r.token, r.logprob) and len(r.top) == 3 for r in done.logprobs)
    with Context(model, ctx_size=256, threads=1) as context:
        scores = context.score(model.tokenize(prompt))
    reported = [report.logprob for report in done.prompt_logprobs]
    np.testing.assert_allclose(reported[-len(scores) :], scores, atol=2e-2)


def test_timeout_ends_with_what_there_is(engine: Engine) -> None:
    """A deadline gives a result, not an exception."""
    done = engine.submit("Once", timeout=0.05, **ENDLESS)
    assert done.result(PATIENCE).finish_reason == "timeout"


@pytest.mark.parametrize("overflow", ["error", "truncate", "shift"])
def test_a_prompt_beyond_the_context(engine: Engine, overflow: str) -> None:
    """An error with the numbers by default; what is asked for otherwise."""
    prompt = "The fox was happy. " * 200
    if overflow == "error":
        with pytest.raises(ArgumentError, match=r"\d+ tokens, .* 512"):
            engine.submit(prompt, max_tokens=5)
    else:
        assert engine.submit(prompt, max_tokens=5, overflow=overflow).result(PATIENCE).tokens


def test_a_text_that_fills_the_context(engine: Engine, model: Model) -> None:
    """It ends by default, and goes on with overflow="shift"."""
    asked: dict[str, Any] = {"max_tokens": 700, "ignore_eos": True, "temperature": 0}
    ended = engine.submit("Once upon a time", **asked).result(PATIENCE)
    assert ended.finish_reason == "context"
    assert ended.prompt_tokens + len(ended.tokens) == 512
    shifted = engine.submit("Once upon a time", overflow="shift", keep=4, **asked).result(PATIENCE)
    assert (shifted.finish_reason, len(shifted.tokens)) == ("length", 700)
    prompt, count = model.tokenize("Once upon a time"), len(ended.tokens)
    check_greedy([*prompt, *shifted.tokens[:count]], [*prompt, *ended.tokens], model)


def test_a_full_queue_is_an_error(model: Model) -> None:
    """More waiting requests than queue_size are refused; the others are served."""
    with Engine(model, n_parallel=1, ctx_size=256, queue_size=3, threads=1) as small:
        accepted, refused = [], 0
        with small.loop.hold():
            for _ in range(20):
                try:
                    request = small.submit("Once upon a time", max_tokens=40, ignore_eos=True)
                    accepted.append(request)
                except QueueFullError as error:
                    refused += 1
                    assert "queue_size=3" in str(error)
        assert (len(accepted), refused) == (4, 16)
        assert all(r.result(PATIENCE).finish_reason == "length" for r in accepted)
        assert small.submit("One day", max_tokens=2).result(PATIENCE).tokens


def test_cancel_while_waiting_and_while_running(model: Model) -> None:
    """Both end at once with "cancelled"; cancelling again does nothing."""
    with Engine(model, n_parallel=1, ctx_size=512, threads=1) as small:
        running = small.submit("Once upon a time", **ENDLESS)
        waiting = small.submit("One day", max_tokens=400)
        pieces = iter(running)
        next(pieces)
        waiting.cancel()
        running.cancel()
        running.cancel()
        assert running.result(PATIENCE).finish_reason == "cancelled"
        assert facts(waiting.result(PATIENCE)) == ("", [], "cancelled")
        running.cancel()
        assert small.submit("One day", max_tokens=2).result(PATIENCE).tokens


def test_close_with_requests_in_flight(model: Model) -> None:
    """Readers get ClosedError, a later submit too; closing again does nothing."""
    small = Engine(model, n_parallel=1, ctx_size=512, threads=1)
    requests = [small.submit("Once", **ENDLESS) for _ in range(3)]
    small.close()
    for request in requests:
        with pytest.raises(ClosedError):
            request.result(PATIENCE)
    with pytest.raises(ClosedError):
        small.submit("Once")
    small.close()


def test_close_can_drain(model: Model) -> None:
    """drain=True finishes what was submitted."""
    small = Engine(model, n_parallel=2, ctx_size=256, threads=1)
    requests = [small.submit("Once upon a time", max_tokens=10) for _ in range(5)]
    small.close(drain=True)
    assert all(request.result(0).tokens for request in requests)


def test_a_failing_step_of_one_request_harms_no_other(engine: Engine) -> None:
    """A grammar that ends in nowhere fails its own request."""
    good = engine.submit("Once upon a time", max_tokens=30)
    with pytest.raises(ArgumentError):
        engine.submit("Once upon a time", grammar="root ::= (", max_tokens=5)
    assert good.result(PATIENCE).tokens


def test_hooks_see_every_step_and_request(model: Model, caplog: Any) -> None:
    """Hooks get records; one that raises is logged, and nothing else happens."""
    steps, done = [], []

    def on_request(record: Any) -> None:
        done.append(record)
        raise RuntimeError("a hook's own fault")

    with (
        caplog.at_level(logging.ERROR, "llcuda.engine"),
        Engine(
            model,
            n_parallel=2,
            ctx_size=256,
            threads=1,
            on_step=steps.append,
            on_request=on_request,
        ) as hooked,
    ):
        for request in [hooked.submit("One day", max_tokens=5, ignore_eos=True) for _ in range(3)]:
            request.result(PATIENCE)
        snapshot = hooked.metrics.snapshot()
    assert {step.phase for step in steps} == {"prefill", "decode"}
    assert [record.generated_tokens for record in done] == [5, 5, 5]
    assert all(0 < r.sample_seconds + r.detokenize_seconds < r.latency_seconds for r in done)
    assert "a hook of the engine raised" in caplog.text
    assert snapshot["throughput"]["total_requests"] == 3


@pytest.mark.parametrize(
    ("prompt", "asked", "error"),
    [
        ("", {}, ArgumentError),
        ([], {}, ArgumentError),
        (b"bytes", {}, ArgumentError),
        (None, {}, ArgumentError),
        ([10**9], {}, ArgumentError),
        (["x"], {}, ArgumentError),
        ("lone \ud800 surrogate", {}, ArgumentError),
        ("x", {"max_tokens": 0}, ArgumentError),
        ("x", {"max_tokens": -5}, ArgumentError),
        ("x", {"max_tokens": 1.5}, ArgumentError),
        ("x", {"temperature": -1}, ArgumentError),
        ("x", {"temperature": float("nan")}, ArgumentError),
        ("x", {"top_p": 2}, ArgumentError),
        ("x", {"stop": [""]}, ArgumentError),
        ("x", {"stop": [3]}, ArgumentError),
        ("x", {"stop_tokens": [10**8]}, ArgumentError),
        ("x", {"timeout": -1}, ArgumentError),
        ("x", {"overflow": "explode"}, ArgumentError),
        ("x", {"nonsense": 1}, TypeError),
    ],
)
def test_bad_input_is_an_error_before_anything_runs(
    engine: Engine, prompt: Any, asked: dict[str, Any], error: type[Exception]
) -> None:
    """Each is refused by submit; the engine stays usable."""
    with pytest.raises(error):
        engine.submit(prompt, **asked)
    assert engine.submit("One day", max_tokens=1).result(PATIENCE).tokens


def test_many_threads_lose_and_mix_nothing(model: Model, alone: dict[str, Any]) -> None:
    """Threads with random lengths, stops and cancels: each result is its request's own."""
    failures: list[Any] = []

    def use(engine: Engine, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(10):
            prompt = dice.choice(PROMPTS)
            text, tokens, _ = alone[prompt]
            length = dice.randint(1, 60)
            request = engine.submit(prompt, max_tokens=length, temperature=0)
            if dice.random() < 0.2:
                time.sleep(dice.random() * 0.01)
                request.cancel()
            done = request.result(PATIENCE)
            if done.tokens != tokens[: len(done.tokens)] or not text.startswith(done.text[:-2]):
                failures.append((prompt, done))
            if done.finish_reason == "length" and len(done.tokens) != length:
                failures.append((prompt, done))

    with Engine(model, n_parallel=8, ctx_size=256, threads=1) as shared:
        threads = [threading.Thread(target=use, args=(shared, seed)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        load = shared.load()
        assert (load.running, load.waiting) == (0, 0)
    assert failures == []


def test_an_unforeseen_exception_reaches_every_caller(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """It fails the requests whose step it was, unchanged, and the engine goes on."""
    with Engine(model, n_parallel=2, ctx_size=256, threads=1) as engine:
        whole = engine.context.decode_batch
        requests = [engine.submit("Once", **ENDLESS) for _ in range(3)]

        def explode(*arguments: Any) -> None:
            raise ZeroDivisionError("unforeseen")

        with caplog.at_level(logging.CRITICAL):
            monkeypatch.setattr(engine.context, "decode_batch", explode)
            for request in requests:
                with pytest.raises(ZeroDivisionError, match="unforeseen"):
                    request.result(PATIENCE)
        monkeypatch.setattr(engine.context, "decode_batch", whole)
        assert engine.submit("Once", max_tokens=3).result(PATIENCE).tokens


def test_a_failed_decode_harms_only_its_step(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that llama.cpp cannot compute fails its requests; the next ones are served."""
    with Engine(model, n_parallel=2, ctx_size=256, threads=1) as engine:
        whole = engine.context.decode_batch

        def fail_once(*arguments: Any) -> None:
            monkeypatch.setattr(engine.context, "decode_batch", whole)
            raise DecodeError("out of memory, say")

        monkeypatch.setattr(engine.context, "decode_batch", fail_once)
        with pytest.raises(DecodeError, match="out of memory"):
            engine.submit("Once upon a time", max_tokens=5).result(PATIENCE)
        assert engine.submit("Once upon a time", max_tokens=5).result(PATIENCE).tokens


def test_a_model_file_replaced_on_disk(model: Model, tmp_path: Path) -> None:
    """A file that another takes the place of stays what it was for who has it open."""
    path = tmp_path / "model.gguf"
    shutil.copy(model.path, path)
    with Model(path) as loaded, Engine(loaded, ctx_size=256, threads=1) as engine:
        before = engine.submit(PROMPTS[0], max_tokens=20, temperature=0).result(PATIENCE)
        other = tmp_path / "other"
        other.write_bytes(b"no model at all")
        other.replace(path)
        after = engine.submit(PROMPTS[0], max_tokens=20, temperature=0).result(PATIENCE)
    assert facts(before) == facts(after)


@pytest.mark.parametrize("kind", ["gemma3", "mamba"])
def test_reuse_on_other_memories(kind: str, model_files: dict[str, Path]) -> None:
    """Sliding-window and recurrent models: results with reuse equal those without."""
    asked: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    with Model(model_files[kind]) as loaded, Engine(loaded, ctx_size=256, threads=1) as engine:
        first = engine.submit(list(range(1, 30)), **asked).result(PATIENCE)
        continued = [*range(1, 30), *first.tokens, 3, 4]
        reused = []
        for text in (continued, continued, [*range(1, 20), 7, 7]):
            result = engine.submit(text, **asked).result(PATIENCE)
            with Engine(loaded, ctx_size=256, threads=1) as other:
                assert facts(result) == facts(other.submit(text, **asked).result(PATIENCE))
            reused.append(result.cached_tokens)
    assert reused[0] == 34  # the last sampled token was never computed


EXITS = {
    "requests in flight": "requests = [e.submit('Once', **asked) for _ in range(9)]; wait()",
    "an exception": "e.submit('Once', **asked); raise SystemExit(0)",
    "a daemon thread": "start(lambda: attempt(e.submit('Once', **asked).result)); wait()",
    "drain cut short": (
        "e.submit('Once', **asked); start(lambda: e.close(drain=True)); wait(); "
        "e.close(); assert e.context.closed"
    ),
    "forked": "pid = os.fork(); assert not pid or os.waitpid(pid, 0)[1] == 0",
}


@pytest.mark.parametrize("ending", EXITS)
def test_python_ends_cleanly(ending: str) -> None:
    """Without close(), with work in flight: status 0, nothing on stderr."""
    program = f"""
import os, threading, time
from llcuda import Engine, Model
from llcuda.errors import ClosedError
def attempt(call):
    try:
        call()
    except ClosedError:
        pass
m = Model("demo")
e = Engine(m, n_parallel=4, ctx_size=4096, threads=1)
asked = dict(max_tokens=4000, ignore_eos=True)
wait = lambda: time.sleep(0.1)
start = lambda work: threading.Thread(target=work, daemon=True).start()
{EXITS[ending]}
"""
    result = run(program)
    assert (0, "") == (result.returncode, result.stderr)


def test_an_engine_that_nobody_holds_is_freed() -> None:
    """Its thread ends and its context goes."""
    before = threading.active_count()
    contexts = []
    for _ in range(3):
        engine = Engine(Model("demo"), ctx_size=256, threads=1)
        engine.submit("One day", max_tokens=2).result(PATIENCE)
        contexts.append(engine.context)
        del engine
        gc.collect()
    assert threading.active_count() == before
    assert all(context.closed for context in contexts)


def test_a_request_outlives_the_engine_that_nobody_holds() -> None:
    """It ends as it would have, read in any way; then the engine is freed."""
    before = threading.active_count()
    asked: dict[str, Any] = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}

    def story(**asked: Any) -> Request:
        return Engine(Model("demo"), ctx_size=256, threads=1).submit("Once", **asked)

    expected = story(**asked).result(PATIENCE)
    streamed, waiting, cancelled = story(**asked), story(**asked), story(**ENDLESS)
    gc.collect()
    cancelled.cancel()
    assert (expected.finish_reason, cancelled.result(PATIENCE).finish_reason) == (
        "length",
        "cancelled",
    )
    assert "".join(streamed) == expected.text == waiting.result(PATIENCE).text
    loaded = InferenceEngine()
    loaded.load_model("demo", threads=1, ctx_size=256, verbose=False)
    request = loaded.submit("Once", **asked)
    del loaded
    gc.collect()
    assert request.result(PATIENCE).text == expected.text
    gc.collect()
    assert eventually(lambda: threading.active_count() == before)


def test_several_conversations_reuse_their_own_beginnings(model: Model) -> None:
    """A cached prefix is not given up for the BOS that all texts share."""
    stories = [f"{name} had a {thing}. " * 20 for name, thing in (("Tom", "ball"), ("Mia", "hat"))]
    with Engine(model, n_parallel=1, ctx_size=512, cache_size=2048, threads=1) as engine:
        reused = [
            engine.submit(story + f"{turn}", max_tokens=4).result(PATIENCE).cached_tokens
            for turn in range(3)
            for story in stories
        ]
    assert all(count > 100 for count in reused[2:])


def test_a_shifted_text_is_not_reused(model: Model) -> None:
    """What follows the kept tokens was computed with what was dropped."""
    asked: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True, "temperature": 0}
    with Engine(model, ctx_size=128, threads=1) as engine:
        first = engine.submit("Once upon a time", overflow="shift", **asked).result(PATIENCE)
        tail = [*model.tokenize("Once upon a time"), *first.tokens]
        again = engine.submit(tail[:1] + tail[-60:], max_tokens=5, temperature=0).result(PATIENCE)
    assert again.cached_tokens <= 1


@pytest.mark.parametrize("leave", ["cancel", "break"])
def test_leaving_an_async_loop_cancels(engine: Engine, leave: str) -> None:
    """Cancelling the task in the loop's body, or leaving the loop, ends the request."""

    async def main() -> Any:
        request = engine.submit("Once", **ENDLESS)

        async def read() -> None:
            async for _ in request:
                if leave == "break":
                    break
                await asyncio.sleep(10)

        task = asyncio.ensure_future(read())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return request

    assert asyncio.run(main()).result(PATIENCE).finish_reason == "cancelled"


def test_a_wrong_flag_harms_nobody(engine: Engine) -> None:
    """Flags are True or False; anything else is refused before it runs."""
    good = engine.submit("Once upon a time", max_tokens=50, ignore_eos=True)
    for wrong in ({"echo": "no"}, {"echo": None}, {"ignore_eos": 1}):
        with pytest.raises(ArgumentError):
            engine.submit("a", **wrong)  # type: ignore[arg-type]
    assert len(good.result(PATIENCE).tokens) == 50


def test_a_model_that_generates_no_text_is_refused(model_files: dict[str, Path]) -> None:
    """An encoder has no continuation to give."""
    with Model(model_files["bert"]) as bert, pytest.raises(ArgumentError, match="generates none"):
        Engine(bert)
