"""The models of ollama on this machine: its store is read, never written.

A manifest, `manifests/HOST/NAMESPACE/MODEL/TAG`, names the layers of a model by their SHA-256. The
layer of the weights is a GGUF file, `blobs/sha256-HEX`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llcuda.errors import ArgumentError, ModelError, ModelNotFoundError
from llcuda.files import home_folder, path_exists
from llcuda.hub.names import OLLAMA_SCHEME

REGISTRY, LIBRARY, LATEST = "registry.ollama.ai", "library", "latest"
_WEIGHTS = "application/vnd.ollama.image.model"
_TENSOR = "application/vnd.ollama.image.tensor"
_SERVICE_STORE = Path("/usr/share/ollama/.ollama/models")  # of the service that its installer makes
_PART = r"[\w][\w.-]*"
_NAME = re.compile(rf"(?:({_PART})/)?(?:({_PART})/)?({_PART})(?::({_PART}))?")


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model in a store of ollama.

    Attributes:
        name: The name as ollama prints it, such as "qwen2.5:1.5b".
        manifest: The path of its manifest.
    """

    name: str
    manifest: Path

    @property
    def address(self) -> str:
        """The name with the scheme, which means this model whatever else has the name."""
        return f"{OLLAMA_SCHEME}//{self.name}"

    def path(self) -> Path:
        """Return the path of the weights, a GGUF file.

        Raises:
            ModelError: The manifest is damaged, the weights are not one GGUF file, or they are
                missing, as when a pull was interrupted.
        """
        try:
            layers = json.loads(self.manifest.read_bytes())["layers"]
            digests = [str(each["digest"]) for each in layers if each["mediaType"] == _WEIGHTS]
            tensors = sum(layer["mediaType"].startswith(_TENSOR) for layer in layers)
            files = [digest.replace(":", "-") for digest in digests]
            blobs = self.manifest.parents[4] / "blobs"
            paths = [blobs / file for file in files if re.fullmatch(r"sha256-[0-9a-f]{64}", file)]
        except OSError as error:
            raise ModelError(f"cannot read {self.manifest}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{self.manifest} is damaged; `ollama pull {self.name}` makes it anew"
            ) from error
        if tensors:
            raise ModelError(
                f"{self.address} holds safetensors and no GGUF file; llcuda cannot load it"
            )
        if len(paths) != 1:
            raise ModelError(
                f"{self.address} has {len(paths)} files of weights; llcuda loads one: a"
                " model of ollama's cloud has none on this machine"
            )
        if not paths[0].is_file():
            raise ModelError(
                f"{self.address} lacks {paths[0]}; `ollama pull {self.name}` brings it"
            )
        return paths[0]


def stores() -> list[Path]:
    """Return the folders of ollama's models on this machine: `OLLAMA_MODELS`, or the usual ones."""
    if given := os.environ.get("OLLAMA_MODELS"):
        folders = [Path(given)]
    else:
        home = home_folder()
        folders = [home / ".ollama" / "models"] if home else []
        folders.append(_SERVICE_STORE)
    return [folder for folder in folders if path_exists(folder / "manifests")]


def models() -> Iterator[OllamaModel]:
    """Yield the models of ollama on this machine, sorted by store and name."""
    for store in stores():
        manifests = store / "manifests"
        for manifest in sorted(manifests.glob("*/*/*/*")):
            if manifest.is_file() and not manifest.name.startswith("."):
                host, namespace, name, tag = manifest.relative_to(manifests).parts
                spaces = [] if (host, namespace) == (REGISTRY, LIBRARY) else [namespace]
                if host != REGISTRY:
                    spaces.insert(0, host)
                yield OllamaModel(f"{'/'.join([*spaces, name])}:{tag}", manifest)


def find(name: str) -> OllamaModel | None:
    """Return the model that ollama would run by a name, or None.

    Args:
        name: Such as "qwen2.5:1.5b", "qwen2.5" (the tag `latest`) or "hf.co/repo/id:Q4_K_M".
    """
    match = _NAME.fullmatch(name)
    if not match:
        return None
    wanted = name if match[4] else f"{name}:{LATEST}"
    wanted = wanted.removeprefix(f"{REGISTRY}/").removeprefix(f"{LIBRARY}/").lower()
    return next((model for model in models() if model.name.lower() == wanted), None)


def get(name: str) -> OllamaModel:
    """Return the model that ollama would run by a name.

    Args:
        name: As for `find`.

    Raises:
        ModelNotFoundError: It is not on this machine; the message names those that are.
        ArgumentError: It is not a name of ollama's form.
    """
    if not _NAME.fullmatch(name):
        raise ArgumentError(
            f"'{OLLAMA_SCHEME}//{name}': expected ollama://name or ollama://name:tag"
        )
    if model := find(name):
        return model
    address, folders = f"{OLLAMA_SCHEME}//{name}", stores()
    if not folders:
        raise ModelNotFoundError(
            f"{address}: ollama has no models on this machine; set OLLAMA_MODELS to the folder of"
            " its models if it is elsewhere"
        )
    present = [model.name for model in models()]
    listed = f"it has {', '.join(present)}" if present else "it is empty"
    raise ModelNotFoundError(
        f"{address}: ollama's store {folders[0]} has no such model; {listed};"
        f" `ollama pull {name}` downloads it"
    )
