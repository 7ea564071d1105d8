from __future__ import annotations

import pickle
import re

import pytest

from llcuda import errors

DRAWN = re.findall(r"(\w+Error|LlcudaError)(?: \((\w+)\))?", errors.__doc__ or "")
NAMES = dict(DRAWN)


def test_the_tree_in_the_docstring_is_complete() -> None:
    """Every exception of the module is drawn, and nothing else."""
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name in defined if not name.startswith("_")} == set(NAMES)


@pytest.mark.parametrize(("name", "builtin"), NAMES.items())
def test_each_is_ours_and_the_builtin_that_it_promises(name: str, builtin: str) -> None:
    """`except LlcudaError` catches all; so does the built-in in parentheses."""
    kind = getattr(errors, name)
    assert issubclass(kind, errors.LlcudaError)
    if builtin:
        promised = __builtins__[builtin]  # type: ignore[index]
        assert issubclass(kind, promised)
    assert kind.__doc__


def test_a_message_survives() -> None:
    """str() of each is what was given, of FileNotFoundError's child too."""
    for name in NAMES:
        assert "what was given" == str(getattr(errors, name)("what was given"))


def test_the_parameter_at_fault() -> None:
    """It is an attribute, survives pickling, and the remedy ends the message."""
    error = errors.ArgumentError("top_k=-1: too small", parameter="top_k", remedy="give 0")
    for same in (error, pickle.loads(pickle.dumps(error))):
        shown = (same.parameter, same.problem, same.remedy, str(same))
        assert shown == ("top_k", "top_k=-1: too small", "give 0", "top_k=-1: too small; give 0")
    assert errors.ModelNotFoundError("no file").parameter is None
