"""CONTRIBUTING.md and docs/decisions.md show the packages that there are."""

import re

from tests.docs.house import DOCUMENT, draw
from tests.support.documents import DOCS, ROOT, blocks
from tests.test_imports import ORDER

FOLDERS = {
    folder.name
    for folder in (ROOT / "llcuda").iterdir()
    if folder.is_dir() and folder.name not in ("lib", "__pycache__")
}


def test_the_picture_is_current() -> None:
    """The picture is the one that `python -m tests.docs.house` draws."""
    (picture,) = blocks(DOCUMENT, "mermaid")
    assert draw() == picture.text


def test_tree_names_the_packages() -> None:
    """The annotated tree names every package of llcuda, and no other."""
    (tree,) = blocks(DOCUMENT, "text")
    assert FOLDERS == set(re.findall(r"(?m)^  (\w+)/", tree.text))


def test_the_house_names_the_packages() -> None:
    """The section that tests/test_imports.py cites has a row for each package."""
    text = (DOCS / "decisions.md").read_text(encoding="utf-8")
    section = text.partition("The house\n")[2].partition("\n## ")[0]
    rows = set(re.findall(r"(?m)^\| `(\w+)/`", section))
    packages = {name for names in ORDER for name in names} & FOLDERS
    assert packages <= rows
    assert rows - {"llcuda"} <= FOLDERS
