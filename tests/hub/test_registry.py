"""llcuda.hub.registry: the short names, and the spellings that lead to them."""

from __future__ import annotations

import re

import pytest

from llcuda.hub.names import REPOSITORY_ID, HubName
from llcuda.hub.registry import (
    RegistryEntry,
    default_entry,
    lookup,
    lookup_spelling,
    near_names,
    registry,
)

GEMMA = "unsloth/gemma-3-1b-it-GGUF"
GEMMA_FILE = "gemma-3-1b-it-Q4_K_M.gguf"


# Bits a weight, at least and at most; small models have larger embeddings.
BITS = {"MXFP4": (4, 5.5), "Q4_K_M": (4, 7.5), "Q5_K_M": (5, 7.5), "Q8_0": (8, 9.5)}
KINDS = {"chat", "reasoning", "coder", "vision", "base", "embedding", "rerank"}


@pytest.mark.parametrize("entry", registry().values(), ids=registry())
def test_an_entry_is_well_formed(entry: RegistryEntry) -> None:
    """A GGUF file of a repository that fits its name, with a size that fits its weights."""
    assert re.fullmatch(r"[a-z0-9.-]+", entry.model)
    assert entry.name == f"{entry.model}-{entry.quantization}"
    assert re.fullmatch(REPOSITORY_ID, entry.repo)
    tag = "q4" if "Phi-3-mini" in entry.file else entry.quantization.lower()
    assert re.search(rf"[-.]{tag}(-00001-of-\d{{5}})?\.gguf$", entry.file.lower())
    size = re.search(r"-(\d+(?:\.\d+)?[bm])(-|$)", entry.model)
    assert size is None or size[1] in f"{entry.repo}/{entry.file}".lower()
    low, high = BITS[entry.quantization]
    assert low < 8 * entry.gigabytes / entry.parameters < high
    assert 2048 <= entry.context <= 262144
    assert entry.license
    assert entry.kind in KINDS


def test_the_registry_has_every_kind() -> None:
    """And no two names that only separators or case tell apart."""
    assert {entry.kind for entry in registry().values()} == KINDS
    names = [*registry(), *{entry.model for entry in registry().values()}]
    assert len({re.sub("[-_:]", "", name.lower()) for name in names}) == len(names)


@pytest.mark.parametrize(
    "family",
    [
        *("gemma-3-1b", "gemma-3-4b", "gemma-3-12b", "gemma-2-2b"),
        *("llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b", "qwen2.5-1.5b", "qwen2.5-3b"),
        *("qwen2.5-7b", "phi-3-mini", "phi-4", "mistral-7b", "tinyllama-1.1b"),
        *("deepseek-r1-qwen-1.5b", "deepseek-r1-qwen-7b", "deepseek-r1-llama-8b"),
        *("qwen3-8b", "qwen3.5-9b", "qwen3.8-27b", "gemma-3n-e4b", "gemma-4-12b", "smollm3-3b"),
        *("qwen2.5-coder-7b", "qwen3-coder-30b-a3b", "qwen3-vl-8b", "ministral-3-8b"),
    ],
)
def test_registry_has_every_promised_model(family: str) -> None:
    """Each in Q4_K_M."""
    assert f"{family}-Q4_K_M" in registry()


def test_the_contracts_name_is_the_contracts_file() -> None:
    """The name that users already write."""
    entry = registry()["gemma-3-1b-Q4_K_M"]
    assert (entry.repo, entry.file) == (GEMMA, GEMMA_FILE)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("gemma3:1b", "gemma-3-1b-Q4_K_M"),
        ("gemma-3-1b-it", "gemma-3-1b-Q4_K_M"),
        ("Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b-Q4_K_M"),
        ("qwen2.5-coder:0.5b", "qwen2.5-coder-0.5b-Q4_K_M"),
        ("llama3.2:1b-instruct-q4_K_M", "llama-3.2-1b-Q4_K_M"),
        ("llama3.2:1b-instruct-q5_K_M", "llama-3.2-1b-Q5_K_M"),
        ("phi4", "phi-4-Q4_K_M"),
        ("phi4-mini", "phi-4-mini-Q4_K_M"),
        ("gpt-oss:20b", "gpt-oss-20b-MXFP4"),
        ("qwen3-4b-instruct-2507", "qwen3-4b-2507-Q4_K_M"),
        ("gemma4:e2b", "gemma-4-e2b-Q4_K_M"),
        ("deepseek-r1:1.5b", "deepseek-r1-qwen-1.5b-Q4_K_M"),
        ("deepseek-r1:8b", "deepseek-r1-0528-qwen3-8b-Q4_K_M"),
        ("nomic-embed-text", "nomic-embed-text-v1.5-Q8_0"),
    ],
)
def test_other_spellings(spelling: str, name: str) -> None:
    """As ollama, the hub and people write a name."""
    entry = registry()[name]
    found = lookup(spelling) or lookup_spelling(spelling)
    assert found == HubName(entry.repo, entry.file)


def test_a_model_alone_is_its_default_quantization() -> None:
    """Q4_K_M, or else the first; in any case, with a tag, and with one that only the hub has."""
    assert default_entry("gpt-oss-20b").quantization == "MXFP4"
    assert lookup("GEMMA-3-1B") == HubName(GEMMA, GEMMA_FILE) == lookup("gemma-3-1b:latest")
    assert lookup("gemma-3-1b:q4_k_m") == HubName(GEMMA, "q4_k_m")
    assert lookup("gemma-3-1b-Q2_K") == HubName(GEMMA, "Q2_K")
    assert lookup("gemma-3-1b-Q4_K_M-Q2_K") is None
    assert lookup("gemma-3-1b:zzz") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gemma3", ["gemma-3-270m", "gemma-3-1b", "gemma-3-4b", "gemma-3-12b"]),
        ("Llama", ["llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.3-70b"]),
        ("qwen2.5-coder", ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "qwen2.5-coder-3b"]),
        ("gema-3-1b", ["gemma-3-1b"]),
        ("embed", ["embeddinggemma-300m"]),
        ("coder", ["qwen2.5-coder-0.5b"]),
        ("zzz", []),
        ("", []),
    ],
)
def test_near_names(text: str, expected: list[str]) -> None:
    """The models of a family, those that differ by a few letters, those with the word in them."""
    near = near_names(text)
    assert near[: len(expected)] == expected
    assert len(near) <= 8
    assert bool(near) == bool(expected)
