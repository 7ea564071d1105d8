"""The API reference has every public name, and names nothing that is not there."""

from __future__ import annotations

import inspect
import pkgutil
import re
from types import ModuleType

import pytest

import llcuda
from llcuda import (
    core,
    errors,
    gguf_parser,
    gguf_writer,
    hub,
    nf4,
    samplers,
    server,
    structured,
    unsloth,
)
from tests.support.documents import DOCS, ROOT

REFERENCE = DOCS / "reference"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md")}
SHOWN = [path for text in PAGES.values() for path in re.findall(r"(?m)^::: (\S+)$", text)]
OBJECTS = [pkgutil.resolve_name(path) for path in SHOWN]


def own_names(module: ModuleType) -> list[str]:
    """Return the public classes and functions that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


PUBLIC = {
    llcuda: [name for name in dir(llcuda) if name != "__version__"],
    core: core.__all__,
    errors: own_names(errors),
    gguf_parser: own_names(gguf_parser),
    gguf_writer: own_names(gguf_writer),
    hub: hub.__all__,
    nf4: own_names(nf4),
    samplers: own_names(samplers),
    server: server.__all__,
    structured: structured.__all__,
    unsloth: own_names(unsloth),
}


def is_shown(value: object) -> bool:
    """Whether the reference shows an object: by one of its names, or with its module."""
    return any(value is shown for shown in OBJECTS) or getattr(value, "__module__", None) in SHOWN


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_every_public_name_is_shown(module: ModuleType) -> None:
    """Each name is on a page; `llcuda.steps` is another name of `llcuda.samplers`."""
    names = [name for name in PUBLIC[module] if name != "steps"]
    missing = [name for name in names if not is_shown(getattr(module, name))]
    assert not missing, f"docs/reference lacks {missing} of {module.__name__}"


@pytest.mark.parametrize("path", SHOWN)
def test_every_shown_name_exists(path: str) -> None:
    """A path of the reference is a module, a class or a function, and has a docstring."""
    assert inspect.getdoc(pkgutil.resolve_name(path))


def test_nothing_is_shown_twice() -> None:
    """Each object has one place."""
    assert len(OBJECTS) == len({id(value) for value in OBJECTS})


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs.yml and the index of the reference name every page."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert f"- {page.relative_to(DOCS)}\n" in navigation or f": {page.name}" in navigation, page
    for name in PAGES.keys() - {"index.md"}:
        assert f"]({name})" in PAGES["index.md"], name
