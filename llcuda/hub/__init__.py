"""Names of models to local files: short names, downloads, checkpoints."""

from llcuda.hub.installed import InstalledModel, installed_models
from llcuda.hub.registry import RegistryEntry
from llcuda.hub.repository import RemoteFile
from llcuda.hub.resolver import find, listing, pull, resolve

__all__ = [
    "InstalledModel",
    "RegistryEntry",
    "RemoteFile",
    "find",
    "installed_models",
    "listing",
    "pull",
    "resolve",
]
