"""eval, sample, generate, states and caches: the one text of a Llama."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Context, Model
from llcuda.errors import (
    ArgumentError,
    ConcurrencyError,
    ContextLengthError,
    StateError,
    UnsupportedError,
)
from llcuda.llama_cpp import (
    Llama,
    LlamaDiskCache,
    LlamaDraftModel,
    LlamaPromptLookupDecoding,
    LlamaRAMCache,
    LlamaState,
)

PROMPT = b"Once upon a time"
GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0}


def greedy(path: str | Path, prompt: list[int], count: int) -> list[int]:
    """Return the greedy tokens after a prompt, by a Context."""
    tokens: list[int] = []
    with Model(path) as model, Context(model, ctx_size=128, threads=1) as context:
        context.decode(prompt)
        while len(tokens) < count:
            tokens.append(int(context.logits().argmax()))
            context.decode(tokens[-1:])
    return tokens


def take(llama: Llama, prompt: list[int], count: int, **options: Any) -> list[int]:
    """Return the first greedy tokens that `generate` yields."""
    return list(islice(llama.generate(prompt, temp=0.0, **options), count))


@pytest.fixture(scope="module", params=["demo", "mamba", "lfm2"])
def path(request: pytest.FixtureRequest, model_files: dict[str, Path]) -> str | Path:
    """A model with KV cells, with a recurrent state, and with both."""
    return "demo" if request.param == "demo" else model_files[request.param]


def test_eval_and_sample(own: Llama) -> None:
    """`sample` does not change the text; the greedy tokens are those of a Context."""
    prompt = own.tokenize(PROMPT)
    own.eval(prompt)
    assert own.n_tokens == len(prompt) and list(own.eval_tokens) == prompt
    assert len(own.eval_logits) == 1 and len(own.eval_logits[0]) == own.n_vocab()
    tokens = []
    for _ in range(6):
        tokens.append(own.sample(temp=0.0))
        assert own.sample(temp=0.0) == tokens[-1]
        own.eval(tokens[-1:])
    assert tokens == greedy("demo", prompt, 6)


def test_generate(path: str | Path) -> None:
    """It keeps what is computed, exactly or in part, and shortens the text to a new prompt."""
    with Llama(path, n_ctx=128, n_threads=1, verbose=False) as llama:
        prompt = llama.tokenize(PROMPT)
        expected = greedy(path, prompt, 5)
        llama.eval(prompt)
        assert take(llama, prompt, 5) == expected
        assert llama.n_tokens == len(prompt) + 4
        assert take(llama, prompt, 5) == expected
        other = [*prompt[:-1], prompt[0]]
        assert take(llama, other, 5) == greedy(path, other, 5)
        llama.reset()
        assert llama.n_tokens == 0
        llama.eval(prompt)
        assert take(llama, expected[:2], 3, reset=False) == expected[2:]


def test_a_shorter_text(path: str | Path) -> None:
    """n_tokens and input_ids are the caller's to change; the context follows."""
    with Llama(path, n_ctx=128, n_threads=1, verbose=False) as llama:
        prompt = llama.tokenize(PROMPT)
        llama.eval([*prompt, *prompt])
        llama.n_tokens = len(prompt)
        assert llama.sample(temp=0.0) == greedy(path, prompt, 1)[0]
        llama.input_ids[len(prompt) - 1] = prompt[0]
        assert llama.sample(temp=0.0) == greedy(path, [*prompt[:-1], prompt[0]], 1)[0]
        with pytest.raises(ArgumentError, match="n_tokens=500"):
            llama.n_tokens = 500


def test_sent_tokens(own: Llama) -> None:
    """They follow the token that the generator has yielded."""
    prompt, further = own.tokenize(PROMPT), own.tokenize(b" Tom had", add_bos=False)
    generator = own.generate(prompt, temp=0.0)
    first = next(generator)
    second = generator.send(further)
    assert second == greedy("demo", [*prompt, first, *further], 1)[0]
    assert list(own.eval_tokens) == [*prompt, first, *further]


def test_a_later_call_takes_over(own: Llama) -> None:
    """The generator before it says so when it is asked again; an engine's text leaves it alone."""
    prompt = own.tokenize(PROMPT)
    generator = own.generate(prompt, temp=0.0)
    next(generator)
    assert take(own, prompt, 3) == greedy("demo", prompt, 3)
    with pytest.raises(ConcurrencyError, match="a later call generates another text"):
        next(generator)
    stream = own("Tom had", stream=True, stopping_criteria=lambda ids, scores: False)
    next(stream)
    own("Tom had", **GREEDY)
    with pytest.raises(ConcurrencyError, match="create another Llama"):
        list(stream)


def test_completions_and_the_text(own: Llama) -> None:
    """A completion's text can be continued; once the text was used, completions are on it."""
    text = own("Once upon a time", **GREEDY)["choices"][0]["text"]
    prompt = own.tokenize(PROMPT)
    tokens = greedy("demo", prompt, 8)
    assert list(own.eval_tokens) == [*prompt, *tokens[:-1]]
    assert own.sample(temp=0.0) == tokens[-1]
    own.eval(tokens[-1:])
    again = own("Once upon a time", **GREEDY)
    assert again["choices"][0]["text"] == text
    assert list(own.eval_tokens) == [*prompt, *tokens[:-1]]


class Guesser(LlamaDraftModel):
    """Proposes tokens of a list, some of them wrong."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
        """Return the tokens of the list at this place."""
        place = len(input_ids)
        return np.asarray(self.tokens[place : place + 4], dtype=np.intc)


def test_draft_models(own: Llama) -> None:
    """They change no token: a caller's own, and that of the engine."""
    prompt = own.tokenize(PROMPT)
    expected = greedy("demo", prompt, 24)
    guesses = [*prompt, *expected]
    guesses[len(prompt) + 6] = guesses[len(prompt) + 13] = 5
    lookup = LlamaPromptLookupDecoding(num_pred_tokens=4)
    for draft in (Guesser(guesses), lookup):
        with Llama("demo", n_ctx=128, n_threads=1, draft_model=draft, verbose=False) as llama:
            assert take(llama, prompt, 24) == expected
            text = llama("Once upon a time", max_tokens=24, temperature=0)["choices"][0]["text"]
        assert text == own.detokenize(expected, prev_tokens=prompt).decode()


def test_all_logits() -> None:
    """logits_all=True keeps those of each token; log-probabilities are of them."""
    with Llama("demo", n_ctx=64, n_batch=4, n_threads=1, logits_all=True, verbose=False) as llama:
        prompt = llama.tokenize(b"Once upon a time there was a")
        llama.eval(prompt)
        assert llama.scores.shape == (64, llama.n_vocab())
        assert len(llama.eval_logits) == len(prompt)
        with Model("demo") as model, Context(model, ctx_size=64, threads=1) as context:
            expected = context.score(prompt)
        logprobs = llama.logits_to_logprobs(llama.scores[: len(prompt) - 1])
        picked = logprobs[np.arange(len(prompt) - 1), prompt[1:]]
        np.testing.assert_allclose(picked, expected, atol=2e-2)
        asked: dict[str, Any] = {"echo": True, "logprobs": 1, **GREEDY}
        scores = llama(prompt, **asked)["choices"][0]["logprobs"]
        np.testing.assert_allclose(scores["token_logprobs"][1 : len(prompt)], expected, atol=2e-2)
        assert scores["token_logprobs"][0] is None and len(scores["tokens"]) == len(prompt) + 8


def test_states(path: str | Path) -> None:
    """A state restores the text in another object, pickled or not."""
    with Llama(path, n_ctx=64, n_threads=1, verbose=False) as llama:
        prompt = llama.tokenize(PROMPT)
        llama.eval(prompt)
        llama.set_seed(7)
        state = pickle.loads(pickle.dumps(llama.save_state()))
        expected = take(llama, prompt, 5)
        llama.load_state(state)
        assert (llama.n_tokens, list(llama.eval_tokens)) == (len(prompt), prompt)
        assert take(llama, prompt, 5) == expected
    with Llama(path, n_ctx=64, n_threads=1, verbose=False) as other:
        other.eval([3, 3, 3])
        other.load_state(state)
        assert take(other, prompt, 5) == expected
        assert other.save_state().seed == 7


def test_a_state_of_an_engines_text(own: Llama) -> None:
    """It is computed for the state."""
    own("Once upon a time", **GREEDY)
    state = own.save_state()
    assert state.n_tokens == len(own.tokenize(PROMPT)) + 7
    assert state.llama_state_size == len(state.llama_state) > 0


@pytest.fixture(params=["RAM", "disk"])
def caches(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """What makes a cache: the same one each time, or one on the same folder."""
    ram = LlamaRAMCache()
    yield lambda: ram if request.param == "RAM" else LlamaDiskCache(tmp_path / "cache")


def test_caches(caches: Any, path: str | Path) -> None:
    """A text that begins alike begins from the state of another object, and is the same."""
    with Llama(path, n_ctx=64, n_threads=1, verbose=False) as llama:
        expected = llama("Once upon a time", **GREEDY)["choices"][0]["text"]
        llama.set_cache(caches())
        assert llama("Once upon a time", **GREEDY)["choices"][0]["text"] == expected
    cache = caches()
    assert cache.cache_size > 0
    assert [1, 2, 3] not in cache or path == "demo"
    with Llama(path, n_ctx=64, n_threads=1, verbose=False) as other:
        loads: list[LlamaState] = []
        load = other.load_state
        other.load_state = lambda state: (loads.append(state), load(state))[1]  # type: ignore[assignment,func-returns-value]
        other.set_cache(cache)
        assert other("Once upon a time", **GREEDY)["choices"][0]["text"] == expected
        stream = other("Once upon a time", **GREEDY, stream=True)
        assert "".join(chunk["choices"][0]["text"] for chunk in stream) == expected
    assert len(loads) == 1  # the second call had the text itself


def test_caches_have_a_capacity(tmp_path: Path) -> None:
    """The states unused for longest go; one that is too large is not kept."""
    rows = np.zeros((0, 4), dtype=np.single)
    ids = np.arange(4, dtype=np.intc)

    def state(size: int) -> LlamaState:
        return LlamaState(ids, rows, 3, bytes(size), size, 1)

    for cache in (LlamaRAMCache(250_000), LlamaDiskCache(tmp_path, 250_000)):
        cache[0, 1, 2] = state(100_000)
        cache[5, 6, 7] = state(100_000)
        assert cache[0, 1, 9].llama_state_size == 100_000
        cache[8, 9] = state(100_000)
        assert [0, 1] in cache and [5] not in cache and [8] in cache
        with pytest.raises(KeyError):
            _ = cache[5, 6]
        cache[3, 3] = state(300_000)
        assert [3] not in cache


def test_a_damaged_file_of_a_cache(tmp_path: Path) -> None:
    """It is passed over."""
    cache = LlamaDiskCache(tmp_path)
    (tmp_path / "odd.npz").write_bytes(b"PK\x03\x04 not a state")
    (tmp_path / "empty.npz").touch()
    assert [1] not in cache
    with pytest.raises(KeyError):
        _ = cache[1,]


def test_a_cache_that_fails(
    own: Llama, tmp_path: Path, model_files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The text is there; the log says what is wrong: a folder that is none, another model."""
    expected = own("Once upon a time", **GREEDY)["choices"]
    (tmp_path / "file").touch()
    own.set_cache(LlamaDiskCache(tmp_path / "file" / "folder"))
    assert own("Once upon a time", **GREEDY)["choices"] == expected
    assert "the cache cannot be written: " in caplog.text
    cache = LlamaRAMCache()
    with Llama(model_files["lfm2"], n_ctx=64, n_threads=1, verbose=False) as other:
        other.eval([1, 2, 3])
        cache[own.tokenize(PROMPT)] = state = other.save_state()
        state.input_ids[:5] = own.tokenize(PROMPT)
        state.n_tokens = 5
    own.set_cache(cache)
    own.reset()
    assert own("Once upon a time", **GREEDY)["choices"] == expected
    assert "the cache cannot be read: state: it is of another model" in caplog.text


def test_pickling(own: Llama) -> None:
    """Another object with the same arguments, without the text."""
    own.set_seed(9)
    own.eval([1, 2])
    with pickle.loads(pickle.dumps(own)) as copy:
        assert (copy.n_ctx(), copy.n_tokens, copy.chat_format) == (128, 0, own.chat_format)
        first = copy("Once upon a time", max_tokens=6, temperature=1.0)
        second = own("Once upon a time", max_tokens=6, temperature=1.0)
        assert first["choices"] == second["choices"]


def test_wrong_arguments(own: Llama) -> None:
    """Errors that say what to do; the text stays."""
    with pytest.raises(ArgumentError, match=r"nothing was evaluated yet; call eval\(tokens\)"):
        own.sample()
    with pytest.raises(UnsupportedError, match="logits_all=True"):
        _ = own.scores
    prompt = own.tokenize(PROMPT)
    own.eval(prompt)
    with pytest.raises(ArgumentError, match="token 999999"):
        own.eval([999_999])
    with pytest.raises(ContextLengthError, match=r"has 135 tokens.*; give Llama a larger n_ctx$"):
        own.eval([5] * (135 - len(prompt)))
    with pytest.raises(ArgumentError, match="temp='hot'"):
        own.sample(temp="hot")  # type: ignore[arg-type]
    for idx, says in (
        (0, "no logits for this token; leave it out"),
        (500, "from 0"),
        ("x", "from"),
    ):
        with pytest.raises(ArgumentError, match=f"idx={idx!r}: .*{says}"):
            own.sample(idx=idx)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="the prompt is empty"):
        next(own.generate([]))
    with pytest.raises(ArgumentError, match="state=5: expected what save_state"):
        own.load_state(5)  # type: ignore[arg-type]
    state = own.save_state()
    state.llama_state = state.llama_state[:-5]
    with pytest.raises(StateError, match="damaged"):
        own.load_state(state)
    with pytest.raises(ArgumentError, match="cache=5: expected a LlamaRAMCache"):
        own.set_cache(5)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="penalize_nl=False: it has no effect"):
        own.sample(penalize_nl=False)
    assert list(own.eval_tokens) == prompt
    assert own.sample(temp=0.0) == greedy("demo", prompt, 1)[0]


def test_the_end_of_the_context(own: Llama) -> None:
    """`generate` fails there, as it has no end of its own."""
    prompt = own.tokenize(PROMPT)
    tokens = []
    with pytest.raises(ContextLengthError, match="has 129 tokens"):
        for token in own.generate(prompt, temp=0.0):
            tokens.append(token)
    assert len(tokens) == 128 - len(prompt) + 1
