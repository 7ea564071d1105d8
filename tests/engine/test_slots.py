"""The slots of the KV cache: chosen by a request, listed, saved to a file, restored, erased."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import llcuda
from llcuda import ArgumentError, ConcurrencyError, Engine, Model, StateError
from tests.support.waiting import ENDLESS, PATIENCE

PROMPT = "Once upon a time there was a small boat that sailed over the sea"
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    with Engine(model, ctx_size=256, n_parallel=2, threads=1) as opened:
        yield opened


def test_a_request_gets_its_slot(engine: Engine) -> None:
    """The request says its slot; two that want the same one run one after the other."""
    requests = [engine.submit(PROMPT, slot=1, **GREEDY) for _ in range(3)]
    assert [1, 1, 1] == [r.slot for r in requests if r.result()]
    assert [None, None] == [state.request for state in engine.slots()]
    assert requests[0].result().prompt_tokens + 7 == engine.slots()[1].tokens


def test_a_slot_in_use(engine: Engine) -> None:
    """While a request runs, its slot names it and cannot be saved; others need not wait for it."""
    running = engine.submit(PROMPT, slot=0, **ENDLESS)
    waiting = engine.submit(PROMPT, slot=0, **GREEDY)
    other = engine.submit(PROMPT, **GREEDY)
    assert 1 == (other.result(PATIENCE) and other.slot)
    assert running is engine.slots()[0].request
    for work in (
        lambda: engine.save_slot(0, "x"),
        lambda: engine.erase_slot(0),
    ):
        with pytest.raises(ConcurrencyError, match="slot=0: a request uses it"):
            work()
    running.cancel()
    assert 0 == (waiting.result(PATIENCE) and waiting.slot)


def test_without_the_cache(engine: Engine) -> None:
    """cache_prompt=False computes the whole prompt."""
    engine.submit(PROMPT, **GREEDY).result()
    assert engine.submit(PROMPT, **GREEDY).result().cached_tokens
    assert 0 == engine.submit(PROMPT, cache_prompt=False, **GREEDY).result().cached_tokens


def test_save_and_restore(engine: Engine, tmp_path: Path) -> None:
    """A restored slot spares the prompt and gives the same text; an erased one does not."""
    first = engine.submit(PROMPT, slot=1, **GREEDY).result()
    saved = engine.save_slot(1, tmp_path / "slot")
    assert saved == engine.slots()[1].tokens == first.prompt_tokens + 7
    for number in (0, 1):
        engine.erase_slot(number)
    assert [0, 0] == [state.tokens for state in engine.slots()]
    assert 0 == engine.erase_slot(0)
    assert 0 == engine.submit(PROMPT, slot=1, **GREEDY).result().cached_tokens
    engine.erase_slot(1)
    assert saved == engine.restore_slot(0, tmp_path / "slot")
    again = engine.submit(PROMPT, slot=0, **GREEDY).result()
    assert (first.text, first.prompt_tokens - 1) == (again.text, again.cached_tokens)


def test_files_that_are_refused(engine: Engine, model: Model, tmp_path: Path) -> None:
    """Damaged files, those of others, and missing ones leave the slot empty or as it was."""
    path = tmp_path / "slot"
    engine.submit(PROMPT, slot=0, **GREEDY).result()
    engine.save_slot(0, path)
    whole = path.read_bytes()
    damaged = {
        b"": "not a file that",
        b"GGUF" * 9: "not a file that",
        whole[:20]: "damaged",
        whole[:120]: "damaged",
        whole[:-9]: "damaged",
        whole[:400] + b"x" + whole[401:]: "damaged",
        b"llcuda slot 1\n{}\n": "damaged",
        b"llcuda slot 1\n[1]\n": "damaged",
        whole.replace(b'"tokens": 2', b'"tokens": -2', 1): "damaged",
    }
    for data, problem in damaged.items():
        (tmp_path / "other").write_bytes(data)
        with pytest.raises(StateError, match=problem):
            engine.restore_slot(0, tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        engine.restore_slot(0, tmp_path / "missing")
    for number in (2, -1, True, "0"):
        with pytest.raises(ArgumentError, match="slot="):
            engine.restore_slot(number, path)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="slot="):
            engine.submit(PROMPT, slot=number)  # type: ignore[arg-type]
    assert engine.restore_slot(0, path)
    with (
        Engine(model, ctx_size=8, threads=1) as small,
        pytest.raises(StateError, match="ctx_size=8"),
    ):
        small.restore_slot(0, path)


def test_after_the_end(model: Model, tmp_path: Path) -> None:
    """A closed engine refuses."""
    engine = Engine(model, ctx_size=64, threads=1)
    engine.close()
    with pytest.raises(llcuda.ClosedError):
        engine.save_slot(0, tmp_path / "slot")
