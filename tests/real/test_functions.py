"""Functions over logits, min_tokens and the commands for texts and files, on real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llcuda import Engine, Model
from llcuda.gguf_editor import merge_gguf, set_metadata, split_gguf
from llcuda.gguf_parser import GGUFReader
from tests.real.conftest import GEMMA, QWEN, file
from tests.support.commands import documents, run

QUESTION = [{"role": "user", "content": "Name three fruits."}]
GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0}


def test_a_function_forbids_a_letter(engine: Engine, qwen: Model) -> None:
    """In a chat, beside one that it does not change."""
    with_e = np.array([b"e" in qwen.piece_bytes(token) for token in range(qwen.vocab_size)])
    sizes: list[int] = []

    def forbid(tokens: Any, logits: Any) -> None:
        sizes.append(len(logits))
        logits[with_e] = -np.inf

    alone = str(engine.chat(QUESTION, **GREEDY).result(300))
    with engine.loop.hold():
        chats = [
            engine.chat(QUESTION, **GREEDY),
            engine.chat(QUESTION, logits_processor=forbid, **GREEDY),
        ]
    plain, without = (str(chat.result(300)) for chat in chats)
    assert plain == alone
    assert "e" in plain
    assert "e" not in without
    assert len(without) > 10
    assert set(sizes) == {qwen.vocab_size}


def test_an_answer_has_a_least_length(engine: Engine) -> None:
    """A function ends it, or its own end once it is long enough."""
    question = [{"role": "user", "content": "Answer with one word: is the sky blue?"}]
    short = engine.chat(question, **GREEDY).result(300)
    asked = {**GREEDY, "max_tokens": 60, "min_tokens": 20}
    longer = engine.chat(question, **asked).result(300)
    assert len(short.completion.tokens) < 20 <= len(longer.completion.tokens)
    ended = engine.chat(
        question, stopping_criteria=lambda tokens, text: len(text) > 40, **asked
    ).result(300)
    assert ended.finish_reason == "stop"
    assert 20 <= len(ended.completion.tokens) < 60


def test_scores_and_tokens_of_commands() -> None:
    """The true sentence is the likelier one; special tokens are read."""
    asked = ("score", file(GEMMA), "--json", "--prompt", "The capital of France is")
    paris, rome = documents(*asked, " Paris", " Rome")
    assert paris["logprob"] > rome["logprob"]
    [tokens] = documents("tokenize", file(QWEN), "<|im_start|>user", "--ids")
    assert tokens == [151644, 872]
    vectors = documents("embed", file(GEMMA), "--pooling", "mean", "a cat", "a kitten", "the law")
    cat, kitten, law = (np.array(line["embedding"]) for line in vectors)
    assert cat @ kitten > cat @ law


def test_a_real_model_is_split_and_merged(gemma: Model, tmp_path: Path) -> None:
    """Byte for byte; llama.cpp loads the parts."""
    source = file(GEMMA)
    parts = split_gguf(source, tmp_path / "part", max_size=200_000_000)
    assert len(parts) == 2
    texts = []
    with Model(parts[0]) as split:
        for model in (gemma, split):
            with Engine(model, ctx_size=128) as engine:
                request = engine.submit("The capital of France is", max_tokens=4, temperature=0)
                texts.append(request.result(300).text)
    assert texts[0] == texts[1]
    merged = merge_gguf(parts[0], tmp_path / "merged.gguf")
    assert merged.read_bytes() == source.read_bytes()
    set_metadata(merged, {"general.name": "Renamed"})
    with GGUFReader(merged) as reader, GGUFReader(source) as before:
        assert reader.metadata["general.name"] == "Renamed"
        assert list(reader.metadata) == list(before.metadata)
    assert run("gguf", "validate", merged).stdout.endswith("nothing is wrong\n")
