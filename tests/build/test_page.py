"""build/page.py: the chat page's libraries from pinned packages, without a network."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import re
import shutil
import tarfile
import threading
import tomllib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.build_scripts import load

FILES = {"package/dist/a.mjs": b"export default 1;", "package/fonts/x.woff2": b"font",
         "package/fonts/y.ttf": b"other", "package/LICENSE": b"MIT"}  # fmt: skip


def npm_package(files: Mapping[str, bytes]) -> bytes:
    """Return a package as npm packs one."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def pins(content: bytes, files: str) -> str:
    """Return the pins of one package, in the words of page.toml."""
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return f'["@scope/one"]\nversion = "1.2"\nsha512 = "{digest}"\nfiles = {{ {files} }}\n'


GOOD = '"dist/a.mjs" = "a.mjs", "fonts/*.woff2" = "fonts/", LICENSE = "a.LICENSE"'


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with one package of its own in a folder."""
    module = load("page")
    content = npm_package(FILES)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "one-1.2.tgz").write_bytes(content)
    (tmp_path / "page.toml").write_text(pins(content, GOOD))
    monkeypatch.setattr(module, "PINS", tmp_path / "page.toml")
    monkeypatch.setattr(module, "VENDOR", tmp_path / "vendor")
    monkeypatch.setattr(module, "FOLDER", tmp_path / "vendor" / "page")
    monkeypatch.setenv("LLCUDA_PAGE_PACKAGES", str(tmp_path / "packages"))
    monkeypatch.delenv("npm_config_registry", raising=False)
    return module


def laid_out(script: ModuleType) -> set[str]:
    """Return the files that were written."""
    paths = script.FOLDER.rglob("*")
    return {path.relative_to(script.FOLDER).as_posix() for path in paths if path.is_file()}


def test_pins_are_exact() -> None:
    """Each package has one version and a sha512, and brings its license."""
    for name, pin in tomllib.loads(load("page").PINS.read_text()).items():
        assert re.fullmatch(r"(@[a-z]+/)?[a-z-]+", name)
        assert re.fullmatch(r"\d+\.\d+\.\d+", pin["version"])
        assert len(base64.b64decode(pin["sha512"], validate=True)) == 64
        assert "LICENSE" in pin["files"]


def test_the_named_files_are_taken(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others are not; the second time nothing is read; other pins are fetched again."""
    script.main()
    assert capsys.readouterr().out == f"{script.FOLDER}\n"
    expected = {"a.mjs", "fonts/x.woff2", "a.LICENSE", ".llcuda-pins"}
    assert laid_out(script) == expected
    assert (script.FOLDER / "a.mjs").read_bytes() == b"export default 1;"
    package = tmp_path / "packages" / "one-1.2.tgz"
    content = package.read_bytes()
    package.unlink()
    script.main()
    package.write_bytes(content)
    script.PINS.write_text(pins(content, '"dist/a.mjs" = "b.mjs"'))
    script.main()
    assert laid_out(script) == {"b.mjs", ".llcuda-pins"}


def test_a_link_or_a_path_outside_writes_nothing_there(script: ModuleType, tmp_path: Path) -> None:
    """Only the pins decide where a file lies."""
    content = npm_package({"package/../../dist/a.mjs": b"x", "../dist/a.mjs": b"x"})
    (tmp_path / "packages" / "one-1.2.tgz").write_bytes(content)
    script.PINS.write_text(pins(content, '"*a.mjs" = "a.mjs"'))
    script.main()
    assert laid_out(script) == {"a.mjs", ".llcuda-pins"}


@pytest.mark.parametrize("content", [b"", b"other", npm_package({"package/dist/a.mjs": b"evil"})])
def test_another_checksum_is_refused(script: ModuleType, tmp_path: Path, content: bytes) -> None:
    """The build stops, and what was there stays."""
    script.main()
    (tmp_path / "packages" / "one-1.2.tgz").write_bytes(content)
    script.PINS.write_text(script.PINS.read_text() + "\n")
    with pytest.raises(SystemExit, match=r"has sha512 .*, build/page.toml wants .*=OFF"):
        script.main()
    assert "a.mjs" in laid_out(script)


def test_a_missing_file_is_named(script: ModuleType, tmp_path: Path) -> None:
    """A package of another layout stops the build."""
    content = (tmp_path / "packages" / "one-1.2.tgz").read_bytes()
    script.PINS.write_text(pins(content, '"dist/a.mjs" = "a.mjs", "dist/b.mjs" = "b.mjs"'))
    with pytest.raises(SystemExit, match=r"the package @scope/one lacks dist/b.mjs"):
        script.main()


def test_a_missing_package_says_what_to_do(script: ModuleType, tmp_path: Path) -> None:
    """The message names the package, the three ways out and what the last one costs."""
    (tmp_path / "packages" / "one-1.2.tgz").unlink()
    with pytest.raises(SystemExit) as stopped:
        script.main()
    message = str(stopped.value)
    for part in ("@scope/one 1.2", "npm_config_registry", "LLCUDA_PAGE_PACKAGES", "plain text"):
        assert part in message
    assert "--config-settings=cmake.define.LLCUDA_PAGE_LIBRARIES=OFF" in message


@pytest.fixture
def registry(script: ModuleType, tmp_path: Path) -> Iterator[str]:
    """An npm registry of this machine, with the same package."""
    folder = tmp_path / "registry" / "npm" / "@scope" / "one" / "-"
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "packages" / "one-1.2.tgz", folder)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "registry")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_registry_can_be_another(
    script: ModuleType, registry: str, slash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is npm's own."""
    monkeypatch.delenv("LLCUDA_PAGE_PACKAGES")
    monkeypatch.setenv("npm_config_registry", f"{registry}/npm{slash}")
    script.main()
    assert "a.mjs" in laid_out(script)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/", "no address", "ftp://127.0.0.1:9"])
def test_a_registry_that_does_not_answer(
    script: ModuleType, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build stops with a sentence."""
    monkeypatch.delenv("LLCUDA_PAGE_PACKAGES")
    monkeypatch.setenv("npm_config_registry", address)
    with pytest.raises(SystemExit, match="could not be read from"):
        script.main()
