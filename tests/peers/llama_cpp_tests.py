"""Run llama-cpp-python's own tests of its classes with `import llama_cpp` replaced.

    python -m tests.peers.llama_cpp_tests --models FOLDER

The tests come from the pinned archive with llama.cpp's source, which is downloaded for the run. The
models that they ask the Hugging Face Hub for are replaced: the chat model by the real
Qwen2.5-Coder 0.5B in FOLDER, the embedding, recurrent and hybrid ones by tiny models. Two private
names are replaced by public ones. The table has each test, its outcome and its reason.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import build_scripts, models

ROOT = Path(__file__).parents[2]
CHAT_MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
# Private names of their class, and what stands for them here.
REPLACED = (
    (r"(\w+)\._is_(recurrent|hybrid)\b", r"\1.model.is_\2"),
    (r" *assert llama\._ctx\.ctx is not None\n", ""),
)
# Tests that cannot pass, and why.
REASONS = {
    "test_real_model": "calls llama.cpp's C interface: Model, Context and Sampler are llcuda's",
}


def write_models(folder: Path) -> None:
    """Write the tiny models that stand for those of the hub."""
    for name in ("bert", "mamba", "lfm2"):
        models.write(folder / f"{name}.gguf", *getattr(models, name)())


def run(chat_model: Path, folder: Path) -> list[tuple[str, str, str]]:
    """Run the tests; return name, outcome and reason of each.

    Args:
        chat_model: A chat model as GGUF.
        folder: An empty folder.
    """
    build_scripts.load("fetch").unpack_folders(folder, "tests")
    for path in (folder / "tests").glob("test_*.py"):
        text = path.read_text()
        for pattern, replacement in REPLACED:
            text = re.sub(pattern, replacement, text)
        path.write_text(text)
    write_models(folder)
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--color=no", "-c", os.devnull]
    command += ["-p", "tests.peers.llama_cpp_plugin", "-p", "no:cacheprovider", "-p", "no:randomly"]
    environment = {
        **os.environ,
        "COLUMNS": "400",
        "LLCUDA_CHAT_MODEL": str(chat_model),
        "LLCUDA_TINY_MODELS": str(folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    result = subprocess.run(
        [*command, str(folder / "tests")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    pattern = r"(?m)^(PASSED|FAILED|ERROR|SKIPPED) \S*?::(\S+)(?: - (.*))?$"
    found = re.findall(pattern, result.stdout)
    if not found:
        sys.exit(result.stdout + result.stderr)
    return [(name, outcome, REASONS.get(name, why)) for outcome, name, why in found]


def main() -> None:
    """Print the table; exit with 1 when a test failed that has no known reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help=f"the folder of {CHAT_MODEL}")
    chat_model = parser.parse_args().models.resolve() / CHAT_MODEL
    if not chat_model.is_file():
        parser.error(f"--models: {chat_model} is missing")
    with tempfile.TemporaryDirectory() as folder:
        rows = run(chat_model, Path(folder))
    print("| test | outcome | reason |\n|---|---|---|")
    for name, outcome, reason in rows:
        print(f"| `{name}` | {outcome.lower()} | {reason} |")
    passed = sum(outcome == "PASSED" for _, outcome, _ in rows)
    print(f"\n{passed} of {len(rows)} passed")
    sys.exit(any(outcome != "PASSED" and name not in REASONS for name, outcome, _ in rows))


if __name__ == "__main__":
    main()
