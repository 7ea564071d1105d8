"""Run llama.cpp's own tests of llama-server against llcuda's server.

    python -m tests.foreign.llama_server_tests --models FOLDER [--only WORD]

The tests come from the pinned source of llama.cpp. The demo model stands for stories260K, tiny
random models for those of embeddings and reranking, and Qwen2.5-Coder 0.5B in FOLDER for the one
that fills gaps. Where a test compares a text with what stories260K writes, the comparison is left
out. llama_server.toml has the tests that cannot pass, by reason.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from tests.support import build_scripts, models

ROOT = Path(__file__).parents[2]
TESTS = Path("vendor/llama.cpp/tools/server/tests")
TABLE = Path(__file__).with_name("llama_server.toml")
GAP_MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"


def test_folder(folder: Path) -> Path:
    """Return llama.cpp's source with its server tests, downloaded unless the build has it."""
    if (ROOT / TESTS).is_dir():
        return ROOT / TESTS
    build_scripts.load("fetch").unpack_folders(folder, "vendor")
    return folder / TESTS


def reasons() -> list[tuple[str, str]]:
    """Return the patterns of the table with their reasons."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [(test, row["why"]) for row in table["reason"] for test in row["tests"]]


def run(tests: Path, folder: Path, only: str) -> list[tuple[str, str, str]]:
    """Run the tests; return name, outcome and message of each.

    Args:
        tests: The folder of the tests.
        folder: A folder with the models.
        only: Runs the tests whose names have this; "" = all.
    """
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-c", os.devnull]
    command += ["--rootdir", str(tests), "-p", "tests.foreign.plugin", "-p", "no:cacheprovider"]
    command += ["-p", "no:randomly", "--junitxml", str(report), "-k", only]
    path = os.pathsep.join([str(ROOT), str(tests), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "LLCUDA_FOREIGN_MODELS": str(folder)}
    result = subprocess.run(
        [*command, str(tests / "unit")], cwd=tests, env=environment, capture_output=True, text=True
    )
    if not report.is_file():
        sys.exit(result.stdout + result.stderr)
    rows = []
    for case in ElementTree.parse(report).iter("testcase"):
        place = case.get("classname", "").replace(".", "/")
        name = f"{place.rpartition('unit/')[2]}.py::{case.get('name')}"
        for outcome in ("skipped", "failure", "error"):
            if (child := case.find(outcome)) is not None:
                rows.append((name, outcome, (child.get("message") or "").splitlines()[0]))
                break
        else:
            rows.append((name, "passed", ""))
    return rows


def main() -> None:
    """Print the table; exit with 1 when a test failed that the table does not list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help=f"the folder of {GAP_MODEL}")
    parser.add_argument("--only", default="", help="tests whose names have this, as pytest's -k")
    given = parser.parse_args()
    gap_model = given.models.resolve() / GAP_MODEL
    if not gap_model.is_file():
        parser.error(f"--models: {gap_model} is missing")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / GAP_MODEL).symlink_to(gap_model)
        for model in ("bert", "reranker"):
            models.write(folder / f"{model}.gguf", *getattr(models, model)())
        rows = run(test_folder(folder), folder, given.only)
    known = reasons()
    counts: Counter[str] = Counter()
    unused = {pattern for pattern, _ in known}
    unknown = 0
    print("| test | outcome | reason |\n|---|---|---|")
    for test, outcome, message in rows:
        matching = [row for row in known if fnmatch.fnmatchcase(test, row[0])]
        why = matching[0][1] if matching else None
        if outcome == "passed":
            counts["passed"] += 1
        elif outcome == "skipped":
            counts["skipped: " + message.partition(":")[0]] += 1
            print(f"| `{test}` | skipped | {message} |")
        else:
            unused -= {pattern for pattern, _ in matching}
            counts["failed, listed" if why else "failed, NOT listed"] += 1
            unknown += why is None
            print(f"| `{test}` | {outcome} | {why or 'NOT LISTED: ' + message[:160]} |")
    if not given.only:
        for pattern in sorted(unused):
            print(f"| `{pattern}` | listed, but none of them failed | |")
    print(f"\n{len(rows)} tests: {', '.join(f'{n} {what}' for what, n in counts.items())}")
    sys.exit(bool(unknown))


if __name__ == "__main__":
    main()
