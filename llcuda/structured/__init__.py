"""Constrained decoding: JSON schemas, regular expressions and grammars as token masks."""

from typing import TYPE_CHECKING

from llcuda._lazy import deprecated
from llcuda.structured.compiler import (
    CompiledGrammar,
    TextGuide,
    ToolGrammar,
    compile,  # noqa: A004 - as that of re
    compile_beside,
    compile_response_format,
    compile_tools,
    guide,
    read_vocabulary,
)
from llcuda.structured.grammar import tool_format, tools_or_content
from llcuda.structured.relaxation import Relaxation

__all__ = [
    "CompiledGrammar",
    "Relaxation",
    "TextGuide",
    "ToolGrammar",
    "compile",
    "compile_beside",
    "compile_response_format",
    "compile_tools",
    "guide",
    "read_vocabulary",
    "tool_format",
    "tools_or_content",
]

if not TYPE_CHECKING:  # a checker would take every name for one of this package
    __getattr__ = deprecated(
        __name__, {"Format": "CompiledGrammar", "wanted": "compile_response_format"}
    )
