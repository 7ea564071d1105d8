"""A million tokens in one process, and resident memory on the way: it must stay flat.

`python benchmarks/endurance.py [TOKENS]`. Sixteen texts decode in one batch, each with its own
sampler; a text that ends or fills its context begins anew with a new sampler. Prints resident
memory ten times on the way, then one JSON line; a rise of more than 2 % after the first tenth is
status 1.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from llcuda import Context, Model, Sampler

ROWS = 16


def resident() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> int:
    """Generate, look at the memory, judge."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    made, readings, started = 0, [], time.perf_counter()
    with (
        Model("demo") as model,
        Context(model, ctx_size=512, sequences=ROWS, unified_kv=False) as context,
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
        while made < wanted:
            context.decode_batch(tokens, list(range(ROWS)))
            for seq in range(ROWS):
                tokens[seq] = samplers[seq].sample(context, seq)
            made += ROWS
            for seq in range(ROWS):
                model.piece(tokens[seq])
                if model.is_eog(tokens[seq]) or context.n_past(seq) >= 511:
                    begin(seq, made)
            if made * 10 // wanted > len(readings):
                readings.append(resident())
                print(f"{made:>9,} tokens {readings[-1] / 2**20:.1f} MiB", flush=True)
    rise = readings[-1] / readings[0] - 1
    rate = made / (time.perf_counter() - started)
    print(json.dumps({"tokens": made, "tokens_per_second": rate, "rise": rise}))
    return int(rise > 0.02)


if __name__ == "__main__":
    sys.exit(main())
