"""Names of packages, modules and classes: lazy ones, missing ones, deprecated ones."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def lazy(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package, so that importing it costs nothing.

    Args:
        package: Dotted name of the package.
        homes: Module that defines each public name; the name itself may be a module.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise _missing(package, name)
        home = importlib.import_module(homes[name])
        value = home if homes[name] == f"{package}.{name}" else getattr(home, name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes)


def _missing(package: str, name: str) -> AttributeError | ImportError:
    """Return the error for a name that a package does not have."""
    from importlib.util import find_spec

    from llcuda._instead import hint

    found = hint(package, name)
    # `from package import name` asks whether the package has the name, then whether it is a module
    # of it, and gives an ImportError of its own, without this message.
    from_import = sys._getframe(2).f_code.co_name == "_handle_fromlist"
    if found and from_import and find_spec(f"{package}.{name}") is None:
        return ImportError(f"cannot import name {name!r} from {package!r}{found}", name=package)
    return AttributeError(f"module {package!r} has no attribute {name!r}{found}")


def explain_names(kind: Class) -> Class:
    """Decorate a class: the AttributeError for another library's name says what to write.

    All attributes of such a class are read more slowly by Python 3.11: not for classes whose
    attributes the engine reads for each token.
    """

    def get(self: Any, name: str) -> Any:
        from llcuda._instead import hint

        if found := hint(kind.__name__, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{found}")
        return object.__getattribute__(self, name)  # raises the error that led here

    kind.__getattr__ = get  # type: ignore[attr-defined]
    return kind


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
