"""Structured output: what comes satisfies what was asked; what cannot be honoured is refused."""

from __future__ import annotations

import gc
import json
import re
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from llcuda import Engine, Model, Sampler, structured
from llcuda.errors import ArgumentError, GrammarError, SamplingError
from llcuda.structured import compiler
from tests.conftest import VENDOR_MODELS
from tests.support.guides import fits
from tests.support.schemas import damaged_schema, random_schema
from tests.support.waiting import PATIENCE

GRAMMARS = sorted((VENDOR_MODELS.parent / "grammars").glob("*.gbnf"))
FREE: dict[str, Any] = {"temperature": 1, "top_k": 0, "top_p": 1}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo", gpu_layers=0) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    with Engine(model, n_parallel=8, ctx_size=1024, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module", params=[False, True], ids=["copied logits", "device logits"])
def either_engine(model: Model, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Yield an engine of each way in which masks meet logits."""
    with Engine(model, n_parallel=8, ctx_size=1024, threads=1, device_logits=request.param) as it:
        yield it


def run_schemas(model: Model, seeds: range) -> None:
    """Complete a text for each schema; those that end must be valid, and most must end."""
    ended = 0
    with Engine(model, n_parallel=8, ctx_size=1024, threads=1) as engine:
        requests = []
        for seed in seeds:
            schema = random_schema(seed)
            jsonschema.Draft202012Validator.check_schema(schema)
            grammar = structured.compile(model, schema=schema, compact=seed % 3 == 0)
            asked = {"response_format": grammar, "max_tokens": 600, "seed": seed, **FREE}
            requests.append((schema, engine.submit("Once", **asked)))
        for schema, request in requests:
            done = request.result()
            if done.finish_reason == "length":
                continue
            assert done.finish_reason == "stop"
            ended += 1
            formats = jsonschema.Draft202012Validator.FORMAT_CHECKER
            validator = jsonschema.Draft202012Validator(schema, format_checker=formats)
            validator.validate(json.loads(done.text))
    assert ended >= 0.8 * len(seeds)


def test_random_schemas_are_satisfied(model: Model) -> None:
    """At temperature 1, by a model that knows nothing of JSON."""
    run_schemas(model, range(20))


@pytest.mark.slow
def test_many_random_schemas_are_satisfied(model: Model) -> None:
    """The same with 500."""
    run_schemas(model, range(40, 540))


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "born": {"type": "string", "format": "date"},
        "friends": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
    },
    "required": ["name", "born"],
    "additionalProperties": False,
}
FORMATS: list[tuple[dict[str, Any], str]] = [
    ({"type": "regex", "regex": "^[0-9]{3}/(a|b){1,9}\\$$"}, r"[0-9]{3}/(a|b){1,9}\$"),
    ({"type": "regex", "regex": "é{2}\n[^a]"}, r"é{2}\n[^a]"),
    (
        {"type": "choice", "choices": ["yes", "yes!", 'a "b"\n', "日本 🦊"]},
        r'yes!?|a "b"\n|日本 🦊',
    ),
    ({"type": "lark", "grammar": 'start: "<" /[a-z]{3}/ (">" | "/>")'}, r"<[a-z]{3}/?>"),
    ({"type": "gbnf", "grammar": 'root ::= "(" x ")"\nx ::= [^()\\n]{1,4}'}, r"\([^()\n]{1,4}\)"),
    ({"type": "gbnf", "grammar": r'root ::= [a\-z]{1,9} "."'}, r"[az-]{1,9}\."),
]


@pytest.mark.parametrize(("response_format", "pattern"), FORMATS, ids=lambda value: str(value)[:30])
def test_a_text_is_what_its_format_says(
    either_engine: Engine, response_format: Any, pattern: str
) -> None:
    """From the first character to the last, and it ends by itself."""
    for seed in range(4):
        done = either_engine.submit(
            "Once", response_format=response_format, max_tokens=300, seed=seed, **FREE
        )
        assert re.fullmatch(pattern, done.result(PATIENCE).text)
        assert done.result().finish_reason == "stop"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("json", 'give {"type": "json_object"}'),
        ("[0-9]+", 'given as {"type": "regex", "regex": "..."}'),
        (["yes", "no"], 'given as {"type": "choice", "choices": ["...", "..."]}'),
        ({"type": "object", "properties": {}}, '{"type": "json_schema", "json_schema": {"sch'),
        ({"properties": {}}, '{"type": "json_schema", "json_schema": {"schema": ...}}'),
    ],
)
def test_forms_of_other_libraries(model: Model, given: Any, says: str) -> None:
    """The error has the value to write."""
    with pytest.raises(ArgumentError, match=re.escape(says)):
        structured.compile(model, given)


def test_the_schema_of_a_json_object(engine: Engine) -> None:
    """llama-cpp-python's form, and that of older clients, is the schema itself."""
    fields = {"type": "object", "properties": {"a": {"const": 5}}, "required": ["a"]}
    fields["additionalProperties"] = False
    done = engine.submit(
        "Once", response_format={"type": "json_object", "schema": fields}, max_tokens=100, seed=1
    )
    assert json.loads(done.result(PATIENCE).text) == {"a": 5}
    wrong = {"type": "object", "properties": {"a": {"type": "thing"}}}
    with pytest.raises(ArgumentError, match="properties"):
        engine.submit("Once", response_format={"type": "json_object", "schema": wrong})


def test_json_objects_without_a_schema(engine: Engine) -> None:
    """{"type": "json_object"}; and {"type": "text"} restricts nothing."""
    response_format = {"type": "json_object"}
    done = engine.submit(
        "Once", response_format=response_format, max_tokens=500, temperature=0.5, seed=1
    )
    assert done.result(PATIENCE).text.startswith("{")
    if done.result().finish_reason == "stop":
        assert isinstance(json.loads(done.result().text), dict)
    plain = engine.submit("Once", max_tokens=5, temperature=0).result(PATIENCE)
    text = engine.submit("Once", max_tokens=5, temperature=0, response_format={"type": "text"})
    assert plain.text == text.result(PATIENCE).text


def test_what_else_a_request_asks_for_holds(either_engine: Engine, model: Model) -> None:
    """max_tokens gives a beginning; stops, log-probabilities, several texts, a stream."""
    grammar = structured.compile(model, schema=PERSON, compact=True)
    whole = either_engine.submit("Once", response_format=grammar, max_tokens=300, seed=3).result(
        PATIENCE
    )
    assert whole.finish_reason == "stop"
    for limit in (1, 2, 3, 7, len(whole.tokens) - 1):
        cut = either_engine.submit(
            "Once", response_format=grammar, max_tokens=limit, seed=3
        ).result(PATIENCE)
        assert (cut.finish_reason, len(cut.tokens)) == ("length", limit)
        assert cut.text.startswith('{"name":"'[: len(cut.text)])
    assert either_engine.submit(
        "Once", response_format=grammar, max_tokens=len(whole.tokens), seed=3
    ).result(PATIENCE).text == whole.text  # fmt: skip
    stopped = either_engine.submit(
        "Once", response_format=grammar, max_tokens=99, stop=['ame":']
    ).result(PATIENCE)
    assert (stopped.text, stopped.finish_reason) == ('{"n', "stop")
    scored = either_engine.submit(
        "Once", response_format=grammar, max_tokens=99, logprobs=1
    ).result(PATIENCE)
    assert [item.token for item in scored.logprobs or ()] == scored.tokens
    texts = either_engine.submit_n(
        "Once", 3, response_format=grammar, max_tokens=300, seed=1, **FREE
    )
    assert all(json.loads(text.result(PATIENCE).text)["born"] for text in texts)
    assert len({text.result().text for text in texts}) > 1
    streamed = "".join(
        either_engine.submit("Once", response_format=grammar, max_tokens=300, seed=3)
    )
    assert streamed == whole.text
    with pytest.raises(ArgumentError, match="not both"):
        either_engine.submit("Once", response_format=grammar, guide=grammar.guide())


def schema(**fields: Any) -> dict[str, Any]:
    """Return OpenAI's response_format of a JSON schema."""
    return {"type": "json_schema", "json_schema": {"schema": fields}}


def lark(grammar: str) -> dict[str, Any]:
    """A grammar."""
    return {"type": "lark", "grammar": grammar}


SELF = {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}
REFUSED: list[Any] = [
    5, "json", [], {}, {"type": "xml"}, {"type": ["json_object"]}, {"type": "json_schema"},
    {"type": "json_object", "schema": 5}, {"type": "json_schema", "json_schema": {"name": "a"}},
    {"type": "json_object", "strict": True},
    {"type": "json_schema", "json_schema": {"schema": {}, "lenient": True}},
    {"type": "json_schema", "json_schema": {"schema": "object"}},
    {"type": "regex", "regex": "("}, {"type": "regex", "regex": ""}, {"type": "regex", "regex": 5},
    {"type": "regex", "regex": "(?=a)b"}, {"type": "regex", "regex": "\ud800"},
    {"type": "regex", "regex": "[^\\s\\S]"}, {"type": "regex", "regex": "a*" * 200_000},
    {"type": "choice", "choices": []}, {"type": "choice", "choices": "ab"},
    {"type": "choice", "choices": [""]}, {"type": "choice", "choices": [1]},
    {"type": "choice", "choices": [f"w{i}" for i in range(200_000)]},
    lark(""), lark("begin: \"a\""), lark("start: b"), lark('start: ""'), lark('start: "a" start'),
    lark("start: start"), lark("start: " + "(" * 10_000 + '"a"' + ")" * 10_000),
    lark("start: %json " + "[" * 10_000), lark("start: /[^\\s\\S]/"),
    {"type": "gbnf", "grammar": "start: \"a\""}, {"type": "gbnf", "grammar": 'root ::= "a" root'},
    schema(type="thing"), schema(type=5), schema(minimum="a"), schema(properties=5),
    schema(type="string", format="phone"), schema(type="string", pattern="(?=a)b"),
    schema(type="string", pattern="("), schema(type="array", uniqueItems=True),
    schema(type="array", contains={}), schema(**{"not": {}}),
    schema(type="object", minProperties=2),
    schema(**{"$ref": "#/$defs/none"}), schema(**{"$ref": "https://example.org/schema"}),
    schema(**{"$dynamicRef": "#x"}), schema(oneOf=[{"type": "integer"}, {"type": "number"}]),
    schema(type="integer", minimum=5, maximum=4), schema(enum=[]), schema(anyOf=[]),
    schema(type="integer", multipleOf=7, minimum=1, maximum=6),
    schema(allOf=[{"enum": [1]}, {"enum": [2]}]),
    schema(type="string", minLength=5, maxLength=4), schema(type="array", minItems=2, maxItems=1),
    schema(**{"$ref": "#"}), schema(**SELF), schema(type="array", items={"$ref": "#"}, minItems=1),
    schema(**{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#"}}}),
    schema(**{"x-guidance": {"lenient": True}}), schema(multipleOf=1_000_003),
    schema(enum=[float("nan")]), schema(const={1, 2}), schema(enum=["x" * 300_000]),
    schema(anyOf=[{"const": i} for i in range(20_000)]),
    schema(**{"$ref": "#/prefixItems/²", "prefixItems": [{"type": "integer"}]}),
    schema(prefixItems=[{"$ref": "#/prefixItems/²"}]),
    schema(prefixItems=[{"$ref": "#/prefixItems/9"}]),
    schema(**{"$ref": "#/prefixItems/" + "9" * 5000, "prefixItems": [{}]}),
    schema(format="date", pattern="x", allOf=5), schema(format="date", pattern="x", allOf=None),
    schema(format="date", pattern="x", allOf={"a": 1}), schema(minimum=10**400, maximum=2.5),
    schema(type="integer", minimum=10**400), schema(multipleOf=10**400),
    schema(type="integer", maximum=-(2**63)), schema(type="integer", const=-1e308),
    schema(const=2**53 + 1), schema(enum=[{"id": [12345678901234567890]}]),
]  # fmt: skip


@pytest.mark.parametrize("response_format", REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_honoured_is_refused(model: Model, response_format: Any) -> None:
    """Before anything is computed, in one error that shows no state of the parser."""
    with pytest.raises(ArgumentError) as caught:
        structured.compile(model, response_format)
    assert len(str(caught.value)) < 2000
    assert "<state>" not in str(caught.value)


@pytest.mark.parametrize("inner", [{"a": False}, {"a": {"$ref": "#"}}], ids=["false", "itself"])
def test_why_nothing_satisfies_it(model: Model, inner: dict[str, Any]) -> None:
    """A property that nothing satisfies and one without an end, each in words that hold."""
    with pytest.raises(ArgumentError, match="false, or itself"):
        structured.compile(model, schema(type="object", properties=inner, required=["a"]))


def run_damaged_schemas(model: Model, seeds: range) -> None:
    """Compile each; what comes is a grammar, or our error."""
    for seed in seeds:
        try:
            structured.compile(model, schema=damaged_schema(seed))
        except ArgumentError as error:
            assert error.parameter == "response_format"


def test_damaged_schemas(model: Model) -> None:
    """A value of any kind in any place."""
    run_damaged_schemas(model, range(500))


@pytest.mark.slow
def test_many_damaged_schemas(model: Model) -> None:
    """The same with 20,000."""
    run_damaged_schemas(model, range(500, 20_500))


def test_a_refused_format_harms_nothing(engine: Engine) -> None:
    """The request is not there, and the next one is."""
    for wrong in (schema(type="thing"), {"type": "json_schema"}):
        with pytest.raises(ArgumentError):
            engine.submit("Once", response_format=wrong)
    assert engine.submit("Once", max_tokens=3).result(PATIENCE).tokens


def nested(depth: int) -> dict[str, Any]:
    """Arrays in arrays."""
    inner: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        inner = {"type": "array", "items": inner}
    return inner


def chain(length: int) -> dict[str, Any]:
    """Definitions that lead one to the next."""
    definitions: dict[str, Any] = {
        f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"type": "null"}]} for i in range(length)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{length}": {"type": "integer"}}}


def chain_of_references(length: int, reverse: bool) -> dict[str, Any]:
    """Definitions that are references to the next, or to the one before."""
    names = [f"a{i}" for i in range(length + 1)]
    definitions: dict[str, Any] = {names[-1]: {"type": "integer"}}
    for name, following in zip(names[-2::-1], names[:0:-1], strict=True):
        definitions[name] = {"$ref": f"#/$defs/{following}"}
    if reverse:
        definitions = dict(reversed(definitions.items()))
    return {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a0"}], "$defs": definitions}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 500, 3000])
def test_chains_of_references_are_followed(model: Model, length: int, reverse: bool) -> None:
    """However long they are, and in any order; one that ends in itself has no text."""
    keywords = chain_of_references(length, reverse)
    required = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a0"}}, "required": ["x"]}
    grammar = structured.compile(model, schema={**keywords, **required, "anyOf": [{}]})
    assert fits(model, grammar, '{"x": 12}')
    assert not fits(model, grammar, '{"x": "a"}')
    keywords["$defs"][f"a{length}"] = {"$ref": "#/$defs/a0"}
    with pytest.raises(ArgumentError, match="false, or itself"):
        structured.compile(model, schema={**keywords, **required})


@pytest.mark.parametrize("depth", [124, 250, 700, 900, 5000])
def test_schemas_that_are_nested_too_deeply(model: Model, depth: int) -> None:
    """The limit is that of llguidance's parser; the one before it compiles."""
    assert structured.compile(model, schema={**nested(123), "title": "x"})
    with pytest.raises(ArgumentError, match=r"nested too deeply; at most 124 levels .* to \$defs"):
        structured.compile(model, schema=nested(depth))


HOSTILE: dict[str, Any] = {
    "nested": schema(**nested(60)),
    "nested too deep": schema(**nested(400)),
    "nested beyond Python": schema(**nested(5000)),
    "a chain of references": schema(**chain(3000)),
    "a chain too long": schema(**chain(6000)),
    "a chain of rules": lark(
        "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(15_000)) + '\nr15000: "a"'
    ),
    "an exponential automaton": {"type": "regex", "regex": "(.*a.{20}b.*){20}"},
    "ambiguity": lark('start: a*\na: "x"? | a a | "y"*'),
    "intersections": schema(
        allOf=[
            {"anyOf": [{"type": "object", "required": [f"a{i}{j}"]} for j in range(4)]}
            for i in range(8)
        ]
    ),
    "a long text": schema(type="string", minLength=10**6),
    "many properties": schema(type="object", required=[f"k{i}" for i in range(5000)]),
    "remainders": schema(type="integer", multipleOf=99_991),
    "itself in an array": schema(type="array", items={"$ref": "#"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_formats_end_nothing(engine: Engine, name: str) -> None:
    """They are refused, or followed for a while; the process lives on."""
    try:
        request = engine.submit("Once", response_format=HOSTILE[name], max_tokens=20, **FREE)
    except ArgumentError:
        return
    try:
        assert request.result(PATIENCE).finish_reason in ("stop", "length")
    except SamplingError as error:
        assert "guide" in str(error)
    assert engine.submit("Once", max_tokens=2).result(PATIENCE).tokens


@pytest.mark.parametrize(
    ("keywords", "yes", "no"),
    [
        ({"type": "string", "format": "date"}, ["2024-02-29", "2000-02-29", "0001-01-31"],
         ["2023-02-29", "1900-02-29", "2023-04-31", "0000-01-01"]),
        ({"type": "string", "format": "date-time"}, ["2024-02-29T23:59:59Z"],
         ["2023-02-29T10:00:00Z"]),
        ({"type": "string", "format": "date", "pattern": "^2"}, ["2024-02-29"], ["1999-01-01"]),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": False}, [[None]], [[1]]),
        ({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
         [{"a": 1}], [{}, {"a": "b"}]),
        ({"type": "number", "exclusiveMinimum": 2, "maximum": 2.5}, [2.25, 2.5], [2, 2.75]),
        ({"type": "number", "exclusiveMinimum": -3.5, "exclusiveMaximum": -3.0}, [-3.1], [-3]),
        ({"allOf": [{"exclusiveMaximum": 0}, {"minimum": -0.5}], "type": "number"}, [-0.25], [0]),
        ({"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 4}, [3], [2, 4]),
        ({"type": "number", "exclusiveMinimum": 0}, [1e-3, 1, 7.5], [0, -1]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, [0, 10**17, -(10**17)],
         [2**63, -(2**63) - 1, 10**20]),
        ({"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 7},
         [2**53 + 2, 2**53 + 4, 2**53 + 6], [2**53, 2**53 + 8]),
        ({"type": "integer", "exclusiveMaximum": -(2**53) - 1}, [-(2**53) - 4], [-(2**53) - 1]),
        ({"type": "number", "maximum": 1e300}, [2.5, -7], ["a"]),
        ({"$ref": "#/components/x", "components": {"x": {"type": "integer"}}}, [1], ["a"]),
    ],
)  # fmt: skip
def test_what_schemas_mean(model: Model, keywords: Any, yes: list[Any], no: list[Any]) -> None:
    """Where llguidance alone would be mistaken, or refuse."""
    grammar = structured.compile(model, schema=keywords, compact=True)

    def compact_json(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    assert [value for value in yes if not fits(model, grammar, compact_json(value))] == []
    assert [value for value in no if fits(model, grammar, compact_json(value))] == []


INTEGER: dict[str, Any] = {"type": "integer"}
OPEN: dict[str, Any] = {"properties": {"a": INTEGER}}
TEXT: dict[str, Any] = {"type": "string"}
PATTERNED: dict[str, Any] = {"properties": {"a": INTEGER}, "patternProperties": {"^p": INTEGER}}


@pytest.mark.parametrize(
    ("keywords", "yes", "no"),
    [
        (OPEN, [r'{"a":1,"b\"\\":"x"}', r'{"a":1,"b":"\u0061"}', '{"é":[]}', '{"":{"a":"x"}}'],
         [r'{"a":1,"\u0061":"x"}', r'{"\u0061":"x"}', '{"a":"x"}', '{"a":1,"a":2}']),
        ({**OPEN, "additionalProperties": True, "required": ["c"]}, ['{"a":1,"c":"x"}'],
         ['{"a":1}', r'{"a":1,"c":2,"\u0061":"x"}']),
        ({**OPEN, "additionalProperties": TEXT}, ['{"a":1,"b":"x"}', r'{"a":1,"b\n":"\n"}'],
         [r'{"a":1,"\u0061":"x"}', '{"b":1}']),
        (PATTERNED, ['{"a":1,"p":1,"q":"x"}'], [r'{"a":1,"\u0070":"x"}', r'{"\u0061":"x"}']),
        ({"properties": {"\n\x01": INTEGER}}, [r'{"\n\u0001":1}', '{"b":[]}'],
         [r'{"\n\u0001":"x"}', r'{"\u000a\u0001":"x"}', '{"\\u000A\\u0001":"x"}']),
        ({"allOf": [OPEN, {"properties": {"b": TEXT}, "required": ["b", "c"]}]},
         ['{"a":1,"b":"x","c":1}'], ['{"a":1,"b":1,"c":1}', r'{"b":"x","c":1,"\u0061":"x"}']),
        ({"properties": {"a": INTEGER, "next": {"$ref": "#"}}}, ['{"next":{"next":{"b":1}}}'],
         [r'{"next":{"\u0061":"x"}}']),
        ({"$ref": "#/shared/x", "shared": {"x": OPEN}}, ['{"a":1,"b":2}'], [r'{"\u0061":"x"}']),
        ({"additionalProperties": INTEGER}, [r'{"\u0061":1}'], [r'{"\u0061":"x"}']),
    ],
)  # fmt: skip
def test_escaped_names_are_names(
    model: Model, keywords: Any, yes: list[str], no: list[str]
) -> None:
    """As RFC 8259 compares them: a declared name that is escaped has its schema, too."""
    grammar = structured.compile(model, schema={"type": "object", **keywords}, compact=True)
    for text in (*yes, *no):
        parsed = json.loads(text)
        assert jsonschema.Draft202012Validator(keywords).is_valid(parsed) == (text in yes) or (
            text == '{"a":1,"a":2}'  # twice, which Python's parser forgets
        )
    assert [text for text in yes if not fits(model, grammar, text)] == []
    assert [text for text in no if fits(model, grammar, text)] == []


@pytest.mark.parametrize(
    ("keywords", "yes", "no"),
    [
        ({}, [r'"\u00e9\u0041\u0001\ud83e\uDD8A\n"'],
         [r'"\ud83e"', r'"\udd8a\ud83e"', r'"\u00g0"']),
        ({"maxLength": 2}, [r'"\u00e9\ud83e\udd8a"'], [r'"\u00e9\ud83e\udd8ax"']),
        ({"const": "a\n\x01\x7f"}, [r'"a\n\u0001\u007f"'], ['"a"']),
        ({"pattern": "^[^x]*$"}, [r'"é\n\"\\"'], [r'"\u0001"', r'"\u00e9"', '"x"']),
        ({"anyOf": [{"pattern": "^x$"}, {"maxLength": 3}]}, [r'"é\n"'], [r'"\u00e9"']),
        ({"pattern": "^x", "enum": ["x\n"]}, [r'"x\n"'], ['"x"']),
        ({"format": "date"}, ['"2024-02-29"'], [r'"2024-02-2\u0039"']),
    ],
)  # fmt: skip
def test_unicode_escapes(model: Model, keywords: Any, yes: list[str], no: list[str]) -> None:
    r"""All of them, or none: a \u that begins can end as the model means it."""
    grammar = structured.compile(model, schema={"type": "string", **keywords}, compact=True)
    assert [text for text in yes if not fits(model, grammar, text)] == []
    assert [text for text in no if fits(model, grammar, text)] == []


@pytest.mark.parametrize("value", ["\x01", {"a": ["\x7f"]}, {"\x1f": 1}])
def test_control_characters_beside_patterns(model: Model, value: Any) -> None:
    """Only an escape could spell them, which such a schema does not allow."""
    for values in ({"const": value}, {"enum": ["x", value]}):
        with pytest.raises(ArgumentError, match="control character"):
            structured.compile(model, schema=schema_of(values))
        assert structured.compile(model, schema=values)


def schema_of(inner: Any) -> dict[str, Any]:
    """Return a schema with a pattern beside another schema."""
    return {"type": "array", "prefixItems": [{"type": "string", "pattern": "^x"}, inner]}


def test_whitespace(model: Model) -> None:
    """As people and models write JSON, but not without end; none at all when compact."""
    keywords = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
                "additionalProperties": False}  # fmt: skip
    loose, compact = (structured.compile(model, schema=keywords, compact=c) for c in (False, True))
    for text in ('{"a": 1}', '{\n  "a": 1\n}', '{\n\n\t"a": 1}'):
        assert fits(model, loose, text), text
        assert not fits(model, compact, text), text
    assert fits(model, compact, '{"a":1}')
    assert not fits(model, loose, '{  "a": 1}')
    assert not fits(model, loose, '{\n\n\n"a": 1}')


@pytest.mark.parametrize("path", GRAMMARS, ids=lambda path: path.stem)
def test_llama_cpp_takes_what_its_grammars_give(engine: Engine, model: Model, path: Any) -> None:
    """A text by our masks is one that llama.cpp's own grammar accepts."""
    grammar = path.read_text()
    response_format = {"type": "gbnf", "grammar": grammar}
    for seed in range(3):
        done = engine.submit(
            "Once", response_format=response_format, max_tokens=60, seed=seed, **FREE
        )
        judge = Sampler(temperature=0, grammar=grammar, model=model)
        for token in done.result(PATIENCE).tokens:
            judge.accept(token, model)


class TestTools:
    """Calls of tools among other text, or alone."""

    TOOLS = tuple(
        {
            "type": "function",
            "function": {
                "name": name,
                "parameters": {
                    "type": "object",
                    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
                    "required": ["x"],
                    "additionalProperties": False,
                },
            },
        }
        for name in ("add", "say")
    )
    CALL = r'<call>\n\{"name": "(add|say)", "arguments": \{\s*"x"\s*:\s*\d+\s*\}\}</call>'

    @staticmethod
    def around(name: str) -> tuple[str, str]:
        """How this model writes a call."""
        return f'<call>\n{{"name": "{name}", "arguments": ', "}</call>"

    def test_required(self, engine: Engine) -> None:
        """The text is a call, or several; that of a function, if it is named."""
        tool_format = structured.tool_format(
            self.TOOLS, "required", around=self.around, trigger="<call>", parallel=False
        )
        text = (
            engine.submit("Once", response_format=tool_format, max_tokens=99, **FREE)
            .result(PATIENCE)
            .text
        )
        assert re.fullmatch(self.CALL, text)
        choice = {"type": "function", "function": {"name": "say"}}
        tool_format = structured.tool_format(self.TOOLS, choice, around=self.around)
        text = (
            engine.submit("Once", response_format=tool_format, max_tokens=99, **FREE)
            .result(PATIENCE)
            .text
        )
        assert re.fullmatch(self.CALL.replace("add|", ""), text)

    @pytest.mark.parametrize("parallel", [False, True])
    def test_auto(self, model: Model, parallel: bool) -> None:
        """Any text will do, but what begins like a call is one."""
        grammar = structured.compile(
            model,
            structured.tool_format(
                self.TOOLS, around=self.around, trigger="<call>", parallel=parallel
            ),
        )
        call = '<call>\n{"name": "add", "arguments": {"x": 7}}</call>'
        assert fits(model, grammar, "A <cat> {sat}.")
        assert fits(model, grammar, "I add. " + call)
        assert fits(model, grammar, call + call) == parallel
        assert fits(model, grammar, call + " Then.") == parallel
        for wrong in ("x", '\n{"name": "sub"', '\n{"name": "add", "arguments": {"y": 7}}</call>'):
            assert not fits(model, grammar, "Well <call>" + wrong)

    def test_control_tokens(self, engine: Engine, model: Model) -> None:
        """A mark that is a control token is that token, and no text."""

        def around(name: str) -> tuple[str, str]:
            return f"<|im_start|>{name}(", ")<|im_end|>"

        tool_format = structured.tool_format(
            self.TOOLS, "required", around=around, trigger="<|im_start|>"
        )
        request = engine.submit("Once", response_format=tool_format, max_tokens=99, **FREE)
        done = request.result(PATIENCE)
        assert re.fullmatch(r"(\s?(add|say)\(\{\s*\"x\"\s*:\s*\d+\s*\}\))+", done.text)
        (start,) = model.tokenize("<|im_start|>", add_special=False, parse_special=True)
        assert done.tokens[0] == start
        auto = structured.compile(
            model, structured.tool_format(self.TOOLS, around=around, trigger="<|im_start|>")
        )
        assert fits(model, auto, "Plain <|im_start text.")

    def test_an_object_is_a_call(self, model: Model) -> None:
        """Without a trigger: text, or an object from the first character on."""
        grammar = structured.compile(
            model,
            structured.tool_format(self.TOOLS, around=lambda name: (f'{{"{name}": ', "}")),
        )
        assert fits(model, grammar, 'Well {"a": 5}')
        assert fits(model, grammar, '{"say": {"x": 5}}')
        assert not fits(model, grammar, '{"sing": {"x": 5}}')

    @pytest.mark.parametrize(
        ("tools", "choice", "trigger"),
        [
            ([], "auto", ""),
            ([{"type": "function"}], "auto", ""),
            (TOOLS, "some", ""),
            (TOOLS, {"type": "function", "function": {"name": "sing"}}, ""),
            (TOOLS, "auto", "<other>"),
        ],
    )
    def test_wrong_arguments(self, tools: Any, choice: Any, trigger: str) -> None:
        """Are refused."""
        with pytest.raises(ArgumentError):
            structured.tool_format(tools, choice, around=self.around, trigger=trigger)


def test_pydantic_models(engine: Engine) -> None:
    """A class says what is wanted, and reads what came."""
    pydantic = pytest.importorskip("pydantic")
    small = pydantic.Field(max_length=8)
    inner = pydantic.create_model("Inner", word=(str, small), kind=(int | None, ...))
    outer = pydantic.create_model("Outer", inner=(inner, ...), yes=(bool, True))
    outer.model_config["extra"] = inner.model_config["extra"] = "forbid"
    for kind in (inner, outer):
        kind.model_rebuild(force=True)
    done = engine.submit("Once", response_format=outer, max_tokens=300, seed=2, **FREE).result(
        PATIENCE
    )
    assert done.finish_reason == "stop"
    assert len(outer.model_validate_json(done.text).inner.word) <= 8


def test_formats_are_kept_as_long_as_their_model() -> None:
    """Compiled once; neither they nor the tokenizer keep the model."""
    model = Model("demo", gpu_layers=0)
    first = structured.compile(model, {"type": "choice", "choices": ["a", "b"]})
    assert structured.compile(model, {"type": "choice", "choices": ["a", "b"]}) is first
    assert structured.compile(model, first) is first
    with Model("demo", gpu_layers=0) as other, pytest.raises(ArgumentError, match="another model"):
        structured.compile(other, first)
    with pytest.raises(ArgumentError, match="not both"):
        structured.compile(model, first, schema={})
    watch = weakref.ref(model)
    model.close()
    del model
    gc.collect()
    assert watch() is None
    first.guide()


def test_a_worn_out_grammar_is_made_anew(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What texts share grows up to a limit; a text that meets it goes on as if it were alone."""
    response_format = {"type": "regex", "regex": "(a|b)*a(a|b){12}"}
    tokens = {letter: model.tokenize(letter, add_special=False)[-1] for letter in "abx"}
    new = structured.compile(model, {**response_format, "regex": "(b|a)*a(a|b){12}"})
    monkeypatch.setattr(compiler, "MAX_LEXER_STATES", 200)
    grammar = structured.compile(model, response_format)
    random = np.random.default_rng(1)
    for _ in range(30):
        worn, expected = grammar.guide(), new.guide()
        for letter in random.choice(["a", "b"], 40):
            worn.accept(tokens[letter])
            expected.accept(tokens[letter])
            assert np.array_equal(worn.mask(), expected.mask())
    with pytest.raises(SamplingError, match="guide"):
        worn.accept(tokens["x"])


def test_a_limit_is_named(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that a limit ends is not said to leave its grammar, and the other way round."""
    monkeypatch.setattr(compiler, "MAX_LEXER_STATES", 200)
    grammar = structured.compile(model, {"type": "regex", "regex": "(a|b)*a(a|b){14}"})
    monkeypatch.setattr(compiler, "MAX_LEXER_STATES", 10)
    tokens = {letter: model.tokenize(letter, add_special=False)[-1] for letter in "abx"}
    guides = [grammar.guide() for _ in range(2)]
    with pytest.raises(SamplingError, match=r"accepts \d+ tokens: .*too many states: \d+ >= 10"):
        for letter in np.random.default_rng(1).choice(["a", "b"], 400):
            guides[0].accept(tokens[letter])
    with pytest.raises(SamplingError, match=r"accepts 1 tokens: .*satisfy the grammar"):
        guides[1].accept(tokens["x"])


def test_a_limit_that_texts_pass_soon_is_known_before(model: Model) -> None:
    """At the first token of an object with many optional properties, for example."""
    properties = {f"w{i}": {"type": "string"} for i in range(600)}
    with pytest.raises(GrammarError, match=r"too complex .*Current row has"):
        structured.compile(model, schema={"type": "object", "properties": properties})
    required = {"required": list(properties), "additionalProperties": False}
    structured.compile(model, schema={"type": "object", "properties": properties, **required})


def test_engines_may_share_a_format(model: Model) -> None:
    """Two workers with one grammar: neither waits for the other for ever."""
    grammar = structured.compile(model, schema={"type": "array", "items": PERSON, "minItems": 3})
    texts: list[str] = []

    def run() -> None:
        with Engine(model, n_parallel=4, ctx_size=256, threads=1) as engine:
            asked = {"response_format": grammar, "max_tokens": 100, **FREE}
            requests = [engine.submit("Once", seed=seed, **asked) for seed in range(8)]
            texts.extend(request.result(PATIENCE).text for request in requests)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(texts) == 16


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2", "phi-3"])
def test_forced_tokens_spell_the_text(name: str) -> None:
    """In vocabularies that put a space in front of a text, too."""
    words = 'The quick "brown" fox, naïve 日本 🦊.'
    with Model(VENDOR_MODELS / f"ggml-vocab-{name}.gguf", vocab_only=True) as vocabulary:
        guide = structured.guide(vocabulary, {"type": "choice", "choices": [words]})
        raw = b""
        for _ in range(100):
            tokens = guide.forced()
            if not tokens:
                mask = np.unpackbits(guide.mask().view(np.uint8), bitorder="little")
                tokens = [int(np.flatnonzero(mask)[0])]
            if tokens[0] in vocabulary.eog_tokens:
                break
            for token in tuple(tokens):
                guide.accept(token)
                raw += vocabulary.piece_bytes(token)
        assert raw.decode() == words


@pytest.mark.parametrize(
    ("kind", "grammar"),
    [
        ("gbnf", 'root ::= !<[11]>{8} "x"'),
        ("gbnf", "root ::= !<[11]>+"),
        ("lark", 'start: <[^11]>{8} "x"'),
        ("lark", 'start: <[*]>{8} "x"'),
        ("lark", 'start: <[1-5]>{8} "x"'),
    ],
)
def test_no_text_ends_within_its_grammar(
    engine: Engine, model: Model, kind: str, grammar: str
) -> None:
    """A set of tokens does not contain those that end a text, but where the grammar may end."""
    compiled = structured.compile(model, {"type": kind, "grammar": grammar})
    guide = compiled.guide()
    bits = np.unpackbits(guide.mask().view(np.uint8), bitorder="little")
    assert bits.sum() > 1
    assert not any(bits[token] for token in model.eog_tokens)
    bias = dict.fromkeys(model.eog_tokens, 100.0)  # what the model wants most
    done = engine.submit("Once", response_format=compiled, max_tokens=20, logit_bias=bias, **FREE)
    assert done.result(PATIENCE).finish_reason == "stop"
    assert len(done.result().tokens) == (1 if "+" in grammar else 9)


def test_a_grammar_may_name_the_end(engine: Engine, model: Model) -> None:
    """A token that ends a text ends it where nothing else may come."""
    (end,) = model.eog_tokens
    for grammar in (f'root ::= "a" <[{end}]>', 'root ::= "a" <[11]>*'):
        asked = {
            "response_format": {"type": "gbnf", "grammar": grammar},
            "logit_bias": {end: 100.0},
        }
        assert engine.submit("Once", **asked).result(PATIENCE).text == "a"


@pytest.mark.parametrize("depth", [200, 201])
def test_nested_groups(model: Model, depth: int) -> None:
    """The same depth as a sampler's grammar may have."""
    grammar = f"root ::= {'(' * depth}[a-z]{')' * depth}"
    if depth == 200:
        assert fits(model, structured.compile(model, {"type": "gbnf", "grammar": grammar}), "x")
        Sampler(grammar=grammar, model=model)
    else:
        with pytest.raises(GrammarError, match="nests deeper"):
            structured.compile(model, {"type": "gbnf", "grammar": grammar})
        with pytest.raises(GrammarError, match="nests deeper"):
            Sampler(grammar=grammar, model=model)


@pytest.mark.parametrize(
    ("grammar", "error"),
    [
        ('root ::= "a"\nroot ::= "b"', "line 2: rule 'root' is defined twice"),
        ('root ::= "a"\nb ::= c{0,3}', "no rule 'c'"),
        ('root ::= "a" | b', "no rule 'b'"),
        ('root ::= "a" b?', "no rule 'b'"),
        ('root ::= "a" ("b" | c)*', "no rule 'c'"),
        ('root ::= "a" "b"{3,1}', r"line 1: \{3,1\} allows no number of repetitions"),
        ('a ::= "a"', "no rule 'root'"),
        ('root ::= "a" ("b" root)', "no text ever ends rule 'root'"),
        ('root ::= "a" | "\\q"', r"unknown escape \\q"),
        ('root ::= "\\ud800"', r"\\ud800 is not a character"),
        ("root ::= [\\U00110000]", r"\\U00110000 is not a character"),
        ("root ::= []", "no characters"),
        ("root ::= [z-a]", "is empty"),
        ("root ::= < x>", "expected a token"),
        ('root ::= "a"*?', "two repetitions"),
    ],
)
def test_errors_of_gbnf(model: Model, grammar: str, error: str) -> None:
    """Say what is wrong, in terms of the grammar that was given."""
    with pytest.raises(GrammarError, match=error):
        structured.compile(model, {"type": "gbnf", "grammar": grammar})


def test_nothing_may_be_repeated_no_time(model: Model) -> None:
    """As in llama.cpp: it is not there."""
    grammar = 'root ::= "a" "b"{0,0} x{0} "c"\nx ::= "d" | x "e"{0}'
    assert fits(model, structured.compile(model, {"type": "gbnf", "grammar": grammar}), "ac")


def test_any_character(model: Model) -> None:
    """A point and the complement of nothing are one character of any kind, also a line break."""
    grammar = structured.compile(model, {"type": "gbnf", "grammar": 'root ::= "a" . [^] "b"'})
    for text, expected in (("axyb", True), ("a\n\nb", True), ("aéüb", True), ("axb", False)):
        assert (text, expected) == (text, fits(model, grammar, text))


@pytest.mark.parametrize(
    ("old", "new"), [("Format", "CompiledGrammar"), ("wanted", "compile_response_format")]
)
def test_old_names(old: str, new: str) -> None:
    """They go on working for one release, with a warning."""
    with pytest.warns(DeprecationWarning, match=rf"structured\.{old} is deprecated: use .*{new}"):
        assert getattr(structured, old) is getattr(structured, new)
    assert old not in dir(structured)
    assert not hasattr(structured, "no_such_name")


@pytest.mark.parametrize("grammar", ["start: start", "start: a\na: b\nb: a", 'start: "a" x\nx: x'])
def test_a_grammar_that_never_ends(model: Model, grammar: str) -> None:
    """Is refused with this reason."""
    with pytest.raises(GrammarError, match="the grammar never ends, as a rule that consists of"):
        structured.compile(model, {"type": "lark", "grammar": grammar})


def test_errors_name_their_place(model: Model) -> None:
    """A grammar's error says where it is."""
    with pytest.raises(GrammarError, match="line 2"):
        structured.compile(model, {"type": "gbnf", "grammar": 'root ::= "a"\nb ::= %'})
    with pytest.raises(GrammarError, match=r"response_format: .*unknown name"):
        structured.compile(model, lark("start: nothing"))


def test_a_panic_of_llguidance_is_an_error(model: Model) -> None:
    """It cuts a long text of its message within a letter; the exception is no Exception."""
    schema = {"type": "number", "maximum": "é" * 100}
    with pytest.raises(ArgumentError, match=r"^response_format: "):
        structured.compile(model, {"type": "json_schema", "json_schema": {"schema": schema}})
