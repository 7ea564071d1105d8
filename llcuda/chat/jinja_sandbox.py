"""Renders chat templates, which are programs from model files, in a sandbox and within limits.

Functions and filters are those that Hugging Face's templates expect. A template that reaches into
Python, loops without end, computes too long or fills the memory ends with an ArgumentError.

Whatever C code does for a template holds the interpreter, so no operation may cost more than the
budget that is left: each is charged before it begins. The clock is read at each charge.

C code hashes, prints and compares values without asking. Therefore each list, tuple and dict is
weighed when it is made, and none that exceeds the limit comes to exist.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    ValuesView,
)
from datetime import datetime
from typing import Any

from jinja2 import Environment, TemplateError, filters, nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from llcuda.errors import ArgumentError

TIME_LIMIT = 10.0  # seconds that one rendering may take
COST_LIMIT = 2**24  # what a rendering may cost, in characters of text made, intermediate ones too
COST_PER_CHARACTER = 256  # what it may cost in addition, for each character of its variables
SOURCE_LIMIT = 2**18  # characters of a template
TOKEN_LIMIT = 2**15  # tokens of a template
NAME_LIMIT = 1000  # names of variables in a template: Jinja compares them at each branch
PLACE = 8  # the cost of an element of a list
ERROR_LIMIT = 1000  # characters of an error's text that are shown
DEPTH_LIMIT = 256  # levels of lists in lists: hashes recurse in C without a limit
WEIGHTS_LIMIT = 2**22  # characters of the lists whose weights are remembered, which stay alive
KEY_LIMIT = 8192  # keys that are no strings: their hashes can be made to collide

# The filters that stay as Jinja has them, with the cost of each character of their arguments.
# pprint, striptags, urlize, wordwrap and the others left out are used by no chat template.
_FILTERS = {
    "abs": 0, "attr": 0, "count": 0, "d": 0, "default": 0, "first": 0, "items": 0, "last": 0,
    "length": 0, "random": 0,
    "capitalize": 4, "e": 8, "escape": 8, "filesizeformat": 1, "float": 1, "forceescape": 8,
    "lower": 4, "reverse": 1, "safe": 1, "string": 1, "title": 64, "truncate": 2, "upper": 4,
    "urlencode": 64, "wordcount": 64,
}  # fmt: skip
_LAZY = ("map", "reject", "rejectattr", "select", "selectattr")
_COLLECTING = ("groupby", "max", "min", "sort", "unique")
_CHEAP_TESTS = {
    "boolean", "callable", "defined", "divisibleby", "escaped", "even", "false", "filter", "float",
    "integer", "iterable", "mapping", "none", "number", "odd", "sameas", "sequence", "string",
    "test", "true", "undefined",
}  # fmt: skip
_EQUALITIES = {"eq", "ne", "lt", "lteq", "gt", "gteq"}
# Methods of plain values that make bytes or tables, which nothing here would count.
_BLOCKED = {"encode", "from_bytes", "fromhex", "fromkeys", "maketrans", "to_bytes", "translate"}


_Weight = tuple[Any, tuple[int, int]]  # a value, its weight and its depth


class _Budget:
    """The remaining budget of one rendering, in characters of text.

    Args:
        variables: The variables of the template, as plain data.
        macros: The cost of a pass through each macro by its name.
        seconds: Limit of the time; None is 10 seconds.
    """

    def __init__(
        self,
        variables: Mapping[str, Any],
        macros: Mapping[str, int],
        seconds: float | None = None,
    ) -> None:
        self.macros = macros
        self.deadline = time.perf_counter() + (TIME_LIMIT if seconds is None else seconds)
        self.left, self.largest = 0, sys.maxsize
        self._variables: dict[int, _Weight] = {}
        self._made: dict[int, _Weight] = {}
        self._remembered = 0
        size = sum(map(self.weigh, variables.values()))
        self._variables, self._made = self._made, {}
        self.left = COST_LIMIT + COST_PER_CHARACTER * size
        self.largest = COST_LIMIT + 16 * size

    def charge(self, cost: int) -> None:
        """Count an operation before it begins, and check the time."""
        if cost > 0:  # a template may name a negative width
            self.left -= cost
        if self.left < 0 or cost > self.largest:
            raise SecurityError("it makes too much text")
        self.check_time()

    def check_time(self) -> None:
        """Raise when the time is over."""
        if time.perf_counter() > self.deadline:
            raise SecurityError("it takes too long")

    def weigh(self, value: Any) -> int:
        """Return about how many characters the text of a value has.

        A part that is reached twice counts twice, as in the text.
        """
        return len(value) if isinstance(value, str) else self._weigh(value)[0]

    def weigh_together(self, parts: Iterable[Any]) -> tuple[int, int]:
        """Return the weight and the depth that a list of these parts would have."""
        weight, depth = PLACE, 0
        for part in parts:
            if isinstance(part, str):
                weight += PLACE + len(part)
            else:
                inner, levels = self._weigh(part)
                weight += inner
                depth = max(depth, levels)
            if weight > self.largest:
                raise SecurityError("it makes too much text")
        if depth >= DEPTH_LIMIT:
            raise SecurityError(f"it makes a list of more than {DEPTH_LIMIT} levels")
        return weight, depth + 1

    def _weigh(self, value: Any) -> tuple[int, int]:
        if not isinstance(value, list | tuple | dict | set | frozenset):
            if isinstance(value, int):
                return PLACE + value.bit_length() // 3, 0
            if isinstance(value, KeysView | ValuesView | ItemsView):
                value = value.mapping  # type: ignore[union-attr]
                return self.weigh_together(itertools.chain(value, value.values()))
            return PLACE, 0
        known = self._variables.get(id(value)) or self._made.get(id(value))
        if known is not None:
            return known[1]
        self.check_time()
        parts = itertools.chain(value, value.values()) if isinstance(value, dict) else value
        return self.remember(value, self.weigh_together(parts))

    def remember(self, value: Any, weight: tuple[int, int]) -> tuple[int, int]:
        """Remember a weight with its value, which a template cannot change."""
        if self._remembered > WEIGHTS_LIMIT and self.left:  # all variables are weighed
            self._made.clear()
            self._remembered = 0
        self._remembered += weight[0]
        self._made[id(value)] = value, weight
        return weight

    def weigh_sum(self, left: Any, right: Any) -> tuple[int, int]:
        """Return the weight and the depth of the sum of two lists."""
        (weight, depth), (other, levels) = self._weigh(left), self._weigh(right)
        if weight + other > self.largest:
            raise SecurityError("it makes too much text")
        return weight + other, max(depth, levels)

    def made(self, value: Any) -> Any:
        """Return a value that was just made, within the limit."""
        if isinstance(value, list | tuple | dict):
            self._weigh(value)
        return value

    def counted(self, iterable: Iterable[Any], cost: int = PLACE) -> Iterator[Any]:
        """Iterate over anything; each element has a cost."""
        for item in iterable:
            self.charge(cost)
            yield item

    def elements(self, iterable: Any) -> Any:
        """Return the elements as a list or tuple, within the budget."""
        if isinstance(iterable, list | tuple):
            self.charge(PLACE * len(iterable))
            return iterable
        return list(self.counted(iterable))

    def text(self, value: Any) -> str:
        """Return the text of a value, within the budget."""
        self.charge(self.weigh(value))
        return str(value)


class _Thread(threading.local):
    budget: _Budget  # of the rendering on this thread


_thread = _Thread()


class Program:
    """A compiled chat template.

    Args:
        source: The text of the template, up to 262,144 characters.

    Raises:
        ArgumentError: The text is too long, or is not a Jinja template.

    Attributes:
        strings: The string constants of the template.
        keys: The names by which it may read an object: its string constants and attributes.
        names: The variables that it reads or sets.
    """

    def __init__(self, source: str) -> None:
        if len(source) > SOURCE_LIMIT:
            raise ArgumentError(
                f"the chat template has {len(source)} characters; expected at most {SOURCE_LIMIT}"
            )
        environment = _Environment()
        _thread.budget = _Budget({}, {})
        try:
            tree = environment.parse(source)
            self.strings = frozenset(
                c.value for c in tree.find_all(nodes.Const) if isinstance(c.value, str)
            )
            self.keys = self.strings | {item.attr for item in tree.find_all(nodes.Getattr)}
            self.names = frozenset(name.name for name in tree.find_all(nodes.Name))
            if len(self.names) > NAME_LIMIT:
                raise SecurityError(f"it has more than {NAME_LIMIT} names")
            self._macros: dict[str, int] = {}
            _guard(tree, self._macros)
            self._template = environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise ArgumentError(
                f"the chat template does not parse: {_shown(error.message)} (line {error.lineno})"
            ) from None
        except Exception as error:
            raise ArgumentError(f"the chat template cannot be compiled: {_shown(error)}") from None

    def render(self, variables: Mapping[str, Any], seconds: float | None = None) -> str:
        """Return the text of the template.

        Args:
            variables: The variables of the template, as plain data.
            seconds: Limit of the time; None is 10 seconds.

        Raises:
            ArgumentError: The template raises an error, or exceeds a limit.
        """
        pieces: list[str] = []
        try:
            _thread.budget = budget = _Budget(variables, self._macros, seconds)
            for piece in self._template.generate(**variables):
                budget.charge(len(piece))
                pieces.append(piece)
        except SecurityError as error:
            raise ArgumentError(f"the chat template was stopped: {_shown(error)}") from None
        except TemplateError as error:
            raise ArgumentError(f"the chat template refuses: {_shown(error)}") from None
        except (RecursionError, MemoryError) as error:
            raise ArgumentError(f"the chat template was stopped: {type(error).__name__}") from None
        except Exception as error:  # whatever a stranger's program does wrong
            reason = f"{type(error).__name__}: {_shown(error)}"
            raise ArgumentError(f"the chat template fails with these messages: {reason}") from None
        return "".join(pieces)


def _shown(error: Any) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= ERROR_LIMIT else f"{text[:ERROR_LIMIT]}..."


def _guard(node: nodes.Node, macros: dict[str, int]) -> int:
    """Make the expressions below `node` count what they cost, where Jinja would not ask.

    Args:
        node: A node of the template.
        macros: Gets the cost of a pass through each macro by its name.

    Returns:
        The cost of one pass through the node: its text, and the elements of its lists.
    """
    cost = sum(_guard(child, macros) for child in node.iter_child_nodes())
    if isinstance(node, nodes.TemplateData):
        cost += len(node.data)
    elif isinstance(node, nodes.List | nodes.Tuple | nodes.Dict):
        cost += PLACE * (1 + len(node.items))
    elif isinstance(node, nodes.Call):
        cost += PLACE * (len(node.args) + len(node.kwargs))
    elif isinstance(node, nodes.Const) and isinstance(node.value, int):
        _check_bits(node.value)
    elif isinstance(node, nodes.ScopedEvalContextModifier):
        raise SecurityError("it uses autoescape, which chat templates do not need")
    elif isinstance(node, nodes.For):
        node.iter = _filter(node.iter, "_counted", nodes.Const(1 + cost))
    elif isinstance(node, nodes.Macro | nodes.CallBlock):
        name = node.name if isinstance(node, nodes.Macro) else "caller"
        macros[name] = max(macros.get(name, 0), cost)
    elif isinstance(node, nodes.Compare):
        _guard_comparison(node)
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            setattr(node, field, _guarded(value))
        elif isinstance(value, list):
            value[:] = [_guarded(v) if isinstance(v, nodes.Node) else v for v in value]
    return cost


def _guarded(node: nodes.Node) -> nodes.Node:
    """Return the node that does the same within the budget."""
    if isinstance(node, nodes.Concat):
        return nodes.Filter(nodes.List(node.nodes), "_concat", [], [], None, None)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _filter(node.node, "_slice", *(part or nodes.Const(None) for part in parts))
    if isinstance(node, nodes.Dict) and not all(isinstance(p.key, nodes.Const) for p in node.items):
        pairs: list[nodes.Expr] = [nodes.Tuple([p.key, p.value], "load") for p in node.items]
        return nodes.Filter(nodes.List(pairs), "_table", [], [], None, None)
    if isinstance(node, nodes.List | nodes.Tuple | nodes.Dict) and not _is_plain(node):
        return nodes.Filter(node, "_made", [], [], None, None)
    return node


def _is_plain(node: nodes.Node) -> bool:
    """Return whether a list holds only constants, or is the target of an assignment."""
    if isinstance(node, nodes.Tuple) and node.ctx != "load":
        return True
    return all(
        isinstance(part, nodes.Const) or (isinstance(part, nodes.Pair) and _is_plain(part))
        for part in node.iter_child_nodes()
    )


def _guard_comparison(node: nodes.Compare) -> None:
    """Weigh both sides of comparisons, except with a constant, which costs nothing."""
    sides: list[Any] = [node, *node.ops]
    constant = any(isinstance(side.expr, nodes.Const) for side in sides)
    if not (constant and len(sides) == 2 and node.ops[0].op in _EQUALITIES):
        for side in sides:
            side.expr = _filter(side.expr, "_compared")


def _filter(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(_guarded(node), name, list(args), [], None, None)


@pass_context  # also keeps the compiler from folding it
def _counted(context: Context, iterable: Iterable[Any], cost: int) -> Iterator[Any]:
    return _thread.budget.counted(iterable, cost)


@pass_context
def _concat(context: Context, parts: list[Any]) -> str:
    return "".join(map(_thread.budget.text, parts))


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _thread.budget.made(value)


@pass_context
def _table(context: Context, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    table: dict[Any, Any] = _thread.budget.made(_dict(pairs))
    return table


@pass_context
def _slice(context: Context, value: Any, *bounds: Any) -> Any:
    place = slice(*bounds)
    if isinstance(value, str | list | tuple):
        count = len(range(*place.indices(len(value))))
        _thread.budget.charge(count if isinstance(value, str) else PLACE * count)
    return _thread.budget.made(value[place])


@pass_context
def _compared(context: Context, value: Any) -> Any:
    if not isinstance(value, int | float | None):
        _thread.budget.check_time()
        _thread.budget.weigh(value)
    return value


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    _thread.budget.charge(_thread.budget.weigh(value))
    return value


class _Extension(Extension):
    """Counts tokens, and accepts {% generation %}, which marks text for training."""

    tags = {"generation"}  # noqa: RUF012 - the base class has it so

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Return the tokens of a template, up to the limit."""
        for number, token in enumerate(stream):
            if number >= TOKEN_LIMIT:
                raise SecurityError(f"it has more than {TOKEN_LIMIT} tokens")
            _thread.budget.check_time()
            yield token

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return the body of the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """The object of `{% set ns.x = ... %}`; it refuses names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], _dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # its values can hold it


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


class _Dict:
    """`dict(...)` without the type's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Return the dict."""
        if len(args) > 1:
            raise TypeError(f"dict expected at most 1 argument, got {len(args)}")
        table: dict[Any, Any] = {}
        for given in args:
            pairs = given.items() if isinstance(given, Mapping) else given
            others = 0
            for key, value in _thread.budget.counted(pairs, 2 * PLACE):
                others += not isinstance(key, str)
                if others > KEY_LIMIT:
                    raise SecurityError(f"it makes more than {KEY_LIMIT} keys that are no strings")
                _thread.budget.weigh(key)
                table[key] = value
        return {**table, **kwargs}


_dict = _Dict()


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if isinstance(form, str) and len(form) > ERROR_LIMIT:
        raise SecurityError(f"it formats the time with more than {ERROR_LIMIT} characters")
    _check_widths(form)
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
    if _thread.budget.weigh(separators) > 64:
        raise SecurityError("it asks for JSON with separators of more than 32 characters")
    cost = 4 if indent is None else 16  # Python code writes indented JSON
    _thread.budget.charge(cost * _thread.budget.weigh(value))
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    _thread.budget.charge(len(text))
    return text


@pass_environment
def _join(
    environment: Environment, value: Iterable[Any], d: str = "", attribute: Any = None
) -> str:
    items = _thread.budget.elements(value)
    if attribute is not None:
        items = map(filters.make_attrgetter(environment, attribute), items)
    texts = [_thread.budget.text(part) for part in items]
    _thread.budget.charge(len(texts) * _thread.budget.weigh(d))
    return str(d).join(texts)


@pass_environment
def _sum(
    environment: _Environment, iterable: Iterable[Any], attribute: Any = None, start: Any = 0
) -> Any:
    items = iter(_thread.budget.counted(iterable))
    if attribute is not None:
        items = map(filters.make_attrgetter(environment, attribute), items)
    for item in items:
        start = environment.call_binop(None, "+", start, item)
    return start


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = map(_thread.budget.text, (text, old, new))
    _thread.budget.charge(text.count(old) * len(new))
    return str(text.replace(old, new, -1 if count is None else count))


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    step = width if isinstance(width, int) else len(width)
    _thread.budget.charge(2 * len(text))
    _thread.budget.charge((1 + len(text.splitlines())) * (PLACE + max(0, step)))
    return filters.do_indent(text, width, first, blank)


def _center(text: str, width: int = 80) -> str:
    _thread.budget.charge(_thread.budget.weigh(text) + width)
    return filters.do_center(text, width)


def _format(text: str, *args: Any, **kwargs: Any) -> str:
    text = _thread.budget.text(text)
    _thread.budget.charge(_format_cost(text, "%", kwargs or args))
    return filters.do_format(text, *args, **kwargs)


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    _thread.budget.charge(_thread.budget.weigh(value))
    number = filters.do_int(value, default, base)
    if isinstance(number, int):
        _check_bits(number)
    return number


def _list(value: Iterable[Any]) -> list[Any]:
    elements: list[Any] = _thread.budget.made(list(_thread.budget.elements(value)))
    return elements


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > 400:
        raise SecurityError("it rounds to more than 400 places")
    return filters.do_round(value, precision, method)


@pass_environment
def _dictsort(environment: Environment, value: Mapping[Any, Any], *args: Any, **kwargs: Any) -> Any:
    _thread.budget.charge(16 * _thread.budget.weigh(value))
    return filters.do_dictsort(value, *args, **kwargs)


def _range(*args: int) -> range:
    numbers = safe_range(*args)
    _thread.budget.charge(len(numbers))
    return numbers


def _charged(function: Any, cost: int) -> Callable[..., Any]:
    """Return a filter or test whose arguments cost something for each of their characters."""

    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        weight = cost and sum(map(_thread.budget.weigh, (*args, *kwargs.values())))
        _thread.budget.charge(1 + cost * weight)
        return _thread.budget.made(function(*args, **kwargs))

    return charged


def _iterating(function: Callable[..., Any], collects: bool) -> Callable[..., Any]:
    """Return a filter that counts the elements that it reads.

    Args:
        function: A filter of Jinja, with the name of an attribute among its arguments.
        collects: It keeps all elements, and compares them.
    """
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def iterating(*args: Any, **kwargs: Any) -> Any:
        before, value, after = args[:first], args[first], args[first + 1 :]
        cost = PLACE + sum(len(v) for v in (*after, *kwargs.values()) if isinstance(v, str))
        if collects:
            value = _thread.budget.elements(value)
            if function is filters.FILTERS["unique"] and len(value) > KEY_LIMIT:
                raise SecurityError(f"it compares more than {KEY_LIMIT} elements")
            _thread.budget.charge(16 * _thread.budget.weigh(value) + cost * len(value))
            for name in (*after, *kwargs.values()):
                if isinstance(
                    name, str
                ):  # of an attribute, maybe of an object, which weighs little
                    for key in map(filters.make_multi_attrgetter(before[0], name), value):
                        _thread.budget.charge(16 * _thread.budget.weigh(key))
        elif value:  # Jinja takes None for an empty list
            value = _thread.budget.counted(value, cost)
        return _thread.budget.made(function(*before, value, *after, **kwargs))

    return iterating


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with the settings of transformers, which counts what everything costs."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Extension, loopcontrols],
            finalize=_finalize,
            cache_size=0,
            optimized=False,  # which computes constants, without a limit, when it compiles
        )
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            dict=_dict,
            namespace=_Namespace,
            range=_range,
        )
        known = self.filters
        self.filters = {
            **{name: _charged(known[name], cost) for name, cost in _FILTERS.items()},
            **{name: _iterating(known[name], False) for name in _LAZY},
            **{name: _iterating(known[name], True) for name in _COLLECTING},
            "center": _center,
            "dictsort": _dictsort,
            "format": _format,
            "indent": _indent,
            "int": _int,
            "join": _join,
            "list": _list,
            "replace": _replace,
            "round": _round,
            "sum": _sum,
            "tojson": _tojson,
            "trim": _trim,
            "_compared": _compared,
            "_concat": _concat,
            "_counted": _counted,
            "_made": _made,
            "_slice": _slice,
            "_table": _table,
        }
        self.tests = {
            name: _charged(test, 0 if name in _CHEAP_TESTS else 1)
            for name, test in self.tests.items()
        }

    def call_binop(self, context: Context | None, operator: str, left: Any, right: Any) -> Any:
        """Refuse an operation that would cost more than is left."""
        whole = isinstance(left, int) and isinstance(right, int)
        if whole:
            bits = max(_check_bits(left), _check_bits(right))
            if operator == "**" and bits * max(0, right) > 2**13:
                _check_bits(left ** min(right, 4097))
        elif operator == "%" and isinstance(left, str):
            _thread.budget.charge(_format_cost(left, "%", right))
        elif operator == "*":
            times = next((n for n in (left, right) if isinstance(n, int)), 1)
            _thread.budget.charge(_length(left) * _length(right) * max(0, times))
        elif operator == "+":
            _thread.budget.charge(_length(left) + _length(right))
        elif isinstance(left, KeysView | ItemsView) or isinstance(right, KeysView | ItemsView):
            raise SecurityError("it computes with sets")
        result = super().call_binop(context, operator, left, right)  # type: ignore[arg-type]
        if operator == "+" and isinstance(result, list | tuple):
            _thread.budget.remember(result, _thread.budget.weigh_sum(left, right))
        return _thread.budget.made(result)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an element; hashing a key may take a while."""
        if not isinstance(argument, str | int):
            _thread.budget.check_time()
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may read this attribute."""
        if isinstance(obj, KeysView | ValuesView | ItemsView):
            return False
        if isinstance(obj, str | int | float | dict) and attr in _BLOCKED:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandbox's `format` of a string; refuse one with wide fields."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form = value.__self__

        def formatted(*args: Any, **kwargs: Any) -> str:
            if re.search(r"\{[^{}:!]*[.\[]", form):  # of an object, which weighs little
                raise SecurityError("it uses a format with an attribute")
            _thread.budget.charge(_format_cost(form, "{", [*args, kwargs]))
            return wrapped(*args, **kwargs)

        return formatted

    def call(*args: Any, **kwargs: Any) -> Any:
        """Call a macro, a function or a method of a value; refuse what exceeds the budget."""
        called, given = args[2], args[3:]
        budget = _thread.budget
        cost = 1 + PLACE * (len(given) + len(kwargs))
        budget.weigh_together((*given, *kwargs.values()))  # which a macro may read as one tuple
        if isinstance(called, Macro):
            cost += budget.macros.get(called.name, 0)
        else:
            owner = getattr(called, "__self__", None)
            budget.weigh(owner)
            if isinstance(owner, str):
                if called.__name__ == "join" and len(given) == 1:
                    given = (budget.elements(given[0]),)
                    args = (*args[:3], *given)
                cost += _method_cost(owner, called.__name__, (*given, *kwargs.values()))
        budget.charge(cost)
        result = ImmutableSandboxedEnvironment.call(*args, **kwargs)
        if isinstance(result, str | list | tuple | dict):
            budget.charge(_length(result))
        return budget.made(result)


def _length(value: Any) -> int:
    """Return the cost of a copy of a value."""
    if isinstance(value, str):
        return len(value)
    return PLACE * len(value) if isinstance(value, list | tuple | dict) else 1


def _check_bits(number: int) -> int:
    bits = number.bit_length()
    if bits > 4096:
        raise SecurityError("it computes a number of more than 4,096 bits")
    return bits


def _check_widths(form: str) -> None:
    """Refuse a format that pads to more than 9,999 places, or to a variable width."""
    if re.search(r"\d{5}|%[^%a-zA-Z]*\*|\{[^{}:]*:[^{}]*\{", form):
        raise SecurityError("it uses a format with a width of more than 9,999")


def _format_cost(form: str, delimiter: str, values: Any) -> int:
    """Return an upper bound of the cost of formatting these values."""
    _thread.budget.charge(16 * len(form))
    _check_widths(form)
    widest = max(map(int, re.findall(r"[0-9]+", form)), default=0)
    return form.count(delimiter) * (64 + widest + _thread.budget.weigh(values))


def _method_cost(owner: str, name: str, given: tuple[Any, ...]) -> int:
    """Return the cost of a method of a string, its result included."""
    size, budget = len(owner), _thread.budget
    first: Any = given[0] if given else None
    sought = len(first) if isinstance(first, str) else 0
    width = max(0, first) if isinstance(first, int) else 0
    match name:
        case "center" | "ljust" | "rjust" | "zfill":
            return size + width
        case "expandtabs":
            return size + owner.count("\t") * (width if given else 8)
        case "join" if isinstance(first, list | tuple):
            return sum(map(_length, first)) + size * len(first)
        case "replace" if isinstance(first, str) and len(given) > 1 and isinstance(given[1], str):
            return size + owner.count(first) * len(given[1])
        case "split" if sought:
            return size + PLACE * owner.count(first)
        case "rfind" | "rindex" | "rpartition" | "rsplit" if sought:  # no two-way search
            return size * (1 + sought // 4) + PLACE * owner.count(first)
        case "split" | "rsplit" | "splitlines":
            return PLACE * size
        case "strip" | "lstrip" | "rstrip":
            return size * (1 + sought // 8)
        case "startswith" | "endswith":
            return budget.weigh(first)
        case "capitalize" | "casefold" | "lower" | "swapcase" | "title" | "upper":
            return 4 * size
    return size + sought


def _trim(value: Any, chars: str | None = None) -> str:
    text = _thread.budget.text(value)
    _thread.budget.charge(_method_cost(text, "strip", (chars,)))
    return text.strip(chars)
