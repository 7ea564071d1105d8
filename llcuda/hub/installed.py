"""The models on this machine: a list of them, and their removal.

Downloads lie in the cache of huggingface_hub: a snapshot of each version links to blobs, and
versions share the blobs of files that did not change.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llcuda.demo import DEMO_NAME, demo_model
from llcuda.errors import (
    ArgumentError,
    FileWriteError,
    LlcudaError,
    ModelError,
    ModelNotFoundError,
)
from llcuda.files import is_file, path_exists
from llcuda.hub import ollama
from llcuda.hub.names import OLLAMA_SCHEME, HubName, part_names
from llcuda.hub.own_names import own_names, remove_own_name, set_own_name
from llcuda.hub.registry import lookup, registry
from llcuda.hub.repository import Repository, cache_root
from llcuda.hub.resolver import choose_file, find, is_model, parse, quantizations

logger = logging.getLogger("llcuda.hub")

_REPOSITORY_FOLDER = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_COMMIT_DIGITS = 8  # of a version in a name


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model on this machine.

    Attributes:
        name: A name that loads it.
        source: Where it is from: "hub", "ollama", "name" (a name of `llcuda cp`) or "llcuda".
        path: Its file; of a split model the first. None if a name leads to no file here.
        size: Bytes of all its files.
        modified: The time of its last change, in seconds since 1970.
        target: What a name of `llcuda cp` stands for; None for another model.
    """

    name: str
    source: Literal["hub", "ollama", "name", "llcuda"]
    path: Path | None
    size: int
    modified: float
    target: str | None = None


def installed_models() -> list[InstalledModel]:
    """Return the models on this machine: names of `llcuda cp`, downloads, ollama's, the demo.

    Does not ask the network. A model of ollama whose files are missing is left out.

    Raises:
        ModelError: The file of the names is damaged. A repository whose entry in the cache is
            damaged is left out, and the log says so.
    """
    models = [_own(name, target) for name, target in own_names().items()]
    models += _downloads()
    for model in ollama.models():
        with contextlib.suppress(LlcudaError):  # a cloud model, or an interrupted pull
            models.append(_installed(model.address, "ollama", [model.path()]))
    return [*models, _installed(DEMO_NAME, "llcuda", [demo_model()])]


def _own(name: str, target: str) -> InstalledModel:
    """Return the model that a name of `llcuda cp` stands for."""
    path: Path | None = None
    with contextlib.suppress(LlcudaError):  # its file is gone; the name is listed all the same
        path = _local_file(name)
    if path is None:
        return InstalledModel(name, "name", None, 0, 0.0, target)
    files = [path.with_name(part) for part in part_names(path.name)]
    model = _installed(name, "name", files)
    return InstalledModel(name, "name", path, model.size, model.modified, target)


def _local_file(name: str) -> Path | None:
    """Return the file of a model if it is on this machine."""
    source = parse(name)
    if isinstance(source, Path):
        return source
    repository = Repository(source.repo, source.revision)
    files = repository.cached_files()
    file = choose_file(source.repo, files, source.file)
    return repository.cached_path(part_names(file))


def _installed(
    name: str, source: Literal["hub", "ollama", "name", "llcuda"], files: list[Path]
) -> InstalledModel:
    statuses = [file.stat() for file in files]
    size = sum(status.st_size for status in statuses)
    return InstalledModel(name, source, files[0], size, max(s.st_mtime for s in statuses))


def _downloads() -> Iterator[InstalledModel]:
    """Yield the models in the hub's cache, each file once."""
    short_names = {(entry.repo, entry.file): entry.name for entry in registry().values()}
    root = cache_root()
    folders = sorted(root.glob("models--*--*")) if path_exists(root) else []
    for folder in folders:
        match = _REPOSITORY_FOLDER.fullmatch(folder.name)
        if match is None:
            continue
        repository, seen = Repository(f"{match[1]}/{match[2]}"), set()
        try:
            newest = repository.snapshot()
        except ModelError as error:
            logger.warning("%s", error)
            continue
        others = [path for path in _snapshots(folder) if path != newest]
        for snapshot in [*([newest] if newest else []), *others]:
            revision = "" if snapshot == newest else f"@{snapshot.name[:_COMMIT_DIGITS]}"
            for file, parts in _models_in(snapshot):
                blobs = tuple(part.resolve() for part in parts)
                if blobs in seen:
                    continue
                seen.add(blobs)
                short = None if revision else short_names.get((repository.id, file))
                name = short or f"{repository.id}{revision}:{_shortest(file, snapshot)}"
                yield _installed(name, "hub", parts)


def _snapshots(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("snapshots/*") if path.is_dir())


def _models_in(snapshot: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield the name of each model whose files are all in a snapshot, and the files."""
    files = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf"))
    for file in dict.fromkeys(part_names(file)[0] for file in files if is_model(file)):
        parts = [snapshot / part for part in part_names(file)]
        if all(is_file(part) for part in parts):
            yield file, parts


def _shortest(file: str, snapshot: Path) -> str:
    """Return the quantization of a file, if the name of no other file in the cache has it."""
    others = [other for other, _ in _models_in(snapshot)]
    for tag in quantizations([file]):
        with contextlib.suppress(ModelNotFoundError):
            if choose_file("", others, tag) == file:
                return tag
    return file


# --- names ---


def copy_name(source: str, name: str) -> str:
    """Give a model a name of the user's, and return what it stands for.

    Args:
        source: The model, as `resolve` takes it.
        name: The new name.

    Raises:
        ModelNotFoundError: There is no such model, here or on the hub.
        ArgumentError: `name` has characters that names do not have, or stands for a model already.
    """
    given = own_names()
    if name in given:
        rule = f"{name!r} is a name of {given[name]} already"
        raise ArgumentError(f"{rule}; forget it by `llcuda rm {name}`")
    if name == DEMO_NAME or lookup(name) is not None:
        raise ArgumentError(f"{name!r} is a short name of llcuda already; choose another")
    target = _lasting_name(source)
    set_own_name(name, target)
    return target


def _lasting_name(text: str) -> str:
    """Return a name of a model that holds in every folder, and as long as the model exists."""
    if text in own_names():
        return own_names()[text]
    source = parse(text)
    if isinstance(source, Path):
        is_stored = text == DEMO_NAME or text.lower().startswith(OLLAMA_SCHEME)
        return text if is_stored else str(source.absolute())
    location = find(text)
    if isinstance(location, Path):
        snapshot = Repository(source.repo, source.revision).snapshot()
        file = location.relative_to(snapshot).as_posix() if snapshot else location.name
    else:
        file = location[0].file
    return f"hf://{HubName(source.repo, file, source.revision)}"


# --- removal ---


@dataclass(frozen=True, slots=True)
class Removal:
    """What the removal of a model deletes.

    Attributes:
        name: The model.
        links: Files and links in snapshots.
        blobs: Files that nothing else refers to.
        size: Bytes that become free.
        own_name: The name of `llcuda cp` to forget; None for a download.
    """

    name: str
    links: list[Path] = field(default_factory=list)
    blobs: list[Path] = field(default_factory=list)
    size: int = 0
    own_name: str | None = None


def plan_removal(name: str) -> Removal:
    """Return what the removal of a model would delete; nothing is deleted yet.

    A download is removed from every version in the cache, or from the version that the name has.
    Blobs that another file or version shares are kept.

    Args:
        name: The model, as `resolve` takes it.

    Raises:
        ModelNotFoundError: The model is not in the cache.
        ArgumentError: The model does not belong to llcuda: a file of the user, a model of ollama,
            or the demo model.
    """
    if name in own_names():
        return Removal(name, own_name=name)
    if name == DEMO_NAME:
        raise ArgumentError(f"{name}: is a part of llcuda and cannot be removed")
    if name.lower().startswith(OLLAMA_SCHEME):
        short = name[len(OLLAMA_SCHEME) :].removeprefix("//")
        raise ArgumentError(f"{name}: belongs to ollama; remove it by `ollama rm {short}`")
    source = parse(name)
    if isinstance(source, Path):
        raise ArgumentError(
            f"{name}: is the file {source}, not a download of llcuda; delete it yourself"
        )
    return _removal(name, source)


def remove(plan: Removal) -> None:
    """Delete what `plan_removal` returned.

    Args:
        plan: What to delete.

    Raises:
        FileWriteError: The operating system refuses to delete a file.
        ModelError: The file of the names cannot be written.
    """
    if plan.own_name is not None:
        remove_own_name(plan.own_name)
        return
    for path in [*plan.links, *plan.blobs]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise FileWriteError(f"cannot delete {path}: {error.strerror}") from error
    for folder in {_repository_folder(path) for path in plan.links}:
        _tidy(folder)


def _removal(name: str, source: HubName) -> Removal:
    repository = Repository(source.repo, source.revision)
    folder = repository.folder()
    if source.revision:
        snapshot = repository.snapshot()
        snapshots = [snapshot] if snapshot else []
    else:
        snapshots = _snapshots(folder)
    present = list(dict.fromkeys(file for path in snapshots for file, _ in _models_in(path)))
    if not present:
        raise ModelNotFoundError(f"{source} is not in the cache; `llcuda list` shows what is")
    parts = part_names(choose_file(source.repo, present, source.file))
    links = [snapshot / part for snapshot in snapshots for part in parts]
    links = [link for link in links if link.is_symlink() or path_exists(link)]
    blobs = {link.resolve() for link in links if link.is_symlink()}
    for path in folder.glob("snapshots/**/*"):  # other files and versions that share a blob
        if path.is_symlink() and path not in links:
            blobs.discard(path.resolve())
    files = [*blobs, *(link for link in links if not link.is_symlink())]
    size = sum(file.stat().st_size for file in files if path_exists(file))
    return Removal(name, links, sorted(blobs), size)


def _repository_folder(link: Path) -> Path:
    return next(parent.parent for parent in link.parents if parent.name == "snapshots")


def _tidy(folder: Path) -> None:
    """Delete the empty folders of a repository, and the repository itself if nothing is left."""
    with contextlib.suppress(OSError):  # something is in them, or another process was faster
        for path, _, _ in os.walk(folder / "snapshots", topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        left = [path for name in ("snapshots", "blobs") for path in folder.glob(f"{name}/*")]
        if not left:
            shutil.rmtree(folder)
            shutil.rmtree(folder.parent / ".locks" / folder.name, ignore_errors=True)
