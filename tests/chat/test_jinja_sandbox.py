"""Chat templates are programs from files: what they may use, and what they are stopped for."""

from __future__ import annotations

import threading

import pytest

from llcuda.chat import jinja_sandbox as chat_sandbox
from llcuda.chat.jinja_sandbox import Program
from llcuda.errors import ArgumentError


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ '<é>' }} {{ {'a': '<é>'} | tojson }}", '<é> {"a": "<é>"}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=2) }}", '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}'),
        ("{{ ['é'] | tojson(ensure_ascii=True, separators=(',', ':')) }}", '["\\u00e9"]'),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% for i in [1, 2] %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}",
         "1/2False 2/2True "),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{% generation %}answer{% endgeneration %}", "answer"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a ~ 'x' ~ none }}", "2xNone"),
        ("{{ dict(a=1).a }}{{ missing }}{{ strftime_now('%%') }}", "1%"),
        ("{{ ['a', 'b'] | join('-') }}{{ [{'n': 1}] | map(attribute='n') | list }}", "a-b[1]"),
        ("{{ [{'n': 1}] | join(',', attribute='n') }}{{ 'a b' | replace('a', 'c', 1) }}", "1c b"),
        ("{{ 'a\nb' | indent(2) }}{{ 'a' | center(3) }}{{ '%s' | format(1) }}", "a\n  b a 1"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(1) }}{{ 'ab' * 2 }}{{ 2 ** 3 }}", "[1]abab8"),
        ("{{ 'a-b'.split('-')[-1] }}{{ 'x'.join(['1', '2']) }}{{ '{}!'.format(7) }}", "b1x27!"),
    ],
)  # fmt: skip
def test_what_templates_use(source: str, expected: str) -> None:
    """The filters, functions and tags that Hugging Face's templates are written with."""
    assert expected == Program(source).render({})


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = EXPR %}{% endfor %}"
)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10000000000 }}",
        "{{ 10000000000 * [1] }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ ('\t' * 99999).expandtabs(99999) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 9999999999) }}",
        "{{ 'a\n' * 99999 | indent(99999) }}",
        "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
        "{{ 'a' * 99999 | replace('a', 'b' * 99999) }}",
        "{{ ('a' * 99999).join(range(9999) | map('string') | list) }}",
        "{{ range(9999) | join('a' * 99999) }}",
        "{{ [1] | tojson(indent=10000000) }}",
        "{{ 'a'.translate({97: 'b' * 99999}) }}",
        "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
        "{% macro m(n) %}{{ 'x' * 9999 }}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}" + "x" * 9999
        + "{% endmacro %}{{ m(40) }}",
        DOUBLED.replace("EXPR", "ns.s + ns.s"),
        DOUBLED.replace("EXPR", "ns.s ~ ns.s"),
        DOUBLED.replace("EXPR", "[ns.s, ns.s] | join"),
        DOUBLED.replace("EXPR", "ns.s * 3"),
        DOUBLED.replace("EXPR", "'%s%s' % (ns.s, ns.s)"),
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set t %}{{ ns.s }}{{ ns.s }}"
        "{% endset %}{% set ns.s = t %}{% endfor %}",
        "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}"
        "{% endfor %}",
        "{{ 9 ** 99999 }}",
        "{% for i in range(10000000000) %}{% endfor %}",
        ENDLESS,
    ],
)  # fmt: skip
def test_a_template_that_loops_or_grows_is_stopped(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error, soon, and without the memory that it asks for."""
    monkeypatch.setattr(chat_sandbox, "TIME_LIMIT", 0.5)
    with pytest.raises(ArgumentError, match="chat template"):
        Program(source).render({})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ raise_exception.__globals__.a }}",
        "{{ '{0.__class__.a}'.format('a') }}",
        "{{ lipsum(5) }}",
        "{{ self.__init__ }}{{ cycler.__init__.__globals__ }}",
        "{% include 'x' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ messages[5].content }}",
        "{{ missing.part }}",
    ],
)
def test_what_a_template_may_not_do(source: str) -> None:
    """Reach into Python, change what it is given, compute nonsense: an ArgumentError each."""
    given = [1]
    with pytest.raises(ArgumentError, match="chat template"):
        Program(source).render({"messages": given})
    assert given == [1]


def test_a_template_s_own_refusal_is_said() -> None:
    """raise_exception's message is in the error's."""
    with pytest.raises(ArgumentError, match="refuses: roles must alternate"):
        Program("{{ raise_exception('roles must alternate') }}").render({})


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ a", "{% for %}", "{{ 'a' | no_such_filter }}", "{% nonsense %}",
     "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ " + "-" * 20000 + "1 }}",
     "{% if a %}" * 500 + "{% endif %}" * 500, "x" * (chat_sandbox.SOURCE_LIMIT + 1)],
    ids=range(9),
)  # fmt: skip
def test_what_is_no_template(source: str) -> None:
    """Errors of syntax, and nesting that no compiler takes."""
    with pytest.raises(ArgumentError, match="chat template"):
        Program(source)


def test_threads_render_with_one_template() -> None:
    """Each has bounds of its own."""
    program = Program("{% for i in range(2000) %}{{ name }}{% endfor %}")
    texts: dict[str, str] = {}

    def render(name: str) -> None:
        texts[name] = program.render({"name": name})

    threads = [threading.Thread(target=render, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {name: name * 2000 for name in "abcdefgh"}


def test_bounds_grow_with_what_is_rendered() -> None:
    """A long conversation may make long texts; the same by a template alone may not."""
    source = "{% set t = TEXT %}{% for i in range(40) %}{% set t = t ~ '' %}{% endfor %}{{ t }}"
    text = "x" * 4_000_000
    assert text == Program(source.replace("TEXT", "text")).render({"text": text})
    with pytest.raises(ArgumentError, match="too much text"):
        Program(source.replace("TEXT", "'x' * 4000000")).render({})
