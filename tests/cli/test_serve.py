"""The way of each option of `llcuda serve` to the setting that it is for."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from typer.main import get_command
from typer.testing import CliRunner

from llcuda.cli.main import app as command_line
from llcuda.cli.settings import SETTINGS
from llcuda.errors import ArgumentError
from llcuda.server.middleware import RequestGuardMiddleware
from llcuda.server.service import Service
from tests.support import programs
from tests.support.commands import call
from tests.support.server import CERTIFICATE, KEY


class Seen:
    """What a command line makes: an application, and how it is served and logged."""

    app: FastAPI
    serving: dict[str, Any]
    logging: tuple[str, str]
    output: str

    @property
    def service(self) -> Service:
        """The state of the application."""
        service: Service = self.app.state.service
        return service

    @property
    def parameters(self) -> dict[str, Any]:
        """The keywords of the first model."""
        return dict(next(iter(self.service.models.specs.values())).parameters)

    def middleware(self, name: str) -> dict[str, Any]:
        """Return the keywords of a middleware; {} where there is none."""
        kinds = {one.cls.__name__: one.kwargs for one in self.app.user_middleware}  # type: ignore[attr-defined]
        return dict(kinds.get(name, {}))

    @property
    def guard(self) -> dict[str, Any]:
        """The keywords of the middleware that checks hosts and keys."""
        return self.middleware(RequestGuardMiddleware.__name__)


def run(patch: pytest.MonkeyPatch, *arguments: str) -> Seen:
    """Run `llcuda serve` up to the point where it would listen."""
    seen = Seen()

    async def end(app: FastAPI) -> None:
        async with app.router.lifespan_context(app):
            pass

    def keep(app: FastAPI, **keywords: Any) -> None:
        seen.app, seen.serving = app, keywords
        asyncio.run(end(app))  # frees the model, as the server does at its end

    def log(level: str, log_format: str) -> None:
        seen.logging = level, log_format

    patch.setattr("llcuda.server.serve", keep)
    patch.setattr("llcuda.server.app.check_serving", lambda **_: None)  # which needs a free port
    patch.setattr("llcuda.server.log.configure_logging", log)
    result = CliRunner().invoke(command_line, ["serve", *arguments], catch_exceptions=False)
    assert 0 == result.exit_code, result.output
    seen.output = result.output
    return seen


def without_environment(patch: pytest.MonkeyPatch) -> None:
    """Remove the variables that stand for options."""
    for name in ("LLCUDA_API_KEY", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        patch.delenv(name, raising=False)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Seen]:
    """Run a command line without a key and a collector of the environment."""
    without_environment(monkeypatch)
    return partial(run, monkeypatch)


HOSTS = ("127.0.0.1", "localhost", "[::1]")
# Option -> its arguments, where its setting is found, its value, and the value without the option.
OPTIONS: dict[str, tuple[list[str], Callable[[Seen], Any], Any, Any]] = {
    "models": (
        ["a,b=demo", "demo"], lambda s: list(s.service.models.names), ["a", "b", "demo"], ["demo"],
    ),
    "host": (["--host", "::1"], lambda s: s.serving["host"], "::1", "127.0.0.1"),
    "port": (["--port", "0"], lambda s: s.serving["port"], 0, 8080),
    "uds": (["--uds", "a.sock"], lambda s: s.serving["uds"], Path("a.sock"), None),
    "tls_cert": (["--tls-cert", "KEYS"], lambda s: s.serving["tls_cert"] is None, False, True),
    "tls_key": (["--tls-key", "KEYS"], lambda s: s.serving["tls_key"] is None, False, True),
    "pooling": (["--pooling", "cls"], lambda s: s.parameters.get("pooling"), "cls", None),
    "chat_template": (
        ["--chat-template", "{{ messages }}"], lambda s: s.parameters.get("template"),
        "{{ messages }}", None,
    ),
    "bare_tool_calls": (
        ["--no-bare-tool-calls"], lambda s: s.parameters["bare_tool_calls"], False, True,
    ),
    "memory": (["--memory", "2.5"], lambda s: s.service.models.memory_budget, 2_500_000_000, None),
    "api_key": (
        ["--api-key", "a", "--api-key", "b"], lambda s: tuple(s.guard["keys"]), ("a", "b"), (),
    ),
    "api_key_file": (["--api-key-file", "KEYS"], lambda s: s.guard["keys"], ("c", "d"), ()),
    "allowed_host": (
        ["--allowed-host", "a", "--allowed-host", "b"], lambda s: s.guard["hosts"], ("a", "b"),
        HOSTS,
    ),
    "cors_origin": (
        ["--cors-origin", "https://a"],
        lambda s: s.middleware("CORSMiddleware").get("allow_origins"), ["https://a"], None,
    ),
    "slot_save_path": (
        ["--slot-save-path", "FOLDER"], lambda s: s.service.slot_folder is not None, True, False,
    ),
    "file_path": (
        ["--file-path", "FOLDER"], lambda s: s.service.files.is_temporary, False, True,
    ),
    "max_file": (
        ["--max-file", "300"], lambda s: s.service.limits.file_bytes, 300_000_000, 200_000_000,
    ),
    "max_files": (
        ["--max-files", "300"], lambda s: s.service.limits.total_file_bytes, 300_000_000,
        2_000_000_000,
    ),
    "strict": (["--strict"], lambda s: s.guard["strict"], True, False),
    "max_body": (
        ["--max-body", "0.5"], lambda s: s.service.limits.body_bytes, 500_000, 16_000_000,
    ),
    "max_bodies": (
        ["--max-bodies", "20"], lambda s: s.service.limits.total_body_bytes, 20_000_000, None,
    ),
    "body_timeout": (["--body-timeout", "2"], lambda s: s.service.limits.body_seconds, 2, 30),
    "idle_timeout": (["--idle-timeout", "2.5"], lambda s: s.serving["idle_seconds"], 2.5, 30),
    "deadline": (["--deadline", "9"], lambda s: s.service.limits.deadline, 9, 600),
    "drain": (["--drain", "8"], lambda s: s.serving["drain_seconds"], 8, 30),
    "otlp_endpoint": (
        ["--otlp-endpoint", "http://localhost:4318"], lambda s: s.guard["tracer"] is None,
        False, True,
    ),
    "log_level": (["--log-level", "debug"], lambda s: s.logging[0], "debug", "info"),
    "log_format": (["--log-format", "json"], lambda s: s.logging[1], "json", "text"),
}  # fmt: skip


def test_every_option_has_a_row() -> None:
    """A new option fails here until the table above has it."""
    serve = getattr(get_command(command_line), "commands")["serve"]  # noqa: B009
    settings = {setting.option or name for name, setting in SETTINGS.items()}
    own_test = {"adapter", "config"} | settings  # also in test_settings.py
    cluster = {"ray", "ray_address", "replicas", "min_replicas", "max_replicas"}
    cluster |= {"num_gpus", "num_cpus"}  # tests/ray/test_command_line.py
    assert {option.name for option in serve.params} == OPTIONS.keys() | own_test | cluster


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    """What is seen without any option."""
    with pytest.MonkeyPatch.context() as patch:
        without_environment(patch)
        seen = run(patch)
        return {name: find(seen) for name, (_, find, _, _) in OPTIONS.items()}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_reaches_its_setting(
    option: str, serve: Callable[..., Seen], defaults: dict[str, Any], tmp_path: Path
) -> None:
    """With the value that was given, and no other setting changes."""
    arguments, find, value, default = OPTIONS[option]
    keys = tmp_path / "keys"
    keys.write_text("c\n\n  d \n")
    paths = {"KEYS": str(keys), "FOLDER": str(tmp_path)}
    arguments = [paths.get(argument, argument) for argument in arguments]
    assert default == defaults[option]
    seen = serve(*arguments)
    assert value == find(seen)
    changed = {name for name, (_, other, _, _) in OPTIONS.items() if other(seen) != defaults[name]}
    beside = {"api_key"} if option == "api_key_file" else set()
    beside |= {"api_key_file"} if option == "api_key" else set()
    assert changed == {option} | beside


def test_options_that_depend_on_each_other(serve: Callable[..., Seen], tmp_path: Path) -> None:
    """An open address without a key is warned of; a file of a template is read."""
    seen = serve("--host", "0.0.0.0")
    assert "warning: --host 0.0.0.0 is open to others; set --api-key" in seen.output
    assert () == seen.guard["hosts"]
    assert "warning" not in serve("--host", "0.0.0.0", "--api-key", "a").output
    assert () == serve("--allowed-host", "*").guard["hosts"]
    assert HOSTS == serve("--api-key", "a").guard["hosts"]
    with pytest.raises(ArgumentError, match=r"^--uds a\.sock: .* --host and --port are given too"):
        serve("--uds", "a.sock", "--host", "::1", "--port", "1")
    config = tmp_path / "serve.toml"
    config.write_text("port = 1")
    with pytest.raises(
        ArgumentError, match=r"but port in the file of --config is given too; leave"
    ):
        serve("--uds", "a.sock", "--config", str(config))
    config.write_text('uds = "a.sock"')
    assert Path("a.sock") == serve("--config", str(config)).serving["uds"]
    with pytest.raises(ArgumentError, match=r"^--uds a\.sock: .* --port is given too; leave out"):
        serve("--config", str(config), "--port", "1")
    assert None is serve("--deadline", "0").service.limits.deadline
    exact = serve("--batch-invariant").parameters
    assert (True, ()) == (exact["batch_invariant"], exact["devices"])
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}ü", encoding="utf-8")
    assert "{{ messages }}ü" == serve("--chat-template", str(template)).parameters["template"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-cert", f"{CERTIFICATE}"], "has no private key; give --tls-key FILE"),
        (["--tls-key", f"{KEY}"], "key.pem': has no certificate; give --tls-cert FILE"),
        (["--tls-cert", __file__], f"--tls-cert {__file__!r}: the certificate and its key cannot"),
        (["--port", "PORT"], "127.0.0.1:PORT: Address already in use; stop the"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:8080: Cannot assign requested"),
        (["--uds", "/no/such/a.sock"], "--uds '/no/such/a.sock': cannot listen there: No such"),
        (["--idle-timeout", "0"], "--idle-timeout 0.0: expected a number at least 0.001"),
        (["--otlp-endpoint", "localhost"], "--otlp-endpoint 'localhost': expected a URL such as"),
        (["--ray-address", "a:1"], "--ray-address: belongs to a cluster; give --ray too"),
        (["--num-gpus", "1"], "--num-gpus: belongs to a cluster; give --ray too"),
        (["--ray", "--uds", "x"], "--uds: a cluster has no such option; leave it out"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_a_model_is_loaded(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an address that another program has."""
    monkeypatch.setattr("llcuda.server.create_app", pytest.fail)
    monkeypatch.setattr("llcuda.server.log.configure_logging", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = call("serve", "demo", *[port if word == "PORT" else word for word in options])
    assert (2, "") == (result.status, result.stdout)
    assert message.replace("PORT", port) in result.stderr


def test_traces_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error says what to type."""
    monkeypatch.setattr("llcuda.server.create_app", pytest.fail)
    monkeypatch.setattr("llcuda.server.log.configure_logging", lambda *_: None)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    result = call("serve", "demo", "--port", "0", "--otlp-endpoint", "http://localhost:4318")
    assert (1, "") == (result.status, result.stdout)
    assert "traces need OpenTelemetry: pip install 'llcuda[otel]'" in result.stderr


def test_adapters_are_loaded(serve: Callable[..., Seen], model_files: dict[str, Path]) -> None:
    """FILE has scale 1, FILE=SCALE another."""
    file = str(model_files["lora"])
    seen = serve(str(model_files["llama"]), "--adapter", file, "--adapter", f"{file}=0.5")
    assert [(file, 1.0), (file, 0.5)] == seen.parameters["adapters"]


def test_a_key_from_the_environment(
    serve: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLCUDA_API_KEY is --api-key."""
    monkeypatch.setenv("LLCUDA_API_KEY", "secret")
    assert ("secret",) == serve().guard["keys"]


def test_a_cluster_from_the_environment(
    serve: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAY_ADDRESS means nothing without --ray."""
    monkeypatch.setenv("RAY_ADDRESS", "a:1")
    assert 8080 == serve().serving["port"]


def test_a_collector_from_the_environment(
    serve: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_EXPORTER_OTLP_ENDPOINT is --otlp-endpoint."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318")
    with pytest.raises(ArgumentError, match="expected a URL such as"):
        serve()


STILL_READING = """
import asyncio, sys, time
import llcuda.server
from llcuda.cli.main import main
from llcuda.server.submission import run_beside

def serve(app, **keywords):
    async def begin():
        task = asyncio.create_task(run_beside(True, time.sleep, 600))
        await asyncio.sleep(0.1)
    asyncio.run(begin())

llcuda.server.serve = serve
sys.argv[1:] = ["serve", "demo", "--port", "0"]
main()
"""


def test_a_large_request_does_not_hold_up_the_end() -> None:
    """When the server has stopped, its threads have some seconds; then the process ends."""
    result = programs.run(STILL_READING)
    assert (0, "") == (result.returncode, result.stdout)
    assert "the server ends while a large request is still read" in result.stderr
