"""llcuda.hub.registry: the short names, and the spellings that lead to them."""

from __future__ import annotations

import re

import pytest

from llcuda.hub.names import REPOSITORY_ID
from llcuda.hub.registry import registry

GEMMA = "unsloth/gemma-3-1b-it-GGUF"
GEMMA_FILE = "gemma-3-1b-it-Q4_K_M.gguf"


def test_registry_is_complete_and_well_formed() -> None:
    """At least 21 names; each has a GGUF file of a repository that fits its name."""
    entries = registry()
    assert len(entries) >= 21
    assert len({name.lower() for name in entries}) == len(entries)
    for name, entry in entries.items():
        assert re.fullmatch(r"[a-z0-9.-]+-Q[45]_K_M", name)
        assert name == entry.name
        assert name.endswith(entry.quantization)
        assert re.fullmatch(REPOSITORY_ID, entry.repo)
        tag = "q4" if "Phi-3-mini" in entry.file else entry.quantization.lower()
        assert entry.file.lower().endswith(f"{tag}.gguf")
        size = re.search(r"-(\d+(?:\.\d+)?b)-", name)
        assert size is None or size[1] in entry.file.lower()
        bits = 8 * entry.gigabytes / entry.parameters
        assert 4 < bits < 7.5, f"{name}: {bits} bits a weight"
        assert entry.context in {2**n for n in range(11, 18)}
        assert entry.license


@pytest.mark.parametrize(
    "family",
    [
        *("gemma-3-1b", "gemma-3-4b", "gemma-3-12b", "gemma-2-2b"),
        *("llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b", "qwen2.5-1.5b", "qwen2.5-3b"),
        *("qwen2.5-7b", "phi-3-mini", "phi-4", "mistral-7b", "tinyllama-1.1b"),
        *("deepseek-r1-qwen-1.5b", "deepseek-r1-qwen-7b", "deepseek-r1-llama-8b"),
    ],
)
def test_registry_has_every_promised_model(family: str) -> None:
    """Each in Q4_K_M."""
    assert f"{family}-Q4_K_M" in registry()


def test_the_contracts_name_is_the_contracts_file() -> None:
    """The name that users already write."""
    entry = registry()["gemma-3-1b-Q4_K_M"]
    assert (entry.repo, entry.file) == (GEMMA, GEMMA_FILE)
