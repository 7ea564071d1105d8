"""llama-cpp-python's class `Llama` over llcuda's engine: a user changes one import.

    from llcuda.llama_cpp import Llama

    llm = Llama("model.gguf", n_ctx=2048)
    print(llm("Once upon a time", max_tokens=32)["choices"][0]["text"])

A library that imports llama_cpp itself gets this package after `install()`. llama.cpp's C
interface is not here: `Llama.model` and `Llama.ctx` are llcuda's Model and Context.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from typing import Any

from llcuda._lazy import missing_name
from llcuda.errors import LibraryError
from llcuda.llama_cpp import llama_types
from llcuda.llama_cpp.llama import (
    Llama,
    LogitsProcessorList,
    ModelPathError,
    StoppingCriteriaList,
)
from llcuda.llama_cpp.llama import LogitsProcessor as LogitsProcessor
from llcuda.llama_cpp.llama import StoppingCriteria as StoppingCriteria
from llcuda.llama_cpp.llama_cache import (
    BaseLlamaCache,
    LlamaCache,
    LlamaDiskCache,
    LlamaRAMCache,
    LlamaState,
)
from llcuda.llama_cpp.llama_grammar import LlamaGrammar
from llcuda.llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding
from llcuda.llama_cpp.llama_tokenizer import (
    LlamaTokenizer,
    llama_model_get_vocab,
    llama_token_to_piece,
)
from llcuda.llama_cpp.settings import ENUMS, LLAMA_DEFAULT_SEED, UNSPECIFIED
from llcuda.native.gguf.types import GGMLType

__version__ = "0.3.36"  # of llama-cpp-python, whose interface this is

__all__ = [
    "BaseLlamaCache",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaDraftModel",
    "LlamaGrammar",
    "LlamaPromptLookupDecoding",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessorList",
    "ModelPathError",
    "StoppingCriteriaList",
    "install",
    "llama_model_get_vocab",
    "llama_token_to_piece",
]

_NAME = "llama_cpp"
_MODULES = (
    "llama",
    "llama_cache",
    "llama_chat_format",
    "llama_grammar",
    "llama_speculative",
    "llama_tokenizer",
    "llama_types",
)
_INSTEAD = "use llcuda.Model, Context and Sampler, or llcuda serve"


class _Finder(importlib.abc.MetaPathFinder):
    """Says what to use in place of llama_cpp's other modules, after `install`."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        if fullname.startswith(f"{_NAME}."):
            raise ModuleNotFoundError(f"No module named {fullname!r}; {_INSTEAD}", name=fullname)


def install() -> None:
    """Let `import llama_cpp` give this package from now on, for libraries that import it.

    Calling it again does nothing.

    Raises:
        LibraryError: llama-cpp-python itself was imported before.
    """
    ours = sys.modules[__name__]
    loaded = sys.modules.get(_NAME)
    if loaded is ours:
        return
    if loaded is not None:
        raise LibraryError(
            "llama_cpp is imported already: call install() before the first library that imports it"
        )
    sys.modules[_NAME] = ours
    for name in _MODULES:
        sys.modules[f"{_NAME}.{name}"] = importlib.import_module(f"{__name__}.{name}")
    sys.meta_path.insert(0, _Finder())


def __getattr__(name: str) -> Any:
    """Return a constant of llama.cpp, or the name of a dict of `llama_types`."""
    for prefix, values in ENUMS.items():
        if name == f"{prefix}UNSPECIFIED":
            return UNSPECIFIED
        value = name.removeprefix(prefix).lower()
        if name.startswith(prefix) and value in values:
            return values.index(value)
    if name == "LLAMA_DEFAULT_SEED":
        return LLAMA_DEFAULT_SEED
    if name.startswith("GGML_TYPE_") and name.removeprefix("GGML_TYPE_") in GGMLType.__members__:
        return int(GGMLType[name.removeprefix("GGML_TYPE_")])
    if name.startswith(("llama_", "LLAMA_", "ggml_", "GGML_")) and name not in _MODULES:
        raise missing_name(__name__, name, f"; {_INSTEAD}")
    try:
        return getattr(llama_types, name)
    except AttributeError:
        raise missing_name(__name__, name, "") from None
