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
    llama_cpp,
    nf4,
    samplers,
    server,
    structured,
    unsloth,
)
from llcuda.engine.metrics import Metrics
from tests.support.documents import DOCS, ROOT

REFERENCE = DOCS / "reference"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md")}
# tests/ray has those of the extra ray.
SHOWN = [
    path
    for name, text in PAGES.items()
    if name != "cluster.md"
    for path in re.findall(r"(?m)^::: (\S+)$", text)
]


def own_names(module: ModuleType) -> list[str]:
    """Return the public classes and functions that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def exported_names(module: ModuleType) -> list[str]:
    """Return what `__all__` lists, constants and imported names too; without it the own names."""
    return list(getattr(module, "__all__", None) or own_names(module))


PUBLIC = {
    llcuda: [name for name in dir(llcuda) if name != "__version__"],
    **{
        module: exported_names(module)
        for module in (
            core, errors, gguf_parser, gguf_writer, hub, llama_cpp, nf4, samplers, server,
            structured, unsloth,
        )
    },
}  # fmt: skip


def shown_objects() -> list[object]:
    """Return what the reference shows: each path's object, and what a module exports."""
    objects = []
    for path in SHOWN:
        shown = pkgutil.resolve_name(path)
        objects.append(shown)
        if inspect.ismodule(shown):
            objects += [getattr(shown, name) for name in exported_names(shown)]
    return objects


OBJECTS = shown_objects()


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_every_public_name_is_shown(module: ModuleType) -> None:
    """Each name is on a page; `llcuda.steps` is another name of `llcuda.samplers`.

    `llcuda.chat` is a package, whose function is shown as `llcuda.inference.chat`.
    """
    ids = {id(shown) for shown in OBJECTS}
    names = [name for name in PUBLIC[module] if name not in ("steps", "chat")]
    missing = [name for name in names if id(getattr(module, name)) not in ids]
    assert not missing, f"docs/reference lacks {missing} of {module.__name__}"


@pytest.mark.parametrize("path", SHOWN)
def test_every_shown_name_exists(path: str) -> None:
    """A path of the reference is a module, a class or a function, and has a docstring."""
    assert inspect.getdoc(pkgutil.resolve_name(path))


def test_the_reference_leaves_out_what_only_the_engine_calls() -> None:
    """Every name that mkdocs.yml leaves out exists; a Request shows its callers' methods only."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    left_out = {n for names in re.findall(r"!\^\((.+?)\)\$", config) for n in names.split("|")}
    members = {name for value in OBJECTS for name in dir(value)}
    assert left_out <= members
    methods = {name for name in vars(llcuda.Request) if not name.startswith("_")} - left_out
    assert methods == {"cancel", "done", "more", "parsed", "result", "take", "text"}
    methods = {name for name in vars(Metrics) if not name.startswith("_")} - left_out
    assert methods == {"families", "prometheus_text", "reset", "snapshot"}


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
