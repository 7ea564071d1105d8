"""SequenceFunctions: the caller's functions over the tokens and the logits of one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llcuda.errors import ArgumentError
from llcuda.params import MAX_BIAS, wrong_argument, wrong_value

Float32: TypeAlias = npt.NDArray[np.float32]
Int32: TypeAlias = npt.NDArray[np.int32]


def checked_functions(name: str, given: Any) -> tuple[Callable[..., Any], ...]:
    """Return one function, or several in a list or tuple, as a tuple; none for None.

    Args:
        name: The parameter that has them.
        given: Its value.

    Raises:
        ArgumentError: One of them is no function.
    """
    if given is None:
        return ()
    functions = tuple(given) if isinstance(given, list | tuple) else (given,)
    for function in functions:
        if not callable(function):
            raise wrong_value(name, function, "expected a function, or a list of functions")
    return functions


class SequenceFunctions:
    """Calls the functions of a request on the engine's thread; their exceptions come through.

    Args:
        processors: The request's logits_processor.
        criteria: Its stopping_criteria.

    Attributes:
        processes: Whether there are functions that change logits.
        decides: Whether there are functions that end the text.
    """

    def __init__(self, processors: Any, criteria: Any) -> None:
        self._processors = checked_functions("logits_processor", processors)
        self._criteria = checked_functions("stopping_criteria", criteria)
        self.processes, self.decides = bool(self._processors), bool(self._criteria)
        self.forget()

    def forget(self) -> None:
        """Take all tokens anew at the next call: some of those before are gone."""
        self._ids, self._count = np.empty(0, np.int32), 0  # functions may keep the old array

    def process(self, tokens: Sequence[int], logits: Float32) -> None:
        """Change logits in place, by each function in turn.

        Args:
            tokens: The tokens of prompt and text so far.
            logits: The row that chooses the next token.

        Raises:
            ArgumentError: A function has returned something else, or has left no token.
        """
        if np.isnan(logits.max()):
            missing = np.isnan(logits)
            if missing.all():
                return  # the sampler says so
            logits[missing] = -np.inf  # which the sampler leaves out as well
        ids = self._token_ids(tokens)
        for function in self._processors:
            result = function(ids, logits)
            if result is not None and result is not logits:
                logits[:] = _checked_logits(result, logits)
        best = logits.max()
        if np.isnan(best):
            rule = f"the logits of {np.isnan(logits).sum()} tokens are NaN after it"
            raise wrong_argument("logits_processor", rule, "-inf forbids a token")
        if best == -np.inf:
            rule = "it has forbidden every token"
            raise wrong_argument("logits_processor", rule, "leave one above -inf")
        if best > MAX_BIAS:  # as a logit_bias has it: what comes after it divides and subtracts
            np.minimum(logits, MAX_BIAS, out=logits)

    def is_stop(self, tokens: Sequence[int], text: str) -> bool:
        """Return whether a function ends the text; all of them are called.

        Args:
            tokens: The tokens of prompt and text so far.
            text: The text so far.

        Raises:
            ArgumentError: A function has returned neither True nor False.
        """
        ids = self._token_ids(tokens)
        answers = [function(ids, text) for function in self._criteria]
        for answer in answers:
            if not isinstance(answer, bool | np.bool_):
                rule = f"it returned {type(answer).__name__}, expected True or False"
                raise wrong_argument("stopping_criteria", rule)
        return any(answers)

    def _token_ids(self, tokens: Sequence[int]) -> Int32:
        """Return tokens as an array that nobody can write to; only new ones are copied."""
        count, known = len(tokens), self._count
        if count > len(self._ids):
            grown = np.empty(2 * count, np.int32)
            grown[:known] = self._ids[:known]
            self._ids = grown
        self._ids[known:count] = tokens[known:]
        self._count = count
        ids = self._ids[:count]
        ids.flags.writeable = False
        return ids


def _checked_logits(result: Any, logits: Float32) -> npt.NDArray[Any]:
    """Return what a function has returned in place of logits.

    Raises:
        ArgumentError: It is no array of numbers with a fraction, of the same shape.
    """
    if not isinstance(result, np.ndarray):
        problem = f"it returned {type(result).__name__}, expected a numpy array or None"
    elif result.dtype.kind != "f":
        problem = f"it returned an array of {result.dtype}, expected float32"
    elif result.shape != logits.shape:
        problem = f"it returned an array of shape {result.shape}, expected {logits.shape}"
    else:
        return result
    raise ArgumentError(
        f"logits_processor: {problem}",
        parameter="logits_processor",
        remedy="return the logits, or None where they were changed in place",
    )
