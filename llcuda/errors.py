"""The exceptions that llcuda raises.

::

    LlcudaError
    ├── LibraryError (RuntimeError)        the native library is missing, foreign or unusable
    │   └── ForkError                      used in a forked child after it was loaded in the parent
    ├── ModelError (RuntimeError)          a model or adapter file cannot be loaded
    │   ├── ModelNotFoundError (FileNotFoundError)
    │   ├── GGUFError (ValueError)         a file that is damaged, or no GGUF file
    │   ├── FileWriteError (OSError)       a file cannot be written
    │   ├── LoadCancelledError             the progress callback returned False
    │   └── ModelChangedError              a mapped file was written to; a DecodeError too
    ├── ContextError (RuntimeError)        a context cannot be created
    ├── ArgumentError (ValueError)         a value outside what is allowed
    │   ├── BatchError                     tokens, positions or sequences that do not fit
    │   ├── ContextLengthError             a prompt that is longer than its context
    │   ├── GrammarError                   a grammar that does not parse
    │   ├── MissingTensorError (KeyError)  a tensor that a file does not have
    │   ├── NoTextError                    a model that gives embeddings or scores, and no text
    │   └── StateError                     a saved state that is damaged or of another model
    ├── DecodeError (RuntimeError)         llama.cpp failed while computing
    │   ├── NoRoomError                    no free KV cells
    │   ├── DecodeAbortedError             cancelled
    │   └── DeviceLostError                a GPU failed: start another process
    ├── OutOfMemoryError (MemoryError)     too little memory; also the error of what was tried:
    │                                      ModelError, ContextError, DecodeError and TensorError
    │                                      catch it
    ├── AnswerError (ValueError)           an answer that is not what its format promises
    ├── SamplingError (RuntimeError)       no candidate left, or no grammar rule matches
    ├── NoOutputError (LookupError)        logits or embeddings that were not computed
    ├── TensorError (RuntimeError)         tensors whose shapes, types or devices do not fit
    ├── UnsupportedError (RuntimeError)    this model's memory, or this device, cannot do that
    ├── QueueFullError (RuntimeError)      more requests wait than the engine's queue holds
    ├── ClosedError (RuntimeError)         use after close
    └── ConcurrencyError (RuntimeError)    two threads in one context or sampler, or a call that a
                                           hook of an engine must not make

Each also is the built-in exception in parentheses. A message says what was given and what is
allowed; where llama.cpp logged an error, its last lines follow. `parameter` is the
name of the parameter at fault.
"""

from __future__ import annotations

from copy import copy
from typing import Self

MAX_SHOWN = 200  # characters of a wrong value in a message


def shown(value: object) -> str:
    """Return a value as a message shows it: its repr, cut; its type where the repr fails."""
    try:
        text = repr(value)
    except Exception:  # of a stranger's class, or of a list that is nested too deeply
        text = f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


class LlcudaError(Exception):
    """Base of everything that llcuda raises on purpose.

    Attributes:
        parameter: Name of the parameter at fault, e.g. "top_k" or "messages[0].role"; None where
            no single one is.
        remedy: What a Python caller can do about it; it follows the problem in the message.
    """

    parameter: str | None = None
    remedy: str | None = None

    @property
    def problem(self) -> str:
        """The message without the remedy, in words that hold for every caller."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem


class _ParameterError(LlcudaError):
    """Base of the errors that can name a parameter: `parameter=value: rule; remedy`."""

    def __init__(
        self, *args: object, parameter: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(*args)
        self.parameter = parameter
        self.remedy = remedy
        self.shown: str | None = None  # the value, where the message has it

    def within(self, place: str) -> Self:
        """Return the same error for a part of a value.

        Args:
            place: The part, for example "texts[3]".
        """
        error = copy(self)
        error.args = (f"{place}: {self.problem}",)
        error.parameter = place
        return error


class LibraryError(LlcudaError, RuntimeError):
    """The native library is missing, belongs to another package, or cannot run here."""


class ForkError(LibraryError):
    """The library was loaded before a fork; its threads do not exist in the child."""


class ModelError(LlcudaError, RuntimeError):
    """A model or adapter file cannot be loaded."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no such file."""


class GGUFError(ModelError, ValueError):
    """A file is damaged, or is no GGUF file."""


class FileWriteError(ModelError, OSError):
    """A file cannot be written; `errno` and `strerror` say why. The file is as it was before."""

    @property
    def problem(self) -> str:
        """The message, without the number of the error."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        number = {"errno": self.errno, "strerror": self.strerror}
        return type(self), self.args, {**self.__dict__, **number}


class LoadCancelledError(ModelError):
    """The progress callback returned False."""


class ContextError(_ParameterError, RuntimeError):
    """A context cannot be created with these parameters."""


class ArgumentError(_ParameterError, ValueError):
    """A value outside what is allowed; `parameter` names it."""


class BatchError(ArgumentError):
    """Tokens, positions or sequences that do not fit the context."""


class ContextLengthError(ArgumentError):
    """A prompt that is longer than its context.

    Attributes:
        tokens: Tokens of the prompt; a text such as "more than 4096" where it was not read whole.
        limit: Tokens that it may have; None where the error does not know.
    """

    def __init__(
        self,
        *args: object,
        parameter: str | None = None,
        remedy: str | None = None,
        tokens: int | str | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(*args, parameter=parameter, remedy=remedy)
        self.tokens = tokens
        self.limit = limit


class GrammarError(ArgumentError):
    """A grammar that does not parse."""


class MissingTensorError(ArgumentError, KeyError):
    """A GGUF file has no tensor of this name."""

    @property
    def problem(self) -> str:
        """The message without the remedy; KeyError would show its repr."""
        return str(self.args[0])


class NoTextError(ArgumentError):
    """A model generates no text: it gives embeddings or scores."""


class StateError(ArgumentError):
    """A saved state that is damaged, or of another model or context."""


class DecodeError(LlcudaError, RuntimeError):
    """llama.cpp failed while computing."""


class ModelChangedError(ModelError, DecodeError):
    """The file of a loaded model was truncated or overwritten while it is mapped.

    Nothing can be computed with this model any more.
    """


class NoRoomError(DecodeError):
    """The KV cache has no room for the batch; nothing was changed."""


class DecodeAbortedError(DecodeError):
    """The decode was cancelled.

    Within one batch the finished micro-batches stay in the memory; a split prompt is undone.
    """


class DeviceLostError(DecodeError):
    """A GPU failed, or is gone: nothing that lies on it can be used in this process any more."""


class TensorError(_ParameterError, RuntimeError):
    """Tensors whose shapes, types or devices do not fit, or that cannot be computed."""


class OutOfMemoryError(ModelError, ContextError, DecodeError, TensorError, MemoryError):
    """A GPU, or the machine, has too little memory for a model, a context, a batch or a tensor.

    The message says what was asked and what is free. What was there before still works; of a
    batch's texts nothing of the batch is kept.
    """


class AnswerError(LlcudaError, ValueError):
    """An answer that cannot be read as its format says: it was cut off, or a class refuses it."""


class SamplingError(LlcudaError, RuntimeError):
    """A sampler chain has no candidate to choose, or cannot accept a token."""


class NoOutputError(LlcudaError, LookupError):
    """Logits or embeddings that the last decode did not compute."""


class UnsupportedError(_ParameterError, RuntimeError):
    """This model's memory, or this device, cannot do what was asked."""


class QueueFullError(LlcudaError, RuntimeError):
    """More requests wait than the engine's queue holds; try again later."""


class ClosedError(LlcudaError, RuntimeError):
    """The object, or the model that it stands on, was closed."""


class ConcurrencyError(LlcudaError, RuntimeError):
    """Another thread is inside this context or sampler, or a hook makes a call that it must not."""


_OF_ALL = (
    ClosedError,
    ConcurrencyError,
    DeviceLostError,
    LibraryError,
    ModelChangedError,
    NoTextError,
)


def is_of_one_text(error: BaseException) -> bool:
    """Return whether an error is that of one text of many, so that the others can be computed."""
    return isinstance(error, LlcudaError) and not isinstance(error, _OF_ALL)
