"""build/toolkit.py: which CUDA toolkit is taken, and how one is put together, without a network."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.build_scripts import debian_package, load, write_wheel

toolkit = load("toolkit")

COMPLETE = (
    "include/cuda_runtime.h", "include/cublas_v2.h",
    "lib64/libcudart.so", "lib64/libcublas.so", "lib64/libcublasLt.so",
)  # fmt: skip


def write_program(path: Path, prints: str) -> None:
    """Write a program that prints a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)


def install(folder: Path, version: str, without: str = "") -> Path:
    """Write what looks like an installed toolkit."""
    write_program(
        folder / "bin" / "nvcc", f"Cuda compilation tools, release {version}, V{version}.1"
    )
    for name in COMPLETE:
        if name != without:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
    return folder


@pytest.mark.parametrize("major", [12, 13])
def test_pins_are_exact(major: int) -> None:
    """Each package has one version and a sha256; the version is the one in the file's name."""
    pins = toolkit.read_pins(major)
    assert (toolkit.HERE / f"cuda-{pins['version']}.toml").is_file()
    for requirement, digest in pins["wheels"].items():
        assert re.fullmatch(r"nvidia-[a-z0-9-]+==[\d.]+", requirement)
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
    deb = pins.get("deb")
    assert deb is None or re.fullmatch(r"[0-9a-f]{64}", deb["sha256"])


@pytest.mark.parametrize(
    ("version", "without", "reason"),
    [
        ("12.4", "", None),
        ("12.8", "", None),
        ("12.3", "", "it has CUDA 12.3, and the wheel needs CUDA 12 from 12.4 on"),
        ("13.0", "", "it has CUDA 13.0, and the wheel needs CUDA 12 from 12.4 on"),
        ("12.4", "include/cublas_v2.h", "it has no cublas_v2.h"),
        ("12.4", "lib64/libcublasLt.so", "it has no libcublasLt.so"),
    ],
)
def test_which_toolkit_fits(version: str, without: str, reason: str | None, tmp_path: Path) -> None:
    """One of the major version, not older than the pinned one, and whole."""
    folder = install(tmp_path / "cuda", version, without)
    assert (reason and f"not used, {reason}") == toolkit.why_unfit(folder, 12, (12, 4))


def test_a_broken_toolkit_is_not_used(tmp_path: Path) -> None:
    """Without an nvcc, and with one that does not run."""
    assert "not used, it has no bin/nvcc" == toolkit.why_unfit(tmp_path, 12, (12, 4))
    write_program(tmp_path / "bin" / "nvcc", "not found")
    assert "not used, its nvcc does not run" == toolkit.why_unfit(tmp_path, 12, (12, 4))
    (tmp_path / "bin" / "nvcc").chmod(0o644)
    assert "not used, its nvcc does not run" == toolkit.why_unfit(tmp_path, 12, (12, 4))


def test_the_first_that_fits_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CUDA_HOME comes first, then CUDA_PATH, and each that is passed over is named."""
    other = install(tmp_path / "cuda-13.0", "13.0")
    fitting = install(tmp_path / "cuda-12.6", "12.6")
    monkeypatch.setenv("CUDA_HOME", str(other))
    monkeypatch.setenv("CUDA_PATH", str(fitting))
    assert (fitting, (12, 6)) == toolkit.find_toolkit(12, tmp_path / "build")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"CUDA toolkit in {other}: not used, it has CUDA 13.0")
    assert lines[-1] == f"CUDA toolkit in {fitting}: used"


def test_a_link_to_nvcc_leads_to_its_toolkit(tmp_path: Path) -> None:
    """An nvcc says where its toolkit is, also from another folder."""
    nvcc = tmp_path / "usr" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho '#$ TOP=/opt/cuda' >&2\n")
    nvcc.chmod(0o755)
    assert Path("/opt/cuda") == toolkit.top_folder(nvcc)


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [({"g++": "12"}, None), ({"g++": "13"}, None), ({"g++": "14", "g++-12": "12"}, "g++-12")],
)
def test_a_compiler_that_nvcc_takes(
    installed: dict[str, str], chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where g++ is too new, an older one beside it is named to CMake."""
    for name, version in installed.items():
        write_program(tmp_path / name, version)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDAHOSTCXX", raising=False)
    expected = {"CUDAHOSTCXX": str(tmp_path / chosen)} if chosen else {}
    assert expected == toolkit.host_compiler(12)


def test_no_compiler_that_nvcc_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names a package to install; CUDAHOSTCXX is the user's own choice."""
    write_program(tmp_path / "g++", "14.2.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDAHOSTCXX", raising=False)
    with pytest.raises(
        SystemExit, match=r"g\+\+ is 14, .* takes 13 at most; .*apt install g\+\+-13"
    ):
        toolkit.host_compiler(12)
    monkeypatch.setenv("CUDAHOSTCXX", "/usr/bin/mine")
    assert {} == toolkit.host_compiler(12)


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Pins of two small wheels and a small Debian package, found in folders, without apt-get."""
    for variable in ("LLCUDA_CUDA_DEB", "PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    nvcc = {"nvidia/cuda_nvcc/include/crt/host.h": b"header", "nvidia/cuda_nvcc/__init__.py": b""}
    runtime = {
        "nvidia/cuda_runtime/lib/libcudart.so.12": b"library",
        "nvidia/cuda_runtime/include/__init__.py": b"",
        "nvidia/cuda_runtime/include/cuda.h": b"driver",
    }
    wheels = {
        "cuda-nvcc==12.4.1": write_wheel(tmp_path, "cuda-nvcc", "12.4.1", nvcc),
        "cuda-runtime==12.4.2": write_wheel(tmp_path, "cuda-runtime", "12.4.2", runtime),
    }
    package = debian_package({"usr/bin/nvcc": b"#!/bin/sh\n", "usr/share/doc/odd": b"text"})
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "nvcc.deb").write_bytes(package)
    return {
        "version": "12.4",
        "wheels": wheels,
        "deb": {
            "package": "nvcc",
            "version": "1",
            "suite": "stable main",
            "path": "nvcc.deb",
            "archives": [f"{tmp_path.as_uri()}/first", f"{tmp_path.as_uri()}/second"],
            "sha256": hashlib.sha256(package).hexdigest(),
            "files": {"usr/bin/nvcc": "bin/nvcc"},
        },
    }


def test_a_toolkit_of_pinned_packages(pins: dict[str, Any], tmp_path: Path) -> None:
    """It has the files of all packages and what they lack, and is made once for the same pins."""
    folder = toolkit.assemble(pins, tmp_path / "build" / "cuda-12.4")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= {
        "bin/nvcc", "bin/nvcc.profile", "include/crt/host.h", "include/cuda.h", "lib/libcudart.so",
        "lib/libcudart.so.12", "lib/libcudart_static.a", "lib/libcudadevrt.a",
    }  # fmt: skip
    assert not [name for name in files if "odd" in name or "__init__" in name]
    assert os.access(folder / "bin" / "nvcc", os.X_OK)
    assert b"library" == (folder / "lib64" / "libcudart.so").read_bytes()

    (tmp_path / "second" / "nvcc.deb").unlink()
    assert folder == toolkit.assemble(pins, folder)
    others = dict.fromkeys(pins["wheels"], "0" * 64)
    with pytest.raises(SystemExit):
        toolkit.assemble({**pins, "wheels": others}, folder)
    assert (folder / "bin" / "nvcc").is_file()
    assert [folder] == list(folder.parent.iterdir())


def test_a_package_of_debian_from_disk(
    pins: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLCUDA_CUDA_DEB is read and nothing downloaded; another file is refused."""
    path = (tmp_path / "second" / "nvcc.deb").rename(tmp_path / "mine.deb")
    monkeypatch.setenv("LLCUDA_CUDA_DEB", str(path))
    assert path.read_bytes() == toolkit.deb_bytes(pins["deb"], tmp_path)
    path.write_bytes(b"other")
    with pytest.raises(
        SystemExit, match=r"LLCUDA_CUDA_DEB=.*mine\.deb has another sha256; it must be nvcc"
    ):
        toolkit.deb_bytes(pins["deb"], tmp_path)
    path.unlink()
    with pytest.raises(SystemExit, match=r"mine\.deb is no file"):
        toolkit.deb_bytes(pins["deb"], tmp_path)


def test_a_package_that_no_archive_has(pins: dict[str, Any], tmp_path: Path) -> None:
    """The error says for each archive why, also for a package with another checksum."""
    (tmp_path / "second" / "nvcc.deb").write_bytes(b"other")
    with pytest.raises(SystemExit) as raised:
        toolkit.deb_bytes(pins["deb"], tmp_path)
    head, first, second, mend = str(raised.value).splitlines()
    assert head == "error: nvcc.deb could not be downloaded"
    assert "first/nvcc.deb" in first and "No such file" in first
    assert second.endswith("second/nvcc.deb: another sha256")
    assert "LLCUDA_CUDA_DEB" in mend and "CUDA_HOME" in mend


def test_a_wheel_with_another_checksum(pins: dict[str, Any], tmp_path: Path) -> None:
    """It is refused, and no toolkit is left."""
    pins["wheels"]["cuda-runtime==12.4.2"] = "0" * 64
    with pytest.raises(SystemExit, match="could not be downloaded"):
        toolkit.assemble(pins, tmp_path / "build" / "cuda-12.4")
    assert [] == list((tmp_path / "build").iterdir())


def test_a_toolkit_that_cannot_be_written(pins: dict[str, Any], tmp_path: Path) -> None:
    """What lies in the way is named, as is a full disk."""
    (tmp_path / "build").touch()
    with pytest.raises(SystemExit, match=r"cannot be written: .*build"):
        toolkit.assemble(pins, tmp_path / "build" / "cuda-12.4")


def test_another_processor(
    pins: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pins are for x86-64."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(SystemExit, match="x86-64 only; install the CUDA toolkit and set CUDA_HOME"):
        toolkit.assemble(pins, tmp_path / "cuda-12.4")


def test_the_archives_of_a_machine(tmp_path: Path) -> None:
    """Both kinds of apt-get's files are read; other archives and comments are left out."""
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text(
        "deb http://one/debian/ trixie main\n# deb http://no/debian x\n"
    )
    (parts / "debian.sources").write_text(
        "Types: deb\n# x\nURIs: https://two/debian\nSuites: trixie\n"
    )
    (parts / "more.list").write_text("deb [arch=amd64] http://three/debian trixie main\n")
    (parts / "security.sources").write_text("URIs: http://two/debian-security\n")
    expected = ["https://two/debian", "http://three/debian", "http://one/debian"]
    assert expected == toolkit.mirrors(tmp_path)
