"""A request to the engine: what was asked, and how its result reaches the caller.

The worker thread writes, any thread or coroutine reads: by result(), as an iterator of text, by
await, or as an async iterator. No request has a thread of its own.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any

from llcuda.engine.detokenizer import StopFinder, Utf8Decoder
from llcuda.engine.metrics import RequestRecord
from llcuda.engine.outputs import Completion, StepSums, Times, TokenLogprob
from llcuda.engine.scheduler import Job
from llcuda.errors import ArgumentError
from llcuda.guide import Follower, Guide
from llcuda.keywords import split_keywords
from llcuda.params import SamplingParams, check_flags, check_number

if TYPE_CHECKING:
    import asyncio

OVERFLOWS = ("error", "truncate", "shift")


@dataclass(frozen=True, slots=True)
class RequestParams:
    """What ends a request and what it reports; SamplingParams say how tokens are chosen.

    Attributes:
        max_tokens: Largest number of tokens to sample; 0 only with `echo`, to score a text.
        stop: Text, or texts, that end the request; neither they nor what follows is shown.
        stop_tokens: Tokens that end the request.
        shown_tokens: Control tokens whose text is part of the result; others have no text.
        ignore_eos: Whether to go on after the model's end of text.
        logprobs: Alternatives to report for each token beside the chosen one; None = no
            log-probabilities.
        echo: Whether to report log-probabilities of the prompt's tokens too.
        timeout: Seconds from submission; then the request ends with what there is, finish reason
            "timeout".
        overflow: What happens to a prompt that does not fit, and to a text that reaches the end of
            the context. "error": the prompt is refused, the text ends. "truncate": the prompt
            loses its beginning. "shift": the older half after `keep` tokens is dropped, and the
            text goes on.
        keep: Tokens of the prompt's beginning that "truncate" and "shift" leave.
        guide: Restricts every token; see `llcuda.guide`. Each request needs its own.

    Raises:
        ArgumentError: A value is outside what is allowed.
    """

    max_tokens: int = 128
    stop: Iterable[str] | None = ()
    stop_tokens: Collection[int] = ()
    shown_tokens: Collection[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    echo: bool = False
    timeout: float | None = None
    overflow: str = "error"
    keep: int = 0
    guide: Guide | None = None

    def __post_init__(self) -> None:
        check_flags(self, "ignore_eos echo")
        check_number("max_tokens", self.max_tokens, "int", 0 if self.echo else 1, 2**31 - 1)
        check_number("keep", self.keep, "int", 0, 2**31 - 1)
        if self.logprobs is not None:
            check_number("logprobs", self.logprobs, "int", 0, 100)
        if self.timeout is not None:
            check_number("timeout", self.timeout, "number", 0)
        if self.overflow not in OVERFLOWS:
            raise ArgumentError(
                f"overflow={self.overflow!r}: expected one of {', '.join(OVERFLOWS)}",
                parameter="overflow",
            )
        if self.guide is not None and not isinstance(self.guide, Guide):
            raise ArgumentError(
                f"guide={self.guide!r}: expected an object with mask() and accept()",
                parameter="guide",
            )
        object.__setattr__(self, "stop", _texts(self.stop))
        for name in ("stop_tokens", "shown_tokens"):
            tokens = _items(name, getattr(self, name), "tokens")
            for token in tokens:
                check_number(name, token, "int", 0, 2**31 - 1)
            object.__setattr__(self, name, frozenset(map(int, tokens)))


def _items(name: str, given: Any, what: str) -> tuple[Any, ...]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise ArgumentError(f"{name}={given!r}: expected a list of {what}", parameter=name)
    return tuple(given)


def _texts(stop: Any) -> tuple[str, ...]:
    if stop is None or isinstance(stop, str):
        stop = () if stop is None else (stop,)
    texts = _items("stop", stop, "texts")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ArgumentError(
                f"stop: expected texts, none of them empty, not {text!r}", parameter="stop"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ArgumentError(
                f"stop: {text!r} has half of a surrogate pair, which no text has", parameter="stop"
            )
    return texts


def request_params(keywords: Mapping[str, Any]) -> tuple[RequestParams, SamplingParams]:
    """Return the settings that a request was given as keywords; TypeError for an unknown one."""
    request, sampling = split_keywords(keywords, RequestParams, SamplingParams)
    return RequestParams(**request), SamplingParams(**sampling)


_END = object()
Waiter = tuple["asyncio.AbstractEventLoop", "asyncio.Future[None]"]


class Request:
    """A handle on one text being generated; made by `Engine.submit`.

    ::

        request.result()              # waits, returns a Completion
        for text in request: ...      # text as it comes
        await request                 # the same in a coroutine; cancelling the task cancels it
        async for text in request: ...

    Only one reader may iterate; one that leaves its loop early cancels the request. Errors of this
    request are raised to whoever reads it. Waiting for it in a forked child is a ForkError, in a
    hook a ConcurrencyError.
    """

    def __init__(
        self,
        job: Job,
        params: RequestParams,
        sampler: Any,
        cancel: Callable[[Request], None],
        check_reader: Callable[[], None],
        dropped_tokens: int,
    ) -> None:
        self.params = params
        self.sampler = sampler
        self.times = Times()
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.job, job.request = job, self
        self.prompt_tokens, self.dropped_tokens = job.prompt_size, dropped_tokens
        self.drafter: Any = None
        self.follower: Follower | None = None  # of its guide
        self.forced_tokens = 0
        self.shifted_keep: int | None = None  # set once the older half was dropped
        self.since: StepSums | None = None  # the engine's sums when its first token was sampled
        self._cancel = cancel
        self._check_reader = check_reader
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

    def complete(self, reason: str, stopped: bool = False) -> None:
        """Settle the request; what was held back for a stop text is shown unless one was found."""
        if not stopped:
            rest = self._decoder.flush()
            if self._stops is not None:
                rest = self._stops.flush(rest)
            if rest:
                self._texts.append(rest)
                self._stream.put(rest)
        self.times.finished = time.perf_counter()
        self._completion = Completion(
            text="".join(self._texts),
            tokens=self.tokens,
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            dropped_tokens=self.dropped_tokens,
            reused_tokens=self.job.reused,
            seed=self.sampler.seed,
            forced_tokens=self.forced_tokens,
            logprobs=self.logprobs if self.params.logprobs is not None else None,
            prompt_logprobs=self.prompt_logprobs if self.params.echo else None,
            **self.times.phases(),
        )

    def fail(self, error: BaseException) -> None:
        """Settle the request with an exception, which its readers get."""
        self.times.finished = time.perf_counter()
        self._error = error

    def record(self, sums: StepSums) -> RequestRecord:
        """Return what a settled request cost. `sums`: the engine's, of all its decode steps."""
        since = self.since or sums
        first, error, steps = self.times.first_token, self._error, sums.steps - since.steps
        return RequestRecord(
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.job.reused,
            generated_tokens=len(self.tokens),
            forced_tokens=self.forced_tokens,
            sample_seconds=sums.sample_seconds - since.sample_seconds,
            detokenize_seconds=sums.deliver_seconds - since.deliver_seconds,
            mean_rows=(sums.rows - since.rows) / steps if steps else 0.0,
            time_to_first_token_seconds=first - self.times.submitted if first else None,
            finish_reason=self._completion.finish_reason if self._completion else "error",
            error=f"{type(error).__name__}: {error}" if error is not None else None,
            **self.times.phases(),
        )

    def end(self) -> None:
        """Wake everybody who waits for what it was settled with."""
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
        if not self.done:
            self._cancel(self)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end and return the Completion; TimeoutError after `timeout` seconds."""
        if not self.done:
            self._check_reader()
            if not self._done.wait(timeout):
                raise TimeoutError(f"no result after {timeout} s; the request goes on")
        return self._outcome()

    def _outcome(self) -> Completion:
        if self._error is not None:
            raise _copy(self._error)
        assert self._completion is not None
        return self._completion

    def __iter__(self) -> Iterator[str]:
        try:
            while True:
                if self._stream.empty():
                    self._check_reader()
                text = self._stream.get()
                if text is _END:
                    break
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

    def take(self) -> str:
        """Return all text that has come and was not read, "" if there is none; never waits.

        Of an iterator or `more` it takes the text away: use one of them.
        """
        texts = []
        with contextlib.suppress(queue.Empty):
            while (text := self._stream.get_nowait()) is not _END:
                texts.append(text)
            self._stream.put(_END)  # for those who ask again
        return "".join(texts)

    async def more(self) -> str:
        """Wait for text, and return all that has come; "" at the end. Raises this request's error.

        For who writes it on: `async for` goes round once for each piece. Cancelling the task
        cancels the request, leaving off does not.
        """
        while not (text := self.take()):
            if self.done and self._stream.qsize() <= 1:
                self._outcome()
                return ""
            await self._wait_for(lambda: not self._stream.empty(), readers=True)
        return text

    async def _wait_for(self, ready: Callable[[], bool], readers: bool) -> None:
        """Wait for more text or for the end; cancelling the task cancels the request."""
        import asyncio  # 14 ms, for those who await

        self._check_reader()
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


def _copy(error: BaseException) -> BaseException:
    """Return an exception like `error`, caused by it: several callers must not raise one object.

    A constructor written in Python is not called: it may want other arguments.
    """
    kind = type(error)
    try:
        own = isinstance(kind.__init__, FunctionType)
        copy = kind.__new__(kind, *error.args) if own else kind(*error.args)
        copy.__dict__.update(error.__dict__)
    except Exception:  # of a kind that cannot be made again
        return error
    copy.__cause__ = error
    return copy
