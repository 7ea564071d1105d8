"""A context: the KV cache of one or more sequences, the decode that fills it, its results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from llcuda._pickling import stays_in_process
from llcuda.errors import (
    ArgumentError,
    BatchError,
    ContextError,
    LlcudaError,
    UnsupportedError,
    shown,
)
from llcuda.files import atomic_write, local_path, read_bytes
from llcuda.keywords import ContextKeywords, given_params
from llcuda.native import library
from llcuda.native.adapter import Adapter
from llcuda.native.c_params import context_params
from llcuda.native.kv_size import check_kv_size
from llcuda.native.memory import Memory
from llcuda.native.model import Model, check_model
from llcuda.native.timings import CudaGraphs, DecodeEvent, Timings
from llcuda.params import POOLINGS, ContextParams, check_number, wrong_argument, wrong_value

Float32 = npt.NDArray[np.float32]

_OUTPUTS = {"none": 0, "last": 1, "all": 2}


@stays_in_process("the path of its model and its params")
class Context:
    """Computes logits of sequences with a model, and remembers the sequences.

    A context belongs to one thread at a time. Use it as a context manager, or call `close`.

    Args:
        model: The model.
        params: The parameters as one object.
        **parameters: The fields of `ContextParams`, in place of `params`.

    Attributes:
        model (Model): The model.
        params (ContextParams): The parameters in use.
        hooks (list[Callable[[DecodeEvent], None]]): Functions that are called after each decode.
            They make the decode wait for the device; without any it does not.
        memory (Memory): The KV cache.
        ctx_size (int): Tokens that each sequence can hold.
        cells (int): KV cells of all sequences together.
        pooling (str): The pooling in use: "none", "mean", "cls", "last" or "rank".
        remembers (bool): Whether a sequence can be continued; not with encoders.
        whole_texts (bool): Whether a text cannot be split over several decodes, because its tokens
            see the tokens after them.

    Raises:
        ContextError: llama.cpp cannot create the context; the message has its reason.
        OutOfMemoryError: There is too little memory.
        ArgumentError: A parameter is not allowed.
        ConcurrencyError: From every method, while another thread is inside the context.
    """

    def __init__(
        self,
        model: Model,
        *,
        params: ContextParams | None = None,
        **parameters: Unpack[ContextKeywords],
    ) -> None:
        self.params = given_params(ContextParams, params, parameters, Context)
        self.model = model
        self.hooks: list[Callable[[DecodeEvent], None]] = []
        self._ffi, self._lib = library.load()
        check_model(model)
        if model.params.vocab_only:
            raise ContextError(
                "model: it was loaded with vocab_only=True and has no weights",
                parameter="model",
                remedy="load it without vocab_only",
            )
        library.sync_log_level(self._lib)
        model.check_file()
        c_params, p = self.c_params(), self.params
        check_kv_size(model, c_params.n_ctx, p.type_k, p.type_v, p.swa_full)
        model.probe(c_params)
        owner = model.handle.owner
        pointer = self._lib.llcuda_context_new(
            owner.pointer, c_params, model.max_positions, p.device_logits
        )
        if pointer == self._ffi.NULL:
            del owner  # or the error's traceback would keep the weights
            library.fail(ContextError, f"cannot create a context with {p}")
        free = self._lib.llcuda_context_free
        # For the rest of llcuda.native.
        self.handle = library.Handle("context", pointer, free, owner, model.handle)
        if p.batch_invariant:
            self._compute_row_by_row(pointer)
        if p.cuda_graphs != "auto":
            self._lib.llcuda_context_set_graphs(pointer, p.cuda_graphs.encode())
        raw = self._lib.llcuda_context_raw(pointer)
        # With unified KV llama.cpp lets one sequence take every cell.
        self.cells: int = self._lib.llama_n_ctx(raw)
        # llama.cpp rounds up; a sequence may have what was asked for.
        self.ctx_size: int = p.ctx_size or self.cells // p.sequences
        pooling = self._lib.llama_pooling_type(raw)
        poolings = {getattr(self._lib, f"LLAMA_POOLING_TYPE_{p.upper()}"): p for p in POOLINGS}
        self.pooling: str = poolings.get(pooling, "unknown")
        self.remembers: bool = self._lib.llcuda_context_remembers(pointer)
        self.whole_texts: bool = self._lib.llcuda_context_whole(pointer)
        self.memory = Memory(self.handle, model, p, self.cells)
        self._adapters: dict[Adapter, float] = {}
        self._threads: tuple[int, int] | None = None
        # Equal for equal adapters and scales; for the engine, whose cells depend on them.
        self.adapter_key: object = frozenset()

    def _compute_row_by_row(self, pointer: Any) -> None:
        """Make a new context batch-invariant; raise UnsupportedError where it cannot be."""
        status = self._lib.llcuda_context_batch_invariant(pointer)
        if not status:
            return
        self.handle.close()
        if any(device.kind != "cpu" for device in library.devices()):
            rule, remedy = (
                "a GPU takes part, whose kernels depend on the batch",
                "load it with devices=()",
            )
        else:
            rule, remedy = (
                "this build, or this processor's AMX, has no such kernels",
                "leave it out",
            )
        problem = f"batch_invariant=True: {rule}"
        raise UnsupportedError(problem, parameter="batch_invariant", remedy=remedy)

    def c_params(self) -> Any:
        """Return the parameters as llama_context_params, for the rest of llcuda.native."""
        return context_params(self.params, self.model.train_ctx_size, self.model.size)

    # --- decode ---

    def decode(
        self,
        tokens: Sequence[int] | npt.NDArray[np.int32],
        seq: int = 0,
        pos: int | None = None,
        logits: str = "last",
    ) -> None:
        """Compute tokens as the continuation of a sequence.

        More tokens than batch_size are split; if a part fails, the parts before it are undone.

        Args:
            tokens: The tokens.
            seq: The sequence.
            pos: The position of the first token; None is the one after the last that the
                sequence holds.
            logits: The tokens whose logits are computed: "last", "all" or "none".

        Raises:
            BatchError: Tokens, sequence or position do not fit, or logits="all" of more tokens
                than outputs_max or batch_size.
            NoRoomError: The KV cache is full; nothing was changed.
            DecodeError: llama.cpp failed.
            KeyboardInterrupt: Ctrl-C ended the decode.
        """
        owner = self.handle.owner
        try:
            if pos is None:
                start = -1
            elif (start := pos) < 0:
                raise BatchError(f"pos={pos}: expected at least 0", parameter="pos")
            status = self._lib.llcuda_decode(
                owner.pointer, tokens, len(tokens), seq, start, _OUTPUTS[logits]
            )
        except BatchError:
            raise
        except (TypeError, ValueError, OverflowError, KeyError):
            return self._decode_converted(tokens, seq, pos, logits)
        if status:
            self._raise_decode_error(status, tokens, seq, pos, logits)
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
        """Compute rows of several sequences in one batch.

        Args:
            tokens: The token of each row, at most batch_size.
            seqs: The sequence of each row.
            positions: The position of each row; None continues each sequence where it ends.
            logits: Whether the logits of each row are computed; None computes all.

        Raises:
            BatchError: As `decode`, or the arguments differ in length.
            NoRoomError: The KV cache is full; nothing was changed.
            DecodeError: llama.cpp failed.
            KeyboardInterrupt: Ctrl-C ended the decode.
        """
        owner = self.handle.owner
        try:
            tokens, seqs = _as_list(tokens), _as_list(seqs)
            n = len(tokens)
            starts = [-1] * n if positions is None else _as_list(positions)
            flags = [1] * n if logits is None else [bool(flag) for flag in logits]
            if not n == len(seqs) == len(starts) == len(flags):
                raise BatchError(
                    f"{n} tokens, {len(seqs)} seqs, {len(starts)} positions, {len(flags)} logits: "
                    "expected as many of each",
                    remedy="give one of each for every row",
                )
            if positions is not None and n and min(starts) < 0:
                problem = f"positions: {min(starts)} is below 0, expected at least 0"
                raise BatchError(problem, parameter="positions")
            status = self._lib.llcuda_decode_rows(owner.pointer, n, tokens, seqs, starts, flags)
        except BatchError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            problem = f"tokens, seqs and positions: expected whole numbers: {error}"
            raise BatchError(problem, parameter="tokens") from None
        if status:
            self._check_rows(tokens, seqs)
            library.check(status, lambda: f"{n} rows, {self._limits()}")
        if self.hooks:
            self._call_hooks()

    def encode(self, tokens: Sequence[int]) -> None:
        """Run the encoder of an encoder-decoder model.

        Args:
            tokens: The whole input.

        Raises:
            UnsupportedError: The model has no encoder.
            BatchError: The tokens do not fit.
            DecodeError: llama.cpp failed.
        """
        owner = self.handle.owner
        if not self.model.has_encoder:
            raise UnsupportedError("this model has no encoder", remedy="use decode()")
        try:
            status = self._lib.llcuda_encode(owner.pointer, list(tokens), len(tokens))
        except (TypeError, OverflowError) as error:
            problem = f"tokens: expected whole numbers: {error}"
            raise BatchError(problem, parameter="tokens") from None
        if status:
            self._check_rows(tokens, ())
        library.check(status, lambda: f"{len(tokens)} tokens, {self._limits()}")

    def _decode_converted(self, tokens: Any, seq: int, pos: int | None, logits: str) -> None:
        """Decode an array or another iterable, or raise what is wrong with the arguments."""
        if logits not in _OUTPUTS:
            raise wrong_value("logits", logits, "expected 'last', 'all' or 'none'")
        if not _is_int32(seq) or (pos is not None and not _is_int32(pos)):
            problem = f"seq={shown(seq)}, pos={shown(pos)}: expected whole numbers below 2**31"
            raise BatchError(problem, parameter="seq")
        array = np.asarray(None)
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if not isinstance(tokens, str | bytes | bytearray):  # a text, by mistake
                array = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
        if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
            problem = f"tokens={shown(tokens)}: expected whole numbers in one dimension"
            raise BatchError(problem, parameter="tokens")
        self._check_rows(array.tolist(), ())
        self.decode(array.tolist(), seq, pos, logits)

    def _raise_decode_error(
        self,
        status: int,
        tokens: Sequence[int] | npt.NDArray[np.int32],
        seq: int,
        pos: int | None,
        logits: str,
    ) -> None:
        self._check_rows(tokens, [seq])

        def message() -> str:
            held = ""
            with contextlib.suppress(LlcudaError):  # an encoder remembers nothing
                held = f" (it holds {self.n_past(seq)})"
            call = f"{len(tokens)} tokens, seq={seq}{held}, pos={pos}, logits={logits!r}"
            return f"{call}; {self._limits()}"

        library.check(status, message)

    def _check_rows(
        self, tokens: Sequence[int] | npt.NDArray[np.int32], seqs: Sequence[int]
    ) -> None:
        """Raise BatchError for tokens or sequences that this context does not have."""
        vocab_size, sequences = self.model.vocab_size, self.params.sequences
        if not len(tokens):
            problem = "tokens=[]: expected at least one token"
            raise BatchError(problem, parameter="tokens", remedy="decode a token first, e.g. BOS")
        for token in tokens:
            if not 0 <= token < vocab_size:
                problem = f"tokens: token {token} is not one of the model's 0 to {vocab_size - 1}"
                remedy = "use the tokens that tokenize() of this model returns"
                raise BatchError(problem, parameter="tokens", remedy=remedy)
        for seq in seqs:
            if not 0 <= seq < sequences:
                problem = f"seq={seq}: expected 0 to {sequences - 1}"
                remedy = "create the context with a larger sequences="
                raise BatchError(problem, parameter="seq", remedy=remedy)

    def _limits(self) -> str:
        p = self.params
        return (
            f"allowed are tokens 0 to {self.model.vocab_size - 1}, sequences 0 to "
            f"{p.sequences - 1}, {self.cells} KV cells, batch_size={p.batch_size}, "
            f"outputs_max={p.outputs_max or p.batch_size}"
        )

    def claim(self) -> None:
        """Let the calling thread wait while another one is inside; for the thread of an engine.

        Other threads still get ConcurrencyError.
        """
        owner = self.handle.owner
        self._lib.llcuda_context_claim(owner.pointer)

    def cancel(self) -> None:
        """Abort the decode that runs in another thread; a GPU finishes its micro-batch first."""
        owner = self.handle.owner
        self._lib.llcuda_context_cancel(owner.pointer)

    def synchronize(self) -> None:
        """Wait until the device has computed the last decode."""
        owner = self.handle.owner
        status = self._lib.llcuda_context_sync(owner.pointer)
        if status:
            library.check(status, lambda: "synchronize()")

    @property
    def samples_on_device(self) -> bool:
        """Whether sampling begins on the device that computed the logits.

        It needs device_logits=True and a device that can; known after the first decode.
        """
        owner = self.handle.owner
        return bool(self._lib.llcuda_context_reduces(owner.pointer))

    # --- results of the last decode ---

    def logits(self, i: int = -1) -> Float32:
        """Return the logits of one token of the last decode.

        Args:
            i: The index of the token in that call; a negative index counts the computed rows from
                the last one.

        Returns:
            A float32 array of shape (vocab_size,), which keeps its values. Until the next decode or
            state load every call returns the same memory, and samplers and log-probabilities see
            what is written into it; later writes change the array alone.

        Raises:
            NoOutputError: No logits were computed for the token.
        """
        return self._output("logits", i, self.model.vocab_size)

    def embeddings(self, i: int = -1) -> Float32:
        """Return the embedding of one token of the last decode.

        Args:
            i: The index of the token, as in `logits`.

        Returns:
            A float32 array of shape (embedding_size,), which keeps its values.

        Raises:
            NoOutputError: No embedding was computed; it needs embeddings=True.
        """
        return self._output("embeddings", i, self.model.embedding_size)

    def sequence_embedding(self, seq: int = 0) -> Float32:
        """Return the pooled embedding of a sequence, or the scores of a reranker.

        Args:
            seq: The sequence.

        Returns:
            A float32 array of shape (embedding_size,), or (classes,) with pooling="rank", which
            keeps its values.

        Raises:
            NoOutputError: No embedding was computed; it needs embeddings=True and a pooling.
        """
        owner = self.model.handle.owner
        is_rank = self.pooling == "rank"
        classes = self._lib.llama_model_n_cls_out
        size = classes(owner.pointer) if is_rank else self.model.embedding_size
        return self._output("embeddings_seq", seq, size)

    def _output(self, name: str, i: int, size: int) -> Float32:
        owner = self.handle.owner
        row = self._ffi.new("float **")
        try:
            status = getattr(self._lib, f"llcuda_{name}")(owner.pointer, i, row)
        except (TypeError, OverflowError):
            parameter = "seq" if name == "embeddings_seq" else "i"
            raise wrong_value(parameter, i, "expected a whole number") from None
        if status:
            library.check(status, lambda: f"{name} at {i}; {self.describe_outputs()}")
        values = self._ffi.gc(row[0], self._lib.llcuda_row_release, 4 * size)
        return np.frombuffer(self._ffi.buffer(values, 4 * size), np.float32)

    def output_indices(self) -> list[int]:
        """Return the indices, in the last decode call, of the tokens that have logits."""
        owner = self.handle.owner
        capacity = 8
        while True:
            indices = self._ffi.new("int32_t[]", capacity)
            count = self._lib.llcuda_output_indices(owner.pointer, indices, capacity)
            library.check(min(count, 0), lambda: "output_indices()")
            if count <= capacity:
                return list(self._ffi.unpack(indices, count)) if count else []
            capacity = count

    def describe_outputs(self) -> str:
        """Return which tokens have logits, for the errors of llcuda.native."""
        return f"the last decode has outputs for tokens {_shortened(self.output_indices())}"

    def logprobs(
        self, tokens: Sequence[int], indices: Sequence[int], n: int = 0
    ) -> list[tuple[float, list[tuple[int, float]]]]:
        """Return log-probabilities at several rows of the last decode.

        Args:
            tokens: The token to look up at each row.
            indices: The index of each row, as in `logits`.
            n: How many of the most probable tokens to return for each row.

        Returns:
            For each row the natural logarithm of the token's probability, and the n most probable
            tokens with theirs, best first, of equals the lower token. NaN where the logits are NaN.

        Raises:
            NoOutputError: No logits were computed for a row.
            ArgumentError: A token is outside the vocabulary, or the lengths differ.
        """
        owner = self.handle.owner
        check_number("n", n, "int", 0)
        n = min(int(n), self.model.vocab_size)
        ffi = self._ffi
        try:
            tokens, indices = list(tokens), list(indices)
            for token in tokens:
                self.model.check_token(token, "tokens")
            if (rows := len(tokens)) != len(indices):
                problem = f"{rows} tokens, {len(indices)} indices: expected as many of each"
                raise ArgumentError(problem, parameter="indices")
            values, top_values = ffi.new("double[]", rows), ffi.new("double[]", rows * n)
            top_tokens = ffi.new("int32_t[]", rows * n)
            status = self._lib.llcuda_logprobs(
                owner.pointer, rows, indices, tokens, n, values, top_tokens, top_values
            )
        except (TypeError, OverflowError) as error:
            problem = f"tokens and indices: expected whole numbers: {error}"
            raise ArgumentError(problem, parameter="tokens") from None
        if status:
            library.check(
                status, lambda: f"logits at {_shortened(indices)}; {self.describe_outputs()}"
            )
        pairs = zip(ffi.unpack(top_tokens, rows * n), ffi.unpack(top_values, rows * n), strict=True)
        top = list(pairs)
        return [(value, top[i * n : i * n + n]) for i, value in enumerate(ffi.unpack(values, rows))]

    def top_logprobs(self, n: int, i: int = -1) -> list[tuple[int, float]]:
        """Return the most probable tokens with their log-probabilities, best first.

        Args:
            n: How many tokens to return.
            i: The index of the row, as in `logits`.
        """
        return self.logprobs([0], [i], n)[0][1]

    def logprob(self, token: int, i: int = -1) -> float:
        """Return the log-probability of a token.

        Args:
            token: The token.
            i: The index of the row, as in `logits`.
        """
        return self.logprobs([token], [i])[0][0]

    def score(self, tokens: Sequence[int], seq: int = 0) -> Float32:
        """Decode a text and return how probable the model finds it.

        Decodes the tokens as the continuation of a sequence, at most batch_size at a time; if a
        part fails, the parts before it are undone. The perplexity is exp(-mean(scores)).

        Args:
            tokens: The tokens of the text.
            seq: The sequence.

        Returns:
            log p(tokens[k] | tokens[:k]) for k = 1 ..., float32, shape (len(tokens) - 1,).

        Raises:
            LlcudaError: As `decode`.
        """
        start = self.n_past(seq)
        tokens = list(_as_list(tokens))
        try:
            return self._score(tokens, seq)
        except LlcudaError:
            with contextlib.suppress(LlcudaError):
                self.memory.remove(seq, start)
            raise

    def _score(self, tokens: Sequence[int], seq: int) -> Float32:
        step = min(self.params.batch_size, self.params.outputs_max or self.params.batch_size)
        scores = np.empty(max(len(tokens) - 1, 0), dtype=np.float32)
        for begin in range(0, len(tokens), step):
            part = tokens[begin : begin + step]
            self.decode(part, seq, logits="all")
            following = tokens[begin + 1 : begin + 1 + len(part)]
            logprobs = self.logprobs(following, range(len(following)))
            scores[begin : begin + len(logprobs)] = [value for value, _ in logprobs]
        return scores

    # --- state ---

    def n_past(self, seq: int = 0) -> int:
        """Return the position of the next token of a sequence.

        Args:
            seq: The sequence.
        """
        return self.memory.range(seq).stop

    def save_state(self, path: Any = None, seq: int | None = None) -> bytes:
        """Return the state of a sequence, or of the whole context, and write it to a file.

        Args:
            path: The file, which appears when it is complete and replaces one of the same name;
                None writes none.
            seq: The sequence; None saves the whole context.

        Returns:
            The state, as `Memory.save` returns it.

        Raises:
            FileWriteError: The file cannot be written; one of the same name is as it was before.
        """
        state = self.memory.save(seq)
        if path is not None:
            with atomic_write(Path(local_path(path))) as partial:
                partial.write_bytes(state)
        return state

    def load_state(self, state: Any, seq: int | None = None) -> None:
        """Restore what `save_state` returned or wrote.

        Args:
            state: The bytes, or the path of the file.
            seq: The sequence to restore; None restores the whole context.

        Raises:
            ModelNotFoundError: There is no such file.
            StateError: The state does not fit, as in `Memory.load`.
        """
        if not isinstance(state, bytes | bytearray | memoryview):
            state = read_bytes(local_path(state, "state"))
        self.memory.load(bytes(state), seq)

    # --- settings ---

    def set_adapters(self, adapters: Mapping[Adapter, float]) -> None:
        """Apply LoRA adapters from the next decode on, in place of those before.

        Args:
            adapters: The scale of each adapter.

        Raises:
            ArgumentError: An adapter was loaded for another model, or a scale is not a number.
        """
        if not isinstance(adapters, Mapping):
            raise wrong_value("adapters", adapters, "expected a mapping of Adapter to scale")
        adapters = dict(adapters)
        for adapter in adapters:
            if not isinstance(adapter, Adapter):
                raise wrong_argument("adapters", f"{shown(adapter)} is not an Adapter")
        pointers = [adapter.pointer_for(self.model) for adapter in adapters]
        scales = list(adapters.values())
        for scale in scales:
            check_number("scale", scale, "number", -1e6, 1e6)
        owner = self.handle.owner
        self.adapter_key = object()  # another thread may decode before the call returns
        status = self._lib.llcuda_set_adapters(owner.pointer, pointers, scales, len(pointers))
        library.check(status, lambda: f"set_adapters with {len(pointers)} adapters")
        self._adapters = adapters
        self.adapter_key = frozenset((a, s) for a, s in adapters.items() if s)

    def set_embeddings(self, on: bool) -> None:
        """Turn the embeddings of every token on or off, from the next decode on.

        Only the last token of a text needs them: without, the tokens before it cost no row of
        output.

        Args:
            on: Whether embeddings are computed.

        Raises:
            ArgumentError: The context was created without embeddings=True.
        """
        if not self.params.embeddings:
            raise wrong_value(
                "on", on, "this context has no embeddings", "create it with embeddings=True"
            )
        owner = self.handle.owner
        status = self._lib.llcuda_set_embeddings(owner.pointer, bool(on))
        library.check(status, lambda: f"set_embeddings({on})")

    def set_threads(self, threads: int, threads_batch: int | None = None) -> None:
        """Set how many processors compute.

        Args:
            threads: Processors for single tokens.
            threads_batch: Processors for prompts; None is as many.

        Raises:
            ArgumentError: A number is outside 1 to 512.
        """
        check_number("threads", threads, "int", 1, 512)
        ContextParams(threads_batch=threads_batch)  # checks
        owner = self.handle.owner
        numbers = threads, threads_batch or threads
        status = self._lib.llcuda_set_threads(owner.pointer, *numbers)
        library.check(status, lambda: f"set_threads({threads})")
        self._threads = numbers

    # --- time ---

    @property
    def timings(self) -> Timings:
        """Wall clock and counts of each phase since the last `reset_timings`."""
        c, model = self._read_timings(reset=False), self.model
        return Timings(
            load_seconds=model.load_seconds,
            tokenize_seconds=model.tokenizer_timings.tokenize_seconds,
            prefill_seconds=c.prefill_ns * 1e-9,
            decode_seconds=c.decode_ns * 1e-9,
            sample_seconds=c.sample_ns * 1e-9,
            detokenize_seconds=model.tokenizer_timings.detokenize_seconds,
            tokenized_tokens=model.tokenizer_timings.tokenized_tokens,
            prefill_tokens=c.prefill_tokens,
            decode_tokens=c.decode_tokens,
            sampled_tokens=c.sampled_tokens,
            detokenized_tokens=model.tokenizer_timings.detokenized_tokens,
            prefill_calls=c.prefill_calls,
            decode_calls=c.decode_calls,
            graphs_reused=c.graphs_reused,
            graphs_kept=c.graphs_kept,
            graphs_evicted=c.graphs_evicted,
        )

    @property
    def cuda_graphs(self) -> CudaGraphs:
        """Whether CUDA graphs are in use on the GPUs of this context, and what was checked."""
        found = self._ffi.new("struct llcuda_cuda_graphs *")
        owner = self.handle.owner
        status = self._lib.llcuda_context_graphs(owner.pointer, found)
        library.check(status, lambda: "cuda_graphs")
        return CudaGraphs(**{f.name: getattr(found, f.name) for f in fields(CudaGraphs)})

    @property
    def llama_timings(self) -> dict[str, float]:
        """llama.cpp's own performance counters since the last `reset_timings`.

        t_p_eval_ms and n_p_eval are milliseconds and tokens of batches of several tokens, t_eval_ms
        and n_eval those of single tokens, n_reused counts reused graphs.
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
        """Set the times and counts of this context to 0; those of the model stay."""
        self._read_timings(reset=True)

    def _read_timings(self, reset: bool) -> Any:
        owner = self.handle.owner
        timings = self._ffi.new("struct llcuda_timings *")
        status = self._lib.llcuda_context_timings(owner.pointer, timings, reset)
        library.check(status, lambda: "timings")
        return timings

    def _call_hooks(self) -> None:
        owner = self.handle.owner
        self._lib.llcuda_context_sync(owner.pointer)
        c_event = self._ffi.new("struct llcuda_event *")
        self._lib.llcuda_context_event(owner.pointer, c_event)
        event = DecodeEvent(
            phase="decode" if c_event.decode else "prefill",
            rows=c_event.rows,
            outputs=c_event.outputs,
            seconds=c_event.ns * 1e-9,
        )
        for hook in list(self.hooks):
            hook(event)

    # --- life ---

    @property
    def failed(self) -> bool:
        """Whether a decode failed so that the context cannot be used any more; `renew` helps.

        An assertion of llama.cpp and too little memory of the machine do that. After too little
        memory of a GPU the context still works, without the batch.
        """
        owner = self.handle.held
        return bool(self._lib.llcuda_context_lost(owner.pointer))

    def renew(self) -> None:
        """Make a context that failed new and empty, with its parameters, adapters and threads.

        The results of the last decode are gone, and embeddings are as the parameters say.

        Raises:
            ContextError: llama.cpp cannot create it again; the context stays failed.
            OutOfMemoryError: There is too little memory; the context stays failed.
            DeviceLostError: A GPU failed: start another process.
        """
        owner = self.handle.owner
        parent = self.model.handle.owner
        c_params = self.c_params()
        status = self._lib.llcuda_context_renew(owner.pointer, parent.pointer, c_params)
        if status == self._lib.LLCUDA_EXCEPTION:
            library.fail(ContextError, f"cannot create the context again with {self.params}")
        library.check(status, lambda: "renew()")
        if self._threads is not None:
            self.set_threads(*self._threads)
        if self._adapters:
            self.set_adapters(self._adapters)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.handle.closed

    def close(self) -> None:
        """Free the context's memory; calling it again does nothing.

        Raises:
            ConcurrencyError: Another thread is inside the context.
        """
        if self.handle.closed:
            return
        owner = self.handle.held
        status = self._lib.llcuda_context_close(owner.pointer)
        library.check(status, lambda: "close()")
        self.handle.close()
        owner.leave_parent()  # the tracebacks of errors keep `owner` of their frames

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.params.sequences} x {self.ctx_size} tokens"
        return f"<llcuda.Context on {self.model.path.name!r}: {state}>"


def _shortened(numbers: Sequence[int]) -> str:
    return f"[{', '.join(map(str, numbers[:8]))}{', ...' if len(numbers) > 8 else ''}]"


def _as_list(row: Any) -> Any:
    """Return an array or another sequence as a list; a text and anything else as it is."""
    if isinstance(row, np.ndarray):
        return row.tolist()
    is_other = isinstance(row, Sequence) and not isinstance(row, list | str | bytes)
    return list(row) if is_other else row


def _is_int32(value: Any) -> bool:
    return isinstance(value, int | np.integer) and bool(-(2**31) <= value < 2**31)
