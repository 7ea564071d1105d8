"""Grammars that are small and take long to compile."""


def doubling_rules(count: int) -> str:
    """Return GBNF whose rules contain the next one up to two times."""
    rules = [f"r{i} ::= r{i + 1} r{i + 1}?" for i in range(count)]
    return "\n".join(["root ::= r0", *rules, f'r{count} ::= "b"'])
