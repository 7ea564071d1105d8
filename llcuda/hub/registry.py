"""The registry: short names of models on the Hugging Face Hub, and the names that are near one."""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llcuda.files import data_file
from llcuda.hub.names import QUANTIZATION, HubName

DEFAULT_QUANTIZATION = "Q4_K_M"
MAX_NEAR = 8  # names in a message
_FILLERS = {"instruct", "it", "chat", "latest", "gguf"}  # words that spellings of a name may lack


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """A model with a short name, in one quantization.

    Attributes:
        name: The short name, `MODEL-QUANTIZATION`.
        repo: The repository on the hub, `owner/name`.
        file: The file in the repository.
        quantization: The type of the weights, e.g. "Q4_K_M".
        gigabytes: The size of the file in units of 10^9 bytes.
        parameters: The number of weights in units of 10^9.
        context: The tokens of context that the model was trained with.
        license: The name of the model's license.
        model: The name without the quantization; it stands for Q4_K_M, or else for the first
            quantization in the registry.
        kind: What the model is for: "chat", "reasoning", "coder", "vision", "base", "embedding" or
            "rerank".
    """

    name: str
    repo: str
    file: str
    quantization: str
    gigabytes: float
    parameters: float
    context: int
    license: str
    model: str
    kind: str


@functools.cache
def _facts() -> Mapping[str, Mapping[str, Any]]:
    """Return what the registry's file says of each model, by the model's short name."""
    return tomllib.loads(data_file("registry.toml").read_text(encoding="utf-8"))


@functools.cache
def _models() -> Mapping[str, Mapping[str, RegistryEntry]]:
    """Return the quantizations of each model, by the model's short name."""
    return {
        model: {
            quantization: RegistryEntry(
                name=f"{model}-{quantization}",
                repo=facts["repo"],
                file=file,
                quantization=quantization,
                gigabytes=gigabytes,
                parameters=facts["parameters"],
                context=facts["context"],
                license=facts["license"],
                model=model,
                kind=facts["kind"],
            )
            for quantization, (file, gigabytes) in facts["files"].items()
        }
        for model, facts in _facts().items()
    }


@functools.cache
def registry() -> Mapping[str, RegistryEntry]:
    """Return the models with a short name, by that name (e.g. "gemma-3-1b-Q4_K_M")."""
    return {entry.name: entry for entries in _models().values() for entry in entries.values()}


def default_entry(model: str) -> RegistryEntry:
    """Return what the name of a model without a quantization stands for.

    Args:
        model: A model of the registry.
    """
    entries = _models()[model]
    return entries.get(DEFAULT_QUANTIZATION) or next(iter(entries.values()))


def entry_of(text: str) -> RegistryEntry | None:
    """Return the model of the registry that a name means, in whatever spelling, or None.

    Args:
        text: A short name.
    """
    source = lookup(text) or lookup_spelling(text)
    entries = (entry for entry in registry().values() if source and entry.repo == source.repo)
    return next(entries, None)


def lookup(text: str) -> HubName | None:
    """Return the model that a short name stands for, in any case, or None.

    Args:
        text: `MODEL`, `MODEL-QUANTIZATION` or `MODEL:QUANTIZATION`; also with a quantization that
            only the repository has.
    """
    if entry := _by_lower_name().get(text.lower()):
        return HubName(entry.repo, entry.file)
    match = re.fullmatch(rf"(.+)[-:]({QUANTIZATION}|latest)", text, re.IGNORECASE)
    entry = _by_lower_name().get(match[1].lower()) if match else None
    if match is None or entry is None or entry.model.lower() != match[1].lower():
        return None
    if match[2].lower() == "latest":  # ollama's tag of a model without one
        return HubName(entry.repo, entry.file)
    return HubName(entry.repo, match[2])


def lookup_spelling(text: str) -> HubName | None:
    """Return the only model whose short name, or ollama's name, is spelled almost so, or None.

    Args:
        text: A name with other separators or without words like "instruct": "gemma3:1b",
            "Qwen2.5-1.5B-Instruct", "llama3.2:1b-instruct-q4_K_M".
    """
    entry = _by_spelling().get(_spelling(text))
    return HubName(entry.repo, entry.file) if entry else None


def near_names(text: str, further: Iterable[str] = ()) -> list[str]:
    """Return the short names that a text may have meant, the nearest first.

    Args:
        text: The text.
        further: Names beside those of the registry.
    """
    word = _spelling(text)
    by_spelling = {_spelling(name): name for name in [*further, *_models()]}
    families = [name for spelling, name in by_spelling.items() if word and spelling[:1] == word[:1]]
    families = [name for name in families if _spelling(name).startswith(word)]
    similar = similar_names(text, [*by_spelling.values(), *registry()])
    if not families and not similar and len(word) > 2:
        families = [name for spelling, name in by_spelling.items() if word in spelling]
    return list(dict.fromkeys([*families, *similar]))[:MAX_NEAR]


def similar_names(text: str, names: Iterable[str]) -> list[str]:
    """Return the names that differ from a text by a few characters, the nearest first.

    Args:
        text: The text.
        names: The names to compare with it.
    """
    by_lower = {name.lower(): name for name in names}
    return [by_lower[m] for m in difflib.get_close_matches(text.lower(), by_lower, n=4)]


@functools.cache
def _by_lower_name() -> Mapping[str, RegistryEntry]:
    entries = {model.lower(): default_entry(model) for model in _models()}
    return entries | {name.lower(): entry for name, entry in registry().items()}


@functools.cache
def _by_spelling() -> Mapping[str, RegistryEntry]:
    others = {facts["also"]: model for model, facts in _facts().items() if "also" in facts}
    entries = {**{name: default_entry(model) for name, model in others.items()}, **_by_lower_name()}
    return {_spelling(name): entry for name, entry in entries.items()}


def _spelling(text: str) -> str:
    """Return a name without separators, case and words that names may lack."""
    words = re.split(r"[-_:\s]+", text.lower().removesuffix(".gguf"))
    return "".join(word for word in words if word not in _FILLERS)
