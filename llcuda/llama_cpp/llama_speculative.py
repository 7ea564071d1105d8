"""Draft models of `Llama`: they propose tokens, which the model verifies in one step."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import numpy.typing as npt

from llcuda.params import check_number

Tokens = npt.NDArray[np.intc]


class LlamaDraftModel(abc.ABC):
    """Base of draft models: a function from the tokens so far to those that may follow."""

    @abc.abstractmethod
    def __call__(self, input_ids: Tokens, /, **kwargs: Any) -> Tokens:
        """Return tokens that may follow; an empty array proposes none."""


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Proposes what followed the last tokens when they came before.

    For completions `Llama` gives the engine `speculation=num_pred_tokens` instead, which does the
    same for every request of a batch.

    Args:
        max_ngram_size: The largest number of last tokens that are looked for.
        num_pred_tokens: The largest number of tokens to propose.
    """

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        check_number("max_ngram_size", max_ngram_size, "int", 1)
        check_number("num_pred_tokens", num_pred_tokens, "int", 1, 32)
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens

    @staticmethod
    def find_candidate_pred_tokens(
        input_ids: Tokens, max_ngram_size: int, num_pred_tokens: int
    ) -> Tokens:
        """Return the tokens behind the first place where the last ones stand.

        Args:
            input_ids: The tokens so far.
            max_ngram_size: The largest number of last tokens to look for; fewer if they are new.
            num_pred_tokens: The largest number of tokens to return.
        """
        for size in range(min(max_ngram_size, len(input_ids) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(input_ids[:-1], size)
            places = np.flatnonzero((windows == input_ids[-size:]).all(axis=1))
            if len(places):
                begin = int(places[0]) + size
                return input_ids[begin : begin + num_pred_tokens]
        return np.empty(0, dtype=np.intc)

    def __call__(self, input_ids: Tokens, /, **kwargs: Any) -> Tokens:
        """Return tokens that may follow."""
        return self.find_candidate_pred_tokens(input_ids, self.max_ngram_size, self.num_pred_tokens)
