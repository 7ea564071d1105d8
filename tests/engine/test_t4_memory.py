"""The models of the user's documents on a T4: what they take of it, and that they fit.

The estimate is llama.cpp's, on a fake card of that size, for files without weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llcuda.bench.synthetic import SHAPES
from llcuda.engine.autofit import RESERVE
from tests.support import fake_gpu
from tests.support.fake_gpu import INSTALL, T4
from tests.support.programs import run
from tests.support.sparse_models import sparse_model

pytest.importorskip("gguf")
MIB = 2**20
ALL = {"gemma-3-1b": 27, "llama-3.2-3b": 29, "qwen-2.5-7b": 29, "llama-3.1-8b": 33}

# argv: a file and a JSON list of settings. Prints for each the layers that are chosen, and what
# they take of each device.
PROGRAM = f"""{INSTALL}
import json, sys
from dataclasses import asdict
from pathlib import Path
from llcuda.engine.autofit import fit
from llcuda.engine.config import EngineConfig
from llcuda.native.estimate import memory_needed
answers = []
for settings in json.loads(sys.argv[2]):
    fitted = fit(EngineConfig.from_kwargs(**settings), Path(sys.argv[1]))
    config = fitted.config
    needed = memory_needed(
        sys.argv[1], model=config.model, context=config.context_params(gpu=True)
    )
    answers.append([fitted.gpu_layers, [asdict(device) for device in needed]])
print(json.dumps(answers))
"""


def plan(machine: dict[str, str], path: Path, *settings: dict[str, Any]) -> list[Any]:
    """Return the layers and the devices' memory for each of the settings."""
    result = run(PROGRAM, path, json.dumps(settings), environment=machine, timeout=300)
    assert result.returncode == 0, result.stderr
    answers: list[Any] = json.loads(result.stdout)
    for _, devices in answers:
        for device in devices[:-1]:
            taken = device["model"] + device["kv"] + device["compute"]
            assert taken + RESERVE <= device["free"]
    return answers


@pytest.mark.parametrize(
    ("name", "ctx_size", "expected"),
    [
        ("gemma-3-1b", 2048, 831),
        ("llama-3.2-3b", 4096, 2430),
        ("qwen-2.5-7b", 8192, 4692),
        ("llama-3.1-8b", 8192, 5492),
    ],
)
def test_the_table_of_the_documents(
    name: str, ctx_size: int, expected: int, backend: Path, tmp_path: Path
) -> None:
    """All layers at the table's contexts, for 1, 4 and 8 texts; MiB for one text."""
    path = sparse_model(tmp_path, name, "Q4_K_M")
    common = {"ctx_size": ctx_size, "batch_size": 512, "ubatch_size": 128}
    settings = [{**common, "n_parallel": count} for count in (1, 4, 8)]
    answers = plan(fake_gpu.environment(tmp_path / "t4", backend=backend), path, *settings)
    assert [ALL[name]] * 3 == [layers for layers, _ in answers]
    one = answers[0][1][0]
    assert expected == pytest.approx((one["model"] + one["kv"] + one["compute"]) / MIB, rel=0.02)


def test_further_settings_of_the_documents(backend: Path, tmp_path: Path) -> None:
    """A cache of two contexts, eight texts in larger batches, and an old model's large cells."""
    machine = fake_gpu.environment(tmp_path / "t4", backend=backend)
    gemma = sparse_model(tmp_path, "gemma-3-1b", "Q4_K_M")
    many = {"ctx_size": 2048, "batch_size": 1024, "ubatch_size": 256, "n_parallel": 8}
    for layers, _ in plan(machine, gemma, {"ctx_size": 4096, "cache_size": 8192}, many):
        assert ALL["gemma-3-1b"] == layers
    old = sparse_model(tmp_path, "llama-2-7b", "Q4_K_M")
    ((layers, _),) = plan(machine, old, {"ctx_size": 8192})
    assert 33 == layers


def test_what_does_not_fit_one_card(backend: Path, tmp_path: Path) -> None:
    """F16 weights of 8 billion: a part of them on one T4, all on two."""
    path = sparse_model(tmp_path, "llama-3.1-8b", "F16")
    setting = {"ctx_size": 8192, "ubatch_size": 128}
    one = fake_gpu.environment(tmp_path / "one", backend=backend)
    ((layers, devices),) = plan(one, path, setting)
    assert SHAPES["llama-3.1-8b"].layers * 3 // 4 < layers < ALL["llama-3.1-8b"]
    assert devices[0]["free"] - devices[0]["model"] < 3 * 2**30  # the card is used
    two = fake_gpu.environment(tmp_path / "two", backend=backend, gpus=[T4, T4])
    ((layers, devices),) = plan(two, path, setting)
    assert (ALL["llama-3.1-8b"], ["CUDA0", "CUDA1", "CPU"]) == (
        layers,
        [d["name"] for d in devices],
    )


TAKEN = f"""{INSTALL}
import llcuda
from llcuda.native import library
settings = dict(ctx_size=2048, sequences=4, unified_kv=False)
needed = llcuda.memory_needed("demo", gpu_layers=99, **settings)[0]
def free():
    return next(device.free_memory for device in library.devices() if device.kind == "gpu")
before = free()
with llcuda.Model("demo", gpu_layers=99) as model:
    with llcuda.Context(model, **settings) as context:
        print(needed.needed, before - free())
print(before - free())
"""


def test_the_estimate_is_what_loading_takes(backend: Path, tmp_path: Path) -> None:
    """Of the card, to the buffers' alignment; all of it comes back."""
    result = run(TAKEN, environment=fake_gpu.environment(tmp_path, backend=backend))
    (estimate, taken), (kept,) = (line.split() for line in result.stdout.splitlines())
    assert int(estimate) == pytest.approx(int(taken), rel=0.001)
    assert "0" == kept


AUTOMATIC = f"""{INSTALL}
import json, sys
from pathlib import Path
from llcuda.engine.autofit import fit
from llcuda.engine.config import EngineConfig
from llcuda.native.estimate import memory_needed
fitted = fit(EngineConfig.from_kwargs(n_parallel=int(sys.argv[2])), Path(sys.argv[1]))
config = fitted.config
context = config.context_params(gpu=True)
gpu = memory_needed(sys.argv[1], model=config.model, context=context)[0]
print(json.dumps([fitted.gpu_layers, config.engine.ctx_size, gpu.kv, gpu.free - gpu.model]))
"""


@pytest.mark.parametrize(
    ("name", "n_parallel", "train"), [("gemma-3-1b", 1, 32_768), ("llama-3.1-8b", 4, 131_072)]
)
def test_the_automatic_context(
    name: str, n_parallel: int, train: int, backend: Path, tmp_path: Path
) -> None:
    """What a model was trained on, or as much as half of the card holds beside the weights."""
    path = sparse_model(tmp_path, name, "Q4_K_M")
    machine = fake_gpu.environment(tmp_path / "t4", backend=backend)
    result = run(AUTOMATIC, path, str(n_parallel), environment=machine, timeout=300)
    assert result.returncode == 0, result.stderr
    layers, ctx_size, kv, free = json.loads(result.stdout)
    assert layers == ALL[name]
    assert (ctx_size == train) == (name == "gemma-3-1b")
    assert 2048 < ctx_size <= train
    assert kv <= (free - RESERVE) / 2
    step = kv / ctx_size * 256  # one more step would not fit
    assert ctx_size == train or kv + 2 * step > (free - RESERVE) / 2


ASKED = f"""{INSTALL}
import ctypes, os, re
import llcuda
from pathlib import Path
with llcuda.Model("demo", gpu_layers=99) as model, llcuda.Context(model, ctx_size=256) as context:
    [path] = set(re.findall(r"/\\S*libggml-cuda\\S*", Path("/proc/self/maps").read_text()))
    asked = ctypes.CDLL(path).fake_types_asked
    context.decode([1, 2, 3])
    before = asked()
    for token in range(8):
        context.decode([token])
    print(before > 0, asked() - before)
"""


def test_no_step_asks_what_a_device_is(backend: Path, tmp_path: Path) -> None:
    """CUDA 12's run-time library takes a millisecond to answer."""
    result = run(ASKED, environment=fake_gpu.environment(tmp_path, backend=backend))
    assert "True 0\n" == result.stdout, result.stderr
