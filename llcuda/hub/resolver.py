"""Names of models to local files: short names, files on the Hugging Face Hub, ollama's, paths.

Every way into llcuda takes its model's name to `resolve`. A file that is in the cache is used
without asking the network; `refresh=True` asks for a newer version. Nothing here loads a model.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llcuda.demo import DEMO_NAME, demo_model
from llcuda.errors import ModelError, ModelNotFoundError
from llcuda.files import home_folder, local_path, path_exists, path_text
from llcuda.hub import ollama
from llcuda.hub.formats import describe_files, unfinished
from llcuda.hub.names import (
    OLLAMA_SCHEME,
    QUANTIZATION,
    REPOSITORY_ID,
    HubName,
    local_text,
    parse_hub_name,
    part_names,
)
from llcuda.hub.own_names import own_names, own_target
from llcuda.hub.registry import (
    DEFAULT_QUANTIZATION,
    RegistryEntry,
    lookup,
    lookup_spelling,
    near_names,
    registry,
    similar_names,
)
from llcuda.hub.repository import HubUnreachableError, RemoteFile, Repository
from llcuda.params import wrong_value

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

logger = logging.getLogger("llcuda.hub")

_NOT_A_MODEL = re.compile(r"(^|[-./_])(mmproj|imatrix)[-._]", re.IGNORECASE)
# Which quantization the name of a repository alone stands for: the first that it has.
_DEFAULTS = (
    *(DEFAULT_QUANTIZATION, "Q4_K_XL", "Q4_K_S", "MXFP4", "Q4_0", "IQ4_XS", "IQ4_NL"),
    *("Q5_K_M", "Q6_K", "Q8_0", "BF16", "F16"),
)
_QUANTIZATION = re.compile(rf"(?:^|[-._/])({QUANTIZATION})(?=[-./])", re.IGNORECASE)
MAX_LISTED = 40  # files in a message
MAX_CONFIG = 2**20  # bytes of a config.json that is read for a message


def resolve(
    name: str | os.PathLike[str],
    filename: str | None = None,
    *,
    progress: bool = True,
    refresh: bool = False,
    parameter: str = "name",
) -> Path:
    """Return the local path of a model, downloading its files if they are missing.

    All parts of a split model are downloaded; the path is that of the first part.

    Args:
        name: A name that `llcuda cp` gave, "demo", a short name (in any case; without a
            quantization it is Q4_K_M), a path of a file or of a folder with one model, or a model
            on the Hugging Face Hub: `repo/id` (its Q4_K_M, or its only model), `repo/id:Q4_K_M`,
            `repo/id:file.gguf`, `repo/id` with `filename`, each also with `@revision` after the
            repository and after `hf:`, `hf://`, `hf.co/` or `https://huggingface.co/`;
            `hf://repo/id/file.gguf` or the address of a file; `ollama://name:tag` for a model of
            ollama on this machine, `file:///path`. A `pathlib.Path` is always a path.
        filename: The file, or the quantization, in the repository or folder that `name` names.
        progress: Whether to draw a bar on stderr, in a terminal and in a notebook.
        refresh: Whether to ask the hub for a newer version of a file in the cache.
        parameter: The caller's name of `name`, for an error.

    Returns:
        The path of a GGUF file, in the Hugging Face cache if it was downloaded.

    Raises:
        ModelNotFoundError: The model does not exist, or the file is not in the cache and the hub
            does not answer.
        ModelError: A download fails, or the disk is too small.
        ArgumentError: `name` and `filename` contradict each other.
        TypeError: `name` is neither a text nor a path.
    """
    source = parse(name, filename, parameter)
    return source if isinstance(source, Path) else _fetch(source, progress, refresh)


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
    source = parse(name, filename)
    if isinstance(source, Path):
        return source
    location = _locate(source, refresh=False)
    if isinstance(location, Path):
        return location
    info, parts = location
    return [
        RemoteFile(source.repo, part.rfilename, info.sha or "", part.size or 0) for part in parts
    ]


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


def listing() -> list[tuple[RegistryEntry, Path | None]]:
    """Return each model with a short name, and its path in the cache or None.

    Does not ask the network.
    """
    return [
        (entry, Repository(entry.repo).cached_path(part_names(entry.file)))
        for entry in registry().values()
    ]


# --- what a name means ---


def parse(
    name: str | os.PathLike[str],
    filename: str | None = None,
    parameter: str = "name",
    *,
    notes: bool = True,
) -> Path | HubName:
    """Return the path that a name means, or the model on the hub; nothing is downloaded.

    Args:
        name: The model, as `resolve` takes it.
        filename: The file, or the quantization, in the repository or folder that `name` names.
        parameter: The caller's name of `name`, for an error.
        notes: Whether to log a name that hides a file here, and another spelling. A check before
            the call that uses the name leaves them to that call.

    Raises:
        ModelNotFoundError: The name is no model's, or its path does not exist.
        ModelError: The path is not one model.
        ArgumentError: `name` and `filename` contradict each other.
        TypeError: `name` is neither a text nor a path.
    """
    text = path_text(name, parameter)
    if filename is not None:
        filename = path_text(filename, "filename")
    if not text:
        raise wrong_value(parameter, text, "is empty", remedy="give the name of a model, or a path")
    local_path(text, parameter)  # refuses what cannot be a path, such as one with a NUL
    if not isinstance(name, str):
        return _local(text, filename)
    exact = _exact_name(text, notes)
    if exact is not None:
        if filename is not None:
            rule = f"{text!r} names a file already"
            raise wrong_value("filename", filename, rule, remedy="leave it out")
        return exact
    if text.lower().startswith(OLLAMA_SCHEME):
        return _ollama(text[len(OLLAMA_SCHEME) :].removeprefix("//"), filename)
    source = parse_hub_name(text, filename)
    is_path = path_exists(Path(text))
    if source is not None and not (is_path and _is_bare(text)):
        return source
    path = local_text(text)
    if notes and source is not None:
        logger.warning(
            "%r is the file or folder here; write 'hf://%s' for the repository on the hub",
            *(text, text),
        )
    if path is not None or is_path:
        return _local(text if path is None else path, filename)
    if ":" in text and (model := ollama.find(text)):
        return _checked_ollama(model, filename)
    if near := lookup_spelling(text):
        if notes:
            logger.info("%r is read as %s", text, near)
        return near
    raise _unknown(text)


def _exact_name(text: str, notes: bool) -> Path | HubName | None:
    """Return what a name of the user's, "demo" or a short name stands for, or None."""
    source: Path | HubName | None
    if text == DEMO_NAME:
        source = demo_model()
    elif target := own_target(text):  # before short names, which a later version may have more of
        source = _own_meaning(text, target, notes)
    else:
        source = lookup(text)
    if notes and source is not None and path_exists(Path(text)):
        logger.warning(
            "%r is a name of %s; write './%s' for the file or folder here", text, source, text
        )
    return source


def _own_meaning(name: str, target: str, notes: bool) -> Path | HubName:
    try:
        return parse(Path(target) if target.startswith("/") else target, notes=notes)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{name} is a name that `llcuda cp` gave to {target}: {error}; `llcuda rm {name}`"
            " forgets it"
        ) from None


def _is_bare(text: str) -> bool:
    """Return whether a name could be a path too: it has no scheme and no host of the hub."""
    return not re.match(r"hf:|https?:|(www\.)?(hf\.co|huggingface\.co)/", text, re.IGNORECASE)


def _ollama(name: str, filename: str | None) -> Path:
    return _checked_ollama(ollama.get(name), filename)


def _checked_ollama(model: ollama.OllamaModel, filename: str | None) -> Path:
    if filename is not None:
        rule = f"{model.address} names a file already"
        raise wrong_value("filename", filename, rule, remedy="leave it out")
    return model.path()


def _local(text: str, filename: str | None) -> Path:
    """Return the path `text`, or of the model in this folder; for a split model its first part."""
    path = Path(text)
    if text == "~" or text.startswith("~/"):
        home = home_folder()
        if home is None:
            raise ModelError(f"{text}: this user has no home folder; set HOME, or give a full path")
        path = home / text[2:]
    if not path_exists(path):
        raise _missing(text, path)
    if path.is_dir():
        path = _file_in(path, filename)
    elif filename is not None:
        rule = f"{text!r} is a file already"
        raise wrong_value("filename", filename, rule, remedy="leave it out")
    if reason := unfinished(path):
        raise ModelError(reason)
    parts = [path.with_name(part) for part in part_names(path.name)]
    missing = [part for part in parts if not part.is_file()]
    if missing and len(parts) > 1:
        raise ModelNotFoundError(
            f"GGUF file not found: {missing[0]}, one of the {len(parts)} files of {path.name}"
        )
    return parts[0]


def _file_in(folder: Path, filename: str | None) -> Path:
    """Return the path of the model in a folder: in it, or in the folders directly in it."""
    if filename is not None and path_exists(folder / filename):
        return folder / filename
    try:
        files = [path.relative_to(folder).as_posix() for path in folder.iterdir()]
        models = [name for name in files if name.lower().endswith(".gguf")]
        if not models:
            files += [path.relative_to(folder).as_posix() for path in folder.glob("*/*.gguf")]
        config = folder / "config.json"
        content = config.read_bytes() if config.is_file() else b""
    except OSError as error:
        raise ModelError(f"cannot read {folder}: {error.strerror}") from error
    is_repository = re.fullmatch(REPOSITORY_ID, str(folder))
    hint = f"; the repository on the Hugging Face Hub is hf://{folder}" if is_repository else ""
    file = choose_file(str(folder), sorted(files), filename, "/", config=content, hint=hint)
    return folder / file


def _missing(text: str, path: Path) -> ModelNotFoundError:
    """Return the error for a path that does not exist: similar files, and a name on the hub."""
    parent = path.parent
    siblings = [file.name for file in parent.glob("*.gguf")] if path_exists(parent) else []
    similar = _did_you_mean(similar_names(path.name, siblings))
    on_hub = not text.startswith(".") and re.match(f"{REPOSITORY_ID}/", text)
    hub = f"; on the Hugging Face Hub: hf://{text}" if on_hub else ""
    return ModelNotFoundError(f"GGUF file not found: {path}{similar}{hub}")


def _unknown(text: str) -> ModelNotFoundError:
    """Return the error for a name that is not a model's: near names, and which are expected."""
    if "/" in text:
        return _missing(text, Path(text))
    further = [*own_names(), *(model.address for model in ollama.models())]
    is_file_name = Path(text).suffix.lower().startswith(".g")
    files = [path.name for path in Path().glob("*.gguf")] if is_file_name else []
    near = near_names(text, [DEMO_NAME, *further, *files])
    near += [name for name in further if text.lower() in name.lower() and name not in near]
    return ModelNotFoundError(
        f"no model is called {text!r}{_did_you_mean(near)}; expected a name that"
        f" `llcuda list --all` shows, the path of a .gguf file, repo/id or repo/id:Q4_K_M"
    )


def _did_you_mean(names: Sequence[str]) -> str:
    return f" (did you mean {', '.join(names)}?)" if names else ""


# --- which file of a repository or folder ---


def choose_file(
    where: str,
    files: Sequence[str],
    wanted: str | None,
    separator: str = ":",
    *,
    tags: Iterable[str] = (),
    config: bytes = b"",
    hint: str = "",
) -> str:
    """Return which file a name, a quantization or nothing means; of a split model the first.

    Args:
        where: The repository or folder, for errors.
        files: The paths of its files.
        wanted: The name of a file, a quantization such as "Q4_K_M" (`UD-Q4_K_M` is meant too if
            there is no plain one), or None for the default.
        separator: What stands between `where` and a file in a name.
        tags: The tags of a repository on the hub.
        config: The content of its config.json, if it has one.
        hint: The end of the message for a folder without GGUF files.

    Raises:
        ModelNotFoundError: No file, or more than one, is meant; the message names those there are.
    """
    if wanted in files:
        return part_names(str(wanted))[0]
    gguf = [file for file in files if file.lower().endswith(".gguf")]
    if not gguf:
        content = describe_files(files, list(tags), config).replace("SOURCE", where)
        raise ModelNotFoundError(f"{where} {content}{hint}")
    models = sorted({part_names(file)[0] for file in gguf if is_model(file)})
    if wanted and wanted.lower().endswith(".gguf"):
        similar = _did_you_mean(similar_names(wanted, gguf))
        raise ModelNotFoundError(f"{where} has no {wanted}{similar}; {_list(models)}")
    if wanted:
        matches = _with_quantization(models, wanted)
        if not matches:
            known = quantizations(models)
            listed = f"it has {', '.join(known)}" if known else _list(models)
            raise ModelNotFoundError(f"{where} has no {wanted} model; {listed}")
    elif len(models) == 1:
        matches = models
    else:
        by_default = (_with_quantization(models, quantization) for quantization in _DEFAULTS)
        matches = next(filter(None, by_default), models)
    if len(matches) != 1:
        what = f" {wanted}" if wanted else ""
        count = len(matches) or "no"
        name_one = f": name one, such as {where}{separator}{matches[0]}" if matches else ""
        raise ModelNotFoundError(
            f"{where} has {count}{what} models{name_one}; {_list(matches or gguf)}"
        )
    if not wanted and len(models) > 1:
        logger.info("%s: its file %s is taken", where, matches[0])
    return matches[0]


def is_model(file: str) -> bool:
    """Return whether a GGUF file is a model by its name, and no projector or importance matrix.

    Args:
        file: The name or path of the file.
    """
    return not _NOT_A_MODEL.search(file)


def quantizations(files: Iterable[str]) -> list[str]:
    """Return the quantizations in the names of files, each once, in the order of the files.

    Args:
        files: Names or paths of GGUF files.
    """
    matches = (_QUANTIZATION.search(file) for file in files)
    return list(dict.fromkeys(match[1].upper() for match in matches if match))


def _with_quantization(models: Sequence[str], wanted: str) -> list[str]:
    """Return the files with a quantization, or with a name without .gguf."""
    # "UD-Q4_K_M" is a quantization of its own. It is meant if there is no plain Q4_K_M.
    tag = re.compile(rf"(?:^|[-._/])(UD-)?{re.escape(wanted)}(?=[-./])", re.IGNORECASE)
    matches = {file: match for file in models if (match := tag.search(file))}
    return [file for file, match in matches.items() if not match[1]] or list(matches)


def _list(files: Sequence[str]) -> str:
    """Return some files as the end of a message."""
    more = f"\n  and {len(files) - MAX_LISTED} more" if len(files) > MAX_LISTED else ""
    return "it has:\n  " + "\n  ".join(files[:MAX_LISTED]) + more


# --- files on the hub ---


def _fetch(source: HubName, progress: bool, refresh: bool) -> Path:
    """Return the path in the cache of a model on the hub."""
    location = _locate(source, refresh)
    if isinstance(location, Path):
        return location
    info, parts = location
    repository = Repository(source.repo, source.revision)
    size = sum(part.size or 0 for part in parts)
    logger.info("downloading %s:%s (%.2f GB)", source.repo, parts[0].rfilename, size / 1e9)
    return repository.download(parts, info.sha, progress=progress)[0]


def _locate(source: HubName, refresh: bool) -> Path | tuple[ModelInfo, list[RepoSibling]]:
    """Return the path in the cache, or the version of the repository and the file's parts."""
    repository = Repository(source.repo, source.revision)
    if not refresh and (path := _cached(repository, source, certain=True)):
        return path
    try:
        info = repository.ask(source.file)
    except HubUnreachableError:
        path = None if refresh else _cached(repository, source, certain=False)
        if path is None:
            raise
        return path
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    config = _config(repository, info, siblings)
    file = choose_file(
        source.repo, list(siblings), source.file, tags=info.tags or (), config=config
    )
    parts = part_names(file)
    if missing := [part for part in parts if part not in siblings]:
        raise ModelNotFoundError(f"{source.repo} lacks {missing[0]}, one of the parts of {file}")
    return info, [siblings[part] for part in parts]


def _config(repository: Repository, info: ModelInfo, siblings: Mapping[str, RepoSibling]) -> bytes:
    """Return the config.json of a repository without GGUF files, which names MLX's weights."""
    config = siblings.get("config.json")
    if config is None or (config.size or 0) > MAX_CONFIG:
        return b""
    suffixes = {Path(file).suffix.lower() for file in siblings}
    if ".gguf" in suffixes or ".safetensors" not in suffixes:
        return b""
    try:
        return repository.download([config], info.sha, progress=False)[0].read_bytes()
    except (ModelError, OSError):  # the message about the repository does without it
        return b""


def _cached(repository: Repository, source: HubName, *, certain: bool) -> Path | None:
    """Return the path of a model in the cache, or None.

    Args:
        repository: The repository.
        source: The model.
        certain: Whether to return only what the hub would choose too. It has more files than the
            cache, so that a file is certain that is named, or has the plain quantization.
    """
    if source.file and source.file.lower().endswith(".gguf"):
        return repository.cached_path(part_names(source.file))
    files = repository.cached_files()
    if not any(file.lower().endswith(".gguf") for file in files):
        return None
    wanted = source.file or (DEFAULT_QUANTIZATION if certain else None)
    try:
        file = choose_file(source.repo, files, wanted)
    except ModelNotFoundError:
        if certain:
            return None
        raise
    plain = wanted is None or not re.search(rf"UD-{re.escape(wanted)}", file, re.IGNORECASE)
    return repository.cached_path(part_names(file)) if plain or not certain else None
