"""The grammar of model names: what a text means, without asking the network or reading a file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from llcuda.errors import ArgumentError
from llcuda.params import wrong_value

REPOSITORY_ID = r"[\w.-]+/[\w.-]+"
# The revision in a path may hold a slash: refs/pr/3.
_REVISION = r"refs/[\w.-]+/[\w.-]+|[\w.-]+"
_HUB_PATH = re.compile(rf"({REPOSITORY_ID})(?:@({_REVISION}))?(?:([:/])(.+))?")
_PAGE = re.compile(rf"(?:blob|resolve|raw|tree)/({_REVISION})(?:/(.*))?")
_HUB_HOST = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/+", re.IGNORECASE)
_HUB_SCHEME = re.compile(r"hf:(?://)?", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_NOT_REPOSITORIES = ("datasets", "spaces", "models", "collections", "docs", "api", "papers")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
QUANTIZATION = (  # in the name of a file
    r"(?:UD-)?(?:I?Q\d(?:_\w+)?|TQ\d_\d|B?F16|F32|FP(?:16|32)|MXFP4(?:_\w+)?|NVFP4)"
)

OLLAMA_SCHEME = "ollama:"
FORMS = "repo/id, repo/id:Q4_K_M, repo/id:file.gguf, or an address https://huggingface.co/repo/id"


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on the Hugging Face Hub, as a name means it.

    Attributes:
        repo: The repository, `owner/name`.
        file: The path of a file in the repository, or a quantization such as "Q4_K_M"; None is the
            model that the repository offers first.
        revision: A branch, tag or commit of the repository; None is its newest version.
    """

    repo: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}:{self.file}" if self.file else f"{self.repo}{revision}"


def parse_hub_name(text: str, filename: str | None = None) -> HubName | None:
    """Return the model on the hub that a text means, or None for a text of another form.

    Args:
        text: `repo/id`, `repo/id:file.gguf`, `repo/id:Q4_K_M`, with `@revision` after the
            repository where another than the newest is meant; the same after `hf:`, `hf://`,
            `hf.co/` or `huggingface.co/`; `hf://repo/id/file.gguf`; or an address of a repository
            or a file on the hub. A path that `local_text` recognizes is not one of these.
        filename: The file in the repository, if `text` does not name it.

    Raises:
        ArgumentError: `text` begins as an address and is not one of a model, or it and `filename`
            contradict each other.
    """
    path = _path_on_hub(text)
    if path is None and local_text(text) is not None:
        return None
    match = _HUB_PATH.fullmatch(text if path is None else path.rstrip("/"))
    if path is None:
        if not match or match[3] == "/":
            return None
    elif not match or match[1].partition("/")[0] in _NOT_REPOSITORIES:
        raise ArgumentError(f"{text!r}: is not the address of a model; expected {FORMS}")
    repo, revision, separator, inside = match.groups()
    if separator == "/" and (page := _PAGE.fullmatch(inside)):
        revision, inside = page.groups()
        revision = None if revision == "main" else revision
    if inside and inside.lower() == "latest":  # ollama's tag of a model without one
        inside = None
    if inside and filename and inside != filename:
        rule = f"{text!r} names another file, {inside!r}"
        raise wrong_value("filename", filename, rule, remedy="give only one")
    file = inside or filename or None
    if file and (file.startswith("/") or "\\" in file or ".." in file.split("/")):
        raise ArgumentError(f"{file!r}: expected the name of a file in the repository {repo}")
    return HubName(repo, file, revision)


def _path_on_hub(text: str) -> str | None:
    """Return what follows the hub's address or scheme in a text, or None without one."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if endpoint and text.startswith(f"{endpoint}/"):
        return _path_of_page(text[len(endpoint) :])
    if prefix := _HUB_HOST.match(text):
        return _path_of_page(text[prefix.end() - 1 :])
    if prefix := _HUB_SCHEME.match(text):
        return text[prefix.end() :]
    return None


def _path_of_page(address: str) -> str:
    """Return the path of an address of the hub, with the file that its page shows."""
    parts = urlsplit(re.sub("^/+", "/", address))
    shown_file = parse_qs(parts.query).get("show_file_info", [""])[0]
    path = unquote(parts.path).strip("/")
    return f"{path}:{shown_file}" if shown_file and path.count("/") == 1 else path


def local_text(text: str) -> str | None:
    """Return the path that a text certainly is, or None.

    Args:
        text: A path that begins with `/`, `./`, `../`, `~` or `file:`, or ends with `.gguf`.

    Raises:
        ArgumentError: An address names a file of another machine, or has an unknown scheme.
    """
    if text.lower().startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            rule = f"{text!r}: names a file of the machine {parts.netloc!r}"
            raise ArgumentError(f"{rule}; on this machine it is file:///PATH")
        return unquote(parts.path)
    if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
        return text
    if scheme := _SCHEME.match(text):
        raise ArgumentError(_unknown_scheme(text, scheme[1].lower()))
    return text if text.lower().endswith(".gguf") and ":" not in text else None


def _unknown_scheme(text: str, scheme: str) -> str:
    """Return the message for an address that nothing here can read."""
    if scheme not in ("http", "https"):
        return (
            f"{text!r}: unknown scheme {scheme!r}; expected hf://, ollama://, file:// or https://"
        )
    host = urlsplit(text).netloc.lower()
    if host.endswith(("ollama.com", "ollama.ai")):
        name = text.rstrip("/").rpartition("/")[2]
        return (
            f"{text!r}: llcuda does not download from ollama's registry; "
            f"`ollama pull {name}`, then ollama://{name}"
        )
    return (
        f"{text!r}: llcuda downloads from huggingface.co only (HF_ENDPOINT names another hub);"
        " download the file yourself, then give its path"
    )


def served_name(text: str) -> str:
    """Return what a server calls a model that it was given without a name.

    Args:
        text: The name of the model, as `resolve` takes it.

    Returns:
        The name of its file without `.gguf`; the repository, with a quantization, without scheme
        and host; ollama's name; another text as it is.

    Raises:
        ArgumentError: `text` is an address that is not a model's.
    """
    if text.lower().startswith(OLLAMA_SCHEME):
        return text[len(OLLAMA_SCHEME) :].removeprefix("//")
    source = parse_hub_name(text)
    file = text if source is None else source.file or ""
    if file.lower().endswith(".gguf"):
        return PurePosixPath(file).stem
    return text if source is None else str(source)


def part_names(file: str) -> list[str]:
    """Return the names of all parts of a split model; `file` alone for another model.

    Args:
        file: The name or path of a file, such as `model-00002-of-00003.gguf`.
    """
    match = _PART.search(file)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        return [file]
    stem, end = file[: match.start(1)], file[match.end(1) :]
    return [f"{stem}{number:05}{end}" for number in range(1, int(match[2]) + 1)]
