"""The loops that `llcuda bench` times, and for how long.

Loops that are compared run in alternating turns, because the speed of a machine drifts.
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

TimedLoop = Callable[[int], float]  # runs that many steps; returns the median seconds of a step

PROMPT_TOKENS = 16  # decoded before the timed steps
CTX_SIZE = 256  # KV cells of a sequence, enough for the prompt and the timed steps
DEFAULT_SAMPLING: Mapping[str, Any] = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to measure.

    Attributes:
        turns: Turns of each loop.
        seconds: Seconds that a turn should take.
        steps: The least and the most steps of a turn.
    """

    turns: int
    seconds: float
    steps: tuple[int, int]

    def repeat(self, measure: Callable[[], float]) -> float:
        """Return the median of repeated measurements.

        The first one is the warm-up and does not count, unless it took too long to repeat.
        """
        first = measure()
        count = min(self.turns, int(self.turns * self.seconds / max(first, 1e-9)))
        return statistics.median([measure() for _ in range(count)] or [first])

    def compare(self, loops: Mapping[str, TimedLoop]) -> dict[str, list[float]]:
        """Return the seconds of a step of each loop in each turn.

        All loops make the same number of steps, which the slowest loop decides.
        """
        if not loops:
            return {}
        min_steps, max_steps = self.steps
        slowest = max(loop(min_steps) for loop in loops.values())  # the warm-up
        steps = max(min_steps, min(max_steps, int(self.seconds / slowest)))
        turns = [[loop(steps) for loop in loops.values()] for _ in range(self.turns)]
        return dict(zip(loops, (list(column) for column in zip(*turns, strict=True)), strict=True))


@dataclass(frozen=True)
class Subject:
    """A loaded model to measure.

    Attributes:
        model: The model.
        gpu: Whether a GPU computes it.
        threads: Threads of the CPU; None is llcuda's default.
        budget: How long to measure.
    """

    model: Model
    gpu: bool
    threads: int | None
    budget: Budget

    def decode_loop(
        self, rows: int, *, device_logits: bool = False, **parameters: Any
    ) -> DecodeLoop:
        """Return a decode loop over `rows` sequences; see DecodeLoop."""
        return DecodeLoop(self.model, rows, device_logits, threads=self.threads, **parameters)

    def decode_loops(self, stack: ExitStack, rows: int) -> dict[str, TimedLoop]:
        """Return decode loops by where they leave the logits.

        "copied" copies them to the host; "left" leaves them on the GPU, if there is one.
        """
        kinds = {"copied": False, "left": True} if self.gpu else {"copied": False}
        return {
            name: stack.enter_context(self.decode_loop(rows, device_logits=device_logits)).run
            for name, device_logits in kinds.items()
        }


class DecodeLoop:
    """Decodes without sampling: a step computes a token of each row and waits for it.

    Args:
        model: The model.
        rows: Sequences in the batch.
        device_logits: Whether the logits stay on the GPU.
        depth: Tokens of each sequence before the timed steps; 0 is PROMPT_TOKENS.
        parameters: Further fields of ContextParams.

    Attributes:
        prefill_seconds: Seconds that the prompt of one row took.
    """

    def __init__(
        self, model: Model, rows: int, device_logits: bool, depth: int = 0, **parameters: Any
    ) -> None:
        defaults = {
            "ctx_size": CTX_SIZE + depth,
            "batch_size": max(512, rows * PROMPT_TOKENS),
            "unified_kv": False,
            "outputs_max": max(rows, PROMPT_TOKENS),
        }
        self.context = Context(
            model, sequences=rows, device_logits=device_logits, **{**defaults, **parameters}
        )
        self._prompt = make_prompt(model, depth or PROMPT_TOKENS)
        self._tokens = make_prompt(model, rows)
        self._prompts_decoded = False
        self.prefill_seconds = 0.0

    def run(self, steps: int) -> float:
        """Return the median seconds of `steps` steps, after the prompts and a warm-up."""
        context, seqs = self.context, list(range(len(self._tokens)))
        self._reset_to_prompts(seqs)
        times = []
        for _ in range(steps_with_warm_up(steps)):
            context.decode_batch(self._tokens, seqs)
            context.synchronize()
            times.append(time.perf_counter())
        return median_interval(times[-steps - 1 :])

    def _reset_to_prompts(self, seqs: Sequence[int]) -> None:
        """Leave only the prompts in the cache; decode them again only if it cannot be cut."""
        if self._prompts_decoded:
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
        self._prompts_decoded = True

    def __enter__(self) -> DecodeLoop:
        return self

    def __exit__(self, *exception: object) -> None:
        self.context.close()


class RequestLoop:
    """Submits requests to an engine, as its users do, and times the steps that hold all of them.

    Args:
        model: The model.
        rows: Requests at once.
        threads: Threads of the CPU; None is llcuda's default.

    Attributes:
        total_rate: Tokens per second of the last turn, prompts and first steps included.
    """

    def __init__(self, model: Model, rows: int, threads: int | None) -> None:
        self._rows, self._model = rows, model
        self._step_times: list[float] = []
        self._wanted_steps, self._enough_steps = 0, threading.Event()
        self._all_submitted = threading.Event()
        self._engine = Engine(
            model, n_parallel=rows, ctx_size=CTX_SIZE, batch_size=max(512, rows * PROMPT_TOKENS),
            threads=threads, on_step=self._on_step,
        )  # fmt: skip
        self.total_rate = 0.0

    def _on_step(self, record: StepRecord) -> None:
        self._all_submitted.wait()
        if record.phase == "decode" and record.rows == self._rows:
            self._step_times.append(time.perf_counter())
            if len(self._step_times) == self._wanted_steps:
                self._enough_steps.set()

    def run(
        self, steps: int, parameters: Sequence[Mapping[str, Any]] = (DEFAULT_SAMPLING,)
    ) -> float:
        """Return the median seconds of a step.

        The engine waits after its first step until all requests are submitted. The first request
        stays ahead, so all are cancelled after enough steps.

        Args:
            steps: Steps to time.
            parameters: Sampling parameters, which the rows take in rotation.
        """
        self._step_times.clear()
        self._enough_steps.clear()
        self._all_submitted.clear()
        self._wanted_steps = steps_with_warm_up(steps)
        tokens = make_prompt(self._model, PROMPT_TOKENS + self._rows)
        request_params = RequestParams(max_tokens=CTX_SIZE - PROMPT_TOKENS, ignore_eos=True)
        started = time.perf_counter()
        try:
            requests = [
                self._engine.submit(
                    tokens[row : row + PROMPT_TOKENS],
                    request_params,
                    SamplingParams(seed=row, **parameters[row % len(parameters)]),
                )
                for row in range(self._rows)
            ]
        finally:
            self._all_submitted.set()
        while not self._enough_steps.wait(0.1) and not any(request.done for request in requests):
            pass
        count = sum(len(request.tokens) for request in requests)
        seconds = time.perf_counter() - started
        for request in requests:
            request.cancel()
        for request in requests:
            request.result()
        self.total_rate = count / seconds
        return median_interval(self._step_times[: self._wanted_steps][-steps - 1 :])

    def __enter__(self) -> RequestLoop:
        return self

    def __exit__(self, *exception: object) -> None:
        self._all_submitted.set()
        self._engine.close()


def steps_with_warm_up(steps: int) -> int:
    """Return how many steps to run so that `steps` intervals between warm ones are timed."""
    return steps + 1 + min(8, steps // 2)


def make_prompt(model: Model, length: int) -> list[int]:
    """Return `length` tokens, each different from the one before."""
    return [(300 + i) % model.vocab_size for i in range(length)]


def median_interval(times: Sequence[float]) -> float:
    """Return the median of the differences between consecutive times."""
    return statistics.median(b - a for a, b in itertools.pairwise(times))
