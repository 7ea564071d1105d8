"""The loops that `llcuda bench` times, and how long it lets them run.

Loops that are compared run turn by turn, because the speed of a machine drifts.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from llcuda.engine.engine import Engine
from llcuda.engine.metrics import StepRecord
from llcuda.engine.request import RequestParams
from llcuda.errors import UnsupportedError
from llcuda.native.context import Context
from llcuda.native.model import Model
from llcuda.params import SamplingParams

Turn = Callable[[int], float]  # so many steps; returns the median seconds of one

PROMPT = 16  # tokens before the steps that are timed
CELLS = 256  # of a sequence, enough for PROMPT and the most steps
USUAL: Mapping[str, Any] = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure. turns: of each loop; seconds: of a turn; steps: least and most of it."""

    turns: int
    seconds: float
    steps: tuple[int, int]

    def repeat(self, call: Callable[[], float]) -> float:
        """Return the median of what `call` returns, after a warm-up unless that takes too long."""
        first = call()
        count = min(self.turns, int(self.turns * self.seconds / max(first, 1e-9)))
        return statistics.median([call() for _ in range(count)] or [first])

    def compare(self, loops: Mapping[str, Turn]) -> dict[str, list[float]]:
        """Return the seconds of a step of each loop, turn by turn."""
        if not loops:
            return {}
        least, most = self.steps
        slowest = max(loop(least) for loop in loops.values())  # the warm-up
        steps = max(least, min(most, int(self.seconds / slowest)))
        turns = [[loop(steps) for loop in loops.values()] for _ in range(self.turns)]
        return dict(zip(loops, (list(column) for column in zip(*turns, strict=True)), strict=True))


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, whether a GPU computes it, threads (None = llcuda's choice)."""

    model: Model
    gpu: bool
    threads: int | None
    pace: Pace

    def loop(self, rows: int, *, device_logits: bool = False, **parameters: Any) -> Loop:
        """Return the bare loop over `rows` texts."""
        return Loop(self.model, rows, device_logits, threads=self.threads, **parameters)

    def bare_loops(self, stack: ExitStack, rows: int) -> dict[str, Turn]:
        """Return the loops without sampling: logits to the host and, with a GPU, left on it."""
        kinds = {"copied": False, "left": True} if self.gpu else {"copied": False}
        return {
            name: stack.enter_context(self.loop(rows, device_logits=kind)).turn
            for name, kind in kinds.items()
        }


class Loop:
    """Decode without sampling: one token of each row a step, and the step waited for."""

    def __init__(
        self, model: Model, rows: int, device_logits: bool, depth: int = 0, **parameters: Any
    ) -> None:
        usual = {"ctx_size": CELLS + depth, "batch_size": max(512, rows * PROMPT)}
        usual |= {"unified_kv": False, "outputs_max": max(rows, PROMPT)}
        self.context = Context(
            model, sequences=rows, device_logits=device_logits, **{**usual, **parameters}
        )
        self._prompt, self._tokens = prompt(model, depth or PROMPT), prompt(model, rows)
        self._begun = False
        self.prefill_seconds = 0.0  # of one row's prompt

    def turn(self, steps: int) -> float:
        """Return the median seconds of `steps` steps, after the prompts and a few more."""
        context, seqs = self.context, list(range(len(self._tokens)))
        self._begin(seqs)
        marks = []
        for _ in range(in_all(steps)):
            context.decode_batch(self._tokens, seqs)
            context.synchronize()
            marks.append(time.perf_counter())
        return median_gap(marks[-steps - 1 :])

    def _begin(self, seqs: Sequence[int]) -> None:
        """Have nothing but the prompts in the cache; they are computed once, where it can trim."""
        if self._begun:
            try:
                for seq in seqs:
                    self.context.memory.remove(seq, len(self._prompt))
                return
            except UnsupportedError:
                self.context.memory.clear(data=False)
        for seq in seqs:
            started = time.perf_counter()
            self.context.decode(self._prompt, seq)
            self.context.synchronize()
            self.prefill_seconds = time.perf_counter() - started
        self._begun = True

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *exception: object) -> None:
        self.context.close()


class Served:
    """The engine's public API: so many requests at once, each sampled; the steps that hold all."""

    def __init__(self, model: Model, rows: int, threads: int | None) -> None:
        self._rows, self._model = rows, model
        self._marks: list[float] = []
        self._wanted, self._enough, self._together = 0, threading.Event(), threading.Event()
        self._engine = Engine(
            model, n_parallel=rows, ctx_size=CELLS, batch_size=max(512, rows * PROMPT),
            threads=threads, on_step=self._on_step,
        )  # fmt: skip
        self.whole_rate = 0.0  # tokens per second of the last turn, prompts and beginnings and all

    def _on_step(self, record: StepRecord) -> None:
        self._together.wait()
        if record.phase == "decode" and record.rows == self._rows:
            self._marks.append(time.perf_counter())
            if len(self._marks) == self._wanted:
                self._enough.set()

    def turn(self, steps: int, parameters: Sequence[Mapping[str, Any]] = (USUAL,)) -> float:
        """Return the median seconds of a step; the parameters go round the rows.

        The engine waits after its first step until all requests are there. The first one stays
        ahead, so all are cancelled when there are steps enough.
        """
        self._marks.clear()
        self._enough.clear()
        self._together.clear()
        self._wanted = in_all(steps)
        tokens = prompt(self._model, PROMPT + self._rows)
        asked = RequestParams(max_tokens=CELLS - PROMPT, ignore_eos=True)
        started = time.perf_counter()
        try:
            requests = [
                self._engine.submit(
                    tokens[row : row + PROMPT],
                    asked,
                    SamplingParams(seed=row, **parameters[row % len(parameters)]),
                )
                for row in range(self._rows)
            ]
        finally:
            self._together.set()
        while not self._enough.wait(0.1) and not any(request.done for request in requests):
            pass
        made, seconds = sum(len(r.tokens) for r in requests), time.perf_counter() - started
        for request in requests:
            request.cancel()
        for request in requests:
            request.result()
        self.whole_rate = made / seconds
        return median_gap(self._marks[: self._wanted][-steps - 1 :])

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *exception: object) -> None:
        self._together.set()
        self._engine.close()


def in_all(steps: int) -> int:
    """Return how many steps to make so that `steps` differences of warm ones can be timed."""
    return steps + 1 + min(8, steps // 2)


def prompt(model: Model, length: int) -> list[int]:
    """Return `length` tokens, no two neighbours alike."""
    return [(300 + i) % model.vocab_size for i in range(length)]


def median_gap(marks: Sequence[float]) -> float:
    """Return the median of the differences of neighbours."""
    return statistics.median(b - a for a, b in itertools.pairwise(marks))
