"""Stands for the llama-server binary: its options become a server of llcuda in this process.

llama-server takes defaults of requests at its start (--n-predict, --temp, --seed). llcuda takes
them with each request, so that a layer in front writes them into the bodies that lack them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llcuda.server.app import create_app, uvicorn_config
from llcuda.server.connections import listen
from llcuda.server.models import ModelSpec

GENERATE = [
    "completion",
    "completions",
    "infill",
    "messages",
    "responses",
    "apply-template",
    "input_tokens",
]
TINY = "ggml-org/test-model-stories260K"
# The model that stands for each of those that the tests ask the Hugging Face Hub for.
MODELS = {
    TINY: "demo",
    "ggml-org/test-model-stories260K-infill": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "ggml-org/models/bert-bge-small/ggml-model-f16.gguf": "bert.gguf",
    "ggml-org/models/jina-reranker-v1-tiny-en/ggml-model-f16.gguf": "reranker.gguf",
}
FLAGS = "offline cont-batching embedding reranking metrics kv-unified swa-full slots no-slots"
FLAGS += " verbose jinja no-jinja no-mmproj no-cache-idle-slots context-shift backend_sampling"
VALUES = "port host model hf-repo hf-file temp seed alias ctx-size parallel batch-size ubatch-size"
VALUES += " threads n-predict slot-save-path pooling api-key chat-template chat-template-file"
VALUES += " reasoning-format reasoning cache-ram n-gpu-layers cors-origins"


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """Return llama-server's options; ArgumentError's counterpart is a failed test."""
    parser = argparse.ArgumentParser(prog="llcuda", exit_on_error=False, allow_abbrev=False)
    for name in FLAGS.split():
        parser.add_argument(f"--{name}", action="store_true")
    for name in VALUES.split():
        parser.add_argument(f"--{name}")
    parser.add_argument("-fa")
    options, further = parser.parse_known_args(list(arguments))
    if further:
        pytest.fail(f"llcuda serve has no {further[0]}")
    return options


class RequestDefaults:
    """Writes defaults into the bodies of requests that generate text.

    Args:
        app: The application behind it.
        fields: The defaults by llama-server's names.
    """

    def __init__(self, app: ASGIApp, fields: dict[str, Any]) -> None:
        self._app, self._fields = app, fields

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"].rpartition("/")[2] not in GENERATE:
            await self._app(scope, receive, send)
            return
        data = b""
        while (message := await receive())["type"] == "http.request":
            data += message.get("body", b"")
            if not message.get("more_body"):
                break
        try:
            document = json.loads(data)
        except ValueError:
            document = None
        if isinstance(document, dict):
            data = json.dumps({**self._fields_for(document), **document}).encode()
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", str(len(data)).encode()))
        bodies = [data]

        async def receive_body() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            return await receive()

        await self._app({**scope, "headers": headers}, receive_body, send)

    def _fields_for(self, document: dict[str, Any]) -> dict[str, Any]:
        limits = {"n_predict", "max_tokens", "max_completion_tokens", "max_output_tokens"}
        own = dict(self._fields)
        if "messages" not in document:
            own.pop("chat_template_kwargs", None)
        if limits & document.keys():
            own.pop("n_predict", None)
        return own


class StandIn:
    """Stands for a process of llama-server, as `subprocess.Popen` would return it.

    Args:
        arguments: The command; its first word is the binary.
        **settings: Settings of a process, which have no meaning here.
    """

    def __init__(self, arguments: Sequence[str], **settings: Any) -> None:
        options = options_of(arguments[1:])
        self.pid, self.returncode = os.getpid(), None
        app = create_app(
            [_spec(options)],
            keys=[options.api_key] if options.api_key else (),
            cors_origins=(options.cors_origins or "*").split(","),
            hosts=(),
            slot_folder=Path(options.slot_save_path) if options.slot_save_path else None,
        )
        fields = {"n_predict": _number(options.n_predict), "seed": _number(options.seed)}
        fields["temperature"] = None if options.temp is None else float(options.temp)
        if options.context_shift:
            fields["overflow"] = "shift"
        if options.reasoning in ("on", "off"):
            fields["chat_template_kwargs"] = {"enable_thinking": options.reasoning == "on"}
        if _model_name(options) == TINY:
            fields["ignore_eos"] = True  # the demo model ends its stories, stories260K does not
        defaults = {name: value for name, value in fields.items() if value is not None}
        served = RequestDefaults(app, defaults)
        listener = listen(options.host or "127.0.0.1", int(options.port))
        config = uvicorn_config(app, 1, 30)
        config.app = served
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        """Return None while the server runs."""
        return None if self._thread.is_alive() else 0

    def terminate(self) -> None:
        """Stop the server."""
        self._server.should_exit = True

    def kill(self) -> None:
        """Stop the server without waiting for requests."""
        self._server.should_exit = self._server.force_exit = True

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired("llama-server", timeout or 0)
        return 0


def _model_name(options: argparse.Namespace) -> str:
    return "/".join(filter(None, (options.hf_repo, options.hf_file)))


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _spec(options: argparse.Namespace) -> ModelSpec:
    """Return the model to serve."""
    name = _model_name(options)
    if name not in MODELS:
        pytest.skip(f"needs a download: {name}")
    slots = int(options.parallel or 4)
    ctx_size = int(options.ctx_size or 2048)
    parameters: dict[str, Any] = {
        "threads": 1,
        "n_parallel": slots,
        "ctx_size": ctx_size if options.kv_unified else ctx_size // slots,
    }
    for own, given in (("batch_size", options.batch_size), ("ubatch_size", options.ubatch_size)):
        if given:
            parameters[own] = int(given)
    if options.pooling:
        parameters["pooling"] = options.pooling
    if options.chat_template_file:
        parameters["template"] = Path(options.chat_template_file).read_text()
    elif options.chat_template:
        parameters["template"] = options.chat_template
    file = MODELS[name]
    folder = Path(os.environ["LLCUDA_FOREIGN_MODELS"])
    source = file if file == "demo" else str(folder / file)
    aliases = (options.alias or "").split(",")
    return ModelSpec(aliases[0] or "model", source, parameters=parameters, aliases=aliases[1:])
