"""The ways through the house on real weights: prompt to text, chat to events, file to tensors."""

from __future__ import annotations

import json

import numpy as np
import openai
import pytest

import llcuda
from llcuda import Context, Engine, Model, Sampler
from llcuda.core import DType, Tensor, load_tensors
from llcuda.gguf_parser import GGUFReader
from llcuda.server import ModelSpec
from tests.real.conftest import GEMMA, QWEN, file
from tests.support.server import served

PROMPT = "The capital of France is"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Return the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
QUESTION = [{"role": "user", "content": "Write a Python function that adds two numbers."}]


@pytest.mark.parametrize(("name", "city"), [("gemma", "France"), ("qwen", "Paris")])
def test_the_loop_and_the_engine_write_the_same(
    name: str, city: str, request: pytest.FixtureRequest
) -> None:
    """Greedy text of the low-level loop equals that of an engine with one sequence."""
    model: Model = request.getfixturevalue(name)
    prompt = model.tokenize(PROMPT)
    written: list[int] = []
    with Context(model, ctx_size=256) as context:
        sampler = Sampler(temperature=0)
        context.decode(prompt)
        while len(written) < 24 and not model.is_eog(token := sampler.sample(context)):
            written.append(token)
            context.decode([token])
    with Engine(model, ctx_size=256) as engine:
        completion = engine.submit(PROMPT, temperature=0, max_tokens=24).result()
    assert city in completion.text
    assert completion.tokens == written
    assert completion.text == model.detokenize(written)


def test_inference_engine(capsys: pytest.CaptureFixture[str]) -> None:
    """Load by path, infer, read the counters, unload."""
    with llcuda.InferenceEngine() as engine:
        assert engine.load_model(file(GEMMA), ctx_size=512, n_parallel=2, silent=True)
        results = engine.batch_infer([PROMPT, "2 + 2 ="], max_tokens=8, temperature=0)
        assert "France" in results[0].text
        assert [8, 8] == [result.tokens_generated for result in results]
        assert 2 == engine.get_metrics()["throughput"]["total_requests"]
    assert capsys.readouterr().out == ""


def test_chat(engine: Engine) -> None:
    """Deltas add up to the message, and `result` reads them once."""
    chat = engine.chat(QUESTION, temperature=0, max_tokens=200)
    streamed = "".join(delta.content for delta in chat)
    answer = chat.result()
    assert "def " in streamed
    assert "stop" == answer.finish_reason
    assert {"role": "assistant", "content": streamed} == answer.message


def test_structured_output(engine: Engine) -> None:
    """An answer follows its JSON schema."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    messages = [{"role": "user", "content": "Name a large city and its number of people."}]
    answer = engine.chat(messages, response_format=form, temperature=0, max_tokens=80).result()
    city = json.loads(answer.message["content"])
    assert {"city": str, "people": int} == {key: type(value) for key, value in city.items()}


def test_a_demanded_call(engine: Engine) -> None:
    """`tool_choice="required"` gives one call whose arguments follow the tool's schema."""
    messages = [{"role": "user", "content": "How is the weather in Paris?"}]
    answer = engine.chat(
        messages, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=80
    ).result()
    [call] = answer.message["tool_calls"]
    assert "tool_calls" == answer.finish_reason
    assert "get_weather" == call["function"]["name"]
    assert {"city": "Paris"} == json.loads(call["function"]["arguments"])


def test_http_streams_what_python_writes(engine: Engine) -> None:
    """The same conversation over the openai package, whole and streamed."""
    expected = engine.chat(QUESTION, temperature=0, max_tokens=60).result()
    spec = ModelSpec("qwen", str(file(QWEN)), parameters={"ctx_size": 2048, "n_parallel": 2})
    with served(spec) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
        asked = {"model": "qwen", "messages": QUESTION, "temperature": 0, "max_tokens": 60}
        whole = client.chat.completions.create(**asked)
        assert expected.message["content"] == whole.choices[0].message.content
        assert len(expected.completion.tokens) == whole.usage.completion_tokens
        events = client.chat.completions.create(**asked, stream=True)
        deltas = [event.choices[0].delta.content or "" for event in events]
        assert expected.message["content"] == "".join(deltas)


def test_file_to_tensors(gemma: Model) -> None:
    """A quantized matrix is mapped, dequantized, and multiplies as its values do."""
    name = "blk.0.attn_q.weight"
    with GGUFReader(file(GEMMA)) as reader:
        info = reader.tensors[name]
        assert gemma.metadata["general.architecture"] == reader.metadata["general.architecture"]
        assert info.nbytes == len(reader.get_tensor_data(name))
    weights = load_tensors(file(GEMMA), [name])[name]
    assert info.shape == weights.shape
    values = weights.to(DType.Float32).numpy()
    vector = np.random.default_rng(1).normal(size=(values.shape[1], 1)).astype(np.float32)
    product = (weights @ Tensor.from_numpy(vector)).numpy()
    assert np.linalg.norm(product - values @ vector) < 0.02 * np.linalg.norm(product)
