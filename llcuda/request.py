"""A request to the engine: what was asked, and how its result reaches the caller.

The worker thread writes, any thread or coroutine reads: by result(), as an iterator of text, by
await, or as an async iterator. No request has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from llcuda.errors import ArgumentError
from llcuda.params import SamplingParams, check_flags, check_number
from llcuda.scheduler import Job
from llcuda.text import StopFinder, Utf8Decoder

OVERFLOWS = ("error", "truncate", "shift")


@dataclass(frozen=True, slots=True)
class RequestParams:
    """What ends a request, and what it reports. Sampling is SamplingParams' part.

    max_tokens: at most so many are sampled. stop: texts that end it; neither they nor what
    follows is shown. stop_tokens: tokens that end it. ignore_eos: go on after the model's end.
    logprobs: None, or how many alternatives to report for each token besides the chosen one.
    echo: report log-probabilities of the prompt's tokens too.
    timeout: seconds from submission; then it ends with what there is, finish reason "timeout".
    overflow: a prompt that does not fit, or a text that reaches the context's end: "error" (the
        prompt) and end (the text), "truncate" (drop the prompt's beginning), "shift" (drop the
        older half after `keep` tokens, and go on).
    keep: tokens of the prompt's beginning that "truncate" and "shift" leave.
    """

    max_tokens: int = 128
    stop: Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    echo: bool = False
    timeout: float | None = None
    overflow: str = "error"
    keep: int = 0

    def __post_init__(self) -> None:
        check_number("max_tokens", self.max_tokens, "int", 1, 2**31 - 1)
        check_number("keep", self.keep, "int", 0, 2**31 - 1)
        check_flags(self, "ignore_eos echo")
        if self.logprobs is not None:
            check_number("logprobs", self.logprobs, "int", 0, 100)
        if self.timeout is not None:
            check_number("timeout", self.timeout, "number", 0)
        if self.overflow not in OVERFLOWS:
            raise ArgumentError(
                f"overflow={self.overflow!r}: expected one of {', '.join(OVERFLOWS)}"
            )
        object.__setattr__(self, "stop", _texts(self.stop))
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        for token in self.stop_tokens:
            check_number("stop_tokens", token, "int", 0, 2**31 - 1)


def _texts(stop: Any) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) and text for text in texts):
        raise ArgumentError(f"stop={stop!r}: expected texts, none of them empty")
    return texts


REQUEST_FIELDS = frozenset(item.name for item in fields(RequestParams))
SAMPLING_FIELDS = frozenset(item.name for item in fields(SamplingParams))


def split_parameters(given: dict[str, Any]) -> tuple[RequestParams, SamplingParams]:
    """Return both kinds of parameters; TypeError for a keyword that is of neither."""
    unknown = given.keys() - REQUEST_FIELDS - SAMPLING_FIELDS
    if unknown:
        raise TypeError(f"unknown parameter {', '.join(sorted(unknown))}")
    return (
        RequestParams(**{k: v for k, v in given.items() if k in REQUEST_FIELDS}),
        SamplingParams(**{k: v for k, v in given.items() if k in SAMPLING_FIELDS}),
    )


@dataclass(slots=True)
class Times:
    """When a request was submitted, admitted, prefilled and done; seconds of time.perf_counter."""

    submitted: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability and the most probable alternatives, best first."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a request came to.

    finish_reason: "stop" (the model's end, a stop text or token), "length" (max_tokens), "context"
    (the context is full), "timeout" or "cancelled". Times are seconds; queue_seconds until a slot
    was free, then until the first token, then to the end; latency_seconds is the whole.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    prompt_tokens: int
    reused_tokens: int
    seed: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    latency_seconds: float
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None

    def __str__(self) -> str:
        return self.text


_END = object()
Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Request:
    """A handle on one text being generated; made by `Engine.submit`.

    ::

        request.result()              # waits, returns a Completion
        for text in request: ...      # text as it comes
        await request                 # the same in a coroutine; cancelling the task cancels it
        async for text in request: ...

    Only one reader may iterate; one that leaves its loop early cancels the request. Errors of this
    request are raised to whoever reads it.
    """

    def __init__(
        self, job: Job, params: RequestParams, sampler: Any, cancel: Callable[[Request], None]
    ) -> None:
        self.params = params
        self.sampler = sampler
        self.times = Times()
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.job = job
        job.request = self
        self.prompt_tokens = job.prompt_size
        self.drafter: Any = None
        self.shifted_keep: int | None = None  # set once the older half was dropped
        self.shares = (0.0, 0.0)  # of sampling and delivery, when it was admitted
        self._cancel = cancel
        self._decoder = Utf8Decoder()
        self._stops = StopFinder(params.stop) if params.stop else None
        self._texts: list[str] = []
        self._stream: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done = threading.Event()
        self._completion: Completion | None = None
        self._error: BaseException | None = None
        self._readers: list[Waiter] = []  # wait for more text
        self._waiters: list[Waiter] = []  # wait for the end
        self._lock = threading.Lock()

    # --- written by the worker ---

    def deliver(self, piece: bytes) -> bool:
        """Add a token's bytes; return whether a stop text has ended the request."""
        text = self._decoder.decode(piece)
        stopped = False
        if self._stops is not None:
            text, stopped = self._stops.decode(text)
        if text:
            self._texts.append(text)
            self._stream.put(text)
        return stopped

    def take_readers(self) -> list[Waiter]:
        """Return the coroutines that wait for more text, if there are any."""
        if not self._readers:
            return []
        with self._lock:
            readers, self._readers = self._readers, []
        return readers

    def complete(self, reason: str, stopped: bool = False) -> Completion:
        """End the request; what was held back for a stop text is shown unless one was found."""
        if not stopped:
            rest = self._decoder.flush()
            if self._stops is not None:
                rest = self._stops.flush(rest)
            if rest:
                self._texts.append(rest)
                self._stream.put(rest)
        times = self.times
        times.finished = now = time.perf_counter()
        admitted = times.admitted or now
        first = times.first_token or now
        self._completion = Completion(
            text="".join(self._texts),
            tokens=self.tokens,
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.job.reused,
            seed=self.sampler.seed,
            queue_seconds=admitted - times.submitted,
            prefill_seconds=first - admitted,
            decode_seconds=now - first,
            latency_seconds=now - times.submitted,
            logprobs=self.logprobs if self.params.logprobs is not None else None,
            prompt_logprobs=self.prompt_logprobs if self.params.echo else None,
        )
        self._end()
        return self._completion

    def fail(self, error: BaseException) -> None:
        """End the request with an exception, which its readers get."""
        self._error = error
        self._end()

    def _end(self) -> None:
        self._stream.put(_END)
        self._done.set()
        with self._lock:
            waiters, self._waiters = self._waiters, []
        wake(waiters + self.take_readers())

    # --- read by the caller ---

    @property
    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._done.is_set()

    def cancel(self) -> None:
        """End the request as soon as the step that runs is over; finish reason "cancelled"."""
        self._cancel(self)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end and return the Completion; TimeoutError after `timeout` seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"no result after {timeout} s; the request goes on")
        return self._outcome()

    def _outcome(self) -> Completion:
        if self._error is not None:
            raise self._error
        assert self._completion is not None
        return self._completion

    def __iter__(self) -> Iterator[str]:
        try:
            while (text := self._stream.get()) is not _END:
                yield text
        finally:
            self._left()
        self._outcome()

    def _left(self) -> None:
        """A reader leaves: cancel what is unfinished, and let a second reader end at once."""
        if self.done:
            self._stream.put(_END)
        else:
            self.cancel()

    async def _wait_for(self, ready: Callable[[], bool], readers: bool) -> None:
        """Wait for more text or for the end; cancelling the task cancels the request."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            (self._readers if readers else self._waiters).append((loop, future))
        if ready():
            return  # it came between the caller's look and now
        try:
            await future
        except asyncio.CancelledError:
            self.cancel()
            raise

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._wait().__await__()

    async def _wait(self) -> Completion:
        while not self.done:
            await self._wait_for(self._done.is_set, readers=False)
        return self._outcome()

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            while True:
                try:
                    text = self._stream.get_nowait()
                except queue.Empty:
                    await self._wait_for(lambda: not self._stream.empty(), readers=True)
                    continue
                if text is _END:
                    break
                yield text
        finally:
            self._left()
        self._outcome()


def wake(waiters: Sequence[Waiter]) -> None:
    """Resolve the futures of `waiters`, with one call for each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for loop, future in waiters:
        loops.setdefault(loop, []).append(future)
    for loop, futures in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there
            loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
