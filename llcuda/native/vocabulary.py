"""Text to tokens and back, with the vocabulary of a model file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llcuda.errors import ArgumentError, ModelError
from llcuda.native import library
from llcuda.params import check_number


class Vocabulary:
    """The tokenizer part of `Model`; any number of threads may use it.

    vocab_size; bos, eos, eot, sep: token or None; adds_bos: whether tokenize() puts BOS first.
    adds_eos, adds_sep: whether EOS, and SEP, stand between two texts that are computed as one.
    """

    _ffi: Any
    _lib: Any
    _handle: library.Handle

    def _open_vocabulary(self, vocab: Any) -> None:
        lib = self._lib
        self._vocab = vocab
        self.vocab_size: int = lib.llama_vocab_n_tokens(vocab)
        self.bos: int | None = _token(lib.llama_vocab_bos(vocab))
        self.eos: int | None = _token(lib.llama_vocab_eos(vocab))
        self.eot: int | None = _token(lib.llama_vocab_eot(vocab))
        self.sep: int | None = _token(lib.llama_vocab_sep(vocab))
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(vocab)
        self.adds_eos: bool = lib.llama_vocab_get_add_eos(vocab)
        self.adds_sep: bool = lib.llama_vocab_get_add_sep(vocab)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._texts: dict[int, str] = {}
        self._ends: frozenset[int] | None = None
        self._controls: dict[str, int] | None = None
        self._tokenize_seconds = self._detokenize_seconds = 0.0
        self._tokenized = self._detokenized = 0

    def tokenize(
        self, text: str | bytes, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the tokens of `text`.

        add_special: with the tokens that the model wants around a text (BOS, EOS).
        parse_special: control tokens written in the text, e.g. <|im_end|>, become those tokens;
            never for text from outside.
        Raises ArgumentError for a lone surrogate or more than 2 GiB of text.
        """
        started = time.perf_counter()
        owner = self._handle.owner
        try:
            raw = text.encode() if isinstance(text, str) else bytes(memoryview(text))
        except UnicodeEncodeError as error:
            raise ArgumentError(
                f"text cannot be encoded as UTF-8: {error}", parameter="text"
            ) from None
        except TypeError:
            raise ArgumentError(
                f"text must be str or bytes, not {type(text).__name__}", parameter="text"
            ) from None
        if len(raw) >= 2**31 - 16:
            raise ArgumentError(
                f"text has {len(raw)} bytes: at most {2**31 - 17} at once", parameter="text"
            )
        ffi, lib = self._ffi, self._lib
        capacity = len(raw) + 4
        while True:
            buffer = ffi.new("int32_t[]", capacity)
            count = lib.llcuda_tokenize(
                self._vocab, raw, len(raw), buffer, capacity, bool(add_special), bool(parse_special)
            )
            if count >= 0:
                break
            capacity = -count
            if count == -(2**31):
                # llama.cpp replaces invalid UTF-8, but refuses code points past the last.
                valid = raw.decode(errors="replace").encode()
                if valid == raw:
                    library.fail(ModelError, f"this model cannot tokenize {len(raw)} bytes of text")
                raw, capacity = valid, len(valid) + 4
        tokens: list[int] = ffi.unpack(buffer, count) if count else []
        del owner
        self._tokenize_seconds += time.perf_counter() - started
        self._tokenized += len(tokens)
        return tokens

    def detokenize(
        self, tokens: Sequence[int], remove_special: bool = False, special: bool = False
    ) -> str:
        """Return the text of `tokens`; unfinished characters become U+FFFD.

        remove_special: without the tokens that tokenize() adds. special: control tokens as text.
        """
        started = time.perf_counter()
        owner = self._handle.owner
        tokens = list(tokens)
        for token in tokens:
            self.check_token(token)
        ffi, lib = self._ffi, self._lib
        array = ffi.new("int32_t[]", tokens)
        capacity = 8 * len(array) + 16
        for _ in range(2):
            buffer = ffi.new("char[]", capacity)
            count = lib.llcuda_detokenize(
                self._vocab,
                array,
                len(array),
                buffer,
                capacity,
                bool(remove_special),
                bool(special),
            )
            if count >= 0:
                break
            if count == -(2**31):
                library.fail(ModelError, f"this model cannot detokenize {len(array)} tokens")
            capacity = -count
        text: str = ffi.buffer(buffer, count)[:].decode("utf-8", errors="replace")
        del owner
        self._detokenize_seconds += time.perf_counter() - started
        self._detokenized += len(array)
        return text

    def piece_bytes(self, token: int, special: bool = False) -> bytes:
        """Return the bytes that `token` stands for; none for a control token unless `special`."""
        try:
            return self._pieces[token, special]
        except (KeyError, TypeError):
            return self._read_piece(token, special)

    def piece(self, token: int) -> str:
        """Return the text of one token.

        A token that ends inside a character gives U+FFFD; `Utf8Decoder` over piece_bytes()
        puts characters together.
        """
        try:
            return self._texts[token]
        except (KeyError, TypeError):
            self._texts[token] = text = self.piece_bytes(token).decode(errors="replace")
            return text

    def pieces(self) -> tuple[list[bytes], list[int]]:
        """Return what every token stands for, and which of them stand for nothing.

        These are control tokens and what ends a text; their names stand in the first list.
        """
        owner = self._handle.owner
        ffi, n = self._ffi, self.vocab_size
        begins, names = ffi.new("int64_t[]", n + 1), ffi.new("int8_t[]", n)
        capacity = 16 * n
        for _ in range(2):
            text = ffi.new("char[]", capacity)
            size = self._lib.llcuda_pieces(self._vocab, text, capacity, begins, names)
            if size < 0:
                library.fail(ModelError, "this model has no texts for its tokens")
            if size <= capacity:
                break
            capacity = size
        del owner
        raw, places = bytes(ffi.buffer(text, size)), ffi.unpack(begins, n + 1)
        pieces = [raw[a:b] for a, b in pairwise(places)]
        return pieces, [token for token, name in enumerate(ffi.unpack(names, n)) if name]

    def _forget_pieces(self) -> None:
        """Make the next piece an error of a closed model."""
        self._pieces.clear()
        self._texts.clear()

    def _read_piece(self, token: int, special: bool) -> bytes:
        started = time.perf_counter()
        owner = self._handle.owner
        self.check_token(token)
        capacity = 64
        while True:
            buffer = self._ffi.new("char[]", capacity)
            count = self._lib.llcuda_token_to_piece(
                self._vocab, token, buffer, capacity, bool(special)
            )
            if count >= 0:
                break
            if count == -(2**31):
                library.fail(ModelError, f"this model has no text for token {token}")
            capacity = -count
        del owner
        self._pieces[token, special] = piece = bytes(self._ffi.buffer(buffer, count))
        self._detokenize_seconds += time.perf_counter() - started
        self._detokenized += 1
        return piece

    def is_eog(self, token: int) -> bool:
        """Whether `token` ends a generation (end of text or of turn)."""
        owner = self._handle.owner
        self.check_token(token)
        ends: bool = self._lib.llama_vocab_is_eog(self._vocab, token)
        del owner
        return ends

    @property
    def eog_tokens(self) -> frozenset[int]:
        """Every token that ends a generation; looked for once, in the whole vocabulary."""
        owner = self._handle.owner
        if self._ends is None:
            ends = self._lib.llama_vocab_is_eog
            every = range(self.vocab_size)
            self._ends = frozenset(token for token in every if ends(self._vocab, token))
        del owner
        return self._ends

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Every control token by its text; looked for once, in the whole vocabulary."""
        owner = self._handle.owner
        if self._controls is None:
            control = self._lib.llama_vocab_is_control
            found = [token for token in range(self.vocab_size) if control(self._vocab, token)]
            pieces = {token: self.piece_bytes(token, special=True) for token in found}
            self._controls = {piece.decode(errors="replace"): t for t, piece in pieces.items()}
        del owner
        return self._controls

    def is_control(self, token: int) -> bool:
        """Whether `token` is a control token, with no text of its own."""
        owner = self._handle.owner
        self.check_token(token)
        control: bool = self._lib.llama_vocab_is_control(self._vocab, token)
        del owner
        return control

    def token_list(self, tokens: Any, parameter: str = "prompt") -> list[int]:
        """Return tokens that a caller gave, an array too, as a list; ArgumentError for others."""
        if isinstance(tokens, np.ndarray) and tokens.ndim == 1:
            tokens = tokens.tolist()
        if not isinstance(tokens, Sequence) or isinstance(
            tokens, str | bytes | bytearray | memoryview
        ):
            kind = type(tokens).__name__
            raise ArgumentError(
                f"{parameter} must be str, or tokens in one dimension, not {kind}",
                parameter=parameter,
            )
        checked = [t if type(t) is int else _whole_number(t, parameter) for t in tokens]
        if checked and not 0 <= min(checked) <= max(checked) < self.vocab_size:
            wrong = min(checked) if min(checked) < 0 else max(checked)
            raise ArgumentError(
                f"token {wrong}: expected 0 to {self.vocab_size - 1}", parameter=parameter
            )
        return checked

    def check_token(self, token: int) -> None:
        """Raise ArgumentError unless `token` is one of this vocabulary."""
        if not isinstance(token, int):
            try:
                token = token.__index__()
            except AttributeError:
                raise ArgumentError(
                    f"token {token!r}: expected a whole number", parameter="token"
                ) from None
        if not 0 <= token < self.vocab_size:
            raise ArgumentError(
                f"token {token}: expected 0 to {self.vocab_size - 1}", parameter="token"
            )


def _whole_number(token: Any, parameter: str) -> int:
    check_number(parameter, token, "int", 0)
    return int(token)


def _token(token: int) -> int | None:
    return None if token < 0 else token
