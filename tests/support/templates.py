"""Hostile chat templates, made at random: programs that grow, nest, compute and compare."""

from __future__ import annotations

from random import Random

NAMES = ("ns.a", "ns.b", "x")
GROWTH = ("[T, T]", "(T, T)", "(T,)", "{'a': T, 'b': T}", "T + T", "T ~ T", "T * 3", "T * T",
          "namespace(c=T, d=[T, T])", "[T, T] | sum(start=[])", "T | string", "T | list",
          "dict(a=T).items()", "[T, T] | map('string')", "T | e", "'%s%s' % (T, T)")  # fmt: skip
# Expressions by their type: A is any value, N a number, T a text, L a list.
KINDS = {
    "N": (
        "0", "1", "-1", "3", "64", "9999", "10000000", "-99999999999", "10**10", "9**1200", "0.5",
        "1e308", "2305843009213693951", "0xffffffffffffffff", "true", "N + N", "N - N", "N * N",
        "N / N", "N // N", "N % N", "N ** N", "-N", "N | abs", "N | round(N, 'ceil')", "T | int",
        "N | round(N)", "T | int(0, N)", "T | int(0, 16)", "T | float", "T | length", "L | length",
        "L | sum", "L | max", "L | min", "T.find(T)", "T.rfind(T)", "T.count(T)", "L.index(A)",
        "L.count(A)", "A == A", "N < N", "T < T", "A in L", "T in T", "N in range(99999)", "L == L",
        "A is in L", "A is eq A", "N is divisibleby N", "T is lower", "T | wordcount",
        "(N).bit_length()", "(N).to_bytes(N, 'big')", "T.startswith(T)", "L | first",
    ),
    "T": (
        "''", "'a'", "'ab c'", "'%s'", "'%9999d'", "'%(a)s'", "'{}'", "'{0}{0}'", "'{:>9999}'",
        "'\\n'", "'\\t'", "'<!---->'", "'f'", "'\u00e9\U0001f600'", "('x' * 100000)", "'ab' * N",
        "('a' * 4000000)", "('a.' * 9999)", "T + T", "T ~ A", "T * N", "N * T", "T % A",
        "T % (A, A)", "T % {'a': A}", "T | format(A, A)", "T.format(A, A)", "T | center(N)",
        "T.center(N)", "T.ljust(N, T)", "T.zfill(N)", "T.expandtabs(N)", "T.replace(T, T)",
        "T | replace(T, T)", "T.join(L)", "L | join(T)", "L | join(T, attribute=T)", "A | string",
        "A | tojson", "A | tojson(indent=N)", "A | tojson(separators=(T, T))", "T | indent(N)",
        "T | indent(T, true, true)", "T | trim(T)", "T.strip(T)", "T | upper", "T | title", "T | e",
        "T | urlencode", "T | truncate(N, true, T)",
        "T[N:]", "T[::N]", "T[N]", "T.encode('punycode')", "m(A)",
        "T.translate({1: T})", "T.removeprefix(T)", "T | reverse", "T | safe", "L | last",
        "strftime_now(T)", "T.rpartition(T)[N]", "A | filesizeformat", "A | default(T)",
        "T.title()",
    ),
    "L": (
        "[]", "[1]", "[A, A]", "(A, A)", "range(99999)", "range(N)", "L + L", "L * N", "[A] * 9999",
        "T | list", "L | list", "L | sort", "L | sort(true, false, T)", "L | unique | list",
        "L | map('string') | list", "L | map(T) | list", "L | map(attribute=T) | list", "L[N:]",
        "L | map('replace', T, T) | list", "L | map('_counted', N) | list", "L | select | list",
        "L | select('in', L) | list", "L | reject('eq', A) | list", "L | selectattr(T) | list",
        "L | groupby(T)", "L | reverse | list",
        "L | sum(start=[])", "T.split(T)", "T.rsplit(T)", "T.split()", "T.splitlines()", "L.copy()",
        "dict(a=A).items()", "{A: A} | items | list", "dict([(A, A)]) | dictsort", "L[::N]",
        "{A: A}.keys() - L", "{A: A}.values()", "{}.fromkeys(L)", "dict(L)", "L | _concat",
        "[dict(a=A)] | map(attribute='a') | list", "L | map('tojson') | list", "L | select",
    ),
}  # fmt: skip
KINDS["A"] = ("N", "N", "T", "T", "L", "L", "{'a': A, 'b': A}", "{}[A]", "{}.get(A)", "none",
              "namespace(a=A)", "cycler(A, A).next()", "A if A else A", "ns", "m",
              "missing")  # fmt: skip


class HostileTemplates:
    """Makes templates; the same ones for the same seed.

    Args:
        seed: Seed of the choices.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def template(self) -> str:
        """Return the text of a template."""
        start = self._random.choice(("1", "'ab'", "[1]", "range(9)", "'a' * 10000", "(1, 'b')"))
        steps = "".join(self._statement(2) for _ in range(self._random.randint(1, 3)))
        return (
            f"{{% set ns = namespace(a={start}, b='b') %}}{{% set x = {start} %}}"
            f"{{% macro m(x) %}}{{{{ {self._expression('A', 0)} }}}}{{% endmacro %}}"
            f"{{% set x = {self._expression('A', 1)} %}}{steps}{{{{ ns.a }}}}{{{{ [ns.b, ns.a] }}}}"
        )

    def _statement(self, depth: int) -> str:
        choice = self._random.choice
        inner = self._statement(depth - 1) if depth else f"{{{{ {self._expression('A', 1)} }}}}"
        target = choice(("ns.a", "ns.b"))
        match self._random.randrange(9):
            case 0 | 1 | 2:
                times, grown = choice((2, 26, 60, 5000, 99999)), choice(GROWTH)
                growth = "".join(target if c == "T" else c for c in grown)
                return (
                    f"{{% set {target} = {self._expression(choice('NTL'), 0)} %}}{{% for i in"
                    f" range({times}) %}}{{% set {target} = {growth} %}}{{% endfor %}}{inner}"
                )
            case 3:
                return f"{{% for y in {self._expression('L', 2)} %}}{inner}{{% endfor %}}"
            case 4:
                return f"{{% if {self._expression('A', 2)} %}}{inner}{{% endif %}}{inner}"
            case 5:
                return f"{{% set {target} %}}{inner}{{% endset %}}"
            case 6:
                return f"{{% set {target} = {self._expression('A', 3)} %}}{inner}"
            case 7:
                return f"{{% filter {choice(('upper', 'e', 'trim', 'indent'))} %}}{inner}" + (
                    "{% endfilter %}"
                )
        return f"{{{{ {self._expression('A', 3)} }}}}"

    def _expression(self, kind: str, depth: int) -> str:
        choice = self._random.choice
        if depth <= 0 and choice((True, False)):
            return choice(NAMES)
        form = choice(KINDS[kind][:12] if depth <= 0 else KINDS[kind])
        return (
            "("
            + "".join(
                self._expression(c, depth - 1) if self._is_place(form, i) else c
                for i, c in enumerate(form)
            )
            + ")"
        )

    @staticmethod
    def _is_place(form: str, i: int) -> bool:
        """Whether a letter of a form stands for an expression."""
        around = f" {form} "[i] + f" {form} "[i + 2]
        return form[i] in KINDS and not any(c.isalnum() or c in "_'\\" for c in around)
