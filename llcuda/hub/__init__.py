"""Names of models to local files: short names, downloads, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda.hub.registry import RegistryEntry as RegistryEntry
    from llcuda.hub.registry import find as find
    from llcuda.hub.registry import listing as listing
    from llcuda.hub.registry import pull as pull
    from llcuda.hub.registry import resolve as resolve
    from llcuda.hub.repository import RemoteFile as RemoteFile

__getattr__, __dir__ = lazy(
    __name__,
    {
        "RegistryEntry": "llcuda.hub.registry",
        "RemoteFile": "llcuda.hub.repository",
        "find": "llcuda.hub.registry",
        "listing": "llcuda.hub.registry",
        "pull": "llcuda.hub.registry",
        "resolve": "llcuda.hub.registry",
    },
)
