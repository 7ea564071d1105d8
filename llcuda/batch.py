"""BatchProcessor: a recipe for many rows, which other processes can be sent.

    processor = llcuda.BatchProcessor("demo", max_tokens=20)
    processor({"prompt": ["One day", "There was a"]})["text"]

Holds settings only. The model is loaded at the first call in a process, once for all processors
with the same settings there. Knows nothing of pools and clusters.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from llcuda.chat.messages import MAX_DEPTH
from llcuda.engine.config import EngineConfig
from llcuda.engine.request import request_params
from llcuda.errors import DeviceLostError, LlcudaError, ModelChangedError
from llcuda.files import path_text
from llcuda.inference import InferenceEngine
from llcuda.keywords import (
    BatchKeywords,
    ChatKeywords,
    ConfigKeywords,
    EmbedKeywords,
    GenerateKeywords,
    TextKeywords,
    check_keywords,
    show_keywords,
)
from llcuda.params import (
    ON_ERROR,
    check_choice,
    check_flag,
    check_number,
    wrong_argument,
    wrong_value,
)

N_PARALLEL = 4  # rows that decode in one batch, where the caller gives no number
COLUMNS = {"infer": "prompt", "chat": "messages", "embed": "text"}  # the input of each task
_KEYWORDS = {
    "infer": frozenset(GenerateKeywords.__annotations__),
    "chat": frozenset(ChatKeywords.__annotations__),
    "embed": frozenset({*EmbedKeywords.__annotations__, "pooling"}),
}
ERROR = "error"  # the column of errors, and the finish reason of rows that have one
# The added columns of a task with the values of a row and of one that has an error.
_Columns = Mapping[str, tuple[Callable[[Any], Any], Any]]
_ADDED: Mapping[str, _Columns] = {
    "infer": {
        "text": (lambda result: result.text, ""),
        "finish_reason": (lambda result: result.finish_reason, ERROR),
        "prompt_tokens": (lambda result: result.prompt_tokens, 0),
        "tokens_generated": (lambda result: result.tokens_generated, 0),
    },
    "chat": {
        "content": (lambda answer: answer.content, ""),
        "reasoning": (lambda answer: answer.reasoning, ""),
        "tool_calls": (lambda answer: json.dumps(answer.message.get("tool_calls", [])), "[]"),
        "finish_reason": (lambda answer: answer.finish_reason, ERROR),
        "prompt_tokens": (lambda answer: answer.completion.prompt_tokens, 0),
        "tokens_generated": (lambda answer: answer.completion.tokens_generated, 0),
    },
}


class BatchProcessor:
    """Computes the rows of a table, in any process: a model and the settings of every row.

    An object is small and can be pickled, also before any model is loaded. The first call in a
    process loads the model, and later calls there use it, also those of another processor with
    the same settings of loading. It stays until `close` or the end of the process. Rows keep their
    order.

    ::

        processor = llcuda.BatchProcessor("demo", max_tokens=20, on_error="return")
        processor({"prompt": prompts})       # a dict of arrays, or a pandas DataFrame
        multiprocessing.Pool(2).map(processor, batches)

    A process that was forked after its parent had loaded llcuda's library, for a model or to look
    at devices, cannot compute: that is a ForkError. Start such workers with "spawn".

    Args:
        source: The model, as `InferenceEngine.load_model` takes it; found by each process itself.
        task: "infer" continues the column "prompt" as `InferenceEngine.infer` does, and adds the
            columns text, finish_reason, prompt_tokens and tokens_generated. "chat" answers the
            column "messages", each a text or a list of messages, and adds content, reasoning,
            tool_calls (OpenAI's objects as JSON) and the same three. "embed" adds embedding, a
            vector for the column "text".
        filename: File of a Hugging Face repository.
        column: The column that is read; None = that of the task.
        prefix: What the names of the added columns begin with.
        on_error: What becomes of the error of one row. "raise": it is raised. "return": the column
            error has its text, "" for rows without one; the other columns of the row are empty, 0,
            or a vector of NaN, and finish_reason is "error". An error that concerns every row is
            raised in any case.
        **parameters: The keywords of `load_model` (n_parallel is 4 if it is left out, 1 for
            embeddings) and those of `infer`, `chat` or `embed`.

    Raises:
        ArgumentError: A value is outside what is allowed.
        TypeError: A keyword is unknown, or one of another task.
    """

    @show_keywords(BatchKeywords)
    def __init__(
        self,
        source: str | Path,
        task: str = "infer",
        *,
        filename: str | None = None,
        column: str | None = None,
        prefix: str = "",
        on_error: str = "raise",
        **parameters: Unpack[BatchKeywords],
    ) -> None:
        path_text(source, "source")
        check_choice("task", task, tuple(COLUMNS))
        check_choice("on_error", on_error, ON_ERROR)
        for name, text in (("filename", filename), ("column", column), ("prefix", prefix)):
            if not isinstance(text, str | None):
                raise wrong_value(name, text, "expected a text")
        self.source = source
        self.task = task
        self.on_error = on_error
        self._filename = filename
        self._column = COLUMNS[task] if column is None else column
        self._prefix = prefix or ""
        self._settings, self._request = _sorted(task, parameters)

    def __call__(self, batch: Any) -> Any:
        """Compute a batch, and return it with further columns.

        Args:
            batch: A dict of columns of one length, arrays or lists; or a pandas DataFrame.

        Returns:
            A new dict, or a new DataFrame, with the columns that were there as they are.

        Raises:
            ArgumentError: The column is missing, or one would be replaced; and the error of a row.
            TypeError: The batch is neither.
            ForkError: The library was loaded before this process was forked.
        """
        frame = _is_frame(batch)
        if not frame and not isinstance(batch, Mapping):
            raise TypeError(
                f"batch: expected a dict of arrays or a pandas DataFrame, not "
                f"{type(batch).__name__}; Ray Data gives one with batch_format='numpy'"
            )
        rows = [plain(row) for row in self._read(batch)]
        added = {f"{self._prefix}{name}": column for name, column in self._compute(rows).items()}
        if frame:
            return batch.assign(**{name: list(column) for name, column in added.items()})
        return {**batch, **added}

    def close(self) -> None:
        """Free the model in this process; the next call loads it again."""
        _forget(self._key(), None)

    def _read(self, batch: Any) -> Any:
        """Return the column that is read, of a batch that has room for the result."""
        names = [*batch]
        if self._column not in names:
            rule = f"the batch has no such column, only {', '.join(map(repr, names)) or 'none'}"
            raise wrong_value("column", self._column, rule, "give the name of one of them")
        lengths = {name: _length(name, batch[name]) for name in names}
        if len({*lengths.values()}) > 1:
            shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise wrong_argument("batch", f"expected columns of one length, not {shown}")
        taken = [name for name in self._names() if f"{self._prefix}{name}" in names]
        if taken:
            rule = f"the batch has a column {self._prefix}{taken[0]} already"
            raise wrong_value("prefix", self._prefix, rule, "give another, such as 'new_'")
        return batch[self._column]

    def _names(self) -> list[str]:
        """Return the names of the added columns, without the prefix."""
        errors = [ERROR] if self.on_error == "return" else []
        return [*_ADDED.get(self.task, ["embedding"]), *errors]

    def _compute(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Return the added columns."""
        key = self._key()
        engine: Any = _engine(key, self._open)
        calls = {"infer": engine.batch_infer, "chat": engine.batch_chat, "embed": engine.embed}
        try:
            results = calls[self.task](rows, on_error=self.on_error, **self._request)
            if self.task == "embed":
                columns = {"embedding": self._vectors(engine, results)}
            else:
                columns = _columns(_ADDED[self.task], results)
        except BaseException as error:
            ended = isinstance(error, DeviceLostError | ModelChangedError)
            if ended or not engine.is_loaded:  # or it could not be loaded
                _forget(key, engine)
            raise
        if self.on_error == "return":
            errors = [row if isinstance(row, LlcudaError) else None for row in results]
            texts = [
                "" if error is None else f"{type(error).__name__}: {error}" for error in errors
            ]
            columns[ERROR] = np.array(texts, dtype=object)
        return columns

    def _vectors(self, engine: InferenceEngine, results: Any) -> Any:
        """Return vectors as rows of one array, with NaN in the place of errors."""
        if self.on_error == "raise":
            return results
        size = self._request.get("dimensions") or engine.embedder(self._request.get("pooling")).size
        vectors = np.full((len(results), size), np.nan, np.float32)
        for row, result in enumerate(results):
            if not isinstance(result, LlcudaError):
                vectors[row] = result
        return vectors

    def _open(self) -> InferenceEngine:
        """Return an engine that loads the model at its first use."""
        settings: Any = self._settings
        return InferenceEngine(self.source, self._filename, auto_start=False, **settings)

    def _key(self) -> str:
        """Return what tells apart the models that are loaded."""
        return repr((str(self.source), self._filename, sorted(self._settings.items())))

    def __repr__(self) -> str:
        return f"<llcuda.BatchProcessor: {self.task} with {str(self.source)!r}>"


def _sorted(task: str, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keywords of loading and those of each row, checked as far as no model is needed.

    Raises:
        ArgumentError: A value is outside what is allowed.
        TypeError: A keyword is unknown, or one of another task.
    """
    settings: dict[str, Any] = {} if task == "embed" else {"n_parallel": N_PARALLEL}
    request: dict[str, Any] = {}
    for name, value in parameters.items():
        if name in ConfigKeywords.__annotations__:
            settings[name] = value
        elif name in _KEYWORDS[task]:
            request[name] = value
        else:
            check_keywords([name], BatchProcessor, BatchKeywords)
            tasks = " and ".join(repr(other) for other in COLUMNS if name in _KEYWORDS[other])
            raise TypeError(f"{name}: a keyword of task {tasks}, not of task={task!r}")
    EngineConfig.from_kwargs(**settings)
    if task == "embed":
        for name in request.keys() & {"normalize", "truncate", "parse_special"}:
            check_flag(name, request[name])
        if request.get("dimensions") is not None:
            check_number("dimensions", request["dimensions"], "int", 1)
    else:
        drops = task == "chat" and request.get("overflow") == "drop"  # which only a chat takes
        own = TextKeywords.__annotations__.keys() - ({"overflow"} if drops else set())
        request_params({name: request[name] for name in request.keys() & own})
    return settings, request


def _length(name: str, column: Any) -> int:
    """Return the number of rows of a column."""
    try:
        if not isinstance(column, str | bytes | Mapping):
            return len(column)
    except TypeError:  # a number, or an array without an axis
        pass
    rule = f"column {name}: expected an array or a list of rows, not {type(column).__name__}"
    raise wrong_argument("batch", rule, "one row is a list of one")


def _is_frame(batch: Any) -> bool:
    """Whether this is a pandas DataFrame; nobody has one who has not imported pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(batch, pandas.DataFrame)


def plain(value: Any, depth: int = 0) -> Any:
    """Return a cell as Python's data: Arrow gives lists as arrays, and missing keys as None.

    Args:
        value: The cell.
        depth: The level of nesting; what is nested more deeply than messages may be is left as it
            is, and refused by whoever reads it.
    """
    if depth > MAX_DEPTH:
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        given = {k: v for k, v in value.items() if v is not None or k == "content"}
        return {k: plain(v, depth + 1) for k, v in given.items()}
    return value


def _columns(columns: _Columns, results: Sequence[Any]) -> dict[str, Any]:
    """Return the columns of texts, as objects, and those of numbers."""
    return {
        name: np.array(
            [missing if isinstance(row, LlcudaError) else read(row) for row in results],
            dtype=object if isinstance(missing, str) else np.int64,
        )
        for name, (read, missing) in columns.items()
    }


# --- the models of this process ---

_engines: dict[str, InferenceEngine] = {}
_lock = threading.Lock()


def _engine(key: str, make: Callable[[], InferenceEngine]) -> InferenceEngine:
    with _lock:
        if key not in _engines:
            _engines[key] = make()
        return _engines[key]


def _forget(key: str, engine: InferenceEngine | None) -> None:
    """Close an engine, unless another has taken its place; None = whichever there is."""
    with _lock:
        found = _engines.get(key)
        if found is None or (engine is not None and engine is not found):
            return
        del _engines[key]
    found.close()


def _after_fork() -> None:
    """Leave the models to the parent process, with a lock that a thread of it may hold."""
    global _engines, _lock
    _engines, _lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
