"""Names of real models: from a hub, from a store of ollama, and of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llcuda import Engine, Model
from llcuda.hub.registry import registry
from tests.real.conftest import GEMMA, QWEN, file
from tests.support.hub_server import Asker, Hub
from tests.support.waiting import PATIENCE

PROGRAM = "from llcuda.cli.main import main; main()"
CODER = registry()["qwen2.5-coder-0.5b-Q4_K_M"]


def command(user: Asker, *arguments: str) -> str:
    """Return the stdout of a command of a user."""
    process = user.start(PROGRAM, *arguments)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


def test_a_short_name_from_download_to_removal(tmp_path: Path) -> None:
    """As ollama spells it; `show` before the download, an answer, the list, and its removal."""
    with Hub({CODER.repo: {CODER.file: file(QWEN).read_bytes(), "README.md": b"x"}}) as hub:
        user = Asker(hub, tmp_path / "home")
        facts = json.loads(command(user, "show", "qwen2.5-coder:0.5b", "--json"))
        assert (facts["architecture"], facts["quantization"]) == ("qwen2", "Q4_K_M")
        assert (facts["path"], facts["license"]) == (None, CODER.license)
        assert facts["context_length"] == CODER.context
        path = Path(command(user, "pull", f"https://huggingface.co/{CODER.repo}").strip())
        assert abs(path.stat().st_size / 1e9 - CODER.gigabytes) < 0.01
        hub.failing = True
        for name in ("qwen2.5-coder-0.5b", CODER.repo, f"hf.co/{CODER.repo}:Q4_K_M"):
            assert command(user, "run", name, "hi", "-n", "4", "--temperature", "0").strip()
        assert command(user, "cp", CODER.repo, "mine") == f"mine = hf://{CODER.repo}:{CODER.file}\n"
        rows = [line.split()[0] for line in command(user, "list").splitlines()]
        assert rows == ["Name", "mine", CODER.name, "demo"]
        assert "deleted" in command(user, "rm", "--yes", "mine", CODER.name)
        assert not path.exists()


def test_a_store_of_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is used where it is, by ollama's name with and without the scheme."""
    digest = "0" * 64
    manifest = tmp_path / "manifests/registry.ollama.ai/library/qwen2.5-coder/0.5b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"sha256-{digest}").symlink_to(file(QWEN))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    for name in ("qwen2.5-coder:0.5b", "ollama://qwen2.5-coder:0.5b"):
        with Model(name) as model, Engine(model, ctx_size=256) as engine:
            assert model.path.samefile(file(QWEN))
            assert (
                engine.submit("def add(a, b):", max_tokens=4, temperature=0).result(PATIENCE).text
            )


def test_a_folder_with_a_model(tmp_path: Path) -> None:
    """The only one, or the one with the default quantization."""
    (tmp_path / GEMMA).symlink_to(file(GEMMA))
    (tmp_path / "gemma-3-270m-q8_0.gguf").symlink_to(file(QWEN))
    with Model(str(tmp_path), vocab_only=True) as model:
        assert model.path.name == GEMMA
