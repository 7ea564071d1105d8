"""Contexts of a tiny LFM2 that fail: an assertion of llama.cpp after its positions were shifted."""

from __future__ import annotations

import pytest

from llcuda import Engine


def break_context(engine: Engine) -> None:
    """Have the next decode fail an assertion; some cell must be there."""
    for seq in range(engine.context.params.sequences):
        engine.context.memory.shift(-1, seq, 1, 100)


def keep_broken(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each new context break as well, so that a text of the engine's own fails too."""
    renew = engine.context.renew

    def renew_broken() -> None:
        renew()
        engine.context.decode([5, 6, 7])
        break_context(engine)

    monkeypatch.setattr(engine.context, "renew", renew_broken)
