"""POST /v1/embeddings and /v1/rerank."""

from pathlib import Path

import numpy as np
import openai
import pytest

from llcuda.embeddings.embedder import Embedder
from llcuda.server.models import ModelSpec
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
    is_error(server.post("/v1/rerank", query="a", documents=["b"]), 400)


@pytest.fixture(scope="module")
def encoders(model_files: dict[str, Path]) -> list[ModelSpec]:
    return [ModelSpec("bert", str(model_files["bert"]), parameters={"threads": 1})]


def test_a_model_that_only_embeds(encoders: list[ModelSpec]) -> None:
    """An encoder serves embeddings, and says that it generates no text."""
    with served(*encoders) as server:
        answer = server.post("/v1/embeddings", input="a").json()
        assert abs(float(np.linalg.norm(answer["data"][0]["embedding"])) - 1) < 1e-4
        is_error(server.post("/v1/completions", prompt="a"), 400, "model")
