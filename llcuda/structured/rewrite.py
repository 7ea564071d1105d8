"""Writes keywords that llguidance does not know in words that it knows.

`oneOf` with disjoint branches is `anyOf`; `if` is one of two branches; `not` is the complement;
`uniqueItems` over a few values is a list of arrays. What cannot be written so is refused, with its
place in the schema. A schema may become smaller, never larger: where one branch of a `oneOf` has to
exclude another whose complement is not known, it excludes more, such as its required properties.
Such a keyword is refused with its place where nothing of the schema is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import permutations
from typing import Any, NoReturn

from llcuda.errors import ArgumentError
from llcuda.structured.negation import (
    ASSERTIONS,
    Logic,
    equal,
    is_names,
    property_schema,
    type_of,
    types_of,
    values_of,
)

MAX_ARRAYS = 2000  # that uniqueItems is written as
MAX_VALUES = 200  # of an item that may not be repeated
MAX_POSITIONS = 16  # of an item that contains asks for
MAX_REFERENCES = 20  # to one another
MAX_OVERLAPS = 8  # branches of a oneOf that are not disjoint by themselves
MAX_NODES = 10_000  # of a schema that is written anew

_COUNTS = (
    "minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties",
    "minContains", "maxContains",
)  # fmt: skip
_FORMATS = (
    "date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid",
)  # fmt: skip
# Formats that the specification does not know, and that nothing checks in a text of JSON.
_FREE_FORMATS = ("path", "binary", "password")
_OLD_DRAFT = re.compile(r"https?://json-schema\.org/draft-0[3467]/schema#?")
# What Python's re and ECMA-262 read alike, for a name of these characters.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.@-]+")
_PLAIN_PATTERN = re.compile(
    r"(?:[A-Za-z0-9_@ ^$*+?.|()\-,:]|\{[0-9,]+\}|\\[dw.$^\-/]|\[[A-Za-z0-9_.@ ^\-]+\])*"
)
_IN_MAPPINGS = ("properties", "patternProperties")
_IN_LISTS = ("anyOf", "allOf", "prefixItems", "items")
_ALONE = ("items", "additionalItems", "additionalProperties")


class KeywordError(ArgumentError):
    """The refusal of one keyword.

    Attributes:
        path: The keyword in the schema, such as "#/properties/ids/uniqueItems".
        rule: Why it cannot be honoured.
    """

    path = ""
    rule = ""


def rewrite(root: dict[str, Any], target: Callable[[str], Any]) -> ArgumentError | None:
    """Write a schema anew, in place.

    Args:
        root: A JSON schema.
        target: Returns the schema in `root` that a local reference names, True for other ones.

    Returns:
        The refusal of a keyword that made the schema smaller, for a schema of which nothing is
        left; None where each keyword is kept exactly.

    Raises:
        ArgumentError: A keyword cannot be honoured.
    """
    rewriter = _Rewriter(root, target)
    rewriter.run()
    return rewriter.narrowing


class _Rewriter:
    def __init__(self, root: dict[str, Any], target: Callable[[str], Any]) -> None:
        self._root = root
        self._target = target
        self._is_old = bool(_OLD_DRAFT.fullmatch(str(root.get("$schema"))))
        self._pointers_hold = not any(_has_base(node) for node in _values(root) if node is not root)
        self._logic = Logic(self._resolve)
        self._arrays = 0
        self.narrowing: ArgumentError | None = None

    def run(self) -> None:
        references = []
        unvisited: list[tuple[str, Any]] = [("#", self._root)]
        visited: dict[int, Any] = {}  # and keeps them, so that no id is used again
        while unvisited:
            path, node = unvisited.pop()
            if not isinstance(node, dict) or id(node) in visited:
                continue
            visited[id(node)] = node
            if len(visited) > MAX_NODES:
                raise ArgumentError(f"the JSON schema contains more than {MAX_NODES} schemas")
            reference = node.get("$ref")
            if isinstance(reference, str):
                if self._is_old:  # beside which nothing else counts
                    for key in ASSERTIONS.intersection(node) - {"$ref"}:
                        del node[key]
                inner = self._target(reference)
                references.append((node, inner))
                unvisited.append((reference, inner))
            self._rewrite(node, path)
            unvisited += _inner(node, path)
        self._mend(references)

    def _resolve(self, reference: str) -> Any:
        return self._target(reference) if self._pointers_hold else True

    def _mend(self, references: Iterable[tuple[dict[str, Any], Any]]) -> None:
        """Let references to schemas that have moved find them."""
        moved: dict[int, str] = {}
        for node, inner in references if self._pointers_hold else ():
            reference = node.get("$ref")
            if not isinstance(inner, dict) or self._target(str(reference)) is inner:
                continue
            if id(inner) not in moved:
                definitions = self._root.setdefault("$defs", {})
                if not isinstance(definitions, dict):
                    raise ArgumentError("$defs: expected an object")
                name = f"moved-{len(moved)}"
                while name in definitions:
                    name += "-"
                definitions[name] = inner
                moved[id(inner)] = f"#/$defs/{name}"
            node["$ref"] = moved[id(inner)]

    def _rewrite(self, node: dict[str, Any], path: str) -> None:
        for key in _COUNTS:
            if isinstance(count := node.get(key), float) and count.is_integer():
                node[key] = int(count)
        for key in ("$dynamicRef", "$recursiveRef"):
            if key in node:
                _refuse(f"{path}/{key}", "it cannot be honoured", "write $ref")
        if node.get("format") in _FREE_FORMATS:
            del node["format"]
        text_format = node.get("format", "date")
        if "string" in types_of(node) and text_format not in _FORMATS:
            rule = f"{text_format!r:.40} is not one of {', '.join(_FORMATS)}"
            _refuse(f"{path}/format", rule, "leave it out")
        for key, write in (
            ("dependencies", self._dependencies),
            ("dependentRequired", self._dependent_required),
            ("dependentSchemas", self._dependent_schemas),
            ("unevaluatedProperties", self._unevaluated_properties),
            ("unevaluatedItems", self._unevaluated_items),
            ("propertyNames", self._property_names),
            ("uniqueItems", self._unique_items),
            ("contains", self._contains),
            ("if", self._if),
            ("not", self._not),
            ("oneOf", self._one_of),
        ):
            if key in node:
                write(node, node.pop(key), f"{path}/{key}")
        for key in ("then", "else", "minContains", "maxContains"):
            node.pop(key, None)  # which mean nothing alone

    # --- several schemas ---

    def _one_of(self, node: dict[str, Any], branches: Any, path: str) -> None:
        if not isinstance(branches, list):
            raise ArgumentError(f"{path}: expected a list of schemas")
        overlaps = self._overlaps(branches)
        if overlaps:
            first = min(overlaps)
            refusal = _refusal(
                path,
                f"branches {first} and {min(overlaps[first])} may hold at the same time, which "
                "cannot be excluded",
                "tell them apart by a type, or by a required property with const or enum; or use "
                "anyOf",
            )
            others = {j: self._excluded(node, branches[j], refusal) for j in overlaps}
            if len(overlaps) > MAX_OVERLAPS:
                raise refusal
        options = [
            {"allOf": [branch, *(others[j] for j in overlaps[i])]} if i in overlaps else branch
            for i, branch in enumerate(branches)
        ]
        if "anyOf" in node:
            _add(node, {"anyOf": options})
        else:
            node["anyOf"] = options

    def _are_discriminated(self, branches: Sequence[Any]) -> bool:
        """Whether each schema has values of its own, or a property that has."""
        schemas = [self._followed(branch) for branch in branches]
        if not all(isinstance(schema, dict) for schema in schemas):
            return False
        if _have_different_names(schemas):
            return True
        if any(types_of(schema) != {"object"} for schema in schemas):
            return False
        required = [set(schema["required"]) if is_names(schema.get("required")) else set()
                    for schema in schemas]  # fmt: skip
        return any(
            _have_different_names([self._followed(property_schema(s, name)) for s in schemas])
            for name in set.intersection(*required)
        )

    def _followed(self, schema: Any) -> Any:
        """Return the schema that references lead to, as far as nothing stands beside them."""
        for _ in range(MAX_REFERENCES):
            if not isinstance(schema, dict) or ASSERTIONS.intersection(schema) != {"$ref"}:
                break
            schema = self._resolve(str(schema["$ref"]))
        return schema

    def _excluded(
        self, node: dict[str, Any], schema: Any, refusal: ArgumentError, partial: bool = True
    ) -> Any:
        """Return a schema, for `node`, of values that do not satisfy another.

        Raises:
            ArgumentError: `refusal`: none are known, or not all where `partial` is False.
        """
        inverse = self._logic.complement(schema)
        if inverse is not None:
            return inverse
        inverse = self._logic.complement(schema, fractions=False)
        if inverse is None and partial:
            inverse = self._logic.complement(schema, fractions=False, partial=True)
        if inverse is None:
            raise refusal
        self._logic.narrowed.add(id(node))
        self.narrowing = self.narrowing or refusal
        return inverse

    def _overlaps(self, branches: Sequence[Any]) -> dict[int, list[int]]:
        """Return the branches that are not disjoint, each with those that it may overlap."""
        overlaps: dict[int, list[int]] = {}
        if self._are_discriminated(branches):
            return overlaps
        for i, branch in enumerate(branches):
            for j in range(i):
                if not self._logic.disjoint(branch, branches[j]):
                    overlaps.setdefault(i, []).append(j)
                    overlaps.setdefault(j, []).append(i)
            if len(overlaps) > MAX_OVERLAPS:
                break
        return overlaps

    def _not(self, node: dict[str, Any], schema: Any, path: str) -> None:
        inverse = self._excluded(node, schema, _without_complement(path), partial=False)
        if inverse is not True:
            _add(node, inverse)

    def _if(self, node: dict[str, Any], condition: Any, path: str) -> None:
        then, otherwise = node.pop("then", True), node.pop("else", True)
        if then is True and otherwise is True:
            return
        inverse = self._excluded(node, condition, _without_complement(path))
        _add(node, {"anyOf": [{"allOf": [condition, then]}, {"allOf": [inverse, otherwise]}]})

    # --- objects ---

    def _dependencies(self, node: dict[str, Any], dependencies: Any, path: str) -> None:
        if not isinstance(dependencies, dict):
            _refuse(path, "expected an object")
        for name, needed in dependencies.items():
            if isinstance(needed, list):
                self._dependent_required(node, {name: needed}, path)
            else:
                self._dependent_schemas(node, {name: needed}, path)

    def _dependent_required(self, node: dict[str, Any], dependent: Any, path: str) -> None:
        if not isinstance(dependent, dict) or not all(map(is_names, dependent.values())):
            _refuse(path, "expected lists of names")
        for name, names in dependent.items():
            if names:
                self._depend(node, name, {"required": [name, *names]})

    def _dependent_schemas(self, node: dict[str, Any], dependent: Any, path: str) -> None:
        if not isinstance(dependent, dict):
            _refuse(path, "expected an object")
        for name, schema in dependent.items():
            if schema is not True:
                self._depend(node, name, {"allOf": [{"required": [name]}, schema]})

    def _depend(self, node: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
        """Add a schema of objects that have a property."""
        required = node.get("required")
        if is_names(required) and name in required:
            _add(node, _for_type("object", [schema], node))
        else:
            _add(node, _for_type("object", [{"properties": {name: False}}, schema], node))

    def _unevaluated_properties(self, node: dict[str, Any], schema: Any, path: str) -> None:
        if schema is True or schema == {} or "additionalProperties" in node:
            return
        if _has_others_in_place(node):
            remedy = "write additionalProperties"
            _refuse(path, "it cannot be honoured beside other schemas", remedy)
        node["additionalProperties"] = schema

    def _property_names(self, node: dict[str, Any], names: Any, path: str) -> None:
        names = self._followed(names)
        if isinstance(names, dict) and "string" not in types_of(names):
            names = False
        if not isinstance(names, dict | bool):
            _refuse(path, "expected a schema")
        keywords = ASSERTIONS.intersection(names) - {"type"} if isinstance(names, dict) else set()
        if names is True or (isinstance(names, dict) and not keywords):
            return
        if names is False:
            self._only_names(node, [])
        elif keywords in ({"enum"}, {"const"}):
            self._only_names(node, [n for n in values_of(names) or () if isinstance(n, str)])
        elif (
            keywords == {"not"}
            and isinstance(names["not"], dict)
            and (ASSERTIONS.intersection(names["not"]) in ({"enum"}, {"const"}))
        ):
            for name in values_of(names["not"]) or ():
                if isinstance(name, str):
                    node.setdefault("properties", {})[name] = False
        else:
            self._names_of_pattern(node, names, set(keywords), path)

    def _only_names(self, node: dict[str, Any], names: Sequence[str]) -> None:
        """Allow the properties of an object these names only."""
        if node.get("patternProperties"):
            _add(node, _for_type("object", [_closed(dict.fromkeys(names, True))], node))
            return
        declared = node.get("properties")
        declared = declared if isinstance(declared, dict) else {}
        properties = {name: inner if name in names else False for name, inner in declared.items()}
        others = {name: property_schema(node, name) for name in names if name not in declared}
        node["properties"] = {**properties, **others}
        node["additionalProperties"] = False

    def _names_of_pattern(
        self, node: dict[str, Any], names: dict[str, Any], keywords: set[str], path: str
    ) -> None:
        if keywords == {"pattern"} and isinstance(names["pattern"], str):
            pattern = names["pattern"]
        elif keywords <= {"minLength", "maxLength"} and all(
            isinstance(names[key], int) for key in keywords
        ):
            pattern = f"^(?s:.{{{names.get('minLength', 0)},{names.get('maxLength', '')}}})$"
        else:
            _refuse(path, f"{', '.join(sorted(keywords))} cannot be honoured", "give one pattern")
        if node.get("patternProperties"):
            _refuse(path, "it cannot be honoured beside patternProperties")
        declared = node.get("properties")
        for name in declared if isinstance(declared, dict) else ():
            fits = _matches(names, name)
            if fits is None:
                _refuse(path, f"whether it allows the property {name!r} is not certain")
            if not fits:
                node["properties"][name] = False
        others = node.get("additionalProperties", True)
        if declared and others not in (True, {}, False):
            _refuse(path, "it cannot be honoured beside properties and additionalProperties")
        if others is not False:
            node["patternProperties"] = {pattern: others}
            node["additionalProperties"] = False

    # --- arrays ---

    def _unevaluated_items(self, node: dict[str, Any], schema: Any, path: str) -> None:
        is_list = isinstance(node.get("items"), list)
        key = "additionalItems" if is_list else "items"
        if schema is True or schema == {} or key in node:
            return
        if _has_others_in_place(node) or "contains" in node:
            _refuse(path, "it cannot be honoured beside other schemas", "write items")
        node[key] = schema

    def _unique_items(self, node: dict[str, Any], unique: Any, path: str) -> None:
        most = node.get("maxItems")
        if unique is not True or most in (0, 1) or "array" not in types_of(node):
            return
        arrays = self._arrays_without_repetition(node)
        if arrays is None:
            _refuse(
                path,
                "it can be honoured for items that are an enum of few values, or maxItems 1",
                "give the items an enum, or leave uniqueItems out and check the answer",
            )
        self._arrays += len(arrays)
        if self._arrays > MAX_ARRAYS:
            _refuse(path, f"more than {MAX_ARRAYS} arrays satisfy it", "give a smaller maxItems")
        for key in ("items", "minItems", "maxItems"):
            node.pop(key, None)
        _add(node, _for_type("array", [{"enum": arrays}], node))

    def _arrays_without_repetition(self, node: dict[str, Any]) -> list[list[Any]] | None:
        """Return every array that satisfies `node` and repeats nothing; None if that is unknown."""
        items = self._followed(node.get("items", True))
        if not isinstance(items, dict) or {"prefixItems", "contains"} & node.keys():
            return None
        keywords = ASSERTIONS.intersection(items)
        values = values_of(items)
        if values is not None and keywords in ({"enum"}, {"const"}):
            pass
        elif values is not None and keywords - {"type"} in ({"enum"}, {"const"}):
            if "integer" in str(items["type"]):
                values = [v for v in values if not isinstance(v, float) or v.is_integer()]
            values = [value for value in values if type_of(value) in types_of(items)]
        elif keywords == {"type"} and types_of(items) <= {"boolean", "null"}:
            values = [False, True] if "boolean" in types_of(items) else []
            values += [None] if "null" in types_of(items) else []
        else:
            return None
        if len(values) > MAX_VALUES:
            return None
        different: list[Any] = []
        for value in values:
            if not any(equal(value, other) for other in different):
                different.append(value)
        least, most = node.get("minItems", 0), node.get("maxItems", len(different))
        if not isinstance(least, int) or not isinstance(most, int):
            return None
        arrays: list[list[Any]] = []
        for count in range(least, min(most, len(different)) + 1):
            for array in permutations(different, count):
                arrays.append(list(array))
                if len(arrays) > MAX_ARRAYS:
                    return arrays
        return arrays

    def _contains(self, node: dict[str, Any], schema: Any, path: str) -> None:
        least, most = node.pop("minContains", 1), node.pop("maxContains", None)
        if most is None and (least == 0 or "array" not in types_of(node)):
            return
        length = node.get("maxItems")
        if least != 1 or most is not None:
            _refuse(path, "minContains and maxContains cannot be honoured")
        if not isinstance(length, int) or length > MAX_POSITIONS:
            _refuse(path, f"it can be honoured with maxItems up to {MAX_POSITIONS}")
        options = [{"items": [*[True] * i, schema], "minItems": i + 1} for i in range(length)]
        _add(node, _for_type("array", options, node))


def _refuse(path: str, rule: str, remedy: str | None = None) -> NoReturn:
    raise _refusal(path, rule, remedy)


def _refusal(path: str, rule: str, remedy: str | None = None) -> KeywordError:
    place, _, keyword = path.rpartition("/")
    error = KeywordError(f"{keyword} at {place[:200]}: {rule}", remedy=remedy)
    error.path, error.rule = path, rule
    return error


def _without_complement(path: str) -> ArgumentError:
    return _refusal(
        path,
        "the complement of this schema cannot be written",
        "write it with types other than integer, enum, const, bounds, lengths, required and "
        "properties",
    )


def _have_different_names(schemas: Sequence[Any]) -> bool:
    """Whether each schema is a list of texts or whole numbers, none of which is in two of them."""
    names: list[Any] = []
    for schema in schemas:
        values = values_of(schema) if isinstance(schema, dict) else None
        if values is None or not all(type(value) in (str, int) for value in values):
            return False
        names += set(values)
    return len(names) == len(set(names))


def _add(node: dict[str, Any], schema: Any) -> None:
    """Let a node satisfy a further schema."""
    others = node.get("allOf", [])
    node["allOf"] = [*others, schema] if isinstance(others, list) else others


def _for_type(kind: str, options: list[Any], node: dict[str, Any]) -> Any:
    """Return a schema of values that satisfy an option, or are of another type."""
    own = [{"type": kind, **option} for option in options]
    others = sorted(types_of(node) - {kind})
    if not others:
        return own[0] if len(own) == 1 else {"anyOf": own}
    return {"anyOf": [{"type": others}, *own]}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"properties": properties, "additionalProperties": False}


def _has_others_in_place(node: dict[str, Any]) -> bool:
    """Whether other schemas describe the same value, besides the node's own keywords."""
    others = (
        "$ref $dynamicRef $recursiveRef allOf anyOf oneOf not if then else dependentSchemas "
        "dependencies"
    )
    return not node.keys().isdisjoint(others.split())


def _matches(names: dict[str, Any], name: str) -> bool | None:
    """Whether a name satisfies a pattern or lengths; None where readers may differ."""
    if "pattern" not in names:
        return bool(names.get("minLength", 0) <= len(name) <= names.get("maxLength", len(name)))
    pattern = names["pattern"]
    if not _PLAIN_NAME.fullmatch(name) or not _PLAIN_PATTERN.fullmatch(pattern):
        return None
    if re.search(r"\(\?(?!:)", pattern):
        return None
    try:
        return re.search(pattern, name, re.ASCII) is not None
    except re.error:
        return None


def _inner(node: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key in _IN_MAPPINGS:
        if isinstance(inner := node.get(key), dict):
            yield from ((f"{path}/{key}/{name}", schema) for name, schema in inner.items())
    for key in _IN_LISTS:
        if isinstance(inner := node.get(key), list):
            yield from ((f"{path}/{key}/{i}", schema) for i, schema in enumerate(inner))
    for key in _ALONE:
        yield f"{path}/{key}", node.get(key)


def _values(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return every object in a JSON document."""
    unvisited: list[Any] = [root]
    while unvisited:
        value = unvisited.pop()
        if isinstance(value, dict):
            yield value
            unvisited += value.values()
        elif isinstance(value, list):
            unvisited += value


def _has_base(node: dict[str, Any]) -> bool:
    """Whether an object may be a schema in which references mean others."""
    keys = ("$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor")
    return any(isinstance(node.get(key), str | bool) for key in keys)
