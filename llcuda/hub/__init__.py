"""Names of models to local files: short names, downloads, checkpoints."""

from llcuda.hub.registry import RegistryEntry, find, listing, pull, resolve
from llcuda.hub.repository import RemoteFile

__all__ = ["RegistryEntry", "RemoteFile", "find", "listing", "pull", "resolve"]
