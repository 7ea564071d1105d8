"""How much memory is free, and what llama.cpp's log says where it was short, as one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from llcuda.errors import ContextError, LlcudaError, ModelError, TensorError

MIB = 2**20
NOTHING = 64 * MIB  # of a GPU: below, an error of CUDA is taken to be for want of memory
SIGNS = ("out of memory", "bad_alloc", "failed to allocate", "unable to allocate")
Place = tuple[str, int, int]


def shortage(lines: str, kind: type[LlcudaError], places: Callable[[], Sequence[Place]]) -> str:
    """Return what was asked, what is free and what to do; "" where memory is not the reason.

    kind: of the error without it. places: name, free and total bytes of each GPU, or of the
    machine's memory where there is none.
    """
    known = any(sign in lines for sign in SIGNS)
    if not known and "CUDA error" not in lines:
        return ""
    present = places()
    if not known and all(free >= NOTHING for _, free, _ in present):
        return ""
    text = "too little memory"
    if found := re.findall(r"allocating ([\d.]+) MiB on device (\d+)", lines):
        size, device = found[-1]
        text += f": {float(size):,.0f} MiB more were asked of CUDA{device}"
    elif found := re.findall(r"buffer of size (\d+)", lines):
        text += f": {int(found[-1]) / MIB:,.0f} MiB more were asked"
    text += "".join(
        f", {free / MIB:,.0f} of {total / MIB:,.0f} MiB are free on {name}"
        for name, free, total in present
    )
    ways = ["free some"]
    if kind is not TensorError and any(name != "CPU" for name, _, _ in present):
        ways.append("give fewer gpu_layers")
    if issubclass(kind, ContextError):
        ways.append("a smaller ctx_size, fewer sequences, type_k and type_v of 'q8_0'")
    elif not issubclass(kind, ModelError | TensorError):
        ways.append("a smaller ubatch_size")
    return f"{text}; {', or '.join(ways)}"


def available_memory() -> int:
    """Return the bytes that this process may still take, by the system and its control group."""
    amounts = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            amounts.append(int(line.split()[1]) * 1024)
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, taken = (_read(f"/sys/fs/cgroup/{name}").strip() for name in (most, used))
        if limit.isdigit() and taken.isdigit():
            amounts.append(max(int(limit) - int(taken), 0))
    return min(amounts)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
