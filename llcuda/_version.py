"""The version of the installed package, which pyproject.toml states."""

from importlib.metadata import PackageNotFoundError, version

UNKNOWN = "unknown"

try:
    __version__ = version("llcuda")
except PackageNotFoundError:  # a folder of modules that no installer knows
    __version__ = UNKNOWN
