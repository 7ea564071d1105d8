"""The converter's process: its failures, its end, and what it leaves; tests/oracles has its work.

Stand-ins for the first packages that llama.cpp's converter imports do what a broken installation
does. llcuda, the process and the converter's scripts are the real ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llcuda import convert
from llcuda.conversion.convert import convert_cached, source_digest
from llcuda.conversion.lora import read_adapter
from llcuda.conversion.runner import Source, run_converter
from llcuda.errors import LlcudaError, LoadCancelledError, ModelError
from tests.conversion.test_convert import ADAPTER, LORA, adapter, folder, read, safetensors, source
from tests.support.hub_server import Asker, Hub

__all__ = ["adapter", "folder"]

PACKAGES = ("torch", "transformers", "safetensors", "sentencepiece")
Install = Callable[[str], Path]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and of the converter's."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(path))
    monkeypatch.setenv("TMPDIR", str(path))
    return path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs packages that run a program when the converter imports them."""

    def put(program: str) -> Path:
        packages = tmp_path / "packages"
        packages.mkdir()
        for name in PACKAGES:
            (packages / f"{name}.py").write_text(program)
        monkeypatch.syspath_prepend(packages)
        paths = [str(packages), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        return packages

    return put


FAILURES = {
    "a missing package": (
        "raise ModuleNotFoundError('No module', name='torch')",
        "converting needs the Python package torch: pip install 'llcuda[convert]'",
    ),
    "an error of two lines": (
        "raise RuntimeError('no driver\\nmore')", "cannot convert mine: no driver",
    ),
    "an error without a message": ("raise KeyError", "cannot convert mine: KeyError"),
    "an exit": ("raise SystemExit(5)", "cannot convert mine: it ended with 5"),
    "a logged error": (
        "import logging\nlogging.error('no %s', 'rope')\nraise SystemExit(1)",
        "cannot convert mine: no rope",
    ),
    "a foreign tokenizer": (
        "raise NotImplementedError('BPE pre-tokenizer was not recognized - update')",
        "cannot convert mine: this llama.cpp does not know its tokenizer",
    ),
    "a sudden exit": (
        "import os\nos._exit(3)", "cannot convert mine: the process ended with 3",
    ),
    "a signal": (
        "import os\nos.kill(os.getpid(), 9)",
        "cannot convert mine: the process was ended by signal 9; was there too little memory?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_failures_of_the_process(name: str, install: Install, folder: Path, scratch: Path) -> None:
    """Each is one sentence, and no temporary file remains."""
    program, message = FAILURES[name]
    install(program)
    with pytest.raises(LlcudaError) as caught:
        run_converter(source(folder), folder / "out.gguf", "F16", 100, lambda share: None)
    assert message == str(caught.value)
    assert [] == list(scratch.iterdir())


@pytest.mark.parametrize("file_type", ["F16", "Q8_0"])
def test_a_failure_leaves_no_file(
    file_type: str, install: Install, folder: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Neither the target nor the file that would have been quantized; the bar ends, too."""
    install("raise RuntimeError('no driver')")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="cannot convert mine: no driver"):
        convert(folder, tmp_path / "out", file_type, progress=True)
    assert [] == list((tmp_path / "out").iterdir())
    assert "Traceback" not in capfd.readouterr().err


def test_an_older_target_survives_a_failure(
    install: Install, adapter: Path, tmp_path: Path
) -> None:
    """A file of the target's name is replaced by a whole one only."""
    install("raise RuntimeError('no driver')")
    target = tmp_path / "adapter.gguf"
    target.write_bytes(b"before")
    with pytest.raises(ModelError, match="cannot convert adapter: no driver"):
        convert(adapter, target)
    assert b"before" == target.read_bytes()


def test_progress_stops_the_process(install: Install, folder: Path, scratch: Path) -> None:
    """The share is that of the bytes written; False ends a process that would run for an hour."""
    install("import time\ntime.sleep(3600)")
    target = folder / "out.gguf"
    target.write_bytes(bytes(50))
    shares: list[float] = []

    def stop(share: float) -> bool:
        shares.append(share)
        return False

    for size in (100, 40, 0):
        with pytest.raises(LoadCancelledError, match="converting mine was stopped"):
            run_converter(source(folder), target, "F16", size, stop)
    assert [0.5, 1.0, 0.0] == shares
    target.unlink()
    with pytest.raises(KeyboardInterrupt):
        run_converter(source(folder), target, "F16", 100, interrupted)
    assert [] == list(scratch.iterdir())


def interrupted(share: float) -> None:
    """Raise what Ctrl-C raises."""
    assert 0.0 == share
    raise KeyboardInterrupt


@pytest.mark.parametrize("merge", [False, True])
def test_what_the_process_sees(
    merge: bool, install: Install, folder: Path, adapter: Path, tmp_path: Path, scratch: Path
) -> None:
    """Links without code, no network and no GPU; the adapter's tokenizer only when it is merged."""
    seen = tmp_path / "seen.json"
    install(f"""
import json, os, pathlib

root = next(pathlib.Path({str(scratch)!r}).glob("llcuda-convert-*"))
files = {{p.relative_to(root).as_posix(): p.read_bytes().decode("latin-1")
          for p in root.rglob("*") if p.is_file() and p.parent != root}}
names = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CUDA_VISIBLE_DEVICES"]
pathlib.Path({str(seen)!r}).write_text(json.dumps([files, [os.environ[name] for name in names]]))
raise RuntimeError("seen")
""")
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_bytes())
    path.write_text(json.dumps({**config, "auto_map": {"AutoModel": "code.Model"}}))
    for name in ("code.py", "tokenizer.json"):
        (adapter / name).write_text('"of the adapter"')
    checkpoint = read(folder)
    given = Source(
        "m", folder, checkpoint.config, checkpoint if merge else None, read_adapter(adapter)
    )
    with pytest.raises(ModelError, match="cannot convert m: seen"):
        run_converter(given, tmp_path / "out.gguf", "F32", 0, lambda share: None)
    files, environment = json.loads(seen.read_bytes())
    model = ["config.json", "model.safetensors"][: 1 + merge]
    names = ["adapter_config.json", "adapter_model.safetensors"]
    expected = [f"model/m/{name}" for name in [*model, "tokenizer.json"]]
    assert sorted([*expected, *(f"adapter/m/{name}" for name in names)]) == sorted(files)
    assert config == json.loads(files["adapter/m/adapter_config.json"])
    assert ('"of the adapter"' if merge else "{}") == files["model/m/tokenizer.json"]
    assert ["1", "1", ""] == environment


def test_a_full_disk(
    install: Install, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space is compared before the process starts."""
    install("raise RuntimeError('started')")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=7))
    with pytest.raises(ModelError, match=r"free; name a target on another disk"):
        convert(folder, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


# --- the cache ---


def test_the_cache_is_asked_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same content is the result, and no package is needed for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    digest = source_digest(source(folder), "Q8_0")
    kept = tmp_path / "llcuda" / "checkpoints" / f"mine-Q8_0-{digest[:16]}.gguf"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kept")
    assert kept == convert_cached(folder, "q8_0")
    (folder / "config.json").write_text(json.dumps({**read(folder).config, "more": 1}))
    monkeypatch.setattr("llcuda.conversion.runner.MODULES", ("no_such_package",))
    with pytest.raises(LlcudaError, match="no_such_package"):
        convert_cached(folder, "q8_0")
    assert [kept] == list(kept.parent.iterdir())


def test_a_failure_leaves_nothing_in_the_cache(
    install: Install, folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a merged adapter, whose name the file would have."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    install("raise RuntimeError('no driver')")
    with pytest.raises(ModelError, match="cannot convert adapter: no driver"):
        convert_cached(adapter, "Q4_K_M", base=folder)
    assert [] == list((tmp_path / "llcuda" / "checkpoints").iterdir())


def test_a_cache_that_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the folder."""
    (tmp_path / "llcuda").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"cannot write in .*checkpoints: (Not a dir|File exists)"):
        convert_cached(folder, "Q8_0")


# --- the hub ---

CONVERT = """
import json, sys
from llcuda import convert
from llcuda.errors import LlcudaError

try:
    convert(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
except LlcudaError as error:
    print(error)
"""


def test_adapters_on_the_hub(install: Install, folder: Path, adapter: Path, tmp_path: Path) -> None:
    """The base model's weights come for a merged adapter only; a missing base is named."""
    install("raise RuntimeError('no driver')")
    base = {path.name: path.read_bytes() for path in folder.iterdir()}
    weights = {"adapter_model.safetensors": safetensors(LORA)}
    configs = [{**ADAPTER, "base_model_name_or_path": name} for name in ("me/base", "me/none")]
    lora, lost = (
        {**weights, "adapter_config.json": json.dumps(config).encode()} for config in configs
    )
    with Hub({"me/base": base, "me/lora": lora, "me/lost": lost}) as hub:
        user = Asker(hub, tmp_path / "home")

        def said(repo: str, **options: Any) -> str:
            process = user.start(CONVERT, repo, str(tmp_path / "out.gguf"), json.dumps(options))
            output, errors = process.communicate(timeout=120)
            assert (0, "") == (process.returncode, errors)
            return output

        assert said("me/lost").startswith("me/lost, base model: there is no ")
        assert "cannot convert lora: no driver\n" == said("me/lora")
        assert {"config.json", "tokenizer.json"} <= set(hub.sent)
        assert "model.safetensors" not in hub.sent
        assert "cannot convert lora: no driver\n" == said("me/lora", merge=True)
        assert "model.safetensors" in hub.sent
