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
    nf4: own_names(nf4),
    samplers: own_names(samplers),
    server: dir(server),
    structured: dir(structured),
    unsloth: own_names(unsloth),
}


def shown_by(module: ModuleType, name: str) -> set[str]:
    """Return the paths of the reference that show a name: its own, its class's or its module's."""
    value = getattr(module, name)
    paths = {f"{module.__name__}.{name}"}
    if isinstance(value, ModuleType):
        paths.add(value.__name__)
    elif hasattr(value, "__module__"):
        paths |= {value.__module__, f"{value.__module__}.{name}"}
        paths.add(f"{module.__name__}.{getattr(value, '__name__', name)}")  # of an alias
    return {path.replace("llcuda.steps", "llcuda.samplers") for path in paths}


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_every_public_name_is_shown(module: ModuleType) -> None:
    """A name is shown by itself, or with the module that defines it."""
    for name in PUBLIC[module]:
        assert shown_by(module, name) & set(SHOWN), f"docs/reference lacks {module.__name__}.{name}"


@pytest.mark.parametrize("path", SHOWN)
def test_every_shown_name_exists(path: str) -> None:
    """A path of the reference is a module, a class or a function, and has a docstring."""
    try:
        value = pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        pytest.fail(f"{path} is not there")
    assert inspect.getdoc(value)


def test_nothing_is_shown_twice() -> None:
    """Each object has one place."""
    values = [pkgutil.resolve_name(path) for path in SHOWN]
    assert len(values) == len({id(value) for value in values})


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs.yml and the index of the reference name every page."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert f"- {page.relative_to(DOCS)}\n" in navigation or f": {page.name}" in navigation, page
    for name in PAGES.keys() - {"index.md"}:
        assert f"]({name})" in PAGES["index.md"], name
