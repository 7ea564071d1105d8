"""llama.cpp's own programs: llama-bench for one row, llama-batched-bench for more. No sampling.

They take one length for all texts of a batch, so a batch is measured in phases, from one text's end
to the next's. They are not built with llcuda: they are looked for in the folder LLAMA_BENCH and on
the PATH.
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
    """Return where a program is, None if nowhere."""
    return shutil.which(
        name, path=os.pathsep.join([os.environ.get("LLAMA_BENCH", ""), os.environ["PATH"]])
    )


def missing() -> str:
    """Say which program is not there."""
    absent = [name for name in ("llama-bench", "llama-batched-bench") if not program(name)]
    return f"not found in LLAMA_BENCH or on the PATH: {', '.join(absent)}" if absent else ""


class Peer(peers.Peer):
    """Runs a program for each measurement; each warms up itself."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._rows = setup, 1

    def open(self, rows: int) -> None:
        """Let the next measurement have so many texts."""
        self._rows = rows

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Measure only: the programs say no more."""
        return self.measure(texts)[0]

    def warm_up(self, texts: Sequence[Text]) -> None:
        """Do nothing: a process is warm for itself only."""

    def measure(self, texts: Sequence[Text]) -> tuple[list[int], float]:
        """Return the tokens asked for, and the seconds that the programs say these took."""
        counts = [text.length for text in texts]
        if self._rows == 1:
            return counts, len(texts) * self._one(texts)
        ordered = sorted(texts, key=lambda text: text.length)
        return counts, sum(map(self._together, peers.batches(ordered, self._rows)))

    def _one(self, texts: Sequence[Text]) -> float:
        """Seconds for a text of the mean length."""
        prompt = math.ceil(statistics.mean(len(text.prompt) for text in texts))
        length = math.ceil(statistics.mean(text.length for text in texts))
        shape = ["-p", "0", "-n", "0", "-pg", f"{prompt},{length}", "-r", "1", "-o", "jsonl"]
        return self._run("llama-bench", shape)["avg_ns"] / 1e9

    def _together(self, texts: Sequence[Text]) -> float:
        """Seconds for a batch that is left by each text at its end, in phases of one size each."""
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
            found = self._run("llama-batched-bench", shape)
            seconds += found["t_tg"] + (0 if done else found["t_pp"])
            done = text.length
        return seconds

    def _run(self, name: str, shape: list[str]) -> dict[str, float]:
        options = ["-m", str(self._setup.gguf), "-ngl", "99", "-fa", "on"]
        if not self._setup.gpu:
            options += ["-t", str(self._setup.threads)]
        done = subprocess.run(
            [str(program(name)), *options, *shape], capture_output=True, text=True, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            raise RuntimeError(f"{name} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        return json.loads(lines[0])
