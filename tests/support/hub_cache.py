"""Entries of huggingface_hub's cache, and models of ollama's store, made without a download."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def add_repository(cache: Path, repo: str, *versions: Mapping[str, bytes]) -> list[str]:
    """Put versions of a repository into a cache, the newest last; return their commits.

    Files with the same content share a blob, as huggingface_hub has it.
    """
    folder = cache / f"models--{repo.replace('/', '--')}"
    commits = []
    for number, files in enumerate(versions):
        commit = hashlib.sha1(f"{repo}{number}".encode()).hexdigest()
        for name, content in files.items():
            blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link = folder / "snapshots" / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        commits.append(commit)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commits[-1])
    return commits


def add_ollama_model(
    store: Path, name: str, content: bytes, *, media: str = "application/vnd.ollama.image.model"
) -> Path:
    """Put a model, `HOST/NAMESPACE/NAME/TAG`, into a store of ollama; return its blob."""
    digest = hashlib.sha256(content).hexdigest()
    blob = store / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    layers = [
        {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)},
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:0", "size": 1},
    ]
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return blob
