"""The engine: one worker thread decodes for every caller, in one batch.

`submit` returns a Request at once; the worker's `step` plans, decodes, samples and delivers.
Requests join and leave at any step, each with its own sampling parameters.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llcuda.errors import (
    ArgumentError,
    ClosedError,
    DecodeError,
    LlcudaError,
    QueueFullError,
)
from llcuda.metrics import Metrics, RequestRecord, StepRecord
from llcuda.native.context import Context
from llcuda.native.model import Model
from llcuda.native.sampler import Sampler
from llcuda.params import ContextParams, SamplingParams, check_number
from llcuda.request import Request, RequestParams, split_parameters
from llcuda.scheduler import Job
from llcuda.worker import Worker

logger = logging.getLogger("llcuda.engine")
_open_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class EngineParams:
    """The size of an engine.

    n_parallel: texts that decode in one batch. ctx_size: tokens of each.
    cache_size: KV cells in all; None = n_parallel x ctx_size. More room keeps more finished texts,
        whose beginnings later prompts need not compute again.
    batch_size: most prompt tokens of one step, which is how long a prompt delays running texts.
    queue_size: most requests that may wait; another is a QueueFullError.
    speculation: most tokens guessed from the text itself for each step, 0 = off.
    """

    n_parallel: int = 1
    ctx_size: int = 2048
    cache_size: int | None = None
    batch_size: int = 512
    ubatch_size: int = 128
    queue_size: int = 1024
    speculation: int = 0

    def __post_init__(self) -> None:
        check_number("n_parallel", self.n_parallel, "int", 1, 256)
        check_number("ctx_size", self.ctx_size, "int", 1, 2**31 - 1)
        check_number("batch_size", self.batch_size, "int", 1, 2**20)
        check_number("ubatch_size", self.ubatch_size, "int", 1, 2**20)
        check_number("queue_size", self.queue_size, "int", 1)
        check_number("speculation", self.speculation, "int", 0, 32)
        if self.cache_size is not None:
            check_number("cache_size", self.cache_size, "int", self.ctx_size)

    @property
    def slots(self) -> int:
        """Sequences of the KV cache: n_parallel, and as many kept texts as there is room for."""
        extra = (self.cache_size or 0) // self.ctx_size - self.n_parallel
        return min(256, self.n_parallel + max(0, extra))


class Engine:
    """Runs requests on `model` with continuous batching, from any thread or coroutine.

    parameters: the fields of EngineParams, and of ContextParams for the rest.
    on_step, on_request: called by the worker with a StepRecord or RequestRecord; what they raise is
        logged, and harms no request.
    """

    def __init__(
        self,
        model: Model,
        *,
        on_step: Callable[[StepRecord], None] | None = None,
        on_request: Callable[[RequestRecord], None] | None = None,
        metrics: Metrics | None = None,
        **parameters: Any,
    ) -> None:
        own = {k: parameters.pop(k) for k in EngineParams.__dataclass_fields__ if k in parameters}
        self.params = params = EngineParams(**own)
        self.model = model
        self.metrics = metrics or Metrics()
        self.context = Context(
            model,
            params=ContextParams(
                ctx_size=params.ctx_size,
                sequences=params.slots,
                batch_size=max(params.batch_size, params.slots * (1 + params.speculation)),
                ubatch_size=params.ubatch_size,
                **{"unified_kv": False, **parameters},
            ),
        )
        self._worker = Worker(
            self.context,
            params.n_parallel,
            params.batch_size,
            params.speculation,
            self.metrics,
            self._admitted,
            on_step,
            on_request,
        )
        self._ends = frozenset(model.eog_tokens)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed: LlcudaError | None = None
        self._stopping = self._draining = False
        self._thread = threading.Thread(target=self._work, name="llcuda-engine", daemon=True)
        self._thread.start()
        _open_engines.add(self)

    # --- for callers ---

    def submit(
        self,
        prompt: str | Sequence[int],
        params: RequestParams | None = None,
        sampling: SamplingParams | None = None,
        **parameters: Any,
    ) -> Request:
        """Queue a text or its tokens, and return the handle of its continuation.

        parameters: the fields of RequestParams and SamplingParams, or one object of each.
        Raises ArgumentError (an empty prompt, one beyond the context), QueueFullError,
        ClosedError, and TypeError for an unknown keyword.
        """
        return self.submit_n(prompt, 1, params, sampling, **parameters)[0]

    def submit_n(
        self,
        prompt: str | Sequence[int],
        n: int,
        params: RequestParams | None = None,
        sampling: SamplingParams | None = None,
        **parameters: Any,
    ) -> list[Request]:
        """Queue `n` continuations of one prompt, which is computed once; seeds count up."""
        check_number("n", n, "int", 1, 10_000)
        if parameters:
            if params is not None or sampling is not None:
                raise ArgumentError("give params= and sampling=, or keywords, not both")
            params, sampling = split_parameters(parameters)
        params, sampling = params or RequestParams(), sampling or SamplingParams()
        tokens = self._prompt_tokens(prompt, params)
        requests: list[Request] = []
        for i in range(n):
            sampler = self._sampler(sampling, params, i)
            # Scores of the prompt need its logits: then nothing is reused.
            job = Job(tokens, requests[0].job if requests else None, fresh=params.echo)
            requests.append(Request(job, params, sampler, self._cancel))
        with self._lock:
            if self._closed is not None:
                raise type(self._closed)(*self._closed.args)
            if self._waiting + n > self.params.queue_size:
                raise QueueFullError(
                    f"{self._waiting} requests wait, queue_size={self.params.queue_size}"
                )
            self._waiting += n
            for request in requests:
                self._inbox.put(partial(self._worker.accept, request))
        return requests

    def _prompt_tokens(self, prompt: str | Sequence[int], params: RequestParams) -> list[int]:
        if isinstance(prompt, str):
            tokens = self.model.tokenize(prompt)
        elif isinstance(prompt, list | tuple):
            tokens = list(prompt)
            for token in tokens:
                self.model._check_token(token)
        else:
            raise ArgumentError(f"prompt must be str or tokens, not {type(prompt).__name__}")
        if not tokens or not prompt:
            raise ArgumentError("the prompt is empty")
        limit = self.params.ctx_size
        if len(tokens) >= limit:
            if params.overflow == "error":
                raise ArgumentError(
                    f"the prompt has {len(tokens)} tokens, prompt and answer may have {limit}; "
                    "overflow='truncate' or 'shift' drops its beginning"
                )
            keep = min(params.keep, limit // 2)
            tokens = tokens[:keep] + tokens[len(tokens) - (limit * 3 // 4 - keep) :]
        for token in params.stop_tokens:
            self.model._check_token(token)
        return tokens

    def _sampler(self, sampling: SamplingParams, params: RequestParams, i: int) -> Sampler:
        changes: dict[str, Any] = {}
        if sampling.seed is not None and i:
            changes["seed"] = (sampling.seed + i) % 2**32
        if params.ignore_eos:
            changes["logit_bias"] = {**sampling.logit_bias, **dict.fromkeys(self._ends, -1e30)}
        if changes:
            names = SamplingParams.__dataclass_fields__
            sampling = SamplingParams(**{**{k: getattr(sampling, k) for k in names}, **changes})
        return Sampler(params=sampling, model=self.model)

    def _cancel(self, request: Request) -> None:
        self._inbox.put(partial(self._worker.cancel, request))

    def _admitted(self) -> None:
        with self._lock:
            self._waiting -= 1

    @property
    def closed(self) -> bool:
        """Whether close() was called, or the worker failed."""
        return self._closed is not None

    def close(self, drain: bool = False) -> None:
        """Stop the worker and free the context; again does nothing.

        drain: finish the requests first; otherwise their readers get ClosedError.
        """
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            self._closed = self._closed or ClosedError("the engine is closed")
        self._inbox.put(self._drain if drain else self._stop)
        self._thread.join()
        self.context.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- the worker's thread ---

    def _work(self) -> None:
        worker = self._worker
        try:
            while True:
                while not self._inbox.empty() or not worker.busy:
                    if self._draining and self._inbox.empty():
                        self._stop()
                    self._inbox.get()()
                worker.step()
        except _StopWork:
            error: BaseException = ClosedError("the engine was closed before the request was done")
        except BaseException as failure:
            logger.exception("the engine's worker failed")
            error = DecodeError(f"the engine failed: {failure!r}")
            error.__cause__ = failure
            with self._lock:
                self._closed = self._closed or DecodeError(*error.args)
        while not self._inbox.empty():  # submitted while it stopped
            with contextlib.suppress(_StopWork):
                self._inbox.get()()
        worker.fail_all(error)

    def _stop(self) -> None:
        raise _StopWork

    def _drain(self) -> None:
        self._draining = True


class _StopWork(BaseException):
    """Ends the worker's loop."""


@atexit.register
def _close_all() -> None:
    for engine in list(_open_engines):
        engine.close()
