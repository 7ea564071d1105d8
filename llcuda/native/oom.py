"""How much memory is free, and what llama.cpp's log says of too little memory, as one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from llcuda.errors import ContextError, LlcudaError, ModelError, TensorError

MIB = 2**20
FULL_GPU = 64 * MIB  # free bytes of a GPU, below which an error of CUDA is taken as out of memory
SIGNS = ("out of memory", "bad_alloc", "failed to allocate", "unable to allocate")
FreeMemory = tuple[str, int, int]


def oom_message(
    log: str, kind: type[LlcudaError], free_memory: Callable[[], Sequence[FreeMemory]]
) -> str:
    """Return a sentence on what was asked for, what is free and what to do.

    Args:
        log: The last lines of the C log.
        kind: The error without this reason; what to do depends on it.
        free_memory: Returns the name, the free and the total bytes of each GPU, or of the machine's
            memory without a GPU.

    Returns:
        The sentence; empty if the log does not tell of too little memory.
    """
    is_known = any(sign in log for sign in SIGNS)
    if not is_known and "CUDA error" not in log:
        return ""
    devices = free_memory()
    if not is_known and all(free >= FULL_GPU for _, free, _ in devices):
        return ""
    text = "too little memory"
    if requests := re.findall(r"allocating ([\d.]+) MiB on device (\d+)", log):
        size, device = requests[-1]
        text += f": {float(size):,.0f} MiB more were asked of CUDA{device}"
    elif requests := re.findall(r"buffer of size (\d+)", log):
        text += f": {int(requests[-1]) / MIB:,.0f} MiB more were asked"
    text += "".join(
        f", {free / MIB:,.0f} of {total / MIB:,.0f} MiB are free on {name}"
        for name, free, total in devices
    )
    remedies = ["free some"]
    if kind is not TensorError and any(name != "CPU" for name, _, _ in devices):
        remedies.append("give fewer gpu_layers")
    if issubclass(kind, ContextError):
        remedies.append("a smaller ctx_size, fewer sequences, type_k and type_v of 'q8_0'")
    elif not issubclass(kind, ModelError | TensorError):
        remedies.append("a smaller ubatch_size")
    return f"{text}; {', or '.join(remedies)}"


def available_memory() -> int:
    """Return the bytes that this process may still take, by the system and its control group."""
    amounts = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            amounts.append(int(line.split()[1]) * 1024)
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, usage = (
            _read(f"/sys/fs/cgroup/{name}").strip() for name in (limit_file, usage_file)
        )
        if limit.isdigit() and usage.isdigit():
            amounts.append(max(int(limit) - int(usage), 0))
    return min(amounts)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
