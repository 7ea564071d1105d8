"""Names of models to local files: short names, downloads, checkpoints."""

from llcuda.hub.registry import RegistryEntry
from llcuda.hub.repository import RemoteFile
from llcuda.hub.resolver import find, listing, pull, resolve

__all__ = ["RegistryEntry", "RemoteFile", "find", "listing", "pull", "resolve"]
