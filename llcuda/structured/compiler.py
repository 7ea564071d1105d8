"""Compiled grammars of structured output, and the guides that follow them, by llguidance.

    grammar = structured.compile(model, {"type": "regex", "regex": "[0-9]+ apples"})
    engine.submit(prompt, guide=grammar.guide())
    engine.submit(prompt, response_format={"type": "json_object"})  # the same in one step

A format that cannot be honoured is an ArgumentError before the first token. A text ends where its
grammar ends; one that `max_tokens` cuts off is the beginning of a text that follows the grammar.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import unquote

import numpy as np

from llcuda._pickling import stays_in_process
from llcuda.errors import ArgumentError, GrammarError, SamplingError
from llcuda.native.model import check_model
from llcuda.params import check_flag, check_number, default_threads, wrong_argument
from llcuda.structured.classes import class_schema
from llcuda.structured.cost import MAX_SMALL
from llcuda.structured.grammar import GrammarSource, grammar_source, schemas_of
from llcuda.structured.json_schema import target
from llcuda.structured.places import UNSATISFIABLE, place_of
from llcuda.structured.relaxation import ANY_OBJECT, Relaxation, relax
from llcuda.structured.tokenizer import tokenizer_of
from llcuda.structured.trial import (
    ENDLESS,
    MAX_FORCED,
    STACK_BYTES,
    STEPS,
    acquired,
    cancellable,
    check_cancelled,
    readable,
    try_out,
)

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from llcuda.native.model import Model

logger = logging.getLogger("llcuda")
T = TypeVar("T")
MAX_GRAMMARS = 64  # kept for each model
MAX_LARGE_GRAMMARS = 4  # the same, of those that were tried out first
MAX_COMPILATIONS = max(1, min(8, default_threads() // 2))  # of one grammar
MAX_LEXER_STATES = 50_000  # of one compilation: 100 MB
_REFERENCE = re.compile(r"\n  while processing json-schema:///(#\S*)")  # of llguidance's errors
PROBE_CHOICES = 500  # of each token of the text that is tried before the first one


def compile(  # noqa: A001 - as that of re
    model: Model, response_format: Any = None, *, schema: Any = None, compact: bool = False
) -> CompiledGrammar:
    """Compile a format for any number of texts of a model.

    The last 64 grammars of a model are kept, and 4 large ones, so that compiling one again costs
    nothing. The first call for a model reads its vocabulary.

    Args:
        model: The model whose tokens are restricted.
        response_format: A CompiledGrammar of this model; a Pydantic model, a TypedDict or a
            dataclass; or a dict:

            - `{"type": "json_object"}`: any JSON object;
            - `{"type": "json_schema", "json_schema": {"schema": ...}}`;
            - `{"type": "regex", "regex": ...}`: a regular expression in Rust's dialect, which the
              whole text matches;
            - `{"type": "choice", "choices": [...]}`: one of these texts;
            - `{"type": "lark", "grammar": ...}` or `{"type": "gbnf", "grammar": ...}`;
            - what `tool_format` returns.
        schema: A JSON schema to the letter, in place of `response_format`; True is any JSON. An
            object in it may have properties that it does not name, unless it forbids them; one of
            a `response_format` has none, unless its schema speaks of `additionalProperties`.
        compact: Whether JSON has no whitespace.

    Returns:
        The grammar; its `guide()` restricts one text.

    Raises:
        ArgumentError: The format is unknown, or cannot be honoured to the letter.
        GrammarError: The grammar cannot be read, or allows no text; an ArgumentError, too.
        UnsupportedError: The model has no token that ends a text.
    """
    check_model(model)
    check_flag("compact", compact)
    closes = schema is None
    if schema is not None:
        if response_format is not None:
            raise wrong_argument("response_format", "give it or schema=, not both")
        response_format = _schema_format(schema)
    if isinstance(response_format, CompiledGrammar):
        if not response_format.is_of(model):
            raise wrong_argument(
                "response_format",
                "it was compiled for another model",
                remedy="compile it for this one",
            )
        return response_format
    source = None
    try:
        source = grammar_source(response_format, model, compact, closes=closes)
        by_source = compact or not closes
        return _compiler_of(model).compile(model, source, response_format, by_source)
    except ArgumentError as error:
        narrowing = None if source is None else source.narrowing
        if narrowing is not None and _problem(error).startswith(UNSATISFIABLE):
            error = narrowing
        elif " at #" not in str(error):
            error = _with_place(error, model, response_format, closes)
        if error.parameter is None:
            text = f"response_format: {error.problem}"
            error = type(error)(text, parameter="response_format", remedy=error.remedy)
        raise error from None


def _definition(response_format: Any, source: GrammarSource, by_source: bool) -> Mapping[str, Any]:
    """Return a format as a dict, without classes; `by_source`: as its grammar."""
    if by_source:
        return {"type": "lark", "grammar": source.text}
    schema = class_schema(response_format)
    return response_format if schema is None else _schema_format(schema)


class ToolGrammar(NamedTuple):
    """The compiled format of calls.

    Attributes:
        grammar: The grammar.
        schemas: The schemas that it enforces, by the names of the tools.
        relaxed: The parts of the given schemas that it does not enforce.
    """

    grammar: CompiledGrammar
    schemas: Mapping[str, Any]
    relaxed: Sequence[Relaxation]


def compile_tools(model: Model, tool_format: Mapping[str, Any]) -> ToolGrammar:
    """Compile a format of `tool_format`, without the parts of schemas that cannot be honoured.

    Such a part is named once in the log.

    Args:
        model: The model whose tokens are restricted.
        tool_format: The format.

    Raises:
        ArgumentError: No tool can be called.
    """
    compiler = _compiler_of(model)
    key = _key(tool_format)
    relaxed, relaxations = compiler.relaxed(key) or (tool_format, ())
    try:
        grammar = compiler.compile(model, grammar_source(relaxed, model, False), relaxed)
    except ArgumentError as error:
        calls, relaxations = [], []
        for call in relaxed["calls"]:
            schema, parts = relax(call["schema"], partial(_error_of, model))
            calls.append({**call, "schema": schema})
            relaxations += [Relaxation(call["name"], *part) for part in parts]
        relaxed = {**relaxed, "calls": calls}
        try:
            grammar = compiler.compile(model, grammar_source(relaxed, model, False), relaxed)
        except ArgumentError:  # each schema is small enough, all of them are not
            large = [call["name"] for call in calls if "lark" not in call]
            calls = [call if "lark" in call else {**call, "schema": ANY_OBJECT} for call in calls]
            relaxed = {**relaxed, "calls": calls}
            relaxations = [Relaxation(name, "#", _problem(error)) for name in large]
            grammar = compiler.compile(model, grammar_source(relaxed, model, False), relaxed)
        compiler.keep_relaxed(key, relaxed, relaxations)
        for relaxation in relaxations:
            logger.warning("%s", relaxation)
    schemas = {call["name"]: call["schema"] for call in relaxed["calls"]}
    return ToolGrammar(grammar, schemas, relaxations)


def _error_of(model: Model, schema: Any, closes: bool = True) -> ArgumentError | None:
    """Return why a JSON schema is refused; None for one that is not, or that is large."""
    from llguidance import LLMatcher, LLParserLimits

    check_cancelled()
    try:
        source = grammar_source(_schema_format(schema), model, False, closes=closes)
    except ArgumentError as refusal:
        return refusal
    if source.cost > MAX_SMALL:
        return None
    limits = LLParserLimits(**_limits())
    tokenizer = _compiler_of(model).tokenizer(model)
    found = _with_stack(lambda: LLMatcher.validate_grammar(source.text, tokenizer, limits=limits))
    return ArgumentError(_reason(readable(found))) if found else None


def _with_place(
    error: ArgumentError, model: Model, response_format: Any, closes: bool
) -> ArgumentError:
    """Return an error that names the place in the JSON schema where it begins."""

    def problem_of(schema: Any) -> str | None:
        refusal = _error_of(model, schema, closes)
        return None if refusal is None else _problem(refusal)

    try:
        schemas = schemas_of(response_format)
    except (ArgumentError, LookupError):  # whose error is of the format, not of a schema in it
        return error
    problem, reference = _problem(error), _REFERENCE.search(error.problem)
    for schema in schemas:
        found = place_of(schema, problem, partial(target, root=schema), problem_of)
        if found is not None:
            place, reason = found
            if reference is not None and problem.startswith(UNSATISFIABLE):
                # llguidance refuses such a definition although nothing may need it.
                place, reason = unquote(reference[1]), problem
            rule = f"response_format: schema at {place[:200]}: {reason}"
            return type(error)(rule, parameter="response_format", remedy=error.remedy)
    return error


def _schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def _problem(error: ArgumentError) -> str:
    """Return the message of an error, without the parameter and the remedy."""
    return _reason(error.problem.removeprefix("response_format: "))


def _reason(problem: str) -> str:
    """Return llguidance's message without the references that it was following."""
    return problem.partition("\n  while processing ")[0]


def guide(model: Model, response_format: Any = None, **parameters: Any) -> TextGuide:
    """Compile a format and return a guide for one text.

    Args:
        model: The model whose tokens are restricted.
        response_format: See `compile`.
        **parameters: `schema` and `compact` of `compile`.

    Returns:
        A guide for `Engine.submit(prompt, guide=...)`.

    Raises:
        ArgumentError: See `compile`.
    """
    return compile(model, response_format, **parameters).guide()


def compile_response_format(model: Model, response_format: Any) -> CompiledGrammar | None:
    """Compile the parameter `response_format` of OpenAI's API, which may restrict nothing.

    Args:
        model: The model whose tokens are restricted.
        response_format: See `compile`; None and `{"type": "text"}` restrict nothing.

    Returns:
        The grammar, or None.

    Raises:
        ArgumentError: See `compile`.
    """
    is_text = isinstance(response_format, Mapping) and dict(response_format) == {"type": "text"}
    if response_format is None or is_text:
        return None
    return compile(model, response_format)


async def compile_beside(model: Model, response_format: Any) -> CompiledGrammar | None:
    """Compile as `compile_response_format` does, in another thread, which the task's end stops.

    Args:
        model: The model whose tokens are restricted.
        response_format: See `compile`.

    Returns:
        The grammar, or None for a format that restricts nothing.

    Raises:
        ArgumentError: See `compile`.
    """
    cancelled = threading.Event()

    def run() -> CompiledGrammar | None:
        with cancellable(cancelled):
            return compile_response_format(model, response_format)

    try:
        return await asyncio.to_thread(run)
    finally:
        cancelled.set()


def read_vocabulary(model: Model) -> None:
    """Read the vocabulary of a model now, which otherwise its first format does.

    It takes up to a second, in which no other thread runs Python: llguidance holds the GIL. The
    server reads it when it loads a model.

    Args:
        model: The model.

    Raises:
        UnsupportedError: The model has no token that ends a text.
    """
    _compiler_of(model).tokenizer(model)


class CompiledGrammar:
    """A compiled format, which any number of texts may follow, in any thread; see `compile`.

    It is pickled as its definition: another process gets that, as a `response_format`.

    Attributes:
        source: The grammar as llguidance gets it.
        cost: What it costs to compile, in characters of a regular expression.
        definition: The format as a dict, which `compile` takes.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: LLTokenizer,
        source: GrammarSource,
        definition: Mapping[str, Any],
    ) -> None:
        self.source = source.text
        self.definition = deepcopy(dict(definition))  # the caller may change the schema in it
        self.cost = source.cost
        # A copy of a large grammar would take as long as the grammar, while texts wait.
        self._max_compilations = MAX_COMPILATIONS if source.cost <= MAX_SMALL else 1
        self._model = weakref.ref(model)  # which keeps its grammars
        self._tokenizer = tokenizer
        self._mask_words = (model.vocab_size + 31) // 32
        self._end_tokens = model.eog_tokens
        self._end_bits = [divmod(token, 32) for token in sorted(self._end_tokens)]
        self._compilations = [_Compilation(self)]
        self._lock = threading.Lock()

    def is_of(self, model: Model) -> bool:
        """Whether the grammar was compiled for `model`."""
        return self._model() is model

    def guide(self) -> TextGuide:
        """Return a guide for one text."""
        with self._lock:
            compilation = min(self._compilations, key=lambda shared: len(shared.guides))
            if compilation.guides and len(self._compilations) < self._max_compilations:
                compilation = _Compilation(self)
                self._compilations.append(compilation)
            guide = TextGuide(self, compilation)
            compilation.guides.add(guide)
        return guide

    def _compile(self) -> LLMatcher:
        """Return a matcher at the beginning of a text."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**_limits())
        start = LLMatcher(self._tokenizer, self.source, log_level=0, limits=limits)
        if start.is_error():
            raise _refused(_message(start))
        trial = start.deep_copy()
        mask = np.frombuffer(trial.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        if trial.is_error() or set(allowed.tolist()) <= self._end_tokens:
            raise _refused("no text satisfies it, or only the empty one")
        if len(trial.compute_ff_tokens()) > MAX_FORCED:
            raise _refused(ENDLESS)
        return start

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.definition,)

    def __repr__(self) -> str:
        return f"<llcuda.structured.CompiledGrammar {self.source:.80}>"


def _limits() -> dict[str, Any]:
    """Return the limits of a grammar and of the masks of its texts, beyond which it fails."""
    return {
        "initial_lexer_fuel": 1_000_000,  # 20 ms of compiling
        "step_lexer_fuel": 200_000,  # 15 ms of a mask
        "step_max_items": 50_000,
        "max_items_in_row": 2_000,
        "max_lexer_states": MAX_LEXER_STATES,
        "max_grammar_size": 500_000,
        "verbose_errors": False,
    }


class _Compilation:
    """A compiled copy of a grammar: guides that share it wait for each other, others do not."""

    def __init__(self, grammar: CompiledGrammar) -> None:
        # Copies of a matcher share what they learn of the grammar, behind a lock of Rust's. Whoever
        # holds that may wait for the GIL, hence one more lock, which is waited for without it.
        self.lock = threading.Lock()
        self.guides: weakref.WeakSet[TextGuide] = weakref.WeakSet()
        self.start = _with_stack(grammar._compile)


@stays_in_process("the response_format")
class TextGuide:
    """A guide of `llcuda.guide.Guide` that makes one text follow a CompiledGrammar.

    Its methods raise SamplingError where the text leaves the grammar, or passes a limit.
    """

    def __init__(self, grammar: CompiledGrammar, compilation: _Compilation) -> None:
        self._grammar, self._compilation = grammar, compilation
        with compilation.lock:
            self._matcher = compilation.start.deep_copy()
        self._accepted: list[int] = []
        self._mask = np.zeros(grammar._mask_words, np.uint32)

    @staticmethod
    def masks(guides: Sequence[TextGuide]) -> list[Any]:
        """Compute the masks of several guides at the same time.

        Args:
            guides: Guides of any grammars.

        Returns:
            Each guide's mask, or the exception that it raises.
        """
        by_compilation: dict[_Compilation, list[int]] = {}
        for i, guide in enumerate(guides):
            by_compilation.setdefault(guide._compilation, []).append(i)
        masks: list[Any] = [None] * len(guides)

        def fill(places: Sequence[int]) -> None:
            for i in places:
                try:
                    masks[i] = guides[i].mask()
                except Exception as error:
                    masks[i] = error

        own, *others = by_compilation.values()
        tasks = [_threads().submit(fill, places) for places in others]
        fill(own)
        for task in tasks:
            task.result()
        return masks

    def forced(self) -> list[int]:
        """Return the tokens that come next without a choice; at the end one that ends a text."""
        with self._compilation.lock:
            if self._matcher.is_stopped():
                self._check("ends a text")
                return [min(self._grammar._end_tokens)]
            return self._matcher.compute_ff_tokens()

    def mask(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """Return the tokens that may come next, as bits; the next call overwrites the array.

        Returns:
            uint32, `((vocab_size + 31) // 32,)`; bit i % 32 of word i // 32 is token i's.
        """
        mask = self._mask
        with self._compilation.lock:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if self._matcher.is_error():
                self._start_again()
                self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
                self._check("masks a token")
            self._forbid_early_end(mask)
        return mask

    def _forbid_early_end(self, mask: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        """Take the tokens that end a text out of a set of tokens, such as all but one of them."""
        ends = [(word, bit) for word, bit in self._grammar._end_bits if int(mask[word]) >> bit & 1]
        if not ends or self._matcher.is_accepting():
            return
        before = mask.copy()
        for word, bit in ends:
            mask[word] &= np.uint32(~(1 << bit) & 0xFFFFFFFF)
        if not mask.any():  # the grammar names them
            mask[:] = before

    def accept(self, token: int) -> None:
        """Go on behind a token.

        Args:
            token: The token that was sampled, or forced.
        """
        check_number("token", token, "int", 0, 2**31 - 1)
        with self._compilation.lock:
            self._accepted.append(token)
            if not self._matcher.consume_token(token):
                self._start_again()

    def _start_again(self) -> None:
        """Compile anew and replay the text: what copies share grows up to a limit."""
        self._compilation.start = _with_stack(self._grammar._compile)
        self._matcher = self._compilation.start.deep_copy()
        self._matcher.consume_tokens(self._accepted)
        if self._matcher.is_error():
            problem = _message(self._matcher)
            if "satisfy the grammar" in problem:
                problem = self._limit() or problem
            raise _failed(f"accepts {len(self._accepted)} tokens", problem)

    def _limit(self) -> str:
        """Return the limit that the last token has passed; "" where it leaves the grammar.

        llguidance says of a lexer that stopped at a limit that the token does not fit.
        """
        *before, token = self._accepted
        matcher = self._compilation.start.deep_copy()
        matcher.consume_tokens(before)
        mask = np.zeros_like(self._mask)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error():
            return _message(matcher)
        is_allowed = int(mask[token // 32]) >> token % 32 & 1
        return "it is too large to be followed further" if is_allowed else ""

    def _check(self, action: str) -> None:
        if self._matcher.is_error():
            raise _failed(action, _message(self._matcher))


@cache
def _threads() -> ThreadPoolExecutor:
    """Return the threads that compute masks beside the engine's."""
    return ThreadPoolExecutor(max(1, MAX_COMPILATIONS - 1), thread_name_prefix="llcuda-mask")


def _failed(action: str, problem: str) -> SamplingError:
    return SamplingError(f"response_format: the guide fails where it {action}: {problem}")


def _probe(grammar: CompiledGrammar) -> None:
    """Refuse a grammar whose texts pass a limit of llguidance soon, for it would be too late later.

    A text is tried whose tokens are chosen among those with low numbers, which are common.
    """
    guide, choice = grammar.guide(), random.Random(0)
    try:
        for _ in range(STEPS):
            forced = guide.forced()
            if not grammar._end_tokens.isdisjoint(forced):
                return
            for token in forced:
                guide.accept(token)
            bits = np.unpackbits(guide.mask().view(np.uint8), bitorder="little")
            common = np.flatnonzero(bits)[:PROBE_CHOICES].tolist()
            allowed = [token for token in common if token not in grammar._end_tokens]
            if not allowed:
                return
            guide.accept(choice.choice(allowed))
    except SamplingError as error:
        problem = str(error).removeprefix("response_format: ")
        raise _refused(f"it is too complex for texts in it: {problem}") from None


def _refused(problem: str) -> GrammarError:
    return GrammarError(f"response_format: {problem}", parameter="response_format")


def _message(matcher: LLMatcher) -> str:
    return readable(matcher.get_error())


_Relaxed: TypeAlias = tuple[Mapping[str, Any], Sequence[Relaxation]]


def _key(tool_format: Mapping[str, Any]) -> str:
    """Return a text that tells formats apart."""
    return json.dumps(tool_format, default=lambda grammar: grammar.source)


class _Entry:
    """A grammar that is compiled once; whoever needs it meanwhile waits."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.grammar: CompiledGrammar | None = None


class _Compiler:
    """The tokenizer of a model, and its grammars that were used last. Does not keep the model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._small: OrderedDict[str, _Entry] = OrderedDict()
        self._large: OrderedDict[str, _Entry] = OrderedDict()
        self._relaxed: OrderedDict[str, _Relaxed] = OrderedDict()

    def compile(
        self, model: Model, source: GrammarSource, response_format: Any, by_source: bool = False
    ) -> CompiledGrammar:
        """Return the compiled grammar, which is compiled once; others do not wait for it."""
        is_large = source.cost > MAX_SMALL
        entries, limit = (
            (self._large, MAX_LARGE_GRAMMARS) if is_large else (self._small, MAX_GRAMMARS)
        )
        with self._lock:
            entry = entries.setdefault(source.text, _Entry())
            entries.move_to_end(source.text)
            while len(entries) > limit:
                entries.popitem(last=False)
        with acquired(entry.lock):
            if entry.grammar is None:
                check_cancelled()
                if is_large:
                    try_out(source.trial, _limits())
                definition = _definition(response_format, source, by_source)
                grammar = CompiledGrammar(model, self.tokenizer(model), source, definition)
                _probe(grammar)
                entry.grammar = grammar
            return entry.grammar

    def relaxed(self, key: str) -> _Relaxed | None:
        """Return what a format was relaxed to before, and what was left out; None if it was not."""
        with self._lock:
            return self._relaxed.get(key)

    def keep_relaxed(
        self, key: str, relaxed: Mapping[str, Any], relaxations: Sequence[Relaxation]
    ) -> None:
        """Keep what a format was relaxed to."""
        with self._lock:
            self._relaxed[key] = relaxed, relaxations
            while len(self._relaxed) > MAX_GRAMMARS:
                self._relaxed.popitem(last=False)

    def tokenizer(self, model: Model) -> LLTokenizer:
        """Return the tokenizer; the first call reads the vocabulary."""
        with acquired(self._tokenizer_lock):
            self._tokenizer = self._tokenizer or tokenizer_of(model)
            return self._tokenizer


_compilers: weakref.WeakKeyDictionary[Model, _Compiler] = weakref.WeakKeyDictionary()
_compilers_lock = threading.Lock()


def _compiler_of(model: Model) -> _Compiler:
    with _compilers_lock:
        return _compilers.setdefault(model, _Compiler())


_stack_lock = threading.Lock()


def _with_stack(call: Callable[[], T]) -> T:
    """Call on a thread with a large stack: llguidance recurses, and would end the process."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
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
        # A fault of llguidance; pyo3 exports no type of it.
        if type(errors[0]).__name__ == "PanicException":
            raise _refused(f"llguidance fails: {str(errors[0])[:200]}")
        raise errors[0]
    return results[0]
