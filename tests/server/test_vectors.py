"""POST /v1/embeddings, /v1/rerank, /v1/classify and /v1/score."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from llcuda import Model
from llcuda.embeddings.embedder import Embedder
from llcuda.server.models import ModelSpec
from tests.support import models
from tests.support.server import Served, is_error, served

TEXTS = ["A fox in the forest.", "One day", "The sea"]


def test_floats_and_base64(client: openai.OpenAI, server: Served) -> None:
    """Both encodings are the embedder's vectors; the official client asks for base64."""
    with Embedder(server.engine.model, pooling="mean", threads=1) as embedder:
        expected = embedder.embed(TEXTS)
    by_client = client.embeddings.create(model="demo", input=TEXTS)
    floats = server.post("/v1/embeddings", input=TEXTS, encoding_format="float").json()
    vectors = np.array([entry.embedding for entry in by_client.data])
    np.testing.assert_allclose(expected, vectors, atol=1e-5)
    np.testing.assert_allclose(vectors, [entry["embedding"] for entry in floats["data"]], atol=1e-6)
    tokens = sum(len(server.engine.model.tokenize(text)) for text in TEXTS)
    assert tokens == by_client.usage.prompt_tokens


def test_tokens_as_input(server: Served) -> None:
    """A list of tokens is a text; a list of lists are several."""
    tokens = server.engine.model.tokenize(TEXTS[0])
    single = server.post("/v1/embeddings", input=tokens).json()["data"]
    two = server.post("/v1/embeddings", input=[tokens, tokens]).json()["data"]
    mixed = server.post("/v1/embeddings", input=[TEXTS[0], tokens]).json()["data"]
    for vectors in (two, mixed):
        np.testing.assert_allclose(vectors[0]["embedding"], vectors[1]["embedding"], atol=1e-6)
    text = server.post("/v1/embeddings", input=TEXTS[0]).json()["data"]
    np.testing.assert_allclose(single[0]["embedding"], text[0]["embedding"], atol=1e-6)
    assert (1, 2) == (len(single), len(two))


def test_control_tokens_written_in_texts(server: Served) -> None:
    """They are tokens, unless parse_special is false."""
    tokens = []
    for parse_special in (True, False, None):
        answer = server.post(
            "/v1/embeddings", input="<|im_end|>", parse_special=parse_special
        ).json()
        tokens.append(answer["usage"]["prompt_tokens"])
    model = server.engine.model
    special = len(model.tokenize("<|im_end|>", parse_special=True))
    assert [special, len(model.tokenize("<|im_end|>")), special] == tokens
    assert tokens[0] < tokens[1]


def test_what_cannot_be_had(server: Served) -> None:
    """Other dimensions, empty and too long texts, and ranking without a classifier are 400s."""
    is_error(server.post("/v1/embeddings", input="a", dimensions=3), 400, "dimensions")
    is_error(server.post("/v1/embeddings", input=[]), 400, "input")
    is_error(server.post("/v1/embeddings", input=["a", [1 << 40]]), 400, "input[1]")
    is_error(server.post("/v1/embeddings", input=[1 << 40]), 400)
    is_error(server.post("/v1/embeddings", input="a " * 20_000), 400)
    for path in ("/v1/rerank", "/v2/rerank", "/v1/classify"):
        fields = {"input": "a"} if "classify" in path else {"query": "a", "documents": ["b"]}
        error = is_error(server.post(path, **fields), 400)
        assert "is not a rerank model" in error["message"]
        assert "--pooling" not in error["message"]


@pytest.fixture(scope="module")
def encoders(model_files: dict[str, Path]) -> list[ModelSpec]:
    return [ModelSpec("bert", str(model_files["bert"]), parameters={"threads": 1})]


def test_a_model_that_only_embeds(encoders: list[ModelSpec]) -> None:
    """An encoder serves embeddings, and says that it generates no text."""
    with served(*encoders) as server:
        answer = server.post("/v1/embeddings", input="a").json()
        assert abs(float(np.linalg.norm(answer["data"][0]["embedding"])) - 1) < 1e-4
        is_error(server.post("/v1/completions", prompt="a"), 400, "model")


@pytest.fixture(scope="module")
def rerankers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An encoder with a classifier, and a decoder that is asked for yes or no."""
    folder = tmp_path_factory.mktemp("rerank")
    built = {"encoder": models.reranker(), "decoder": models.qwen3(rerank=True)}
    files = {name: models.write(folder / f"{name}.gguf", *model) for name, model in built.items()}
    specs = [ModelSpec(name, str(file), parameters={"threads": 1}) for name, file in files.items()]
    with served(*specs) as server:
        yield server


DOCUMENTS = ["a cat on the sea", "the fox", "hats and cats", "the fox?"]


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_rerank(rerankers: Served, name: str) -> None:
    """The scores are the embedder's, with the best document first and its index in the request."""
    with (
        Model(rerankers.service.models.paths[name]) as model,
        Embedder(model, threads=1) as embedder,
    ):
        expected = embedder.rerank_counted("the fox?", DOCUMENTS)
    answer = rerankers.post("/v1/rerank", model=name, query="the fox?", documents=DOCUMENTS).json()
    results = answer["results"]
    order = [result["index"] for result in results]
    assert sorted(order, key=lambda i: -expected.values[i]) == order
    assert [0, 1, 2, 3] == sorted(order)
    scores = [result["relevance_score"] for result in results]
    np.testing.assert_allclose(expected.values[order], scores, atol=1e-5)
    assert [{"index", "relevance_score"}] * 4 == [set(result) for result in results]
    tokens = sum(expected.token_counts)
    assert {"prompt_tokens": tokens, "total_tokens": tokens} == answer["usage"]
    assert (name, "rerank-") == (answer["model"], answer["id"][:7])


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (3, 3), (99, 4), (None, 4)])
def test_the_best_documents(rerankers: Served, top_n: int | None, count: int) -> None:
    """The first of the whole ranking, with their texts where these are asked for."""
    asked = {"model": "encoder", "query": "the fox?"}
    whole = rerankers.post("/v1/rerank", **asked, documents=DOCUMENTS).json()["results"]
    objects = [{"text": document} for document in DOCUMENTS]
    best = rerankers.post(
        "/v1/rerank", **asked, documents=objects, top_n=top_n, return_documents=True
    ).json()["results"]
    expected = [{**result, "document": objects[result["index"]]} for result in whole[:count]]
    assert expected == best


def test_shapes_of_other_servers(rerankers: Served) -> None:
    """Cohere's second version is the first; with `texts` the answer is the list of TEI."""
    asked = {"model": "encoder", "query": "the fox?"}
    first = rerankers.post("/v1/rerank", **asked, documents=DOCUMENTS).json()["results"]
    for path, fields in (("/v2/rerank", {"max_tokens_per_doc": 512}), ("/rerank", {})):
        answer = rerankers.post(path, **asked, documents=DOCUMENTS, **fields)
        assert first == answer.json()["results"]
    assert "max_tokens_per_doc" in rerankers.post(
        "/v2/rerank", **asked, documents=DOCUMENTS, max_tokens_per_doc=512
    ).headers["x-llcuda-ignored"]  # fmt: skip
    for path in ("/rerank", "/v1/rerank"):
        lines = rerankers.post(path, **asked, texts=DOCUMENTS, return_text=True, top_n=3).json()
        assert [result["index"] for result in first[:3]] == [line["index"] for line in lines]
        assert [DOCUMENTS[line["index"]] for line in lines] == [line["text"] for line in lines]
        expected = [1 / (1 + math.exp(-result["relevance_score"])) for result in first[:3]]
        np.testing.assert_allclose(expected, [line["score"] for line in lines], atol=1e-5)
    raw = rerankers.post("/rerank", **asked, texts=DOCUMENTS, raw_scores=True).json()
    assert [result["relevance_score"] for result in first] == [line["score"] for line in raw]
    is_error(rerankers.post("/rerank", **asked, texts=["a", "the cat " * 500]), 400, "texts[1]")
    long = rerankers.post("/rerank", **asked, texts=["the cat " * 500], truncate=True)
    assert 1 == len(long.json())
    is_error(rerankers.post("/rerank", **asked), 400, "documents")
    is_error(rerankers.post("/rerank", **asked, texts=["a"], documents=["a"]), 400, "documents")


def test_classes(rerankers: Served) -> None:
    """The probabilities of the classes, in the order of `labels`."""
    for name, count in (("encoder", 1), ("decoder", 2)):
        answer = rerankers.post("/v1/classify", model=name, input=DOCUMENTS[:2]).json()
        for line in answer["data"]:
            probs = line["probs"]
            assert (count, count) == (len(probs), line["num_classes"])
            assert all(0 <= prob <= 1 for prob in probs)
            assert line["label"] == answer["labels"][probs.index(max(probs))]
            assert count == 1 or abs(sum(probs) - 1) < 1e-5
        assert answer["usage"]["prompt_tokens"]
    is_error(rerankers.post("/v1/classify", model="encoder", input=[]), 400, "input")
    is_error(rerankers.post("/v1/classify", model="encoder", input="the cat " * 500), 400)


def test_scores_of_pairs(rerankers: Served, server: Served) -> None:
    """A reranker's probabilities, or cosines of vectors; one text is paired with each other one."""
    asked: Any = {"model": "encoder", "text_1": "the fox?", "text_2": DOCUMENTS}
    scores = [line["score"] for line in rerankers.post("/v1/score", **asked).json()["data"]]
    lines = rerankers.post("/rerank", model="encoder", query="the fox?", texts=DOCUMENTS).json()
    by_index = sorted(lines, key=lambda line: line["index"])
    np.testing.assert_allclose([line["score"] for line in by_index], scores, atol=1e-6)
    pairs = server.post("/v1/score", text_1=TEXTS, text_2=[TEXTS[0], TEXTS[0], TEXTS[2]]).json()
    first, second, third = (line["score"] for line in pairs["data"])
    np.testing.assert_allclose([1, 1], [first, third], atol=1e-5)
    assert -1 <= second < 0.999
    is_error(server.post("/v1/score", text_1=["a", "b"], text_2="c"), 400, "text_1")
    is_error(server.post("/v1/score", text_1="a"), 400, "text_2")
    is_error(server.post("/v1/classify", input="a"), 400)


def test_what_cannot_be_ranked(rerankers: Served) -> None:
    """No documents, too long ones, and a model that ranks asked for vectors."""
    asked = {"model": "encoder", "query": "a"}
    is_error(rerankers.post("/v1/rerank", **asked, documents=[]), 400, "documents")
    is_error(rerankers.post("/v1/rerank", **asked, documents=["a"], top_n=0), 400, "top_n")
    long = rerankers.post("/v1/rerank", **asked, documents=["a", "the cat " * 500])
    assert "documents[1]" in is_error(long, 400)["message"]
    is_error(rerankers.post("/v1/embeddings", model="encoder", input="a"), 400)
    answer = rerankers.post("/v1/completions", model="encoder", prompt="a")
    assert "/v1/rerank" in is_error(answer, 400, "model")["message"]
