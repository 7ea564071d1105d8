from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llcuda import Context, Engine, InferenceEngine, Model, Sampler, memory_needed, quantize
from llcuda.engine.config import EngineConfig, EngineParams
from llcuda.engine.request import RequestParams
from llcuda.errors import ArgumentError
from llcuda.keywords import HINTS, PEERS, ChatKeywords, split_keywords
from llcuda.params import ContextParams, ModelParams, SamplingParams
from tests.support.waiting import PATIENCE

SETTINGS = (ModelParams, ContextParams, EngineParams, SamplingParams, RequestParams)
OWN = {item.name for kind in SETTINGS for item in dataclasses.fields(kind)} | {
    *("response_format", "tools", "tool_choice", "template", "template_variables", "normalize"),
    "bare_tool_calls",
    "system",
}


def test_keywords_are_sorted_by_their_fields() -> None:
    """The first dataclass that has the field gets it."""
    engine, context = split_keywords(
        {"ctx_size": 64, "n_parallel": 2, "threads": 1}, EngineParams, ContextParams
    )
    assert engine == {"ctx_size": 64, "n_parallel": 2}
    assert context == {"threads": 1}


def test_config_from_keywords() -> None:
    """One object has the settings of the model, the engine and its context, and checks them."""
    config = EngineConfig.from_kwargs(gpu_layers=0, n_parallel=2, ctx_size=64, type_k="q8_0")
    assert config.model == ModelParams(gpu_layers=0)
    assert config.engine == EngineParams(n_parallel=2, ctx_size=64)
    params = config.context_params()
    assert (params.ctx_size, params.sequences, params.type_k) == (64, 2, "q8_0")
    assert not params.unified_kv
    assert config.context_params(gpu=True).device_logits
    with pytest.raises(ArgumentError, match="queue_size=0"):
        EngineConfig.from_kwargs(queue_size=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.engine = EngineParams()  # type: ignore[misc]


def test_the_tables_name_what_is_there() -> None:
    """Peers' names and names with a hint are not llcuda's, and peers' names stand for its own."""
    assert PEERS.keys() <= OWN
    assert OWN.isdisjoint({*" ".join(PEERS.values()).split(), *HINTS})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("n_ctx", "llcuda calls it ctx_size$"),
        ("num_ctx", "llcuda calls it ctx_size$"),
        ("max_model_len", "llcuda calls it ctx_size$"),
        ("n_gpu_layers", "llcuda calls it gpu_layers$"),
        ("ngl", "llcuda calls it gpu_layers$"),
        ("n_batch", "llcuda calls it batch_size$"),
        ("n_threads", "llcuda calls it threads$"),
        ("max_num_seqs", "llcuda calls it n_parallel$"),
        ("temperature", r"a keyword of submit\(\), infer\(\) and chat\(\)$"),
        ("max_new_tokens", r"llcuda calls it max_tokens, a keyword of submit\(\)"),
        ("gpu_layer", r"did you mean gpu_layers\?$"),
        ("auto_strat", r"did you mean auto_start\?$"),
        ("verbos", r"did you mean verbose\?$"),
        ("silen", r"did you mean silent\?$"),
        ("on_requests", r"did you mean on_request\?$"),
        ("filenam", r"did you mean filename\?$"),
        ("dtype", "the weights have the types of their file"),
        ("nonsense", "unknown keyword nonsense$"),
    ],
)
def test_load_model_says_what_was_meant(name: str, says: str) -> None:
    """Peers' names, keywords of other calls, and names that are nearly right."""
    with pytest.raises(TypeError, match=says):
        InferenceEngine().load_model("demo", auto_start=False, silent=True, **{name: 1})


@pytest.mark.parametrize("name", ["model", "model_path"])
def test_the_model_is_the_first_argument(name: str) -> None:
    """Other libraries' names of it say so."""
    says = f"^unknown keyword {name}: .* first argument, model_name$"
    for call in (InferenceEngine, InferenceEngine().load_model):
        with pytest.raises(TypeError, match=says):
            call(**{name: "demo"})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("max_new_tokens", "llcuda calls it max_tokens$"),
        ("n_predict", "llcuda calls it max_tokens$"),
        ("num_predict", "llcuda calls it max_tokens$"),
        ("max_completion_tokens", "llcuda calls it max_tokens$"),
        ("repetition_penalty", "llcuda calls it repeat_penalty$"),
        ("temp", "llcuda calls it temperature$"),
        ("stop_token_ids", "llcuda calls it stop_tokens$"),
        ("system", r"a keyword of chat\(\)$"),
        ("format", 'response_format={"type": "json_object"}'),
        ("guided_regex", 'response_format={"type": "regex", "regex": "..."}'),
        ("guided_choice", 'response_format={"type": "choice", "choices": '),
        ("guided_json", 'response_format={"type": "json_schema", '),
        ("n", r"batch_chat\(\[messages\] \* n\)"),
        ("think", "enable_thinking"),
        ("sampling_params", "give its fields as keywords$"),
        ("no_repeat_ngram_size", "dry_multiplier"),
        ("return_full_text", r"prompt \+ result.text"),
        ("response_model", "response_format takes the class$"),
        ("mirostat_mode", "llcuda calls it mirostat$"),
        ("parallel_tool_calls", "the first of tool_calls"),
        ("stream", "iterated over"),
        ("n", r"submit_n\(\) and infer_n\(\)"),
        ("n_ctx", r"llcuda calls it ctx_size, a keyword of Engine\(\) and load_model\(\)$"),
        ("tools", r"a keyword of chat\(\)$"),
        ("temprature", r"did you mean temperature\?$"),
    ],
)
def test_requests_say_what_was_meant(name: str, says: str) -> None:
    """So do the ways to ask for text, before anything is computed."""
    with Model("demo") as model, Engine(model, ctx_size=64, threads=1) as engine:
        with pytest.raises(TypeError, match=says):
            engine.submit("One day", **{name: 1})
        if name not in ChatKeywords.__annotations__ and name != "tools":
            with pytest.raises(TypeError, match=says):
                engine.chat([{"role": "user", "content": "Hello"}], **{name: 1})


def test_every_call_says_what_was_meant() -> None:
    """Model, Context, Sampler, Engine and memory_needed refuse what they do not know."""
    calls: list[tuple[Any, str, str]] = [
        (lambda **k: Model("demo", **k), "n_ctx", r"Engine\(\) and load_model\(\)"),
        (lambda **k: Sampler(**k), "temprature", "did you mean temperature"),
        (lambda **k: memory_needed("demo", **k), "n_batch", "llcuda calls it batch_size"),
    ]
    with Model("demo") as model:
        calls.append((lambda **k: Context(model, **k), "n_parallel", r"Engine\(\)"))
        calls.append((lambda **k: Context(model, **k), "n_seq_max", "llcuda calls it sequences"))
        calls.append((lambda **k: Engine(model, **k), "gpu_layers", r"Model\(\)"))
        for call, name, says in calls:
            with pytest.raises(TypeError, match=f"unknown keyword {name}: .*{says}"):
                call(**{name: 1})


def test_settings_as_one_object_or_as_keywords() -> None:
    """Engine takes an EngineConfig; with keywords as well it is an ArgumentError."""
    config = EngineConfig.from_kwargs(ctx_size=64, threads=1)
    with Model("demo") as model:
        with Engine(model, config=config) as engine:
            assert engine.params.ctx_size == 64
            assert engine.context.params.threads == 1
        with pytest.raises(ArgumentError, match=r"config= and ctx_size="):
            Engine(model, config=config, ctx_size=32)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tool_choise", r"did you mean tool_choice\?$"),
        ("tool", r"did you mean tools\?$"),
        ("templates", r"did you mean template\?$"),
        ("system_prompt", "llcuda calls it system$"),
        ("template_variable", r"did you mean template_variables\?$"),
        ("functions", "llcuda calls it tools$"),
        ("params", "give its fields as keywords$"),
        ("sampling", "give its fields as keywords$"),
        ("prompt", r"chat\(\) takes messages$"),
    ],
)
def test_a_chat_says_what_was_meant(name: str, says: str) -> None:
    """Its own keywords are known too, and nothing that it sets itself gets in their way."""
    expected = pytest.raises(TypeError, match=f"^unknown keyword {name}: .*{says}")
    with Model("demo") as model, Engine(model, ctx_size=64, threads=1) as engine, expected:
        engine.chat([{"role": "user", "content": "Hello"}], **{name: 1})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("stop_sequnces", r": did you mean stop_sequences\?"),
        ("max_tokn", r": did you mean max_tokens\?"),
        ("min_new_tokens", ": llcuda calls it min_tokens"),
        ("pad_token_id", ": llcuda pads nothing"),
        ("options", ": give each option as a keyword"),
        ("params", ": give its fields as keywords"),
        ("templates", ""),
    ],
)
def test_infer_says_what_was_meant(name: str, says: str) -> None:
    """Before anything else, and never a name that is only a little alike."""
    with pytest.raises(TypeError, match=f"^unknown keyword {name}{says}$"):
        InferenceEngine().infer("One day", **{name: 1})
    if name == "stop_sequnces":
        with InferenceEngine() as engine:
            engine.load_model("demo", silent=True)
            for call in (engine.submit, engine.stream):
                with pytest.raises(TypeError, match=f"^unknown keyword {name}{says}$"):
                    call("One day", **{name: 1})


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        (SamplingParams, "temp", "llcuda calls it temperature"),
        (SamplingParams, "max_tokens", r"a keyword of submit\(\), infer\(\) and chat\(\)"),
        (ContextParams, "n_ctx", "llcuda calls it ctx_size"),
        (RequestParams, "max_new_tokens", "llcuda calls it max_tokens"),
        (EngineParams, "n_seq_max", "llcuda calls it n_parallel"),
        (ModelParams, "ngl", "llcuda calls it gpu_layers"),
    ],
)
def test_settings_say_what_was_meant(kind: type, name: str, says: str) -> None:
    """A dataclass of settings knows other libraries' names as calls do."""
    with pytest.raises(TypeError, match=f"^unknown keyword {name}: {says}$"):
        kind(**{name: 1})


def test_names_of_other_calls() -> None:
    """Embeddings and quantization have hints as well."""
    with pytest.raises(TypeError, match=r"unknown keyword ftype: .* take file_type$"):
        quantize("demo", "x.gguf", ftype="Q8_0")  # type: ignore[call-arg]
    with Model("demo") as model, Engine(model, ctx_size=64, threads=1) as engine:
        with pytest.raises(TypeError, match=r"normalize_embeddings: llcuda calls it normalize$"):
            engine.embed(["x"], pooling="mean", normalize_embeddings=True)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=r"on_steps: did you mean on_step\?$"):
            Engine(model, on_steps=1)  # type: ignore[call-arg]


def test_a_chat_may_show_control_tokens() -> None:
    """shown_tokens join those of the template."""
    with Model("demo") as model, Engine(model, ctx_size=256, threads=1) as engine:
        message = {"role": "user", "content": "Hello"}
        chat = engine.chat([message], shown_tokens=[5], max_tokens=1)
        assert 5 in chat.request.params.shown_tokens
        chat.result(PATIENCE)
