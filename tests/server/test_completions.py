"""POST /v1/completions, as the official client sees it, and the tokenizer's routes."""

import asyncio
import json
import math
import time
from typing import Any

import openai
import pytest

from llcuda.server.leniency import HEADER
from tests.support.server import Served, is_error
from tests.support.waiting import ENDLESS

PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 12}


def test_text_is_that_of_the_engine(client: openai.OpenAI, server: Served) -> None:
    """The same prompt and parameters give the engine's text, its end, and its counts."""
    result = server.engine.submit(PROMPT, temperature=0, max_tokens=12).result()
    answer = client.completions.create(prompt=PROMPT, **GREEDY)
    [choice] = answer.choices
    assert (result.text, "length") == (choice.text, choice.finish_reason)
    assert answer.usage is not None
    used = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
    assert (result.prompt_tokens, 12, result.prompt_tokens + 12) == used
    assert "demo" == answer.model
    assert answer.id.startswith("cmpl-")


def test_cached_tokens(client: openai.OpenAI) -> None:
    """A prompt that was there before is reused, and the usage says so."""
    prompt = "The dragon and the small boat sailed over the wide sea and then " * 3
    for _ in range(2):
        answer = client.completions.create(prompt=prompt, **GREEDY)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert answer.usage.prompt_tokens - 1 == cached


def test_stream_is_the_same_text(client: openai.OpenAI) -> None:
    """The chunks' texts make the whole text; the last ones have the reason and the usage."""
    whole = client.completions.create(prompt=PROMPT, **GREEDY)
    options: Any = {"include_usage": True}
    chunks = list(
        client.completions.create(prompt=PROMPT, stream=True, stream_options=options, **GREEDY)
    )
    assert whole.choices[0].text == "".join(c.choices[0].text for c in chunks if c.choices)
    assert "length" == chunks[-2].choices[0].finish_reason
    assert not chunks[-1].choices
    usage, expected = chunks[-1].usage, whole.usage
    assert usage is not None
    assert expected is not None
    assert (expected.prompt_tokens, expected.completion_tokens) == (
        usage.prompt_tokens,
        usage.completion_tokens,
    )
    assert 1 == len({chunk.id for chunk in chunks})


def test_a_least_length(server: Served, client: openai.OpenAI) -> None:
    """Neither the model's end nor a stop text ends a text before; a wrong one is a 400."""
    end = str(min(server.engine.model.eog_tokens))
    asked: dict[str, Any] = {"prompt": PROMPT, **GREEDY, "logit_bias": {end: 100}, "stop": [" "]}
    short = client.completions.create(**asked)
    extra = {"min_tokens": 4, "priority": -1}
    longer = client.completions.create(**asked, extra_body=extra)
    for answer, tokens in ((short, 0), (longer, 4)):
        assert answer.usage is not None
        assert answer.usage.completion_tokens == tokens
        assert answer.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="min_tokens=1000: expected at most max_tok"):
        client.completions.create(**asked, extra_body={"min_tokens": 1000})


def test_async_clients_at_once(server: Served) -> None:
    """Twenty coroutines stream at once and get what each asked for."""

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def complete(i: int) -> str:
                stream = await client.completions.create(
                    model="demo", prompt=f"{i} {PROMPT}", max_tokens=5 + i, stream=True, seed=i,
                    extra_body={"ignore_eos": True},
                    stream_options={"include_usage": True},
                )  # fmt: skip
                usages = [chunk.usage async for chunk in stream]
                return str(usages[-1] and usages[-1].completion_tokens)

            return list(await asyncio.gather(*(complete(i) for i in range(20))))

    assert [str(5 + i) for i in range(20)] == asyncio.run(ask())


def test_prompts_and_choices(client: openai.OpenAI, server: Served) -> None:
    """Texts and token lists, several with n choices each, in order; seeds count up."""
    tokens = server.engine.model.tokenize("One day")
    seeded: dict[str, Any] = {"model": "demo", "max_tokens": 6, "seed": 3}
    answer = client.completions.create(prompt=[PROMPT, "One day"], n=2, **seeded)
    assert [0, 1, 2, 3] == [choice.index for choice in answer.choices]
    of_tokens = client.completions.create(prompt=[tokens, tokens], n=2, **seeded)
    assert answer.choices[2].text == of_tokens.choices[0].text == of_tokens.choices[2].text
    alone = client.completions.create(prompt="One day", **{**seeded, "seed": 4})
    assert answer.choices[3].text == alone.choices[0].text
    streamed: dict[int, str] = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(prompt=[PROMPT, "One day"], n=2, stream=True, **seeded):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert {choice.index: choice.text for choice in answer.choices} == streamed


def test_choices_with_the_largest_seed(client: openai.OpenAI) -> None:
    """After it comes 0, in completions and chats."""
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 6, "temperature": 1}
    two = client.completions.create(prompt=PROMPT, n=2, seed=2**32 - 2, **asked)
    second = client.completions.create(prompt=PROMPT, seed=0, **asked)
    assert two.choices[1].text == second.choices[0].text
    asked["messages"] = [{"role": "user", "content": "Hello!"}]
    answers = client.chat.completions.create(n=2, seed=2**32 - 2, **asked)
    answer = client.chat.completions.create(seed=0, **asked)
    assert answers.choices[1].message.content == answer.choices[0].message.content


def test_best_of(client: openai.OpenAI) -> None:
    """best_of makes more, and shows the most probable."""
    answer = client.completions.create(
        model="demo", prompt=PROMPT, best_of=4, n=4, max_tokens=6, seed=1, logprobs=0
    )
    means = {c.text: _mean(c.logprobs) for c in answer.choices}
    best = client.completions.create(model="demo", prompt=PROMPT, best_of=4, max_tokens=6, seed=1)
    assert [max(means, key=lambda text: means[text])] == [c.text for c in best.choices]
    assert best.choices[0].logprobs is None


def _mean(logprobs: Any) -> float:
    return float(sum(logprobs.token_logprobs) / len(logprobs.token_logprobs))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "begin", [PROMPT, "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"]
)
def test_echo_and_logprobs(client: openai.OpenAI, server: Served, begin: str, stream: bool) -> None:
    """The prompt's tokens are scored too; the offsets are places in the text."""
    answer: Any = client.completions.create(
        model="demo", prompt=begin, max_tokens=5, echo=True, logprobs=3, seed=1, stream=stream
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    text = "".join(choice.text for choice in choices)
    joined: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "text_offset": []}
    for choice in choices:
        for name, values in joined.items():
            values.extend(getattr(choice.logprobs, name) if choice.logprobs else [])
    prompt = server.engine.model.tokenize(begin, parse_special=True)
    assert text.startswith(begin)
    assert len(prompt) + 5 == len(joined["tokens"])
    assert text == "".join(joined["tokens"][1:])  # the first one is BOS
    assert joined["token_logprobs"][0] is None
    scored = server.engine.submit(prompt, max_tokens=0, echo=True).result()
    assert scored.prompt_logprobs is not None
    for expected, score in zip(scored.prompt_logprobs, joined["token_logprobs"][1:], strict=False):
        assert math.isclose(expected.logprob, score, abs_tol=0.3)  # computed in other company
    for token, offset in zip(joined["tokens"][1:], joined["text_offset"][1:], strict=True):
        assert text[offset:].startswith(token)


def test_control_tokens_in_a_prompt(client: openai.OpenAI, server: Served) -> None:
    """They are read as such unless "parse_special" is false; a chat does not know the field."""
    prompt, counts = "<|im_start|>user\nHello!<|im_end|>", []
    asked: Any = {"model": "demo", "prompt": prompt, "max_tokens": 1}
    for extra in ({}, {"parse_special": True}, {"parse_special": False}):
        answer = client.completions.create(**asked, extra_body=extra)
        assert answer.usage is not None
        counts.append(answer.usage.prompt_tokens)
    model = server.engine.model
    special = len(model.tokenize(prompt, parse_special=True))
    assert [special, special, len(model.tokenize(prompt))] == counts
    messages = [{"role": "user", "content": "Hello!"}]
    body = {"messages": messages, "max_tokens": 1, "parse_special": True}
    assert "parse_special" == server.post("/v1/chat/completions", **body).headers[HEADER]


def test_score_a_text(client: openai.OpenAI) -> None:
    """max_tokens=0 with echo scores a text and makes none."""
    answer = client.completions.create(
        model="demo", prompt=PROMPT, max_tokens=0, echo=True, logprobs=1
    )
    assert PROMPT == answer.choices[0].text
    assert answer.usage is not None
    assert 0 == answer.usage.completion_tokens


def test_stops_are_not_shown(client: openai.OpenAI) -> None:
    """A stop text ends the text before it, and its tokens are not scored."""
    whole = client.completions.create(prompt=PROMPT, **{**GREEDY, "max_tokens": 40})
    text = whole.choices[0].text
    stop = text[10:14]
    cut = client.completions.create(
        prompt=PROMPT, stop=["never seen", stop], logprobs=0, **{**GREEDY, "max_tokens": 40}
    ).choices[0]
    assert (text[: text.index(stop)], "stop") == (cut.text, cut.finish_reason)
    assert cut.logprobs is not None
    assert "".join(cut.logprobs.tokens or []).startswith(cut.text)


def test_the_sampled_token_is_among_the_best(client: openai.OpenAI) -> None:
    """Also where it is none of them, and with logprobs 0: scorers compare with the best."""
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "temperature": 2, "seed": 3}
    for count in (0, 1, 3):
        [choice] = client.completions.create(model="demo", logprobs=count, **asked).choices
        logprobs = choice.logprobs
        assert logprobs is not None
        tops = logprobs.top_logprobs or []
        for token, score, top in zip(
            logprobs.tokens or [], logprobs.token_logprobs or [], tops, strict=True
        ):
            assert top[token] == score
            assert len(top) in (max(count, 1), count + 1)
        assert count != 1 or any(len(top) == 2 for top in tops)


def test_logit_bias(client: openai.OpenAI, server: Served) -> None:
    """100 forces a token, -100 forbids it."""
    [token] = server.engine.model.tokenize(" dragon", add_special=False)[:1]
    forced = client.completions.create(prompt=PROMPT, logit_bias={str(token): 100}, **GREEDY)
    assert 12 * server.engine.model.piece(token) == forced.choices[0].text
    first = client.completions.create(prompt=PROMPT, logprobs=0, **GREEDY).choices[0].logprobs
    assert first is not None
    assert first.tokens is not None
    [likely] = server.engine.model.tokenize(first.tokens[0], add_special=False)[:1]
    other = client.completions.create(prompt=PROMPT, logit_bias={str(likely): -100}, **GREEDY)
    assert not other.choices[0].text.startswith(first.tokens[0])


def test_own_parameters(client: openai.OpenAI) -> None:
    """Parameters of llcuda's go in extra_body; top_k=1 is greedy at any temperature."""
    greedy = client.completions.create(prompt=PROMPT, **GREEDY)
    other = client.completions.create(
        model="demo", prompt=PROMPT, max_tokens=12, temperature=2, extra_body={"top_k": 1}
    )
    assert greedy.choices[0].text == other.choices[0].text


def test_deadline(server: Served) -> None:
    """A request ends at its deadline with what there is; before the first token it is a 503."""
    body = {"prompt": PROMPT, **ENDLESS}
    started = time.monotonic()
    server.post("/v1/completions", prompt=PROMPT, max_tokens=1)
    deadline = max(0.2, 10 * (time.monotonic() - started))  # of a machine that is as busy
    answer = server.post("/v1/completions", **body, timeout=deadline).json()
    assert "length" == answer["choices"][0]["finish_reason"]
    assert 0 < answer["usage"]["completion_tokens"] < 100_000
    error = is_error(server.post("/v1/completions", **body, timeout=1e-9), 503)
    assert "deadline_exceeded" == error["code"]


def test_models(client: openai.OpenAI, server: Served) -> None:
    """The list, one of it, and a 404 for a model that is not there."""
    assert ["demo"] == [model.id for model in client.models.list()]
    assert "demo" == client.models.retrieve("demo").id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4/none")
    for name in ({"model": "gpt-4"}, {}):
        answer = server.post("/v1/completions", **name, prompt=PROMPT, max_tokens=1)
        assert "demo" == answer.json()["model"]


@pytest.mark.parametrize("text", ["", "A fox.", "What is it ?", "über 🦊\n", "a\0b", "<|im_end|>"])
def test_tokenize_and_back(server: Served, text: str) -> None:
    """Tokens are those of the model, and their pieces; back is the text."""
    for special in (True, False):
        asked = {"content": text, "parse_special": special}
        tokens = server.post("/tokenize", **asked).json()["tokens"]
        assert server.engine.model.tokenize(text, False, special) == tokens
        assert text == server.post("/detokenize", tokens=tokens).json()["content"]
        pieces = server.post("/tokenize", **asked, with_pieces=True).json()["tokens"]
        assert tokens == [piece["id"] for piece in pieces]
        assert text.encode() == b"".join(
            p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"])
            for p in pieces
        )


def test_texts_and_tokens(server: Served) -> None:
    """A list of both is one text; a wrong token and too long a list are refused."""
    model = server.engine.model
    answer = server.post("/tokenize", content=["A fox", 7, " ran"], add_special=True).json()
    assert [*model.tokenize("A fox"), 7, *model.tokenize(" ran", False)] == answer["tokens"]
    for content in (["a", model.vocab_size], [1.5], 7, None, ["a" * 2**20, "b"], [True]):
        assert "content" in is_error(server.post("/tokenize", content=content), 400)["message"]


def test_health_metrics_and_document(server: Served) -> None:
    """The routes for machines answer; the metrics name the model."""
    assert {"status": "ok"} == server.client.get("/health").json()
    text = server.client.get("/metrics").text
    for name in (
        'llcuda_generation_tokens_total{model="demo"}',
        'llcuda_time_to_first_token_seconds_count{model="demo"}',
        'llcuda_time_per_output_token_seconds_bucket{le="0.001",model="demo"}',
        'llcuda_kv_cache_usage{model="demo"}',
        'llcuda_num_requests_waiting{model="demo"}',
        'llcuda_engine_up{model="demo"} 1.0',
        'llcuda_recoveries_total{model="demo"} 0.0',
        "llcuda_http_requests_total",
        'vllm:generation_tokens_total{engine="0",model_name="demo"}',
        'vllm:time_to_first_token_seconds_count{engine="0",model_name="demo"}',
        'vllm:time_per_output_token_seconds_bucket{engine="0",le="0.001",model_name="demo"}',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="demo"}',
        'vllm:kv_cache_usage_perc{engine="0",model_name="demo"}',
        "# TYPE vllm:num_requests_running gauge",
        "# TYPE vllm:e2e_request_latency_seconds histogram",
    ):
        assert name in text
    document = server.client.get("/openapi.json").json()
    assert "/v1/completions" in document["paths"]
    assert json.dumps(document)
