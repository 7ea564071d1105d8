"""Find an installed CUDA toolkit, or put one together from pinned packages.

The pins are in cuda-VERSION.toml: wheels from the package index, which pip downloads, and for CUDA
12 the compiler from a package of Debian, which apt-get or urllib downloads. Each file has a
checksum. Nothing is installed into the system, and no tool of Debian is needed to unpack its
package.

LLCUDA_CUDA_DEB=/path/to.deb takes that package from there (for machines that reach no archive of
Debian).
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from fetch import by_address, pip_download

HERE = Path(__file__).resolve().parent
Version = tuple[int, int]
PROFILE = """\
TOP                = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH              += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES          += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES         =+ $(_SPACE_) "-L$(TOP)/lib64"
"""


def read_pins(major: int) -> dict[str, Any]:
    """Return the pinned packages of a major version of CUDA."""
    (path,) = HERE.glob(f"cuda-{major}.*.toml")
    return tomllib.loads(path.read_text())


def find_toolkit(major: int, build: Path) -> tuple[Path, Version]:
    """Return a toolkit of this major version, installed or put together, and its version.

    Args:
        major: The major version.
        build: The folder in which one is put together.
    """
    pins = read_pins(major)
    oldest = parse(pins["version"])
    for place in places(major):
        unfit = why_unfit(place, major, oldest)
        print(f"CUDA toolkit in {place}: {unfit or 'used'}", flush=True)
        if unfit is None:
            return place, nvcc_version(place)
    return assemble(pins, build / f"cuda-{pins['version']}"), oldest


# --- installed toolkits ---


def places(major: int) -> Iterator[Path]:
    """Yield the folders of installed toolkits, CUDA_HOME's first, each once."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    on_path = shutil.which("nvcc")
    candidates = [Path(home) for home in homes if home]
    candidates += [top_folder(Path(on_path))] if on_path else []
    candidates += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob(f"cuda-{major}*"))]
    seen: set[Path] = set()
    for folder in candidates:
        real = folder.resolve()
        if real not in seen and (os.environ.get("CUDA_HOME") == str(folder) or real.is_dir()):
            seen.add(real)
            yield real


def top_folder(nvcc: Path) -> Path:
    """Return the toolkit of an nvcc, which may be a link or a script elsewhere."""
    command = [str(nvcc), "--dryrun", "-c", "-x", "cu", "/dev/null"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    top = re.search(r"TOP=(.*)", shown)
    return Path(top[1]) if top else nvcc.parent.parent


def nvcc_version(toolkit: Path) -> Version:
    """Return the version of a toolkit's nvcc, (0, 0) if it does not run."""
    try:
        command = [str(toolkit / "bin" / "nvcc"), "--version"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return (0, 0)
    release = re.search(r"release (\d+\.\d+)", answer)
    return parse(release[1]) if release else (0, 0)


def why_unfit(toolkit: Path, major: int, oldest: Version) -> str | None:
    """Return why a toolkit cannot build a wheel for this major version; None if it can."""
    if not (toolkit / "bin" / "nvcc").is_file():
        return "not used, it has no bin/nvcc"
    version = nvcc_version(toolkit)
    if version == (0, 0):
        return "not used, its nvcc does not run"
    if version[0] != major or version < oldest:
        needed = f"CUDA {major} from {text(oldest)} on"
        return f"not used, it has CUDA {text(version)}, and the wheel needs {needed}"
    target = f"targets/{platform.machine()}-linux"
    for name in ("cuda_runtime.h", "cublas_v2.h"):
        if not any((toolkit / at / name).is_file() for at in ("include", f"{target}/include")):
            return f"not used, it has no {name}"
    for name in ("libcudart.so", "libcublas.so", "libcublasLt.so"):
        if not any((toolkit / at / name).exists() for at in ("lib64", "lib", f"{target}/lib")):
            return f"not used, it has no {name}"
    return None


def host_compiler(major: int) -> dict[str, str]:
    """Return the environment variable that names a C++ compiler which nvcc takes, if one is needed.

    Args:
        major: The major version of CUDA.
    """
    newest = read_pins(major)["gcc"]
    if "CUDAHOSTCXX" in os.environ or not (default := shutil.which("g++")):
        return {}
    command = [default, "-dumpversion"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    version = int(answer.split(".")[0]) if answer[:1].isdigit() else 0
    if version <= newest:
        return {}
    names = [f"g++-{number}" for number in range(newest, 8, -1)]
    if older := next(filter(None, map(shutil.which, names)), None):
        return {"CUDAHOSTCXX": older}
    sys.exit(
        f"error: g++ is {version}, and nvcc of CUDA {major} takes {newest} at most; install one, "
        f"e.g. 'apt install g++-{newest}', or set CUDAHOSTCXX to it"
    )


# --- a toolkit of pinned packages ---


def assemble(pins: dict[str, Any], folder: Path) -> Path:
    """Put the pinned packages into `folder` as one toolkit, once, and return it."""
    noted, parts = folder / "pins.txt", repr([pins["wheels"], pins.get("deb")])
    if noted.is_file() and noted.read_text() == parts:
        print(f"CUDA toolkit in {folder}: used", flush=True)
        return folder
    if platform.machine() != "x86_64":
        sys.exit(
            f"error: no CUDA {pins['version']} is installed, and its packages are pinned for "
            "x86-64 only; install the CUDA toolkit and set CUDA_HOME to it"
        )
    print(f"CUDA toolkit in {folder}: made of pinned packages", flush=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            toolkit = Path(work) / "toolkit"
            for wheel in download_wheels(pins["wheels"], Path(work)):
                unpack_wheel(wheel, toolkit)
                wheel.unlink()
            if deb := pins.get("deb"):
                unpack_deb(deb_bytes(deb, Path(work)), deb["files"], toolkit)
            finish(toolkit)
            (toolkit / noted.name).write_text(parts)
            shutil.rmtree(folder, ignore_errors=True)
            toolkit.rename(folder)
    except OSError as error:
        sys.exit(f"error: the CUDA toolkit in {folder} cannot be written: {error}")
    return folder


def download_wheels(wheels: dict[str, str], folder: Path) -> list[Path]:
    """Download wheels by name==version and sha256 into `folder`."""
    result = pip_download(wheels, folder, "--only-binary=:all:")
    paths = sorted(folder.glob("*.whl"))
    if result.returncode or len(paths) != len(wheels):
        sys.stderr.write(result.stderr)
        sys.exit(
            "error: the packages of the CUDA toolkit could not be downloaded (pip's message is "
            f"above): {', '.join(wheels)}; install the CUDA toolkit and set CUDA_HOME to it"
        )
    return paths


def unpack_wheel(wheel: Path, toolkit: Path) -> None:
    """Unpack bin, include, lib and nvvm of one of NVIDIA's wheels, below nvidia/PART/ there."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            place = re.fullmatch(r"nvidia/[^/]+/((?:bin|include|lib|nvvm)/.*[^/])", member.filename)
            if place and not place[1].endswith("__init__.py"):
                target = toolkit / place[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)


def deb_bytes(deb: dict[str, Any], work: Path) -> bytes:
    """Return Debian's package, with the pinned checksum, from a file, apt-get or an archive."""
    if own := os.environ.get("LLCUDA_CUDA_DEB"):
        content = Path(own).read_bytes() if Path(own).is_file() else None
        if content is None or hashlib.sha256(content).hexdigest() != deb["sha256"]:
            what = "is no file" if content is None else "has another sha256"
            sys.exit(
                f"error: LLCUDA_CUDA_DEB={own} {what}; it must be {deb['path']}, {deb['sha256']}"
            )
        return content
    failures = []
    for name, download in ways(deb, work):
        try:
            content = download()
        except (OSError, subprocess.SubprocessError) as error:
            failures.append(f"{name}: {error}")
            continue
        if hashlib.sha256(content).hexdigest() == deb["sha256"]:
            return content
        failures.append(f"{name}: another sha256")
    sys.exit(
        "\n  ".join([f"error: {deb['path']} could not be downloaded", *failures])
        + "\nDownload it elsewhere and set LLCUDA_CUDA_DEB to it, or install the CUDA toolkit and "
        "set CUDA_HOME to it."
    )


def ways(deb: dict[str, Any], work: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the ways to download Debian's package, and their names: apt-get, then addresses."""
    if shutil.which("apt-get"):
        for archive in dict.fromkeys([*mirrors(Path("/etc/apt")), deb["archives"][0]]):
            yield f"apt-get, {archive}", partial(by_apt, deb, archive, work)
    for archive in deb["archives"]:
        address = f"{archive}/{deb['path']}"
        yield address, partial(by_address, address)


def mirrors(folder: Path) -> Iterable[str]:
    """Return the archives of Debian that apt-get of this machine uses.

    Args:
        folder: The folder of its settings.
    """
    texts = [path.read_text() for path in sorted(folder.glob("sources.list.d/*.sources"))]
    texts += [path.read_text() for path in sorted(folder.glob("sources.list*/*.list"))]
    if (folder / "sources.list").is_file():
        texts.append((folder / "sources.list").read_text())
    lines = [line for content in texts for line in content.splitlines()]
    used = [line for line in lines if re.match(r"(URIs:|deb )", line)]
    return re.findall(r"\w+://\S+/debian(?=/?(?:\s|$))", "\n".join(used))


def by_apt(deb: dict[str, Any], archive: str, work: Path) -> bytes:
    """Return the package that apt-get downloads, with settings and lists of its own in `work`."""
    state = Path(tempfile.mkdtemp(dir=work))
    for name in ("lists/partial", "cache/archives/partial", "deb"):
        (state / name).mkdir(parents=True)
    # The checksum of the package is pinned, so the archive's signature is not needed.
    (state / "sources.list").write_text(f"deb [trusted=yes] {archive} {deb['suite']}\n")
    options = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": 30,
    }
    command = [
        "apt-get",
        "--quiet",
        *(f"--option={name}={value}" for name, value in options.items()),
    ]
    for arguments in (["update"], ["download", f"{deb['package']}={deb['version']}"]):
        subprocess.run(
            [*command, *arguments],
            cwd=state / "deb",
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=900,
        )
    (package,) = (state / "deb").iterdir()
    return package.read_bytes()


def unpack_deb(content: bytes, files: dict[str, str], toolkit: Path) -> None:
    """Unpack the named files of a Debian package: a compressed tar archive in an ar archive."""
    with tarfile.open(fileobj=BytesIO(ar_member(content, "data.tar"))) as archive:
        for member in archive:
            target = files.get(member.name.removeprefix("./"))
            source = archive.extractfile(member) if target else None
            if target and source:
                path = toolkit / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    if missing := [name for name, target in files.items() if not (toolkit / target).is_file()]:
        sys.exit(f"error: Debian's package lacks {', '.join(missing)}")


def ar_member(content: bytes, name: str) -> bytes:
    """Return the first member of an ar archive whose name begins so (ar(5): heads of 60 bytes)."""
    at = 8  # "!<arch>\n"
    while at + 60 <= len(content):
        head, size = content[at : at + 16].decode(), int(content[at + 48 : at + 58])
        if head.startswith(name):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise OSError(f"the Debian package has no {name}")


def finish(toolkit: Path) -> None:
    """Make programs executable, and add what the packages lack: names for the linker, a profile."""
    for program in [*toolkit.glob("bin/*"), *toolkit.glob("nvvm/bin/*")]:
        if program.is_file() and not program.suffix:
            program.chmod(0o755)
    (toolkit / "lib64").symlink_to("lib")
    for library in toolkit.glob("lib/lib*.so.*"):
        (library.parent / f"{library.name.partition('.so.')[0]}.so").symlink_to(library.name)
    profile = toolkit / "bin" / "nvcc.profile"
    if not profile.is_file():
        profile.write_text(PROFILE)
    # CMake's test of the compiler links these two: the shared library stands for the first, and the
    # second is empty.
    if not (toolkit / "lib" / "libcudart_static.a").is_file():
        (toolkit / "lib" / "libcudart_static.a").write_text("INPUT(libcudart.so)\n")
        (toolkit / "lib" / "libcudadevrt.a").write_text("!<arch>\n")


def parse(version: str) -> Version:
    """Return a version as two numbers."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def text(version: Version) -> str:
    """Return a version as users write it."""
    return f"{version[0]}.{version[1]}"


if __name__ == "__main__":
    print(find_toolkit(int(sys.argv[1]), HERE.parent / ".build")[0])
