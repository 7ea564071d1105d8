"""llcuda inspect: a local file, and one on a hub of which only the header may come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import demo_model, memory_needed
from llcuda.gguf_writer import write_gguf
from tests.support.hub_server import Asker, Hub
from tests.test_gguf_parser import header, pair

STEP = 2**20  # the first range
REPO, FILE = "some/model", "demo-Q8_0.gguf"
LONG = [f"token {number}" for number in range(100_000)]  # 1.8 MB: more than the first range


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The demo model, whole and damaged, and a file with a long vocabulary and large weights."""
    demo = demo_model().read_bytes()
    metadata = {"general.architecture": "x", "tokenizer.ggml.tokens": LONG}
    tensors = {"t": np.ones((2048, 2048), np.float32)}
    path = tmp_path_factory.mktemp("files") / "long.gguf"
    return {
        FILE: demo,
        "long.gguf": write_gguf(path, metadata, tensors).read_bytes(),
        "damaged.gguf": header(0, 1, rest=b"\xff" * 2**22),
        "text.gguf": b"<html>" * 2**20,
        "typeless.gguf": header(0, 1, rest=pair(b"a", 77, b"\0" * 2**22)),
    }


@pytest.fixture
def server(contents: dict[str, bytes]) -> Iterator[Hub]:
    with Hub({REPO: contents}) as server:
        yield server


@pytest.fixture
def ask(server: Hub, tmp_path: Path) -> Asker:
    """A user of the server with an empty cache."""
    return Asker(server, tmp_path / "home")


def inspect(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llcuda", "inspect", *arguments],
        env={**(environment or os.environ), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def document(name: str, ask: Asker | None = None) -> Any:
    """Return the JSON of a file; it must come."""
    result = inspect(name, "--json", environment=ask.environment() if ask else None)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_local_file() -> None:
    """Its summary, metadata, tensors, and the memory that `memory_needed` names."""
    facts = document(str(demo_model()))
    assert ("llama", 74, 5378304) == (
        facts["summary"]["architecture"],
        len(facts["tensors"]),
        facts["summary"]["parameters"],
    )
    assert {"count": 2560, "first": ["<|pad|>", "<|bos|>", "<|im_start|>"]} == facts["metadata"][
        "tokenizer.ggml.tokens"
    ]
    assert {"Q8_0": 57, "F32": 17} == facts["summary"]["types"]
    (cpu,) = (device for device in facts["memory"]["devices"] if device["kind"] == "cpu")
    placed = {"gpu_layers": facts["memory"]["gpu_layers"], "ctx_size": facts["memory"]["ctx_size"]}
    assert (memory_needed("demo", **placed)[-1].needed, True) == (cpu["needed"], cpu["fits"])


def test_tables() -> None:
    """Names, types and sizes for people; --validate says that nothing is wrong."""
    result = inspect("demo", "--tensors", "--validate", "--ctx-size", "512")
    assert (0, "") == (result.returncode, result.stderr)
    for shown in ("llcuda demo", "57 Q8_0", "blk.7.ffn_up.weight", "512 x 256", "fits", "nothing"):
        assert shown in result.stdout


def test_what_a_file_says_cannot_drive_the_terminal(tmp_path: Path) -> None:
    """Escape sequences are shown, markup is no markup; infinity is text in JSON."""
    metadata = {
        "general.architecture": "x",
        "general.name": "\x1b]0;owned\x07 [red]\n",
        "x.real": float("inf"),
    }
    path = write_gguf(tmp_path / "evil.gguf", metadata, {})
    result = inspect(str(path))
    assert "\x1b" not in result.stdout and r"\x1b]0;owned\x07 [red]\n" in result.stdout
    assert "memory cannot be estimated" in result.stdout
    facts = document(str(path))
    assert ("inf", True) == (facts["metadata"]["x.real"], "error" in facts["memory"])


def test_problems_are_the_exit_code(tmp_path: Path) -> None:
    """--validate exits with 1 when something is wrong, and names it."""
    tensors = {"a_norm.weight": np.array([np.inf], np.float32)}
    path = write_gguf(tmp_path / "nan.gguf", {"general.architecture": "x"}, tensors)
    result = inspect(str(path), "--validate")
    assert (1, True) == (result.returncode, "a_norm.weight" in result.stdout)


# --- on the hub ---


@pytest.mark.parametrize("ranges", ["served", "ignored"])
def test_a_file_on_the_hub_is_not_downloaded(ranges: Any, server: Hub, ask: Asker) -> None:
    """The same document as of the local file, from one range of 1 MiB; nothing in the cache."""
    server.ranges = ranges
    local, remote = document(str(demo_model())), document(f"{REPO}:{FILE}", ask)
    free = {key: remote.pop(key) for key in ("source", "path")}
    assert {"source": f"{REPO}:{FILE}", "path": None} == free
    for facts in (local, remote):
        for device in facts["memory"]["devices"]:
            del device["free"]
    assert {key: local[key] for key in remote} == remote
    if ranges == "served":
        assert STEP == server.sent[FILE]
    assert [] == [path for path in ask.home.rglob("*") if path.stat().st_size > STEP]


def test_a_split_model_on_the_hub(server: Hub, ask: Asker, tmp_path: Path) -> None:
    """The headers of all parts, in a folder of the repository; the name of one is enough."""
    for number in range(2):
        parts = {"split.no": np.uint16(number), "split.count": np.uint16(2)}
        metadata = {"general.architecture": "x", **parts}
        tensors = {f"t{number}": np.ones(2**20, np.float32)}
        path = write_gguf(tmp_path / f"a-0000{number + 1}-of-00002.gguf", metadata, tensors)
        server.repos[REPO][f"sub/{path.name}"] = path.read_bytes()
    facts = document(f"{REPO}:sub/a-00002-of-00002.gguf", ask)
    assert (2, ["t0", "t1"]) == (facts["summary"]["files"], [t["name"] for t in facts["tensors"]])
    assert {STEP} == {server.sent[f"sub/a-0000{part}-of-00002.gguf"] for part in (1, 2)}


def test_a_header_beyond_the_first_range(server: Hub, ask: Asker) -> None:
    """More ranges are asked for until it is whole: 1 MiB, then 2 MiB, of 19 MB."""
    facts = document(f"{REPO}:long.gguf", ask)
    assert len(LONG) == facts["metadata"]["tokenizer.ggml.tokens"]["count"]
    assert 3 * STEP == server.sent["long.gguf"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("text.gguf", "does not begin with GGUF"),
        ("damaged.gguf", "ends within"),
        ("typeless.gguf", "type that is none"),
        ("missing.gguf", "has no missing.gguf"),
    ],
)
def test_what_is_wrong_on_the_hub(name: str, says: str, ask: Asker) -> None:
    """One sentence that names the file, and exit code 1."""
    result = inspect(f"{REPO}:{name}", environment=ask.environment())
    assert 1 == result.returncode
    assert name in result.stderr and says in result.stderr


def test_a_transfer_that_breaks_off(server: Hub, ask: Asker) -> None:
    """An error that says so."""
    server.broken = {FILE: [1000] * 9}
    result = inspect(f"{REPO}:{FILE}", environment=ask.environment())
    assert 1 == result.returncode and "cannot download" in result.stderr


def test_weights_that_are_not_here_cannot_be_validated(ask: Asker) -> None:
    """--validate of a file on the hub says how to download it."""
    result = inspect(f"{REPO}:{FILE}", "--validate", environment=ask.environment())
    assert 2 == result.returncode and "llcuda pull" in result.stderr
