"""Speculation: propose the next tokens from the text itself (n-gram lookup), without a draft model.

Plain Python over tokens. A proposal is verified in the same batch by sampling at each of its rows
and going on while the sample equals the proposal: the text is the one that would have been sampled
without it, greedy or not. Rows of proposals cost time, on some machines nearly as much as steps.
So each sequence keeps accounts, and a drafter that loses falls silent for a while.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM = 3
LOSS = 4.0  # tokens that proposals may cost more than they bring before the drafter falls silent
CREDIT = 8.0  # tokens that earlier success counts at most
PAUSE = 128  # tokens of silence after a loss, twice as many after the next


class Drafter:
    """Proposes the tokens that followed the last `NGRAM` tokens when these came before.

    Args:
        longest: The number of tokens of a proposal.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed = NGRAM
        self._balance = 0.0
        self._pause = PAUSE
        self._silent_until = 0

    def propose(self, tokens: Sequence[int]) -> list[int]:
        """Return tokens that may follow `tokens`; often none."""
        for end in range(self._indexed, len(tokens)):
            self._follows[tuple(tokens[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, len(tokens))
        if len(tokens) < NGRAM or len(tokens) < self._silent_until:
            return []
        start = self._follows.get(tuple(tokens[-NGRAM:]))
        return [] if start is None else list(tokens[start : start + self._longest])

    def update(self, accepted: int, cost: float, length: int) -> None:
        """Learn from a verified proposal.

        Args:
            accepted: How many of its tokens were right.
            cost: Its cost, in tokens that plain steps would have brought in the time.
            length: Tokens of the sequence now.
        """
        self._balance = min(self._balance + accepted - cost, CREDIT)
        if self._balance >= CREDIT:
            self._pause = PAUSE
        if self._balance < -LOSS:
            self._silent_until = length + self._pause
            self._pause *= 2
            self._balance = 0.0


class StepCosts:
    """The time of a decode step without proposals, by its number of sequences; learned."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def knows(self, size: int) -> bool:
        """Whether a step of so many sequences was seen."""
        return size in self._seconds

    def learn(self, size: int, seconds: float) -> None:
        """Note the time of a step without proposals."""
        before = self._seconds.get(size, seconds)
        self._seconds[size] = before + 0.2 * (seconds - before)

    def extra(self, size: int, seconds: float) -> float:
        """Return the cost of proposals, in tokens that plain steps would have brought.

        Args:
            size: The number of sequences.
            seconds: The time of their step with proposals.
        """
        return size * max(0.0, seconds / self._seconds[size] - 1)
