"""llcuda.hub.snapshot: the wanted files of a repository as a folder, and none of the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda.hub.snapshot import parse_repository
from tests.support.hub_server import Asker, Hub

REPO = "some/model"
CONFIG, WEIGHTS, POOLING = b'{"a": 1}', b"weights" * 1000, b'{"b": 2}'
FILES = {
    "config.json": CONFIG, "model.safetensors": WEIGHTS, "1_Pooling/config.json": POOLING,
    "pytorch_model.bin": b"others" * 1000, "README.md": b"text",
}  # fmt: skip
WANTED = ["config.json", "model.safetensors", "1_Pooling/config.json", "not-there.json"]
ASK = """
import json, sys, time
from pathlib import Path

time.sleep = lambda seconds: None  # huggingface_hub waits before it tries again
from llcuda.errors import LlcudaError
from llcuda.hub.snapshot import download_folder

wanted = json.loads(sys.argv[2])
seen = []
try:
    folder = download_folder(sys.argv[1], lambda names: seen.extend(names) or wanted)
    print(json.dumps({"folder": str(folder), "seen": sorted(seen)}))
except LlcudaError as error:
    print(json.dumps({"message": str(error), "kind": type(error).__name__, "seen": sorted(seen)}))
"""


@pytest.fixture
def server() -> Iterator[Hub]:
    """A hub with one checkpoint."""
    with Hub({REPO: dict(FILES)}) as server:
        yield server


@pytest.fixture
def user(server: Hub, tmp_path: Path) -> Asker:
    """A user of the server with an empty cache."""
    return Asker(server, tmp_path / "home")


def folder_of(user: Asker, *wanted: str, repo: str = REPO, **environment: str) -> dict[str, Any]:
    """Return what `download_folder` returns or raises in a process of this user."""
    process = user.start(ASK, repo, json.dumps(wanted), **environment)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    answer: dict[str, Any] = json.loads(output)
    return answer


def contents(folder: str) -> dict[str, bytes]:
    """Return the files below a folder."""
    root = Path(folder)
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("first", [0, 2], ids=["a file above", "a file in a folder"])
def test_the_wanted_files_are_a_folder(user: Asker, first: int) -> None:
    """Under their own paths; names that the repository does not have are ignored."""
    wanted = WANTED[first:] + WANTED[:first]
    answer = folder_of(user, *wanted)
    assert sorted(FILES) == answer["seen"]
    assert {name: FILES[name] for name in WANTED if name in FILES} == contents(answer["folder"])
    assert {"README.md", "pytorch_model.bin"}.isdisjoint(user.server.sent)


def test_only_missing_files_are_downloaded(user: Asker) -> None:
    """A second call adds to the folder of the first."""
    before = folder_of(user, "config.json")["folder"]
    assert {"config.json": CONFIG} == contents(before)
    assert before == folder_of(user, "config.json", "model.safetensors")["folder"]
    assert {"config.json": CONFIG, "model.safetensors": WEIGHTS} == contents(before)
    assert before == folder_of(user, *WANTED[:2])["folder"]
    sent = {name: count for name, count in user.server.sent.items() if name}
    assert {"config.json": len(CONFIG), "model.safetensors": len(WEIGHTS)} == sent


def test_a_new_version_is_another_folder(user: Asker) -> None:
    """What has changed is downloaded, and what has not is there as well."""
    before = folder_of(user, *WANTED)["folder"]
    user.server.repos[REPO]["config.json"] = b'{"a": 2}'
    sent = user.server.sent["model.safetensors"]
    after = folder_of(user, *WANTED)["folder"]
    assert before != after
    assert b'{"a": 2}' == contents(after)["config.json"]
    assert WEIGHTS == contents(after)["model.safetensors"]
    assert sent == user.server.sent["model.safetensors"]


@pytest.mark.parametrize("configuration", ["config.json", "adapter_config.json"])
def test_without_the_hub(user: Asker, configuration: str) -> None:
    """The folder of before, of a checkpoint or an adapter; an error where there is none."""
    user.server.repos[REPO] = {configuration: CONFIG, "model.safetensors": WEIGHTS}
    failed = folder_of(user, configuration, HF_HUB_OFFLINE="1")
    assert ("HubUnreachableError", []) == (failed["kind"], failed["seen"])
    before = folder_of(user, configuration, "model.safetensors")["folder"]
    user.server.failing = True
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        answer = folder_of(user, configuration, "model.safetensors", **environment)
        assert {"folder": before, "seen": []} == answer


@pytest.mark.parametrize(
    ("repo", "wanted", "kind", "message"),
    [
        (REPO, [], "ModelNotFoundError", "some/model has no files of a checkpoint"),
        (REPO, ["nope.json"], "ModelNotFoundError", "some/model has no files of a checkpoint"),
        ("some/other", WANTED, "ModelNotFoundError", "some/other"),
    ],
)
def test_what_cannot_be_had(
    user: Asker, repo: str, wanted: list[str], kind: str, message: str
) -> None:
    """One error that names the repository."""
    answer = folder_of(user, *wanted, repo=repo)
    assert kind == answer["kind"]
    assert message in answer["message"]
    assert FILES.keys().isdisjoint(user.server.sent)


def test_a_transfer_that_breaks_off(user: Asker) -> None:
    """It goes on where it ended, and the folder is whole."""
    user.server.broken["model.safetensors"] = [100, 2000]
    folder = folder_of(user, *WANTED)["folder"]
    assert WEIGHTS == contents(folder)["model.safetensors"]


def test_names_of_repositories() -> None:
    """Names of files and short names mean no checkpoint."""
    for name, expected in (
        ("some/model", "some/model"), ("hf:some/model", "some/model"),
        ("some/model:file.gguf", None), ("model", None), ("./some/model", None), ("", None),
    ):  # fmt: skip
        assert (name, expected) == (name, parse_repository(name))
