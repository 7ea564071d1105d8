"""llcuda.hub: from a name to a file, against a Hugging Face Hub on this machine.

huggingface_hub reads its environment when it is imported; so each test that downloads asks a
process of its own, with a cache of its own.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda import demo_model, hub
from llcuda.errors import ArgumentError, ModelError, ModelNotFoundError
from llcuda.hub.registry import registry
from tests.support.hub_server import Asker, Hub

SMALL_CHUNKS = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 100"
GEMMA = "unsloth/gemma-3-1b-it-GGUF"
GEMMA_FILE = "gemma-3-1b-it-Q4_K_M.gguf"
MODEL = bytes(range(256)) * 10
SPLIT = [f"big-Q8_0-0000{part}-of-00003.gguf" for part in (1, 2, 3)]


@pytest.fixture
def server() -> Iterator[Hub]:
    """A hub with a model of the registry, one with many files, and a split one."""
    many = [
        "README.md",
        "model-Q4_K_M.gguf",
        "model-Q4_K_S.gguf",
        "model-UD-Q4_K_M.gguf",
        "model-UD-Q6_K.gguf",
        "mmproj-model-Q4_K_M.gguf",
        "sub/other.Q5_K_M.gguf",
    ]
    repos = {
        GEMMA: {GEMMA_FILE: MODEL, "gemma-3-1b-it-Q8_0.gguf": b"8"},
        "some/many": {name: name.encode() for name in many},
        "some/split": {name: name.encode() * 9 for name in [*SPLIT, "README.md"]},
        "some/one": {"one.gguf": b"one", "mmproj-one.gguf": b"eyes", "config.json": b"{}"},
        "some/two": {"one.gguf": b"one", "two.gguf": b"two"},
    }
    with Hub(repos) as server:
        yield server


@pytest.fixture
def ask(server: Hub, tmp_path: Path) -> Asker:
    """A user of the server with an empty cache."""
    return Asker(server, tmp_path / "home")


@pytest.fixture(autouse=True)
def no_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No names of the developer's, and no models of ollama."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "no"))


# --- names that need no network ---


def test_importing_is_light_and_paths_stay_so() -> None:
    """Neither the import nor a path loads huggingface_hub."""
    program = (
        "import sys; from llcuda import hub; hub.resolve('demo'); hub.resolve(sys.executable)\n"
        "print(sorted({'huggingface_hub', 'httpx', 'tqdm', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_demo_is_the_shipped_model() -> None:
    """By its name; as a Path it is a file like others."""
    assert demo_model() == hub.resolve("demo")
    with pytest.raises(ModelNotFoundError):
        hub.resolve(Path("demo"))


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, relative, with ~, as Path, and as a folder with filename=."""
    file = tmp_path / "models" / "a.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve(str(file)) == file
    assert hub.resolve(file) == file
    assert hub.resolve("models/a.gguf") == Path("models/a.gguf")
    assert hub.resolve("./models/a.gguf") == Path("models/a.gguf")
    assert hub.resolve("~/models/a.gguf") == file
    assert hub.resolve("models", "a.gguf") == Path("models/a.gguf")
    assert hub.resolve(tmp_path / "models", filename="a.gguf") == file


def test_a_local_split_model_is_its_first_part(tmp_path: Path) -> None:
    """Whichever part is named; a missing one is an error that names it."""
    for name in SPLIT:
        (tmp_path / name).write_bytes(b"GGUF")
    assert hub.resolve(tmp_path / SPLIT[2]) == tmp_path / SPLIT[0]
    (tmp_path / SPLIT[1]).unlink()
    with pytest.raises(ModelNotFoundError, match=f"{SPLIT[1]}, one of the 3 files of {SPLIT[0]}"):
        hub.resolve(tmp_path / SPLIT[0])


@pytest.mark.parametrize(
    ("name", "filename", "expected"),
    [
        ("gemma-3-1bb", None, "(did you mean gemma-3-1b"),
        ("gemma3", None, "no model is called 'gemma3' (did you mean gemma-3-270m, gemma-3-1b"),
        ("qwen", None, "(did you mean qwen3-0.6b, qwen3-1.7b, qwen3-4b"),
        ("dem", None, "(did you mean demo?)"),
        ("zzz", None, "no model is called 'zzz'; expected a name that `llcuda list --all` shows"),
        ("demo.gguf", None, "GGUF file not found: demo.gguf"),
        ("folder/goof.gguf", None, "GGUF file not found: folder/goof.gguf (did you mean good.gguf"),
        ("folder/deep/x.gguf", None, "on the Hugging Face Hub: hf://folder/deep/x.gguf"),
        ("empty", None, "empty is empty"),
        ("folder", "gold.gguf", "folder has no gold.gguf (did you mean good.gguf?); it has:"),
        ("folder", "Q4_K_M", "folder has no Q4_K_M model; it has:\n  good.gguf"),
    ],
)
def test_unknown_names(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    filename: str | None,
    expected: str,
) -> None:
    """The message says what is near, or what there is; it also is a FileNotFoundError."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / "good.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=re.escape(expected)) as caught:
        hub.resolve(name, filename)
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize(
    ("name", "filename"),
    [
        ("", None),
        ("demo", "x.gguf"),
        ("gemma-3-1b-Q4_K_M", "x.gguf"),
        (sys.executable, "x.gguf"),
        ("a/b:c.gguf", "d.gguf"),
        ("hf:gemma", None),
        ("hf://a/b@/d.gguf", None),
        ("a/b", "../c.gguf"),
        ("a/b:/etc/c.gguf", None),
        ("a/b:c\\d.gguf", None),
        ("hf.co/gpt2", None),
        ("https://huggingface.co/datasets/some/data", None),
        ("https://huggingface.co/spaces/some/space", None),
        ("https://example.com/model.gguf", None),
        ("https://ollama.com/library/qwen2.5:1.5b", None),
        ("s3://bucket/model.gguf", None),
        ("file://elsewhere/model.gguf", None),
        ("ollama://", None),
        ("ollama://a b", None),
    ],
)
def test_names_that_contradict_themselves(name: str, filename: str | None) -> None:
    """An ArgumentError, before anything is asked."""
    with pytest.raises(ArgumentError):
        hub.resolve(name, filename)


# --- names that download ---


FORMS: list[tuple[str, str | None]] = [
    ("gemma-3-1b-Q4_K_M", None),
    ("GEMMA-3-1B-q4_k_m", None),
    (f"{GEMMA}:{GEMMA_FILE}", None),
    (GEMMA, GEMMA_FILE),
    (f"hf:{GEMMA}:{GEMMA_FILE}", None),
    (f"hf://{GEMMA}/{GEMMA_FILE}", None),
    (f"hf:{GEMMA}", GEMMA_FILE),
    (f"{GEMMA}:q4_k_m", None),
    (f"hf:{GEMMA}:Q4_K_M", None),
    (GEMMA, "Q4_K_M"),
    ("gemma-3-1b", None),
    ("Gemma3:1b", None),
    ("gemma-3-1b-it", None),
    (GEMMA, None),
    (f"{GEMMA}:latest", None),
    (f"{GEMMA}@main:Q4_K_M", None),
    (f"hf.co/{GEMMA}", None),
    (f"hf.co/{GEMMA}:Q4_K_M", None),
    (f"huggingface.co/{GEMMA}:{GEMMA_FILE}", None),
    (f"https://huggingface.co/{GEMMA}", None),
    (f"https://huggingface.co/{GEMMA}/tree/main", None),
    (f"https://huggingface.co/{GEMMA}/blob/main/{GEMMA_FILE}", None),
    (f"https://huggingface.co/{GEMMA}/resolve/main/{GEMMA_FILE}?download=true", None),
    ("gemma-3-1b:q4_k_m", None),
    (f"hf://{GEMMA}@main/{GEMMA_FILE}", None),
]


def test_every_form_leads_to_the_file(ask: Asker) -> None:
    """On the hub, and in the Hugging Face cache under its own name, whole."""
    found = ask.calls(*[("find", [*form], {}) for form in FORMS])
    for form, answer in zip(FORMS, found, strict=True):
        assert f"RemoteFile(repo='{GEMMA}', file='{GEMMA_FILE}'" in answer.get("value", ""), form
    resolved = ask.calls(*[("resolve", [*form], {"progress": False}) for form in FORMS])
    (path,) = {Path(answer["value"]) for answer in resolved}
    assert path.name == GEMMA_FILE
    assert path.is_relative_to(ask.home / "hub" / "models--unsloth--gemma-3-1b-it-GGUF")
    assert path.read_bytes() == MODEL
    assert ask.server.sent[GEMMA_FILE] == len(MODEL)


FILES = [
    ("some/many:Q4_K_M", "model-Q4_K_M.gguf"),  # not Q4_K_S, not UD-Q4_K_M, not mmproj
    ("some/many:UD-Q4_K_M", "model-UD-Q4_K_M.gguf"),
    ("some/many:q6_k", "model-UD-Q6_K.gguf"),
    ("some/many:Q5_K_M", "sub/other.Q5_K_M.gguf"),
    ("some/many:sub/other.Q5_K_M.gguf", "sub/other.Q5_K_M.gguf"),
    ("some/one", "one.gguf"),
    ("some/many", "model-Q4_K_M.gguf"),
]


def test_a_quantization_means_one_file(ask: Asker) -> None:
    """The model with exactly this quantization; without any, Q4_K_M or the only model."""
    answers = ask.calls(*[("resolve", [name], {"progress": False}) for name, _ in FILES])
    for (name, file), answer in zip(FILES, answers, strict=True):
        assert answer.get("value", "").endswith(file), (name, answer)


def test_a_cached_file_asks_no_network(ask: Asker) -> None:
    """The second time not one request is made, also with the server gone."""
    first = ask.path("gemma-3-1b-Q4_K_M")
    ask.server.requests.clear()
    assert ask.path("gemma-3-1b-Q4_K_M") == first
    assert ask.server.requests == []
    assert ask.path("gemma-3-1b-Q4_K_M", HF_ENDPOINT="http://127.0.0.1:9") == first


def test_a_cached_quantization_asks_no_network(ask: Asker) -> None:
    """If its plain name makes it certain; the hub decides about another one."""
    first = ask.path(f"{GEMMA}:Q4_K_M")
    ask.path("some/many:q6_k")
    ask.server.requests.clear()
    for name in (GEMMA, f"{GEMMA}:q4_k_m", "gemma-3-1b", f"https://huggingface.co/{GEMMA}"):
        assert ask.path(name) == first
    assert ask.server.requests == []
    ask.path("some/many:q6_k")
    assert ask.server.requests[0] == "GET api/models/some/many"
    assert ask.path(f"{GEMMA}:Q8_0").read_bytes() == b"8"


def test_a_version_of_a_repository(ask: Asker) -> None:
    """A branch and a commit have their own files; the newest version stays as it is."""
    ask.server.versions[GEMMA] = {"old": {GEMMA_FILE: b"old"}}
    commit = ask.server.commit(GEMMA, "old")
    newest = ask.path(GEMMA)
    names = (
        *(f"{GEMMA}@old", f"{GEMMA}@old:Q4_K_M", f"hf://{GEMMA}@{commit}/{GEMMA_FILE}"),
        f"https://huggingface.co/{GEMMA}/resolve/old/{GEMMA_FILE}",
    )
    for name in names:
        assert ask.path(name).read_bytes() == b"old"
    assert ask.path(names[0], HF_HUB_OFFLINE="1") == ask.path(names[2], HF_HUB_OFFLINE="1")
    assert ask.path(f"{GEMMA}@{commit[:8]}:Q4_K_M", HF_HUB_OFFLINE="1").read_bytes() == b"old"
    assert ask.path(GEMMA) == newest
    assert newest.read_bytes() == MODEL
    message, kinds = ask.error(f"{GEMMA}@nothing")
    assert message == (
        f"{ask.server.url}/{GEMMA} has no revision 'nothing'; {ask.server.url}/{GEMMA}/refs lists"
        " its branches and tags"
    )
    assert "ModelNotFoundError" in kinds


def test_all_parts_of_a_split_model_are_fetched(ask: Asker) -> None:
    """By quantization or by any part; the first one's path is returned."""
    path = ask.path("some/split:Q8_0")
    assert path.name == SPLIT[0]
    assert sorted(file.name for file in path.parent.iterdir()) == SPLIT
    ask.server.requests.clear()
    assert ask.path(f"some/split:{SPLIT[1]}") == path
    assert ask.server.requests == []


def test_a_split_model_that_lacks_a_part(ask: Asker) -> None:
    """Nothing is downloaded."""
    del ask.server.repos["some/split"][SPLIT[1]]
    message, _ = ask.error("some/split:Q8_0")
    assert message == f"some/split lacks {SPLIT[1]}, one of the parts of {SPLIT[0]}"
    assert len(ask.server.requests) == 1


def test_a_broken_transfer_goes_on_where_it_stopped(ask: Asker) -> None:
    """The server breaks off twice; the rest is asked for by range, and the file is whole."""
    ask.server.broken = {GEMMA_FILE: [1050, 500]}
    path = ask.path("gemma-3-1b-Q4_K_M", prepare=SMALL_CHUNKS)
    assert path.read_bytes() == MODEL
    ranges = [request.split()[2:] for request in ask.server.requests if "GET unsl" in request]
    assert ranges == [[], ["bytes=1000-"], ["bytes=1500-"]]


def test_a_transfer_that_fails_for_good(ask: Asker) -> None:
    """A ModelError that says why; no half model is found, and the next try works."""
    ask.server.broken = {GEMMA_FILE: [1000] + [0] * 20}
    message, kinds = ask.error("gemma-3-1b-Q4_K_M", prepare=SMALL_CHUNKS)
    assert message.startswith(f"cannot download {GEMMA}:{GEMMA_FILE} from {ask.server.url}: ")
    assert kinds[0] == ModelError.__name__
    offline = ask.error("gemma-3-1b-Q4_K_M", HF_HUB_OFFLINE="1")
    assert "is not in the cache" in offline[0]
    ask.server.broken.clear()
    assert ask.path("gemma-3-1b-Q4_K_M").read_bytes() == MODEL


def test_pull_brings_the_newest_version(ask: Asker) -> None:
    """Resolving keeps to the cache, pulling asks; an unchanged file is not fetched again."""
    old = ask.path("gemma-3-1b-Q4_K_M")
    ask.server.repos[GEMMA][GEMMA_FILE] = b"new"
    assert ask.path("gemma-3-1b-Q4_K_M") == old
    pull = ("pull", ["gemma-3-1b-Q4_K_M"], {"progress": False})
    (answer,) = ask.calls(pull)
    assert Path(answer["value"]).read_bytes() == b"new"
    assert ask.path("gemma-3-1b-Q4_K_M").read_bytes() == b"new"
    ask.server.requests.clear()
    ask.calls(pull)
    assert [request.split()[0] for request in ask.server.requests] == ["GET", "HEAD"]


def test_listing_says_what_is_in_the_cache(ask: Asker) -> None:
    """Every short name, with the path of the one that is there; no request is made."""
    path = ask.path("gemma-3-1b-Q4_K_M")
    ask.server.requests.clear()
    (answer,) = ask.calls(("listing", [], {}))
    assert answer["value"].count("RegistryEntry(") == len(registry())
    assert answer["value"].count("Path(") == 1
    assert str(path) in answer["value"]
    assert ask.server.requests == []


def test_list_in_a_pipe_cuts_no_name(ask: Asker) -> None:
    """Plain lines that begin with the short names, whatever COLUMNS says."""
    program = "from llcuda.cli.main import main; main()"
    process = ask.start(program, "list", "--all", COLUMNS="40")
    output, errors = process.communicate(timeout=120)
    lines = output.partition("\n\n")[2].splitlines()
    assert (process.returncode, errors, lines[0].split()[:2]) == (0, "", ["Short", "name"])
    assert [line.split()[0] for line in lines[1:]] == list(registry())
    assert output.isascii()
    assert "\x1b" not in output


# --- what can go wrong ---


def test_offline(ask: Asker) -> None:
    """With HF_HUB_OFFLINE what is cached works, by file and by quantization; the rest is named."""
    message, kinds = ask.error("gemma-3-1b-Q4_K_M", HF_HUB_OFFLINE="1")
    assert message == (
        f"{GEMMA}:{GEMMA_FILE} is not in the cache, and HF_HUB_OFFLINE forbids to download it"
    )
    assert "ModelNotFoundError" in kinds
    assert ask.server.requests == []
    path = ask.path("gemma-3-1b-Q4_K_M")
    ask.server.requests.clear()
    assert ask.path("gemma-3-1b-Q4_K_M", HF_HUB_OFFLINE="1") == path
    assert ask.path(f"{GEMMA}:Q4_K_M", HF_HUB_OFFLINE="1") == path
    assert "no Q8_0 model" in ask.error(f"{GEMMA}:Q8_0", HF_HUB_OFFLINE="1")[0]
    assert ask.server.requests == []


def test_no_network(ask: Asker) -> None:
    """Without an answer what is cached works; else the message has the address and the reason."""
    nowhere = "http://127.0.0.1:9"
    for name in ("gemma-3-1b-Q4_K_M", f"{GEMMA}:Q4_K_M"):
        message, kinds = ask.error(name, HF_ENDPOINT=nowhere)
        assert message.endswith("refused; `llcuda list` shows the models on this machine")
        assert re.match(rf"cannot download {GEMMA}:\S+ from {nowhere}: .*refused", message)
        assert "ModelNotFoundError" in kinds
    path = ask.path("gemma-3-1b-Q4_K_M")
    assert ask.path(f"{GEMMA}:Q4_K_M", HF_ENDPOINT=nowhere) == path


def test_a_hub_that_fails(ask: Asker) -> None:
    """A server's error is named with its number."""
    ask.server.failing = True
    assert "503" in ask.error("gemma-3-1b-Q4_K_M")[0]


def test_no_such_repository(ask: Asker) -> None:
    """The message has the address, and how to log in should it be private."""
    message, kinds = ask.error("some/nothing:Q4_K_M")
    assert message == (
        f"there is no {ask.server.url}/some/nothing; if it is private, log in with"
        " `hf auth login`, or set HF_TOKEN"
    )
    assert "ModelNotFoundError" in kinds
    ask.server.private.add("some/many")
    assert "there is no" in ask.error("some/many:Q4_K_M")[0]


def test_a_gated_repository(ask: Asker) -> None:
    """The message says where its terms are, and how to log in."""
    ask.server.gated.add(GEMMA)
    message, kinds = ask.error("gemma-3-1b-Q4_K_M")
    assert message == (
        f"{GEMMA}:{GEMMA_FILE} is gated: accept its terms at {ask.server.url}/{GEMMA}"
        " and log in with `hf auth login`, or set HF_TOKEN"
    )
    assert kinds[0] == "ModelError"


MISSING = [
    (
        "some/many:modell-Q4_K_M.gguf",
        "some/many has no modell-Q4_K_M.gguf (did you mean model-Q4_K_M.gguf, ",
    ),
    (
        "some/many:Q3_K_M",
        "some/many has no Q3_K_M model; it has Q4_K_M, Q4_K_S, UD-Q4_K_M, UD-Q6_K, Q5_K_M",
    ),
    ("some/two", "some/two has 2 models: name one, such as some/two:one.gguf; it has:\n  one."),
    ("some/two:Q8_0", "some/two has no Q8_0 model; it has:\n  one.gguf\n  two.gguf"),
]


def test_a_file_that_is_not_there(ask: Asker) -> None:
    """The message lists what there is."""
    answers = ask.calls(*[("resolve", [name], {"progress": False}) for name, _ in MISSING])
    for (name, expected), answer in zip(MISSING, answers, strict=True):
        assert answer.get("message", "").startswith(expected), (name, answer)
        assert "ModelNotFoundError" in answer["kinds"]


NO_GGUF = {
    "some/checkpoint": (
        {"model.safetensors": b"x", "config.json": b"{}"},
        [],
        "holds a checkpoint (safetensors) and no GGUF file; `llcuda convert some/checkpoint`",
    ),
    "some/adapter": (
        {"adapter_model.safetensors": b"x", "adapter_config.json": b"{}"},
        [],
        "holds a LoRA adapter (safetensors); `llcuda convert some/adapter`",
    ),
    "some/quantized": (
        {"model.safetensors": b"x", "config.json": b'{"quantization": {"group_size": 64}}'},
        [],
        "holds MLX weights (safetensors for Apple's MLX); take the original model's GGUF, or",
    ),
    "some/mlx": ({"model.safetensors": b"x"}, ["mlx"], "holds MLX weights"),
    "some/onnx": ({"onnx/model.onnx": b"x"}, [], "holds an ONNX model"),
    "some/torch": ({"pytorch_model.bin": b"x"}, [], "holds a PyTorch checkpoint (pickle)"),
    "some/text": ({"README.md": b"x"}, [], "holds no model file"),
    "some/eyes": ({"mmproj-x.gguf": b"x"}, [], "has no models; it has:\n  mmproj-x.gguf"),
}


def test_a_repository_without_a_model(ask: Asker) -> None:
    """The message says what it holds, and the remedy; at most config.json is downloaded."""
    ask.server.repos |= {name: files for name, (files, _, _) in NO_GGUF.items()}
    ask.server.labels |= {name: labels for name, (_, labels, _) in NO_GGUF.items()}
    answers = ask.calls(*[("resolve", [name], {"progress": False}) for name in NO_GGUF])
    for (name, (_, _, expected)), answer in zip(NO_GGUF.items(), answers, strict=True):
        assert answer.get("message", "").startswith(f"{name} {expected}"), answer
        assert "ModelNotFoundError" in answer["kinds"]
    assert {path.name for path in ask.home.rglob("snapshots/*/*")} == {"config.json"}


def test_a_name_that_the_hub_forbids(ask: Asker) -> None:
    """huggingface_hub's own rules for repositories are an ArgumentError."""
    message, kinds = ask.error("some/--bad--:Q4_K_M")
    assert "some/--bad--" in message
    assert "ArgumentError" in kinds


def test_a_full_disk(ask: Asker) -> None:
    """The message says what is needed, what there is, and where."""
    prepare = (
        "import shutil\nfrom types import SimpleNamespace\n"
        "shutil.disk_usage = lambda path: SimpleNamespace(free=2000)"
    )
    message, kinds = ask.error("gemma-3-1b-Q4_K_M", prepare=prepare)
    folder = ask.home / "hub"
    assert message == (
        f"{GEMMA}: 0.00 GB to download, 0.00 GB free for {folder};"
        " set HF_HOME to a folder on another disk"
    )
    assert kinds[0] == "ModelError"
    assert len(ask.server.requests) == 1
    assert ask.path("some/one", prepare=prepare).read_bytes() == b"one"


def test_a_damaged_cache(ask: Asker) -> None:
    """Bytes where the cache names a commit, of any repository, are a ModelError."""
    ask.path("gemma-3-1b-Q4_K_M")
    ref = ask.home / "hub" / "models--unsloth--gemma-3-1b-it-GGUF" / "refs" / "main"
    ref.write_bytes(b"\xff" * 40)
    message, kinds = ask.error(f"{GEMMA}:Q4_K_M", HF_HUB_OFFLINE="1")
    assert message.startswith(f"{ref.parents[1]} is damaged: ")
    assert kinds[0] == "ModelError"


def test_a_cache_that_cannot_be_written(ask: Asker) -> None:
    """The file system's error is a ModelError."""
    ask.home.mkdir()
    (ask.home / "hub").write_text("a file, no folder")
    message, kinds = ask.error("gemma-3-1b-Q4_K_M")
    assert str(ask.home / "hub") in message
    assert kinds[0] == "ModelError"


def test_a_home_that_cannot_be_written(ask: Asker) -> None:
    """The message says which folder, why, and which variable names another one."""
    message, kinds = ask.error("gemma-3-1b", HF_HOME="/dev/full")
    assert message == (
        f"{GEMMA}:{GEMMA_FILE} cannot be written to /dev/full/hub: Not a directory; set HF_HOME to"
        " a folder that this user can write to"
    )
    assert kinds[0] == "ModelError"


def test_a_disk_that_fills_up(ask: Asker) -> None:
    """The message says how to make room, and the next call goes on."""
    prepare = (
        "import huggingface_hub.file_download as module, errno\n"
        "def full(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "module.http_get = full"
    )
    message, kinds = ask.error("gemma-3-1b", prepare=prepare)
    assert "No space left on device; make room, or set HF_HOME to a folder on another" in message
    assert kinds[0] == "ModelError"
    assert ask.path("gemma-3-1b").read_bytes() == MODEL


def test_half_a_download_of_huggingface_hub(ask: Asker) -> None:
    """What it began is not taken for a model, and stays."""
    half = ask.home / "hub" / f"models--{GEMMA.replace('/', '--')}" / "blobs" / "0.1.incomplete"
    half.parent.mkdir(parents=True)
    half.write_bytes(MODEL[:100])
    message, _ = ask.error("gemma-3-1b", HF_HUB_OFFLINE="1")
    assert "is not in the cache" in message
    assert ask.path("gemma-3-1b").read_bytes() == MODEL
    assert half.exists()


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False)])
def test_the_bar_is_on_the_terminal_and_can_be_off(ask: Asker, progress: bool, shown: bool) -> None:
    """On stderr, where that is a terminal; stdout stays clean."""
    program = f"from llcuda import hub; hub.resolve('gemma-3-1b-Q4_K_M', progress={progress})"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=ask.environment(),
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # Linux's end of a terminal
        pass
    os.close(ours)
    assert (result.returncode, result.stdout) == (0, b"")
    assert shown == (GEMMA_FILE.encode() in seen)
    assert shown == (b"100%" in seen)


def test_a_relative_path_is_not_a_repository() -> None:
    """A missing file that begins with a dot has no address on the hub."""
    with pytest.raises(ModelNotFoundError) as error:
        hub.resolve("./models/7B/llama-model.gguf")
    assert "hf://" not in str(error.value)
