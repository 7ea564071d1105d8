"""Fenced blocks of the project's documents, and the files that they name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import llcuda
from tests.support import models

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GUIDES = sorted(DOCS.glob("*.md"))
# A test has no network; the demo model stands for the registry's.
OFFLINE = {'"gemma-3-1b-Q4_K_M"': '"demo"'}
SERVER_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Block:
    """A fenced block of a document. line: where its first line is, counted from 1."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"

    def run(self, replacements: Mapping[str, str] = OFFLINE, **names: object) -> None:
        """Run a Python block, with some texts replaced and with these names."""
        text = self.text
        for printed, replacement in replacements.items():
            text = text.replace(printed, replacement)
        code = compile("\n" * (self.line - 1) + text, self.document, "exec")
        exec(code, {"__name__": self.document.stem, **names})


def blocks(document: Path, *languages: str) -> list[Block]:
    """Return the blocks of a document, of some languages or of all."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(document, text.count("\n", 0, match.start(2)) + 1, match[1], match[2])
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
        if not languages or match[1] in languages
    ]


def commands(document: Path) -> list[str]:
    """Return the commands of a document's bash blocks, without comments."""
    lines = "".join(block.text for block in blocks(document, "bash")).splitlines()
    return [line.partition("#")[0].strip() for line in lines]


def environment() -> dict[str, str]:
    """Return an environment in which `llcuda` is the command of this interpreter."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def place_files(folder: Path) -> None:
    """Put the model files that the guides name into a folder; their weights are random."""
    (folder / "model.gguf").symlink_to(llcuda.demo_model())
    for name, content in {
        "base-model": models.llama(),
        "adapter": models.lora(),
        "embedding-model": models.bert(),
        "rerank-model": models.reranker(),
    }.items():
        models.write(folder / f"{name}.gguf", *content)


def check_curl(command: str) -> None:
    """Run a curl command in a shell; it has to be answered with 200 and a body."""
    result = subprocess.run(
        command.replace("curl", "curl --fail"),
        shell=True, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert 0 == result.returncode, result.stderr
    assert result.stdout.strip()
