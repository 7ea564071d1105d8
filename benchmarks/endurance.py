"""Resident memory of one process over a million tokens, which must stay flat.

`python benchmarks/endurance.py [TOKENS]`. Sixteen sequences decode in one batch, each with its own
sampler. A sequence that ends or fills its context begins again with a new sampler. Prints resident
memory ten times, then one JSON line. The exit status is 1 if memory rises by more than 2 % after
the first tenth.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

from llcuda import Context, Model, Sampler

ROWS = 16
CTX_SIZE = 512
MAX_RISE = 0.02


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> int:
    """Generate, read the memory, and return the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("tokens", nargs="?", type=int, default=1_000_000)
    total = parser.parse_args().tokens
    count, readings, started = 0, [], time.perf_counter()
    with (
        Model("demo") as model,
        Context(model, ctx_size=CTX_SIZE, sequences=ROWS, unified_kv=False) as context,
    ):
        prompt = model.tokenize("Once upon a time")
        samplers = [Sampler(seed=i, temperature=1.0) for i in range(ROWS)]
        tokens = [0] * ROWS

        def begin(seq: int, seed: int) -> None:
            context.memory.remove(seq)
            context.decode(prompt, seq=seq)
            samplers[seq] = Sampler(seed=seed, temperature=1.0, repeat_penalty=1.05)
            tokens[seq] = samplers[seq].sample(context)

        for seq in range(ROWS):
            begin(seq, seq)
        while count < total:
            context.decode_batch(tokens, list(range(ROWS)))
            for seq in range(ROWS):
                tokens[seq] = samplers[seq].sample(context, seq)
            count += ROWS
            for seq in range(ROWS):
                model.piece(tokens[seq])
                if model.is_eog(tokens[seq]) or context.n_past(seq) >= CTX_SIZE - 1:
                    begin(seq, count)
            if count * 10 // total > len(readings):
                readings.append(resident_bytes())
                print(f"{count:>9,} tokens {readings[-1] / 2**20:.1f} MiB", flush=True)
    rise = readings[-1] / readings[0] - 1
    rate = count / (time.perf_counter() - started)
    print(json.dumps({"tokens": count, "tokens_per_second": rate, "rise": rise}))
    return int(rise > MAX_RISE)


if __name__ == "__main__":
    sys.exit(main())
