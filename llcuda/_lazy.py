"""Lazy names of a package, so that importing the package costs nothing, and deprecated names."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package.

    Args:
        package: Dotted name of the package.
        homes: Module that defines each public name; the name itself may be a module.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = importlib.import_module(homes[name])
        value = home if homes[name] == f"{package}.{name}" else getattr(home, name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes)


def warn_deprecated(old: str, new: str) -> None:
    """Warn the user of a deprecated name; called by the module or the property that has it.

    Args:
        old: The deprecated name.
        new: The name to use.
    """
    text = f"{old} is deprecated: use {new}; the old name goes with the next release"
    warnings.warn(text, DeprecationWarning, stacklevel=3)


def deprecated(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module, which gives what was renamed by its old name.

    Args:
        module: Dotted name of the module.
        renamed: New name, in the same module, of each deprecated one.
    """

    def get(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_deprecated(f"{module}.{name}", f"{module}.{renamed[name]}")
        return getattr(sys.modules[module], renamed[name])

    return get
