"""Where a context's time went: timings since the last reset, and hooks after each decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llcuda.native import library
from llcuda.native.model import Model
from llcuda.native.timings import DecodeEvent, Timings


class Reports:
    """The part of `Context` that tells of time."""

    model: Model
    hooks: list[Callable[[DecodeEvent], None]]
    _ffi: Any
    _lib: Any
    _handle: library.Handle

    def _call_hooks(self) -> None:
        owner = self._handle.owner
        self._lib.llcuda_context_sync(owner.pointer)
        event = self._ffi.new("struct llcuda_event *")
        self._lib.llcuda_context_event(owner.pointer, event)
        report = DecodeEvent(
            phase="decode" if event.decode else "prefill",
            rows=event.rows,
            outputs=event.outputs,
            seconds=event.ns * 1e-9,
        )
        for hook in list(self.hooks):
            hook(report)

    def synchronize(self) -> None:
        """Wait for what decode() began: a GPU computes behind it, the CPU is done already."""
        owner = self._handle.owner
        status = self._lib.llcuda_context_sync(owner.pointer)
        if status:
            library.check(status, lambda: "synchronize()")

    @property
    def timings(self) -> Timings:
        """Wall clock and counts of each phase since the last reset_timings()."""
        c, model = self._read_timings(reset=False), self.model
        return Timings(
            load_seconds=model.load_seconds,
            tokenize_seconds=model._tokenize_seconds,
            prefill_seconds=c.prefill_ns * 1e-9,
            decode_seconds=c.decode_ns * 1e-9,
            sample_seconds=c.sample_ns * 1e-9,
            detokenize_seconds=model._detokenize_seconds,
            tokenized_tokens=model._tokenized,
            prefill_tokens=c.prefill_tokens,
            decode_tokens=c.decode_tokens,
            sampled_tokens=c.sampled_tokens,
            detokenized_tokens=model._detokenized,
            prefill_calls=c.prefill_calls,
            decode_calls=c.decode_calls,
            graphs_reused=c.graphs_reused,
        )

    @property
    def llama_timings(self) -> dict[str, float]:
        """llama.cpp's own performance counters since then: milliseconds, tokens, reused graphs.

        n_p_eval and t_p_eval_ms count batches of several tokens, n_eval and t_eval_ms single ones.
        """
        c = self._read_timings(reset=False)
        return {
            "t_p_eval_ms": c.llama_prefill_ms,
            "t_eval_ms": c.llama_decode_ms,
            "n_p_eval": c.llama_prefill_tokens,
            "n_eval": c.llama_decode_tokens,
            "n_reused": c.graphs_reused,
        }

    def reset_timings(self) -> None:
        """Set this context's times and counts to 0; the model's stay."""
        self._read_timings(reset=True)

    def _read_timings(self, reset: bool) -> Any:
        owner = self._handle.owner
        timings = self._ffi.new("struct llcuda_timings *")
        status = self._lib.llcuda_context_timings(owner.pointer, timings, reset)
        library.check(status, lambda: "timings")
        return timings
