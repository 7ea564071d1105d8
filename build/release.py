"""Make a release in dist/index: checked files in a package index that any static host serves.

It builds the source distribution and the wheel without CUDA, and takes the CUDA wheels of this
version that `make wheel-cuda` left in dist/cuda/. Each file is checked before it is published:
twine reads its metadata, auditwheel its libraries, and the notice must name what it bundles.

dist/index has a folder for each kind of wheel, cpu, cu124 and so on, in the form of PEP 503 with
the metadata of PEP 658 and 714 beside each wheel; index.html, the commands that install; and
SHA256SUMS, for `sha256sum --check`.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import BytesHeaderParser
from html import escape
from pathlib import Path
from urllib.parse import quote

from wheel import OUTSIDE, ROOT

DIST = ROOT / "dist"
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="pypi:repository-version" content="1.0">
<title>{title}</title>
</head>
<body>
{body}
</body>
</html>
"""


def main() -> None:
    """Build the files of a release, check them and write the index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--no-build", action="store_true", help="publish the files that are in dist/ already"
    )
    options = parser.parse_args()
    if not options.no_build:
        python = sys.executable
        subprocess.run([python, "-m", "build", "--sdist", "--outdir", DIST, ROOT], check=True)
        subprocess.run([python, str(ROOT / "build" / "wheel.py"), "--cuda=OFF"], check=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    files = release_files(DIST, version)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    for wheel in files:
        if wheel.suffix == ".whl":
            check_libraries(wheel)
            check_notice(wheel)
    write_index(files, DIST / "index")
    for path in sorted((DIST / "index").rglob("*")):
        if path.is_file():
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


def release_files(folder: Path, version: str) -> list[Path]:
    """Return the source distribution and the wheels of a version, one of each kind.

    Args:
        folder: Where they are; wheels with CUDA are in its subfolder cuda/.
        version: The version, without the local part.
    """
    sources = sorted(folder.glob(f"llcuda-{version}.tar.gz"))
    plain = sorted(folder.glob(f"llcuda-{version}-*.whl"))
    for what, found in (("source distribution", sources), ("wheel without CUDA", plain)):
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            sys.exit(
                f"error: {folder} must have one {what} of version {version}, and has {names}; "
                "remove the wrong ones, or run 'make release' without --no-build"
            )
    with_cuda = sorted((folder / "cuda").glob(f"llcuda-{version}+*.whl"))
    versions = [path.name.split("-")[1] for path in with_cuda]
    if twice := sorted({name for name in versions if versions.count(name) > 1}):
        sys.exit(f"error: {folder / 'cuda'} has two wheels of {', '.join(twice)}; remove one")
    return [*sources, *plain, *with_cuda]


# --- checks ---


def check_libraries(wheel: Path) -> None:
    """Stop if a wheel needs more of the system than its name says, or libraries of unknown origin.

    Args:
        wheel: The wheel.
    """
    command = [sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"error: auditwheel cannot read {wheel.name}: {result.stderr.strip()}")
    facts = json.loads(result.stdout)
    named, needed = (
        max(map(int, re.findall(r"manylinux_2_(\d+)", name)), default=0)
        for name in (wheel.name, facts["sym_tag"])
    )
    if not named >= needed > 0:
        sys.exit(
            f"error: {wheel.name} needs {facts['sym_tag']}, and its name says less; "
            "build it with 'make wheel' or 'make wheel-cuda'"
        )
    outside = OUTSIDE if "+cu" in wheel.name else ()
    for name in facts["external_libs"]:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in outside):
            sys.exit(f"error: {wheel.name} needs {name}, which no package of its extras brings")
    print(f"{wheel.name}: {facts['sym_tag']}, outside: {list(facts['external_libs']) or 'nothing'}")


def check_notice(wheel: Path) -> None:
    """Stop if licenses/NOTICE.txt does not name what a wheel bundles, or a license is missing.

    Args:
        wheel: The wheel.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        folder = f"{dist_info(names)}/licenses"
        if f"{folder}/licenses/NOTICE.txt" not in names:
            sys.exit(f"error: {wheel.name} has no licenses/NOTICE.txt")
        notice = " ".join(archive.read(f"{folder}/licenses/NOTICE.txt").decode().split())
    patterns = re.findall(r"llcuda[\w.-]*/[\w./*-]*[\w*]", notice)
    patterns += [f"{pattern}/*" for pattern in patterns] + ["*/LICENSE*"]
    for name in names:
        bundled = name.startswith(("llcuda/lib/", "llcuda.libs/"))
        if bundled and not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            sys.exit(f"error: {wheel.name} bundles {name}, which licenses/NOTICE.txt does not name")
    wanted = [f"{folder}/LICENSE"]
    wanted += [f"{folder}/licenses/{name}" for name in re.findall(r"see ([\w.-]+\.txt)", notice)]
    if missing := [name for name in wanted if name not in names]:
        sys.exit(f"error: {wheel.name} lacks {', '.join(missing)}")


def dist_info(names: Iterable[str]) -> str:
    """Return the folder of a wheel's metadata.

    Args:
        names: The names of the wheel's files.
    """
    (folder,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    return folder


# --- the index ---


def kind_of(file: Path) -> str:
    """Return the folder of the index for a file: cpu, or the CUDA of its version, e.g. cu124."""
    local = re.match(r"llcuda-[^-+]+\+([a-z0-9]+)", file.name)
    return local[1] if local else "cpu"


def write_index(files: Iterable[Path], folder: Path) -> None:
    """Write a package index of files anew.

    Args:
        files: A source distribution and wheels.
        folder: The folder for it. What was in it is removed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    links: dict[str, list[str]] = {}
    for file in files:
        kind = kind_of(file)
        place = folder / kind / "llcuda"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place / file.name)
        links.setdefault(kind, []).append(link(place / file.name))
    for kind, anchors in links.items():
        body = "\n".join(f"{anchor}<br>" for anchor in anchors)
        write_page(folder / kind / "llcuda", "Links for llcuda", body)
        write_page(folder / kind, f"llcuda, {kind}", '<a href="llcuda/">llcuda</a>')
    write_page(folder, "llcuda", "\n".join(commands(sorted(links))))
    content = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = (f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in content)
    (folder / "SHA256SUMS").write_text("".join(sums))


def link(file: Path) -> str:
    """Return the link to a file for a page of PEP 503; write a wheel's metadata beside it."""
    attributes = ""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            metadata = archive.read(f"{dist_info(archive.namelist())}/METADATA")
        beside = file.with_name(f"{file.name}.metadata")
        beside.write_bytes(metadata)
        if python := BytesHeaderParser().parsebytes(metadata)["Requires-Python"]:
            attributes += f' data-requires-python="{escape(python)}"'
        # PEP 714 names it core-metadata; the older name is for pip before 23.2.
        for name in ("core-metadata", "dist-info-metadata"):
            attributes += f' data-{name}="sha256={sha256(beside)}"'
    address = f"{quote(file.name)}#sha256={sha256(file)}"
    return f'<a href="{address}"{attributes}>{escape(file.name)}</a>'


def commands(kinds: Iterable[str]) -> Iterable[str]:
    """Yield the lines of the first page: for each kind of wheel the command that installs it."""
    yield "<p>Replace URL by the address of this page.</p>"
    for kind in kinds:
        extras = "server" if kind == "cpu" else f"server,{'cuda13' if kind > 'cu13' else 'cuda'}"
        command = f"pip install 'llcuda[{extras}]' --extra-index-url URL/{kind}"
        yield f'<p><a href="{kind}/">{kind}</a>: <code>{escape(command)}</code></p>'


def write_page(folder: Path, title: str, body: str) -> None:
    """Write a folder's index.html."""
    (folder / "index.html").write_text(PAGE.format(title=escape(title), body=body))


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
