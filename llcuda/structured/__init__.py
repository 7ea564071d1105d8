"""Constrained decoding: JSON schemas, regular expressions and grammars as token masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda.structured.compiler import CompiledGrammar as CompiledGrammar
    from llcuda.structured.compiler import TextGuide as TextGuide
    from llcuda.structured.compiler import compile as compile  # noqa: A004 - as that of re
    from llcuda.structured.compiler import compile_response_format as compile_response_format
    from llcuda.structured.compiler import guide as guide
    from llcuda.structured.grammar import tool_format as tool_format

__getattr__, __dir__ = lazy(
    __name__,
    {
        "CompiledGrammar": "llcuda.structured.compiler",
        "TextGuide": "llcuda.structured.compiler",
        "compile": "llcuda.structured.compiler",
        "compile_response_format": "llcuda.structured.compiler",
        "guide": "llcuda.structured.compiler",
        "tool_format": "llcuda.structured.grammar",
    },
    renamed={"Format": "CompiledGrammar", "wanted": "compile_response_format"},
)
