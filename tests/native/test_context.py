from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Context, ContextParams, CudaGraphs, DecodeEvent, Model, Sampler, Timings
from llcuda.errors import ArgumentError, BatchError, ContextError, NoOutputError
from llcuda.native import library
from tests.support import models

Make = Callable[..., Context]
PROMPT = list(range(40, 60))
TOLERANCE = {"rtol": 0, "atol": 5e-3}  # as in test_decode.py


class TestResults:
    """Logits and embeddings as arrays that the context shares until the next decode."""

    def test_a_sampler_sees_what_is_written(self, context: Context) -> None:
        """Every call returns the same memory, and whatever reads logits reads it."""
        context.decode([1, 2, 3])
        view = context.logits()
        assert (np.float32, (models.VOCABULARY,)) == (view.dtype, view.shape)
        view[77] = 1e4
        assert 77 == Sampler(temperature=0).sample(context)
        assert [(77, 0.0)] == context.top_logprobs(1)
        assert 1e4 == context.logits(2)[77]
        assert np.shares_memory(view, context.logits())

    def test_each_row_has_memory_of_its_own(self, context: Context) -> None:
        """Rows are read in any order, and a write into one changes no other."""
        context.decode([1, 2, 3], logits="all")
        rows = [context.logits(i) for i in (2, 0, 1)]
        copies = [row.copy() for row in rows]
        rows[0][:] = 0
        np.testing.assert_array_equal(rows[0], context.logits(-1))
        np.testing.assert_array_equal(copies[1], context.logits(-3))
        np.testing.assert_array_equal(copies[2], context.logits(1))

    def test_top_logprobs_are_the_best_of_log_softmax(self, context: Context) -> None:
        """Best first."""
        context.decode([1, 2, 3])
        best = context.top_logprobs(5)
        assert [int(i) for i in np.argsort(-context.logits())[:5]] == [token for token, _ in best]
        assert sorted((score for _, score in best), reverse=True) == [score for _, score in best]

    def test_embeddings_want_to_be_asked_for(self, context: Context) -> None:
        """Without embeddings=True there are none."""
        context.decode([1])
        for read in (context.embeddings, context.sequence_embedding):
            with pytest.raises(NoOutputError):
                read()
        with pytest.raises(ArgumentError):
            context.logits("a")  # type: ignore[arg-type]


class TestEmbeddings:
    """Encoders, and decoders that are used as such."""

    def test_an_encoder_gives_the_mean_of_its_tokens(self, bert: Model, make_context: Make) -> None:
        """Mean pooling equals the mean of the rows without pooling."""
        tokens = bert.tokenize("the cat and the hat")
        pooled = make_context(bert, embeddings=True)
        pooled.decode(tokens)
        rows = make_context(bert, embeddings=True, pooling="none")
        rows.decode(tokens)
        every = np.array([rows.embeddings(i) for i in range(len(tokens))])
        np.testing.assert_allclose(pooled.sequence_embedding(), every.mean(0), rtol=0, atol=1e-4)

    @pytest.mark.parametrize(("pooling", "row"), [("cls", 0), ("last", -1)])
    def test_poolings_of_one_token(
        self, pooling: str, row: int, bert: Model, make_context: Make
    ) -> None:
        """The first and the last token's row."""
        tokens = bert.tokenize("the cat and the hat")
        pooled = make_context(bert, embeddings=True, pooling=pooling)
        pooled.decode(tokens)
        rows = make_context(bert, embeddings=True, pooling="none")
        rows.decode(tokens)
        np.testing.assert_allclose(pooled.sequence_embedding(), rows.embeddings(row), atol=1e-4)

    def test_several_texts_in_one_batch(self, bert: Model, make_context: Make) -> None:
        """Each sequence has the embedding that it has alone."""
        texts = [bert.tokenize(text) for text in ("the cat", "on the shore")]
        both = make_context(bert, embeddings=True, sequences=2)
        both.decode_batch(texts[0] + texts[1], [0] * len(texts[0]) + [1] * len(texts[1]))
        for seq, tokens in enumerate(texts):
            alone = make_context(bert, embeddings=True)
            alone.decode(tokens)
            np.testing.assert_allclose(
                both.sequence_embedding(seq), alone.sequence_embedding(), rtol=0, atol=1e-3
            )
        with pytest.raises(BatchError):
            both.sequence_embedding(2)

    def test_a_decoder_with_pooling(self, model: Model, make_context: Make) -> None:
        """A llama gives embeddings, too; per token without pooling."""
        context = make_context(model, embeddings=True, pooling="last")
        context.decode(PROMPT)
        assert (models.EMBEDDING,) == context.sequence_embedding().shape
        rows = make_context(model, embeddings=True, pooling="none")
        rows.decode(PROMPT)
        np.testing.assert_allclose(
            context.sequence_embedding(), rows.embeddings(), rtol=0, atol=1e-3
        )

    def test_embeddings_of_the_last_token_alone(self, model: Model, make_context: Make) -> None:
        """A text's first part needs no outputs: its last token's embedding is the same."""
        whole = make_context(model, embeddings=True, pooling="last")
        whole.decode(PROMPT)
        parts = make_context(model, embeddings=True, pooling="last")
        parts.set_embeddings(False)
        parts.decode(PROMPT[:-1], logits="none")
        assert [] == parts.output_indices()
        parts.set_embeddings(True)
        parts.decode(PROMPT[-1:])
        np.testing.assert_allclose(
            parts.sequence_embedding(), whole.sequence_embedding(), rtol=0, atol=1e-3
        )
        with pytest.raises(ArgumentError, match="embeddings=True"):
            make_context(model).set_embeddings(True)

    def test_what_a_context_remembers(self, model: Model, bert: Model, make_context: Make) -> None:
        """A decoder's text can be split and continued, an encoder's cannot."""
        kinds = [
            make_context(model),
            make_context(model, attention="non_causal"),
            make_context(bert, embeddings=True),
        ]
        assert [(True, False), (True, True), (False, True)] == [
            (context.remembers, context.whole_texts) for context in kinds
        ]

    def test_a_text_longer_than_ubatch_does_not_fit(self, bert: Model, make_context: Make) -> None:
        """Every token sees every other, so a text cannot be split."""
        context = make_context(bert, embeddings=True, ubatch_size=16)
        with pytest.raises(BatchError):
            context.decode([1] * 17)
        context.decode([1] * 16)

    def test_a_decoder_without_causal_attention(self, model: Model, make_context: Make) -> None:
        """As an encoder: whole texts within a ubatch."""
        context = make_context(model, attention="non_causal", ubatch_size=64, embeddings=True)
        context.decode(PROMPT)
        with pytest.raises(BatchError):
            context.decode([1] * 100)


class TestParameters:
    """Extremes of context parameters: each works or is an error of ours."""

    @pytest.mark.parametrize(
        "parameters",
        [
            {"ctx_size": 1}, {"ctx_size": 257}, {"sequences": 256}, {"batch_size": 1},
            {"ubatch_size": 2**20}, {"batch_size": 2**20, "outputs_max": 1}, {"outputs_max": 1},
            {"sequences": 3, "unified_kv": False}, {"flash_attention": True},
            {"flash_attention": False}, {"type_k": "f32", "type_v": "f32"}, {"type_k": "bf16"},
            {"threads": 512}, {"rope_freq_base": 0.0}, {"rope_freq_base": 2e9},
            {"rope_freq_scale": 0.0}, {"rope_freq_scale": 1e9}, {"rope_scaling": "yarn"},
            {"rope_scaling": "longrope"}, {"rope_scaling": "linear", "rope_freq_scale": 0.5},
            {"yarn_ext_factor": 1e9}, {"yarn_orig_ctx": 0}, {"yarn_beta_fast": 0.0},
            {"rope_scaling": "yarn", "yarn_orig_ctx": 2**31 - 1, "yarn_ext_factor": 1.0},
            {"pooling": "mean"}, {"pooling": "rank", "embeddings": True}, {"embeddings": True},
            {"attention": "non_causal"}, {"attention": "causal"}, {"swa_full": False},
            {"offload_kqv": False, "op_offload": False}, {"batch_invariant": True},
            {"cuda_graphs": "off"}, {"cuda_graphs": "checked"}, {"cuda_graphs": "on"},
        ],
        ids=str,
    )  # fmt: skip
    def test_extremes_decode(
        self, parameters: dict[str, Any], model: Model, make_context: Make
    ) -> None:
        """A prompt and a token."""
        parameters = {"batch_size": 512, **parameters}
        context = make_context(model, **parameters)
        if parameters.get("threads"):
            context.set_threads(1)
        context.decode([1, 2, 3])
        context.decode([4])

    @pytest.mark.parametrize("mode", ["auto", "on", "off", "checked"])
    def test_the_cpu_has_no_cuda_graphs(self, mode: str, model: Model, make_context: Make) -> None:
        """Every mode is accepted there, and nothing is counted."""
        context = make_context(model, cuda_graphs=mode)
        context.decode([1, 2, 3])
        assert context.cuda_graphs == CudaGraphs() or library.devices()[0].kind != "cpu"

    @pytest.mark.parametrize("kind", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"])
    @pytest.mark.parametrize("name", ["type_k", "type_v"])
    def test_blocks_that_do_not_divide_a_head(
        self, kind: str, name: str, model: Model, make_context: Make
    ) -> None:
        """Heads of 16 cannot be stored in blocks of 32."""
        with pytest.raises(ContextError, match=r"32|16|block"):
            make_context(model, **{name: kind})

    def test_rerank_pooling_gives_scores(self, model: Model, make_context: Make) -> None:
        """One number for each class, meaningless without a classifier."""
        context = make_context(model, embeddings=True, pooling="rank")
        context.decode([1, 2])
        assert (1,) == context.sequence_embedding().shape

    def test_params_and_keywords_together(self, model: Model) -> None:
        """One or the other; unknown ones are TypeErrors."""
        with pytest.raises(ArgumentError):
            Context(model, params=ContextParams(), ctx_size=256)
        with pytest.raises(TypeError):
            Context(model, context_size=256)

    def test_no_model(self, model_files: dict[str, Path]) -> None:
        """A path is no model."""
        for other in (None, str(model_files["llama"]), 5):
            with pytest.raises((ArgumentError, TypeError)):
                Context(other)  # type: ignore[arg-type]

    @pytest.mark.parametrize("threads", [0, -1, 513, 1.5, "a", None])
    def test_no_number_of_threads(self, threads: Any, context: Context) -> None:
        """At least one."""
        with pytest.raises(ArgumentError):
            context.set_threads(threads)

    def test_sizes(self, model: Model, make_context: Make) -> None:
        """What was asked for, in the attributes."""
        context = make_context(model, ctx_size=300, sequences=2)
        assert context.cells >= 600
        assert context.ctx_size * 2 <= context.cells
        assert "llama.gguf" in repr(context)


class TestTimings:
    """Counts, times, hooks."""

    def test_counts_and_times(self, model: Model, make_context: Make) -> None:
        """Prefill and decode by what a call did; times are positive."""
        context = make_context(model)
        assert (0, 0, 0.0) == (
            context.timings.prefill_tokens, context.timings.decode_calls,
            context.timings.decode_tokens_per_second,
        )  # fmt: skip
        before = context.timings.tokenized_tokens
        tokens = model.tokenize("the cat and the hat")
        context.decode(tokens)
        sampler = Sampler(seed=1)
        for _ in range(5):
            context.decode([sampler.sample(context)])
        timings = context.timings
        assert (len(tokens), 1) == (timings.prefill_tokens, timings.prefill_calls)
        assert (5, 5, 5) == (
            timings.decode_tokens, timings.decode_calls, timings.sampled_tokens
        )  # fmt: skip
        assert len(tokens) == timings.tokenized_tokens - before
        for seconds in (
            timings.load_seconds, timings.tokenize_seconds, timings.prefill_seconds,
            timings.decode_seconds, timings.sample_seconds, timings.decode_tokens_per_second,
            timings.prefill_tokens_per_second,
        ):  # fmt: skip
            assert seconds > 0
        assert set(Timings.__dataclass_fields__) <= set(timings.as_dict())

    def test_reset(self, context: Context) -> None:
        """The context's own go to 0, the model's stay."""
        context.decode([1, 2])
        context.reset_timings()
        timings = context.timings
        assert (0, 0, 0.0) == (
            timings.prefill_tokens, timings.graphs_reused, timings.prefill_seconds
        )  # fmt: skip
        assert timings.load_seconds > 0

    def test_steady_decoding_reuses_the_graph(self, context: Context) -> None:
        """One token after the other keeps the shape of the graph."""
        context.decode([1, 2, 3])
        for token in range(20):
            context.decode([token])
        assert context.timings.graphs_reused >= 15

    def test_hooks_hear_of_each_call(self, model: Model, make_context: Make) -> None:
        """What it did, and how long it took; a split prompt is one call."""
        context = make_context(model, sequences=2, batch_size=8)
        heard: list[DecodeEvent] = []
        context.hooks.append(heard.append)
        context.decode([1] * 20)
        context.decode_batch([1, 2], [0, 1])
        context.decode_batch([1, 2, 3], [0, 1, 1], logits=[False, False, True])
        assert [("prefill", 20, 1), ("decode", 2, 2), ("prefill", 3, 1)] == [
            (event.phase, event.rows, event.outputs) for event in heard
        ]
        assert all(0 < event.seconds < 10 for event in heard)

    def test_what_a_hook_raises_reaches_the_caller(self, context: Context) -> None:
        """The same object; the decode itself is done."""
        error = KeyError("mine")

        def hook(event: DecodeEvent) -> None:
            raise error

        context.hooks.append(hook)
        with pytest.raises(KeyError) as caught:
            context.decode([1, 2, 3])
        assert error is caught.value
        context.hooks.clear()
        assert (3, models.VOCABULARY) == (context.n_past(), len(context.logits()))

    def test_a_failed_decode_calls_no_hook(self, context: Context) -> None:
        """Hooks report what was computed."""
        context.hooks.append(lambda event: pytest.fail("called"))
        with pytest.raises(BatchError):
            context.decode([-1])


def test_numpy_warns_of_nothing(context: Context) -> None:
    """Reading and writing views is silent."""
    context.decode([1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        context.logits()[:] = -np.inf
        context.top_logprobs(3)
