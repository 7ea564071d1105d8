"""A model's tokenizer for llguidance."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

from llcuda.errors import LlcudaError, UnsupportedError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from llcuda.native.model import Model

_BEFORE = b"\n"  # seldom one token with what follows, where a tokenizer puts a space in front


def tokenizer_of(model: Model) -> LLTokenizer:
    """Return a new tokenizer, which reads the whole vocabulary.

    Raises:
        UnsupportedError: The model has no token that ends a text.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    ends = sorted(model.eog_tokens)
    if not ends:
        raise UnsupportedError(
            f"model={model.path.name!r}: structured output needs a model with a token that ends a "
            "text"
        )
    vocabulary = TokenizerWrapper(_Vocabulary(model, ends[0]))
    # In two calls, because each holds the GIL to its end.
    tokenizer = LLTokenizer(vocabulary, eos_token=ends, slices=[])
    return tokenizer.with_slices(LLTokenizer.general_slices())


class _Vocabulary:
    """The vocabulary as TokenizerWrapper reads it. Refers to the model weakly, which keeps it."""

    def __init__(self, model: Model, end: int) -> None:
        self.tokens, self.special_token_ids = model.pieces()
        self.eos_token_id = end
        self.bos_token_id = model.bos
        self._model = weakref.ref(model)

    def __call__(self, text: Any) -> list[int]:
        """Return the tokens of a text in the middle of another; none where they are not certain.

        It does not raise: Rust calls it, and would panic.
        """
        model = self._model()
        raw = text if isinstance(text, bytes) else str(text).encode(errors="replace")
        with contextlib.suppress(LlcudaError):
            for before in (b"", _BEFORE) if model is not None else ():
                tokens = model.tokenize(before + raw, add_special=False)  # type: ignore[union-attr]
                pieces = [self.tokens[token] for token in tokens]
                # In front are the text before, and a space that the tokenizer puts there.
                while pieces and len(b"".join(pieces)) > len(raw):
                    del pieces[0]
                if b"".join(pieces) == raw:
                    return tokens[len(tokens) - len(pieces) :]
        return []
