"""InferenceEngine: the lines that users already write, on the demo model."""

import asyncio
import contextlib
import dataclasses
import html
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llcuda
from llcuda.engine.config import EngineConfig
from llcuda.errors import (
    ArgumentError,
    ClosedError,
    ConcurrencyError,
    LlcudaError,
    ModelError,
    ModelNotFoundError,
    QueueFullError,
)
from llcuda.keywords import own_names
from tests.support.programs import NOTEBOOK, run
from tests.support.waiting import ENDLESS, PATIENCE, eventually


@pytest.fixture(scope="module")
def engine() -> Iterator[llcuda.InferenceEngine]:
    opened = llcuda.InferenceEngine()
    opened.load_model("demo", ctx_size=512, n_parallel=4, silent=True, threads=1)
    yield opened
    opened.unload_model()


def test_the_users_session(capsys: pytest.CaptureFixture[str]) -> None:
    """Load by name, infer, batch, metrics, reset, unload: as the documents write it."""
    engine = llcuda.InferenceEngine()
    assert not engine.is_loaded
    assert engine.load_model("demo", auto_start=True, verbose=True) is True
    result = engine.infer("What is AI?", max_tokens=20, temperature=0.7, top_k=40)
    assert result.tokens_generated == len(result.completion.tokens)
    assert result.tokens_per_sec == pytest.approx(
        result.tokens_generated / (result.latency_ms / 1000)
    )
    assert str(result) == result.text
    results = engine.batch_infer(["Once upon a time", "One day", "There was a"], max_tokens=8)
    assert [r.tokens_generated <= 8 for r in results] == [True] * 3
    metrics = engine.get_metrics()
    assert metrics["throughput"]["total_requests"] == 4
    assert metrics["latency"]["sample_count"] == 4
    engine.reset_metrics()
    assert engine.get_metrics()["throughput"]["total_requests"] == 0
    engine.unload_model()
    engine.unload_model()
    assert not engine.is_loaded
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    expected = [
        "Loading model: demo",
        "",
        "Auto-configuring optimal settings...",
        "GPU Check:",
        "Platform:",
        "GPU:",
        "Compute Capability:",
        "Status:",
        "✓ Model loaded and ready for inference",
        "GPU Layers:",
        "Context Size:",
        "Load Time:",
    ]
    assert [line.startswith(e) for line, e in zip(lines, expected, strict=True)] == [True] * 12


@pytest.mark.parametrize("quiet", [{"silent": True}, {"verbose": False}])
def test_silent_prints_nothing(quiet: dict[str, bool], capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing on stdout; given sizes are used."""
    sizes = {"ctx_size": 256, "batch_size": 64, "ubatch_size": 32}
    with llcuda.InferenceEngine() as engine:
        engine.load_model("demo", gpu_layers=0, **sizes, **quiet)
        assert engine.infer("Once upon a time", max_tokens=3).prompt_tokens > 3
    assert capfd.readouterr().out == ""


def test_settings_are_announced_only_when_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """With gpu_layers and ctx_size given, nothing is configured automatically."""
    with llcuda.InferenceEngine() as engine:
        engine.load_model("demo", gpu_layers=0, ctx_size=256)
    out = capsys.readouterr().out
    assert "Auto-configuring" not in out
    assert "Context Size: 256" in out


def test_load_can_be_deferred() -> None:
    """auto_start=False loads at the first infer; wrong values are errors at once."""
    with llcuda.InferenceEngine() as engine:
        assert engine.load_model("demo", auto_start=False, silent=True)
        assert not engine.is_loaded
        assert engine.infer("One day", max_tokens=2).tokens_generated
        assert engine.is_loaded
        for wrong in ({"n_parallel": 0}, {"sequences": 2}, {"on_request": 1}):
            with pytest.raises(ArgumentError, match=next(iter(wrong))):
                engine.load_model("demo", auto_start=False, **wrong)
        assert engine.infer("One day", max_tokens=1).tokens_generated


def test_context_size_is_ctx_size() -> None:
    """Both names mean the same; two different values are a TypeError."""
    with llcuda.InferenceEngine() as engine:
        engine.load_model(model_name="demo", context_size=320, silent=True)
        assert engine.engine.params.ctx_size == 320
        engine.load_model("demo", context_size=320, ctx_size=320, silent=True)
        with pytest.raises(TypeError):
            engine.load_model("demo", context_size=320, ctx_size=321)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"nonsense": 1}, TypeError),
        ({"ctx_size": 0}, ArgumentError),
        ({"ctx_size": -1}, ArgumentError),
        ({"gpu_layers": -1}, ArgumentError),
        ({"n_parallel": 1000}, ArgumentError),
        ({"ctx_size": 512, "cache_size": 100}, ValueError),
        ({"ctx_size": 512, "cache_size": 512 * 256 + 1}, ValueError),
        ({"ctx_size": 2**27, "n_parallel": 16}, ValueError),
        ({"ctx_size": 2**27, "n_parallel": 8}, llcuda.errors.OutOfMemoryError),
        ({"batch_size": 0}, ArgumentError),
        ({"sequences": 3}, ArgumentError),
        ({"embeddings": True}, ArgumentError),
        ({"on_step": "print"}, ArgumentError),
        ({"verbose": 0}, ArgumentError),
        ({"verbose": "no"}, ArgumentError),
        ({"silent": 1}, ArgumentError),
        ({"auto_start": "x"}, ArgumentError),
        ({"devices": ["no-such-device"]}, ArgumentError),
        ({"tensor_split": [1.0] * 1000}, ArgumentError),
        ({"filename": 5}, TypeError),
    ],
)
def test_wrong_load_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    """Each is an error that names it, and what was loaded before stays usable."""
    with llcuda.InferenceEngine() as engine:
        engine.load_model("demo", silent=True)
        with pytest.raises(error):
            engine.load_model("demo", **{"silent": True, **arguments})
        assert engine.infer("One day", max_tokens=1).tokens_generated == 1


def test_a_name_of_another_type(capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before anything is printed."""
    with pytest.raises(TypeError, match=r"model_name=5: expected a path; give a str or a pathlib"):
        llcuda.InferenceEngine().load_model(5)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_an_unknown_model_is_an_error() -> None:
    """A wrong name raises; it is never answered by another model."""
    with llcuda.InferenceEngine() as engine, pytest.raises(LlcudaError):
        engine.load_model("no-such-model-at-all", silent=True)
    with llcuda.InferenceEngine() as engine, pytest.raises(ModelNotFoundError):
        engine.load_model("/no/such/file.gguf", silent=True)


def test_infer_before_load_and_after_unload() -> None:
    """A clear error that names load_model()."""
    engine = llcuda.InferenceEngine()
    with pytest.raises(ClosedError, match="load_model"):
        engine.infer("x")
    engine.load_model("demo", silent=True)
    engine.unload_model()
    with pytest.raises(ClosedError, match="load_model"):
        engine.infer("x")


def test_infer_during_unload() -> None:
    """Threads that infer while the model is unloaded get results or ClosedError, nothing else."""
    engine = llcuda.InferenceEngine()
    engine.load_model("demo", n_parallel=2, silent=True, threads=1)
    outcomes: list[Any] = []

    def use() -> None:
        try:
            while True:
                engine.infer("Once upon a time", max_tokens=20)
        except BaseException as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    engine.infer("One day", max_tokens=20)
    engine.unload_model()
    for thread in threads:
        thread.join(120)
    assert outcomes == [ClosedError] * 4


@pytest.mark.parametrize(
    ("prompt", "asked", "error"),
    [
        ("", {}, ArgumentError),
        ("The fox was happy. " * 200, {}, ArgumentError),
        (5, {}, ArgumentError),
        (None, {}, ArgumentError),
        ([True], {}, ArgumentError),
        ("lone \udc80 surrogate", {}, ArgumentError),
        ("x", {"max_tokens": 0}, ArgumentError),
        ("x", {"max_tokens": -1}, ArgumentError),
        ("x", {"temperature": -0.1}, ArgumentError),
        ("x", {"temperature": float("nan")}, ArgumentError),
        ("x", {"temperature": "hot"}, ArgumentError),
        ("x", {"top_k": -1}, ArgumentError),
        ("x", {"seed": -1}, ArgumentError),
        ("x", {"stop": 0}, ArgumentError),
        ("x", {"stop": {"a": 1}}, ArgumentError),
        ("x", {"stop_sequences": [b"x"]}, ArgumentError),
        ("x", {"max_token": 5}, TypeError),
        ("x", {"stop": "a", "stop_sequences": "b"}, TypeError),
    ],
)
def test_bad_input_is_an_error_in_every_call(
    engine: llcuda.InferenceEngine, prompt: Any, asked: dict[str, Any], error: type[Exception]
) -> None:
    """Every way to ask refuses the same at the call; the engine stays usable."""
    calls: list[Callable[[], Any]] = [
        lambda: engine.infer(prompt, **asked),
        lambda: engine.stream(prompt, **asked),
        lambda: engine.infer_n(prompt, 2, **asked),
        lambda: engine.batch_infer([prompt], **asked),
        lambda: asyncio.run(engine.ainfer(prompt, **asked)),
    ]
    for call in calls:
        with pytest.raises(error):
            call()
    assert engine.infer("One day", max_tokens=1).tokens_generated == 1


def test_threads_decode_in_one_batch(engine: llcuda.InferenceEngine) -> None:
    """Four threads on n_parallel=4: steps with several rows, and each its own text."""
    texts: dict[int, str] = {}

    def use(seed: int) -> None:
        texts[seed] = engine.infer("Once upon a time", max_tokens=60, seed=seed).text

    engine.reset_metrics()
    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    with engine.engine.loop.hold():
        for thread in threads:
            thread.start()
        assert eventually(lambda: engine.engine.load().waiting == 4)
    for thread in threads:
        thread.join(120)
    assert len(set(texts.values())) == 4
    assert engine.get_metrics()["batch"]["mean_rows"] > 3


def test_stop_in_both_spellings(engine: llcuda.InferenceEngine) -> None:
    """stop= and stop_sequences= do the same; both at once are a TypeError."""
    plain = engine.infer("There was a", max_tokens=30, temperature=0).text
    for name in ("stop", "stop_sequences"):
        stopped = engine.infer("There was a", max_tokens=30, temperature=0, **{name: ["Jonas"]})
        assert stopped.text == plain.split("Jonas")[0]
        assert stopped.finish_reason == "stop"
    with pytest.raises(TypeError):
        engine.infer("x", stop="a", stop_sequences="b")


def test_stream_and_coroutine(engine: llcuda.InferenceEngine) -> None:
    """stream() yields the text in pieces, ainfer() awaits it."""
    whole = engine.infer("There was a", max_tokens=30, temperature=0)
    pieces = list(engine.stream("There was a", max_tokens=30, temperature=0))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 10
    awaited = asyncio.run(engine.ainfer("There was a", max_tokens=30, temperature=0))
    assert awaited.text == whole.text


def test_leaving_a_stream_cancels_it(engine: llcuda.InferenceEngine) -> None:
    """A loop that is left frees its slot."""
    for _ in engine.stream("Once upon a time", max_tokens=400, ignore_eos=True):
        break
    assert engine.infer("One day", max_tokens=2).tokens_generated == 2


def test_batch_keeps_the_order(engine: llcuda.InferenceEngine) -> None:
    """Results come in the order of the prompts, each as if alone; one text is no batch."""
    prompts = [f"There was a girl named {name}" for name in ("Ruby", "Lena", "Mia", "Nora", "Ada")]
    together = [r.text for r in engine.batch_infer(prompts, max_tokens=12, temperature=0)]
    assert together == [engine.infer(p, max_tokens=12, temperature=0).text for p in prompts]
    with pytest.raises(TypeError):
        engine.batch_infer("one text")


def test_a_thousand_calls_in_a_row(engine: llcuda.InferenceEngine) -> None:
    """No slot, request or file is lost."""
    for _ in range(1000):
        assert engine.infer("One day", max_tokens=1).tokens_generated == 1


def test_result_in_a_notebook_and_a_terminal(engine: llcuda.InferenceEngine) -> None:
    """A result and its Completion show the text and its figures; str() is the text alone."""
    result = engine.infer("One day", max_tokens=3)
    for completion in (result, result.completion):
        for shown in (completion._repr_html_(), repr(completion)):
            assert "3 tokens, " in shown
            assert "tokens/s, length" in shown
        assert repr(completion.text) in repr(completion)
        assert str(
            completion.completion.tokens if completion is result else completion.tokens
        ) not in repr(completion)
        assert "\n" not in repr(completion)
        assert f"{completion}" == completion.text


@pytest.mark.parametrize(
    "text",
    [
        "Roses are red,\n    violets are blue",
        "\n\nA text may begin with empty lines.",
        "It costs $5, not $6, and a_1 * b * c",
        "<b>bold</b> &amp; <script>alert(1)</script></pre>",
        "# no heading\n```python",
    ],
    ids=repr,
)
def test_nothing_in_a_text_is_markup(engine: llcuda.InferenceEngine, text: str) -> None:
    """A browser shows every character as it is: escaped, in <pre>, where no TeX is looked for."""
    result = dataclasses.replace(engine.infer("One day", max_tokens=1), text=text)
    shown = result._repr_html_()
    inside = re.fullmatch(r"<pre style=[^>]*white-space: pre-wrap[^>]*>\n([^<]*)</pre>.*", shown)
    assert inside
    assert html.unescape(inside[1]) == text
    assert not hasattr(result, "_repr_markdown_")


def test_logprobs_of_a_result(engine: llcuda.InferenceEngine) -> None:
    """One report for each token when asked for, else None."""
    result = engine.infer("One day", max_tokens=3, temperature=0, logprobs=2)
    assert result.logprobs is not None
    assert [report.token for report in result.logprobs] == result.completion.tokens
    assert [len(report.top) for report in result.logprobs] == [2] * 3
    assert engine.infer("One day", max_tokens=3).logprobs is None


@pytest.mark.parametrize("verbose", [True, False])
def test_a_big_model_shows_how_far_it_is(verbose: bool) -> None:
    """A bar on a terminal's stderr, and never on stdout; nothing unless verbose."""
    program = (
        "import llcuda, llcuda.inference as i; i.BIG_MODEL = 1\n"
        f"i.InferenceEngine().load_model('demo', gpu_layers=0, verbose={verbose})"
    )
    terminal, its_end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=its_end, env=environment)
    os.close(its_end)
    shown = b""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as stream:  # noqa: PTH123
        while part := stream.read(4096):
            shown += part
    assert done.returncode == 0
    assert (b"Loading" in shown) == verbose
    lines = done.stdout.decode().splitlines()
    assert [line for line in lines if "Loading" in line] == ["Loading model: demo"] * verbose
    assert b"\x1b" not in done.stdout


def test_quick_infer() -> None:
    """One call from a model's name to a text."""
    assert llcuda.quick_infer("Once upon a time", max_tokens=5)


def test_a_failed_load_keeps_what_was_loaded() -> None:
    """A name that cannot be found leaves the model before it in place."""
    with llcuda.InferenceEngine() as engine:
        engine.load_model("demo", silent=True)
        with pytest.raises(LlcudaError):
            engine.load_model("demmo", silent=True)
        assert engine.infer("One day", max_tokens=1).tokens_generated == 1


def test_stop_sequences_everywhere(engine: llcuda.InferenceEngine) -> None:
    """stream() and ainfer() know both spellings too."""
    whole = engine.infer("There was a", max_tokens=30, temperature=0).text
    asked: dict[str, Any] = {"max_tokens": 30, "temperature": 0, "stop_sequences": ["Jonas"]}
    assert "".join(engine.stream("There was a", **asked)) == whole.split("Jonas")[0]
    assert asyncio.run(engine.ainfer("There was a", **asked)).text == whole.split("Jonas")[0]


@pytest.mark.parametrize("special", [True, False])
def test_control_tokens_everywhere(engine: llcuda.InferenceEngine, special: bool) -> None:
    """Each way in reads them in a raw prompt by default, and as text with parse_special=False."""
    prompt = "<|im_start|>user\nHello!<|im_end|>"
    tokens = len(engine.model.tokenize(prompt, parse_special=special))
    asked: Any = {"max_tokens": 1, **({} if special else {"parse_special": False})}
    counts = [
        engine.infer(prompt, **asked).prompt_tokens,
        engine.submit(prompt, **asked).result().prompt_tokens,
        asyncio.run(engine.ainfer(prompt, **asked)).prompt_tokens,
        *(result.prompt_tokens for result in engine.infer_n(prompt, 2, **asked)),
        *(result.prompt_tokens for result in engine.batch_infer([prompt, prompt], **asked)),
    ]
    assert [tokens] * 7 == counts
    greedy: Any = {**asked, "max_tokens": 8, "temperature": 0}
    assert engine.infer(prompt, **greedy).text == "".join(engine.stream(prompt, **greedy))


def test_a_bad_prompt_of_a_batch_is_named(engine: llcuda.InferenceEngine) -> None:
    """The error says which; the engine stays usable."""
    with pytest.raises(ArgumentError, match="prompt 1: "):
        engine.batch_infer(["Once upon a time", "", "One day"], max_tokens=5)
    assert engine.infer("One day", max_tokens=1).tokens_generated == 1


def test_a_batch_larger_than_the_queue() -> None:
    """A full queue is waited for."""
    with llcuda.InferenceEngine() as engine:
        engine.load_model("demo", queue_size=2, silent=True)
        assert len(engine.batch_infer(["One day"] * 20, max_tokens=2)) == 20


def test_hooks_and_prometheus() -> None:
    """load_model passes hooks on; metrics gives Prometheus's text."""
    seen: list[Any] = []
    with llcuda.InferenceEngine() as engine:
        engine.load_model("demo", silent=True, on_request=seen.append)
        engine.infer("One day", max_tokens=2)
        assert [record.generated_tokens for record in seen] == [2]
        assert "llcuda_request_success_total" in engine.metrics.prometheus_text()


# --- what goes on beside it ---


@pytest.mark.parametrize("ending", ["unload", "with", "reload"])
def test_a_hook_that_submits_again(ending: str) -> None:
    """A hook that asks again for what failed gets ClosedError at once; nobody waits for ever."""
    engine, raised = llcuda.InferenceEngine(), list[type]()

    def again(record: Any) -> None:
        if record.error:
            try:
                engine.submit("Once")
            except BaseException as error:
                raised.append(type(error))

    def end() -> None:
        if ending == "unload":
            engine.unload_model()
        elif ending == "with":
            with engine:
                pass
        else:
            engine.load_model("demo", ctx_size=256, silent=True)

    engine.load_model("demo", ctx_size=2048, silent=True, threads=1, on_request=again)
    running = engine.submit("Once upon a time", **ENDLESS)
    ender = threading.Thread(target=end, daemon=True)
    ender.start()
    ender.join(120)
    assert not ender.is_alive()
    assert raised == [ClosedError]
    with pytest.raises(ClosedError):
        running.result(PATIENCE)
    assert engine.is_loaded == (ending == "reload")
    engine.unload_model()


@pytest.mark.parametrize("call", ["unload_model", "load_model", "load_model later"])
def test_a_hook_cannot_load_or_unload(call: str) -> None:
    """It is a ConcurrencyError before anything changes."""
    engine, raised = llcuda.InferenceEngine(), list[type]()

    def hook(record: Any) -> None:
        try:
            if call == "unload_model":
                engine.unload_model()
            else:
                engine.load_model("demo", auto_start="later" not in call, silent=True)
        except BaseException as error:
            raised.append(type(error))

    with engine:
        engine.load_model("demo", ctx_size=256, silent=True, on_request=hook)
        model = engine.model
        for count in (1, 2):
            assert engine.infer("One day", max_tokens=2).tokens_generated == 2
            assert raised == [ConcurrencyError] * count
        assert engine.model is model


def test_several_completions_of_one_prompt(engine: llcuda.InferenceEngine) -> None:
    """Each with its own seed, what the seed gives alone, and with every parameter of infer."""
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0, "stop_sequences": ["."]}
    results = engine.infer_n("Once upon a time", 3, seed=5, **asked)
    assert [result.seed for result in results] == [5, 6, 7]
    alone = [engine.infer("Once upon a time", seed=seed, **asked) for seed in (5, 6, 7)]
    assert [result.text for result in results] == [result.text for result in alone]
    for calls in (engine.infer, engine.submit, engine.stream):
        with pytest.raises(TypeError, match="unknown keyword n: submit_n"):
            calls("x", n=3)
    with pytest.raises(ArgumentError, match="n=0"):
        engine.infer_n("x", 0)


def test_seeds_go_on_after_the_largest(engine: llcuda.InferenceEngine) -> None:
    """The next one is 0, as 2**32 - 1 means a random seed to llama.cpp; each gives its text."""
    asked: dict[str, Any] = {"max_tokens": 5, "temperature": 1}
    results = engine.infer_n("Once", 3, seed=2**32 - 2, **asked)
    assert [2**32 - 2, 0, 1] == [result.seed for result in results]
    for result in results:
        assert result.text == engine.infer("Once", seed=result.seed, **asked).text


def test_more_completions_than_the_queue_holds() -> None:
    """An idle engine takes as many as may run and wait; the error has the numbers."""
    with llcuda.InferenceEngine() as engine:
        engine.load_model("demo", ctx_size=128, n_parallel=4, queue_size=2, silent=True)
        assert len(engine.infer_n("Once", 6, max_tokens=2)) == 6
        with pytest.raises(QueueFullError, match=r"7 more .* n_parallel=4 .* queue_size=2"):
            engine.infer_n("Once", 7)


def test_a_stream_begins_at_the_call(engine: llcuda.InferenceEngine) -> None:
    """It computes before anybody iterates; one that nobody wants is cancelled as it is dropped."""
    engine.reset_metrics()
    pieces = engine.stream("Once upon a time", max_tokens=5, temperature=0)
    follower = engine.infer("One day", max_tokens=10, ignore_eos=True)
    assert follower.tokens_generated == 10
    whole = engine.infer("Once upon a time", max_tokens=5, temperature=0)
    assert "".join(pieces) == whole.text
    engine.reset_metrics()
    unwanted = engine.stream("Once upon a time", **ENDLESS)
    del unwanted
    assert engine.infer("One day", max_tokens=1).tokens_generated == 1
    assert engine.get_metrics()["finish_reasons"] == {"cancelled": 1, "length": 1}


LOADED: dict[str, Any] = {
    "gpu_layers": 0, "ctx_size": 96, "batch_size": 48, "ubatch_size": 24, "n_parallel": 2,
    "cache_size": 288, "queue_size": 7, "speculation": 3, "mmap": False, "check_tensors": True,
    "threads": 1, "threads_batch": 2, "type_k": "q8_0", "yarn_attn_factor": 0.9,
    "offload_kqv": False, "op_offload": False, "batch_invariant": True, "bf16_copies": True,
    "cuda_graphs": "off", "bf16_to_f16": False,
}  # fmt: skip


def test_load_model_hands_every_keyword_on() -> None:
    """Those of its signature and the others reach the engine and its model."""
    with llcuda.InferenceEngine() as engine:
        engine.load_model("demo", silent=True, **LOADED)
        expected = EngineConfig.from_kwargs(**LOADED)
        assert engine.engine.config == expected
        assert engine.model.params == expected.model
        assert engine.engine.context.params == expected.context_params()


ASKED: dict[str, Any] = {"max_tokens": 12, "temperature": 1.5, "seed": 5, "top_k": 0, "top_p": 1.0}


INFERRED: dict[str, Any] = {
    "max_tokens": 5, "temperature": 0.3, "top_p": 0.2, "top_k": 2, "seed": 6, "stop": [" "],
    "stop_sequences": [" "], "mirostat": 2, "logit_bias": {260: 100.0}, "echo": True,
}  # fmt: skip


def test_every_keyword_of_a_signature_has_a_value() -> None:
    """A new one fails here until LOADED or INFERRED has it."""
    beside = {"self", "model_name", "filename", "context_size", "auto_start", "verbose", "silent"}
    beside |= {"on_step", "on_request", "keywords", "progress", "prompt"}
    for call, values in (("load_model", LOADED), ("infer", INFERRED)):
        names = own_names(getattr(llcuda.InferenceEngine, call))
        assert names - beside <= values.keys()


@pytest.mark.parametrize("name", INFERRED)
def test_infer_hands_every_keyword_on(engine: llcuda.InferenceEngine, name: str) -> None:
    """It generates what the engine generates with the keyword, and not what it does without."""
    value, own_name = INFERRED[name], "stop" if name == "stop_sequences" else name
    outputs = [
        engine.engine.submit("There was a", **ASKED).result(PATIENCE),
        engine.engine.submit("There was a", **{**ASKED, own_name: value}).result(PATIENCE),
        engine.infer("There was a", **{**ASKED, name: value}),
    ]
    without, expected, inferred = ((o.tokens, o.prompt_logprobs is None) for o in outputs)
    assert inferred == expected != without


def test_params_as_objects(engine: llcuda.InferenceEngine) -> None:
    """submit() takes what Engine.submit takes."""
    asked = llcuda.RequestParams(max_tokens=3, ignore_eos=True)
    assert len(engine.submit("One day", params=asked).result(PATIENCE).tokens) == 3


BREAK = {
    "no GGUF": lambda data: b"GGUM" + data[4:],
    "a header alone": lambda data: b"GGUF" + bytes(100),
    "cut off": lambda data: data[: len(data) // 2],
    "an unknown architecture": lambda data: data.replace(b"llama", b"lamma"),
    "a tensor is missing": lambda data: data.replace(b"blk.0.attn_q.w", b"blk.0.attn_x.w"),
}


@pytest.mark.parametrize("damage", BREAK)
def test_a_broken_file_leaves_what_is_loaded(tmp_path: Path, damage: str) -> None:
    """The error comes before the model that is there goes."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(BREAK[damage](llcuda.demo_model().read_bytes()))
    with llcuda.InferenceEngine() as engine:
        engine.load_model("demo", ctx_size=256, silent=True)
        running = engine.submit("Once upon a time", max_tokens=100, ignore_eos=True)
        with pytest.raises(ModelError, match=r"broken\.gguf"):
            engine.load_model(path, silent=True)
        assert len(running.result(PATIENCE).tokens) == 100
        assert engine.infer("One day", max_tokens=1).tokens_generated == 1


# --- progress ---

LOAD = """
import llcuda.inference
llcuda.inference.BIG_MODEL = 1
llcuda.InferenceEngine().load_model("demo", gpu_layers=0, verbose=VERBOSE)
"""


@pytest.mark.parametrize(
    ("before", "verbose", "drawn"),
    [(NOTEBOOK, True, True), (NOTEBOOK, False, False), ("", True, False)],
    ids=["notebook", "notebook, silent", "pipe"],
)
def test_a_notebook_shows_how_far_loading_is(before: str, verbose: bool, drawn: bool) -> None:
    """There stderr is no terminal; a pipe gets nothing."""
    result = run(before + LOAD.replace("VERBOSE", str(verbose)))
    assert result.returncode == 0, result.stderr
    assert ("Loading demo.gguf [" in result.stderr) == drawn
    assert ("100 %" in result.stderr) == drawn
    assert (result.stderr == "") == (not drawn)


def test_a_terminal_of_ipython_is_no_notebook() -> None:
    """Whether a bar is seen there, the terminal says."""
    result = run(
        f"{NOTEBOOK}\nfrom llcuda.progress import is_visible\nfirst = is_visible()\n"
        "shell.config.clear()\nprint(first, is_visible())\n"
        "sys.stderr = None\nprint(is_visible())"
    )
    assert result.stdout.split() == ["True", "False", "False"]


def test_settings_in_place_of_max_tokens(engine: llcuda.InferenceEngine) -> None:
    """As vLLM takes them; the message says how they are given."""
    says = "^max_tokens: expected a whole number, not SamplingParams; give its fields as keywords$"
    for call in (engine.batch_infer, engine.batch_infer_iter):
        with pytest.raises(ArgumentError, match=says):
            call(["One day"], llcuda.SamplingParams())  # type: ignore[operator]
