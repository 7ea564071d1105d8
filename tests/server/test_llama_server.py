"""llama-server's own API: its shapes, and what is refused."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda.errors import FileWriteError
from llcuda.params import SamplingParams
from llcuda.server.leniency import HEADER
from llcuda.server.llama_server.probabilities import after_sampling
from llcuda.server.models import ModelSpec
from tests.support import models
from tests.support.server import PARAMETERS, Served, demo, is_error, served
from tests.support.waiting import ENDLESS

PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "n_predict": 8}
GAP_TOKENS = {"pre": 20, "suf": 21, "mid": 22}
GAP = {f"tokenizer.ggml.fim_{name}_token_id": n for name, n in GAP_TOKENS.items()}


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """A server that keeps slots in files, with a model that fills gaps and has an adapter."""
    folder = tmp_path_factory.mktemp("slots")
    metadata, tensors = models.llama()
    model = models.write(folder / "model.gguf", {**metadata, **GAP}, tensors)
    adapter = models.write(folder / "adapter.gguf", *models.lora())
    (folder / "saved").mkdir()
    spec = ModelSpec(
        "tiny", str(model), parameters={**PARAMETERS, "n_parallel": 2, "adapters": [(adapter, 1.0)]}
    )
    with served(spec, slot_folder=folder / "saved") as running:
        yield running, folder / "saved"


def events(served: Served, path: str, **body: Any) -> list[dict[str, Any]]:
    """Return the events of a stream."""
    answer = served.post(path, stream=True, **body)
    assert 200 == answer.status_code, answer.text
    lines = answer.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_completion(server: Served) -> None:
    """The text is the engine's, and every field of llama-server's answer is there."""
    expected = server.engine.submit(PROMPT, temperature=0, max_tokens=8).result()
    answer = server.post("/completion", **GREEDY, return_tokens=True, stop=["zzz"]).json()
    assert (expected.text, expected.tokens) == (answer["content"], answer["tokens"])
    assert ("limit", True, False) == (answer["stop_type"], answer["stop"], answer["truncated"])
    assert (8, expected.prompt_tokens) == (answer["tokens_predicted"], answer["tokens_evaluated"])
    settings = answer["generation_settings"]
    assert (8, 0, ["zzz"]) == (settings["n_predict"], settings["temperature"], settings["stop"])
    times = answer["timings"]
    assert expected.prompt_tokens == times["prompt_n"] + times["cache_n"]
    assert 8 == times["predicted_n"]
    assert answer["prompt"].endswith(PROMPT)
    assert answer == {**answer, "index": 0, "model": "demo", "has_new_line": False}
    without = server.post("/completions", **GREEDY).json()
    assert (expected.text, []) == (without["content"], without["tokens"])


def test_stop_types(server: Served) -> None:
    """A stop text, the model's end and the limit are told apart."""
    text = server.post("/completion", **GREEDY).json()["content"]
    word = server.post("/completion", **GREEDY, stop=[text[4:8]]).json()
    assert ("word", text[4:8], text[:4]) == (
        word["stop_type"],
        word["stopping_word"],
        word["content"],
    )
    end = min(server.engine.model.eog_tokens)
    ended = server.post("/completion", **GREEDY, logit_bias=[[end, 100]]).json()
    assert ("eos", "", "") == (ended["stop_type"], ended["stopping_word"], ended["content"])
    whole = server.post("/completion", prompt=PROMPT, ignore_eos=True).json()
    assert ("limit", True) == (whole["stop_type"], whole["truncated"])
    assert 512 == whole["tokens_evaluated"] + whole["tokens_predicted"]
    assert whole["generation_settings"]["logit_bias"][0] == {"token": end, "bias": None}
    nothing = server.post("/completion", prompt=PROMPT, n_predict=0).json()
    assert ("", 0) == (nothing["content"], nothing["tokens_predicted"])


def test_the_time_of_a_text(server: Served) -> None:
    """Beyond it the text ends with a line; before its first line it goes on."""
    asked: dict[str, Any] = {"prompt": PROMPT, "t_max_predict_ms": 0.001}
    lines = server.post("/completion", **asked, grammar='root ::= "x\\n" [a-z]*', **ENDLESS)
    assert 200 == lines.status_code
    assert lines.json()["content"].startswith("x\n")
    assert 2 <= lines.json()["tokens_predicted"] < ENDLESS["max_tokens"]
    letters = {"grammar": "root ::= [a-z]+", "ignore_eos": True, "n_predict": 30}
    none = server.post("/completion", **asked, **letters)
    assert 30 == none.json()["tokens_predicted"]


def test_a_stream_has_an_event_for_each_token(server: Served) -> None:
    """The parts make the text; the last event has the times and the settings."""
    whole = server.post("/completion", **GREEDY, return_tokens=True).json()
    *parts, last = events(server, "/completion", **GREEDY, n_probs=3, timings_per_token=True)
    assert whole["content"] == "".join(part["content"] for part in parts)
    assert [[token] for token in whole["tokens"]] == [part["tokens"] for part in parts]
    assert [*range(1, 9)] == [part["tokens_predicted"] for part in parts]
    for part in parts:
        [score] = part["completion_probabilities"]
        assert score["id"] == part["tokens"][0] == score["top_logprobs"][0]["id"]
        assert part["timings"]["predicted_n"] == part["tokens_predicted"]
    assert (True, "", []) == (last["stop"], last["content"], last["tokens"])
    assert 8 == last["timings"]["predicted_n"]


def test_characters_of_several_tokens(server: Served) -> None:
    """Parts of a character wait for the rest of it."""
    text = "🦊🦊"
    *parts, _ = events(
        server, "/completion", prompt=PROMPT, grammar=f'root ::= "{text}"', n_predict=20
    )
    assert text == "".join(part["content"] for part in parts)
    assert len(parts) > 2
    assert all(len(part["tokens"]) == 1 for part in parts)


def test_prompts(server: Served) -> None:
    """Texts, tokens, both mixed, and several of them; each candidate has an index."""
    tokens = server.engine.model.tokenize(PROMPT)
    rest = {key: value for key, value in GREEDY.items() if key != "prompt"}
    single = server.post("/completion", **GREEDY).json()["content"]
    for prompt in (tokens, [*tokens[:2], *tokens[2:]], {"prompt_string": PROMPT}):
        answer = server.post("/completion", prompt=prompt, **rest).json()
        assert single == answer["content"]
    several = [PROMPT, tokens, [*tokens[:3], " time"]]
    answers = server.post("/completion", prompt=several, **rest).json()
    assert [0, 1, 2] == [answer["index"] for answer in answers]
    assert [single, single] == [answer["content"] for answer in answers[:2]]
    mixed = server.post("/completion", prompt=[PROMPT, 7, 8, " and"], **rest).json()
    assert len(tokens) + 2 + 1 == mixed["tokens_evaluated"]
    assert 2 == len(server.post("/completion", **GREEDY, n_cmpl=2).json())


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [[], "a"]}, "prompt[0]"),
        ({"prompt": [10**9, 1]}, "prompt"),
        ({"prompt": {"prompt_string": "a", "multimodal_data": ["x"]}}, "prompt.multimodal_data"),
        ({"prompt": "a " * 5000}, "prompt"),
        ({"n_predict": -2}, "n_predict"),
        ({"logit_bias": [[1]]}, "logit_bias[0]"),
        ({"logit_bias": [[10**9, 1]]}, "logit_bias[0]"),
        ({"logit_bias": [["a", True]]}, "logit_bias[0]"),
        ({"samplers": ["top_q"]}, "samplers"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"lora": [{"id": 0, "scale": 1}]}, "lora"),
        ({"n_probs": 5, "post_sampling_probs": True, "repeat_penalty": 1.5}, "post_sampling_probs"),
        ({"n_probs": 1, "post_sampling_probs": True, "top_k": 0}, "post_sampling_probs"),
        ({"n_probs": 1, "post_sampling_probs": True, "min_tokens": 2}, "post_sampling_probs"),
        ({"n_probs": 1, "post_sampling_probs": True, "logit_bias": [[5, 1]]}, "post_sampling"),
        ({"n_probs": 1, "post_sampling_probs": True, "grammar": 'root ::= "a"'}, "post_sampling"),
        ({"n_probs": 101}, "n_probs"),
        ({"id_slot": 99}, "id_slot"),
        ({"n_cmpl": 0}, "n_cmpl"),
    ],
)
def test_what_is_refused(server: Served, body: dict[str, Any], field: str) -> None:
    """The error names the field, by llama-server's name."""
    prompt = {} if "prompt" in body or not body else {"prompt": PROMPT}
    error = is_error(server.post("/completion", **prompt, **body), 400)
    assert (error["param"] or "").startswith(field), error


def test_biases(server: Served) -> None:
    """Tokens and texts, as an object or a list; false is never."""
    model = server.engine.model
    word = server.post("/completion", **GREEDY, return_tokens=True).json()["tokens"][0]
    for biases in ([[word, False]], {str(word): -100}, [[model.piece(word), -100]], [{"id": word}]):
        answer = server.post("/completion", **GREEDY, return_tokens=True, logit_bias=biases).json()
        assert word not in answer["tokens"], biases


def test_samplers(server: Served) -> None:
    """Steps that are not named are off; another order and unknown steps are reported."""
    hot = {"prompt": PROMPT, "n_predict": 4, "temperature": 5.0, "seed": 1}
    greedy = server.post("/completion", **GREEDY).json()["content"]
    asked = {**hot, "top_k": 1, "samplers": ["top_k", "temperature"]}
    answer = server.post("/completion", **asked)
    assert greedy.startswith(answer.json()["content"])
    assert ["top_k", "temperature"] == answer.json()["generation_settings"]["samplers"]
    assert HEADER not in answer.headers
    for names in (["temperature", "top_k"], ["top_k", "infill"]):
        assert "samplers" in server.post("/completion", **hot, samplers=names).headers[HEADER]
    plain = server.post("/completion", **hot, samplers=[]).json()["generation_settings"]
    assert ([], 0, 1.0) == (plain["samplers"], plain["top_k"], plain["temperature"])


def test_response_fields(server: Served) -> None:
    """Only what was asked for, and parts of objects at the root."""
    fields = ["content", "generation_settings/n_predict", "timings/none", "none"]
    answer = server.post("/completion", **GREEDY, response_fields=fields).json()
    assert {"content", "generation_settings/n_predict"} == answer.keys()


def test_probabilities(server: Served) -> None:
    """Those of the model before sampling; after it those of what is left, whose sum is 1."""
    answer = server.post("/completion", **GREEDY, n_probs=4).json()
    before = answer["completion_probabilities"]
    assert [8, {4}] == [len(before), {len(score["top_logprobs"]) for score in before}]
    body = {**GREEDY, "temperature": 0.9, "seed": 3, "post_sampling_probs": True}
    after = server.post("/completion", **body, n_probs=100, top_k=5, top_p=0.95).json()
    endless = server.post("/completion", **body, n_probs=50, ignore_eos=True, top_k=90).json()
    ends = server.engine.model.eog_tokens
    for score in endless["completion_probabilities"]:
        assert score["prob"]
        assert ends.isdisjoint(other["id"] for other in score["top_probs"])
    for score in after["completion_probabilities"]:
        assert 0 < score["prob"] <= 1
        assert 1 == pytest.approx(sum(other["prob"] for other in score["top_probs"]))
        assert len(score["top_probs"]) <= 5


def test_probabilities_that_are_refused(server: Served) -> None:
    """Every step that changes them is named; a parameter of a step that is off is none."""
    asked: dict[str, Any] = {**GREEDY, "n_probs": 1, "post_sampling_probs": True}
    numbers = {"typical_p": 0.5, "xtc_probability": 0.5, "mirostat": 2, "presence_penalty": 1.0}
    error = is_error(server.post("/completion", **asked, **numbers, top_k=0), 400)
    for name in ("top_k=0", *numbers):
        assert name in error["message"]
    plain = {"xtc_threshold": 0.2, "dry_base": 2.0, "mirostat_tau": 4.0, "repeat_last_n": 8}
    answer = server.post("/completion", **asked, **plain)
    assert 8 == len(answer.json()["completion_probabilities"])
    assert HEADER not in answer.headers


def test_what_sampling_leaves() -> None:
    """top_k, then top_p, min_p and temperature."""
    top = [(7, -0.7), (3, -1.4), (9, -2.1), (1, -5.0)]

    def left(**given: Any) -> list[int]:
        params = SamplingParams(**{"top_p": 1.0, "top_k": 4, **given})
        shares = after_sampling(top, params)
        assert 1 == pytest.approx(sum(share for _, share in shares))
        return [token for token, _ in shares]

    assert [7, 3, 9, 1] == left()
    assert [7, 3] == left(top_k=2)
    assert [7] == left(top_p=0.0)
    assert [7, 3] == left(top_p=0.7)
    assert [7, 3] == left(min_p=0.4)
    assert [7] == left(temperature=0)
    hot = dict(after_sampling(top, SamplingParams(top_p=1.0, temperature=100)))
    assert 0.25 == pytest.approx(hot[1], abs=0.02)


def test_props_and_slots(server: Served) -> None:
    """What a client asks first; POST /props is refused."""
    props = server.client.get("/props").json()
    assert (4, 512) == (props["total_slots"], props["default_generation_settings"]["n_ctx"])
    assert ("demo", "demo.gguf") == (props["model_alias"], props["model_path"])
    meta = server.client.get("/models").json()["data"][0]["meta"]
    assert (server.engine.model.vocab_size, 512) == (meta["n_vocab"], meta["n_ctx"])
    assert props["chat_template"] == server.engine.model.chat_template
    is_error(server.post("/props"), 501)
    states = server.client.get("/slots?fail_on_no_slot=1").json()
    assert [0, 1, 2, 3] == [state["id"] for state in states]
    assert not any(state["is_processing"] for state in states)
    request = server.engine.submit(PROMPT, slot=2, ignore_eos=True, max_tokens=400)
    assert next(iter(request)) and request.slot == 2  # leaving the loop cancels it


def test_conversations(server: Served) -> None:
    """The prompt of a chat, and how many tokens it has."""
    messages = [{"role": "user", "content": "Hello"}]
    answer = server.post("/apply-template", messages=messages).json()
    assert "Hello" in answer["prompt"]
    expected = server.engine.count_tokens(messages)
    for path in ("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"):
        assert expected == server.post(path, messages=messages).json()["input_tokens"]
    is_error(server.post("/apply-template", messages=[{}]), 400)
    begun = [*messages, {"role": "assistant", "content": "I am"}]
    assert server.post("/apply-template", messages=begun).json()["prompt"].endswith("I am")
    bare = server.post("/apply-template", messages=messages, add_generation_prompt=False).json()
    assert answer["prompt"].startswith(bare["prompt"])
    assert len(bare["prompt"]) < len(answer["prompt"])


def test_times_of_openai_answers(server: Served) -> None:
    """Chats and completions have llama-server's times beside the usage."""
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", {"prompt": "Hi"})):
        answer = server.post(path, **body).json()
        used = answer["usage"]
        assert used["completion_tokens"] == answer["timings"]["predicted_n"]
        assert used["prompt_tokens"] == sum(answer["timings"][n] for n in ("prompt_n", "cache_n"))
        last = server.post(path, **body, stream=True, stream_options={"include_usage": True})
        assert '"predicted_per_second"' in last.text.splitlines()[-4]
    *_, last_chunk = events(server, "/v1/chat/completions", **chat)
    assert 4 == last_chunk["timings"]["predicted_n"]


def test_no_gap(server: Served) -> None:
    """A model without tokens for gaps fills none."""
    is_error(server.post("/infill", input_prefix="a", input_suffix="b"), 501)
    is_error(server.post("/v1/completions", prompt="a", suffix="b"), 400, "suffix")


def test_infill(slots: tuple[Served, Path]) -> None:
    """The prompt has the tokens of the gap, other files before, and what fits of both sides."""
    server, _ = slots
    body = {"input_prefix": "abc", "input_suffix": "xyz", "n_predict": 4}
    answer = server.post("/infill", **body, prompt="de").json()
    model = server.service.models.loaded["tiny"].model
    names = [model.token_name(token) for token in (20, 21, 22)]
    assert answer["prompt"].endswith(f"{names[0]}abcde{names[1]}xyz{names[2]}")
    turned = server.post("/infill", **body, prompt="de", spm_infill=True).json()["prompt"]
    assert turned.endswith(f"{names[1]}xyz{names[0]}abcde{names[2]}")
    text = server.post("/infill", **body, temperature=0).json()["content"]
    asked = {"prompt": "abc", "suffix": "xyz", "max_tokens": 4, "temperature": 0}
    assert text == server.post("/v1/completions", **asked).json()["choices"][0]["text"]
    is_error(server.post("/v1/completions", **asked, echo=True), 400, "echo")
    files = [{"filename": "a.py", "text": "import os"}, {"text": "more"}]
    assert "a.py" in server.post("/infill", **body, input_extra=files).json()["prompt"]
    long = {**body, "input_prefix": "p" * 3000 + "END", "input_suffix": "START" + "s" * 3000}
    answer = server.post("/infill", **long)
    assert "pEND" in answer.json()["prompt"]
    assert "STARTs" in answer.json()["prompt"]
    assert 512 == answer.json()["tokens_evaluated"] + 4
    for wrong in ({"input_suffix": None}, {"input_extra": [{}]}, {"input_extra": [{"text": 1}]}):
        is_error(server.post("/infill", **{**body, **wrong}), 400)


def test_a_gap_without_room(slots: tuple[Served, Path]) -> None:
    """What lies far from the gap is cut, which the header says, and the answer has its room."""
    server, _ = slots
    before, behind = "p" * 3000 + "END", "START" + "s" * 3000
    gap = {"input_prefix": before, "input_suffix": behind, "ignore_eos": True}
    files = [{"filename": "a.py", "text": "f" * 900}]
    answer = server.post("/infill", **gap, input_extra=files)
    notes = answer.headers[HEADER]
    for place in ("input_extra: its first", "input_prefix: its first", "input_suffix: its last"):
        assert place in notes
    assert (384, 128, "limit") == tuple(
        answer.json()[name] for name in ("tokens_evaluated", "tokens_predicted", "stop_type")
    )
    short = server.post("/infill", input_prefix="a", input_suffix="b", ignore_eos=True)
    assert (128, False) == (short.json()["tokens_predicted"], HEADER in short.headers)
    endless = server.post("/infill", **gap, n_predict=-1).json()
    assert (128, True) == (endless["tokens_predicted"], endless["truncated"])
    error = is_error(server.post("/infill", **gap, overflow="error"), 400, "input_prefix")
    assert "context_length_exceeded" == error["code"]
    text = {"prompt": before, "suffix": behind}
    for limit, prompt in ((4, 508), (500, 256), (-1, 384)):
        cut = server.post("/v1/completions", **text, max_tokens=limit, temperature=0)
        assert prompt == cut.json()["usage"]["prompt_tokens"]
        assert "prompt: its first" in cut.headers[HEADER]
        assert "suffix: its last" in cut.headers[HEADER]
    is_error(server.post("/v1/completions", **text, overflow="error"), 400, "prompt")
    generated = server.post("/api/generate", prompt=before, suffix=behind, stream=False)
    assert (384, True) == (
        generated.json()["prompt_eval_count"], generated.json()["eval_count"] <= 128
    )  # fmt: skip
    assert "prompt: its first" in generated.headers[HEADER]


def test_save_restore_erase(slots: tuple[Served, Path]) -> None:
    """A slot goes to a file of the folder and comes back; names cannot leave the folder."""
    server, folder = slots
    for slot in (0, 1):
        server.client.post(f"/slots/{slot}?action=erase")
    prompt = "one two three four five six seven"
    asked = {"prompt": prompt, "n_predict": 4, "temperature": 0, "id_slot": 1}
    first = server.post("/completion", **asked).json()
    assert (1, 0) == (first["id_slot"], first["timings"]["cache_n"])
    saved = server.post("/slots/1?action=save", filename="a.bin").json()
    assert (folder / "a.bin").stat().st_size == saved["n_written"]
    assert saved["n_saved"] == first["tokens_evaluated"] + 3
    erased = server.client.post("/slots/1?action=erase").json()
    assert {"id_slot": 1, "n_erased": saved["n_saved"]} == erased
    assert 0 == server.post("/completion", **asked).json()["timings"]["cache_n"]
    server.client.post("/slots/1?action=erase")
    restored = server.post("/slots/0?action=restore", filename="a.bin").json()
    assert (saved["n_saved"], saved["n_written"]) == (restored["n_restored"], restored["n_read"])
    again = server.post("/completion", **{**asked, "id_slot": 0}).json()
    assert (first["content"], 1) == (again["content"], again["timings"]["prompt_n"])
    outside = folder.parent / "model.gguf"
    (folder / "link").symlink_to(outside)
    (folder / "inner").mkdir()
    for name in ("../model.gguf", str(outside), "link", "inner", ".", "", "a/b", "a\0", "x" * 201):
        for action in ("save", "restore"):
            error = is_error(server.post(f"/slots/0?action={action}", filename=name), 400)
            assert "filename" == error["param"]
    (folder / "b.bin").write_bytes(b"llcuda slot 1\nrubbish")
    (folder / "c.bin").write_bytes(b"llcuda slot 1\n" + b"[" * 9000 + b"\n")
    for name in ("missing", "b.bin", "c.bin"):
        is_error(server.post("/slots/0?action=restore", filename=name), 400)
    assert b"GGUF" == outside.read_bytes()[:4]
    for path in ("/slots/9?action=erase", "/slots/0?action=drop", "/slots/0"):
        is_error(server.client.post(path), 400)


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(errno.ENOSPC, 507, "the server's disk is full"), (errno.EACCES, 500, "internal error; the")],
)
def test_a_slot_that_cannot_be_written(
    slots: tuple[Served, Path],
    number: int,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client learns of a full disk; another reason is in the log."""

    def fail(*_: Any) -> None:
        failure = FileWriteError("cannot write a: no")
        failure.errno = number
        raise failure

    monkeypatch.setattr("llcuda.engine.slots.atomic_write", fail)
    error = is_error(slots[0].post("/slots/0?action=save", filename="full"), status)
    assert error["message"].startswith(message)


def test_no_folder(server: Served) -> None:
    """Without the option nothing is written."""
    error = is_error(server.post("/slots/0?action=save", filename="a"), 501)
    assert "--slot-save-path" in error["message"]


def test_adapters(slots: tuple[Served, Path]) -> None:
    """They are listed, scaled, and change the text; unknown ones are refused."""
    server, _ = slots
    asked = {"prompt": "abc", "n_predict": 8, "temperature": 0}
    assert [{"id": 0, "path": "adapter.gguf", "scale": 1.0}] == server.client.get(
        "/lora-adapters"
    ).json()
    texts = []
    for scale in (0.0, 8.0):
        answer = server.client.post("/lora-adapters", json=[{"id": 0, "scale": scale}])
        assert scale == answer.json()[0]["scale"]
        texts.append(server.post("/completion", **asked).json()["content"])
        same = [{"id": 0, "scale": scale}]
        assert texts[-1] == server.post("/completion", **asked, lora=same).json()["content"]
    assert texts[0] != texts[1]
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for path, body in (
        ("/completion", asked), ("/v1/completions", asked), ("/v1/chat/completions", chat),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
    ):  # fmt: skip
        for other in ([], [{"id": 0, "scale": 0.5}]):
            message = is_error(server.post(path, **body, lora=other), 400, "lora")["message"]
            assert '[{"id": 0, "scale": 8.0}]; POST /lora-adapters changes them' in message
        unknown = [{"id": 0, "scale": 8.0}, {"id": 3, "scale": 1.0}]
        error = is_error(server.post(path, **body, lora=unknown), 400, "lora[1].id")
        assert "expected an adapter from 0 to 0" in error["message"]
    for wrong in ([{"id": 1, "scale": 1}], [{"id": 0}], "x", [{"id": 0, "scale": "a"}], None):
        is_error(server.client.post("/lora-adapters", json=wrong), 400)
    server.client.post("/lora-adapters", json=[{"id": 0, "scale": 1.0}])


def test_keys_guard_the_paths() -> None:
    """Every path of the API needs the key."""
    with served(demo(), keys=["secret"]) as running:
        for path in ("/props", "/slots", "/lora-adapters", "/models"):
            is_error(running.client.get(path), 401)
        for path in ("/completion", "/completions", "/infill", "/apply-template", "/props"):
            is_error(running.post(path), 401)
        for path in ("/slots/0?action=erase", "/lora-adapters", "/chat/completions/input_tokens"):
            is_error(running.post(path), 401)
