"""`llcuda serve --ray` in a process of its own, and its errors."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import httpx
import pytest

pytest.importorskip("ray")
from llcuda.ray import ClusterConfig
from llcuda.server import Limits
from tests.support.commands import call
from tests.support.waiting import PATIENCE


def test_the_command_serves_until_sigterm() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llcuda", "serve", "demo", "--ray", "--ray-address", "local"]
    command += ["--port", str(port), "--ctx-size", "256", "--parallel", "2"]
    token = {"RAY_AUTH_TOKEN": "0" * 32}  # or Ray writes one into the home folder
    environment = {**os.environ, **token}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"demo at http://127.0.0.1:{port}/v1\n"
        body = {"prompt": "Once", "max_tokens": 2}
        url = f"http://127.0.0.1:{port}/v1/completions"
        assert 200 == httpx.post(url, json=body, timeout=PATIENCE, trust_env=False).status_code
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(PATIENCE)


def test_the_options_reach_the_cluster(tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("ray = true\nmax-replicas = 3\n")
    options = ["--min-replicas", "2", "--num-gpus", "0.5", "--num-cpus", "4", "--api-key", "k"]
    options += [
        "--drain",
        "9",
        "--strict",
        "--deadline",
        "7",
        "--ray-address",
        "a:1",
        "--port",
        "9",
    ]
    with mock.patch("llcuda.ray.cluster.serve_on_ray") as called:
        assert 0 == call("serve", "fox=demo", "--config", str(config), *options).status
    [given], others = called.call_args
    expected = ClusterConfig(
        given.models,
        min_replicas=2,
        max_replicas=3,
        num_gpus=0.5,
        num_cpus=4,
        keys=["k"],
        drain_seconds=9,
        strict=True,
        limits=Limits(body_bytes=16_000_000, deadline=7),
        hosts=given.hosts,
    )
    assert expected == given
    assert ["fox"] == [spec.name for spec in given.models]
    assert ("a:1", 9) == (others["address"], others["port"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray", "--replicas", "0"], "--replicas 0: expected a whole number"),
        (
            ["--ray", "--min-replicas", "2"],
            "--min-replicas 2: the most of them is missing; give --max-replicas NUMBER",
        ),
        (["--ray", "--num-gpus", "1.5"], "--num-gpus 1.5: expected a whole number"),
        (["--ray", "--gpu-layers", "9"], "demo has gpu_layers, and its replicas have no GPU"),
        (
            ["--ray", "--otlp-endpoint", "x:4318"],
            "--otlp-endpoint 'x:4318': expected a URL such as",
        ),
        (["--ray", "--port", "0"], "--port 0: Ray's proxies need a port"),
        (["--ray", "--uds", "/tmp/x"], "--uds: a cluster has no such option; leave it out"),
        (["--replicas", "2"], "--replicas: belongs to a cluster; give --ray too"),
    ],
)
def test_a_wrong_option_is_named(options: list[str], message: str) -> None:
    result = call("serve", "demo", *options)
    assert 2 == result.status
    assert message in re.sub(r"\s+", " ", result.stderr)
