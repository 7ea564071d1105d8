"""Libraries that generate text, behind the same interfaces, for versus.py and arrivals.py.

A module of this package is one peer. `missing()` returns in one line why the peer cannot run here,
or "". `prepare(setup)`, if there is one, writes the files that the peer loads. `Peer` imports the
library, so that the time to the first token includes the import. `Server`, if there is one, takes
requests while it computes others.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

SAMPLING: dict[str, Any] = {"top_k": 40, "top_p": 0.9, "temperature": 0.7}
PROMPT_SIZES = (15, 16, 18, 19)  # tokens of the four prompts
LENGTHS = (305, 580, 856, 1131)  # tokens of their answers
FIRST_WORD = 512  # tokens from here on are words in every vocabulary


@dataclass(frozen=True)
class Text:
    """A text to write.

    Attributes:
        prompt: The tokens of the prompt.
        length: The number of tokens to write, whichever they are.
    """

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
    """A loaded model.

    `open` is called before `generate`, and again for another number of rows.

    Attributes:
        version: The version of the library.
        at_once: The texts that it can decode together at most; None is any number.
    """

    version = ""
    at_once: int | None = None

    def __init__(self, setup: Setup) -> None: ...

    def open(self, rows: int) -> None:
        """Prepare to decode `rows` texts at once."""

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Write the texts, `rows` at once, and return the number of tokens of each."""

    def warm_up(self, texts: Sequence[Text]) -> None:
        """Pay the cost of a first call; `texts` are those of the measurement that follows."""
        self.generate([Text(text.prompt, min(16, text.length)) for text in texts])

    def measure(self, texts: Sequence[Text]) -> tuple[list[int], float]:
        """Return the result of `generate` and the seconds that it took."""
        started = time.perf_counter()
        counts = self.generate(texts)
        return counts, time.perf_counter() - started


class Server(Protocol):
    """A loaded model that computes `rows` requests at once; others wait.

    Attributes:
        version: The version of the library.
    """

    version = ""

    def __init__(self, setup: Setup) -> None: ...

    def stream(self, text: Text, seed: int | None) -> AsyncIterator[int]:
        """Write a text; yield how many tokens there are, whenever there are more."""

    def figures(self) -> dict[str, Any]:
        """Return what the library itself counted since the last call."""
        return {}

    def close(self) -> None:
        """End it with its processes."""


def make_texts(rows: int, words: int, lengths: Sequence[int] = LENGTHS) -> list[Text]:
    """Return at least four texts, which repeat for more rows.

    Args:
        rows: The number of texts.
        words: The size of the vocabulary.
        lengths: The tokens of the texts to write.
    """
    chance = random.Random(0)
    prompts = [[chance.randrange(FIRST_WORD, words) for _ in range(n)] for n in PROMPT_SIZES]
    pairs = itertools.cycle(zip(prompts, itertools.cycle(lengths), strict=False))
    return [Text(*next(pairs)) for _ in range(max(rows, len(prompts)))]


def batches(texts: Sequence[Text], rows: int) -> list[Sequence[Text]]:
    """Split the texts for a peer that takes one batch at a time."""
    return [texts[i : i + rows] for i in range(0, len(texts), rows)]


def without(*packages: str) -> str:
    """Return which packages are not installed, "" if all are."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""
