"""Texts of the most probable tokens, where rounding may decide between two."""

from __future__ import annotations

from llcuda import Context, Model

TIE = 0.1  # in log-probability


def check_greedy(actual: list[int], expected: list[int], judge: Model) -> None:
    """The same tokens; where one differs, `judge` holds both for almost equally probable."""
    assert len(actual) == len(expected)
    same = next((i for i, token in enumerate(actual) if token != expected[i]), None)
    if same is None:
        return
    with Context(judge, ctx_size=512) as context:
        context.decode(expected[:same])
        (chosen, _), (best, _) = context.logprobs([actual[same], expected[same]], [-1, -1])
    assert best - chosen < TIE, f"token {same}: {chosen:.3f} instead of {best:.3f}"
