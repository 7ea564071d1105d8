"""Llama.from_pretrained on a local server in place of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda.errors import ArgumentError
from llcuda.llama_cpp import Llama
from tests.support.hub_server import Asker, Hub

REPO = "me/tiny-GGUF"
LOAD = """
import json, sys
from llcuda.errors import LlcudaError
from llcuda.llama_cpp import Llama
for arguments in json.loads(sys.argv[1]):
    try:
        with Llama.from_pretrained(**arguments, vocab_only=True, verbose=False) as llama:
            print(json.dumps([llama.model.path.name, llama.n_vocab()]))
    except LlcudaError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def user(model_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    """A user of a repository with two models and another file."""
    model = model_files["llama"].read_bytes()
    files = {"tiny-Q4_K_M.gguf": model, "tiny-Q8_0.gguf": model, "notes.txt": b"notes"}
    with Hub({REPO: files}) as hub:
        yield Asker(hub, tmp_path_factory.mktemp("home"))


def answers(user: Asker, *calls: dict[str, Any]) -> list[list[Any]]:
    """Return what each call gives, in a new process."""
    process = user.start(LOAD, json.dumps([{"repo_id": REPO, **call} for call in calls]))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def test_names_and_patterns(user: Asker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file by its name, a pattern, a quantization; further files come along.

    A folder of the repository's name is not the repository.
    """
    monkeypatch.chdir(tmp_path)
    Path(REPO).mkdir(parents=True)
    by_name, by_pattern, by_type, *wrong = answers(
        user,
        {"filename": "tiny-Q8_0.gguf"},
        {"filename": "*Q4_K_M.gguf", "additional_files": ["*.txt"]},
        {"filename": "Q8_0"},
        {"filename": "*.gguf"},
        {"filename": "*Q2_K.gguf"},
        {"repo_id": "me/other", "filename": "a.gguf"},
    )
    assert (by_name[0], by_pattern[0]) == ("tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf")
    assert by_type == by_name
    assert list(user.home.rglob("notes.txt"))
    assert [kind for kind, _ in wrong] == ["ArgumentError", *["ModelNotFoundError"] * 2]
    assert "filename='*.gguf': me/tiny-GGUF has several such files" in wrong[0][1]
    assert "filename='*Q2_K.gguf': me/tiny-GGUF has no such file; it has" in wrong[1][1]


@pytest.mark.parametrize("name", ["local_dir", "cache_dir"])
def test_other_folders(name: str) -> None:
    """An error that names the folder of the hub."""
    symlinks = "local_dir_use_symlinks=False: it has no effect"
    with (
        pytest.warns(UserWarning, match=symlinks),
        pytest.raises(ArgumentError, match=f"{name}='here'.*set HF_HOME"),
    ):
        Llama.from_pretrained(REPO, "a.gguf", local_dir_use_symlinks=False, **{name: "here"})
