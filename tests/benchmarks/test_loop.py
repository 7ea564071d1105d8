"""Speed of the native layer on the demo model: `make bench`; `make test` runs each once."""

import ctypes
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from llcuda import Context, Model, Sampler
from llcuda.native import library

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Once upon a time, there was a little fox who lived in the forest."


@pytest.fixture(scope="module")
def model() -> Any:
    with Model("demo") as loaded:
        yield loaded


@pytest.fixture
def context(model: Model) -> Any:
    with Context(model, ctx_size=512, threads=1) as opened:
        yield opened


def test_tokenize(benchmark: Any, model: Model) -> None:
    """A sentence to tokens."""
    assert benchmark(model.tokenize, PROMPT)


def test_prefill(benchmark: Any, model: Model, context: Context) -> None:
    """A prompt of 256 tokens."""
    tokens = (model.tokenize(PROMPT) * 32)[:256]

    def prefill() -> None:
        context.memory.clear(data=False)
        context.decode(tokens)

    benchmark(prefill)


def test_decode_one(benchmark: Any, model: Model, context: Context) -> None:
    """One token, the memory never above 256."""
    tokens = model.tokenize(PROMPT)
    context.decode(tokens)

    def decode() -> None:
        if context.n_past() > 256:
            context.memory.remove(0, len(tokens))
        context.decode([tokens[3]])

    benchmark(decode)


def test_sample(benchmark: Any, model: Model, context: Context) -> None:
    """The default chain over one row of logits."""
    context.decode(model.tokenize(PROMPT))
    benchmark(Sampler(seed=1).sample, context)


def test_python_loop_against_c(model: Model, context: Context, tmp_path: Path) -> None:
    """The Python loop is close to the same loop in C, both in one run, turn by turn."""
    library_path = tmp_path / "c_loop.so"
    folder = library.versions()["folder"]
    include = [f"-I{ROOT}/vendor/llama.cpp/{name}" for name in ("include", "ggml/include")]
    source = str(Path(__file__).with_name("c_loop.c"))
    link = [f"-L{folder}", "-lllama", f"-Wl,-rpath,{folder}"]
    command = ["cc", "-O2", "-shared", "-fPIC", *include, source, "-o", str(library_path), *link]
    subprocess.run(command, check=True)
    c_loop = ctypes.CDLL(str(library_path)).c_loop
    c_loop.restype = ctypes.c_int64
    tokens = model.tokenize(PROMPT)
    prompt = (ctypes.c_int32 * len(tokens))(*tokens)
    sampler = Sampler(temperature=0.7, top_k=40, top_p=0.9, seed=1, model=model)
    raw, chain = _addresses(context, sampler)
    n_tokens, c_times, python_times = 100, [], []
    for _ in range(15):
        sampler.reset()
        nanoseconds = c_loop(
            ctypes.c_void_p(raw), ctypes.c_void_p(chain), prompt, len(tokens), n_tokens
        )
        assert nanoseconds > 0
        c_times.append(nanoseconds * 1e-3 / n_tokens)
        sampler.reset()
        context.memory.clear(data=False)
        context.decode(tokens)
        started = time.perf_counter()
        for _ in range(n_tokens):
            token = sampler.sample(context)
            model.is_eog(token)
            model.piece(token)
            context.decode([token])
        python_times.append((time.perf_counter() - started) * 1e6 / n_tokens)
    ours, theirs = statistics.median(python_times), statistics.median(c_times)
    best = min(python_times) - min(c_times)
    print(f"per token: Python {ours:.1f} us, C {theirs:.1f} us; best against best {best:+.2f} us")
    assert ours < 1.5 * theirs


def _addresses(context: Context, sampler: Sampler) -> tuple[int, int]:
    """The C addresses of a context and a chain; only this comparison needs them."""
    ffi, lib = library.load()
    raw = lib.llcuda_context_raw(context.handle.owner.pointer)
    assert sampler.handle is not None
    return int(ffi.cast("intptr_t", raw)), int(ffi.cast("intptr_t", sampler.handle.owner.pointer))
