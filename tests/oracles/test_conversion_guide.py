"""The blocks of docs/conversion.md run, beside a checkpoint and an adapter of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from tests.support import checkpoints as material  # noqa: E402
from tests.support.documents import DOCS, blocks, environment  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

BLOCKS = blocks(DOCS / "conversion.md", "py", "sh")


def test_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each block runs as printed, in this order, and shows something."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = material.save(tmp_path / "my-model", "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained("my-model")
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    model.save_pretrained("my-adapter")
    capsys.readouterr()
    for block in BLOCKS:
        if block.language == "sh":
            for line in block.text.replace("llcuda ", f"{sys.executable} -m llcuda ").splitlines():
                shown = subprocess.run(
                    line, shell=True, capture_output=True,
                    env={**environment(), "PYTHONPATH": str(material.ROOT)},
                )  # fmt: skip
                assert shown.returncode == 0, shown.stderr.decode()
                assert shown.stdout.strip()
        else:
            block.run(model=model, tokenizer=tokenizer)
            assert capsys.readouterr().out.strip()
    names = {path.name for path in tmp_path.glob("*.gguf")}
    assert {"my-model-Q4_K_M.gguf", "adapter.gguf", "merged.gguf", "mine.gguf"} == names
    assert len(BLOCKS) == 3
