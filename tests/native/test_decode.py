from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llcuda import Context, Model, Sampler
from llcuda.errors import BatchError, NoOutputError, NoRoomError, UnsupportedError
from tests.support import models

Make = Callable[..., Context]
TEXTS = ("the cat and the hat", "on the shore", "in a far town there is a tower", "we sing")
# Batches of another size take other kernels, which add in another order: float32 rounding over
# sums of some hundred products of numbers near 1, in half precision where the KV cache is f16.
TOLERANCE = {"rtol": 0, "atol": 5e-3}
EXACT_KV = {"type_k": "f32", "type_v": "f32", "flash_attention": False}
TIGHT = {"rtol": 0, "atol": 2e-4}


def greedy(context: Context, tokens: list[int], count: int, seq: int = 0) -> list[int]:
    """Decode `tokens` and return the `count` tokens that greedy choice adds."""
    sampler = Sampler(temperature=0)
    context.decode(tokens, seq)
    chosen = []
    for _ in range(count):
        chosen.append(sampler.sample(context))
        context.decode([chosen[-1]], seq)
    return chosen


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mamba"])
def test_a_batch_of_texts_equals_each_alone(
    kind: str, model_files: dict, make_context: Make
) -> None:
    """Several sequences in one batch give the logits and greedy tokens that each gives alone."""
    with Model(model_files[kind]) as model:
        prompts = [model.tokenize(text) for text in TEXTS]
        alone = [greedy(make_context(model, **EXACT_KV), prompt, 12) for prompt in prompts]

        together = make_context(model, sequences=len(prompts), **EXACT_KV)
        rows = [(token, seq) for seq, prompt in enumerate(prompts) for token in prompt]
        ends = np.cumsum([len(prompt) for prompt in prompts]) - 1
        together.decode_batch(
            [token for token, _ in rows],
            [seq for _, seq in rows],
            logits=[i in ends for i in range(len(rows))],
        )
        for seq, prompt in enumerate(prompts):
            single = make_context(model, **EXACT_KV)
            single.decode(prompt)
            expected = single.logits()
            np.testing.assert_allclose(together.logits(int(ends[seq])), expected, **TIGHT)
        chosen: list[list[int]] = [[] for _ in prompts]
        last = [int(np.argmax(together.logits(int(end)))) for end in ends]
        for _ in range(12):
            for seq, token in enumerate(last):
                chosen[seq].append(token)
            together.decode_batch(last, list(range(len(prompts))))
            last = [int(np.argmax(together.logits(i))) for i in range(len(prompts))]
        assert alone == chosen


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_prompt_in_parts_equals_the_whole(size: int, model: Model, make_context: Make) -> None:
    """Decoding part after part leaves the same logits and positions."""
    tokens = model.tokenize("the hat on the cat and the rest of a longer text")
    whole, parts = make_context(model), make_context(model)
    whole.decode(tokens)
    for begin in range(0, len(tokens), size):
        parts.decode(tokens[begin : begin + size])
    assert range(len(tokens)) == parts.memory.range()
    np.testing.assert_allclose(parts.logits(), whole.logits(), **TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_a_prompt_longer_than_a_batch_is_split(
    batch_size: int, model: Model, make_context: Make
) -> None:
    """Decode splits by batch_size itself, and indexes outputs by the whole prompt."""
    tokens = model.tokenize("a text that is quite a bit longer than one batch of tokens")
    whole, split = make_context(model), make_context(model, batch_size=batch_size)
    whole.decode(tokens)
    split.decode(tokens)
    np.testing.assert_allclose(split.logits(), whole.logits(), **TOLERANCE)
    assert [len(tokens) - 1] == split.output_indices()
    np.testing.assert_array_equal(split.logits(-1), split.logits(len(tokens) - 1))


def test_ubatch_above_batch_is_taken_as_the_batch(model: Model, make_context: Make) -> None:
    """A ubatch larger than its batch means nothing; it is cut down."""
    context = make_context(model, batch_size=4, ubatch_size=512)
    context.decode([1] * 11)
    assert 11 == context.n_past()


def test_logits_all_equal_those_of_prefixes(model: Model, make_context: Make) -> None:
    """Row i of logits="all" is what decoding the first i + 1 tokens gives."""
    tokens = model.tokenize("the cat and the hat")
    context = make_context(model)
    context.decode(tokens, logits="all")
    assert list(range(len(tokens))) == context.output_indices()
    for i in range(len(tokens)):
        prefix = make_context(model)
        prefix.decode(tokens[: i + 1])
        np.testing.assert_allclose(context.logits(i), prefix.logits(), **TOLERANCE)


def test_an_array_decodes_like_a_list(model: Model, make_context: Make) -> None:
    """Tokens may be a list, a tuple, a numpy array of any integer type, any iterable."""
    expected = make_context(model)
    expected.decode([5, 6, 7])
    for tokens in (
        (5, 6, 7),
        np.array([5, 6, 7], np.int32),
        np.array([5, 6, 7], np.uint8),
        np.array([5, 0, 6, 0, 7], np.int64)[::2],
        range(5, 8),
    ):
        context = make_context(model)
        context.decode(tokens)  # type: ignore[arg-type]
        np.testing.assert_array_equal(context.logits(), expected.logits())


@pytest.mark.parametrize(
    "tokens",
    [[], [-1], [models.VOCABULARY], [2**31], [2**70], [1.5], ["a"], [None], [[1, 2]], None, 5, "ab",
     b"ab", np.zeros((2, 2), np.int32), np.array([0.5]), [1, 2, -1]],
    ids=repr,
)  # fmt: skip
def test_tokens_that_are_none(tokens: object, context: Context) -> None:
    """What is no list of tokens of the vocabulary is a BatchError; nothing is decoded."""
    with pytest.raises(BatchError):
        context.decode(tokens)  # type: ignore[arg-type]
    assert 0 == context.n_past()


@pytest.mark.parametrize("seq", [-1, 1, 2**31, 2**70, 1.5, "a", None])
def test_a_sequence_that_is_none(seq: object, context: Context) -> None:
    """An unknown sequence is a BatchError that says which are known."""
    with pytest.raises(BatchError, match=r"seq|sequences 0 to 0"):
        context.decode([1], seq=seq)  # type: ignore[arg-type]


@pytest.mark.parametrize("pos", [-1, 2**31 - 1, 2**31, 2**70, 1.5, "a"])
def test_a_position_out_of_range(pos: object, context: Context) -> None:
    """Positions count from 0 and fit 31 bits."""
    with pytest.raises(BatchError):
        context.decode([1], pos=pos)  # type: ignore[arg-type]


def test_a_position_that_leaves_a_gap(context: Context) -> None:
    """llama.cpp refuses tokens that do not continue their sequence; the memory stays."""
    context.decode([1, 2, 3])
    with pytest.raises(BatchError):
        context.decode([4], pos=10)
    assert range(3) == context.memory.range()
    context.decode([4])
    assert range(4) == context.memory.range()


def test_a_full_cache_is_no_room_and_changes_nothing(context: Context) -> None:
    """What does not fit is refused whole; what was there goes on."""
    context.decode([1] * 250)
    with pytest.raises(NoRoomError):
        context.decode([2] * 7)
    assert range(250) == context.memory.range()
    context.decode([2] * 6)
    with pytest.raises(NoRoomError):
        context.decode([2])


def test_a_long_prompt_that_does_not_fit_is_undone(model: Model, make_context: Make) -> None:
    """When a later part finds no room, the earlier parts are removed again."""
    context = make_context(model, batch_size=16)
    context.decode([1, 2, 3])
    with pytest.raises(NoRoomError):
        context.decode([5] * 300)
    assert range(3) == context.memory.range()


def test_more_logits_than_outputs_max(model: Model, make_context: Make) -> None:
    """logits="all" of more tokens than outputs_max is refused before anything is computed."""
    context = make_context(model, outputs_max=4)
    context.decode([1] * 4, logits="all")
    with pytest.raises(BatchError, match="outputs_max=4"):
        context.decode([1] * 5, logits="all")
    assert 4 == context.n_past()


def test_rows_of_unequal_lists(model: Model, make_context: Make) -> None:
    """decode_batch wants one entry a row everywhere, and at most batch_size rows."""
    context = make_context(model, sequences=2, batch_size=4)
    for arguments in (
        ([1, 2], [0]), ([1], [0, 1]), ([1], [0], [0, 1]), ([1], [0], None, [True, False]),
        ([], []), ([1] * 5, [0] * 5), ([1], [2]), ([1], [-1]), ([-1], [0]), ([1], [0], [-5]),
        (["a"], [0]), ([1], ["a"]), ([1.5], [0]), ([1], [0], ["a"]), ([2**40], [0]),
    ):  # fmt: skip
        with pytest.raises(BatchError):
            context.decode_batch(*arguments)  # type: ignore[arg-type]
    assert (0, 0) == (context.n_past(0), context.n_past(1))


def test_outputs_that_were_not_computed(context: Context) -> None:
    """Logits of a token without any are a NoOutputError that names those that there are."""
    with pytest.raises(NoOutputError, match=r"\[\]"):
        context.logits()
    context.decode([1, 2, 3])
    with pytest.raises(NoOutputError, match=r"tokens \[2\]"):
        context.logits(0)
    for i in (-2, 3, 2**31 - 1, -(2**31)):
        with pytest.raises(NoOutputError):
            context.logits(i)
    context.decode([1], logits="none")
    with pytest.raises(NoOutputError):
        context.logits()
    with pytest.raises(NoOutputError):
        Sampler().sample(context)


def test_a_failed_decode_leaves_no_outputs(context: Context) -> None:
    """After NoRoomError there are no old logits to sample from by mistake."""
    context.decode([1] * 250)
    with pytest.raises(NoRoomError):
        context.decode([2] * 7)
    with pytest.raises(NoOutputError):
        context.logits()


def test_positions_beyond_a_table_of_positions(bert: Model, make_context: Make) -> None:
    """A model with learned positions has no more of them; llama.cpp would end the process."""
    size = 2 * models.TRAIN_CTX
    context = make_context(
        bert, ctx_size=size, batch_size=size, ubatch_size=size, embeddings=True, threads=2
    )
    context.decode([1] * models.TRAIN_CTX)
    with pytest.raises(BatchError, match="position"):
        context.decode([1] * (models.TRAIN_CTX + 1))
    with pytest.raises(BatchError, match="position"):
        context.decode([1], pos=models.TRAIN_CTX)


def test_encode_is_for_encoder_decoder_models(context: Context) -> None:
    """A decoder has no encoder to run."""
    with pytest.raises(UnsupportedError):
        context.encode([1])


def test_score_is_the_log_probability_of_each_token(model: Model, make_context: Make) -> None:
    """score() equals log-softmax of the logits before each token, whatever the batch size."""
    tokens = model.tokenize("the cat and the hat on the shore")
    reference = make_context(model)
    reference.decode(tokens, logits="all")
    expected = [
        dict(reference.top_logprobs(models.VOCABULARY, i))[tokens[i + 1]]
        for i in range(len(tokens) - 1)
    ]
    for batch_size in (3, 512):
        context = make_context(model, batch_size=batch_size)
        np.testing.assert_allclose(context.score(tokens), expected, **TOLERANCE)
    assert 0 == len(make_context(model).score([]))
    assert 0 == len(make_context(model).score([1]))


def test_arrays_serve_as_lists(make_context: Callable[..., Context], model: Model) -> None:
    """decode_batch, detokenize and the parameters take numpy's arrays and numbers."""
    lists = make_context(model, sequences=2)
    arrays = make_context(model, sequences=np.int64(2))
    lists.decode_batch((3, 4), range(2))
    arrays.decode_batch(np.array([3, 4]), np.array([0, 1], dtype=np.int32))
    np.testing.assert_array_equal(lists.logits(1), arrays.logits(1))
    assert model.detokenize([3, 4]) == model.detokenize(token for token in np.array([3, 4]))
    best = np.argmax(arrays.logits(1))
    forbidden = Sampler(temperature=0, logit_bias={best: -np.inf}, model=model)
    assert forbidden.sample(arrays, 1) != best
