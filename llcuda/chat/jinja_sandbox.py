"""Renders chat templates, which are programs from model files, in a sandbox and within limits.

Functions and filters are those that Hugging Face's templates expect. A template that reaches into
Python, loops without end or fills the memory ends with an ArgumentError.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Environment, TemplateError, filters, nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from llcuda.errors import ArgumentError

TIME_LIMIT = 10.0  # seconds that one rendering may take
TEXT_LIMIT = 2**26  # characters of all texts, intermediate ones too, plus 256 x the input's
SOURCE_LIMIT = 2**21  # characters of a template
# Filters that multiply their input, and that no chat template needs.
_LEFT_OUT = ("batch", "slice", "urlize", "wordwrap", "xmlattr")
_PADDING = {"center", "ljust", "rjust", "zfill", "expandtabs"}
_SPLITTING = {"split", "rsplit", "splitlines"}


class _Spent(threading.local):
    """The budget that the rendering on this thread has left."""

    deadline = float("inf")
    characters = TEXT_LIMIT
    macros: Mapping[str, int] = {}

    def begin(self, size: int = 0, seconds: float | None = None) -> None:
        """Start a rendering of `size` characters, with a limit of `seconds`; None is 10."""
        self.deadline = time.perf_counter() + (TIME_LIMIT if seconds is None else seconds)
        self.characters = TEXT_LIMIT + 256 * size

    def charge(self, characters: int) -> None:
        """Count text before it is made, and check the time."""
        self.characters -= characters
        if self.characters < 0:
            raise SecurityError("it makes too much text")
        if time.perf_counter() > self.deadline:
            raise SecurityError("it takes too long")


_spent = _Spent()


class Program:
    """A compiled chat template.

    Args:
        source: The text of the template, up to 2,097,152 characters.

    Raises:
        ArgumentError: The text is too long, or is not a Jinja template.

    Attributes:
        strings: The string constants of the template.
        names: The variables that it reads or sets.
    """

    def __init__(self, source: str) -> None:
        if len(source) > SOURCE_LIMIT:
            raise ArgumentError(
                f"the chat template has {len(source)} characters; expected at most {SOURCE_LIMIT}"
            )
        environment = _Environment()
        _spent.begin()
        try:
            tree = environment.parse(source)
            self._macros = {m.name: _literal(m) for m in tree.find_all(nodes.Macro)}
            self.strings = frozenset(
                c.value for c in tree.find_all(nodes.Const) if isinstance(c.value, str)
            )
            self.names = frozenset(name.name for name in tree.find_all(nodes.Name))
            _bound(tree)
            self._template = environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise ArgumentError(
                f"the chat template does not parse: {error.message} (line {error.lineno})"
            ) from None
        except (RecursionError, MemoryError, TemplateError, SyntaxError, ValueError) as error:
            raise ArgumentError(f"the chat template cannot be compiled: {error}") from None

    def render(
        self, variables: Mapping[str, Any], size: int = 0, seconds: float | None = None
    ) -> str:
        """Return the text of the template.

        Args:
            variables: The variables of the template, as plain data.
            size: Characters in `variables`.
            seconds: Limit of the time; None is 10 seconds.

        Raises:
            ArgumentError: The template raises an error, or exceeds a limit.
        """
        _spent.begin(size, seconds)
        _spent.macros = self._macros
        pieces: list[str] = []
        try:
            for piece in self._template.generate(**variables):
                _spent.charge(len(piece))
                pieces.append(piece)
        except SecurityError as error:
            raise ArgumentError(f"the chat template was stopped: {error}") from None
        except TemplateError as error:
            raise ArgumentError(f"the chat template refuses: {error}") from None
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ArgumentError(f"the chat template fails with these messages: {reason}") from None
        except (RecursionError, MemoryError) as error:
            raise ArgumentError(f"the chat template was stopped: {type(error).__name__}") from None
        return "".join(pieces)


def _literal(node: nodes.Node) -> int:
    """Return how many characters of the template one pass through `node` may emit."""
    return 1 + sum(len(data.data) for data in node.find_all(nodes.TemplateData))


def _bound(node: nodes.Node) -> None:
    """Make each loop and each `~` below `node` count its text."""
    for child in node.iter_child_nodes():
        _bound(child)
    if isinstance(node, nodes.For):
        size = nodes.Const(_literal(node))
        node.iter = nodes.Filter(node.iter, "_counted", [size], [], None, None)
    for name, value in node.iter_fields():
        if isinstance(value, nodes.Concat):
            setattr(node, name, _joined(value))
        elif isinstance(value, list):
            value[:] = [_joined(v) if isinstance(v, nodes.Concat) else v for v in value]


def _joined(node: nodes.Concat) -> nodes.Filter:
    return nodes.Filter(nodes.List(node.nodes), "_concat", [], [], None, None)


@pass_context  # also keeps the compiler from folding it
def _counted(context: Context, iterable: Iterable[Any], size: int) -> Iterator[Any]:
    for item in iterable:
        _spent.charge(size)
        yield item


@pass_context
def _concat(context: Context, parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _spent.charge(sum(map(len, texts)))
    return "".join(texts)


class _Generation(Extension):
    """Accepts {% generation %}, which marks text for training and has no effect here."""

    tags = {"generation"}  # noqa: RUF012 - the base class has it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return the body of the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """The object of `{% set ns.x = ... %}`; it refuses names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


class _Dict:
    """`dict(...)` without the type's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as transformers writes it: letters stay letters, and HTML is not escaped."""
    if len(indent if isinstance(indent, str) else " " * min(indent or 0, 65)) > 64:
        raise SecurityError("it asks for JSON with an indent of more than 64 columns")
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    _spent.charge(len(text))
    return text


@pass_environment
def _join(
    environment: Environment, value: Iterable[Any], d: str = "", attribute: Any = None
) -> str:
    if attribute is not None:
        value = map(filters.make_attrgetter(environment, attribute), value)
    texts = [str(part) for part in value]
    _spent.charge(sum(map(len, texts)) + len(texts) * len(str(d)))
    return str(d).join(texts)


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    _spent.charge(len(text) + text.count(old) * len(new))
    return str(text.replace(old, new, -1 if count is None else count))


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    step = width if isinstance(width, int) else len(width)
    _spent.charge(len(text) + (1 + text.count("\n")) * max(0, step))
    return filters.do_indent(text, width, first, blank)


def _center(text: str, width: int = 80) -> str:
    _spent.charge(width)
    return filters.do_center(text, width)


def _format(text: str, *args: Any, **kwargs: Any) -> str:
    _check_widths(text)
    return filters.do_format(text, *args, **kwargs)


def _list(value: Iterable[Any]) -> list[Any]:
    _spent.charge(8 * _length(value))
    return list(value)


def _range(*args: int) -> range:
    numbers = safe_range(*args)
    _spent.charge(8 * len(numbers))
    return numbers


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with the settings of transformers, which counts text that grows."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=_finalize,
            cache_size=0,
        )
        del self.globals["lipsum"]
        for name in _LEFT_OUT:
            del self.filters[name]
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            dict=_Dict(),
            namespace=_Namespace,
            range=_range,
        )
        self.filters.update(
            tojson=_tojson,
            join=_join,
            replace=_replace,
            indent=_indent,
            center=_center,
            format=_format,
            list=_list,
            _counted=_counted,
            _concat=_concat,
        )

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse an operation whose result would be much larger than its operands."""
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        elif operator == "**" and whole:
            _check_bits(left.bit_length() * max(0, right))
        elif operator == "*" and whole:
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            times = next((n for n in (left, right) if isinstance(n, int)), 1)
            _spent.charge(_length(left) * _length(right) * max(0, times))
        elif operator == "+":
            _spent.charge(_length(left) + _length(right))
        result = super().call_binop(context, operator, left, right)
        if operator == "%":
            _spent.charge(_length(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandbox's `format` of a string; refuse one with wide fields."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_widths(value.__self__)
        return wrapped

    def call(*args: Any, **kwargs: Any) -> Any:
        """Call a macro, a function or a method of a string; refuse what exceeds the limits."""
        called, given = args[2], args[3:]
        if isinstance(called, Macro):
            _spent.charge(_spent.macros.get(called.name, 1))
        owner = getattr(called, "__self__", None)
        if isinstance(owner, str):
            _check_method(owner, called.__name__, (*given, *kwargs.values()))
        result = ImmutableSandboxedEnvironment.call(*args, **kwargs)
        _spent.charge(_length(result))
        return result


def _finalize(value: Any) -> Any:
    if isinstance(value, str):
        _spent.charge(len(value))
    return value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | range) else 1


def _check_bits(bits: int) -> None:
    if bits > 4096:
        raise SecurityError("it computes a number of more than 4,096 bits")


def _check_widths(form: str) -> None:
    """Refuse a format that pads to more than 9,999 places, or to a variable width."""
    if re.search(r"\d{5}|%[^%a-zA-Z]*\*|\{[^{}]*:[^{}]*\{", form):
        raise SecurityError("it uses a format with a width of more than 9,999")


def _check_method(owner: str, name: str, given: tuple[Any, ...]) -> None:
    """Count the result of a string's method before it is made."""
    if name == "replace" and all(isinstance(value, str) for value in given[:2]):
        old, new = (*given[:2], "", "")[:2]
        _spent.charge(len(owner) + owner.count(old) * len(new))
    elif name == "join" and given and isinstance(given[0], list | tuple):
        _spent.charge(sum(_length(part) for part in given[0]) + len(owner) * len(given[0]))
    elif name in _PADDING and given and isinstance(given[0], int):
        times = owner.count("\t") if name == "expandtabs" else 1
        _spent.charge(len(owner) + times * max(0, given[0]))
    elif name in _SPLITTING:
        _spent.charge(8 * len(owner))
    elif name == "translate":
        raise SecurityError("it calls translate()")
