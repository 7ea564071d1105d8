"""Runs numbered inputs in a child process, which is started again where it dies or hangs."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]


class _Runner:
    """Runs a module with `--child`, sends it numbers and prints what it answers."""

    def __call__(
        self,
        module: str,
        first: int,
        inputs: int,
        patience: float = 300.0,
        *arguments: str,
        log: Path | None = None,
    ) -> int:
        """Run numbers from `first` until so many inputs were tried; return the exit status.

        Args:
            module: The module to run.
            first: The first number.
            inputs: How many inputs to try.
            patience: Seconds after which a silent child is ended.
            arguments: Further arguments of the module.
            log: A file in which the child notes what it runs.
        """
        peaks: dict[str, list[float]] = {}
        number, done, failed, parted, largest = first, 0, 0, 0, 0.0
        counts: Counter[str] = Counter()
        began = time.monotonic()
        child = _Child(module, arguments)
        deaths = 0  # in a row
        while done < inputs and deaths < 5:
            result = child.ask(number, patience)
            deaths = 0 if result is not None else deaths + 1
            if result is None:
                running = log.read_text() if log is not None and log.exists() else ""
                print(f"{number}: the child {child.end()} {running}", flush=True)
                failed += 1
                child = _Child(module, arguments)
            else:
                done += result["inputs"]
                parted += result.get("parted", 0)
                largest = max(largest, result.get("largest", 0.0))
                counts.update(result.get("counts", {}))
                for name, peak in result.get("peaks", {}).items():
                    peaks[name] = max(peaks.get(name, peak), peak)
                failed += len(result["failures"])
                for failure in result["failures"]:
                    print(f"{number}: {json.dumps(failure, ensure_ascii=True)}", flush=True)
            number += 1
            if number % 50 == 0:
                seconds = round(time.monotonic() - began)
                print(f"... {number}: {done} inputs, {failed} failures, {seconds} s", flush=True)
        child.end()
        print(f"numbers {first} to {number - 1}: {done} inputs, {failed} failures")
        if parted or largest:
            print(f"{parted} parted by rounding, largest difference {largest:.3g} of what may be")
        print(dict(sorted(counts.items())))
        for name, (peak, of) in sorted(peaks.items()):
            print(f"most {name}: {peak:.3g} (number {of:.0f})")
        return bool(failed)

    @staticmethod
    def child(run: Callable[[int], Result]) -> int:
        """Run the numbers that come on stdin."""
        output = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no answer
        for line in sys.stdin:
            output.write(json.dumps(run(int(line)), default=repr) + "\n")
            output.flush()
        return 0


class _Child:
    def __init__(self, module: str, arguments: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", module, "--child", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, number: int, patience: float) -> Result | None:
        """Return the answer; None where the child has died or is silent."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(patience):
                return None
        line = process.stdout.readline()
        result: Result | None = json.loads(line) if line else None
        return result

    def end(self) -> str:
        """End the child and return how it ended."""
        try:
            assert self.process.stdin is not None
            self.process.stdin.close()
            status = self.process.wait(5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()
            return "was silent, and was killed"
        return f"ended with status {status}"


run_in_children = _Runner()
