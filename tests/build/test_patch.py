"""build/patch.py over the pinned source, where it was fetched, and over changed copies of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "vendor" / "llama.cpp"
PATCHES = {
    path.stem: tomllib.loads(path.read_text())
    for path in sorted((ROOT / "build" / "patches").glob("*.toml"))
}
FILES = sorted({edit["file"] for patch in PATCHES.values() for edit in patch["edits"]})

pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="llama.cpp was not fetched")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Copies of the files that patches name and of one more, and a folder of git's."""
    for file in [*FILES, "LICENSE"]:
        copy = tmp_path / "source" / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / file, copy)
    (tmp_path / "source" / ".git").mkdir()
    (tmp_path / "source" / ".git" / "HEAD").write_text("ref")
    return tmp_path / "source"


def lay_out(source: Path, *choice: str, fails: bool = False) -> str:
    """Run the script; return what it prints, or its error."""
    command = [sys.executable, ROOT / "build" / "patch.py", source, source.parent / "tree", *choice]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert bool(result.returncode) == fails, result.stderr
    return result.stderr if fails else result.stdout.strip()


def texts(folder: Path) -> dict[str, str]:
    """Return the text of each file below a folder, but for git's."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        name: path.read_text()
        for path in files
        if not (name := str(path.relative_to(folder))).startswith(".git")
    }


def dates(source: Path) -> dict[str, int]:
    """Return when each file that patches name was written in the tree."""
    return {file: (source.parent / "tree" / file).stat().st_mtime_ns for file in FILES}


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_says_why_and_is_turned_off_by_its_switch(name: str) -> None:
    patch = PATCHES[name]
    assert patch["why"].strip() and patch["figure"].strip()
    assert patch["switch"] == "LLCUDA_NO_" + name.upper().replace("-", "_")
    assert any(f'getenv("{patch["switch"]}")' in edit["text"] for edit in patch["edits"])
    for edit in patch["edits"]:
        (kind,) = {"before", "after", "instead_of"} & set(edit)
        assert edit[kind].count("\n") <= 3  # an anchor, no passage


def test_every_patch_applies_to_the_pinned_source(source: Path) -> None:
    """The script prints them and the files it copied, and the copies hold what they insert."""
    names, copied = lay_out(source, "ON").splitlines()
    assert ",".join(PATCHES) == names
    assert [str(source / file) for file in FILES] == copied.split(";")
    result = texts(source.parent / "tree")
    for patch in PATCHES.values():
        for edit in patch["edits"]:
            assert 1 == result[edit["file"]].count(edit["text"])
    assert texts(SOURCE / "src")["llama-kv-cache.cpp"] != result["src/llama-kv-cache.cpp"]
    assert (source / "LICENSE") == (source.parent / "tree" / "LICENSE").readlink()


@pytest.mark.parametrize("name", PATCHES)
def test_one_patch_alone(name: str, source: Path) -> None:
    needed = PATCHES[name].get("needs", [])
    assert ",".join(sorted([name, *needed])) == lay_out(source, name, *needed).splitlines()[0]
    result = texts(source.parent / "tree")
    changed = {file for file in FILES if result[file] != (source / file).read_text()}
    assert {edit["file"] for kept in [name, *needed] for edit in PATCHES[kept]["edits"]} == changed


def test_the_source_itself_is_never_changed(source: Path) -> None:
    before = texts(source)
    lay_out(source, "ON")
    assert before == texts(source)


def test_a_patched_tree_is_not_patched_again(source: Path) -> None:
    """A second run writes nothing, so nothing is compiled again."""
    lay_out(source, "ON")
    before, written = texts(source.parent / "tree"), dates(source)
    lay_out(source, "ON")
    assert before == texts(source.parent / "tree")
    assert written == dates(source)


def test_off_gives_the_pristine_text_with_a_new_date(source: Path) -> None:
    """The date of the pristine file would be older than the object file of the patched one."""
    lay_out(source, "ON")
    written = dates(source)
    lay_out(source, "OFF")
    assert texts(source) == texts(source.parent / "tree")
    assert all(written[file] < date for file, date in dates(source).items())


def test_turning_one_patch_off_writes_its_files_only(source: Path) -> None:
    lay_out(source, "ON")
    written = dates(source)
    first, *others = PATCHES
    lay_out(source, *others)
    concerned = {edit["file"] for edit in PATCHES[first]["edits"]}
    assert concerned == {file for file, date in dates(source).items() if date != written[file]}


@pytest.mark.parametrize("count", [0, 2])
def test_an_anchor_that_moved_stops_the_build(count: int, source: Path) -> None:
    """The message names the patch, the file, the anchor and the option; OFF builds nevertheless."""
    name = "single-ubatch"
    (edit,) = PATCHES[name]["edits"]
    path = source / edit["file"]
    path.write_text(path.read_text().replace(edit["after"], edit["after"] * count))
    error = lay_out(source, "ON", fails=True)
    assert f"the patch {name} does not apply to {path}" in error
    assert f"'{edit['after'].strip()}' occurs {count} times, expected once" in error
    assert "cmake.define.LLCUDA_PATCHES=OFF" in error
    assert 1 == error.count("\n")
    lay_out(source, *(other for other in PATCHES if other != name))
    lay_out(source, "OFF")
    assert texts(source) == texts(source.parent / "tree")


def test_a_source_without_the_files_is_built_without_patches(source: Path) -> None:
    (source / FILES[0]).unlink()
    assert "occurs 0 times" in lay_out(source, "ON", fails=True)
    lay_out(source, "OFF")
    assert texts(source) == texts(source.parent / "tree")


def test_the_tree_follows_its_source(source: Path) -> None:
    """New files appear, deleted ones go, an edit is seen in copies too."""
    lay_out(source, "ON")
    (source / "LICENSE").unlink()
    (source / "new").mkdir()
    (source / "new" / "file.cpp").write_text("int x;")
    (source / FILES[0]).write_text((source / FILES[0]).read_text() + "// mine\n")
    lay_out(source, "ON")
    result = texts(source.parent / "tree")
    assert {*FILES, "new/file.cpp"} == set(result)
    assert result[FILES[0]].endswith("// mine\n")


def test_a_patch_without_what_it_needs_is_an_error(source: Path) -> None:
    error = lay_out(source, "mmf-rows", fails=True)
    assert "LLCUDA_PATCHES=mmf-rows: the patch mmf-rows needs cublas-f32" in error


def test_an_unknown_name_is_an_error(source: Path) -> None:
    error = lay_out(source, "single-ubatch", "turbo", fails=True)
    assert "LLCUDA_PATCHES=single-ubatch;turbo: there is no patch 'turbo'" in error
    assert all(name in error for name in PATCHES)
