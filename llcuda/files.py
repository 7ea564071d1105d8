"""Files that llcuda writes, whole or not at all, and the folders of its cache and state."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from llcuda.errors import (
    ArgumentError,
    FileWriteError,
    LlcudaError,
    ModelError,
    ModelNotFoundError,
    shown,
)

PREFIX, SUFFIX = ".llcuda-", ".part"  # of the names of partial files


def path_text(path: str | os.PathLike[str], parameter: str = "path") -> str:
    """Return the text of a caller's path.

    Args:
        path: The path.
        parameter: The caller's name of it, for an error.

    Raises:
        TypeError: It is neither a str nor a pathlib.Path, nor a like object.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        shown_path = shown(path)
        raise TypeError(f"{parameter}={shown_path}: expected a path; give a str or a pathlib.Path")
    return text


def local_path(path: str | os.PathLike[str], parameter: str = "path") -> str:
    """Return the text of the path of a file on this machine.

    Args:
        path: The path.
        parameter: The caller's name of it, for an error.

    Raises:
        TypeError: As `path_text`.
        ModelError: No file can have this path.
    """
    text = path_text(path, parameter)
    if rule := _no_path(text):
        raise ModelError(f"{parameter}={shown(text)}: {rule}")
    return text


def _no_path(text: str) -> str | None:
    """Return why no file can have this path, or None."""
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        return str(error)
    if b"\0" in encoded:
        return "contains a NUL character"
    if len(encoded) > 4095 or any(len(name) > 255 for name in encoded.split(b"/")):
        return "is longer than the path of a file can be"
    return None


def read_bytes(path: str) -> bytes:
    """Return the content of a file.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such file: {path}") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None


def check_target(path: Path, *sources: Path) -> None:
    """Raise unless a file can be written to a path.

    Args:
        path: The file to write.
        sources: The files that it is made from, none of which it may replace.

    Raises:
        ArgumentError: `path` is a folder, a device, a pipe or one of `sources`, or its folder
            does not exist.
    """
    if path.is_dir():
        raise ArgumentError(f"{path}: is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise ArgumentError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and not path.is_file():
        raise ArgumentError(f"{path}: is a device or a pipe; expected the name of a file")
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise ArgumentError(f"{path}: is the source itself; write to another file")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of an empty partial file, which replaces `path` when the block succeeds.

    The partial file has a random name in the same folder. It gets the mode of the file that it
    replaces, and its bytes reach the disk before its name does. A symbolic link is replaced, not
    followed.

    Args:
        path: The file to write; after an error it is as it was before.

    Raises:
        FileWriteError: `path` is not the name of a file, or the operating system refuses to write.
    """
    replaces_file = path.is_file() and not path.is_symlink()
    with _write_errors(path), _temporary_file(path.parent, private=replaces_file) as partial:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "expected the name of a file, not of a folder or device")
        yield partial
        publish(partial, path)


@contextlib.contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """Yield the path of an empty file of a random name, which is deleted after the block.

    Args:
        folder: The folder of the file.

    Raises:
        FileWriteError: The operating system refuses to write.
    """
    with _write_errors(folder), _temporary_file(folder) as partial:
        yield partial


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield the path of a private folder of a random name, which is deleted after the block.

    Args:
        parent: The folder of the folder.

    Raises:
        FileWriteError: The operating system refuses to write.
    """

    def make(path: Path) -> int:
        path.mkdir(mode=0o700)
        return os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW)

    with _write_errors(parent), _locked(parent, make) as folder:
        yield folder


def publish(partial: Path, path: Path) -> None:
    """Name a finished file `path`, once its bytes are on the disk.

    Args:
        partial: The finished file, in the folder of `path`.
        path: The file that it becomes. A file of this name is replaced, and its mode kept.
    """
    with partial.open("rb") as file, contextlib.suppress(FileNotFoundError):
        os.fsync(file.fileno())
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
    partial.replace(path)
    with contextlib.suppress(OSError):  # some file systems cannot; the file is whole all the same
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_abandoned(folder: Path) -> None:
    """Delete the partial files and temporary folders of killed processes in a folder.

    Each is locked by its writer. The lock ends with the process, so nothing that is being written
    is deleted. On a file system without locks nothing is.
    """
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # locked, gone meanwhile, or another user's
            is_folder = path.is_dir()
            flags = os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_NONBLOCK
            descriptor = os.open(path, flags | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _delete(path)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Raise the operating system's errors as FileWriteError."""
    try:
        yield
    except LlcudaError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        failure = FileWriteError(f"cannot write {path}: {reason}")
        failure.errno, failure.strerror = error.errno, reason
        raise failure from None


def _temporary_file(folder: Path, private: bool = False) -> contextlib.AbstractContextManager[Path]:
    flags, mode = os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666
    return _locked(folder, lambda path: os.open(path, flags, mode))


@contextlib.contextmanager
def _locked(folder: Path, make: Callable[[Path], int]) -> Iterator[Path]:
    """Yield a new path that is locked, so that no other process takes it for abandoned.

    Args:
        folder: The folder of the path.
        make: Makes the file or folder, which must not exist, and returns a descriptor of it.
    """
    remove_abandoned(folder)
    path, descriptor = _create(folder, make)
    try:
        yield path
    finally:
        _delete(path)
        os.close(descriptor)


def _create(folder: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Return a new path and its descriptor, which holds the lock."""
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
        descriptor = make(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            removed = os.fstat(descriptor).st_nlink == 0
        except BlockingIOError:  # `remove_abandoned` of another process is about to delete it
            removed = True
        except OSError:  # a file system without locks
            removed = False
        if not removed:
            return path, descriptor
        _delete(path)
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_free_space(folder: Path, needed: int, remedy: str) -> None:
    """Raise ModelError, with the remedy, if a folder's disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{folder}: {needed / 1e6:,.0f} MB to write, {free / 1e6:,.0f} MB free; {remedy}"
        )


def data_file(name: str) -> Path:
    """Return the path of a file that ships with the package, in its folder `data`."""
    from importlib.resources import files

    return Path(str(files("llcuda").joinpath("data", name)))


def cache_folder(name: str) -> Path:
    """Return the path of $XDG_CACHE_HOME/llcuda/`name`, without making the folder.

    The default of $XDG_CACHE_HOME is ~/.cache.
    """
    return _folder("XDG_CACHE_HOME", ".cache") / name


def state_folder() -> Path:
    """Return the path of $XDG_STATE_HOME/llcuda, without making the folder.

    The default of $XDG_STATE_HOME is ~/.local/state.
    """
    return _folder("XDG_STATE_HOME", ".local/state")


def _folder(variable: str, default: str) -> Path:
    # The XDG Base Directory Specification ignores an empty or relative path.
    path = Path(os.environ.get(variable, ""))
    if path.is_absolute():
        return path / "llcuda"
    home = home_folder()
    if home is None:
        raise ModelError(f"this user has no home folder; set HOME, or {variable} to a folder")
    return home / default / "llcuda"


def home_folder() -> Path | None:
    """Return the user's home folder, or None: HOME is not set, and the user has no account."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def path_exists(path: Path) -> bool:
    """Return whether a path exists; False for one that the operating system cannot look up."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, in a folder closed to this user, or no text of a path
        return False


def is_file(path: Path) -> bool:
    """Return whether a path is a file, or a link to one; False if that cannot be looked up."""
    return path_exists(path) and path.is_file()
