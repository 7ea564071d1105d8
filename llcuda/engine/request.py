"""Request: the caller's handle for a generation, and the parameters that it is asked with."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from llcuda._lazy import explain_names
from llcuda._pickling import stays_in_process
from llcuda.display import show_stream
from llcuda.engine.functions import checked_functions
from llcuda.engine.outputs import Completion, TokenLogprob
from llcuda.errors import shown
from llcuda.guide import Guide
from llcuda.keywords import explain_keywords, split_keywords
from llcuda.params import (
    SamplingParams,
    check_choice,
    check_flags,
    check_number,
    wrong_argument,
    wrong_value,
)

if TYPE_CHECKING:
    import asyncio

OVERFLOWS = ("error", "truncate", "shift")


@explain_keywords
@dataclass(frozen=True, slots=True)
class RequestParams:
    """What ends a request and what it reports; SamplingParams say how tokens are chosen.

    Attributes:
        max_tokens: Largest number of tokens to sample; 0 only with `echo`, to score a text.
        stop: Text, or texts, that end the request; neither they nor what follows is shown.
        stop_tokens: Tokens that end the request.
        shown_tokens: Control tokens whose text is part of the result; others have no text.
        ignore_eos: Whether to go on after the model's end of text. A guide, a response_format or a
            grammar ends the text nevertheless where it permits nothing else.
        logprobs: Alternatives to report for each token beside the chosen one; None = no
            log-probabilities.
        echo: Whether to report log-probabilities of the prompt's tokens too.
        timeout: Seconds from submission; then the request ends with what there is, finish reason
            "timeout".
        overflow: What happens to a prompt that does not fit, and to a text that reaches the end of
            the context. "error": the prompt is refused, the text ends. "truncate": the prompt
            loses its beginning. "shift": the older half after `keep` tokens is dropped, and the
            text goes on; an error for models whose memory cannot do that: recurrent and hybrid
            ones, those with M-RoPE, and those with a sliding window with swa_full=False or with
            unified_kv=True and several sequences. A chat also takes "drop", see `Engine.chat`.
        keep: Tokens of the prompt's beginning that "truncate" and "shift" leave; 0 with "error".
        guide: Restricts every token; see `llcuda.guide`. Each request needs its own.
        penalize_prompt: Whether repeat_penalty and DRY count the tokens of the prompt too.
        min_tokens: Least number of tokens. Before, end tokens and `stop_tokens` are sampled only
            where a guide, a grammar or a function allows no other token; stop texts are not
            searched and `stopping_criteria` not called. A full context, the timeout and a
            cancellation end the text all the same.
        logits_processor: A function, or several in their order, that change the logits of each
            sampled token: f(token_ids, logits) returns the new logits, or None where it has changed
            them in place. token_ids: int32, the tokens of prompt and text so far; without those
            that overflow="shift" has dropped. logits: float32, shape (vocab_size,); -inf forbids a
            token. The functions come before the guide and all steps of SamplingParams, and
            log-probabilities are those of the model. They run on the engine's thread, so that a
            slow one delays all requests; an exception ends its own request, and its reader gets it.
            No token is speculated for the request.
        stopping_criteria: A function, or several, that end the text: f(token_ids, text) is called
            after each token and returns whether it was the last one; finish reason "stop". text:
            the text so far, without what is held back for an unfinished character or for a stop
            text that may have begun. Otherwise as logits_processor.
        priority: The place in the queue: requests with a lower number get a free slot first, those
            with an equal one in the order of their submission. It does not interrupt one that runs.
        cache_prompt: Whether a cached prefix may spare the beginning of the prompt.
        slot: The slot of the KV cache that computes the request, which waits until it is free; None
            = any. `Engine.slots` lists them. On a GPU that runs several requests a later step may
            move a request to another slot.

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
    penalize_prompt: bool = True
    min_tokens: int = 0
    logits_processor: Callable[..., Any] | Collection[Callable[..., Any]] | None = None
    stopping_criteria: Callable[..., Any] | Collection[Callable[..., Any]] | None = None
    priority: int = 0
    cache_prompt: bool = True
    slot: int | None = None

    def __post_init__(self) -> None:
        check_flags(self, "ignore_eos echo penalize_prompt cache_prompt")
        check_number("max_tokens", self.max_tokens, "int", 0 if self.echo else 1, 2**31 - 1)
        check_number("min_tokens", self.min_tokens, "int", 0, 2**31 - 1)
        if self.min_tokens > self.max_tokens:
            rule = f"expected at most max_tokens={self.max_tokens}"
            raise wrong_value("min_tokens", self.min_tokens, rule, "raise max_tokens, or lower it")
        check_number("priority", self.priority, "int", -(2**31), 2**31 - 1)
        check_number("keep", self.keep, "int", 0, 2**31 - 1)
        if self.slot is not None:
            check_number("slot", self.slot, "int", 0, 255)
        if self.logprobs is not None:
            check_number("logprobs", self.logprobs, "int", 0, 100)
        if self.timeout is not None:
            check_number("timeout", self.timeout, "number", 0)
        if isinstance(self.overflow, str) and self.overflow == "drop":
            rule = "only a chat has turns to drop"
            raise wrong_value("overflow", "drop", rule, 'give "truncate" or "shift"')
        check_choice("overflow", self.overflow, OVERFLOWS)
        if self.keep and self.overflow == "error":
            rule = 'has no effect with overflow="error"'
            raise wrong_value("keep", self.keep, rule, 'give overflow="truncate" or "shift"')
        if self.guide is not None and not isinstance(self.guide, Guide):
            raise wrong_value("guide", self.guide, "expected an object with mask() and accept()")
        object.__setattr__(self, "stop", _texts(self.stop))
        for name in ("logits_processor", "stopping_criteria"):
            object.__setattr__(self, name, checked_functions(name, getattr(self, name)))
        for name in ("stop_tokens", "shown_tokens"):
            tokens = _items(name, getattr(self, name), "tokens")
            for token in tokens:
                check_number(name, token, "int", 0, 2**31 - 1)
            object.__setattr__(self, name, frozenset(map(int, tokens)))


def kept_tokens(params: RequestParams, adds_bos: bool, ctx_size: int) -> int:
    """Return how many tokens of the beginning overflow="truncate" and "shift" leave.

    Args:
        params: The parameters of the request.
        adds_bos: Whether the model's texts begin with a token of their own, which always stays.
        ctx_size: Tokens of the context, of which at most half stay.
    """
    return min(max(params.keep, int(adds_bos)), ctx_size // 2)


def _items(name: str, given: Any, what: str) -> tuple[Any, ...]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        what = "a list of texts, or one text" if what == "texts" else f"a list of {what}"
        raise wrong_value(name, given, f"expected {what}")
    return tuple(given)


def _texts(stop: Any) -> tuple[str, ...]:
    if stop is None or isinstance(stop, str):
        stop = () if stop is None else (stop,)
    texts = _items("stop", stop, "texts")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise wrong_argument("stop", f"expected texts, none of them empty, not {shown(text)}")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise wrong_argument(
                "stop", f"{shown(text)} has half of a surrogate pair, which no text has"
            )
    return texts


def request_params(keywords: Mapping[str, Any]) -> tuple[RequestParams, SamplingParams]:
    """Return the settings that a request was given as keywords; TypeError for an unknown one."""
    request, sampling = split_keywords(keywords, RequestParams, SamplingParams)
    return RequestParams(**request), SamplingParams(**sampling)


_END = object()
Item = TypeVar("Item")
Handle = TypeVar("Handle", bound="Cancellable")
Waiter = tuple["asyncio.AbstractEventLoop", "asyncio.Future[None]"]


class Cancellable(Protocol):
    """A Request, or a Chat, which has one."""

    @property
    def done(self) -> bool:
        """Whether there is a result or an error."""

    def cancel(self) -> None:
        """End it as soon as the running step is over."""


class RequestOwner(Protocol):
    """The part of an engine that its requests call, from any thread."""

    def cancel(self, request: Request) -> None:
        """End the request between two steps."""

    def check_reader(self) -> None:
        """Raise where waiting for a request would never end."""


@explain_names
@stays_in_process("its result()")
class Request:
    """A handle for one running generation request; made by `Engine.submit`.

    ::

        request.result()              # waits, returns a Completion
        for text in request: ...      # text as it comes
        await request                 # result() for coroutines; cancelling the task cancels it
        async for text in request: ...

    Only one reader may iterate; a reader that leaves its loop early cancels the request. A reader
    gets the exception of a request that failed. Waiting in a forked child is a ForkError, in a
    hook of the engine a ConcurrencyError. A request has no thread of its own. It is finished even
    if nobody holds its engine; closing the engine ends it with ClosedError.

    Attributes:
        params: The request's parameters.
        prompt_tokens: Tokens of the prompt.
        dropped_tokens: Tokens of the prompt that overflow="truncate" or "shift" left out.
        seed: The seed of its sampler.
        response_format: The format of the text, if it has one.
        slot: The slot of the KV cache that it was given; None while it waits.
        tokens: The generated tokens so far.
        logprobs: The log-probabilities of these tokens so far, if asked for.
        prompt_logprobs: The log-probabilities of the prompt's tokens so far, if asked for.
    """

    def __init__(
        self,
        params: RequestParams,
        owner: RequestOwner,
        *,
        prompt_tokens: int,
        dropped_tokens: int = 0,
        seed: int = 0,
        response_format: Any = None,
    ) -> None:
        self.params, self.response_format = params, response_format
        self.prompt_tokens, self.dropped_tokens, self.seed = prompt_tokens, dropped_tokens, seed
        self.slot: int | None = None
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self._owner = owner
        self._stream: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.emit: Callable[[str], None] = self._stream.put
        self._done = threading.Event()
        self._outcome: Completion | BaseException | None = None
        self._readers: list[Waiter] = []  # wait for more text
        self._waiters: list[Waiter] = []  # wait for the end
        self._events: list[threading.Event] = []  # of `as_completed`
        self._lock = threading.Lock()

    # --- for the engine's thread, with `emit` ---

    def take_readers(self) -> list[Waiter]:
        """Return the coroutines that wait for more text, if there are any."""
        if not self._readers:
            return []
        with self._lock:
            readers, self._readers = self._readers, []
        return readers

    def settle(self, outcome: Completion | BaseException) -> None:
        """End the request with a result or an exception, and wake everybody who waits for it."""
        self._outcome = outcome
        self._stream.put(_END)
        self._done.set()
        with self._lock:
            waiters, self._waiters = self._waiters, []
            events, self._events = self._events, []
        wake(waiters + self.take_readers())
        for event in events:
            event.set()

    # --- for the caller ---

    @property
    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._done.is_set()

    def cancel(self) -> None:
        """End the request as soon as the running step is over; finish reason "cancelled"."""
        if not self.done:
            self._owner.cancel(self)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end and return the result.

        Args:
            timeout: Seconds to wait; None waits without a limit.

        Raises:
            TimeoutError: There is no result yet; the request goes on.
        """
        if not self.done:
            self._owner.check_reader()
            if not self._done.wait(timeout):
                raise TimeoutError(f"no result after {timeout} s; the request goes on")
        return self._completion()

    @property
    def text(self) -> str:
        """The text of `result()`; waits for the end."""
        return self.result().text

    @property
    def parsed(self) -> Any:
        """What the text of `result()` holds, by the `response_format`; waits for the end."""
        return self.result().parsed

    def _completion(self) -> Completion:
        outcome = self._outcome
        if isinstance(outcome, BaseException):
            raise copy_of(outcome)
        assert outcome is not None
        return outcome

    def __iter__(self) -> Iterator[str]:
        try:
            while True:
                if self._stream.empty():
                    self._owner.check_reader()
                text = self._stream.get()
                if text is _END:
                    break
                yield text
        finally:
            self._reader_left()
        self._completion()

    def _reader_left(self) -> None:
        """Cancel an unfinished request; let a second reader of a finished one end at once."""
        if self.done:
            self._stream.put(_END)
        else:
            self.cancel()

    def take(self) -> str:
        """Return all text that has come and was not read, "" if there is none; never waits.

        Do not mix it with an iterator: each piece of text goes to one reader.
        """
        texts = []
        with contextlib.suppress(queue.Empty):
            while (text := self._stream.get_nowait()) is not _END:
                texts.append(text)
            self._stream.put(_END)  # for the next call
        return "".join(texts)

    async def more(self) -> str:
        """Wait for text and return all that has come; "" at the end.

        A forwarder needs fewer turns with it than with `async for`, which has one for each piece.
        Cancelling the task cancels the request; not calling it again does not.

        Raises:
            Exception: The exception of a request that failed.
        """
        while not (text := self.take()):
            if self.done and self._stream.qsize() <= 1:
                self._completion()
                return ""
            await self._wait_for(lambda: not self._stream.empty(), readers=True)
        return text

    async def _wait_for(self, ready: Callable[[], bool], readers: bool) -> None:
        """Wait for more text or for the end; cancelling the task cancels the request."""
        import asyncio  # 14 ms, paid by those who await

        self._owner.check_reader()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            (self._readers if readers else self._waiters).append((loop, future))
        if ready():
            return  # it came since the caller looked
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
        return self._completion()

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
            self._reader_left()
        self._completion()

    def _note_end(self, event: threading.Event) -> None:
        """Set an event when the request has ended; at once if it has.

        Raises:
            ForkError: This is a forked child.
            ConcurrencyError: This is a hook, in which waiting would never end.
        """
        if not self.done:
            self._owner.check_reader()
            with self._lock:
                self._events.append(event)
        if self.done:
            event.set()

    def __str__(self) -> str:
        """Wait for the end and return the text."""
        return str(self.result())

    def _ipython_display_(self) -> None:
        """Show the text in a notebook while it is written."""
        show_stream(self, self.result, self.cancel)

    def __repr__(self) -> str:
        outcome = self._outcome
        if isinstance(outcome, BaseException):
            state = f"failed with {type(outcome).__name__}"
        else:
            state = "unfinished" if outcome is None else outcome.finish_reason
        size = f"{self.prompt_tokens} prompt tokens, {len(self.tokens)} generated"
        return f"<llcuda.Request: {size}, {state}>"


def as_completed(
    items: Iterable[Item], submit: Callable[[int, Item], Handle], width: int
) -> Iterator[tuple[int, Handle]]:
    """Submit items, and yield the index and the handle of each when it has ended.

    Items are read as they are needed. Leaving the loop cancels the requests that run.

    Args:
        items: What is submitted.
        submit: Submits an item, given its index too, and returns its request or chat.
        width: The most that are unfinished at once.
    """
    waiting = enumerate(items)
    running: dict[int, Handle] = {}
    ended = threading.Event()
    try:
        while True:
            for index, item in itertools.islice(waiting, width - len(running)):
                running[index] = handle = submit(index, item)
                request: Request = getattr(handle, "request", handle)  # type: ignore[arg-type]
                request._note_end(ended)
            if not running:
                return
            ended.wait()
            ended.clear()  # before looking: a request that ends meanwhile sets it again
            for index in [index for index, handle in running.items() if handle.done]:
                yield index, running.pop(index)
    finally:
        for handle in running.values():
            handle.cancel()


def wake(waiters: Iterable[Waiter]) -> None:
    """Resolve the futures of `waiters`, with one call for each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for loop, future in waiters:
        loops.setdefault(loop, []).append(future)
    for loop, futures in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there
            loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def copy_of(error: BaseException) -> BaseException:
    """Return an exception like `error`, caused by it: several callers must not raise one object.

    A constructor written in Python is not called, as it may want other arguments. Returns `error`
    itself where it cannot be made again.
    """
    kind = type(error)
    try:
        foreign = isinstance(kind.__init__, FunctionType)
        copy = kind.__new__(kind, *error.args) if foreign else kind(*error.args)
        copy.__dict__.update(error.__dict__)
    except Exception:
        return error
    copy.__cause__ = error
    return copy
