"""Draws the packages as floors that import those below; the data are tests/test_imports.py's.

`python -m tests.docs.house` writes the picture into CONTRIBUTING.md.
"""

from __future__ import annotations

from tests.support.documents import ROOT, blocks
from tests.test_imports import ORDER, PACKAGE

DOCUMENT = ROOT / "CONTRIBUTING.md"


def draw() -> str:
    """Return the picture as mermaid text: one box for each line of ORDER, the last one on top."""
    lines = ["flowchart TD"]
    for floor, names in reversed([*enumerate(ORDER)]):
        shown = [
            f"{name}/" if (PACKAGE / name).is_dir() else name
            for name in sorted(names)
            if not name.startswith("__")
        ]
        if shown:
            lines.append(f'    floor{floor}["{", ".join(shown)}"]')
    boxes = [line.split("[")[0].strip() for line in lines[1:]]
    lines.append(f"    {' --> '.join(boxes)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the picture in the document."""
    (picture,) = blocks(DOCUMENT, "mermaid")
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(text.replace(picture.text, draw()), encoding="utf-8")


if __name__ == "__main__":
    main()
