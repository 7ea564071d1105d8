"""Guess the next tokens from the text itself (n-gram lookup), without a draft model.

Plain Python over tokens. A guess is verified in the same batch by sampling at each of its rows and
going on while the sample equals the guess: what is sampled is what would have been sampled
without it, greedy or not. A drafter that guesses badly falls silent for a while.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM = 3
WINDOW = 32  # guesses between two judgements
WORTH = 0.35  # share of guessed tokens that must be right: a row more costs about a third of a step
PAUSE = 128  # tokens of silence after a bad window


class Drafter:
    """Proposes what followed the last `NGRAM` tokens when they came before."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed = NGRAM
        self._guessed = self._right = 0
        self._silent_until = 0

    def draft(self, tokens: Sequence[int]) -> list[int]:
        """Return at most `longest` tokens that may follow `tokens`; often none."""
        for end in range(self._indexed, len(tokens)):
            self._follows[tuple(tokens[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, len(tokens))
        if len(tokens) < NGRAM or len(tokens) < self._silent_until:
            return []
        start = self._follows.get(tuple(tokens[-NGRAM:]))
        return [] if start is None else list(tokens[start : start + self._longest])

    def judge(self, guessed: int, right: int, length: int) -> None:
        """Learn that `right` of `guessed` tokens were right, in a text of `length` tokens."""
        self._guessed += guessed
        self._right += right
        if self._guessed >= WINDOW:
            if self._right < WORTH * self._guessed:
                self._silent_until = length + PAUSE
            self._guessed = self._right = 0
