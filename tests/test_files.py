"""Files that appear when they are whole: no half file, no planted link, no leftover."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llcuda.errors import FileWriteError, ModelError
from llcuda.files import atomic_write, temporary_file, temporary_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from llcuda.files import atomic_write, temporary_folder

folder = Path(sys.argv[1])
with temporary_folder(folder) as inner, atomic_write(folder / "new") as partial:
    (inner / "weights").write_text("half")
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    """The names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    """Until then the folder holds a partial file beside the old one, whose mode the new one has."""
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    with atomic_write(path) as partial:
        assert (b"", path.parent) == (partial.read_bytes(), partial.parent)
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
        partial.write_text("new")
        assert path.read_text() == "old"
    assert (["file"], "new") == (names(tmp_path), path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    """As a file that open() makes, also in place of a symbolic link, which is not followed."""
    victim, link, plain = (tmp_path / name for name in ("victim", "link", "plain"))
    victim.write_text("precious")
    link.symlink_to(victim)
    plain.write_text("")
    for path in (link, tmp_path / "new"):
        with atomic_write(path) as partial:
            partial.write_text("new")
        assert (False, "new") == (path.is_symlink(), path.read_text())
        assert path.stat().st_mode == plain.stat().st_mode
    assert victim.read_text() == "precious"


def test_after_an_error_the_file_is_as_it_was(tmp_path: Path) -> None:
    """Nor does a partial file stay."""
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path):
        raise ZeroDivisionError
    assert (["file"], "old") == (names(tmp_path), path.read_text())


def test_a_full_disk_is_one_of_our_errors(tmp_path: Path) -> None:
    """It is an OSError with its number too."""
    path = tmp_path / "file"
    path.write_text("old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(FileWriteError) as caught, atomic_write(path) as partial:
            partial.write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert f"cannot write {path}: File too large" == str(caught.value)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, ModelError)
    assert (errno.EFBIG, "File too large") == (caught.value.errno, caught.value.strerror)
    assert (["file"], "old") == (names(tmp_path), path.read_text())


@pytest.mark.parametrize("name", ["folder", "pipe", "missing/file"])
def test_what_is_not_a_file_is_not_replaced(name: str, tmp_path: Path) -> None:
    """A folder, a pipe (as a device would be), and a file in a folder that does not exist."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name
    with pytest.raises(FileWriteError, match=f"cannot write {path}: "), atomic_write(path) as part:
        part.write_text("new")
    assert ["folder", "pipe"] == names(tmp_path)
    assert (tmp_path / "pipe").is_fifo()


def test_threads_write_one_file(tmp_path: Path) -> None:
    """Each has a partial file of its own, and none sweeps another's."""
    path = tmp_path / "file"
    contents = [f"{number}" * 10_000 for number in range(4)]
    failures: list[Exception] = []

    def write(content: str) -> None:
        try:
            for _ in range(50):
                with atomic_write(path) as partial, partial.open("w") as file:
                    for start in range(0, len(content), 1000):
                        file.write(content[start : start + 1000])
                assert path.read_text() in contents
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ([], ["file"]) == (failures, names(tmp_path))


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """By the next writer in the folder, at once; what another still writes stays."""
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False, timeout=120)
    assert (-9, 2) == (killed.returncode, len(names(tmp_path)))
    (tmp_path / ".other.part").write_text("of another program")
    with temporary_folder(tmp_path) as folder, temporary_file(tmp_path) as file:
        running = sorted([file.name, folder.name])
        with atomic_write(tmp_path / "new") as partial:
            partial.write_text("whole")
        assert [*running, ".other.part", "new"] == names(tmp_path)
    assert [".other.part", "new"] == names(tmp_path)


def test_planted_names_are_not_followed(tmp_path: Path) -> None:
    """A link, a pipe or a folder of links under the name of a partial file harms nothing."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    (tmp_path / ".llcuda-1.part").symlink_to(victim / "file")
    (tmp_path / ".llcuda-2.part").symlink_to(victim)
    os.mkfifo(tmp_path / ".llcuda-3.part")
    (tmp_path / ".llcuda-4.part").mkdir()
    (tmp_path / ".llcuda-4.part" / "link").symlink_to(victim)
    with atomic_write(tmp_path / "file") as partial:
        partial.write_text("whole")
    assert (victim / "file").read_text() == "precious"
