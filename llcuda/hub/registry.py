"""From what a user names to a local file: short names, Hugging Face files, paths.

The cache, tokens, `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are huggingface_hub's business; it
is imported at the first name that needs it. A named file that is in the cache is used without
asking the network; `refresh=True` asks for a newer one. Nothing here loads a model.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import shutil
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llcuda.demo import DEMO_NAME, demo_model
from llcuda.errors import ArgumentError, ModelError, ModelNotFoundError
from llcuda.files import data_file
from llcuda.hub.download import download, held

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

ASK_TIMEOUT = 10.0  # seconds; huggingface_hub's own default for metadata
_REPO = r"[\w.-]+/[\w.-]+"
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_NO_MODEL = re.compile(r"(^|[-./_])(mmproj|imatrix)[-._]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """A model with a short name. gigabytes: 10^9 bytes; parameters: 10^9; context: tokens."""

    name: str
    repo: str
    file: str
    quantization: str
    gigabytes: float
    parameters: float
    context: int
    license: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub, in the version that is there now. size: bytes."""

    repo: str
    file: str
    commit: str
    size: int


class _UnreachableError(ModelNotFoundError):
    """The hub does not answer, or must not be asked."""


@functools.cache
def registry() -> Mapping[str, RegistryEntry]:
    """Return the models with a short name, by that name (`gemma-3-1b-Q4_K_M`)."""
    text = data_file("registry.toml").read_text(encoding="utf-8")
    return {
        f"{model}-{tag}": RegistryEntry(
            name=f"{model}-{tag}",
            repo=facts["repo"],
            file=file,
            quantization=tag,
            gigabytes=gigabytes,
            parameters=facts["parameters"],
            context=facts["context"],
            license=facts["license"],
        )
        for model, facts in tomllib.loads(text).items()
        for tag, (file, gigabytes) in facts["files"].items()
    }


def listing() -> list[tuple[RegistryEntry, Path | None]]:
    """Return each short name's entry, with its path in the cache or None. Asks no network."""
    return [(entry, _cached(entry.repo, [entry.file])) for entry in registry().values()]


def resolve(
    name: str | os.PathLike[str],
    filename: str | None = None,
    *,
    progress: bool = True,
    refresh: bool = False,
) -> Path:
    """Return the local path of a model, downloading what is not there yet.

    name: a short name (in any case), "demo", a path, or a file on the Hugging Face Hub:
        `repo/id:file.gguf`, `repo/id:Q4_K_M` (the file with that quantisation), `repo/id` with
        `filename` (or alone, where it holds one model), `hf:` and `hf://repo/id/file.gguf`.
    filename: the file in the repository or folder that `name` names.
    progress: a bar on stderr while downloading, in a terminal and in a notebook.
    refresh: ask the hub for a newer version of a file that is in the cache.

    Of a split model all parts are fetched; the path is the first part's. Raises
    ModelNotFoundError for what does not exist, or is not in the cache and cannot be reached,
    ModelError for a download that fails, ArgumentError for names that contradict each other.
    """
    found = _named(name, filename)
    return found if isinstance(found, Path) else _fetch(*found, progress, refresh)


def find(name: str | os.PathLike[str], filename: str | None = None) -> Path | list[RemoteFile]:
    """Return the path that `resolve` would return without a download, else what it would fetch.

    Of a split model these are all parts, the first one first. Raises what `resolve` raises.
    """
    found = _named(name, filename)
    if isinstance(found, Path):
        return found
    located = _locate(*found, refresh=False)
    if isinstance(located, Path):
        return located
    info, parts = located
    return [RemoteFile(found[0], part.rfilename, info.sha or "", part.size or 0) for part in parts]


def _named(name: str | os.PathLike[str], filename: str | None) -> Path | tuple[str, str | None]:
    """Return the path that a name is, or the repository and the file in it."""
    text = os.fspath(name)
    if not text:
        raise ArgumentError("the name of the model is empty")
    if isinstance(name, str):
        entry = next((e for e in registry().values() if e.name.lower() == text.lower()), None)
        if text == DEMO_NAME or entry:
            if filename is not None:
                raise ArgumentError(f"{text!r} names a file; filename={filename!r} is too much")
            return (entry.repo, entry.file) if entry else demo_model()
        if remote := _remote(text, filename):
            return remote
    return _local(text, filename)


def pull(name: str, filename: str | None = None, *, progress: bool = True) -> Path:
    """Fetch the newest version of a model into the cache and return its path; see `resolve`."""
    return resolve(name, filename, progress=progress, refresh=True)


def _remote(text: str, filename: str | None) -> tuple[str, str | None] | None:
    """Return the repository that `text` names and the file or quantisation; None for a path."""
    prefix = re.match(r"hf:(//)?", text, re.IGNORECASE)
    if prefix:
        match = re.fullmatch(rf"({_REPO})(?:[:/](.+))?", text[prefix.end() :])
        if not match:
            raise ArgumentError(f"{text!r}: expected hf://repo/id/file.gguf or hf:repo/id:Q4_K_M")
    else:
        match = re.fullmatch(rf"({_REPO})(?::(.+))?", text)
        looks_local = text.startswith("./") or (text.lower().endswith(".gguf") and ":" not in text)
        if not match or looks_local or _exists(Path(text)):
            return None
    repo, inside = match.groups()
    if inside and filename and inside != filename:
        raise ArgumentError(f"{text!r} names {inside!r}, but filename={filename!r}")
    file = inside or filename
    if file and (file.startswith("/") or "\\" in file or ".." in file.split("/")):
        raise ArgumentError(f"{file!r}: expected the name of a file in the repository {repo}")
    return repo, file


def _local(text: str, filename: str | None) -> Path:
    """Return the path `text`, or of `filename` in it; for a split model the first part's."""
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    if not _exists(path):
        raise _unknown(text, path)
    if filename is not None:
        if not path.is_dir():
            raise ArgumentError(f"{text!r} is a file; filename={filename!r} is too much")
        path = path / filename
        if not _exists(path):
            raise _unknown(str(path), path)
    if path.is_dir():
        if (path / "config.json").is_file():
            raise ModelNotFoundError(
                f"{path} is a Hugging Face checkpoint; `llcuda convert {path}` makes a model file"
            )
        raise ModelNotFoundError(f"{path} is a folder{_names(f.name for f in path.iterdir())}")
    parts = [path.with_name(part) for part in _parts(path.name)]
    missing = [part for part in parts if not part.is_file()]
    if missing:
        raise ModelNotFoundError(f"{path} is one of {len(parts)} files; missing: {missing[0]}")
    return parts[0]


def _unknown(text: str, path: Path) -> ModelNotFoundError:
    """Return the error for a name that is no model: what is like it, and what is expected."""
    if "/" in text or text.lower().endswith(".gguf"):
        beside = [file.name for file in path.parent.glob("*.gguf")] if _exists(path.parent) else []
        hub = f"; on the Hugging Face Hub: hf://{text}" if re.match(rf"{_REPO}/", text) else ""
        return ModelNotFoundError(f"no such file: {path}{_near(path.name, beside)}{hub}")
    return ModelNotFoundError(
        f"no model is called {text!r}{_near(text, registry())}; expected a name that `llcuda list`"
        f" shows, {DEMO_NAME}, the path of a .gguf file, repo/id:file.gguf or repo/id:Q4_K_M"
    )


def _near(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the names that are like `name`, or nothing."""
    known = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), known, n=4)
    return f" (did you mean {', '.join(known[key] for key in near)}?)" if near else ""


def _names(files: Iterable[str]) -> str:
    """Return the .gguf files among `files`, as the end of a message."""
    names = sorted(file for file in files if file.lower().endswith(".gguf"))
    return ", with these models:\n  " + "\n  ".join(names) if names else " without a .gguf file"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long, or behind a closed folder
        return False


def _parts(file: str) -> list[str]:
    """Return the names of all parts of a split model, or the one file."""
    match = _SPLIT.search(file)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        return [file]
    stem, end = file[: match.start(1)], file[match.end(1) :]
    return [f"{stem}{number:05}{end}" for number in range(1, int(match[2]) + 1)]


def _fetch(repo: str, file: str | None, progress: bool, refresh: bool) -> Path:
    """Return the path in the cache of a file, or of the file with a quantisation."""
    found = _locate(repo, file, refresh)
    if isinstance(found, Path):
        return found
    info, parts = found
    lacking = [part for part in parts if not _cached(repo, [part.rfilename], info.sha)]
    _check_room(repo, sum(_bytes_to_come(repo, part) for part in lacking))
    paths = []
    for part in (part.rfilename for part in parts):
        with explained(f"{repo}:{part}", ModelError):
            paths.append(download(repo, part, info.sha, progress=progress))
    return paths[0]


def _locate(
    repo: str, file: str | None, refresh: bool
) -> Path | tuple[ModelInfo, list[RepoSibling]]:
    """Return the path in the cache, or what the hub says of the repository and the file's parts."""
    named = file if file and file.lower().endswith(".gguf") else None
    if named and not refresh and (path := _cached(repo, _parts(named))):
        return path
    try:
        info = _ask(repo, file)
    except _UnreachableError:
        files = [] if named or refresh else _cached_files(repo)
        path = _cached(repo, _parts(_select(repo, files, file))) if files else None
        if path is None:
            raise
        return path
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    parts = _parts(_select(repo, list(siblings), file))
    if missing := [part for part in parts if part not in siblings]:
        raise ModelNotFoundError(f"{repo} lacks {missing[0]}, one of the parts of {parts[0]}")
    return info, [siblings[part] for part in parts]


def _select(repo: str, files: list[str], wanted: str | None) -> str:
    """Return which of a repository's files a name, a quantisation or nothing means."""
    if wanted in files:
        return str(wanted)
    if wanted and wanted.lower().endswith(".gguf"):
        near = _near(wanted, files)
        raise ModelNotFoundError(f"{repo} has no {wanted}{near}\n{repo} is{_names(files)}")
    models = [f for f in files if f.lower().endswith(".gguf") and not _NO_MODEL.search(f)]
    if wanted:
        # "UD-Q4_K_M" is a quantisation of its own, meant where there is no plain Q4_K_M.
        tag = re.compile(rf"(?:^|[-._/])(UD-)?{re.escape(wanted)}(?=[-./])", re.IGNORECASE)
        found = {file: match for file in models if (match := tag.search(file))}
        models = [file for file, match in found.items() if not match[1]] or list(found)
    firsts = sorted({_parts(file)[0] for file in models})
    if len(firsts) != 1:
        which = f" {wanted}" if wanted else ""
        count = f"{len(firsts)}{which} models: name one" if firsts else f"no{which} model"
        raise ModelNotFoundError(f"{repo} has {count}\n{repo} is{_names(files)}")
    return firsts[0]


def _cached(repo: str, files: list[str], revision: str | None = None) -> Path | None:
    """Return the first file's path if all of them are in the cache."""
    from huggingface_hub import try_to_load_from_cache

    with explained(repo, ModelError):
        paths = [try_to_load_from_cache(repo, file, revision=revision) for file in files]
    return Path(str(paths[0])) if all(isinstance(path, str) for path in paths) else None


def _cached_files(repo: str) -> list[str]:
    """Return the names of a repository's files that are in the cache, of its last version."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        file.file_path.relative_to(revision.snapshot_path).as_posix()
        for cached in repos
        if cached.repo_id == repo and cached.repo_type == "model"
        for revision in cached.revisions
        if "main" in revision.refs
        for file in revision.files
    ]


def _ask(repo: str, file: str | None) -> ModelInfo:
    """Return what the hub says about a repository: its files, their sizes, its version."""
    from huggingface_hub import HfApi

    with explained(f"{repo}:{file}" if file else repo, _UnreachableError):
        return HfApi().model_info(repo, files_metadata=True, timeout=ASK_TIMEOUT)


def _bytes_to_come(repo: str, file: RepoSibling) -> int:
    """Return the size of a file without what an earlier download left of it."""
    left = held(repo, file.lfs.sha256) if file.lfs else 0
    return max(0, (file.size or 0) - left)


def _check_room(repo: str, needed: int) -> None:
    """Raise ModelError if the disk of the cache has fewer than `needed` bytes free."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE).absolute()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if needed > free:
        raise ModelError(
            f"{repo}: {needed / 1e9:.2f} GB to download, {free / 1e9:.2f} GB free for {folder};"
            " set HF_HOME to a folder on another disk"
        )


@contextmanager
def explained(what: str, failure: type[ModelError]) -> Iterator[None]:
    """Turn what huggingface_hub raises into llcuda's errors; `failure` where it has no meaning."""
    from huggingface_hub import constants, errors

    login = "log in with `hf auth login`, or set HF_TOKEN"
    page = f"{constants.ENDPOINT}/{what.split(':')[0]}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(f"{what} is gated: accept its terms at {page} and {login}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(f"there is no {page}; if it is private, {login}") from error
    except errors.HFValidationError as error:
        raise ArgumentError(f"{what}: {error}") from error
    except errors.OfflineModeIsEnabled as error:
        raise _UnreachableError(
            f"{what} is not in the cache, and HF_HUB_OFFLINE forbids to download it"
        ) from error
    except Exception as error:  # of httpx, of hf_xet, of the file system: they share no base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise failure(f"cannot download {what} from {constants.ENDPOINT}: {reason}") from error
