"""llama-cpp-python's `Llama` on our own libraries, so that only the binding differs.

Import it after llcuda has loaded the library, with LLAMA_CPP_LIB_PATH set and llama_cpp on the
path: benchmarks/compare.py does both.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as raw


class Peer:
    """A model as the users of llama-cpp-python hold one."""

    def __init__(self, model: Path, threads: int) -> None:
        self._llama = llama_cpp.Llama(
            str(model), n_gpu_layers=-1, n_ctx=1024, n_threads=threads, n_threads_batch=threads,
            flash_attn=True, verbose=False, seed=1,
        )  # fmt: skip
        # A text that ends by itself would be counted short.
        ends = raw.llama_vocab_is_eog
        vocab = raw.llama_model_get_vocab(self._llama.model)
        self._bias = {str(t): -100.0 for t in range(self._llama.n_vocab()) if ends(vocab, t)}

    def seconds_per_token(self, prompt: list[int], n_tokens: int) -> float:
        """Time `Llama()` with top_k 40, top_p 0.9, temperature 0.7; the prompt counts too."""
        self._llama.reset()
        started = time.perf_counter()
        answer = self._llama(
            prompt, max_tokens=n_tokens, top_k=40, top_p=0.9, min_p=0.0, temperature=0.7,
            repeat_penalty=1.0, logit_bias=self._bias,
        )  # fmt: skip
        return (time.perf_counter() - started) / answer["usage"]["completion_tokens"]


def quantize(source: Path, target: Path) -> None:
    """Write `source` as Q4_K_M: llama_model_quantize is what our own binding lacks as yet."""
    params = raw.llama_model_quantize_default_params()
    params.ftype = raw.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if raw.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise RuntimeError(f"cannot quantize {source}")
