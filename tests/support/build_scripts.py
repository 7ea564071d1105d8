"""The scripts in build/ and packaging/ as modules, and small files of the kinds that they read."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

BUILD = Path(__file__).parents[2] / "build"


def load(name: str, folder: Path = BUILD) -> ModuleType:
    """Return a script as a module; it imports others by the names that they have in its folder.

    Args:
        name: The script's name without ".py".
        folder: The folder.
    """
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"build_{name}", folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    tags: str = "py3-none-any",
    metadata: str = "",
) -> str:
    """Write a wheel that pip accepts; return its sha256.

    Args:
        folder: The folder for it.
        name: The name of the package.
        version: Its version.
        files: The contents by path.
        tags: The tags of its name.
        metadata: Further lines of its metadata.
    """
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    texts = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n",
    }
    contents = {**files, **{path: text.encode() for path, text in texts.items()}}
    lines = [f"{info}/RECORD,,\n"]
    for path, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}\n")
    wheel = folder / f"{module}-{version}-{tags}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/RECORD", "".join(lines))
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def debian_package(files: Mapping[str, bytes]) -> bytes:
    """Return a Debian package with these files, as dpkg-deb writes one."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(f"./{path}")
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    package = b"!<arch>\n"
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}
    for name, content in members.items():
        package += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        package += content + b"\n" * (len(content) % 2)
    return package


def write_library(path: Path, assembly: str, needed: tuple[str, ...] = ()) -> None:
    """Assemble a shared library that needs others, of which only the names exist.

    Args:
        path: The library.
        assembly: Its source for GNU's assembler.
        needed: Names of libraries that it needs.
    """
    stubs = []
    for name in needed:
        stub = path.with_name(f"stub-{name}")
        shared = ["cc", "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-o", str(stub)]
        subprocess.run([*shared, "-x", "c", "/dev/null"], check=True)
        stubs.append(str(stub))
    source = path.with_suffix(".s")
    source.write_text(assembly)
    command = ["cc", "-shared", "-nostdlib", "-Wl,--no-as-needed", "-o", str(path)]
    subprocess.run([*command, str(source), *stubs], check=True)
