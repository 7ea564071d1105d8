"""Where the time of a decode step on the GPU goes, by kind of kernel, and what the host takes.

`python benchmarks/profile_step.py MODEL... [--rows 1,4,16,64,256] [--steps 40] [--bf16-copies]
[--names]` runs `llcuda bench`'s loop over the engine (top_k 40, top_p 0.9, temperature 0.7) twice:
plain, and under CUPTI through torch's profiler (it needs the packages torch and rich). A step is
taken from the end of one sampling to the end of the next; of the steps with the usual number of
kernels the last ones count, and a figure is the mean of a step's microseconds:

- host: from the end of sampling to the first kernel of the next step, copies of inputs included;
  plain host: the same without the profiler, as the plain step less the profiled time on the GPU
- matrices, conversions (types and quantized activations), output matrix, attention, small (norms,
  rope, set_rows, GLU, additions, scales), sampling, copies: while such a kernel runs
- between: no kernel runs, inside a step
- profiled and plain: the whole step with and without the profiler; it slows kernels down, those of
  CUDA graphs above all, so only the shares hold where the two differ
- kernels; graphs and launches: calls of the driver, replayed CUDA graphs and single kernels
- rebuilt, reused: plain steps without sampling whose sequences change with every step, so that
  llama.cpp builds its graph anew and launches each kernel, and those that stay (of 255 sequences
  instead of 256)

--names also prints the kernels of each kind. Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llcuda import Context, Model
from llcuda.bench.loops import (
    CTX_SIZE,
    PROMPT_TOKENS,
    RequestLoop,
    make_prompt,
    median_interval,
)

KINDS = {
    "sampling": r"\b(adjust|group_max|pick_best|draw_\w+|weigh|weigh_chunks|find_cut)\b",
    "attention": r"flash_attn|soft_max",
    "conversions": r"convert_unary|quantize_|dequantize_|cpy_",
    "matrices": r"mul_mat|gemm|gemv|nvjet|cutlass|xmma|splitK|compute_batched_ptrs",
    "small": r"norm|rope|set_rows|get_rows|gated_op|unary_op|bin_bcast|scale_f32|softcap",
}
LINES = (
    "host", "plain host", "matrices", "conversions", "output matrix", "attention", "small",
    "sampling", "copies", "other", "between", "profiled", "plain", "kernels", "graphs", "launches",
    "rebuilt", "reused",
)  # fmt: skip
Event = dict[str, Any]


def kind_of(event: Event) -> str:
    """Return the kind of a kernel or copy on the GPU."""
    if event["cat"] != "kernel":
        return "copies"
    return next((kind for kind, names in KINDS.items() if re.search(names, event["name"])), "other")


def trace(loop: RequestLoop, steps: int) -> list[Event]:
    """Return what the profiler saw of a turn, by time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        loop.run(steps)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    return sorted((event for event in events if "dur" in event), key=lambda event: event["ts"])


def split(events: Sequence[Event]) -> list[list[Event]]:
    """Return the work on the GPU of each step: what follows one sampling, up to the next's end."""
    steps: list[list[Event]] = [[]]
    sampled = False
    for event in events:
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        event["kind"] = kind_of(event)
        if event["kind"] == "copies" and sampled:
            continue  # of the tokens, and of the next step's inputs
        if event["kind"] != "sampling" and sampled:
            steps.append([])
        sampled = event["kind"] == "sampling"
        steps[-1].append(event)
    return steps


def analyse(events: Sequence[Event], count: int) -> tuple[dict[str, float], Counter[str]]:
    """Return the means of the last `count` usual steps, and the microseconds of each kernel."""
    steps = split(events)
    sizes = [sum(event["cat"] == "kernel" for event in step) for step in steps]
    usual = statistics.mode(sizes[1:-1])
    chosen = [i for i in range(1, len(steps) - 1) if sizes[i - 1] == sizes[i] == usual][-count:]
    totals: defaultdict[str, float] = defaultdict(float, kernels=usual * len(chosen))
    names: Counter[str] = Counter()
    for i in chosen:
        began = position = end(steps[i - 1][-1])
        last_norm = max(n for n, event in enumerate(steps[i]) if "norm" in event["name"])
        for n, event in enumerate(steps[i]):
            totals["between" if n else "host"] += max(event["ts"] - position, 0)
            busy = max(end(event) - max(event["ts"], position), 0)
            after = event["kind"] == "matrices" and n > last_norm
            kind = "output matrix" if after else event["kind"]
            totals[kind] += busy
            names[f"{kind}: {event['name'][:90]}"] += busy / len(chosen)
            position = max(position, end(event))
        totals["profiled"] += position - began
    first, last = end(steps[chosen[0] - 1][-1]), end(steps[chosen[-1]][-1])
    for event in events:
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and first <= event["ts"] <= last:
            totals["graphs"] += "GraphLaunch" in event["name"]
            totals["launches"] += "LaunchKernel" in event["name"]
    return {name: total / len(chosen) for name, total in totals.items()}, names


def end(event: Event) -> float:
    """Return when an event ended, in microseconds."""
    return float(event["ts"] + event["dur"])


def rebuilt(model: Model, rows: int, steps: int) -> Iterator[tuple[str, float]]:
    """Yield the microseconds of a step whose sequences change with every step, and stay."""
    rows = min(rows, 255)
    with Context(
        model, sequences=rows + 1, ctx_size=CTX_SIZE, unified_kv=False, batch_size=512,
        outputs_max=rows + 1, device_logits=True,
    ) as context:  # fmt: skip
        for seq in range(rows + 1):
            context.decode(make_prompt(model, PROMPT_TOKENS), seq)
        for name, shift in (("rebuilt", 1), ("reused", 0)):
            times = []
            for step in range(steps):
                first = shift * (step % 2)
                context.decode_batch(make_prompt(model, rows), list(range(first, first + rows)))
                context.synchronize()
                times.append(time.perf_counter())
            yield name, 1e6 * median_interval(times[8:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--rows", default="1,4,16,64,256", help="texts at once")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--bf16-copies", action="store_true", help="of quantized matrices")
    parser.add_argument("--names", action="store_true", help="also print each kind's kernels")
    options = parser.parse_args()
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        sys.exit("error: there is no GPU to profile")
    # CUPTI must be there before llama.cpp captures a graph, or its kernels are not seen.
    with profile(activities=[ProfilerActivity.CUDA]):
        torch.ones(1, device="cuda").sum().item()
    console = Console(width=100)
    counts = [int(number) for number in options.rows.split(",")]
    document = []
    for path in options.models:
        columns = []
        with Model(path, gpu_layers=99, bf16_copies=options.bf16_copies) as model:
            for rows in counts:
                with RequestLoop(model, rows, None) as loop:
                    loop.run(8)
                    plain = 1e6 * loop.run(options.steps)
                    column, names = analyse(trace(loop, options.steps), options.steps)
                column |= {"plain": plain, **dict(rebuilt(model, rows, options.steps))}
                column["plain host"] = plain - (column["profiled"] - column["host"])
                columns.append(column)
                document.append({"model": path.name, "rows": rows, **column})
                if options.names:
                    for name, us in names.most_common(40):
                        console.print(f"{rows:4} rows {us:8.1f} us  {name}", markup=False)
        table = Table(f"{path.name}, us a step", *map(str, counts), box=None)
        for line in LINES:
            table.add_row(line, *(f"{column.get(line, 0):,.0f}" for column in columns))
        console.print(table)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
