"""Names of packages, modules and classes: lazy ones, missing ones, deprecated ones."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from opcode import opmap
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
            from llcuda._instead import hint

            raise missing_name(package, name, hint(package, name))
        home = importlib.import_module(homes[name])
        value = home if homes[name] == f"{package}.{name}" else getattr(home, name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes)


def missing_name(module: str, name: str, told: str) -> AttributeError | ImportError:
    """Return the error for a name that a module does not have; its `__getattr__` raises it.

    `from module import name` would replace an AttributeError by an ImportError without its message.

    Args:
        module: Dotted name of the module.
        name: The missing name.
        told: The end of the message, such as what to write instead; or "".
    """
    frame = sys._getframe(2)  # of who reads the name
    if told and frame.f_code.co_code[max(frame.f_lasti, 0)] == opmap["IMPORT_FROM"]:
        return ImportError(f"cannot import name {name!r} from {module!r}{told}", name=module)
    return AttributeError(f"module {module!r} has no attribute {name!r}{told}")


def explain_names(kind: Class) -> Class:
    """Decorate a class: the AttributeError for another library's name says what to write.

    Python 3.11 reads every attribute of such a class more slowly, by some 30 ns, and calls its
    methods by some 80 ns: not for classes of which the engine reads much for each token.
    """

    def get(self: Any, name: str) -> Any:
        from llcuda._instead import hint

        if found := hint(kind.__name__, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{found}")
        return object.__getattribute__(self, name)  # raises the error that led here

    kind.__getattr__ = get  # type: ignore[attr-defined]
    return kind


def field_of(value: Any, name: object) -> Any:
    """Return a field of a dataclass by its name, for code that got a dict elsewhere.

    Args:
        value: An object of a class that explains names.
        name: The name of the field.

    Raises:
        KeyError: There is no such field; the message says what to write.
        TypeError: The name is not a text, such as the index with which `list()` begins.
    """
    kind = type(value).__name__
    if not isinstance(name, str):
        raise TypeError(f"{kind!r} object is not a sequence, and has no item {name!r}")
    if name not in value.__dataclass_fields__:
        from llcuda._instead import hint

        raise KeyError(f"{name}{hint(kind, name)}")
    return getattr(value, name)


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
