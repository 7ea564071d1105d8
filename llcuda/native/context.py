"""A context: the KV memory of one or more sequences, and the decode that fills it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from llcuda.errors import (
    ArgumentError,
    BatchError,
    ContextError,
    LlcudaError,
    UnsupportedError,
)
from llcuda.keywords import ContextKeywords, given_params
from llcuda.native import callbacks, library
from llcuda.native.adapter import Adapter
from llcuda.native.kv_size import check_kv_size
from llcuda.native.memory import Memory
from llcuda.native.model import Model
from llcuda.native.outputs import Float32, Outputs
from llcuda.native.reports import Reports
from llcuda.native.timings import DecodeEvent
from llcuda.params import POOLINGS, ContextParams, check_number, default_threads

SMALL_MODEL = 32 * 2**20  # bytes; below, threads wait for each other longer than they compute
_OUTPUTS = {"none": 0, "last": 1, "all": 2}
_SMALLEST_CTX = 256  # llama.cpp rounds a sequence's cells up to this


class Context(Outputs, Reports):
    """Computes logits of texts with `model`, and remembers the texts.

    parameters: the fields of ContextParams, or `params=` with one.
    hooks: functions called after each decode with a DecodeEvent; without any, no cost.
    ctx_size: tokens of one sequence; cells: KV cells of all.
    pooling: the one in use. remembers: whether a text can be continued, as by all but encoders.
    whole_texts: whether a text cannot be split over several decodes, because its tokens see those
        after them.

    Belongs to one thread at a time (ConcurrencyError). Raises ContextError when llama.cpp
    cannot make it, with the reason from its log.
    """

    def __init__(
        self,
        model: Model,
        *,
        params: ContextParams | None = None,
        **parameters: Unpack[ContextKeywords],
    ) -> None:
        self.params = given_params(ContextParams, params, parameters)
        self.model = model
        self.hooks: list[Callable[[DecodeEvent], None]] = []
        self._ffi, self._lib = library.load()
        if not isinstance(model, Model):
            raise ArgumentError(f"model={model!r}: expected a Model", parameter="model")
        owner = model._handle.owner
        if model.params.vocab_only:
            raise ContextError("this model was loaded with vocab_only=True and has no weights")
        library.sync_log_level(self._lib)
        c_params = self._c_params()
        p = self.params
        check_kv_size(model, c_params.n_ctx, p.type_k, p.type_v, p.swa_full)
        if not model._probed:
            with callbacks.repeats_unsaid():
                status = self._lib.llcuda_probe(owner.pointer, c_params)
            if status:
                library.fail(ContextError, f"{model.path} contradicts itself")
            model._probed = True
        pointer = self._lib.llcuda_context_new(
            owner.pointer, c_params, model._positions, p.device_logits
        )
        if pointer == self._ffi.NULL:
            library.fail(ContextError, f"cannot create a context with {self.params}")
        free = self._lib.llcuda_context_free
        self._handle = library.Handle("context", pointer, free, owner, model._handle)
        raw = self._lib.llcuda_context_raw(pointer)
        # With unified KV llama.cpp lets one sequence take every cell.
        self.cells: int = self._lib.llama_n_ctx(raw)
        # llama.cpp rounds up; what was asked for is what a text may have.
        self.ctx_size: int = self.params.ctx_size or self.cells // self.params.sequences
        pooling = self._lib.llama_pooling_type(raw)
        poolings = {getattr(self._lib, f"LLAMA_POOLING_TYPE_{p.upper()}"): p for p in POOLINGS}
        self.pooling: str = poolings.get(pooling, "unknown")
        self.remembers: bool = self._lib.llcuda_context_remembers(pointer)
        self.whole_texts: bool = self._lib.llcuda_context_whole(pointer)
        self.memory = Memory(self)
        self._row = self._ffi.new("float **")
        self._adapters: list[Adapter] = []

    def _c_params(self) -> Any:
        lib, p = self._lib, self.params
        c = lib.llama_context_default_params()
        per_sequence = p.ctx_size or min(self.model.train_ctx_size or 4096, 4096)
        c.n_ctx = min(max(per_sequence * p.sequences, _SMALLEST_CTX), 2**31 - 1)
        c.n_seq_max = p.sequences
        c.n_batch = p.batch_size
        c.n_ubatch = min(p.ubatch_size, p.batch_size)
        c.n_outputs_max = min(p.outputs_max, p.batch_size)
        c.kv_unified = p.unified_kv
        small = self.model.size < SMALL_MODEL
        c.n_threads = p.threads or (1 if small else default_threads())
        c.n_threads_batch = p.threads_batch or c.n_threads
        flash = {None: "AUTO", True: "ENABLED", False: "DISABLED"}[p.flash_attention]
        c.flash_attn_type = getattr(lib, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
        c.type_k = getattr(lib, f"GGML_TYPE_{p.type_k.upper()}")
        c.type_v = getattr(lib, f"GGML_TYPE_{p.type_v.upper()}")
        for field, prefix in (
            ("rope_scaling", "LLAMA_ROPE_SCALING_TYPE_"),
            ("pooling", "LLAMA_POOLING_TYPE_"),
            ("attention", "LLAMA_ATTENTION_TYPE_"),
        ):
            if (choice := getattr(p, field)) is not None:
                setattr(c, f"{field}_type", getattr(lib, prefix + choice.upper()))
        for field in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor",
                      "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx"):  # fmt: skip
            if (value := getattr(p, field)) is not None:
                setattr(c, field, value)
        c.embeddings = p.embeddings
        c.swa_full = p.swa_full
        c.offload_kqv = p.offload_kqv
        c.op_offload = p.op_offload
        c.no_perf = False
        return c

    # --- decode ---

    def decode(
        self,
        tokens: Sequence[int] | npt.NDArray[np.int32],
        seq: int = 0,
        pos: int | None = None,
        logits: str = "last",
    ) -> None:
        """Compute `tokens` as the continuation of sequence `seq`.

        pos: position of the first; None = after the last one that the sequence holds.
        logits: for which tokens to keep them: "last", "all" or "none".
        More tokens than batch_size are split; should a part fail, the others are undone.

        Raises BatchError (tokens, sequence or position that do not fit; too many tokens for
        logits="all"), NoRoomError (KV cache full), DecodeError, KeyboardInterrupt (Ctrl-C).
        """
        owner = self._handle.owner
        try:
            if pos is None:
                place = -1
            elif (place := pos) < 0:
                raise BatchError(f"pos={pos}: expected at least 0", parameter="pos")
            status = self._lib.llcuda_decode(
                owner.pointer, tokens, len(tokens), seq, place, _OUTPUTS[logits]
            )
        except (TypeError, OverflowError, KeyError):
            return self._decode_converted(tokens, seq, pos, logits)
        if status:
            self._decode_failed(status, len(tokens), seq, pos, logits)
        if self.hooks:
            self._call_hooks()
        return None

    def decode_batch(
        self,
        tokens: Sequence[int],
        seqs: Sequence[int],
        positions: Sequence[int] | None = None,
        logits: Sequence[bool] | None = None,
    ) -> None:
        """Compute one token of each of several sequences, or more, in one batch.

        tokens, seqs, positions, logits: one entry a row; positions None = each sequence goes on
        where it ends; logits None = for every row. At most batch_size rows.
        Raises as `decode`.
        """
        owner = self._handle.owner
        try:
            tokens, seqs = _as_list(tokens), _as_list(seqs)
            n = len(tokens)
            places = [-1] * n if positions is None else _as_list(positions)
            flags = [1] * n if logits is None else [bool(flag) for flag in logits]
            if not n == len(seqs) == len(places) == len(flags):
                raise BatchError(
                    f"{n} tokens, {len(seqs)} sequences, {len(places)} positions, "
                    f"{len(flags)} logits"
                )
            if positions is not None and n and min(places) < 0:
                raise BatchError(f"positions must be at least 0, not {min(places)}")
            status = self._lib.llcuda_decode_rows(owner.pointer, n, tokens, seqs, places, flags)
        except (TypeError, OverflowError) as error:
            raise BatchError(f"rows must be whole numbers: {error}") from None
        if status:
            library.check(status, lambda: f"{n} rows, {self._limits()}")
        if self.hooks:
            self._call_hooks()

    def encode(self, tokens: Sequence[int]) -> None:
        """Run the encoder of an encoder-decoder model over a whole input."""
        owner = self._handle.owner
        if not self.model.has_encoder:
            raise UnsupportedError("this model has no encoder; use decode()")
        try:
            status = self._lib.llcuda_encode(owner.pointer, list(tokens), len(tokens))
        except (TypeError, OverflowError) as error:
            raise BatchError(f"tokens must be whole numbers: {error}") from None
        library.check(status, lambda: f"{len(tokens)} tokens, {self._limits()}")

    def _decode_converted(self, tokens: Any, seq: int, pos: int | None, logits: str) -> None:
        """Decode what is no list: an array, any iterable; or say what is wrong with it."""
        if logits not in _OUTPUTS:
            raise ArgumentError(
                f"logits={logits!r}: expected 'last', 'all' or 'none'", parameter="logits"
            )
        if not _is_int32(seq) or (pos is not None and not _is_int32(pos)):
            raise BatchError(
                f"seq={seq!r}, pos={pos!r}: expected whole numbers below 2**31", parameter="seq"
            )
        array = np.asarray(None)
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if not isinstance(tokens, str | bytes | bytearray):  # a text, by mistake
                array = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
        if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
            raise BatchError(
                f"tokens={tokens!r}: expected whole numbers in one dimension", parameter="tokens"
            )
        if len(array) and not 0 <= array.min() <= array.max() < self.model.vocab_size:
            raise BatchError(
                f"tokens from {array.min()} to {array.max()}: "
                f"expected 0 to {self.model.vocab_size - 1}"
            )
        self.decode(array.tolist(), seq, pos, logits)

    def _decode_failed(
        self, status: int, n_tokens: int, seq: int, pos: int | None, logits: str
    ) -> None:
        def message() -> str:
            held = ""
            with contextlib.suppress(LlcudaError):  # an encoder remembers nothing
                held = f" (it holds {self.n_past(seq)})"
            asked = f"{n_tokens} tokens, seq={seq}{held}, pos={pos}, logits={logits!r}"
            return f"{asked}; {self._limits()}"

        library.check(status, message)

    def _limits(self) -> str:
        p = self.params
        return (
            f"allowed are tokens 0 to {self.model.vocab_size - 1}, sequences 0 to "
            f"{p.sequences - 1}, {self.cells} KV cells, batch_size={p.batch_size}, "
            f"outputs_max={p.outputs_max or p.batch_size}"
        )

    def cancel(self) -> None:
        """Abort the decode that runs in another thread (on a GPU: after its micro-batch)."""
        self._lib.llcuda_context_cancel(self._handle.owner.pointer)

    def score(self, tokens: Sequence[int], seq: int = 0) -> Float32:
        """Return log p(tokens[k] | tokens[:k]) for k = 1 ..., float32, shape (len(tokens) - 1,).

        Decodes `tokens` as the continuation of `seq` (the perplexity of a text is
        exp(-mean)). At most batch_size tokens at a time, so any length that fits the context;
        should a part fail, the others are undone.
        """
        begun = self.n_past(seq)
        try:
            return self._score(tokens, seq)
        except LlcudaError:
            with contextlib.suppress(LlcudaError):
                self.memory.remove(seq, begun)
            raise

    def _score(self, tokens: Sequence[int], seq: int) -> Float32:
        step = min(self.params.batch_size, self.params.outputs_max or self.params.batch_size)
        scores = np.empty(max(len(tokens) - 1, 0), dtype=np.float32)
        for begin in range(0, len(tokens), step):
            part = tokens[begin : begin + step]
            self.decode(part, seq, logits="all")
            following = tokens[begin + 1 : begin + 1 + len(part)]
            found = self.logprobs(following, range(len(following)))
            scores[begin : begin + len(found)] = [value for value, _ in found]
        return scores

    # --- the rest ---

    def n_past(self, seq: int = 0) -> int:
        """Return the position that the next token of `seq` gets."""
        return self.memory.range(seq).stop

    def save_state(self, path: Any = None, seq: int | None = None) -> bytes:
        """Return the state of `seq` (None = the whole context), and write it to `path` if given."""
        return _write(path, self.memory.save(seq))

    def load_state(self, state: Any, seq: int | None = None) -> None:
        """Restore what save_state returned, or the file at the path that it wrote.

        Raises StateError; see `Memory.load`.
        """
        self.memory.load(_read(state), seq)

    def set_adapters(self, adapters: Mapping[Adapter, float]) -> None:
        """Apply these LoRA adapters with these scales from the next decode on, and no others."""
        if not isinstance(adapters, Mapping):
            raise ArgumentError(
                f"adapters={adapters!r}: expected adapter -> scale", parameter="adapters"
            )
        chosen = list(adapters)
        for adapter in chosen:
            if not isinstance(adapter, Adapter):
                raise ArgumentError(f"{adapter!r} is no Adapter")
            if adapter._owner is not self.model._handle.owner:
                raise ArgumentError(f"the adapter {adapter.path} was loaded for another model")
        scales = list(adapters.values())
        for scale in scales:
            check_number("scale", scale, "number", -1e6, 1e6)
        owner = self._handle.owner
        pointers = [adapter._pointer for adapter in chosen]
        status = self._lib.llcuda_set_adapters(owner.pointer, pointers, scales, len(chosen))
        library.check(status, lambda: f"set_adapters with {len(chosen)} adapters")
        self._adapters = chosen

    def set_embeddings(self, on: bool) -> None:
        """Compute embeddings from the next decode on, of every token, or no longer.

        Only for a context that was made with embeddings=True. A text's first part needs none: then
        its tokens cost neither a row of output nor one of logits.
        """
        if not self.params.embeddings:
            raise ArgumentError("set_embeddings() is for a context made with embeddings=True")
        owner = self._handle.owner
        status = self._lib.llcuda_set_embeddings(owner.pointer, bool(on))
        library.check(status, lambda: f"set_embeddings({on})")

    def set_threads(self, threads: int, threads_batch: int | None = None) -> None:
        """Use this many processors for single tokens, and for prompts (None = as many)."""
        check_number("threads", threads, "int", 1, 512)
        ContextParams(threads_batch=threads_batch)  # checks
        owner = self._handle.owner
        status = self._lib.llcuda_set_threads(owner.pointer, threads, threads_batch or threads)
        library.check(status, lambda: f"set_threads({threads})")

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._handle.closed

    def close(self) -> None:
        """Free the memory; again does nothing. ConcurrencyError while another thread is inside."""
        if self._handle.closed:
            return
        owner = self._handle.held
        status = self._lib.llcuda_context_close(owner.pointer)
        library.check(status, lambda: "close()")
        self._handle.close()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.params.sequences} x {self.ctx_size} tokens"
        return f"<llcuda.Context on {self.model.path.name!r}: {state}>"


def _as_list(row: Any) -> Any:
    """What C takes as it is; an array as a list."""
    return row.tolist() if isinstance(row, np.ndarray) else row


def _is_int32(value: Any) -> bool:
    return isinstance(value, int | np.integer) and bool(-(2**31) <= value < 2**31)


def _write(path: Any, state: bytes) -> bytes:
    if path is not None:
        with open(path, "wb") as file:  # noqa: PTH123 - takes file descriptors and PathLike too
            file.write(state)
    return state


def _read(state: Any) -> bytes:
    if isinstance(state, bytes | bytearray | memoryview):
        return bytes(state)
    with open(state, "rb") as file:  # noqa: PTH123
        return file.read()
