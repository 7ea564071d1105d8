"""Bring the pinned libraries of the chat page to vendor/page, once.

Reads page.toml, downloads those packages from the npm registry, refuses another checksum, takes
their files for browsers and prints the folder's path as the last line. It needs no node.

npm_config_registry=https://... names another registry; LLCUDA_PAGE_PACKAGES=/folder takes the
packages from there (offline machines).
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import shutil
import sys
import tarfile
import tempfile
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fetch import VENDOR, by_address

PINS = Path(__file__).resolve().parent / "page.toml"
FOLDER = VENDOR / "page"
STAMP = ".llcuda-pins"
REGISTRY = "https://registry.npmjs.org"
WITHOUT = "--config-settings=cmake.define.LLCUDA_PAGE_LIBRARIES=OFF"


def main() -> None:
    """Print the folder of the libraries, fetching them when they are not there."""
    text = PINS.read_text()
    stamp = FOLDER / STAMP
    if not stamp.is_file() or stamp.read_text() != text:
        VENDOR.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=VENDOR) as work:
            folder = Path(work) / "page"
            for name, pin in tomllib.loads(text).items():
                unpack(name, package_bytes(name, pin), pin["files"], folder)
            (folder / STAMP).write_text(text)
            shutil.rmtree(FOLDER, ignore_errors=True)
            folder.rename(FOLDER)
    print(FOLDER)


def file_name(name: str, pin: dict[str, Any]) -> str:
    """Return the file name of a package in the registry, e.g. katex-0.19.1.tgz."""
    return f"{name.rpartition('/')[2]}-{pin['version']}.tgz"


def package_bytes(name: str, pin: dict[str, Any]) -> bytes:
    """Return a package with the pinned checksum, from a file or from the registry."""
    registry = os.environ.get("npm_config_registry") or REGISTRY  # noqa: SIM112  # npm's spelling
    own = os.environ.get("LLCUDA_PAGE_PACKAGES")
    source = f"{registry.rstrip('/')}/{name}/-/{file_name(name, pin)}"
    try:
        if own:
            source = str(Path(own) / file_name(name, pin))
            content = Path(source).read_bytes()
        else:
            content = by_address(source)
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.exit(
            f"error: {name} {pin['version']}, a library of the chat page, could not be read from "
            f"{source} ({error}). Set npm_config_registry to an npm registry that you reach, or "
            f"LLCUDA_PAGE_PACKAGES to a folder with the packages that build/page.toml names, or "
            f"build without them ({WITHOUT}): the page then shows answers as plain text."
        )
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if digest != pin["sha512"]:
        sys.exit(
            f"error: {source} has sha512 {digest}, build/page.toml wants {pin['sha512']}. Do not "
            f"use it: take the package of that version, or build without it ({WITHOUT})."
        )
    return content


def unpack(name: str, content: bytes, files: dict[str, str], folder: Path) -> None:
    """Write the named files of a package, which lie below package/ in it."""
    missing = set(files)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            path = member.name.removeprefix("package/")
            pattern = next((pattern for pattern in files if fnmatch(path, pattern)), None)
            source = archive.extractfile(member) if pattern else None
            if pattern is None or source is None:
                continue
            target = files[pattern]
            sink = folder / (target + Path(path).name if target.endswith("/") else target)
            sink.parent.mkdir(parents=True, exist_ok=True)
            sink.write_bytes(source.read())
            missing.discard(pattern)
    if missing:
        sys.exit(
            f"error: the package {name} lacks {', '.join(sorted(missing))}; mend build/page.toml"
        )


if __name__ == "__main__":
    main()
