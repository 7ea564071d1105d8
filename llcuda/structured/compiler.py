"""Structured output: JSON schemas, regular expressions and grammars as guides, by llguidance.

    format = structured.compile(model, {"type": "regex", "regex": "[0-9]+ apples"})
    engine.submit(prompt, guide=format.guide())
    engine.submit(prompt, response_format={"type": "json_object"})  # the same in one step

What cannot be honoured is an ArgumentError here, before the first token; nothing is left out. A
text ends where its format ends; one that max_tokens cuts off is a beginning of one that fits.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from llcuda.errors import ArgumentError, GrammarError, SamplingError
from llcuda.structured import grammar as structured_grammar
from llcuda.structured.grammar import tool_format as tool_format
from llcuda.structured.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from llcuda.native.model import Model

T = TypeVar("T")
MAX_FORMATS = 64  # kept of each model
MAX_LANES = max(1, min(8, len(os.sched_getaffinity(0)) // 2))  # compilations that texts share
STACK_BYTES = 256 << 20  # of the thread that compiles, which recurses; touched as far as it is used
MAX_FORCED = 8192  # tokens that a beginning may force; longer ones never end


def compile(  # noqa: A001 - as that of re
    model: Model, response_format: Any = None, *, schema: Any = None, compact: bool = False
) -> Format:
    """Return a format that gives guides for any number of texts of `model`; those are kept.

    response_format: a Pydantic model's class, or a dict:
        {"type": "json_object"}; {"type": "json_schema", "json_schema": {"schema": ...}};
        {"type": "regex", "regex": ...}, of the whole text, in Rust's dialect;
        {"type": "choice", "choices": [...]}, one of these texts;
        {"type": "lark" or "gbnf", "grammar": ...}; what `tool_format` returns; or a Format.
    schema: a JSON schema in its place. compact: JSON without whitespace.
    The first call for a model reads its vocabulary: 1 s for 262,144 tokens.
    Raises ArgumentError (GrammarError) for what cannot be honoured, and UnsupportedError for a
    model without a token that ends a text.
    """
    if schema is not None:
        if response_format is not None:
            raise ArgumentError("give response_format or schema=, not both")
        response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    if isinstance(response_format, Format):
        if not response_format.is_of(model):
            raise ArgumentError(
                "response_format: this Format was compiled for another model",
                parameter="response_format",
            )
        return response_format
    source = structured_grammar.source(response_format, model, compact)
    return _compiler(model).format(model, source)


def guide(model: Model, response_format: Any = None, **parameters: Any) -> TextGuide:
    """Return a guide for one text; see `compile`."""
    return compile(model, response_format, **parameters).guide()


def wanted(model: Model, response_format: Any) -> Format | None:
    """Return what is asked for by OpenAI's parameter: None for None and {"type": "text"}."""
    if response_format is None or response_format == {"type": "text"}:
        return None
    return compile(model, response_format)


class Format:
    """A compiled format; any number of texts may follow it, in any thread."""

    def __init__(self, model: Model, tokenizer: LLTokenizer, source: str) -> None:
        self.source = source
        self._model = weakref.ref(model)  # which keeps its formats
        self._tokenizer = tokenizer
        self._words = (model.vocab_size + 31) // 32
        self._ends = model.eog_tokens
        self._lanes = [_Lane(self)]
        self._lanes_lock = threading.Lock()

    def is_of(self, model: Model) -> bool:
        """Whether it was compiled for `model`."""
        return self._model() is model

    def _compile(self) -> LLMatcher:
        """Return the grammar at its beginning. Raises GrammarError for one that allows no text."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(  # what hostile formats may cost; an error where it is passed
            initial_lexer_fuel=1_000_000,  # 20 ms of compiling
            step_lexer_fuel=200_000,  # 15 ms of a mask
            step_max_items=50_000,
            max_items_in_row=2_000,
            max_lexer_states=50_000,  # 100 MB
            max_grammar_size=500_000,
            verbose_errors=False,
        )
        start = LLMatcher(self._tokenizer, self.source, log_level=0, limits=limits)
        if start.is_error():
            raise GrammarError(_message(start), parameter="response_format")
        trial = start.deep_copy()
        mask = np.frombuffer(trial.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        if trial.is_error() or set(allowed.tolist()) <= self._ends:
            raise GrammarError(
                "response_format: no text satisfies it, or only the empty one",
                parameter="response_format",
            )
        if len(trial.compute_ff_tokens()) > MAX_FORCED:
            raise GrammarError(
                "response_format: no text that satisfies it ever ends", parameter="response_format"
            )
        return start

    def guide(self) -> TextGuide:
        """Return a guide for one text."""
        with self._lanes_lock:
            lane = min(self._lanes, key=lambda lane: len(lane.guides))
            if lane.guides and len(self._lanes) < MAX_LANES:
                lane = _Lane(self)
                self._lanes.append(lane)
            found = TextGuide(self, lane)
            lane.guides.add(found)
        return found

    def __repr__(self) -> str:
        return f"<llcuda.structured.Format {self.source:.80}>"


class _Lane:
    """A compiled grammar of one's own: texts that share it wait for each other, others do not."""

    def __init__(self, followed: Format) -> None:
        # Copies of a matcher share what they learn of the grammar, behind a lock of Rust's. Whoever
        # holds that may wait for the GIL, hence one more lock, which is waited for without it.
        self.lock = threading.Lock()
        self.guides: weakref.WeakSet[TextGuide] = weakref.WeakSet()
        self.start = _with_stack(followed._compile)


class TextGuide:
    """Follows one text; see `llcuda.guide`. Raises SamplingError where a limit is passed."""

    def __init__(self, followed: Format, lane: _Lane) -> None:
        self._format, self._lane = followed, lane
        with lane.lock:
            self._matcher = lane.start.deep_copy()
        self._accepted: list[int] = []
        self._mask = np.zeros(followed._words, np.uint32)

    @staticmethod
    def masks(guides: Sequence[TextGuide]) -> list[Any]:
        """Return each guide's mask, or what it raises; those of several lanes at the same time."""
        lanes: dict[_Lane, list[int]] = {}
        for i, one in enumerate(guides):
            lanes.setdefault(one._lane, []).append(i)
        found: list[Any] = [None] * len(guides)

        def fill(places: Sequence[int]) -> None:
            for i in places:
                try:
                    found[i] = guides[i].mask()
                except Exception as error:
                    found[i] = error

        own, *others = lanes.values()
        waiting = [_threads().submit(fill, places) for places in others]
        fill(own)
        for task in waiting:
            task.result()
        return found

    def forced(self) -> list[int]:
        """Return the tokens that come next without a choice; at the end one that ends a text."""
        with self._lane.lock:
            if self._matcher.is_stopped():
                self._check("ends a text")
                return [min(self._format._ends)]
            return self._matcher.compute_ff_tokens()

    def mask(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """Return the tokens that may come next; the array is written again by the next call."""
        mask = self._mask
        with self._lane.lock:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if self._matcher.is_error():
                self._start_again()
                self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
                self._check("masks a token")
        return mask

    def accept(self, token: int) -> None:
        """Go on behind `token`."""
        with self._lane.lock:
            self._accepted.append(token)
            if not self._matcher.consume_token(token):
                self._start_again()

    def _start_again(self) -> None:
        """Follow the text anew: what copies share grows with every text, up to a limit."""
        self._lane.start = _with_stack(self._format._compile)
        self._matcher = self._lane.start.deep_copy()
        self._matcher.consume_tokens(self._accepted)
        self._check(f"accepts {len(self._accepted)} tokens")

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            raise SamplingError(f"the guide fails where it {what}: {_message(self._matcher)}")


@cache
def _threads() -> ThreadPoolExecutor:
    """Return the threads that compute masks beside the engine's."""
    return ThreadPoolExecutor(max(1, MAX_LANES - 1), thread_name_prefix="llcuda-mask")


def _message(matcher: LLMatcher) -> str:
    """Return what is wrong, without the state that follows."""
    text = matcher.get_error().partition("<non-verbose/>")[0].partition("<backtrace>")[0].strip()
    if text.startswith("panic"):
        text = "it is too large"
    lines = [line[:200] for line in text.splitlines()[:8]]
    return "response_format: " + ("\n".join(lines) or "it cannot be followed")


class _Compiler:
    """A model's tokenizer, and the formats that were used last. Knows the model weakly."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._formats: OrderedDict[str, Format] = OrderedDict()

    def format(self, model: Model, source: str) -> Format:
        """Return the format of a grammar, compiled once."""
        with self._lock:
            if source not in self._formats:
                self._tokenizer = self._tokenizer or tokenizer_of(model)
                self._formats[source] = Format(model, self._tokenizer, source)
            self._formats.move_to_end(source)
            while len(self._formats) > MAX_FORMATS:
                self._formats.popitem(last=False)
            return self._formats[source]


_compilers: weakref.WeakKeyDictionary[Model, _Compiler] = weakref.WeakKeyDictionary()
_compilers_lock = threading.Lock()


def _compiler(model: Model) -> _Compiler:
    with _compilers_lock:
        return _compilers.setdefault(model, _Compiler())


_stack_lock = threading.Lock()


def _with_stack(call: Callable[[], T]) -> T:
    """Call on a thread with a large stack: llguidance recurses, and would end the process."""
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            errors.append(error)

    with _stack_lock:
        usual = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="llcuda-compile")
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]
