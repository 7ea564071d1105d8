"""LlamaTokenizer: the tokenizer of a model's file, by llama-cpp-python's names.

Of llama.cpp's C interface there are the two functions with which Outlines reads the vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

from llcuda._lazy import missing_name
from llcuda.native.model import Model
from llcuda.params import wrong_value


class LlamaTokenizer:
    """Turns text into tokens and back.

    Args:
        model: The model, or a `Llama`, whose `model` is used.
    """

    def __init__(self, model: object) -> None:
        model = getattr(model, "model", model)
        if not isinstance(model, Model):
            raise wrong_value("model", model, "expected a Model or a Llama")
        self._model = model

    @classmethod
    def from_ggml_file(cls, path: str | os.PathLike[str]) -> Self:
        """Return the tokenizer of a GGUF file, whose weights are not loaded.

        Args:
            path: The file.
        """
        return cls(Model(path, vocab_only=True))

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: The text in UTF-8.
            add_bos: Add the tokens that the model wants around a text, such as BOS.
            special: Read control tokens that are written in the text as such.
        """
        return self._model.tokenize(text, add_bos, special)

    def detokenize(
        self,
        tokens: Iterable[int],
        prev_tokens: Sequence[int] | None = None,
        special: bool = False,
    ) -> bytes:
        """Return the text of tokens in UTF-8, or a part of it.

        The space that some vocabularies put before a text is left out behind BOS.

        Args:
            tokens: The tokens.
            prev_tokens: The tokens before them.
            special: Write control tokens as text.
        """
        model = self._model
        listed = model.token_list(list(tokens), "tokens")
        before = model.token_list(list(prev_tokens or ()), "prev_tokens")
        text = b"".join(model.piece_bytes(token, special) for token in listed)
        begins = [*before, *listed][:1] == [model.bos] and not any(
            model.piece_bytes(token, special) for token in before
        )
        return text.removeprefix(b" ") if begins else text

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Return the tokens of a text; see `tokenize`."""
        return self.tokenize(text.encode("utf-8", errors="ignore"), add_bos, special)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; bytes that are not UTF-8 are left out."""
        return self.detokenize(tokens).decode("utf-8", errors="ignore")


def llama_model_get_vocab(model: Model) -> Model:
    """Return what `llama_token_to_piece` takes: the model itself.

    Args:
        model: The model, `Llama.model`.
    """
    return model


def llama_token_to_piece(
    vocab: Model, token: int, buf: Any, length: int, lstrip: int, special: bool
) -> int:
    """Write the text of a token into a buffer, as llama.cpp's function does.

    Args:
        vocab: The model.
        token: The token.
        buf: An array of ctypes' characters.
        length: Its size.
        lstrip: How many spaces at the beginning are left out at most.
        special: Write a control token by its name.

    Returns:
        The number of bytes; where the buffer is too small, the number that it needs, negative.
    """
    piece = vocab.piece_bytes(token, bool(special))
    spaces = len(piece) - len(piece.lstrip(b" "))
    piece = piece[min(spaces, lstrip) :]
    if len(piece) > length:
        return -len(piece)
    buf[: len(piece)] = piece
    return len(piece)


def __getattr__(name: str) -> Any:
    told = (
        "; the tokens are those of the model's file: convert the checkpoint with llcuda.convert()"
    )
    raise missing_name(__name__, name, told if name == "LlamaHFTokenizer" else "")
