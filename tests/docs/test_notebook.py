"""The notebook for Colab: well-formed, and what needs no GPU and no network runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "colab_t4.ipynb"
DOCUMENT: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CELLS = [cell for cell in DOCUMENT["cells"] if cell["cell_type"] == "code"]
# What stands for the model and for sizes that a processor would take minutes for.
SMALLER = {
    '"gemma-3-1b-Q4_K_M"': '"demo"',
    "(2048, 4096, 8192)": "(64, 128)",
    "max_tokens=128": "max_tokens=16",
}


def source(cell: dict[str, Any]) -> str:
    """Return a cell's Python, its shell commands and magics as `pass`."""
    return re.sub(r"(?m)^( *)[!%].*$", r"\1pass", "".join(cell["source"]))


def test_the_format() -> None:
    """Version 4.5 of nbformat: every cell with an id of its own, code without outputs."""
    assert (DOCUMENT["nbformat"], DOCUMENT["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in DOCUMENT["cells"]]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    for cell in DOCUMENT["cells"]:
        assert {"cell_type", "id", "metadata", "source"} <= cell.keys()
        assert cell["cell_type"] in ("code", "markdown")
        assert all(isinstance(line, str) for line in cell["source"])
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


def test_the_schema() -> None:
    """As nbformat itself checks it, where it is installed."""
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.from_dict(DOCUMENT))


def test_it_says_what_was_not_measured() -> None:
    """The figures of the older documents are named as theirs."""
    text = "".join("".join(cell["source"]) for cell in DOCUMENT["cells"][:1])
    assert "never measured by us on a T4" in text


def test_every_cell_compiles() -> None:
    """Also those that install."""
    for cell in CELLS:
        compile(source(cell), cell["id"], "exec")


def test_the_cells_run_with_the_demo_model(capsys: pytest.CaptureFixture[str]) -> None:
    """In their order, but for those that install; each shows something."""
    scope: dict[str, Any] = {"__name__": "notebook"}
    replaced = set()
    for cell in CELLS:
        if "install" in cell["metadata"].get("tags", ()):
            continue
        text = source(cell)
        for long, short in SMALLER.items():
            replaced |= {long} if long in text else set()
            text = text.replace(long, short)
        exec(compile(text, cell["id"], "exec"), scope)
        assert capsys.readouterr().out.strip(), cell["id"]
    assert replaced == SMALLER.keys()
    assert not scope["engine"].is_loaded
