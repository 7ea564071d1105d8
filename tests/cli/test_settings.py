"""The settings of a model and its engine as options of commands and as keys of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from llcuda import server
from llcuda.cli import serve
from llcuda.cli.main import app
from llcuda.cli.settings import NO_OPTIONS, SETTINGS
from llcuda.engine.config import EngineConfig
from llcuda.errors import ArgumentError
from llcuda.inference import InferenceEngine
from llcuda.keywords import ConfigKeywords
from llcuda.server import app as server_app
from llcuda.server import log
from tests.support.commands import Finished, call
from tests.support.documents import DOCS, blocks

# Keyword -> the text of its value, and the value; the others are switches.
VALUES: dict[str, tuple[str, Any]] = {
    "gpu_layers": ("3", 3), "ctx_size": ("64", 64), "n_parallel": ("2", 2), "threads": ("1", 1),
    "threads_batch": ("2", 2), "split_mode": ("row", "row"), "tensor_split": ("3,1.5", [3.0, 1.5]),
    "main_gpu": ("1", 1), "devices": ("CUDA0", ["CUDA0"]),
    "overrides": ("a.b=7", {"a.b": 7}), "cache_size": ("9999", 9999), "type_k": ("q8_0", "q8_0"),
    "type_v": ("bf16", "bf16"), "batch_size": ("64", 64), "ubatch_size": ("64", 64),
    "outputs_max": ("8", 8), "speculation": ("4", 4), "cuda_graphs": ("off", "off"),
    "queue_size": ("7", 7), "rope_scaling": ("yarn", "yarn"), "rope_freq_base": ("1e4", 1e4),
    "rope_freq_scale": ("0.5", 0.5), "yarn_ext_factor": ("1", 1.0), "yarn_attn_factor": ("1", 1.0),
    "yarn_beta_fast": ("32", 32.0), "yarn_beta_slow": ("1", 1.0), "yarn_orig_ctx": ("64", 64),
}  # fmt: skip

Specs = Callable[..., list[server.ModelSpec]]


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> Specs:
    """Run a command line, and return the models of the app that it would serve."""
    monkeypatch.delenv("LLCUDA_API_KEY", raising=False)

    def run(*arguments: str) -> list[server.ModelSpec]:
        given: list[server.ModelSpec] = []
        monkeypatch.setattr(server, "create_app", lambda models, **_: given.extend(models))
        monkeypatch.setattr(server, "serve", lambda *_, **__: None)
        monkeypatch.setattr(server_app, "check_serving", lambda **_: None)  # takes no port
        monkeypatch.setattr(log, "configure_logging", lambda *_: None)
        result = CliRunner().invoke(serve.app, [*arguments])
        if isinstance(result.exception, ArgumentError):
            raise result.exception
        assert 0 == result.exit_code, result.output
        return given

    return run


def test_the_guide_s_file(specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The TOML of docs/server.md is a configuration of two models."""
    monkeypatch.chdir(tmp_path)
    Path("keys.txt").write_text("secret\n", encoding="utf-8")
    [block] = blocks(DOCS / "server.md", "toml")
    Path("serve.toml").write_text(block.text, encoding="utf-8")
    small, other = specs("--config", "serve.toml")
    assert (("gpt-4o", "default"), 8) == (tuple(small.aliases), small.parameters["n_parallel"])
    assert ("q8_0", 8192) == (other.parameters["type_k"], other.parameters["ctx_size"])


def test_every_keyword_is_an_option() -> None:
    """A new one fails here until `SETTINGS` has it, or a reason for which it has none."""
    assert ConfigKeywords.__annotations__.keys() == SETTINGS.keys() | NO_OPTIONS.keys()
    assert {name for name, setting in SETTINGS.items() if setting.metavar} == VALUES.keys()


@pytest.mark.parametrize("keyword", SETTINGS)
def test_an_option_is_its_keyword(specs: Specs, tmp_path: Path, keyword: str) -> None:
    """On the command line, as a key of the file, and in the file's table of a model."""
    name = SETTINGS[keyword].option or keyword
    flag = name.replace("_", "-")
    text, value = VALUES.get(keyword, ("", False))
    arguments = [f"--{flag}", text] if text else [f"--no-{flag}"]
    [spec] = specs("demo", *arguments)
    expected = {keyword: value, "bare_tool_calls": True}
    assert expected == spec.parameters
    EngineConfig.from_kwargs(**{keyword: value})  # type: ignore[misc]
    in_toml = {"tensor_split": "[3, 1.5]", "overrides": '{ "a.b" = 7 }', "devices": '["CUDA0"]'}
    word = isinstance(value, str)
    toml = in_toml.get(keyword, f'"{text}"' if word else text or "false")
    path = tmp_path / "serve.toml"
    for key in (flag, name):
        path.write_text(f'models = ["demo"]\n{key} = {toml}\n')
        assert [expected] == [spec.parameters for spec in specs("--config", str(path))]
    path.write_text(f'[[models]]\nsource = "demo"\n{flag} = {toml}\n')
    assert [expected] == [spec.parameters for spec in specs("--config", str(path))]


def test_batch_invariant_computes_on_the_cpu(specs: Specs, tmp_path: Path) -> None:
    """As an option and in the table of a model; a device that is given stays."""
    path = tmp_path / "serve.toml"
    path.write_text('[[models]]\nsource = "demo"\nbatch-invariant = true\n')
    for arguments in (["demo", "--batch-invariant"], ["--config", str(path)]):
        [spec] = specs(*arguments)
        assert ((), True) == (spec.parameters["devices"], spec.parameters["batch_invariant"])
    [spec] = specs("demo", "--batch-invariant", "--devices", "CUDA0")
    assert ["CUDA0"] == spec.parameters["devices"]


def test_a_file(specs: Specs, tmp_path: Path) -> None:
    """Models have tables with settings of their own; the command line wins over the file."""
    path = tmp_path / "serve.toml"
    path.write_text("""
port = 8090
ctx-size = 256
api-key = "secret"
cors-origin = ["localhost"]
strict = true

[[models]]
source = "demo"
name = "small"
aliases = ["gpt-4o", "default"]
parallel = 2
pooling = "mean"

[[models]]
source = "other.gguf"
ctx_size = 64
chat-template = "{{ messages }}"
bare-tool-calls = false
""")
    small, other = specs("--config", str(path), "--threads", "1")
    assert ("small", "demo", ["gpt-4o", "default"]) == (small.name, small.source, small.aliases)
    shared = {"bare_tool_calls": True, "threads": 1, "ctx_size": 256}
    assert {**shared, "n_parallel": 2, "pooling": "mean"} == small.parameters
    own = {"ctx_size": 64, "template": "{{ messages }}", "bare_tool_calls": False}
    assert ("other", {**shared, **own}) == (other.name, other.parameters)
    [named] = specs("a=demo", "--config", str(path), "--ctx-size", "32")
    assert ("a", 32) == (named.name, named.parameters["ctx_size"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = ", "the file is not TOML: "),
        ("ctx-sice = 5", "no such option: ctx-sice; did you mean ctx_size?"),
        ("config = 'a'", "no such option: config"),
        ("port = [1, 2]", "--port 1,2"),
        ("strict = 'yes'", "strict = yes: expected true or false"),
        ("pooling = true", "pooling = true: expected no switch but a value"),
        ("api-key = [[1]]", "api-key: expected a value or a list of values"),
        ("[[models]]\nname = 'a'", "models[0].source: expected a file"),
        ("[[models]]\nsource = 'demo'\ncontext = 5", "models: no such option: context"),
        ("models = ['demo', {source = 'demo'}]", "models[0]: expected a table with source"),
        ("[[models]]\nsource = 'demo'\ntensor-split = 'a'", "--tensor-split a: expected numbers"),
        ("overrides = ['a']", "--overrides a: expected KEY=VALUE"),
    ],
)
def test_wrong_files(specs: Specs, tmp_path: Path, text: str, message: str) -> None:
    """The key is named, with what may have been meant."""
    path = tmp_path / "serve.toml"
    path.write_text(text)
    if message.startswith("--port"):
        with pytest.raises(AssertionError, match="--port"):  # Typer's own error
            specs("--config", str(path))
        return
    with pytest.raises(ArgumentError) as raised:
        specs("--config", str(path))
    assert message in str(raised.value)


# --- one declaration for all commands ---

COMMANDS: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009
ONE_TEXT = SETTINGS.keys() - {"n_parallel", "cache_size", "unified_kv", "queue_size"}
SOME = {
    "run": ONE_TEXT, "chat": ONE_TEXT, "batch": SETTINGS.keys(), "bench": {"gpu_layers", "threads"},
    "score": {"gpu_layers", "threads"}, "embed": {"ctx_size", "gpu_layers", "threads"},
    "perplexity": {"gpu_layers", "threads"}, "imatrix": {"gpu_layers", "threads"},
    "quantize": {"threads"},
}  # fmt: skip


@pytest.mark.parametrize("command", SOME)
def test_settings_are_the_same_in_each_command(command: str) -> None:
    """Names and heading; a command with another default says which, and nothing else."""
    options = {option.name: option for option in COMMANDS[command].params}
    names = {keyword: setting.option or keyword for keyword, setting in SETTINGS.items()}
    own_options = {"n_parallel"} if command == "bench" else set()  # a list of counts there
    found = {keyword for keyword, name in names.items() if name in options}
    assert SOME[command] == found - own_options
    facts = ("opts", "secondary_opts", "nargs", "metavar", "default", "rich_help_panel")
    for name in map(names.__getitem__, SOME[command]):
        own = options[name]
        of_serve = next(option for option in COMMANDS["serve"].params if option.name == name)
        assert [getattr(own, k) for k in facts] == [getattr(of_serve, k) for k in facts]
        same = own.help.partition("Default:")[0] == of_serve.help.partition("Default:")[0]
        assert same or (command, name) == ("embed", "ctx_size")


@pytest.mark.parametrize("command", [*SOME, "serve"])
def test_a_wrong_setting_is_refused_in_each_command(command: str, tmp_path: Path) -> None:
    """In the same words, before a model is looked for."""
    for name in ("IN", "text.txt"):
        (tmp_path / name).write_text("{}")
    text = str(tmp_path / "text.txt")
    arguments = {
        "batch": [text, text, "-m", "no-such"], "embed": ["no-such", "x"],
        "score": ["no-such", "x"], "perplexity": ["no-such", "--file", text],
        "imatrix": ["no-such", text, f"{text}.out"],
        "quantize": ["no-such", f"{text}.out", "Q4_K_M"], "serve": ["no-such", "--port", "0"],
    }  # fmt: skip
    given = [command, *arguments.get(command, ["no-such"])]
    result = call(*given, "--threads", "0")
    expected = "error: --threads 0: expected a whole number from 1 to 512"
    assert (2, True) == (result.status, expected in result.stderr), result.stderr
    if command != "quantize":
        result = call(*given, "--gpu-layers", "-1")
        assert "error: --gpu-layers -1: expected a whole number from 0" in result.stderr


Load = Callable[..., tuple[dict[str, Any], Finished]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Run a command until it would load a model; return the keywords of that, and what it wrote."""

    def run(*arguments: str) -> tuple[dict[str, Any], Finished]:
        given: dict[str, Any] = {}

        def keep(engine: InferenceEngine, path: Path, **keywords: Any) -> None:
            given.update(keywords, path=path)
            raise ArgumentError("enough")

        monkeypatch.setattr(InferenceEngine, "load_model", keep)
        finished = call(*arguments)
        return {k: v for k, v in given.items() if k not in ("verbose", "progress")}, finished

    return run


@pytest.mark.parametrize("command", [("run", "demo", "x"), ("chat", "demo")])
def test_settings_of_one_text(load: Load, command: tuple[str, ...]) -> None:
    """`run` and `chat` give each to `load_model`."""
    options: list[str] = []
    expected: dict[str, Any] = {}
    for keyword in sorted(ONE_TEXT - {"rope_scaling", "type_v"}):  # type_v needs flash attention
        text, value = VALUES.get(keyword, ("", False))
        flag = keyword.replace("_", "-")
        options += [f"--{flag}", text] if text else [f"--no-{flag}"]
        expected[keyword] = value
    given, finished = load(*command, *options)
    assert "error: enough\n" == finished.stderr
    assert expected == {k: v for k, v in given.items() if k != "path"}


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_file_of_options(load: Load, tmp_path: Path, command: str) -> None:
    """Sampling and the model's settings; the command line wins; a key of the server is unknown."""
    path = tmp_path / "options.toml"
    path.write_text("""model = "demo"
ctx-size = 64
type-k = "q8_0"
temperature = 0.5
""")
    words = ["x"] if command == "run" else []
    given, _ = load(command, *words, "--config", str(path), "--ctx-size", "32")
    assert ("demo.gguf", 32, "q8_0") == (given["path"].name, given["ctx_size"], given["type_k"])
    path.write_text("temperature = -1")
    _, finished = load(command, "demo", *words, "--config", str(path))
    assert (2, True) == (finished.status, "--temperature -1.0: expected" in finished.stderr)
    path.write_text("port = 80")
    _, finished = load(command, "demo", *words, "--config", str(path))
    assert f"error: --config {path}: no such option: port\n" == finished.stderr


def test_settings_are_in_use() -> None:
    """The model computes with them."""
    options = ("--type-k", "q8_0", "--type-v", "q8_0", "--flash-attention", "--no-mmap")
    result = call("run", "demo", "One day", "--raw", "-n", "3", "--threads", "1", *options)
    assert (0, True) == (result.status, bool(result.stdout.strip())), result.stderr
