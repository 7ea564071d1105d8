"""Requests that arrive by chance, the coroutines that send them, and what their times come to.

Used by arrivals.py and, in the process of a peer, by child.py; imports no library that is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peers import FIRST_WORD, Server, Text

PROMPT_RANGE = (32, 2048)  # tokens; their logarithms are distributed uniformly, as are the answers'
ANSWER_RANGE = (32, 512)
RAMP = 0.1  # the share of requests at the begin and at the end whose times do not count
PERCENTILES = (50, 95, 99)


@dataclass
class Trace:
    """The times of one request, in seconds.

    Attributes:
        asked: When it was due.
        marks: When tokens came, and how many there were then.
    """

    asked: float
    marks: list[tuple[float, int]] = field(default_factory=list)

    @property
    def first(self) -> float:
        """The time to the first token."""
        return self.marks[0][0] - self.asked

    @property
    def per_token(self) -> float:
        """The mean time of a further token."""
        (began, first), (ended, last) = self.marks[0], self.marks[-1]
        return (ended - began) / max(1, last - first)

    @property
    def gaps(self) -> list[float]:
        """The times between outputs."""
        return [b - a for (a, _), (b, _) in itertools.pairwise(self.marks)]


def make_requests(
    count: int, words: int, prompts: Sequence[int] = PROMPT_RANGE,
    answers: Sequence[int] = ANSWER_RANGE,
) -> list[Text]:  # fmt: skip
    """Return texts of random lengths, the same ones for the same arguments.

    Args:
        count: The number of texts.
        words: The size of the vocabulary.
        prompts: The least and the largest number of tokens of a prompt.
        answers: The least and the largest number of tokens of an answer.
    """
    chance = random.Random(count)

    def length(low: int, high: int) -> int:
        return round(math.exp(chance.uniform(math.log(low), math.log(high))))

    return [
        Text([chance.randrange(FIRST_WORD, words) for _ in range(length(*prompts))],
             length(*answers))
        for _ in range(count)
    ]  # fmt: skip


def poisson_times(count: int, rate: float) -> list[float]:
    """Return when requests are due, in seconds: a Poisson process of `rate` requests a second."""
    chance = random.Random(1)
    return list(itertools.accumulate(chance.expovariate(rate) for _ in range(count)))


async def send(
    server: Server, requests: Sequence[Text], times: Sequence[float], seeded: bool
) -> list[Trace]:
    """Send each request when it is due, and return their times.

    Raises:
        RuntimeError: An answer has another length than asked for.
    """
    start = time.perf_counter()

    async def one(number: int, text: Text, due: float) -> Trace:
        await asyncio.sleep(start + due - time.perf_counter())
        trace = Trace(start + due)
        async for count in server.stream(text, number if seeded else None):
            trace.marks.append((time.perf_counter(), count))
        if not trace.marks or trace.marks[-1][1] != text.length:
            raise RuntimeError(f"wrote {trace.marks[-1:]} tokens instead of {text.length}")
        return trace

    together = zip(itertools.count(), requests, times, strict=False)
    return await asyncio.gather(*(one(*request) for request in together))


def saturated_rate(traces: Sequence[Trace]) -> float:
    """Return how many requests a second ended in the middle of a run that had all at once."""
    ends = sorted(trace.marks[-1][0] for trace in traces)
    low, high = len(ends) // 5, len(ends) * 4 // 5
    return (high - low) / (ends[high] - ends[low])


def summary(traces: Sequence[Trace]) -> dict[str, Any]:
    """Return the figures of a run.

    Returns:
        The tokens of all answers, the seconds from the first request to the last token, tokens a
        second, and the percentiles of the milliseconds to the first token, of a further token
        (means of requests), and between outputs, without the first and the last requests.
    """
    begin = min(trace.asked for trace in traces)
    end = max(trace.marks[-1][0] for trace in traces)
    tokens = sum(trace.marks[-1][1] for trace in traces)
    cut = int(RAMP * len(traces))
    counted = sorted(traces, key=lambda trace: trace.asked)[cut : len(traces) - cut]
    values = {
        "first_ms": [trace.first for trace in counted],
        "token_ms": [trace.per_token for trace in counted],
        "gap_ms": [gap for trace in counted for gap in trace.gaps],
    }
    return {
        "tokens": tokens,
        "seconds": end - begin,
        "tokens_per_second": tokens / (end - begin),
        **{
            name: [1e3 * percentile(times, p) for p in PERCENTILES]
            for name, times in values.items()
        },
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least value that so many percent of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
