"""The result of a request, under all its names."""

import pytest

import llcuda
from llcuda.engine.metrics import RequestRecord

COMPLETION = llcuda.Completion(
    text="A fox.",
    tokens=[5, 6, 7],
    finish_reason="stop",
    prompt_tokens=4,
    dropped_tokens=0,
    cached_tokens=2,
    seed=1,
    queue_seconds=0.25,
    prefill_seconds=0.25,
    decode_seconds=1.0,
    latency_seconds=1.5,
)


def test_there_is_one_type_of_result() -> None:
    """InferResult's names are those of the completion."""
    assert llcuda.InferResult is llcuda.Completion
    assert COMPLETION.completion is COMPLETION
    assert (COMPLETION.tokens_generated, COMPLETION.latency_ms) == (3, 1500.0)
    assert COMPLETION.tokens_per_sec == 2.0
    with pytest.warns(DeprecationWarning, match="use Completion.tokens_per_sec;"):
        assert COMPLETION.tokens_per_second == 2.0
    assert COMPLETION.timings == {
        "queue_seconds": 0.25,
        "prefill_seconds": 0.25,
        "decode_seconds": 1.0,
        "latency_seconds": 1.5,
    }
    assert str(COMPLETION) == "A fox."
    assert repr(COMPLETION) == "<llcuda.Completion 'A fox.': 3 tokens, 1500 ms, 2.0 tokens/s, stop>"


def test_reused_tokens_is_the_old_name_of_cached_tokens() -> None:
    """A DeprecationWarning says so, of a completion and of a hook's record."""
    record = RequestRecord(4, 2, 3, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1.0, "stop")
    for result in (COMPLETION, record):
        with pytest.warns(DeprecationWarning, match="cached_tokens"):
            assert result.reused_tokens == result.cached_tokens == 2
