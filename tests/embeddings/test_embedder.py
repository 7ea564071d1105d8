"""Texts to vectors, and documents to scores, with tiny models of random weights."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llcuda
from llcuda import Context, Embedder, Engine, InferenceEngine, Model
from llcuda.embeddings.embedder import pack_batches
from llcuda.embeddings.rerank import RerankPrompt
from llcuda.errors import (
    ArgumentError,
    ClosedError,
    ContextLengthError,
    DecodeError,
    DeviceLostError,
    ForkError,
    LlcudaError,
    NoTextError,
)
from tests.conftest import VENDOR_MODELS
from tests.support import models, programs
from tests.support.waiting import PATIENCE

Make = Callable[..., Embedder]

TEXTS = [
    "the cat", "on the sea", "", "a hat and the fox on the cats hat " * 5, "the", "fox?",
    *("the cat and " * i for i in range(1, 20)), "hats.", "the cat",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of models that are made for vectors and scores."""
    folder = tmp_path_factory.mktemp("embedding")
    built = {
        "words": models.bert_of_words(),
        "reranker": models.reranker(),
        "classifier": models.reranker(labels=3),
        "qwen3": models.qwen3(),
        "qwen3-reranker": models.qwen3(rerank=True),
    }
    return {name: models.write(folder / f"{name}.gguf", *model) for name, model in built.items()}


@pytest.fixture(scope="module")
def load(files: dict[str, Path], model_files: dict[str, Path]) -> Iterator[Callable[[str], Model]]:
    """Models by name, loaded once."""
    loaded: dict[str, Model] = {}

    def of(name: str) -> Model:
        if name not in loaded:
            loaded[name] = Model({**model_files, **files}[name])
        return loaded[name]

    yield of
    for model in loaded.values():
        model.close()


@pytest.fixture
def make(load: Callable[[str], Model]) -> Iterator[Make]:
    """Make embedders on one thread, closed at the end of the test."""
    embedders: list[Embedder] = []

    def new(name: str, **parameters: Any) -> Embedder:
        embedders.append(Embedder(load(name), **{"threads": 1, **parameters}))
        return embedders[-1]

    yield new
    for embedder in embedders:
        embedder.close()


def written(folder: Path, model: tuple[dict[str, Any], models.Tensors], **changes: Any) -> Path:
    """Return the file of a model with other metadata ("." as "__"; None = without)."""
    metadata, tensors = model
    for key, value in changes.items():
        metadata[key.replace("__", ".")] = value
    metadata = {k: v for k, v in metadata.items() if v is not None}
    return models.write(folder / "changed.gguf", metadata, tensors)


class TestPacks:
    """How texts are put together."""

    @given(st.lists(st.integers(1, 100)), st.integers(1, 120), st.integers(1, 8))
    def test_every_text_once_in_batches_that_fit(
        self, lengths: list[int], most_tokens: int, most_texts: int
    ) -> None:
        """No batch has too much, but for a text too long for any; no gap could be filled."""
        batches = list(pack_batches(lengths, most_tokens, most_texts))
        assert list(range(len(lengths))) == sorted(i for pack in batches for i in pack)
        for n, pack in enumerate(batches):
            used = sum(lengths[i] for i in pack)
            assert len(pack) == 1 or used <= most_tokens
            later = [lengths[i] for other in batches[n + 1 :] for i in other]
            assert not later or len(pack) == most_texts or used + min(later) > most_tokens

    def test_the_longest_first(self) -> None:
        """What does not fit beside it makes room for what does."""
        assert [[1, 0, 4], [2, 3]] == list(pack_batches([2, 60, 50, 40, 30], 100, 8))


KINDS = [
    ("words", None, "cls"), ("words", "mean", "mean"), ("bert", None, "mean"),
    ("bert", "last", "last"), ("qwen3", None, "last"), ("qwen3", "mean", "mean"),
    ("gemma3", "last", "last"), ("mamba", "last", "last"), ("mamba", "mean", "mean"),
]  # fmt: skip


class TestVectors:
    """What embed() returns."""

    @pytest.mark.parametrize(("name", "pooling", "used"), KINDS)
    def test_many_are_as_each_alone(
        self, name: str, pooling: str | None, used: str, make: Make
    ) -> None:
        """In the order of the texts, by the pooling that is given or that the file names."""
        embedder = make(name, pooling=pooling, batch_size=64)
        texts = [f"{text} fox" if name == "mamba" else text for text in TEXTS]
        together = embedder.embed(texts, normalize=False)
        alone = np.concatenate([embedder.embed([text], normalize=False) for text in texts])
        assert (used, np.float32, (len(texts), models.EMBEDDING)) == (
            embedder.pooling, together.dtype, together.shape,
        )  # fmt: skip
        np.testing.assert_allclose(together, alone, rtol=0, atol=3e-3)

    @pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
    @pytest.mark.parametrize("name", ["bert", "qwen3"])
    def test_poolings_by_hand(self, name: str, pooling: str, make: Make) -> None:
        """What a context without pooling gives for each token, put together by numpy."""
        embedder = make(name, pooling=pooling)
        tokens = embedder.model.tokenize("the cat and the hat")
        with Context(embedder.model, ctx_size=64, embeddings=True, pooling="none") as context:
            context.decode(tokens)
            rows = np.array([context.embeddings(i) for i in range(len(tokens))])
        expected = {"mean": rows.mean(0), "cls": rows[0], "last": rows[-1]}[pooling]
        actual = embedder.embed([tokens], normalize=False)[0]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-3)

    def test_length_one(self, make: Make) -> None:
        """Normalised, unless that is not wanted; a few dimensions are normalised by themselves."""
        embedder = make("bert")
        raw = embedder.embed(TEXTS, normalize=False)
        lengths = np.linalg.norm(raw, axis=1, keepdims=True)
        np.testing.assert_allclose(embedder.embed(TEXTS), raw / lengths, rtol=1e-5)
        first = raw[:, :8] / np.linalg.norm(raw[:, :8], axis=1, keepdims=True)
        np.testing.assert_allclose(embedder.embed(TEXTS, dimensions=8), first, rtol=1e-5)
        assert (1, 8) == embedder.embed(["a"], normalize=False, dimensions=8).shape

    def test_tokens_instead_of_texts(self, make: Make) -> None:
        """Lists and arrays, taken as they are; counted as they are."""
        embedder = make("words")
        tokens = embedder.model.tokenize("the fox")
        assert ["[CLS]", "the", "fox", "[SEP]"] == [models.WORDPIECES[token] for token in tokens]
        counted = embedder.embed_counted(["the fox", tokens, np.array(tokens), tokens[1:-1]])
        assert (4, 4, 4, 2) == counted.token_counts
        np.testing.assert_allclose(counted.values[1], counted.values[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(counted.values[2], counted.values[0], rtol=0, atol=1e-6)
        both = embedder.embed(np.array([tokens, tokens]))
        np.testing.assert_allclose(both, counted.values[[0, 0]], rtol=0, atol=1e-6)

    def test_nothing(self, make: Make) -> None:
        """No texts are no rows; an empty text is what the model puts around one."""
        embedder = make("words")
        assert (0, models.EMBEDDING) == embedder.embed([]).shape
        np.testing.assert_array_equal(embedder.embed([""]), embedder.embed([[2, 3]]))

    def test_control_tokens_in_a_text_are_text(self, make: Make) -> None:
        """A text cannot end itself."""
        embedder = make("words")
        assert embedder.embed_counted(["the [SEP]"]).token_counts[0] > 4 - 1
        assert 1 == embedder.model.tokenize("the [SEP] fox").count(3)

    def test_a_text_of_any_length_where_only_its_end_counts(self, make: Make) -> None:
        """A causal model computes it in parts; beside others it is as alone."""
        small = make("qwen3", batch_size=16, ctx_size=400)
        large = make("qwen3", batch_size=512)
        texts = ["the cat and the hat " * 20, "fox", "the sea " * 3, "on " * 30]
        np.testing.assert_allclose(small.embed(texts), large.embed(texts), rtol=0, atol=3e-3)
        assert 80 < small.embed_counted(texts).token_counts[0] < 400

    def test_a_long_text_beside_short_batches(self, make: Make) -> None:
        """An encoder's text is computed whole, also when it is longer than batch_size."""
        small, large = make("words", batch_size=16), make("words", batch_size=512)
        texts = ["the cat " * 100, "fox", "the sea " * 3]
        np.testing.assert_allclose(small.embed(texts), large.embed(texts), rtol=0, atol=3e-3)

    @pytest.mark.parametrize("name", ["words", "qwen3"])
    def test_too_long(self, name: str, make: Make) -> None:
        """An error that names the text, or without its end, but not without its closing token."""
        embedder = make(name, ctx_size=10, batch_size=64)
        long = embedder.model.tokenize("the cat and " * 10)
        with pytest.raises(ArgumentError, match=rf"texts\[1\].* {len(long)} tokens, at most 10"):
            embedder.embed(["fox", "the cat and " * 10])
        cut = [*long[:9], long[-1]] if name == "words" else long[:10]
        np.testing.assert_allclose(
            embedder.embed(["the cat and " * 10], truncate=True), embedder.embed([cut]), atol=1e-6
        )
        counted = embedder.embed_counted([long, [5] * 11, [5]], truncate=True)
        assert (10, 10, 1) == counted.token_counts
        with pytest.raises(ArgumentError, match=r"texts\[1\].* more than 20 tokens, at most 10"):
            embedder.embed(["fox", "the cat and " * 20_000])

    def test_the_default_length(self, make: Make) -> None:
        """What the model was trained on."""
        embedder = make("bert")
        assert models.TRAIN_CTX == embedder.ctx_size
        assert (1, models.EMBEDDING) == embedder.embed([[5] * models.TRAIN_CTX]).shape
        with pytest.raises(ArgumentError, match="positions for 512"):
            make("bert", ctx_size=513)


class TestBadInput:
    """An error that says what was given, and the next call works."""

    @pytest.mark.parametrize(
        "texts",
        [
            b"bytes", None, 5, [None], [5], ["fox", 1.5], [b"bytes"], [[]], [["fox"]],
            [[1, 2.5]], [[True, 1]], [[-1]], [[10**9]], [[2**70]], ["\ud800"], [{"a": 1}],
            np.arange(5), np.zeros((2, 2)), np.zeros((1, 2, 2), dtype=int), {"a": "b"}.values,
        ],
    )  # fmt: skip
    def test_texts(self, texts: Any, make: Make) -> None:
        """What is no list of texts or tokens."""
        embedder = make("words")
        with pytest.raises(ArgumentError):
            embedder.embed(texts)
        assert (1, models.EMBEDDING) == embedder.embed(["fox"]).shape

    @pytest.mark.parametrize("dimensions", [0, -1, 65, 2.0, "8", True])
    def test_dimensions(self, dimensions: Any, make: Make) -> None:
        """From 1 to the vector's size."""
        with pytest.raises(ArgumentError, match="dimensions"):
            make("words").embed(["fox"], dimensions=dimensions)

    @pytest.mark.parametrize(
        "parameters",
        [
            {"pooling": "best"}, {"pooling": 1}, {"pooling": "none"}, {"pooling": "rank"},
            {"ctx_size": 0}, {"ctx_size": "1"}, {"ctx_size": 2**31}, {"batch_size": 0},
            {"batch_size": None}, {"batch_size": 2**17}, {"sequences": 2}, {"embeddings": False},
            {"ubatch_size": 8}, {"threads": 0}, {"device_logits": True},
        ],
        ids=str,
    )  # fmt: skip
    def test_parameters(self, parameters: dict[str, Any], make: Make) -> None:
        """Values that are wrong, and fields that an Embedder chooses."""
        with pytest.raises(ArgumentError):
            make("words", **parameters)

    def test_unknown_parameters_and_what_is_no_model(self, make: Make) -> None:
        """A TypeError as everywhere; a path is no model."""
        with pytest.raises(TypeError, match="batchsize"):
            make("words", batchsize=5)
        with pytest.raises(ArgumentError, match="expected a Model"):
            Embedder("model.gguf")  # type: ignore[arg-type]
        vocabulary = Model(VENDOR_MODELS / "ggml-vocab-bert-bge.gguf", vocab_only=True)
        with vocabulary, pytest.raises(LlcudaError, match="weights"):
            Embedder(vocabulary)

    def test_a_model_that_was_not_made_for_embeddings(self, make: Make) -> None:
        """It says so, that it ranks nothing, and how to have vectors of it nevertheless."""
        with pytest.raises(ArgumentError, match=r"names no pooling.*rerank.*'mean'.*--pooling"):
            make("llama")
        assert (1, models.EMBEDDING) == make("llama", pooling="mean").embed(["fox"]).shape

    def test_an_empty_text_of_a_model_without_marks(self, tmp_path: Path) -> None:
        """There is nothing to compute."""
        file = written(tmp_path, models.qwen3(), tokenizer__ggml__add_bos_token=False)
        with Model(file) as model, Embedder(model, threads=1) as embedder:
            with pytest.raises(ArgumentError, match=r"texts\[1\]: is empty"):
                embedder.embed(["fox", ""])
            assert (1, models.EMBEDDING) == embedder.embed(["fox"]).shape

    def test_weights_that_are_no_numbers(self, tmp_path: Path) -> None:
        """An error instead of a vector of NaN; others are computed."""
        metadata, tensors = models.bert_of_words()
        tensors["token_embd.weight"][models.WORDPIECES.index("cat")] = np.nan
        file = models.write(tmp_path / "nan.gguf", metadata, tensors)
        with Model(file) as model, Embedder(model, threads=1) as embedder:
            with pytest.raises(DecodeError, match=r"not numbers for texts\[1\]"):
                embedder.embed(["fox", "the cat"])
            assert np.isfinite(embedder.embed(["fox"])).all()
            fox, cat = embedder.embed(["fox", "the cat"], on_error="return")
            assert isinstance(cat, DecodeError)
            assert "not numbers for texts[1]" in str(cat)
            np.testing.assert_array_equal(embedder.embed("fox"), fox)

    def test_errors_in_their_places(self, make: Make) -> None:
        """One bad text is an error, and the others have the vectors that they have alone."""
        embedder = make("words", batch_size=32)
        wrong: list[Any] = ["cat " * 600, 5, None, [10**6]]
        texts = [*TEXTS[:4], *wrong, *TEXTS[4:]]
        results = embedder.embed(texts, on_error="return", dimensions=9)
        good = [result for result in results if not isinstance(result, LlcudaError)]
        np.testing.assert_allclose(embedder.embed(TEXTS, dimensions=9), good, atol=1e-5)
        errors = results[4:8]
        assert [ContextLengthError, *[ArgumentError] * 3] == [type(error) for error in errors]
        assert "texts[4]: has 602 tokens" in str(errors[0])
        for keywords, says in (
            ({"dimensions": 0}, "dimensions=0"),
            ({"normalize": 5}, "normalize=5"),
            ({"truncate": 5}, "truncate=5"),
            ({"on_error": "skip"}, "on_error='skip': expected one of raise, return"),
        ):
            with pytest.raises(ArgumentError, match=says):
                embedder.embed(TEXTS, **{"on_error": "return", **keywords})
        with pytest.raises(ArgumentError, match="on_error='return': has one result"):
            embedder.embed("cat", on_error="return")  # type: ignore[call-overload]
        assert [] == embedder.embed([], on_error="return")

    def test_a_batch_that_fails_among_others(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its texts have the error; a lost GPU is raised."""
        embedder = make("words", batch_size=16)
        texts = ["the cat " * 9, "fox", "the"]
        compute = Context.decode_batch

        def fail(context: Context, tokens: list[int], *others: Any) -> None:
            if len(tokens) > 16:
                raise error
            compute(context, tokens, *others)

        error: DecodeError = DecodeError("failed")
        monkeypatch.setattr(Context, "decode_batch", fail)
        results = embedder.embed(texts, on_error="return")
        assert [True, False, False] == [isinstance(result, DecodeError) for result in results]
        error = DeviceLostError("a GPU failed")
        with pytest.raises(DeviceLostError):
            embedder.embed(texts, on_error="return")


class TestScores:
    """What rerank() and classify() return."""

    DOCUMENTS = ("the cat on the sea", "a fox", "", "hats and cats and hats")

    def test_scores_are_the_classifiers(self, make: Make) -> None:
        """Two layers over the first token's vector, as numpy computes them; in any order."""
        embedder, plain = make("reranker"), make("reranker", pooling="cls")
        scores = embedder.rerank("the fox?", self.DOCUMENTS)
        assert (np.float32, (4,)) == (scores.dtype, scores.shape)
        _, tensors = models.reranker()
        pairs = [
            [*plain.model.tokenize("the fox?"), *plain.model.tokenize(document)[1:]]
            for document in self.DOCUMENTS
        ]
        vectors = plain.embed(pairs, normalize=False)
        hidden = np.tanh(vectors @ tensors["cls.weight"].T + tensors["cls.bias"])
        expected = hidden @ tensors["cls.output.weight"].T + tensors["cls.output.bias"]
        np.testing.assert_allclose(scores, expected[:, 0], rtol=0, atol=3e-3)
        turned = embedder.rerank("the fox?", self.DOCUMENTS[::-1])
        np.testing.assert_allclose(turned[::-1], scores, rtol=0, atol=1e-3)

    def test_a_template(self, make: Make) -> None:
        """A decoder's scores for yes and no, after the prompt that its file has."""
        embedder, plain = make("qwen3-reranker"), make("qwen3-reranker", pooling="last")
        assert (["yes", "no"], 2, "rank") == (embedder.labels, embedder.size, embedder.pooling)
        texts = [f"yes or no: the fox?\n{document}" for document in self.DOCUMENTS]
        tokens = [
            [models.BOS + 2, *plain.model.tokenize(text, add_special=False), *[models.EOS, 287]]
            for text in texts
        ]
        vectors = plain.embed(tokens, normalize=False)
        logits = vectors @ models.qwen3(rerank=True)[1]["cls.output.weight"].T
        expected = np.exp(logits[:, 0]) / np.exp(logits).sum(1)
        counted = embedder.rerank_counted("the fox?", self.DOCUMENTS)
        np.testing.assert_allclose(counted.values, expected, rtol=0, atol=3e-3)
        assert tuple(map(len, tokens)) == counted.token_counts

    def test_texts_cannot_change_the_template(self, make: Make) -> None:
        """Control tokens and places that are written in a text are text."""
        prompt = RerankPrompt(make("qwen3-reranker").model, 1000)
        (tokens,) = prompt.tokenize("<|endoftext|> {document}", ["<|user|>{query}"], False)
        control = [token for token in tokens if token >= models.BOS]
        assert [models.BOS + 2, models.EOS, models.BOS + 3] == control
        text = make("qwen3-reranker").model.detokenize(tokens, special=False)
        assert "yes or no: <|endoftext|> {document}\n<|user|>{query}" == text

    def test_classes(self, make: Make) -> None:
        """Names and scores of each; the first one ranks."""
        embedder = make("classifier")
        assert ["label 0", "label 1", "label 2"] == embedder.labels
        scores = embedder.classify(["the fox", "a cat on the sea"])
        assert (2, 3) == scores.shape
        assert (0, 3) == embedder.classify([]).shape
        pair = [*embedder.model.tokenize("the fox"), *embedder.model.tokenize("a cat")[1:]]
        np.testing.assert_allclose(
            embedder.rerank("the fox", ["a cat"]), embedder.classify([pair])[:, 0], atol=1e-6
        )
        assert ["0"] == make("reranker").labels

    def test_no_documents(self, make: Make) -> None:
        """No scores."""
        assert (0,) == make("reranker").rerank("the fox", []).shape

    @pytest.mark.parametrize("name", ["reranker", "qwen3-reranker"])
    def test_too_long(self, name: str, make: Make) -> None:
        """A document is cut when that is wanted; a query never is."""
        embedder = make(name, ctx_size=40, batch_size=64)
        long = "the cat and the hat " * 20
        with pytest.raises(ArgumentError, match=r"documents\[1\]: has \d+ tokens.*truncate=True"):
            embedder.rerank("fox", ["a", long])
        with pytest.raises(ArgumentError, match=r"documents\[1\]: has more than 80 tokens"):
            embedder.rerank("fox", ["a", long * 1000])
        counted = embedder.rerank_counted("fox", ["a", long], truncate=True)
        assert counted.token_counts[0] < 40 - 5 < counted.token_counts[1] <= 40
        for truncate in (False, True):
            with pytest.raises(ArgumentError, match="query leaves no room"):
                embedder.rerank(long, ["a"], truncate=truncate)

    @pytest.mark.parametrize(
        ("query", "documents"),
        [(None, ["a"]), (["a"], ["a"]), ("a", "a"), ("a", None), ("a", [None]), ("a", [[1, 2]]),
         ("a", [b"a"]), ("\ud800", ["a"]), ("a", ["\ud800"]), ("a", 5)],
        ids=str,
    )  # fmt: skip
    def test_bad_input(self, query: Any, documents: Any, make: Make) -> None:
        """Texts, and nothing else."""
        embedder = make("reranker")
        with pytest.raises(ArgumentError):
            embedder.rerank(query, documents)
        assert (1,) == embedder.rerank("a", ["a"]).shape

    def test_vectors_and_scores_are_not_mixed(self, make: Make) -> None:
        """A reranker has no embeddings, but by another pooling; an embedder has no scores."""
        with pytest.raises(ArgumentError, match="rerank"):
            make("reranker").embed(["fox"])
        assert (1, models.EMBEDDING) == make("reranker", pooling="cls").embed(["fox"]).shape
        for call in (lambda e: e.rerank("a", ["b"]), lambda e: e.classify(["a"])):
            with pytest.raises(ArgumentError, match="needs a rerank model"):
                call(make("words"))
        with pytest.raises(ArgumentError, match="no classifier"):
            make("words", pooling="rank")

    def test_more_classes_than_the_classifier_has(self, tmp_path: Path) -> None:
        """A file that contradicts itself is an error, and not a read beyond the result."""
        metadata, tensors = models.reranker(labels=500)
        del tensors["cls.output.weight"], tensors["cls.output.bias"]
        file = models.write(tmp_path / "labels.gguf", metadata, tensors)
        with Model(file) as model, pytest.raises(ArgumentError, match="500 classes"):
            Embedder(model)

    def test_a_model_without_marks(self, tmp_path: Path) -> None:
        """Nothing says where the query ends."""
        file = written(tmp_path, models.qwen3(rerank=True), tokenizer__chat_template__rerank=None)
        neither = pytest.raises(ArgumentError, match="neither a template nor a separator token")
        with Model(file) as model, Embedder(model, threads=1) as embedder, neither:
            embedder.rerank("a", ["b"])

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("bert-bge", [101, 7632, 102, 2045, 102]), ("nomic-bert-moe", [0, 1274, 2, 2685, 2])],
    )
    def test_marks_of_real_tokenizers(self, name: str, expected: list[int]) -> None:
        """As transformers puts a pair together for these."""
        with Model(VENDOR_MODELS / f"ggml-vocab-{name}.gguf", vocab_only=True) as model:
            assert [expected] == RerankPrompt(model, 100).tokenize("hi", ["there"], False)


class TestLife:
    """Threads, engines, ends."""

    def test_many_threads(self, make: Make) -> None:
        """Each gets its own vectors."""
        embedder = make("bert", batch_size=64)
        expected, wrong = embedder.embed(TEXTS), []

        def run(begin: int) -> None:
            texts = TEXTS[begin:] + TEXTS[:begin]
            actual = np.roll(embedder.embed(texts), begin, axis=0)
            if np.abs(actual - expected).max() > 3e-3:
                wrong.append(begin)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [] == wrong

    def test_closed(self, make: Make, load: Callable[[str], Model]) -> None:
        """ClosedError, also for who is in the midst of many texts; again does nothing."""
        embedder = make("bert")
        ended: list[BaseException] = []
        begun = threading.Event()

        def run() -> None:
            try:
                while True:
                    embedder.embed(TEXTS)
                    begun.set()
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert begun.wait(120)
        embedder.close()
        embedder.close()
        thread.join(120)
        assert ([ClosedError], True) == ([type(error) for error in ended], embedder.closed)
        with pytest.raises(ClosedError):
            embedder.embed(["fox"])

    def test_a_daemon_thread_at_exit(self, files: dict[str, Path]) -> None:
        """Its batch is finished before what it computes with is freed."""
        program = (
            "import sys, threading\n"
            "from llcuda import Embedder, Model\n"
            "embedder, begun = Embedder(Model(sys.argv[1]), threads=1), threading.Event()\n"
            "def run():\n"
            "    while True:\n"
            "        embedder.embed([[5] * 500])\n"
            "        begun.set()\n"
            "threading.Thread(target=run, daemon=True).start()\n"
            "print(begun.wait(120))\n"
        )
        result = programs.run(program, files["words"])
        assert (0, "True\n") == (result.returncode, result.stdout)

    def test_a_model_that_is_closed_first(self, files: dict[str, Path]) -> None:
        """Its embedder says so."""
        model = Model(files["words"])
        embedder = Embedder(model, threads=1)
        model.close()
        for texts in (["fox"], [[5, 6]]):
            with pytest.raises(ClosedError):
                embedder.embed(texts)
        embedder.close()

    def test_a_forked_child(self, make: Make) -> None:
        """An error at once, whoever computes in the parent."""
        embedder = make("words")
        with embedder._lock:
            child = os.fork()
            if not child:
                try:
                    embedder.close()
                    embedder.embed([[5]])
                except ForkError:
                    os._exit(0)
                finally:
                    os._exit(1)
        assert 0 == os.waitpid(child, 0)[1]

    def test_beside_generating(self, load: Callable[[str], Model]) -> None:
        """Texts are the same as without; vectors, too; the engine's end closes all."""
        model = load("qwen3")
        with Engine(model, ctx_size=300, n_parallel=2, threads=1) as engine:
            asked: dict[str, Any] = {"max_tokens": 200, "temperature": 0, "ignore_eos": True}
            alone = engine.submit("the fox", **asked).result(PATIENCE).text
            expected = engine.embed(TEXTS[:8])
            request = engine.submit("the fox", **asked)
            rounds = 0
            while not request.done:
                np.testing.assert_array_equal(engine.embed(TEXTS[:8]), expected)
                rounds += 1
            assert (alone, True) == (request.result(PATIENCE).text, rounds > 0)
            embedder = engine.embedder()
            assert (300, embedder) == (embedder.ctx_size, engine.embedder())
            assert (1, models.EMBEDDING) == engine.embed(["a"], pooling="mean").shape
            for wrong in ("best", 5, ["mean"]):
                with pytest.raises(ArgumentError):
                    engine.embed(["a"], pooling=wrong)  # type: ignore[arg-type]
            with pytest.raises(ArgumentError, match="rerank model"):
                engine.rerank("a", ["b"])
        assert embedder.closed
        with pytest.raises(ClosedError):
            engine.embed(["a"])

    def test_an_engine_for_vectors_of_a_model_that_generates(self, demo: Model) -> None:
        """The demo model names no pooling; by the mean, texts have at most batch_size tokens."""
        with Engine(demo, batch_size=64, ctx_size=256, threads=1) as engine:
            with pytest.raises(ArgumentError, match="names no pooling"):
                engine.embed(["a fox"])
            assert (64, 256) == (
                engine.embedder("mean").ctx_size, engine.embedder("last").ctx_size,
            )  # fmt: skip
            vector, same = engine.embed(["the fox ran home", "the fox ran home"], pooling="mean")
            assert 0.999 < vector @ same <= 1.001


class TestInferenceEngine:
    """load_model() of what generates no text."""

    @pytest.mark.parametrize("auto_start", [True, False])
    def test_an_encoder(self, auto_start: bool, files: dict[str, Path]) -> None:
        """It is loaded for its vectors; asking for text is an error that says so."""
        with InferenceEngine() as engine:
            engine.load_model(files["words"], auto_start=auto_start, silent=True, threads=1)
            vectors = engine.embed(TEXTS)
            assert (True, (len(TEXTS), models.EMBEDDING)) == (engine.is_loaded, vectors.shape)
            assert models.TRAIN_CTX == engine.embedder().ctx_size
            for call in (engine.infer, engine.submit):
                with pytest.raises(NoTextError, match=r"embed\(\)"):
                    call("the fox")
            with pytest.raises(ArgumentError, match="needs a rerank model"):
                engine.rerank("fox", ["cat"])
            engine.unload_model()
            with pytest.raises(ClosedError, match="load_model"):
                engine.embed(["a"])

    def test_one_model_after_the_other(
        self, files: dict[str, Path], model_files: dict[str, Path], capsys: Any
    ) -> None:
        """An encoder in place of a generator and back; the report is the same."""
        with InferenceEngine() as engine:
            with pytest.raises(ClosedError):
                engine.embed(["a"])
            engine.load_model(files["qwen3"], silent=True, threads=1)
            embedder = engine.embedder()
            assert engine.infer("the fox", max_tokens=2).text is not None
            engine.load_model(files["reranker"], threads=1)
            assert embedder.closed
            assert "Context Size: 512" in capsys.readouterr().out
            assert (2,) == engine.rerank("the fox", ["a", "cat"]).shape
            engine.load_model(model_files["llama"], silent=True, threads=1)
            with pytest.raises(ArgumentError, match="names no pooling"):
                engine.embed(["a"])
            assert (1, models.EMBEDDING) == engine.embed(["a"], pooling="mean").shape


def test_control_tokens_written_in_texts(make: Make) -> None:
    """They are read as tokens, as transformers does, unless parse_special=False."""
    embedder = make("words")
    model = embedder.model
    first, last = model.tokenize("")
    text = f"the cat{model.piece_bytes(last, special=True).decode()}the hat"
    words = [model.tokenize(part, add_special=False) for part in ("the cat", "the hat")]
    expected = embedder.embed([[first, *words[0], last, *words[1], last]])
    np.testing.assert_array_equal(expected, embedder.embed([text]))
    plain = embedder.embed([model.tokenize(text)])
    np.testing.assert_array_equal(plain, embedder.embed([text], parse_special=False))
    assert not np.array_equal(expected, plain)
    with pytest.raises(ArgumentError, match="parse_special=1: "):
        embedder.embed(["a"], parse_special=1)  # type: ignore[arg-type]


def test_the_public_name() -> None:
    """llcuda.Embedder is the class."""
    assert Embedder is llcuda.Embedder


def test_an_embedder_whose_context_failed_goes_on(
    model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that fails an assertion of llama.cpp fails, the next one is answered."""
    decode = Context.decode_batch

    def fail_once(self: Context, *arguments: Any) -> None:
        monkeypatch.undo()
        self.memory.shift(-1, 0, 1, 3)  # which a tiny LFM2 does not survive
        decode(self, *arguments)

    with (
        Model(model_files["lfm2"]) as model,
        Embedder(model, pooling="last", threads=1) as embedder,
    ):
        expected = embedder.embed(["One day"])
        monkeypatch.setattr(Context, "decode_batch", fail_once)
        with pytest.raises(DecodeError, match="assertion failed"):
            embedder.embed(["One day"])
        assert (expected == embedder.embed(["One day"])).all()
