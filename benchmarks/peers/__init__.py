"""Libraries that generate text, each behind the same small interface; versus.py runs them.

A module of this package is one peer. It has `missing()`, which says in one line why it cannot run
here ("" if it can), may have `prepare(setup)`, which writes what it loads, and has `Peer`. It
imports its library in `Peer` only, so that the time to the first token can be taken.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

SAMPLING: dict[str, Any] = {"top_k": 40, "top_p": 0.9, "temperature": 0.7}
PROMPT_SIZES = (15, 16, 18, 19)  # tokens of the four prompts
LENGTHS = (305, 580, 856, 1131)  # tokens of their answers
FIRST_WORD = 512  # tokens from here on are words in every vocabulary


@dataclass(frozen=True)
class Text:
    """A prompt's tokens and how many tokens to write after them, whatever they are."""

    prompt: list[int]
    length: int


@dataclass(frozen=True)
class Setup:
    """What a peer loads, and for what.

    Attributes:
        gguf: The model's file.
        shape: The fields of llcuda.bench.synthetic.ModelShape.
        folder: Where `prepare` may write the same shapes in other formats.
        variant: The part of a peer's name after the colon.
        rows: The largest number of texts at once.
        context: Tokens of each text, its prompt included.
        threads: Threads of the CPU.
        gpu: Whether there is a GPU.
    """

    gguf: Path
    shape: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    variant: str = ""
    rows: int = 1
    context: int = 1024
    threads: int = 1
    gpu: bool = False


class Peer(Protocol):
    """A loaded model. `open` is called before `generate`, and again for other numbers of rows."""

    version = ""
    at_once: int | None = None  # texts that it can decode together; None: any number

    def __init__(self, setup: Setup) -> None: ...

    def open(self, rows: int) -> None:
        """Make what decodes `rows` texts at once."""

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Write the texts, `rows` of them at once, and return how many tokens each got."""

    def warm_up(self, texts: Sequence[Text]) -> None:
        """Do once what the first call costs; `texts` are those of the measurement to come."""
        self.generate([Text(text.prompt, min(16, text.length)) for text in texts])

    def measure(self, texts: Sequence[Text]) -> tuple[list[int], float]:
        """Return what `generate` returns, and the seconds that it took."""
        started = time.perf_counter()
        counts = self.generate(texts)
        return counts, time.perf_counter() - started


def make_texts(rows: int, words: int, lengths: Sequence[int] = LENGTHS) -> list[Text]:
    """Return the four texts, again and again for more rows; words: the vocabulary's size."""
    choose = random.Random(0)
    prompts = [[choose.randrange(FIRST_WORD, words) for _ in range(n)] for n in PROMPT_SIZES]
    pairs = itertools.cycle(zip(prompts, itertools.cycle(lengths), strict=False))
    return [Text(*next(pairs)) for _ in range(max(rows, len(prompts)))]


def batches(texts: Sequence[Text], rows: int) -> list[Sequence[Text]]:
    """Cut the texts for a peer that takes a batch at a time."""
    return [texts[i : i + rows] for i in range(0, len(texts), rows)]


def without(*packages: str) -> str:
    """Say which packages are not installed, "" if all are."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""
