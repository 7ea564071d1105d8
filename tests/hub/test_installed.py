"""llcuda.hub.installed: the list of models on this machine, names for them, and their removal."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from llcuda.demo import demo_model
from llcuda.errors import ArgumentError, ModelError, ModelNotFoundError
from llcuda.files import state_folder
from llcuda.hub import resolve
from llcuda.hub.installed import copy_name, installed_models, plan_removal, remove
from tests.support.hub_cache import add_ollama_model, add_repository

GEMMA, GEMMA_FILE = "unsloth/gemma-3-1b-it-GGUF", "gemma-3-1b-it-Q4_K_M.gguf"
SPLIT = [f"big-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]
OLLAMA = "registry.ollama.ai/library/tiny/1b"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without models: an empty cache of the hub, no names, no ollama."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "hub"


def names() -> list[str]:
    return [model.name for model in installed_models()]


def delete(name: str) -> int:
    """Remove a model; return the bytes that it said would become free."""
    plan = plan_removal(name)
    remove(plan)
    return plan.size


# --- the list ---


def test_an_empty_machine_has_the_demo(cache: Path) -> None:
    """Without a cache, names and ollama."""
    (model,) = installed_models()
    assert (model.name, model.source, model.path) == ("demo", "llcuda", demo_model())
    assert model.size == demo_model().stat().st_size


def test_each_name_of_the_list_loads_its_model(cache: Path, tmp_path: Path) -> None:
    """Short names, quantizations, files, versions, ollama's and the user's."""
    add_repository(cache, GEMMA, {GEMMA_FILE: b"gemma", "gemma-3-1b-it-Q8_0.gguf": b"eight"})
    add_repository(
        cache,
        "some/many",
        {"model-Q4_K_M.gguf": b"old", "gone-Q2_K.gguf": b"gone"},
        {"model-Q4_K_M.gguf": b"new", "mmproj-model-F16.gguf": b"eyes", "plain.gguf": b"plain"},
    )
    add_repository(cache, "some/split", {name: name.encode() for name in SPLIT})
    add_repository(cache, "some/two", {"a-Q4_0.gguf": b"a", "b-Q4_0.gguf": b"b"})
    add_repository(cache, "some/half", {SPLIT[0]: b"1"})
    add_repository(cache, "some/other", {"model.safetensors": b"x"})
    add_ollama_model(tmp_path / "ollama", OLLAMA, b"ollama's")
    copy_name("some/split:Q8_0", "mine")
    models = {model.name: model for model in installed_models()}
    old = next(n for n in models if n.startswith("some/many@") and n.endswith("Q4_K_M"))
    assert set(models) == {
        *("mine", "gemma-3-1b-Q4_K_M", f"{GEMMA}:Q8_0", "some/many:Q4_K_M", "some/many:plain.gguf"),
        *(old, f"{old.partition(':')[0]}:Q2_K", "some/split:Q8_0", "some/two:a-Q4_0.gguf"),
        *("some/two:b-Q4_0.gguf", "ollama://tiny:1b", "demo"),
    }
    for name, model in models.items():
        assert model.path is not None
        assert resolve(name).samefile(model.path), name
    assert models["some/split:Q8_0"].size == sum(map(len, SPLIT)) == models["mine"].size
    assert models[old].path is not None
    assert models[old].path.read_bytes() == b"old"


def test_ollamas_broken_models_are_left_out(cache: Path, tmp_path: Path) -> None:
    """A model of its cloud, an interrupted pull and a damaged manifest; asking for one says why."""
    store = tmp_path / "ollama"
    add_ollama_model(store, "registry.ollama.ai/library/pulled/1b", b"x").unlink()
    add_ollama_model(store, "registry.ollama.ai/library/cloud/1b", b"y", media="other")
    mlx = "application/vnd.ollama.image.tensor; name=a"
    add_ollama_model(store, "registry.ollama.ai/library/mlx/1b", b"z", media=mlx)
    add_ollama_model(store, "registry.ollama.ai/library/bad/1b", b"w")
    (store / "manifests" / "registry.ollama.ai" / "library" / "bad" / "1b").write_text("{")
    assert names() == ["demo"]
    for name, reason in {
        "pulled": "`ollama pull pulled:1b` brings it",
        "cloud": "has 0 files of weights",
        "mlx": "holds safetensors",
        "bad": "is damaged",
    }.items():
        with pytest.raises(ModelError, match=reason):
            resolve(f"ollama://{name}:1b")


# --- names ---


def test_a_name_of_ones_own_holds_everywhere(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file, a download, a model of ollama, and of another such name; in each folder."""
    add_repository(cache, GEMMA, {GEMMA_FILE: b"gemma"})
    blob = add_ollama_model(tmp_path / "ollama", OLLAMA, b"ollama's")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert copy_name("gemma-3-1b", "small") == f"hf://{GEMMA}:{GEMMA_FILE}"
    assert copy_name("a.gguf", "file:1") == str(tmp_path / "a.gguf")
    assert copy_name("ollama:tiny:1b", "t") == "ollama:tiny:1b"
    assert copy_name("small", "again") == f"hf://{GEMMA}:{GEMMA_FILE}"
    monkeypatch.chdir("/")
    assert resolve("file:1") == tmp_path / "a.gguf"
    assert resolve("t") == blob
    assert resolve("again").read_bytes() == b"gemma"
    delete("small")
    assert resolve("again").read_bytes() == b"gemma"
    (tmp_path / "a.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match=r"`llcuda rm file:1` forgets it"):
        resolve("file:1")
    missing = next(model for model in installed_models() if model.name == "file:1")
    assert (missing.path, missing.size, missing.target) == (None, 0, str(tmp_path / "a.gguf"))


@pytest.mark.parametrize(
    "name",
    ["demo", "gemma-3-1b", "gemma-3-1b-Q4_K_M", "taken", "", "a/b", "x.gguf", "-x", "a b", "a:b:c"],
)
def test_names_that_cannot_be_given(cache: Path, name: str) -> None:
    """A short name, one that is taken, and what would be a path or an option."""
    copy_name("demo", "taken")
    with pytest.raises(ArgumentError):
        copy_name("demo", name)
    assert names() == ["taken", "demo"]


@pytest.mark.parametrize("content", ["{", "[]", '{"mine": 1}', '{"mine": "other", "other": "x"}'])
def test_a_damaged_file_of_names(cache: Path, content: str) -> None:
    """Its path is in the message; a model is not loaded by another meaning of its name."""
    copy_name("demo", "mine")
    path = state_folder() / "names.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=r"names\.json is damaged: "):
        resolve("mine")
    assert resolve("demo") == resolve(str(demo_model())) == demo_model()


def test_a_damaged_repository_in_the_list(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others are listed, and the log names it."""
    add_repository(cache, "some/model", {"a-Q4_0.gguf": b"abc"})
    add_repository(cache, "some/other", {"a-Q4_0.gguf": b"abc"})
    (cache / "models--some--other" / "refs" / "main").write_bytes(b"\xff")
    assert names() == ["some/model:Q4_0", "demo"]
    assert "models--some--other is damaged" in caplog.text
    (cache / "models--some--model" / "refs" / "main").write_text("../../..")
    (found, demo) = names()
    assert (found.partition("@")[0], demo) == ("some/model", "demo")


# --- removal ---


def test_removal_keeps_what_others_share(cache: Path) -> None:
    """A blob of another file stays; all versions of the file itself go."""
    add_repository(
        cache,
        "some/model",
        {"a-Q4_0.gguf": b"old", "b-Q8_0.gguf": b"shared"},
        {"a-Q4_0.gguf": b"new!", "b-Q8_0.gguf": b"shared", "c-Q2_K.gguf": b"shared"},
    )
    assert delete("some/model:Q4_0") == len(b"old") + len(b"new!")
    assert names() == ["some/model:Q8_0", "demo"]
    assert delete("some/model:Q8_0") == 0
    assert resolve("some/model:Q2_K").read_bytes() == b"shared"
    assert delete("some/model") == len(b"shared")
    assert not (cache / "models--some--model").exists()


def test_removal_of_one_version(cache: Path) -> None:
    """Another version that has the same bytes keeps them."""
    old, new = add_repository(
        cache, "some/model", {"a-Q4_0.gguf": b"same"}, {"a-Q4_0.gguf": b"same", "README.md": b"x"}
    )
    assert delete(f"some/model@{old}:Q4_0") == 0
    assert resolve("some/model").read_bytes() == b"same"
    assert not (cache / "models--some--model" / "snapshots" / old).exists()
    assert (cache / "models--some--model" / "snapshots" / new / "README.md").exists()


def test_removal_of_a_split_model(cache: Path) -> None:
    """All its parts; files that are no models stay, and an unfinished download."""
    files = {name: name.encode() for name in SPLIT} | {"README.md": b"x"}
    add_repository(cache, "some/split", files)
    half = cache / "models--some--split" / "blobs" / "0.llcuda.incomplete"
    half.write_bytes(b"half")
    assert delete("some/split") == sum(map(len, SPLIT))
    left = [path.name for path in (cache / "models--some--split").rglob("*") if path.is_symlink()]
    assert left == ["README.md"]
    assert half.exists()


def test_removal_without_symbolic_links(cache: Path) -> None:
    """There a snapshot holds the file itself."""
    (commit,) = add_repository(cache, "some/model", {"a-Q4_0.gguf": b"abc"})
    link = cache / "models--some--model" / "snapshots" / commit / "a-Q4_0.gguf"
    blob = link.resolve()
    link.unlink()
    blob.rename(link)
    assert delete("some/model") == 3
    assert names() == ["demo"]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("demo", ArgumentError, "is a part of llcuda"),
        ("ollama://tiny:1b", ArgumentError, "`ollama rm tiny:1b`"),
        ("./a.gguf", ArgumentError, "not a download of llcuda; delete it yourself"),
        ("some/model", ModelNotFoundError, "some/model is not in the cache"),
        ("some/here:Q8_0", ModelNotFoundError, "some/here has no Q8_0 model; it has Q4_0"),
        ("zzz", ModelNotFoundError, "no model is called 'zzz'"),
    ],
)
def test_what_is_not_removed(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: type[Exception],
    expected: str,
) -> None:
    """The message says whose it is, or what there is."""
    add_repository(cache, "some/here", {"a-Q4_0.gguf": b"a"})
    add_ollama_model(tmp_path / "ollama", OLLAMA, b"ollama's")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    before = names()
    with pytest.raises(kind, match=expected):
        plan_removal(name)
    assert names() == before


def test_a_name_of_ones_own_outlives_a_new_short_name(cache: Path) -> None:
    """A later version may have a short name of this spelling."""
    copy_name("demo", "mine")
    path = state_folder() / "names.json"
    path.write_text(path.read_text().replace("mine", "gemma-3-1b"))
    assert resolve("gemma-3-1b") == demo_model()
