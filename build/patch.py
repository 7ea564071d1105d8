"""Lay out the source that is built: links to a llama.cpp tree, and copies of the files we patch.

A patch is one file in patches/, `NAME.toml`: `why` it exists, the `figure` it gave, the `switch`
(an environment variable that turns it off in a running program) and its `edits`. It may name
patches that it `needs`, and the `parameter` of a model that asks for it. An edit names a `file`, an
anchor in it (`before`, `after` or `instead_of` which the `text` goes) that must occur exactly once,
and the text. Anchors are looked up in the pristine text, so patches have no order.

The tree that is read is never written to. Each file that a patch names is a copy, patched or not,
and is written only when its text changes: a patch that is turned on or off recompiles what it
concerns. Usage: patch.py SOURCE TREE ON|OFF|NAME... Prints two lines for CMake: the patches with
',' between, and the files of SOURCE that were copied with ';' between.
"""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

PATCHES = Path(__file__).resolve().parent / "patches"
ADVICE = "build without it: cmake.define.LLCUDA_PATCHES=OFF, or the names of those to apply"


def main(source: Path, tree: Path, choice: Sequence[str]) -> None:
    """Lay out `tree` over `source` with the chosen patches."""
    patches = {p.stem: tomllib.loads(p.read_text()) for p in sorted(PATCHES.glob("*.toml"))}
    chosen = choose(choice, list(patches))
    for name in chosen:
        for needed in patches[name].get("needs", ()):
            if needed not in chosen:
                sys.exit(
                    f"error: LLCUDA_PATCHES={';'.join(choice)}: the patch {name} needs {needed}"
                )
    edits: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for name, patch in patches.items():
        for edit in patch["edits"]:
            edits.setdefault(edit["file"], [])
            if name in chosen:
                edits[edit["file"]].append((name, edit))
    # A file that was a copy stays one: a link would bring back a date older than the object file.
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            edits.setdefault(str(path.relative_to(tree)), [])
    texts = {}
    for file, wanted in edits.items():
        if (source / file).is_file() or wanted:
            texts[file] = patched(source, file, wanted)
    lay_out(source, tree, texts)
    print(",".join(name for name in patches if name in chosen))
    print(";".join(str(source / file) for file in sorted(texts)))


def choose(choice: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    """Return the names of the patches to apply."""
    words = [word.upper() for word in choice]
    if words in (["ON"], ["OFF"]):
        return names if words == ["ON"] else []
    for name in choice:
        if name not in names:
            sys.exit(
                f"error: LLCUDA_PATCHES={';'.join(choice)}: there is no patch {name!r}; "
                f"expected ON, OFF or some of {', '.join(names)}"
            )
    return choice


def patched(source: Path, file: str, edits: Sequence[tuple[str, dict[str, str]]]) -> str:
    """Return the text of a file of `source` with the edits of (patch, edit)."""
    path = source / file
    text = path.read_text() if path.is_file() else ""
    places = []
    for name, edit in edits:
        (kind,) = {"before", "after", "instead_of"} & set(edit)
        anchor = edit[kind]
        if (count := text.count(anchor)) != 1:
            sys.exit(
                f"error: the patch {name} does not apply to {path}: its anchor {anchor.strip()!r} "
                f"occurs {count} times, expected once; {ADVICE}"
            )
        start = text.index(anchor)
        end = start + len(anchor)
        if kind != "instead_of":
            start = end = start if kind == "before" else end
        places.append((start, end, name, edit["text"]))
    result, position = "", 0
    for start, end, name, new in sorted(places):
        if start < position:
            sys.exit(f"error: the patch {name} changes what another patch changes in {path}")
        result += text[position:start] + new
        position = end
    return result + text[position:]


def lay_out(source: Path, tree: Path, texts: dict[str, str]) -> None:
    """Make `tree` the folders of `source` with links to its files, and the files of `texts`."""
    kept = set()
    for folder, folders, files in os.walk(source):
        if Path(folder) == source and ".git" in folders:
            folders.remove(".git")
        place = tree / Path(folder).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in [*files, *links]:
            link, target = place / name, Path(folder) / name
            kept.add(link)
            if str(link.relative_to(tree)) in texts:
                continue
            if not (link.is_symlink() and link.readlink() == target):
                remove(link)
                link.symlink_to(target)
    for file, text in texts.items():
        path = tree / file
        if path.is_symlink() or not path.is_file() or path.read_text() != text:
            remove(path)
            path.write_text(text)
    for folder, folders, files in os.walk(tree):
        for name in [*files, *folders]:
            path = Path(folder) / name
            if path not in kept and (path.is_symlink() or path.is_file()):
                path.unlink()


def remove(path: Path) -> None:
    """Remove a link, a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
