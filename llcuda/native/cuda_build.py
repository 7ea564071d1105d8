"""What the CUDA backend of the package was compiled with and for, and which GPUs can use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Version = tuple[int, int]
REQUIRED_CAPABILITY = (7, 5)  # Turing, the first with int8 tensor cores, which the kernels use
# The first driver that knows each CUDA version, and so its PTX (CUDA Toolkit release notes, "CUDA
# Toolkit and Corresponding Driver Versions"). Machine code needs only the first of a major version
# (CUDA compatibility guide, "minor version compatibility").
DRIVERS: dict[Version, int] = {
    (12, 0): 525, (12, 1): 530, (12, 2): 535, (12, 3): 545, (12, 4): 550, (12, 5): 555,
    (12, 6): 560, (12, 8): 570, (12, 9): 575, (13, 0): 580, (13, 1): 590,
}  # fmt: skip
WHEELS: dict[int, Version] = {12: (12, 4), 13: (13, 0)}  # CUDA of the wheels that llcuda has
REBUILD = "in llcuda's source folder: pip install --no-cache-dir ."
WITH_CUDA = f"{REBUILD} --config-settings=cmake.define.LLCUDA_CUDA=ON"
REINSTALL = "pip install --force-reinstall --no-deps with the file of one llcuda wheel"
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
class Driver:
    """The NVIDIA driver of a machine.

    Attributes:
        cuda: The newest CUDA version that it runs; None if unknown.
        number: Its own version, as "550.54.15"; "" if unknown.
    """

    cuda: Version | None = None
    number: str = ""

    def __str__(self) -> str:
        return f"the NVIDIA driver {self.number}".rstrip()


@dataclass
class RuntimeLibraries:
    """The run-time libraries of CUDA that this process has.

    Attributes:
        paths: The file of each, by its name; "" where it is not known.
        missing: The names of those that no folder has.
        errors: Why files that are there are not used, one sentence each.
    """

    paths: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


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

    def driver_problem(
        self, driver: Driver | None, capability: Version | None = None
    ) -> Remark | None:
        """Return why a driver runs nothing of the backend; None if it does, or is unknown.

        Args:
            driver: The driver.
            capability: The compute capability of the GPU, if known.
        """
        if not (self.version and driver and driver.cuda):
            return None
        runs, major = driver.cuda[0], self.version[0]
        if runs >= major:
            return None
        is_ptx = capability is not None and self.runs_as_ptx(capability)
        mend = f"install driver {_first_driver(self.version if is_ptx else (major, 0))}"
        if runs in WHEELS:
            mend = f"{_install(runs, driver, capability)}, or {mend}"
        elif major > min(WHEELS):
            mend = f"{with_wheel(driver, capability)}, or {mend}"
        return Remark(
            f"{driver} is too old: it runs CUDA {_text(driver.cuda)} at most, and this llcuda was"
            f" built with {_text(self.version)}",
            mend,
        )

    def problem(self, capability: Version, driver: Driver | None) -> Remark | None:
        """Return why a GPU cannot use the backend; None if it can.

        Machine code runs with every driver of the same major version of CUDA. PTX is compiled by
        the driver, which must know the version of CUDA that it was made with.

        Args:
            capability: The compute capability of the GPU.
            driver: The driver.
        """
        remark = self.driver_problem(driver, capability)
        if remark is not None or not self.runs_as_ptx(capability):
            return remark
        build = f"build with LLCUDA_CUDA_ARCHITECTURES={capability[0]}{capability[1]}"
        if not any(code <= capability for code in self.ptx):
            what = f"this llcuda has no code for compute capability {_text(capability)} ({self})"
            return Remark(what, build)
        if not (self.version and driver and driver.cuda) or driver.cuda >= self.version:
            return None
        mend = f"install driver {_first_driver(self.version)}, or {build}"
        wheels = [m for m, made in WHEELS.items() if m < self.version[0] and made <= driver.cuda]
        if wheels:
            mend = f"{_install(max(wheels), driver, capability)}, or {mend}"
        return Remark(
            f"{driver} is too old to compile this llcuda's PTX: it knows CUDA"
            f" {_text(driver.cuda)}, and the PTX is of {_text(self.version)}; there is no machine"
            f" code for compute capability {_text(capability)} ({self})",
            mend,
        )

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


def gpu_problem(
    name: str, capability: Version, build: CudaBuild | None, driver: Driver | None
) -> Remark | None:
    """Return why llcuda cannot use a GPU; None if it can.

    Args:
        name: The name of the GPU.
        capability: The compute capability of the GPU.
        build: The CUDA code in the library; None without any.
        driver: The driver.
    """
    has = f"{name} has compute capability {_text(capability)}"
    if capability < REQUIRED_CAPABILITY:
        return Remark(f"{has}, and GPU work needs 7.5 or higher", "take a newer GPU")
    if build is not None:
        return build.problem(capability, driver)
    mend = f"{with_wheel(driver, capability)}, or {WITH_CUDA}"
    return Remark(f"{has}, but this llcuda was built without CUDA", mend)


def with_wheel(driver: Driver | None, capability: Version | None = None) -> str:
    """Return how to install the wheel that runs with the most drivers.

    Args:
        driver: The driver of this machine; the wheel may need a newer one.
        capability: The compute capability of the GPU, if known.
    """
    major = min(WHEELS)
    if driver is None or driver.cuda is None or driver.cuda[0] >= major:
        return _install(major, driver, capability)
    is_ptx = capability is not None and capability[0] != REQUIRED_CAPABILITY[0]
    needed = WHEELS[major] if is_ptx else (major, 0)
    return f"install driver {_first_driver(needed)} and {_install(major)}"


def loading_problem(build: CudaBuild | None, driver: Driver | None) -> Remark | None:
    """Return why the CUDA backend of the package need not be loaded; None if it may work.

    Args:
        build: How it was built; None if the binding knows of none.
        driver: The driver; None without one.
    """
    if build is None:
        return Remark("the CUDA backend is a leftover of another llcuda", REINSTALL)
    if driver is None:
        return Remark(
            "the CUDA backend finds no NVIDIA driver (libcuda.so.1)",
            "install the driver, or run where there is a GPU",
        )
    return build.driver_problem(driver)


def no_gpu(error: str, build: CudaBuild, libraries: RuntimeLibraries) -> Remark:
    """Return why the CUDA backend has no GPU after it was loaded.

    Args:
        error: What was logged while it was loaded.
        build: How it was built.
        libraries: The run-time libraries that it was given.
    """
    if "driver version is insufficient" in error:
        what = "the NVIDIA driver is too old for the CUDA run-time library"
        return Remark(what, f"install a newer driver, or {_install(min(WHEELS))}")
    if not error or "no CUDA-capable device" in error:
        return Remark("the CUDA backend sees no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    if match := re.search(r"lib(?:cudart|cublas)\w*\.so\.\d+(?=: cannot open)", error):
        absent = " and ".join(libraries.missing or [match[0]])
        why = f" ({'; '.join(libraries.errors)})" if libraries.errors else ""
        return Remark(f"the CUDA backend does not find {absent}{why}", _bring(build))
    if "undefined symbol" in error and re.search(r"cudart|cublas", error, re.IGNORECASE):
        used = ", ".join(path for path in libraries.paths.values() if path)
        major = build.version[0] if build.version else min(WHEELS)
        suffix = f"-cu{major}" if major < 13 else ""
        return Remark(
            f"the CUDA libraries {used} do not fit this llcuda ({error.splitlines()[-1]})",
            f"pip install --upgrade nvidia-cublas{suffix} nvidia-cuda-runtime{suffix}, or load a"
            " model before another package, such as torch, loads its own libraries",
        )
    return Remark(f"the CUDA backend does not work ({error})", WITH_CUDA)


def cache_is_empty(environment: Mapping[str, str]) -> bool:
    """Return whether the driver has cached no compiled code yet, so that the next run compiles.

    Args:
        environment: The environment variables, such as os.environ.
    """
    place = Path(environment.get("CUDA_CACHE_PATH") or Path.home() / ".nv" / "ComputeCache")
    return not place.is_dir() or not any(place.iterdir())


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _first_driver(version: Version) -> str:
    """Return the first driver of a CUDA version, as the end of "install driver"."""
    number = DRIVERS.get(version)
    return f"{number} or newer" if number else f"of CUDA {_text(version)} or newer"


def _install(major: int, driver: Driver | None = None, capability: Version | None = None) -> str:
    """Return how to install the wheel of a CUDA version, and how it is made.

    Every wheel has machine code for the required compute capability. A driver that cannot compile
    the wheel's PTX needs machine code for its GPU.
    """
    made, make = WHEELS[major], "make wheel-cuda"
    if major != min(WHEELS):
        make += f" CUDA={major}"
    is_old = driver is not None and driver.cuda is not None and driver.cuda < made
    if is_old and capability is not None and capability[0] != REQUIRED_CAPABILITY[0]:
        make += f" ARCHITECTURES='75;{capability[0]}{capability[1]}'"
    file = f"llcuda-VERSION+cu{made[0]}{made[1]}-TAGS.whl"
    return f"pip install '{file}[{_extra(major)}]' ({make})"


def _bring(build: CudaBuild) -> str:
    extra = _extra(build.version[0] if build.version else min(WHEELS))
    return f"pip install 'llcuda[{extra}]', which brings CUDA's run-time libraries"


def _extra(major: int) -> str:
    """Return the extra that brings the run-time libraries of a CUDA version."""
    return "cuda" if major == min(WHEELS) else f"cuda{major}"
