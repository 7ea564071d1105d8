"""Links between the documents lead somewhere; `make docs` checks those of the pages again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.documents import DOCS, ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", document.read_text(encoding="utf-8"))
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(document: Path) -> None:
    """A relative link names a file that is there, and a heading in it."""
    text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", document.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link
        if document.is_relative_to(DOCS):  # mkdocs shows what is in the folder, and nothing else
            assert target.is_relative_to(DOCS), link
