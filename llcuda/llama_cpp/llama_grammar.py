"""LlamaGrammar: a grammar that a text follows, by llama-cpp-python's names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Self

from llcuda.errors import ModelNotFoundError, shown
from llcuda.files import local_path, read_bytes
from llcuda.native.gbnf import grammar_error, parse
from llcuda.native.grammar_check import check_grammar
from llcuda.params import wrong_argument, wrong_value

# Any JSON value, for `LlamaGrammar.from_string`.
JSON_GBNF = r"""
root   ::= value
value  ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" space (pair ("," space pair)*)? "}" space
pair   ::= string ":" space value
array  ::= "[" space (value ("," space value)*)? "]" space
string ::= "\"" ([^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" hex hex hex hex))* "\"" space
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? space
hex    ::= [0-9a-fA-F]
space  ::= [ \t\n]{0,20}
"""


class LlamaGrammar:
    """A grammar that restricts a text; any number of calls may use it.

    Make one with `from_string`, `from_file` or `from_json_schema`.

    Args:
        grammar: The grammar as GBNF; None with a schema.
        schema: The JSON schema, in place of a grammar.

    Attributes:
        grammar: The grammar as GBNF, which llama.cpp's sampler follows; None with a schema.
        schema: The JSON schema, which `llcuda.structured` follows; None with a grammar.
    """

    def __init__(self, grammar: str | None = None, *, schema: Any = None) -> None:
        if (grammar is None) == (schema is None):
            raise wrong_argument("grammar", "expected a grammar or a schema")
        self.grammar, self.schema = grammar, schema

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> Self:
        """Return the grammar of a text.

        Args:
            grammar: GBNF (llama.cpp, grammars/README.md) with a rule `root`.
            verbose: Taken for compatibility; errors are raised, and nothing is printed.

        Raises:
            GrammarError: The text does not parse, or has no rule `root`.
        """
        if not isinstance(grammar, str):
            raise wrong_value("grammar", grammar, "expected a text")
        check_grammar(grammar)
        parsed = parse(grammar)
        if parsed.error is not None:
            raise parsed.error
        if all(rule.name != "root" for rule in parsed.rules):
            raise grammar_error("the rule 'root' is missing")
        return cls(grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> Self:
        """Return the grammar of a file.

        Args:
            file: The path of a GBNF file.
            verbose: As that of `from_string`.

        Raises:
            ModelNotFoundError: There is no such file.
            GrammarError: The text does not parse.
        """
        try:
            text = read_bytes(local_path(file, "file")).decode()
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"file={shown(file)}: there is no such file") from error
        except UnicodeDecodeError as error:
            raise wrong_value("file", file, f"it is not UTF-8: {error}") from None
        if not text.strip():
            raise wrong_value("file", file, "it is empty")
        return cls.from_string(text)

    @classmethod
    def from_json_schema(cls, json_schema: str | Mapping[str, Any], verbose: bool = True) -> Self:
        """Return the grammar of a JSON schema.

        Args:
            json_schema: The schema as JSON, or as a dict.
            verbose: As that of `from_string`.

        Raises:
            ArgumentError: The text is not JSON. What the schema asks is checked by the call that
                uses the grammar, against the model's vocabulary.
        """
        schema: Any = json_schema
        if isinstance(json_schema, str):
            try:
                schema = json.loads(json_schema)
            except (ValueError, RecursionError) as error:
                raise wrong_value("json_schema", json_schema, f"it is not JSON: {error}") from None
        if not isinstance(schema, dict | bool):
            raise wrong_value("json_schema", json_schema, "expected a JSON schema")
        return cls(schema=schema)

    def __repr__(self) -> str:
        text = self.grammar if self.grammar is not None else json.dumps(self.schema)
        return f"<LlamaGrammar {shown(text)}>"
