"""What the CUDA backend of the package was compiled with and for, and which GPUs can use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Version = tuple[int, int]
# The first driver of each CUDA version (CUDA compatibility guide, "minor version compatibility").
DRIVERS = {12: "525", 13: "580"}
REBUILD = "in llcuda's source folder: pip install --no-cache-dir ."
WITH_CUDA = f"{REBUILD} --config-settings=cmake.define.LLCUDA_CUDA=ON"
JIT_SECONDS = "36 to 90 seconds on an H200"


@dataclass(frozen=True, slots=True)
class Remark:
    """A finding about a machine.

    Attributes:
        what: The finding, one sentence.
        mend: The command to type, or what to do.
    """

    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}"


@dataclass(frozen=True, slots=True)
class CudaBuild:
    """How a CUDA backend was built.

    Attributes:
        version: Version of the toolkit; None if unknown.
        machine: Compute capabilities that it has machine code for; empty if unknown.
        ptx: Compute capabilities that it has PTX for; empty if unknown.
    """

    version: Version | None = None
    machine: tuple[Version, ...] = ()
    ptx: tuple[Version, ...] = ()

    def __str__(self) -> str:
        parts = [f"CUDA {_text(self.version)}" if self.version else "CUDA"]
        for name, codes in (("machine code", self.machine), ("PTX", self.ptx)):
            if codes:
                parts.append(f"{name} for {', '.join(map(_text, codes))}")
        return ", ".join(parts)

    def runs_as_ptx(self, capability: Version) -> bool:
        """Return whether a GPU runs PTX, which its driver compiles first.

        Machine code runs on GPUs of the same major capability and the same or a higher minor one.

        Args:
            capability: The compute capability of the GPU.
        """
        usable = [code for code in self.machine if code[0] == capability[0] and code <= capability]
        return bool(self.machine or self.ptx) and not usable

    def problem(self, capability: Version, driver: Version | None) -> Remark | None:
        """Return why a GPU cannot use the backend; None if it can.

        Args:
            capability: The compute capability of the GPU.
            driver: The newest CUDA version that the driver runs; None if unknown.
        """
        if self.version and driver and driver[0] < self.version[0]:
            needed = DRIVERS.get(self.version[0])
            return Remark(
                f"the NVIDIA driver is too old: it runs CUDA {_text(driver)} at most, and this"
                f" llcuda was built with {_text(self.version)}",
                f"install driver {f'{needed} or ' if needed else ''}newer,"
                f" or build llcuda with CUDA {driver[0]}",
            )
        if not self.runs_as_ptx(capability):
            return None
        build = f"build with LLCUDA_CUDA_ARCHITECTURES={capability[0]}{capability[1]}"
        if not any(code <= capability for code in self.ptx):
            what = f"this llcuda has no code for compute capability {_text(capability)} ({self})"
            return Remark(what, build)
        if self.version and driver and driver < self.version:
            return Remark(
                f"the NVIDIA driver is too old to compile this llcuda's PTX: it knows CUDA"
                f" {_text(driver)}, and the PTX is of {_text(self.version)}",
                f"install a newer driver, or {build}",
            )
        return None

    def first_run(self, capability: Version, environment: Mapping[str, str]) -> Remark | None:
        """Return that the driver compiles PTX at the first run; None if it does not.

        Args:
            capability: The compute capability of the GPU.
            environment: The environment variables, such as os.environ.
        """
        if not self.runs_as_ptx(capability):
            return None
        when, where = "at the first run", environment.get("CUDA_CACHE_PATH", "~/.nv")
        kept, mend = f"and keeps the result in {where}", "wait once"
        if environment.get("CUDA_CACHE_DISABLE") == "1":
            when, kept = "at every start", "since CUDA_CACHE_DISABLE=1 lets it keep nothing"
            mend = "unset that"
        return Remark(
            f"the driver compiles code for compute capability {_text(capability)} {when}, which"
            f" takes a minute or two ({JIT_SECONDS}), {kept}",
            f"{mend}, or build with LLCUDA_CUDA_ARCHITECTURES={capability[0]}{capability[1]}",
        )


def parse(version: str, architectures: str) -> CudaBuild:
    """Return a build from the names that CMake gives it.

    Args:
        version: Version of the toolkit, as "13.0".
        architectures: Architectures, as "75,90-real,120a"; others, as "native", are left out.
    """
    machine, ptx = [], []
    for name in architectures.split(","):
        match = re.fullmatch(r"(\d+)(\d)[af]?(-real|-virtual)?", name.strip())
        if match is None:
            continue
        code = int(match[1]), int(match[2])
        if match[3] != "-virtual":
            machine.append(code)
        if match[3] != "-real":
            ptx.append(code)
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return CudaBuild(
        (int(numbers[1]), int(numbers[2])) if numbers else None, tuple(machine), tuple(ptx)
    )


def missing_library(error: str) -> Remark | None:
    """Return what the linker's message on the CUDA backend means; None for another message.

    Args:
        error: The message.
    """
    if "libcuda.so" in error:
        return Remark(
            "the CUDA backend finds no NVIDIA driver (libcuda.so.1)",
            "install the driver, or run where there is a GPU",
        )
    match = re.search(r"lib(cudart|cublas)\w*\.so\.(\d+)", error)
    if match is None:
        return None
    extra = "cuda" if int(match[2]) >= 13 else f"cuda{match[2]}"
    return Remark(
        f"the CUDA backend does not find {match[0]}",
        f"pip install 'llcuda[{extra}]', which brings CUDA's run-time libraries",
    )


def no_gpu(error: str) -> Remark:
    """Return why the CUDA backend has no GPU.

    Args:
        error: What was logged while it was loaded.
    """
    if "driver version is insufficient" in error:
        what = "the NVIDIA driver is too old for the CUDA run-time library"
        return Remark(what, "install a newer driver, or build llcuda with an older CUDA")
    if not error or "no CUDA-capable device" in error:
        return Remark("the CUDA backend sees no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return missing_library(error) or Remark(f"the CUDA backend does not work ({error})", WITH_CUDA)


def cache_is_empty(environment: Mapping[str, str]) -> bool:
    """Return whether the driver has cached no compiled code yet, so that the next run compiles.

    Args:
        environment: The environment variables, such as os.environ.
    """
    place = Path(environment.get("CUDA_CACHE_PATH") or Path.home() / ".nv" / "ComputeCache")
    return not place.is_dir() or not any(place.iterdir())


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
