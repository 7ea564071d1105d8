"""llama-cpp-python's class on real models: what its users write, run as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda.llama_cpp import Llama, LlamaDiskCache, LlamaGrammar, LogitsProcessorList
from tests.real.conftest import GEMMA, QWEN, file

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    """Qwen with room for a short chat."""
    with Llama(file(QWEN), n_ctx=512, verbose=False) as llama:
        yield llama


def content(answer: dict[str, Any]) -> str:
    """Return the content of a chat completion."""
    text: str = answer["choices"][0]["message"]["content"]
    return text


def test_a_completion(llm: Llama) -> None:
    """The sentence goes on as it should, whole, streamed, and token by token."""
    prompt = "The quick brown fox jumps over the lazy dog. The quick brown fox"
    expected = " jumps over the lazy dog."
    asked: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    assert llm(prompt, **asked)["choices"][0]["text"] == expected
    chunks = llm(prompt, **asked, stream=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
    with Llama(file(QWEN), n_ctx=64, verbose=False) as other:
        tokens = []
        for token in other.generate(other.tokenize(prompt.encode()), temp=0.0):
            tokens.append(token)
            if len(tokens) == 6:
                break
        assert other.detokenize(tokens).decode() == expected


def test_a_gap(llm: Llama) -> None:
    """The suffix is what the text leads to."""
    answer = llm("def add(a, b):\n    return ", suffix="\n", max_tokens=8, temperature=0, stop="\n")
    assert answer["choices"][0]["text"].startswith("a + b")


def test_a_chat(llm: Llama) -> None:
    """A question is answered; JSON follows its schema."""
    messages = [{"role": "user", "content": "What is the capital of France? One word."}]
    assert "Paris" in content(llm.create_chat_completion(messages, temperature=0, max_tokens=12))
    schema = {
        "type": "object",
        "properties": {"capital": {"enum": ["Paris", "Rome"]}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    form = {"type": "json_object", "schema": schema}
    answer = llm.create_chat_completion(messages, response_format=form, temperature=0)
    assert content(answer).replace(" ", "").replace("\n", "") == '{"capital":"Paris"}'


@pytest.mark.parametrize(
    "choice", ["auto", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_tool(llm: Llama, choice: Any) -> None:
    """The model calls it, of its own will and because it must."""
    messages = [{"role": "user", "content": "Call get_weather for Rome."}]
    answer = llm.create_chat_completion(
        messages, tools=[WEATHER], tool_choice=choice, temperature=0, max_tokens=80
    )
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


def test_functions_and_grammars(llm: Llama) -> None:
    """They decide what comes."""
    [token] = llm.tokenize(b" Rome", add_bos=False)

    def prefer(input_ids: Any, scores: Any) -> Any:
        scores[token] += 100
        return scores

    prompt = "The capital of France is"
    answer = llm(prompt, max_tokens=2, logits_processor=LogitsProcessorList([prefer]))
    assert answer["choices"][0]["text"] == " Rome Rome"
    grammar = LlamaGrammar.from_string('root ::= " " ("Paris" | "Rome") "."')
    answer = llm(prompt, grammar=grammar, temperature=0, max_tokens=8)
    assert answer["choices"][0]["text"] == " Paris."


@pytest.mark.parametrize("name", [QWEN, GEMMA])
def test_states(name: str, tmp_path: Path) -> None:
    """A cache on the disk spares another object the prompt, with a sliding window too."""
    prompt = "The capital of France is Paris. The capital of Italy is"
    asked: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    texts, spared = [], []
    for _ in range(2):
        with Llama(file(name), n_ctx=256, verbose=False) as llama:
            llama.set_cache(LlamaDiskCache(tmp_path))
            load = llama.load_state
            llama.load_state = lambda state, load=load: (spared.append(1), load(state))[1]  # type: ignore
            texts.append(llama(prompt, **asked)["choices"][0]["text"])
    assert texts[0] == texts[1] and texts[0].startswith(" Rome")
    assert spared == [1]


def test_a_base_model() -> None:
    """A vocabulary of 262,144 tokens, without a chat template."""
    with Llama(file(GEMMA), n_ctx=128, verbose=False) as llama:
        tokens = llama.tokenize("Grüße, 世界".encode())
        assert tokens[0] == llama.token_bos()
        assert llama.detokenize(tokens).decode() == "Grüße, 世界"
        prompt = "The capital of France is Paris. The capital of Italy is"
        answer = llama(prompt, max_tokens=2, temperature=0, logprobs=3)
        assert answer["choices"][0]["text"].startswith(" Rome")
        assert len(answer["choices"][0]["logprobs"]["top_logprobs"][0]) == 3
