"""Names of models to local files: short names, files on the Hugging Face Hub, paths.

A file that is named exactly and is in the cache is used without asking the network;
`refresh=True` asks for a newer version. Nothing here loads a model.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llcuda.demo import DEMO_NAME, demo_model
from llcuda.errors import ArgumentError, ModelNotFoundError
from llcuda.files import data_file, path_text
from llcuda.hub.repository import (
    REPOSITORY_ID,
    HubUnreachableError,
    RemoteFile,
    Repository,
    parse_remote_name,
    path_exists,
)
from llcuda.params import wrong_value

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_NOT_A_MODEL = re.compile(r"(^|[-./_])(mmproj|imatrix)[-._]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """A model with a short name.

    Attributes:
        name: The short name.
        repo: The repository on the hub, `owner/name`.
        file: The file in the repository.
        quantization: The type of the weights, e.g. "Q4_K_M".
        gigabytes: The size of the file in units of 10^9 bytes.
        parameters: The number of weights in units of 10^9.
        context: The tokens of context that the model was trained with.
        license: The name of the model's license.
    """

    name: str
    repo: str
    file: str
    quantization: str
    gigabytes: float
    parameters: float
    context: int
    license: str


@functools.cache
def registry() -> Mapping[str, RegistryEntry]:
    """Return the models with a short name, by that name (e.g. "gemma-3-1b-Q4_K_M")."""
    text = data_file("registry.toml").read_text(encoding="utf-8")
    return {
        f"{model}-{quantization}": RegistryEntry(
            name=f"{model}-{quantization}",
            repo=facts["repo"],
            file=file,
            quantization=quantization,
            gigabytes=gigabytes,
            parameters=facts["parameters"],
            context=facts["context"],
            license=facts["license"],
        )
        for model, facts in tomllib.loads(text).items()
        for quantization, (file, gigabytes) in facts["files"].items()
    }


def listing() -> list[tuple[RegistryEntry, Path | None]]:
    """Return each model with a short name, and its path in the cache or None.

    Does not ask the network.
    """
    return [
        (entry, Repository(entry.repo).cached_path([entry.file])) for entry in registry().values()
    ]


def resolve(
    name: str | os.PathLike[str],
    filename: str | None = None,
    *,
    progress: bool = True,
    refresh: bool = False,
) -> Path:
    """Return the local path of a model, downloading its files if they are missing.

    All parts of a split model are downloaded; the path is that of the first part.

    Args:
        name: A short name (in any case), "demo", a path, or a file on the Hugging Face Hub:
            `repo/id:file.gguf`, `repo/id:Q4_K_M` (the file with that quantization), `repo/id`
            with `filename`, `repo/id` alone if the repository holds one model, or
            `hf://repo/id/file.gguf`. `hf:` before a repository is allowed.
        filename: The file in the repository or folder that `name` names.
        progress: Whether to draw a bar on stderr, in a terminal and in a notebook.
        refresh: Whether to ask the hub for a newer version of a file in the cache.

    Returns:
        The path of a GGUF file, in the Hugging Face cache if it was downloaded.

    Raises:
        ModelNotFoundError: The model does not exist, or the file is not in the cache and the hub
            does not answer.
        ModelError: A download fails, or the disk is too small.
        ArgumentError: `name` and `filename` contradict each other.
    """
    source = _parse(name, filename)
    return source if isinstance(source, Path) else _fetch(*source, progress, refresh)


def find(name: str | os.PathLike[str], filename: str | None = None) -> Path | list[RemoteFile]:
    """Return a model's local path, or the files on the hub that `resolve` would download.

    Args:
        name: The model, as `resolve` takes it.
        filename: The file in the repository or folder that `name` names.

    Returns:
        The path of a file that is on this machine; else all parts of the model, the first first.

    Raises:
        ModelNotFoundError: As `resolve` raises it.
        ModelError: As `resolve` raises it.
        ArgumentError: As `resolve` raises it.
    """
    source = _parse(name, filename)
    if isinstance(source, Path):
        return source
    location = _locate(*source, refresh=False)
    if isinstance(location, Path):
        return location
    info, parts = location
    return [RemoteFile(source[0], part.rfilename, info.sha or "", part.size or 0) for part in parts]


def pull(name: str, filename: str | None = None, *, progress: bool = True) -> Path:
    """Download the newest version of a model into the cache and return its path.

    Args:
        name: The model, as `resolve` takes it.
        filename: The file in the repository that `name` names.
        progress: Whether to draw a bar on stderr, in a terminal and in a notebook.

    Raises:
        ModelNotFoundError: As `resolve` raises it.
        ModelError: As `resolve` raises it.
        ArgumentError: As `resolve` raises it.
    """
    return resolve(name, filename, progress=progress, refresh=True)


def _parse(name: str | os.PathLike[str], filename: str | None) -> Path | tuple[str, str | None]:
    """Return the path that a name is, or the repository and the file or quantization in it."""
    text = path_text(name, "name")
    if filename is not None:
        filename = path_text(filename, "filename")
    if not text:
        raise ArgumentError("the name of the model is empty")
    if isinstance(name, str):
        entry = next((e for e in registry().values() if e.name.lower() == text.lower()), None)
        if text == DEMO_NAME or entry:
            if filename is not None:
                rule = f"{text!r} names a file already"
                raise wrong_value("filename", filename, rule, remedy="leave it out")
            return (entry.repo, entry.file) if entry else demo_model()
        if remote := parse_remote_name(text, filename):
            return remote
    return _local(text, filename)


def _local(text: str, filename: str | None) -> Path:
    """Return the path `text`, or of `filename` in it; for a split model that of the first part."""
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    if not path_exists(path):
        raise _unknown(text, path)
    if filename is not None:
        if not path.is_dir():
            rule = f"{text!r} is a file already"
            raise wrong_value("filename", filename, rule, remedy="leave it out")
        path = path / filename
        if not path_exists(path):
            raise _unknown(str(path), path)
    if path.is_dir():
        if (path / "config.json").is_file():
            raise ModelNotFoundError(
                f"{path} is a Hugging Face checkpoint; `llcuda convert {path}` makes a model file"
            )
        raise ModelNotFoundError(f"{path} is a folder{_list(f.name for f in path.iterdir())}")
    parts = [path.with_name(part) for part in _parts(path.name)]
    missing = [part for part in parts if not part.is_file()]
    if missing:
        raise ModelNotFoundError(f"{path} is one of {len(parts)} files; missing: {missing[0]}")
    return parts[0]


def _unknown(text: str, path: Path) -> ModelNotFoundError:
    """Return the error for a name that is not a model's: similar names, and which are expected."""
    if "/" in text or text.lower().endswith(".gguf"):
        siblings = path.parent.glob("*.gguf") if path_exists(path.parent) else ()
        similar = _similar(path.name, [file.name for file in siblings])
        on_hub = re.match(rf"{REPOSITORY_ID}/", text)
        hub = f"; on the Hugging Face Hub: hf://{text}" if on_hub else ""
        return ModelNotFoundError(f"no such file: {path}{similar}{hub}")
    return ModelNotFoundError(
        f"no model is called {text!r}{_similar(text, registry())}; expected a name that"
        f" `llcuda list` shows, {DEMO_NAME}, the path of a .gguf file, repo/id:file.gguf or"
        " repo/id:Q4_K_M"
    )


def _similar(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the names that are similar, or nothing."""
    by_lower = {other.lower(): other for other in names}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=4)
    return f" (did you mean {', '.join(by_lower[m] for m in matches)}?)" if matches else ""


def _list(files: Iterable[str]) -> str:
    """Return the .gguf files among `files`, as the end of a message."""
    names = sorted(file for file in files if file.lower().endswith(".gguf"))
    return ", with these models:\n  " + "\n  ".join(names) if names else " without a .gguf file"


def _parts(file: str) -> list[str]:
    """Return the names of all parts of a split model, or the one file."""
    match = _PART.search(file)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        return [file]
    stem, end = file[: match.start(1)], file[match.end(1) :]
    return [f"{stem}{number:05}{end}" for number in range(1, int(match[2]) + 1)]


def _fetch(repo: str, file: str | None, progress: bool, refresh: bool) -> Path:
    """Return the path in the cache of a file, or of the file with a quantization."""
    location = _locate(repo, file, refresh)
    if isinstance(location, Path):
        return location
    info, parts = location
    return Repository(repo).download(parts, info.sha, progress=progress)[0]


def _locate(
    repo: str, file: str | None, refresh: bool
) -> Path | tuple[ModelInfo, list[RepoSibling]]:
    """Return the path in the cache, or the repository's newest version and the file's parts."""
    repository = Repository(repo)
    exact = file if file and file.lower().endswith(".gguf") else None
    if exact and not refresh and (path := repository.cached_path(_parts(exact))):
        return path
    try:
        info = repository.ask(file)
    except HubUnreachableError:
        files = [] if exact or refresh else repository.cached_files()
        path = repository.cached_path(_parts(_select(repo, files, file))) if files else None
        if path is None:
            raise
        return path
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    parts = _parts(_select(repo, list(siblings), file))
    if missing := [part for part in parts if part not in siblings]:
        raise ModelNotFoundError(f"{repo} lacks {missing[0]}, one of the parts of {parts[0]}")
    return info, [siblings[part] for part in parts]


def _select(repo: str, files: list[str], wanted: str | None) -> str:
    """Return which of a repository's files a name, a quantization or nothing means."""
    if wanted in files:
        return str(wanted)
    if wanted and wanted.lower().endswith(".gguf"):
        raise ModelNotFoundError(
            f"{repo} has no {wanted}{_similar(wanted, files)}\n{repo} is{_list(files)}"
        )
    models = [f for f in files if f.lower().endswith(".gguf") and not _NOT_A_MODEL.search(f)]
    if wanted:
        # "UD-Q4_K_M" is a quantization of its own. It is meant if there is no plain Q4_K_M.
        tag = re.compile(rf"(?:^|[-._/])(UD-)?{re.escape(wanted)}(?=[-./])", re.IGNORECASE)
        matches = {file: match for file in models if (match := tag.search(file))}
        models = [file for file, match in matches.items() if not match[1]] or list(matches)
    first_parts = sorted({_parts(file)[0] for file in models})
    if len(first_parts) != 1:
        what = f" {wanted}" if wanted else ""
        count = f"{len(first_parts)}{what} models: name one" if first_parts else f"no{what} model"
        raise ModelNotFoundError(f"{repo} has {count}\n{repo} is{_list(files)}")
    return first_parts[0]
