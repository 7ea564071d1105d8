"""llama-cpp-python's `Llama` on our own libraries, so that only the binding differs.

Run by benchmarks/compare.py with LLAMA_CPP_LIB_PATH and PYTHONPATH set. Arguments: model, prompt
tokens, tokens to generate, repetitions, threads, quantise-to (or -). Prints one JSON line: tokens
per second of each repetition.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time

import llama_cpp.llama_cpp as raw

folder = os.environ["LLAMA_CPP_LIB_PATH"].encode()
raw.llama_backend_init()
ctypes.CDLL(f"{folder.decode()}/libggml.so").ggml_backend_load_all_from_path(folder)


def quantize(source: str, target: str) -> None:
    """Write `source` as Q4_K_M: llama_model_quantize is what our own binding lacks as yet."""
    params = raw.llama_model_quantize_default_params()
    params.ftype = raw.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if raw.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        sys.exit("llama_model_quantize failed")


def generate(
    model: str, n_prompt: int, n_tokens: int, repetitions: int, threads: int
) -> list[float]:
    """Return tokens per second of Llama.generate with top_k 40, top_p 0.9, temperature 0.7."""
    llama = raw_llama(model, threads)
    prompt = list(range(300, 300 + n_prompt))
    rates = []
    for _ in range(repetitions):
        llama.reset()
        stream = llama.generate(
            prompt, top_k=40, top_p=0.9, min_p=0.0, temp=0.7, repeat_penalty=1.0
        )
        next(stream)
        started = time.perf_counter()
        for _ in range(n_tokens):
            llama.detokenize([next(stream)])
        rates.append(n_tokens / (time.perf_counter() - started))
    return rates


def raw_llama(model: str, threads: int):
    """Return a Llama as its users make one."""
    from llama_cpp import Llama

    return Llama(
        model, n_gpu_layers=-1, n_ctx=1024, n_threads=threads, n_threads_batch=threads,
        flash_attn=True, verbose=False, seed=1,
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(sys.argv[2], sys.argv[3])
    else:
        numbers = [int(text) for text in sys.argv[2:6]]
        print(json.dumps(generate(sys.argv[1], *numbers)))
