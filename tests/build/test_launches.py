"""No GPU below compute capability 9.0 gets programmatic dependent launches, by llama.cpp's source.

Its device code is compiled from 9.0 on, and its launches ask which code of a kernel was loaded:
PTX of 7.5 that the driver compiles for a newer GPU has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "vendor" / "llama.cpp" / "ggml" / "src" / "ggml-cuda"
SHIM = ROOT / "llcuda" / "native" / "shim"
# The functions of CUDA that wait for a kernel before, and let the next one begin.
DEVICE = ("cudaGridDependencySynchronize", "cudaTriggerProgrammaticLaunchCompletion")
HOST = ("cudaLaunchKernelEx", "cudaLaunchKernelExC")
GUARD = "__CUDA_ARCH__ >= GGML_CUDA_CC_HOPPER"


def guarded_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each line with the conditions of the preprocessor that it stands under."""
    conditions: list[str] = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        match = re.match(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b(.*)", line)
        if match is None:
            yield line, conditions
        elif match[1] == "endif":
            conditions.pop()
        elif match[1] in ("elif", "else"):
            conditions[-1] = match[2].strip() if match[1] == "elif" else f"not ({conditions[-1]})"
        else:
            conditions.append(match[2].strip())


def code(path: Path) -> str:
    """Return a source without its comments."""
    return re.sub(r"//.*", "", path.read_text())


def sources() -> list[Path]:
    """Return the CUDA sources of llama.cpp and of llcuda."""
    if not KERNELS.is_dir():
        pytest.skip("needs the source of llama.cpp in vendor/, which a build unpacks")
    return [path for folder in (KERNELS, SHIM) for path in folder.rglob("*.cu*")]


def test_device_code_begins_at_hopper() -> None:
    """Each use of the device functions stands under the condition of 9.0."""
    uses = [
        (path.name, conditions[:])
        for path in sources()
        for line, conditions in guarded_lines(code(path))
        if any(name in line for name in DEVICE)
    ]
    assert len(uses) >= len(DEVICE)
    for name, conditions in uses:
        guard = [c for c in conditions if GUARD in c and not c.startswith("not")]
        assert guard, f"{name}: {conditions}"


def test_launches_ask_for_the_code_that_was_loaded() -> None:
    """The one function with such launches asks first whether a kernel's PTX is of 9.0 or newer."""
    users = [path for path in sources() if any(f"{name}(" in code(path) for name in HOST)]
    assert [path.name for path in users] == ["common.cuh"]
    text = code(users[0])
    assert text.count("cudaLaunchKernelEx(") == 1
    launch = text[text.index("static __inline__ void ggml_cuda_kernel_launch(") :]
    asks = launch.index("ggml_cuda_kernel_can_use_pdl(")
    assert asks < launch.index("cudaLaunchKernelEx(")
    assert "can_use_pdl = attr.ptxVersion >= 90;" in text
