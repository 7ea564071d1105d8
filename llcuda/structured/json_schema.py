"""Preparation of JSON schemas for llguidance, and checks of what it would not notice.

The prepared schema is a copy, which allows no text that the schema does not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import unquote

from llcuda.errors import ArgumentError
from llcuda.native.gbnf import closure
from llcuda.structured.closing import close_objects
from llcuda.structured.cost import remainders, schema_cost
from llcuda.structured.negation import is_names, is_number
from llcuda.structured.rewrite import rewrite

MAX_BYTES = 1 << 18
MAX_DEPTH = 124  # of objects and arrays in one another; llguidance's JSON parser stops at 127
MAX_WRITTEN = 4 * MAX_BYTES
MAX_SCHEMAS = 10_000  # in one another and beside each other; llguidance's compiler recurses
MAX_BOUND = float(1 << 59)  # llguidance does not survive the least integer of 64 bits
MAX_EXACT = 1 << 53  # llguidance makes floats of numbers
MAX_MULTIPLE = 100_000  # llguidance makes a state of each remainder
MAX_COMMON_MULTIPLE = (1 << 16) - 1
ANY_ESCAPES = {"json_allow_general_unicode_escapes": True}
SHORT_ESCAPES = {"json_allowed_escapes": 'nrbtf\\"'}

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

_IN_MAPPINGS = ("properties", "patternProperties", "$defs", "definitions")
_IN_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
_ALONE = ("items", "additionalItems", "additionalProperties")
# llguidance's dates have a 29th of February in every year, and a year 0.
_DATE = (
    "^(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-(0[13-9]|1[0-2]|02-([01]|2[0-8]))"
    "|^([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29"
)
# llguidance lets a name of a pattern contain \u only for a control character.
_NAMES_WITHOUT_UNICODE_ESCAPES = r"^[^\x00-\x1f\x7f]*$"
_INDEX = re.compile("[0-9]{1,9}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WITHOUT_SHORT_ESCAPE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")


class PreparedSchema(NamedTuple):
    """A schema as llguidance reads it.

    Attributes:
        schema: The schema.
        escapes: llguidance's options for the escapes in it.
        cost: What it costs to compile; see `llcuda.structured.cost`.
        narrowing: The refusal of a keyword that is kept by a smaller schema, where nothing is left.
    """

    schema: dict[str, Any]
    escapes: dict[str, Any]
    cost: float
    narrowing: ArgumentError | None


def prepare(schema: Any, *, closes: bool) -> PreparedSchema:
    r"""Prepare a schema.

    A name that is escaped equals the name that is not (RFC 8259, section 8.3), and llguidance
    compares names as they are written. So names beside declared ones have no `\u` escapes. Other
    texts have every escape of JSON, or no `\u` at all where a schema has patterns, in which
    llguidance allows `\u` only for control characters.

    Args:
        schema: A JSON schema; draft 2020-12, as far as llguidance knows it.
        closes: Whether objects whose properties are named have no others unless the schema speaks
            of them.

    Returns:
        A copy that llguidance understands as the schema is meant.

    Raises:
        ArgumentError: This is not a JSON schema, it cannot be honoured, or no finite text satisfies
            it.
    """
    prepared = _copy(schema)
    _check_depth(prepared)
    if closes:
        close_objects(prepared, lambda reference: target(reference, prepared))
    narrowing = rewrite(prepared, lambda reference: target(reference, prepared))
    _check_depth(prepared)
    if (size := _size(prepared)) > MAX_WRITTEN:
        raise ArgumentError(
            f"the JSON schema has {size:.0f} characters when oneOf, not, if and the like are "
            f"written out; at most {MAX_WRITTEN} can be honoured"
        )
    nodes = list(islice(_schemas(prepared), MAX_SCHEMAS + 1))
    if len(nodes) > MAX_SCHEMAS:
        raise ArgumentError(f"the JSON schema contains more than {MAX_SCHEMAS} schemas")
    cost = schema_cost(size, nodes)
    any_escapes = not any(map(_needs_short_escapes, nodes))
    for node in nodes:
        _check_values(node, any_escapes)
        _prepare_node(node)
    _check_multiples(nodes, prepared)
    if not _has_texts(prepared):
        raise narrowing or ArgumentError(
            "nothing finite satisfies the JSON schema: it needs false, or itself"
        )
    if not any_escapes:
        return PreparedSchema(prepared, SHORT_ESCAPES, cost, narrowing)
    for node in nodes:
        if node.get("properties") and _allows_any_names(node):
            node["patternProperties"] = {_NAMES_WITHOUT_UNICODE_ESCAPES: True}
            node["additionalProperties"] = False
    return PreparedSchema(prepared, ANY_ESCAPES, cost, narrowing)


def _copy(schema: Any) -> dict[str, Any]:
    if schema is True:
        return {}
    if schema is False:
        raise ArgumentError("nothing satisfies the JSON schema false")
    if not isinstance(schema, Mapping):
        raise ArgumentError(f"expected a JSON schema as an object, not {type(schema).__name__}")
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except RecursionError:
        raise _too_deep() from None
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"the JSON schema is not JSON: {error}") from None
    if size > MAX_BYTES:
        raise ArgumentError(f"the JSON schema has {size} bytes; at most {MAX_BYTES} are allowed")
    copy: dict[str, Any] = json.loads(text)
    if "x-guidance" in copy:
        raise ArgumentError("x-guidance is not a keyword of JSON schemas", remedy="leave it out")
    return copy


def _check_depth(value: Any) -> None:
    """Refuse a document that llguidance's parser would refuse; objects may occur repeatedly."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        inner = [
            v for outer in level for v in (outer.values() if isinstance(outer, dict) else outer)
        ]
        level = list({id(v): v for v in inner if isinstance(v, dict | list)}.values())


def _too_deep() -> ArgumentError:
    return ArgumentError(
        f"schema at #: it is nested too deeply; at most {MAX_DEPTH} levels can be honoured",
        remedy="move inner schemas to $defs",
    )


def _size(value: Any) -> float:
    """Return about how many characters a document has in which objects may occur repeatedly."""
    sizes: dict[int, float] = {}
    pending = [value]
    while pending:
        outer = pending[-1]
        inner = list(outer.values() if isinstance(outer, dict) else outer)
        inner = [item for item in inner if isinstance(item, dict | list)]
        if missing := [item for item in inner if id(item) not in sizes]:
            pending += missing
            continue
        names = sum(len(name) + 4 for name in outer) if isinstance(outer, dict) else 0
        leaves = outer.values() if isinstance(outer, dict) else outer
        size = sum(len(str(leaf)) + 4 for leaf in leaves if not isinstance(leaf, dict | list))
        sizes[id(pending.pop())] = size + names + sum(sizes[id(item)] for item in inner) + 2.0
    return sizes[id(value)]


def _schemas(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return every schema that is an object: `root`, those in it, and those that it refers to."""
    unvisited: list[Any] = [root]
    visited = set()
    while unvisited:
        node = unvisited.pop()
        if isinstance(node, dict) and id(node) not in visited:
            visited.add(id(node))
            yield node
            unvisited += _inner(node)
            if isinstance(reference := node.get("$ref"), str):
                unvisited.append(target(reference, root))


def _inner(node: dict[str, Any]) -> Iterator[Any]:
    for key in _IN_MAPPINGS:
        if isinstance(inner := node.get(key), dict):
            yield from inner.values()
    for key in _IN_LISTS:
        if isinstance(inner := node.get(key), list):
            yield from inner
    for key in _ALONE:
        yield node.get(key)


def _needs_short_escapes(node: dict[str, Any]) -> bool:
    """Whether llguidance could not keep the escapes apart that a schema allows and forbids."""
    if "pattern" in node or node.get("patternProperties"):
        return True
    properties, required = node.get("properties"), node.get("required")
    names = list(properties) if isinstance(properties, dict) else []
    if names and node.get("additionalProperties") is not False and not _allows_any_names(node):
        return True
    return any(map(_CONTROL.search, [*names, *(required if is_names(required) else ())]))


def _allows_any_names(node: dict[str, Any]) -> bool:
    """Whether an object may have names that are not declared, with any values."""
    others = node.get("additionalProperties", True)
    return others is True or others == {}


def _check_values(node: dict[str, Any], any_escapes: bool) -> None:
    r"""Refuse numbers that llguidance would round, and texts that only `\u` escapes could spell."""
    values = node["enum"] if isinstance(node.get("enum"), list) else []
    unvisited = [*values, node.get("const")]
    while unvisited:
        value = unvisited.pop()
        if is_number(value) and abs(value) > MAX_EXACT:
            raise ArgumentError(
                f"enum and const: {value!r:.40}: numbers up to 2^53 = {MAX_EXACT} can be honoured"
            )
        if isinstance(value, str) and not any_escapes and _WITHOUT_SHORT_ESCAPE.search(value):
            raise ArgumentError(
                f"enum and const: {value!r} contains a control character; it cannot be honoured in "
                "a schema with a pattern, or with a schema for additionalProperties"
            )
        if isinstance(value, list | dict):
            unvisited += [*value, *value.values()] if isinstance(value, dict) else value


def _prepare_node(node: dict[str, Any]) -> None:
    if node.get("uniqueItems") is False:
        del node["uniqueItems"]
    minimum, required = node.get("minProperties"), node.get("required")
    if isinstance(minimum, int) and minimum > max(
        1, len(required) if isinstance(required, list) else 0
    ):
        # One name twice is one property, which a grammar cannot see.
        raise ArgumentError(
            f"minProperties={minimum}: at most 1, or the number of required properties, can be "
            "honoured; require more of them"
        )
    for key in _BOUNDS:
        if is_number(bound := node.get(key)):
            node[key] = _exact_bound(key, bound)
    multiple = node.get("multipleOf")
    if is_number(multiple) and remainders(multiple) > MAX_MULTIPLE:
        raise ArgumentError(
            f"multipleOf={multiple!r:.40}: a number of fewer digits can be honoured"
        )
    if node.get("type") != "integer":
        _exclude_whole_bounds(node)
    if node.get("format") in ("date", "date-time"):
        others = node.get("allOf", [])
        if "pattern" in node and isinstance(others, list):  # llguidance refuses anything else
            node["allOf"] = [*others, {"pattern": node.pop("pattern")}]
        node["pattern"] = _DATE


def _exact_bound(key: str, bound: float) -> float:
    """Return a bound that llguidance's numbers hold, the next one that allows no more numbers.

    It makes floats of bounds, and 64-bit integers of those of integers.
    """
    sign = 1 if key in ("minimum", "exclusiveMinimum") else -1
    if bound * sign > MAX_BOUND:
        raise ArgumentError(
            f"{key}={bound!r:.40}: bounds up to 2^59 = {MAX_BOUND:.0f} can be honoured"
        )
    if bound * sign < -MAX_BOUND:
        return -sign * MAX_BOUND
    rounded = float(bound)
    if rounded != bound and (rounded > bound) != (sign > 0):
        rounded = math.nextafter(rounded, sign * math.inf)
    return bound if rounded == bound else rounded


def _exclude_whole_bounds(node: dict[str, Any]) -> None:
    """Narrow a range a little where a whole number bounds it from outside.

    llguidance lets "2" pass for exclusiveMinimum 2 and maximum 2.5: its integer part is that of the
    range. The other bound may come from another schema, in allOf.
    """
    bounds = [node.get(key) for key in _BOUNDS]
    numbers = [bound for bound in bounds if is_number(bound)]
    width = max(numbers) - min(numbers) if len(numbers) > 1 else 1
    for key, sign in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
        bound = node.get(key)
        if not is_number(bound) or abs(bound) >= 2**53 or bound != int(bound):
            continue
        delta = max(1e-9, abs(bound) * 2**-50)
        node[key] = bound + sign * (delta if delta * 1024 < width else width / 1024)


def _check_multiples(nodes: Sequence[dict[str, Any]], root: dict[str, Any]) -> None:
    """Refuse multiples that may be asked of one number where the least common one is too large.

    llguidance computes it with 32 bits, by multiplying, also for two that are equal.
    """
    multiples = {node["multipleOf"] for node in nodes if is_number(node.get("multipleOf"))}
    if _common_multiple(multiples) <= MAX_COMMON_MULTIPLE:
        return
    for node in nodes:
        group = list(_schemas_in_place(node, root))
        together = {item["multipleOf"] for item in group if is_number(item.get("multipleOf"))}
        if len(group) > 1 and _common_multiple(together) > MAX_COMMON_MULTIPLE:
            numbers = ", ".join(map(repr, sorted(together)))
            raise ArgumentError(
                f"multipleOf: {numbers:.80} beside other schemas: a least common multiple up to "
                f"{MAX_COMMON_MULTIPLE} can be honoured"
            )


def _common_multiple(multiples: Iterable[float]) -> int:
    """Return the least common multiple of numbers without their points."""
    numbers = [Decimal(repr(multiple)) for multiple in multiples]
    places = min((int(number.as_tuple().exponent) for number in numbers), default=0)
    return math.lcm(*(int(abs(number).scaleb(-min(0, places))) for number in numbers))


def _schemas_in_place(node: dict[str, Any], root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return `node` and the schemas that describe the same value."""
    unvisited: list[Any] = [node]
    visited = set()
    while unvisited:
        inner = unvisited.pop()
        if not isinstance(inner, dict) or id(inner) in visited:
            continue
        visited.add(id(inner))
        yield inner
        for key in ("allOf", "anyOf", "oneOf"):
            if isinstance(schemas := inner.get(key), list):
                unvisited += schemas
        if isinstance(reference := inner.get("$ref"), str):
            unvisited.append(target(reference, root))


# --- whether a finite text satisfies a schema ---


def _has_texts(root: dict[str, Any]) -> bool:
    """Whether a finite text can satisfy `root`, as far as references decide that."""
    implications: list[tuple[str, list[str]]] = []

    def require(name: str, schemas: Iterable[Any]) -> None:
        """Note that `name` has a finite text if all of these schemas have one."""
        needed = [schema for schema in schemas if isinstance(schema, dict) or schema is False]
        implications.append((name, [str(id(schema)) for schema in needed]))

    for node in _schemas(root):
        name = str(id(node))
        groups = []
        for group, alternatives in enumerate(_alternatives(node, root)):
            groups.append(f"{name}:{group}")
            for schemas in alternatives:
                require(groups[-1], schemas)
        implications.append((name, groups))
    return str(id(root)) in closure(implications)


def _alternatives(node: dict[str, Any], root: dict[str, Any]) -> Iterator[list[list[Any]]]:
    """Return lists of alternatives: in each all schemas of one alternative need a finite text."""
    reference = node.get("$ref")
    if isinstance(reference, str):
        yield [[target(reference, root)]]
    for key in ("anyOf", "oneOf"):
        if isinstance(schemas := node.get(key), list):
            yield [[schema] for schema in schemas]
    if isinstance(schemas := node.get("allOf"), list):
        yield [schemas]
    kind = node.get("type")
    names = [kind] if isinstance(kind, str) else kind
    kinds = set(names) if is_names(names) else {"null"}  # anything
    if "enum" in node or "const" in node or not kinds <= {"object", "array"}:
        return
    needed = {"object": _needed_in_object, "array": _needed_in_array}
    yield [needed[kind](node) for kind in kinds]


def _needed_in_object(node: dict[str, Any]) -> list[Any]:
    """Return the schemas of required properties."""
    required, properties = node.get("required"), node.get("properties")
    if not is_names(required):
        return []
    others = node.get("additionalProperties", True)
    inner = properties if isinstance(properties, dict) else {}
    return [inner.get(name, others) for name in required]


def _needed_in_array(node: dict[str, Any]) -> list[Any]:
    """Return the schemas of required items."""
    minimum, items = node.get("minItems", 0), node.get("items", True)
    first = node.get("prefixItems", items if isinstance(items, list) else [])
    others = node.get("additionalItems", True) if isinstance(items, list) else items
    if not isinstance(minimum, int) or not isinstance(first, list):
        return []
    return first[:minimum] + ([others] if minimum > len(first) else [])


def target(reference: str, root: dict[str, Any]) -> Any:
    """Return the schema that a local reference names; True for others, which llguidance judges."""
    if reference != "#" and not reference.startswith("#/"):
        return True
    target: Any = root
    for part in reference.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(target, list):
            is_index = _INDEX.fullmatch(name) is not None and int(name) < len(target)
            target = target[int(name)] if is_index else True
        else:
            target = target.get(name, True) if isinstance(target, dict) else True
    return target
