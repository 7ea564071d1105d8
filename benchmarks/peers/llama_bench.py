"""llama.cpp's own programs: llama-bench for one row, llama-batched-bench for more. No sampling.

They take one length for all texts of a batch, so a batch is measured in phases, from the end of one
text to the end of the next. They are not built with llcuda. They are searched in the folder
LLAMA_BENCH and on the PATH.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
from collections.abc import Sequence

import peers
from peers import Setup, Text


def program(name: str) -> str | None:
    """Return the path of a program, or None."""
    return shutil.which(
        name, path=os.pathsep.join([os.environ.get("LLAMA_BENCH", ""), os.environ["PATH"]])
    )


def missing() -> str:
    """Return which programs are missing."""
    names = [name for name in ("llama-bench", "llama-batched-bench") if not program(name)]
    return f"not found in LLAMA_BENCH or on the PATH: {', '.join(names)}" if names else ""


class Peer(peers.Peer):
    """Runs a program for each measurement, which warms up itself."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._rows = setup, 1

    def open(self, rows: int) -> None:
        """Set the number of texts of the next measurement."""
        self._rows = rows

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Return the lengths, which the programs write."""
        return self.measure(texts)[0]

    def warm_up(self, texts: Sequence[Text]) -> None:
        """Do nothing, because each process warms up itself."""

    def measure(self, texts: Sequence[Text]) -> tuple[list[int], float]:
        """Return the lengths of the texts, and the seconds that the programs report for them."""
        counts = [text.length for text in texts]
        if self._rows == 1:
            return counts, len(texts) * self._mean_text(texts)
        ordered = sorted(texts, key=lambda text: text.length)
        return counts, sum(map(self._batch, peers.batches(ordered, self._rows)))

    def _mean_text(self, texts: Sequence[Text]) -> float:
        """Return the seconds for a text of the mean length."""
        prompt = math.ceil(statistics.mean(len(text.prompt) for text in texts))
        length = math.ceil(statistics.mean(text.length for text in texts))
        shape = ["-p", "0", "-n", "0", "-pg", f"{prompt},{length}", "-r", "1", "-o", "jsonl"]
        return self._run("llama-bench", shape)["avg_ns"] / 1e9

    def _batch(self, texts: Sequence[Text]) -> float:
        """Return the seconds for a batch that each text leaves at its end, phase by phase."""
        prompt = math.ceil(statistics.mean(len(text.prompt) for text in texts))
        seconds, done = 0.0, 0
        for i, text in enumerate(texts):
            if text.length == done:
                continue
            rows = len(texts) - i
            shape = ["-npp", str(prompt + done), "-npl", str(rows), "-c"]
            shape += [str(rows * self._setup.context), "-b", "2048", "-ub", "512"]
            # The last line can be lost: the program ends without waiting for its logger.
            shape += ["-ntg", f"{text.length - done},1", "--output-format", "jsonl"]
            times = self._run("llama-batched-bench", shape)
            seconds += times["t_tg"] + (0 if done else times["t_pp"])
            done = text.length
        return seconds

    def _run(self, name: str, shape: list[str]) -> dict[str, float]:
        options = ["-m", str(self._setup.gguf), "-ngl", "99", "-fa", "on"]
        if not self._setup.gpu:
            options += ["-t", str(self._setup.threads)]
        process = subprocess.run(
            [str(program(name)), *options, *shape], capture_output=True, text=True, check=False
        )
        lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
        if process.returncode or not lines:
            message = (process.stderr or process.stdout).strip()[-300:]
            raise RuntimeError(f"{name} failed: {message}")
        return json.loads(lines[0])
