"""What build/release.py publishes, and what stops it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.build_scripts import load, write_library, write_wheel

release = load("release")

LICENSES = {
    "LICENSE": b"MIT",
    "licenses/NOTICE.txt": b"- A part (llcuda/lib/libpart*.so): see a.txt.",
    "licenses/a.txt": b"MIT",
}
LINUX = "cp311-abi3-manylinux_2_17_x86_64"
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def llcuda_wheel(
    folder: Path, version: str, files: Mapping[str, bytes], tags: str = "py3-none-any"
) -> Path:
    """Write a wheel of llcuda that has these files and licenses."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"llcuda-{version}.dist-info/licenses"
    files = {f"{info}/{name}": content for name, content in LICENSES.items()} | dict(files)
    write_wheel(folder, "llcuda", version, files, tags, "Requires-Python: >=3.11\n")
    return folder / f"llcuda-{version}-{tags}.whl"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The files of a release: a source distribution, a wheel, and one for CUDA 12.4."""
    plain = llcuda_wheel(tmp_path / "dist", "3.0.0", {"llcuda.py": b"kind = 'cpu'\n"})
    cuda = llcuda_wheel(tmp_path / "dist/cuda", "3.0.0+cu124", {"llcuda.py": b"kind = 'cu124'\n"})
    source = tmp_path / "dist" / "llcuda-3.0.0.tar.gz"
    source.write_bytes(b"source")
    return [source, plain, cuda]


@pytest.fixture
def index(files: list[Path], tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The folder of the index and its address at a static server."""
    folder = tmp_path / "index"
    release.write_index(files, folder)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def pip_install(target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Install llcuda into a folder with pip and nothing but these options."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target)]
    command += ["--disable-pip-version-check", *options, "llcuda"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["cpu", "cu124"])
def test_pip_installs_the_kind_that_the_address_names(
    kind: str, index: tuple[Path, str], tmp_path: Path
) -> None:
    """One line, at any static server."""
    result = pip_install(tmp_path / "site", "--index-url", f"{index[1]}/{kind}")
    assert 0 == result.returncode, result.stderr
    assert f"kind = '{kind}'\n" == (tmp_path / "site" / "llcuda.py").read_text()


@pytest.mark.parametrize("suffix", [".whl", ".whl.metadata"])
def test_pip_refuses_a_damaged_file(suffix: str, index: tuple[Path, str], tmp_path: Path) -> None:
    """The link has the checksums of the wheel and of its metadata, which pip reads before it."""
    (file,) = (index[0] / "cpu" / "llcuda").glob(f"*{suffix}")
    file.write_bytes(file.read_bytes() + b"\n")
    result = pip_install(tmp_path / "site", "--index-url", f"{index[1]}/cpu")
    assert 1 == result.returncode
    assert "DO NOT MATCH THE HASHES" in result.stderr


def test_the_first_page_has_the_commands(index: tuple[Path, str]) -> None:
    """It says how to choose between the CPU and CUDA."""
    page = (index[0] / "index.html").read_text()
    assert "pip install &#x27;llcuda[server]&#x27; --extra-index-url URL/cpu" in page
    assert "pip install &#x27;llcuda[server,cuda]&#x27; --extra-index-url URL/cu124" in page


def test_the_checksums(index: tuple[Path, str], files: list[Path]) -> None:
    """Every published file has its line, in the form of sha256sum."""
    lines = (index[0] / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    published = {
        path.relative_to(index[0]).as_posix() for path in index[0].rglob("*") if path.is_file()
    }
    assert published - {"SHA256SUMS"} == set(sums)
    for name, digest in sums.items():
        assert digest == hashlib.sha256((index[0] / name).read_bytes()).hexdigest()


def test_an_index_is_written_anew(files: list[Path], tmp_path: Path) -> None:
    """What an earlier release left is removed."""
    (tmp_path / "index" / "cu118").mkdir(parents=True)
    release.write_index(files, tmp_path / "index")
    assert {"cpu", "cu124", "index.html", "SHA256SUMS"} == {
        path.name for path in (tmp_path / "index").iterdir()
    }


def test_the_files_of_a_release(files: list[Path], tmp_path: Path) -> None:
    """One of each kind, of this version."""
    llcuda_wheel(tmp_path / "dist", "2.9.0", {})
    assert files == release.release_files(tmp_path / "dist", "3.0.0")


def test_files_that_are_missing_or_double(files: list[Path], tmp_path: Path) -> None:
    """The error names them, and what to do."""
    dist = tmp_path / "dist"
    with pytest.raises(SystemExit, match=r"must have one source distribution of version 3\.0\.1"):
        release.release_files(dist, "3.0.1")
    other = files[1].with_name(files[1].name.replace("any", "linux_x86_64"))
    shutil.copy(files[1], other)
    with pytest.raises(SystemExit, match=r"one wheel without CUDA .* remove the wrong ones"):
        release.release_files(dist, "3.0.0")
    other.unlink()
    shutil.copy(files[2], files[2].with_name(files[2].name.replace("any", "linux_x86_64")))
    with pytest.raises(SystemExit, match=r"two wheels of 3\.0\.0\+cu124; remove one"):
        release.release_files(dist, "3.0.0")


def test_a_library_without_a_notice(tmp_path: Path) -> None:
    """Whoever bundles something says under which license."""
    release.check_notice(llcuda_wheel(tmp_path, "3.0.0", {"llcuda/lib/libpart-1.so": b""}))
    wheel = llcuda_wheel(tmp_path, "3.0.0", {"llcuda/lib/libother.so.1": b""})
    with pytest.raises(SystemExit, match=r"bundles llcuda/lib/libother\.so\.1, which licenses"):
        release.check_notice(wheel)


@pytest.mark.parametrize("name", ["licenses/a.txt", "LICENSE"])
def test_a_license_that_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notice names it."""
    monkeypatch.delitem(LICENSES, name)
    with pytest.raises(SystemExit, match=f"lacks llcuda-3.0.0.dist-info/licenses/{name}"):
        release.check_notice(llcuda_wheel(tmp_path, "3.0.0", {}))


@needs_cc
def test_the_libraries_of_a_wheel(tmp_path: Path) -> None:
    """A wheel may need CUDA's if its version says so, and nothing newer than its name says."""
    write_library(tmp_path / "libpart.so", "\t.text\n", ("libcublas.so.12",))
    content = {"llcuda/lib/libpart.so": (tmp_path / "libpart.so").read_bytes()}
    with pytest.raises(SystemExit, match=r"needs libcublas\.so\.12, which no package"):
        release.check_libraries(llcuda_wheel(tmp_path, "3.0.0", content, LINUX))
    with pytest.raises(SystemExit, match="and its name says less"):
        tags = LINUX.replace("manylinux_2_17", "manylinux_2_1")
        release.check_libraries(llcuda_wheel(tmp_path, "3.0.0", content, tags))
    release.check_libraries(llcuda_wheel(tmp_path, "3.0.0+cu124", content, LINUX))
