"""The cells of the notebooks, run without IPython.

A cell's line `!command` runs in a shell and shows its output, `name = !command` keeps the lines of
the output, and `%pip ...` is only noted. In a command `{name}` stands for a value, as in IPython.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.documents import environment

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
NETWORK = "network"  # the tag of cells that are not run here
LINES = (  # of IPython: the pattern, and the call that stands for it
    (r"^( *)%pip (.*)$", r"\1_pip(f'''\2''')"),
    (r"^( *)(\w+) = !(.*)$", r"\1\2 = _lines(f'''\3''')"),
    (r"^( *)!(.*)$", r"\1print('\\n'.join(_lines(f'''\2''')))"),
)


@dataclass(frozen=True)
class Cell:
    """A cell. kind: "code" or "markdown"."""

    id: str
    kind: str
    tags: tuple[str, ...]
    text: str

    @property
    def python(self) -> str:
        """The text with calls in place of IPython's lines."""
        text = self.text
        for pattern, call in LINES:
            text = re.sub(pattern, call, text, flags=re.M)
        return text


def cells(notebook: Path) -> list[Cell]:
    """Return the cells of a notebook."""
    return [
        Cell(
            cell["id"], cell["cell_type"], tuple(cell["metadata"].get("tags", ())),
            "".join(cell["source"]),
        )
        for cell in json.loads(notebook.read_text("utf-8"))["cells"]
    ]  # fmt: skip


@dataclass
class Session:
    """A kernel: the names that cells define, and what they asked pip to do.

    Attributes:
        replacements: Texts of the cells, and what stands for them here.
        names: The names that the cells define.
        pip: The arguments of each `%pip`.
        replaced: The texts that were replaced.
    """

    replacements: Mapping[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)
    pip: list[str] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names |= {"__name__": "notebook", "_pip": self.pip.append, "_lines": lines}

    def run(self, cell: Cell) -> None:
        """Run a code cell."""
        python = cell.python
        for long, short in self.replacements.items():
            if long in python:
                self.replaced.add(long)
                python = python.replace(long, short)
        exec(compile(python, cell.id, "exec"), self.names)

    def run_all(self, notebook: Path) -> Iterator[Cell]:
        """Run the code cells that need no network in their order; yield each after it ran."""
        for cell in cells(notebook):
            if cell.kind == "code" and NETWORK not in cell.tags:
                self.run(cell)
                yield cell


def lines(command: str) -> list[str]:
    """Return the lines that a shell command prints, on stderr too; `llcuda` is this one."""
    result = subprocess.run(
        command, shell=True, text=True, env=environment(), timeout=600, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return result.stdout.splitlines()
