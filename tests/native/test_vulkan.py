"""The Vulkan backend on Mesa's driver that computes on the CPU, where llcuda was built with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda.native import library
from tests.support.programs import run

DRIVERS = sorted(Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"))
VULKAN = {name: str(DRIVERS[0]) for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES") if DRIVERS}

pytestmark = pytest.mark.skipif(
    not DRIVERS or not (library.installation()[0] / "libggml-vulkan.so").is_file(),
    reason="needs a build with LLCUDA_BACKENDS=vulkan, and mesa-vulkan-drivers",
)

# The log-probabilities of every position of a text, and what an engine writes in one batch.
TEXTS = """
import json, sys
import numpy as np
import llcuda
layers = json.loads(sys.argv[1])
with llcuda.Model("demo", gpu_layers=layers) as model:
    tokens = model.tokenize("Once upon a time there was a girl who had a red ball.")
    with llcuda.Context(model, ctx_size=256) as context:
        context.decode(tokens, logits="all")
        rows = np.stack([np.array(context.logits(i), dtype=float) for i in range(len(tokens))])
with llcuda.InferenceEngine() as engine:
    engine.load_model("demo", gpu_layers=layers, ctx_size=256, n_parallel=3, silent=True)
    prompts = ["Once upon a time", "The dog", "One day"]
    texts = [result.text for result in engine.batch_infer(prompts, max_tokens=24, temperature=0)]
    on = [device.name for device in llcuda.memory_needed("demo", gpu_layers=layers) if device.model]
print(json.dumps([(rows - np.logaddexp.reduce(rows, 1, keepdims=True)).tolist(), texts, on]))
"""


def on_vulkan(program: str, *arguments: object, devices: str = "0") -> str:
    """Return what a program prints that sees Mesa's driver.

    Args:
        program: The program.
        arguments: Its arguments.
        devices: The numbers of the devices that it may use.
    """
    environment = {**os.environ, **VULKAN, "GGML_VK_VISIBLE_DEVICES": devices}
    result = run(program, *arguments, environment=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def texts(layers: int | None) -> tuple[Any, list[str], list[str]]:
    """Return log-probabilities, texts, and the devices that hold weights."""
    rows, written, on = json.loads(on_vulkan(TEXTS, json.dumps(layers)))
    return np.array(rows), written, on


@pytest.mark.parametrize("layers", [4, 99, None])
def test_it_computes_what_the_cpu_computes(layers: int | None) -> None:
    """Some layers, all, and as many as fit; activations are rounded differently."""
    expected, _, cpu = texts(0)
    rows, written, devices = texts(layers)
    divergence = (np.exp(expected) * (expected - rows)).sum(1)
    assert divergence.max() < 0.02
    assert all(written)
    assert ["CPU"] == cpu
    assert "Vulkan0" in devices


FACTS = """
import llcuda
from llcuda.cli.diagnose import diagnose
from llcuda.core import Tensor
report = diagnose()
print(report.backends["libggml-vulkan.so"], [d["name"] for d in report.devices], report.problems)
def attempt(function):
    try:
        function()
    except (llcuda.LlcudaError, RuntimeError) as error:
        print(error)
attempt(lambda: llcuda.Model("demo", devices=["Vulkan7"]))
attempt(lambda: Tensor.zeros([2], device=0))
"""


def test_what_is_said_of_it() -> None:
    """The report names the device, and errors name what there is."""
    report, device, tensor = on_vulkan(FACTS).splitlines()
    assert report.startswith("loaded ['Vulkan0', 'CPU'] []")
    assert "'Vulkan7' is not one of Vulkan0, CPU" in device
    assert "GPU" in tensor


def test_no_device() -> None:
    """The CPU is used, and the report says why."""
    report = on_vulkan(FACTS, devices="").splitlines()[0]
    assert report.startswith("loaded ['CPU'] [Problem(what='the Vulkan backend sees no GPU'")
