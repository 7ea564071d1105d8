"""A model file in memory: its facts, its metadata, its tokenizer."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, Unpack

import numpy as np

from llcuda._lazy import explain_names, warn_deprecated
from llcuda._pickling import stays_in_process
from llcuda.errors import (
    ContextError,
    LoadCancelledError,
    ModelError,
)
from llcuda.hub.resolver import resolve
from llcuda.keywords import ModelKeywords, given_params
from llcuda.native import callbacks, library
from llcuda.native.c_params import model_params
from llcuda.native.gguf.check import check_file, check_tensors
from llcuda.native.timings import TokenizerTimings
from llcuda.params import (
    INT32_MAX,
    ModelParams,
    check_flag,
    check_number,
    wrong_argument,
    wrong_value,
)
from llcuda.progress import progress_bar

logger = logging.getLogger("llcuda")

Progress = Callable[[float], bool | None]

MAX_TEXT = 2**31 - 17  # bytes, that the tokens of the longest text fit into a C int
_FAILED = -(2**31)  # what the shim's tokenizer functions answer where llama.cpp threw


@explain_names
@stays_in_process("its path, and load it there")
class Model:
    """A GGUF model: weights, metadata and tokenizer.

    Any number of threads and contexts may share a model. Use it as a context manager, or call
    `close`.

    Args:
        path: The model, as `llcuda.hub.resolve` takes it: a GGUF file, a folder, a short name,
            `repo/id:Q4_K_M`, "demo", ... It is downloaded if it is not on this machine.
        progress: Called with 0.0 to 1.0 while the file is loaded. False cancels the load, an
            exception cancels it and is raised again. True draws a bar on stderr, in a terminal
            and in a notebook. None draws one only for a download.
        params: The parameters as one object.
        **parameters: The fields of `ModelParams`, in place of `params`.

    Attributes:
        path (Path): The file.
        params (ModelParams): The parameters in use.
        size (int): Bytes of the weights.
        parameter_count (int): Number of weights.
        description (str): Architecture, size and type, as llama.cpp words it.
        train_ctx_size (int): Tokens of the longest text that the model was trained on.
        max_positions (int): Tokens of the longest text that a table of learned positions allows;
            2**31 - 1 without such a table.
        embedding_size (int): Numbers of an embedding.
        layer_count (int): Number of layers.
        sliding_window (int): Tokens that sliding-window layers look back; 0 without such layers.
        has_encoder (bool): Whether the model has an encoder.
        has_decoder (bool): Whether the model has a decoder.
        is_recurrent (bool): Whether every layer has a recurrent state in place of KV cells.
        is_hybrid (bool): Whether some layers do.
        vocab_size (int): Number of tokens.
        bos (int | None): The token that begins a text.
        eos (int | None): The token that ends a text.
        eot (int | None): The token that ends a turn.
        sep (int | None): The token between two texts.
        adds_bos (bool): Whether `tokenize` puts BOS first.
        adds_eos (bool): Whether EOS stands between two texts that are computed as one.
        adds_sep (bool): Whether SEP does.
        load_seconds (float): Wall clock of the load.

    Raises:
        ModelNotFoundError: The file does not exist.
        ModelError: The file cannot be loaded; the message has llama.cpp's reason.
        LoadCancelledError: `progress` returned False.
        ArgumentError: A parameter is not allowed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Progress | bool | None = None,
        params: ModelParams | None = None,
        **parameters: Unpack[ModelKeywords],
    ) -> None:
        self.params = given_params(ModelParams, params, parameters, Model)
        self.path = resolve(path, progress=progress is None or progress is True, parameter="path")
        check_file(self.path)
        self._ffi, self._lib = library.load()
        started = time.perf_counter()
        pointer, positions = load_model(self.path, self.params, progress)
        # handle, vocab and tokenizer_timings are for the rest of llcuda.native.
        self.handle = library.Handle("model", pointer, self._lib.llcuda_model_free)
        self.load_seconds = time.perf_counter() - started
        self.max_positions = positions or INT32_MAX
        self._probed = False
        self._read_facts(pointer)
        self.vocab = self._lib.llama_model_get_vocab(pointer)
        self._read_vocabulary()
        self.tokenizer_timings = TokenizerTimings()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        quantization: str = "Q4_K_M",
        base: str | os.PathLike[str] | None = None,
        progress: Progress | bool | None = None,
        **parameters: Unpack[ModelKeywords],
    ) -> Self:
        """Load a Hugging Face checkpoint, or a LoRA adapter merged into its base model.

        The converted file is cached until a file of the checkpoint changes.

        Args:
            source: A checkpoint, as for `llcuda.convert`.
            quantization: The type of the weights, as for `llcuda.quantize`.
            base: The base model of a LoRA adapter, as for `llcuda.convert`.
            progress: Called with 0.0 to 1.0 during the conversion, and again during the load.
            **parameters: The fields of `ModelParams`.

        Returns:
            The loaded model.

        Raises:
            LlcudaError: What `llcuda.convert`, `llcuda.quantize` and `Model` raise.
        """
        from llcuda.conversion.convert import convert_cached

        path = convert_cached(source, quantization, base=base, progress=progress)
        return cls(path, progress=progress, **parameters)

    # --- facts ---

    def _read_facts(self, pointer: Any) -> None:
        lib = self._lib
        self.size: int = lib.llama_model_size(pointer)
        self.parameter_count: int = lib.llama_model_n_params(pointer)
        self.train_ctx_size: int = lib.llama_model_n_ctx_train(pointer)
        self.embedding_size: int = lib.llama_model_n_embd_out(pointer)
        self.layer_count: int = lib.llama_model_n_layer(pointer)
        self.has_encoder: bool = lib.llama_model_has_encoder(pointer)
        self.has_decoder: bool = lib.llama_model_has_decoder(pointer)
        self.is_recurrent: bool = lib.llama_model_is_recurrent(pointer)
        self.is_hybrid: bool = lib.llama_model_is_hybrid(pointer)
        self.sliding_window: int = lib.llama_model_n_swa(pointer)
        self.description: str = _text(lambda buffer, n: lib.llama_model_desc(pointer, buffer, n))

    @property
    def most_positions(self) -> int:
        """The old name of `max_positions`."""
        warn_deprecated("Model.most_positions", "Model.max_positions")
        return self.max_positions

    @property
    def labels(self) -> list[str]:
        """The names of a classifier's classes; their numbers if the file does not name them."""
        owner, ffi, lib = self.handle.owner, self._ffi, self._lib
        count = lib.llama_model_n_cls_out(owner.pointer)
        names = [lib.llama_model_cls_label(owner.pointer, i) for i in range(count)]
        return [
            str(i) if name == ffi.NULL else ffi.string(name).decode(errors="replace") or str(i)
            for i, name in enumerate(names)
        ]

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the file as text; llama.cpp shortens arrays."""
        owner = self.handle.owner
        return read_metadata("llama_model", owner.pointer)

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of the model's chat format; None without one."""
        owner = self.handle.owner
        text = self._lib.llama_model_chat_template(owner.pointer, self._ffi.NULL)
        return None if text == self._ffi.NULL else self._ffi.string(text).decode(errors="replace")

    # --- tokenizer ---

    def _read_vocabulary(self) -> None:
        lib, vocab = self._lib, self.vocab
        self.vocab_size: int = lib.llama_vocab_n_tokens(vocab)
        self.bos: int | None = _token(lib.llama_vocab_bos(vocab))
        self.eos: int | None = _token(lib.llama_vocab_eos(vocab))
        self.eot: int | None = _token(lib.llama_vocab_eot(vocab))
        self.sep: int | None = _token(lib.llama_vocab_sep(vocab))
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(vocab)
        self.adds_eos: bool = lib.llama_vocab_get_add_eos(vocab)
        self.adds_sep: bool = lib.llama_vocab_get_add_sep(vocab)
        self._piece_bytes: dict[tuple[int, bool], bytes] = {}
        self._piece_texts: dict[int, str] = {}
        self._adds_space: bool | None = None  # whether `tokenize` puts a space before a text
        self._eog_tokens: frozenset[int] | None = None
        self._control_tokens: dict[str, int] | None = None

    def tokenize(
        self, text: str | bytes, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the tokens of a text.

        The text is not normalized. The reference tokenizers of some models, such as Qwen, bring it
        to NFC first: `unicodedata.normalize("NFC", text)`.

        Args:
            text: The text, or its UTF-8 bytes.
            add_special: Add the tokens that the model wants around a text (BOS, EOS).
            parse_special: Read control tokens that are written in the text, for example
                <|im_end|>, as those tokens. Never use it for text from outside.

        Returns:
            The tokens.

        Raises:
            ArgumentError: The text has a lone surrogate, or more than 2 GiB.
            ModelError: llama.cpp cannot tokenize the text.
        """
        check_flag("add_special", add_special)
        check_flag("parse_special", parse_special)
        started = time.perf_counter()
        owner = self.handle.owner
        try:
            raw = text.encode() if isinstance(text, str) else bytes(memoryview(text))
        except UnicodeEncodeError as error:
            rule = f"it cannot be encoded as UTF-8: {error}"
            raise wrong_argument("text", rule, "replace the lone surrogates") from None
        except TypeError:
            rule = f"expected str or bytes, got {type(text).__name__}"
            raise wrong_argument("text", rule) from None
        if len(raw) > MAX_TEXT:
            rule = f"it has {len(raw)} bytes, at most {MAX_TEXT} are allowed"
            raise wrong_argument("text", rule, "tokenize it in parts")
        ffi, lib = self._ffi, self._lib
        capacity = len(raw) + 4
        while True:
            buffer = ffi.new("int32_t[]", capacity)
            count = lib.llcuda_tokenize(
                self.vocab, raw, len(raw), buffer, capacity, add_special, parse_special
            )
            if count >= 0:
                break
            capacity = -count
            if count == _FAILED:
                # llama.cpp replaces invalid UTF-8, but refuses code points past the last.
                valid = raw.decode(errors="replace").encode()
                if valid == raw:
                    library.fail(ModelError, f"this model cannot tokenize {len(raw)} bytes of text")
                raw, capacity = valid, len(valid) + 4
        tokens: list[int] = ffi.unpack(buffer, count) if count else []
        del owner
        self.tokenizer_timings.tokenize_seconds += time.perf_counter() - started
        self.tokenizer_timings.tokenized_tokens += len(tokens)
        return tokens

    def detokenize(
        self,
        tokens: Sequence[int],
        remove_special: bool = False,
        special: bool = False,
        clean_spaces: bool | None = None,
    ) -> str:
        """Return the text of tokens.

        The text that `tokenize` was given comes back as it was, but for what a vocabulary itself
        drops, such as capitals and accents in those of BERT.

        Args:
            tokens: The tokens.
            remove_special: Leave out the tokens that `tokenize` adds.
            special: Write control tokens as text.
            clean_spaces: Remove spaces before punctuation, as llama.cpp does where the reference
                tokenizer has clean_up_tokenization_spaces; None = only for WordPiece, whose tokens
                do not say where spaces were.

        Returns:
            The text; bytes that are not UTF-8, such as unfinished characters, become U+FFFD.

        Raises:
            ArgumentError: A token is outside the vocabulary.
            ModelError: llama.cpp cannot detokenize the tokens.
        """
        check_flag("remove_special", remove_special)
        check_flag("special", special)
        if clean_spaces is not None:
            check_flag("clean_spaces", clean_spaces)
        started = time.perf_counter()
        owner = self.handle.owner
        if isinstance(tokens, str | bytes):
            raise wrong_value("tokens", tokens, "expected a list of tokens")
        tokens = self.token_list(list(tokens), "tokens")
        if clean_spaces is None:
            clean_spaces = self.metadata.get("tokenizer.ggml.model") == "bert"
        if clean_spaces:
            text = self._clean_text(tokens, remove_special, special)
        else:
            text = self._whole_text(tokens, remove_special, special)
        del owner
        self.tokenizer_timings.detokenize_seconds += time.perf_counter() - started
        self.tokenizer_timings.detokenized_tokens += len(tokens)
        return text

    def _whole_text(self, tokens: list[int], remove_special: bool, special: bool) -> str:
        """Return the pieces of tokens as one text, without the space that `tokenize` put first."""
        if remove_special and self.adds_bos and tokens[:1] == [self.bos]:
            tokens = tokens[1:]
        if remove_special and self.adds_eos and tokens[-1:] == [self.eos]:
            tokens = tokens[:-1]
        pieces = self._piece_bytes
        text = b"".join(
            pieces[token, special]
            if (token, special) in pieces
            else self._read_piece(token, special)
            for token in tokens
        ).decode(errors="replace")
        if self._adds_space is None:
            first = self.tokenize(" a", add_special=False)[:1]
            self._adds_space = not self._clean_text(first, False, False).startswith(" ")
        return text.removeprefix(" ") if self._adds_space else text

    def _clean_text(self, tokens: list[int], remove_special: bool, special: bool) -> str:
        """Return the text of tokens as llama.cpp writes it."""
        ffi, lib = self._ffi, self._lib
        array = ffi.new("int32_t[]", tokens)
        capacity = 8 * len(array) + 16
        for _ in range(2):
            buffer = ffi.new("char[]", capacity)
            count = lib.llcuda_detokenize(
                self.vocab,
                array,
                len(array),
                buffer,
                capacity,
                bool(remove_special),
                bool(special),
            )
            if count >= 0:
                break
            if count == _FAILED:
                library.fail(ModelError, f"this model cannot detokenize {len(array)} tokens")
            capacity = -count
        text: str = ffi.buffer(buffer, count)[:].decode("utf-8", errors="replace")
        return text

    def piece(self, token: int) -> str:
        """Return the text of one token.

        A character that spans several tokens gives U+FFFD in each; decode `piece_bytes` with
        `llcuda.Utf8Decoder` to get it whole.

        Args:
            token: The token.

        Returns:
            The text; empty for a control token.

        Raises:
            ArgumentError: The token is outside the vocabulary.
        """
        try:
            return self._piece_texts[token]
        except (KeyError, TypeError):
            self._piece_texts[token] = text = self.piece_bytes(token).decode(errors="replace")
            return text

    def token_name(self, token: int) -> str:
        """Return the text of one token for readers: of a control token its name.

        Bytes that are no whole character are shown as U+FFFD.

        Args:
            token: The token.

        Raises:
            ArgumentError: The token is outside the vocabulary.
        """
        return self.piece_bytes(token, special=True).decode(errors="replace")

    def piece_bytes(self, token: int, special: bool = False) -> bytes:
        """Return the bytes of one token.

        Args:
            token: The token.
            special: Return the name of a control token, which else has no bytes.

        Returns:
            The bytes, UTF-8 or a part of it.

        Raises:
            ArgumentError: The token is outside the vocabulary.
        """
        try:
            return self._piece_bytes[token, special]
        except (KeyError, TypeError):
            return self._read_piece(token, special)

    def _read_piece(self, token: int, special: bool) -> bytes:
        started = time.perf_counter()
        owner = self.handle.owner
        self.check_token(token)
        capacity = 64
        while True:
            buffer = self._ffi.new("char[]", capacity)
            count = self._lib.llcuda_token_to_piece(
                self.vocab, token, buffer, capacity, bool(special)
            )
            if count >= 0:
                break
            if count == _FAILED:
                library.fail(ModelError, f"this model has no text for token {token}")
            capacity = -count
        del owner
        self._piece_bytes[token, special] = piece = bytes(self._ffi.buffer(buffer, count))
        self.tokenizer_timings.detokenize_seconds += time.perf_counter() - started
        self.tokenizer_timings.detokenized_tokens += 1
        return piece

    def pieces(self) -> tuple[list[bytes], list[int]]:
        """Return the bytes of every token, and the tokens that have none.

        Returns:
            The bytes by token, with the name of a token that has no bytes of its own; and those
            tokens: control tokens and tokens that end a generation.

        Raises:
            ModelError: The model has no tokenizer.
        """
        owner = self.handle.owner
        ffi, n = self._ffi, self.vocab_size
        begins, named = ffi.new("int64_t[]", n + 1), ffi.new("int8_t[]", n)
        capacity = 16 * n
        for _ in range(2):
            text = ffi.new("char[]", capacity)
            size = self._lib.llcuda_pieces(self.vocab, text, capacity, begins, named)
            if size < 0:
                library.fail(ModelError, "this model has no texts for its tokens")
            if size <= capacity:
                break
            capacity = size
        del owner
        raw, offsets = bytes(ffi.buffer(text, size)), ffi.unpack(begins, n + 1)
        pieces = [raw[begin:end] for begin, end in pairwise(offsets)]
        return pieces, [token for token, is_named in enumerate(ffi.unpack(named, n)) if is_named]

    def is_eog(self, token: int) -> bool:
        """Return whether a token ends a generation, as the end of the text or of the turn.

        Args:
            token: The token.

        Raises:
            ArgumentError: The token is outside the vocabulary.
        """
        owner = self.handle.owner
        self.check_token(token)
        is_eog: bool = self._lib.llama_vocab_is_eog(self.vocab, token)
        del owner
        return is_eog

    def is_control(self, token: int) -> bool:
        """Return whether a token is a control token, which has no text of its own.

        Args:
            token: The token.

        Raises:
            ArgumentError: The token is outside the vocabulary.
        """
        owner = self.handle.owner
        self.check_token(token)
        is_control: bool = self._lib.llama_vocab_is_control(self.vocab, token)
        del owner
        return is_control

    @property
    def eog_tokens(self) -> frozenset[int]:
        """Every token that ends a generation."""
        owner = self.handle.owner
        if self._eog_tokens is None:
            is_eog = self._lib.llama_vocab_is_eog
            every = range(self.vocab_size)
            self._eog_tokens = frozenset(token for token in every if is_eog(self.vocab, token))
        del owner
        return self._eog_tokens

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Every control token by its name."""
        owner = self.handle.owner
        if self._control_tokens is None:
            is_control = self._lib.llama_vocab_is_control
            controls = [token for token in range(self.vocab_size) if is_control(self.vocab, token)]
            names = {token: self.piece_bytes(token, special=True) for token in controls}
            self._control_tokens = {
                name.decode(errors="replace"): token for token, name in names.items()
            }
        del owner
        return self._control_tokens

    def check_token(self, token: int, parameter: str = "token") -> None:
        """Check a token of a caller.

        Args:
            token: The token.
            parameter: The name of the caller's parameter, for an error.

        Raises:
            ArgumentError: It is not a whole number, or outside the vocabulary.
        """
        if not isinstance(token, int):
            try:
                token = token.__index__()
            except AttributeError:
                raise wrong_value(parameter, token, "expected a whole number") from None
        if not 0 <= token < self.vocab_size:
            raise wrong_value(parameter, token, f"expected a token, 0 to {self.vocab_size - 1}")

    def token_list(self, tokens: Any, parameter: str = "prompt") -> list[int]:
        """Return tokens of a caller as a list.

        Args:
            tokens: A sequence of whole numbers, or an array of one dimension.
            parameter: The name of the caller's parameter, for an error.

        Returns:
            The tokens as Python integers.

        Raises:
            ArgumentError: They are not tokens of the vocabulary in one dimension.
        """
        if isinstance(tokens, np.ndarray) and tokens.ndim == 1:
            tokens = tokens.tolist()
        if not isinstance(tokens, Sequence) or isinstance(
            tokens, str | bytes | bytearray | memoryview
        ):
            rule = f"expected a text, or tokens in one dimension, not {type(tokens).__name__}"
            raise wrong_argument(parameter, rule, "give a str or a list of whole numbers")
        checked = [t if type(t) is int else _whole_number(t, parameter) for t in tokens]
        if checked and not 0 <= min(checked) <= max(checked) < self.vocab_size:
            wrong = min(checked) if min(checked) < 0 else max(checked)
            rule = f"token {wrong}: expected 0 to {self.vocab_size - 1}"
            raise wrong_argument(parameter, rule)
        return checked

    # --- life ---

    def check_file(self) -> None:
        """Check that the mapped file is the one that was loaded.

        For the rest of llcuda.native.

        Raises:
            ModelChangedError: It was overwritten or cut.
        """
        owner = self.handle.owner
        status = self._lib.llcuda_model_check(owner.pointer)
        del owner  # or an error's traceback would keep the weights
        library.check(status, lambda: "model")

    def probe(self, c_params: Any) -> None:
        """Check once, before the first context, that llama.cpp can compute this model.

        For the rest of llcuda.native.

        Args:
            c_params: The llama_context_params of that context.

        Raises:
            ContextError: The file contradicts itself; computing it would end the process.
        """
        if self._probed:
            return
        owner = self.handle.owner
        with callbacks.without_repeated_warnings():
            status = self._lib.llcuda_probe(owner.pointer, c_params)
        del owner  # or an error's traceback would keep the weights
        if status:
            library.fail(ContextError, f"{self.path} contradicts itself")
        self._probed = True

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.handle.closed

    def close(self) -> None:
        """Let go of the model. Its memory is freed when the last context on it is closed."""
        self.handle.close()
        self._piece_bytes.clear()  # that the next piece is an error of a closed model
        self._piece_texts.clear()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size / 2**20:.1f} MiB"
        return f"<llcuda.Model {self.path.name!r}: {self.description}, {state}>"


class _ProgressReport:
    """What the C callback finds behind its user_data."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.cancelled = False

    def __call__(self, fraction: float) -> bool:
        self.cancelled = self.progress(fraction) is False
        return not self.cancelled


def check_model(model: Any) -> None:
    """Raise ArgumentError unless a caller's `model` is a Model."""
    if not isinstance(model, Model):
        path = repr(model) if isinstance(model, str) else "path"
        raise wrong_value("model", model, "expected a Model", f"give Model({path})")


def check_devices(params: ModelParams) -> None:
    """Raise ArgumentError for devices, or shares of them, that this machine does not have."""
    model_params(params, [])


def load_model(
    path: Path,
    params: ModelParams,
    progress: Progress | bool | None = None,
    *,
    allocate: bool = True,
) -> tuple[Any, int]:
    """Load a model file with llama.cpp.

    Args:
        path: The file, which `check_file` has accepted.
        params: How to load it.
        progress: As for `Model`.
        allocate: False leaves out the weights: only where they would lie is decided.

    Returns:
        The llama_model, which the caller frees, and how many positions its table of learned
        positions has, 0 without one.

    Raises:
        ModelError: The file cannot be loaded.
        LoadCancelledError: `progress` returned False.
        ArgumentError: A parameter is not allowed.
    """
    ffi, lib = library.load()
    library.sync_log_level(lib)
    positions = check_tensors(path)
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise wrong_value("progress", progress, "expected a function, True or None")
    kept: list[Any] = []
    c = model_params(params, kept)
    if not allocate:
        c.no_alloc = True
        c.load_mode = lib.LLAMA_LOAD_MODE_NONE
    report = None
    with contextlib.ExitStack() as stack:
        if progress is True:
            progress = stack.enter_context(progress_bar(f"Loading {path.name}"))
        if callable(progress):
            report = _ProgressReport(progress)
            handle = ffi.new_handle(report)
            c.progress_callback = lib.llcuda_on_progress
            c.progress_callback_user_data = handle
        pointer = lib.llcuda_model_load(os.fsencode(path), c)
    if pointer == ffi.NULL:
        callbacks.reraise()
        if report is not None and report.cancelled:
            raise LoadCancelledError(f"loading {path} was cancelled by progress()")
        library.fail(ModelError, f"cannot load {path}")
    for line in library.errors(ffi, lib, keep=True).splitlines():
        if "Bad metadata override" in line:
            lib.llcuda_model_free(pointer)
            raise wrong_argument("overrides", f"{line.partition('Warning: ')[2]}")
    if allocate and not convert_bf16("model", pointer, path, params.bf16_to_f16):
        lib.llcuda_model_free(pointer)
        library.fail(ModelError, f"bf16_to_f16: cannot convert the weights of {path}")
    if params.bf16_copies and allocate and lib.llcuda_make_copies(pointer) < 0:
        lib.llcuda_model_free(pointer)
        library.fail(ModelError, f"bf16_copies=True: cannot copy the matrices of {path}")
    return pointer, positions


def convert_bf16(kind: str, pointer: Any, path: Path, wanted: bool | None) -> bool:
    """Turn BF16 weights on GPUs into F16.

    Args:
        kind: "model" or "adapter".
        pointer: The llama_model or the llama_adapter_lora, which no context uses yet.
        path: Its file, for the log.
        wanted: `ModelParams.bf16_to_f16`.

    Returns:
        False if CUDA failed.
    """
    ffi, lib = library.load()
    devices = [lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count())]
    kinds = [lib.ggml_backend_dev_type(device) for device in devices]
    if wanted is False or lib.GGML_BACKEND_DEVICE_TYPE_GPU not in kinds:
        return True
    done = ffi.new("struct llcuda_conversion *")
    if getattr(lib, f"llcuda_{kind}_bf16_to_f16")(pointer, wanted is True, done) < 0:
        return False
    if done.converted:
        logger.info("%s: %d BF16 tensors are F16 on the GPU", path.name, done.converted)
    if done.kept:
        logger.warning(
            "%s: %d tensors stay BF16, because they have numbers beyond F16's range; the GPU"
            " computes them slowly",
            path.name,
            done.kept,
        )
    return True


def read_metadata(prefix: str, pointer: Any) -> Mapping[str, str]:
    """Return the metadata of a "llama_model" or a "llama_adapter" as text."""
    _, lib = library.load()
    count = getattr(lib, f"{prefix}_meta_count")(pointer)
    read_key = getattr(lib, f"{prefix}_meta_key_by_index")
    read_value = getattr(lib, f"{prefix}_meta_val_str_by_index")
    return MappingProxyType(
        {
            _text(lambda buffer, n, i=i: read_key(pointer, i, buffer, n)): _text(  # type: ignore[misc]
                lambda buffer, n, i=i: read_value(pointer, i, buffer, n)  # type: ignore[misc]
            )
            for i in range(count)
        }
    )


def _text(write: Callable[[Any, int], int]) -> str:
    """Return the text that a C function writes into (buffer, size), of any length."""
    ffi, _ = library.load()
    size = 256
    while True:
        buffer = ffi.new("char[]", size)
        length = write(buffer, size)
        if length < size:
            return bytes(ffi.buffer(buffer, max(length, 0))).decode(errors="replace")
        size = length + 1


def _whole_number(token: Any, parameter: str) -> int:
    """Return an element of a list of tokens as int."""
    if isinstance(token, str | bytes):
        rule = f"{token!r:.40} is an element of a list, expected a text or a list of tokens"
        raise wrong_argument(parameter, rule, "give one text at a time")
    check_number(parameter, token, "int", 0)
    return int(token)


def _token(token: int) -> int | None:
    return None if token < 0 else token
