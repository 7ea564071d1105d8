"""Chat templates that try to hold the process: every one ends, soon, and by our own error.

They run in a process of their own, with a watchdog in C: what holds the interpreter's lock would
stop a watchdog in Python too.
"""

from __future__ import annotations

import json

import pytest

from llcuda.chat.jinja_sandbox import Program
from llcuda.errors import ArgumentError
from tests.support import programs

LIMIT = 0.2  # seconds for one rendering
WATCHDOG = 15  # seconds of the processor after which a rendering has not ended
CHILD = """
import faulthandler, json, re, resource, signal, sys, time
from pathlib import Path
from llcuda.chat.jinja_sandbox import Program
from llcuda.errors import ArgumentError
from tests.support.templates import HostileTemplates

limit, watchdog = float(sys.argv[1]), int(sys.argv[2])
faulthandler.register(signal.SIGXCPU, chain=True)  # which ends the process
for line in sys.stdin:
    source = json.loads(line)
    if isinstance(source, int):
        source = HostileTemplates(source).template()
    end = int(time.process_time()) + watchdog
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))
    try:
        outcome = f"{len(Program(source).render({}, limit))} characters"
    except ArgumentError as error:
        outcome = f"ArgumentError: {error}"
    except BaseException as error:
        outcome = repr(error)
    print(json.dumps([source, outcome]), flush=True)
status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's
print(json.dumps(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) // 1024))
"""


def outcomes(sources: list[str] | list[int]) -> tuple[list[tuple[str, str]], int]:
    """Render templates, or the ones of seeds: what came of each, and the most memory in MiB."""
    lines = "".join(f"{json.dumps(source)}\n" for source in sources)
    ended = programs.run(CHILD, LIMIT, WATCHDOG, given=lines, timeout=500)
    ends = [json.loads(line) for line in ended.stdout.splitlines()]
    shown = ends[-1] if ends else "nothing"
    assert ended.returncode == 0, f"after {shown}:\n{ended.stderr[-3000:]}"
    return [(source, outcome) for source, outcome in ends[:-1]], ends[-1]


def grown(expression: str, use: str, times: int = 99999) -> str:
    """A template that makes `ns.s` of itself many times, and then uses it."""
    return (
        f"{{% set ns = namespace(s=1) %}}{{% for i in range({times}) %}}"
        f"{{% set ns.s = {expression} %}}{{% endfor %}}{use}"
    )


def twins(use: str) -> str:
    """A template with two equal lists of 2^60 elements."""
    return (
        "{% set a = namespace(x=1) %}{% set b = namespace(x=1) %}{% for i in range(60) %}"
        "{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}" + use
    )


def nested(use: str, part: str = "(ns.s, ns.s)") -> str:
    """A template that uses a tuple of 2^45 elements."""
    return grown(part, use, 45)


def objects(use: str) -> str:
    """A template with a list, `l`, of objects whose attributes `s` are equal, long lists."""
    return (
        "{% set a = (range(9999) | list) * 60 %}{% set b = (range(9999) | list) * 60 %}"
        "{% set l = [namespace(s=a), namespace(s=b)] * 4000 %}" + use
    )


SLICED = "{% set s = 'x' * 15000000 %}"
REFUSED = [
    # what nested lists hold in all
    grown("[ns.s, ns.s]", "{{ ns.s }}", 26),
    grown("[ns.s, ns.s]", "{{ ns.s | string | length }}"),
    grown("[ns.s, ns.s]", "{{ ns.s | tojson }}", 40),
    grown("{'a': ns.s, 'b': ns.s}", "{{ ns.s | tojson(indent=64) }}", 20),
    grown("{'a': ns.s, 'b': ns.s}", "{{ ns.s.items() }}", 40),
    grown("[ns.s, ns.s]", "{{ ns.s ~ 'a' }}", 40),
    grown("[ns.s, ns.s]", "{{ [ns.s] | join }}", 40),
    grown("[ns.s, ns.s]", "{{ '%s' % ns.s }}{{ '{}'.format(ns.s) }}", 40),
    grown("[ns.s, ns.s]", "{{ raise_exception(ns.s) }}", 40),
    twins("{{ a.x == b.x }}"),
    twins("{{ a.x is eq b.x }}"),
    twins("{{ [a.x, b.x] | sort }}"),
    twins("{{ [a.x].index(b.x) }}"),
    twins("{% for i in [1, 2] %}{{ loop.changed(a.x) }}{{ loop.changed(b.x) }}{% endfor %}"),
    # hashes, whose recursion in C ends the process
    grown("(ns.s,)", "{{ {}[ns.s] }}"),
    grown("(ns.s,)", "{{ {}.get(ns.s) }}"),
    grown("(ns.s,)", "{{ [ns.s] | unique | list }}"),
    grown("(ns.s, ns.s)", "{{ dict([(ns.s, 1)]) }}", 40),
    grown("(ns.s, ns.s)", "{{ ns.s in {} }}", 40),
    "{% set ns = namespace(l=[]) %}{% for i in range(9000) %}"
    "{% set ns.l = ns.l + [(i * 2305843009213693951, 1)] %}{% endfor %}{{ dict(ns.l) | length }}",
    nested("{% set d = {ns.s: 1} %}hi"),
    nested("{% for k, v in {ns.s: 1}.items() %}{% endfor %}"),
    nested("{{ 'x' in {ns.s: 1} }}"),
    nested("{{ raise_exception({ns.s: 1}) }}"),
    nested("{% macro m() %}{{ kwargs }}{% endmacro %}{{ m(a={ns.s: 1}) }}"),
    nested("{{ namespace(**{'a': {ns.s: 1}}) }}"),
    nested("{% set d = {'a': {1: {ns.s: 1}}} %}hi"),
    nested("{{ {}[ns.s, 1] }}"),
    nested("{{ {}[1:ns.s] }}"),
    grown("(ns.s,)", "{% set d = {ns.s: 1} %}hi"),
    "{% set a = (1,) * 100000 %}{% set b = (1,) * 100000 %}{% set d = {"
    + "".join(f"({'ab'[i % 2]}, {i * 2305843009213693951}): 1," for i in range(2000))
    + "} %}hi",
    # lists that no literal makes
    "{% set ns = namespace(s=1) %}{% macro m() %}{% set ns.s = varargs %}{% endmacro %}"
    "{% for i in range(45) %}{{ m(ns.s, ns.s) }}{% endfor %}{% set d = {ns.s: 1} %}",
    "{% set ns = namespace(s=1) %}{% macro m() %}{% set ns.s = kwargs %}{% endmacro %}"
    "{% for i in range(45) %}{{ m(a=ns.s, b=ns.s) }}{% endfor %}{{ 'a' | replace(ns.s, 'b') }}",
    nested("{% set d = {ns.s: 1} %}hi", "cycler(ns.s, ns.s).items"),
    nested("{% set d = {ns.s: 1} %}hi", "(ns.s,) + (ns.s,)"),
    nested("{% set d = {ns.s: 1} %}hi", "(ns.s,) * 2"),
    nested("{{ 'a' | replace(ns.s, 'b') }}", "[0, 0] | map('default', ns.s, true) | list"),
    nested("{{ 'a' | replace(ns.s, 'b') }}", "[0, 0] | map('default', ns.s, true) | reverse"),
    nested("{{ 'a' | replace(ns.s, 'b') }}", "dict(a=ns.s, b=ns.s)"),
    nested("{{ 'a' | replace(ns.s, 'b') }}", "[[0], [0]] | sum(start=[ns.s, ns.s])"),
    # texts of arguments
    nested("{{ 'a' | replace(ns.s, 'b') }}"),
    nested("{{ 'a' | replace('a', ns.s) }}"),
    nested("{{ ns.s | format(1) }}"),
    nested("{{ [1] | map(ns.s) | list }}"),
    nested("{{ [1] | select(ns.s) | list }}"),
    nested("{{ [1] | first | attr(ns.s) }}"),
    nested("{{ [1] | map(attribute=ns.s) | list }}"),
    nested("{{ [1] | join(ns.s) }}"),
    nested("{{ joiner(ns.s)() }}"),
    nested("{{ cycler(ns.s).next() }}"),
    nested("{{ 1 is in ns.s }}{{ ns.s is in [ns.s] }}{{ (ns.s).x.y }}{{ ''[ns.s].y }}"),
    "{% set ns = namespace(s='x' * 1000000) %}{{ ('{0.s}' * 3000).format(ns) | length }}",
    "{{ [9 ** 1200] * 1000000 }}",
    # what objects hold
    objects("{{ l | sort(attribute='s') | length }}"),
    objects("{{ (l | max(attribute='s')).x }}{{ l | min(attribute='s,s') }}"),
    objects("{{ l | groupby('s') | length }}"),
    # numbers
    "{{ ('f' * 20000000) | int(0, 16) }}",
    "{{ ('f' * 16000000) | int(0, 16) // 3 }}",
    "{{ 0x" + "f" * 200000 + " // 0x" + "e" * 100000 + " }}",
    "{{ 9 ** 1200 * 9 ** 1200 * 2 }}",
    "{{ 1 | round(999999999, 'ceil') }}{{ 5 | round(-999999999) }}",
    "{{ (1).to_bytes(9999999999, 'big') }}",
    # sums and copies
    "{{ ([[1] * 9999] * 9999) | sum(start=[]) }}",
    "{{ [1] | _counted(-99999999999999) | list }}{{ 'a' * 10 ** 10 }}",
    "{{ 'a' | center(-99999999999999) }}{{ 'a' * 10 ** 10 }}",
    SLICED + "{{ s[1:] | length }}" * 900,
    SLICED + "{{ [" + "s[1:]," * 900 + "] | length }}",
    "{{ ('x' * 15000000) | select | list | length }}",
    # formats
    "{{ ('%9999d' * 1000000) % ((1,) * 1000000) }}",
    "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
    "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "{{ ('{' + ':' * 200000).format(1) }}",
    "{{ strftime_now('%Y' * 1000000) }}{{ strftime_now('%99999999d') }}",
    "{{ ('a\u2028' * 1000000) | indent(9999) }}",
    "{{ [1] * 99999 | tojson(separators=('x' * 9999, 'y')) }}",
    # searches that take quadratic time
    "{{ ('a' * 1000000).rfind('b' + 'a' * 500000) }}",
    "{{ ('a' * 1000000).strip('b' * 1000000 + 'a') }}",
    "{{ ('a' * 1000000) | trim('b' * 1000000 + 'a') }}",
    "{{ ('ab' * 100000).encode('punycode') }}",
    "{{ range(99999) | map(attribute='a.' * 100000) | list | length }}",
    # what a compiler computes
    "".join(f"{{% set a{i} = 1 %}}" for i in range(2500)) + "{% if x %}{% endif %}" * 2500,
    "{{ " + "a," * 100000 + " }}",
    "{% autoescape true %}{{ '<' * 10000000 }}{% endautoescape %}",
    # errors that are none of Jinja's
    "{{ 'abc' | truncate(-5) }}",
    "{{ cycler() }}",
    "{{ dict([(1,)]) }}",
]


def test_hostile_templates_end_by_our_own_error() -> None:
    """Each is an ArgumentError, before its limit or soon after it."""
    ended, memory = outcomes(REFUSED)
    assert [(source, True) for source in REFUSED] == [
        (source, outcome.startswith("ArgumentError: the chat template"))
        for source, outcome in ended
    ]
    assert memory < 1024


def test_random_templates_end() -> None:
    """By a text or by an ArgumentError; the templates are the same in each run."""
    seeds = list(range(150))
    ended, memory = outcomes(seeds)
    foreign = [
        (source, outcome)
        for source, outcome in ended
        if not outcome.startswith("ArgumentError") and not outcome.endswith("characters")
    ]
    assert [] == foreign
    assert len(seeds) == len(ended)
    assert memory < 1024


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ [[1], [2, 3]] | sum(start=[]) }}{{ [1, 2] | sum }}", "[1, 2, 3]3"),
        ("{{ [{'n': 2}, {'n': 1}] | sort(attribute='n') | map(attribute='n') | join }}", "12"),
        ("{{ 'abcd'[1:] ~ 'abcd'[:-1][::-1] }}{{ [1, 2, 3][1:][0] }}", "bcdcba2"),
        ("{{ ('ab' ~ 'cd')[1:3] == 'bc' and 'b' in 'ab' ~ 'c' }}", "True"),
        ("{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}", "x1"),
        ("{% for c in ('a' ~ 'b')[::-1] %}{{ c }}{% endfor %}{{ none | select | list }}", "ba[]"),
        ("{% set k = 'a' %}{{ {k: 1, 'b': [k], k: {k: k}} }}{{ {k: 1}[k] }}{{ (k,) + (1, (k,)) }}",
         "{'a': {'a': 'a'}, 'b': ['a']}1('a', 1, ('a',))"),
        ("{% set a, (b, c) = 1, [2, 3] %}{{ c }}{{ {'a': -1, b: {}}[2] }}{{ [[a] * 2, []] }}",
         "3{}[[1, 1], []]"),
        ("{{ {(1, 2): 'a'}[(1, 2)] }}{{ dict([('a', 1)], b=2) }}", "a{'a': 1, 'b': 2}"),
        ("{{ ['b', 'a', 'b'] | unique | list }}{{ {'b': 1, 'a': 2} | dictsort }}",
         "['b', 'a'][('a', 2), ('b', 1)]"),
        ("{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ '1f' | int(0, 16) }}{{ 2.567 | round(1) }}",
         "331024312.6"),
        ("{{ '<a>' | e }}{{ '<b>' | safe }}{{ 'a b' | title }}{{ 'abc' | truncate(1, 1, '', 0) }}",
         "&lt;a&gt;<b>A Ba"),
        ("{{ ' a ' | trim }}{{ 'xax' | trim('x') }}{{ ' a '.rstrip() }}{{ 'a\tb'.expandtabs(2) }}",
         "aa aa b"),
    ],
)  # fmt: skip
def test_bounded_operations_compute_as_jinja_does(source: str, expected: str) -> None:
    """The operations that are counted have Jinja's results."""
    assert expected == Program(source).render({})


def test_long_error_texts_are_cut() -> None:
    """The text of a template's refusal is shown up to 1,000 characters."""
    with pytest.raises(ArgumentError) as caught:
        Program("{{ raise_exception('x' * 100000) }}").render({})
    assert len(str(caught.value)) < 1100
