"""Opening a GGUF file with a vocabulary, against the gguf package's reader, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from llcuda.gguf_parser import GGUFReader
from tests.conftest import VENDOR_MODELS

LARGE = VENDOR_MODELS / "ggml-vocab-gemma-4.gguf"  # 262,144 tokens, 514,906 merges, 16 MB
SMALL = VENDOR_MODELS / "ggml-vocab-bert-bge.gguf"  # 30,522 tokens; for `make test`


def seconds(run: Callable[[Path], object], path: Path, rounds: int) -> float:
    """Return the median of a few runs."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run(path)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def read_tokens(path: Path) -> list[str]:
    """Open the file, and read all its tokens."""
    with GGUFReader(path) as reader:
        return list(reader.metadata["tokenizer.ggml.tokens"])


def test_open_a_vocabulary(request: pytest.FixtureRequest) -> None:
    """Far below the package's time, also with all tokens read."""
    path = LARGE if request.config.getoption("benchmark_enable") else SMALL
    ours = seconds(lambda path: GGUFReader(path).close(), path, 9)
    tokens = seconds(read_tokens, path, 5)
    theirs = seconds(gguf.GGUFReader, path, 1)
    print(
        f"open {path.name}: {ours * 1e3:.1f} ms, with all tokens {tokens * 1e3:.0f} ms, "
        f"gguf package {theirs:.1f} s: {theirs / ours:,.0f} times ours"
    )
    assert theirs > 10 * ours
