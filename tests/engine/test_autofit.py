"""The automatic settings, over machines that are made up; no library is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llcuda.engine import autofit
from llcuda.engine.autofit import RESERVE, Fitted, fit, fitting_layers
from llcuda.engine.config import EngineConfig
from llcuda.errors import ArgumentError, ContextError
from llcuda.native.estimate import DeviceMemory, FileFacts
from llcuda.native.library import DeviceInfo
from llcuda.params import ModelParams

GIB = 2**30
LAYERS = 32
Machine = Callable[..., Fitted]


def gpu(number: int, needed: int, free: int) -> DeviceMemory:
    """Return what a model takes of a GPU with so much free memory."""
    return DeviceMemory(f"CUDA{number}", "gpu", needed, 0, 0, free, 16 * GIB)


CPU = DeviceMemory("CPU", "cpu", 0, 0, 0, 0, 0)  # too full for anything


@given(data=st.data(), layers=st.integers(1, 100), cards=st.integers(1, 4))
def test_the_most_layers_that_every_gpu_holds(data: st.DataObject, layers: int, cards: int) -> None:
    """Against trying each number, for layers and GPUs of any size; few of them are tried."""
    sizes = data.draw(st.lists(st.integers(1, 10**9), min_size=layers, max_size=layers))
    buffers = data.draw(st.integers(0, 10**9))
    free = data.draw(st.lists(st.integers(0, 10**11), min_size=cards, max_size=cards))
    needed = [
        [buffers + sum(sizes[:n]) // (i + 1) for n in range(layers + 1)] for i in range(cards)
    ]
    tried: list[int] = []

    def needs(number: int) -> list[DeviceMemory]:
        tried.append(number)
        return [*(gpu(i, needed[i][number], free[i]) for i in range(cards)), CPU]

    fits = [
        n for n in range(layers + 1) if all(needed[i][n] + RESERVE <= free[i] for i in range(cards))
    ]
    assert fitting_layers(layers, needs) == max(fits, default=None)
    assert len(tried) == len(set(tried)) <= 24


@pytest.mark.parametrize(("room", "expected", "calls"), [(8000, 33, 1), (3600, 17, 4), (100, 0, 3)])
def test_even_layers_need_few_estimates(room: int, expected: int, calls: int) -> None:
    """33 layers of 200 MiB after 64 MiB of buffers, on `room` MiB: 1 estimate, or 4."""
    tried = []

    def needs(layers: int) -> list[DeviceMemory]:
        tried.append(layers)
        return [gpu(0, (64 + 200 * layers) * 2**20, RESERVE + room * 2**20), CPU]

    assert fitting_layers(33, needs) == expected
    assert len(tried) <= calls


def test_buffers_may_shrink_with_the_last_layer() -> None:
    """All layers may fit where all but one do not."""
    free = {10: RESERVE, 9: 3 * RESERVE}
    assert fitting_layers(10, lambda n: [gpu(0, free.get(n, 0), 2 * RESERVE), CPU]) == 10


def test_without_gpu_no_layers() -> None:
    """Devices of the user's choice need not include a GPU."""
    assert fitting_layers(10, lambda n: [CPU]) == 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Configure for a machine with these free bytes of its GPUs, a model of 32 layers of 100 MiB.

    llama.cpp splits the layers by free memory, or by tensor_split. calls: the parameters of every
    estimate.
    """

    def run(
        free: Sequence[int],
        compatible: bool = True,
        failure: Exception | None = None,
        calls: list[ModelParams] | None = None,
        **asked: Any,
    ) -> Fitted:
        names = [f"CUDA{i}" for i in range(len(free))]

        def simulate(path: Path, facts: FileFacts, model: ModelParams, context: Any) -> Any:
            assert calls is not None, "an estimate takes time"
            calls.append(model)
            if failure is not None:
                raise failure
            used = [
                i
                for i, name in enumerate(names)
                if name in (names if model.devices is None else model.devices)
            ]
            shares = model.tensor_split or [free[i] for i in used]
            weights = 100 * 2**20 * (model.gpu_layers or 0)
            parts = zip(used, shares, strict=True)
            return [
                *(gpu(i, int(weights * share / sum(shares)), free[i]) for i, share in parts),
                CPU,
            ]

        devices = [
            DeviceInfo(name, "", "gpu", "CUDA", memory, 16 * GIB)
            for name, memory in zip(names, free, strict=True)
        ]
        devices.append(DeviceInfo("CPU", "a processor", "cpu", "CPU", GIB, GIB))
        check = {
            "compatible": compatible,
            "platform": "local",
            "gpu_name": "a GPU",
            "compute_capability": "7.5",
            "reason": "it is old",
        }
        facts = FileFacts("llama", 1000, LAYERS - 1, 1024)
        monkeypatch.setattr(autofit, "read_facts", lambda path: facts)
        monkeypatch.setattr(autofit, "simulate", simulate)
        monkeypatch.setattr(autofit, "check_gpu_compatibility", lambda: check)
        monkeypatch.setattr(autofit.library, "devices", lambda: devices)
        config = EngineConfig.from_kwargs(n_parallel=4, **asked)
        return fit(config, Path("model.gguf"))

    return run


def test_the_cpu_needs_no_estimate(machine: Machine) -> None:
    """Without a GPU nothing is simulated; the model's training context bounds the default."""
    chosen = machine([])
    assert (chosen.gpu_layers, chosen.config.model.devices) == (0, None)
    assert chosen.config.engine.ctx_size == 1024


@pytest.mark.parametrize(
    ("free", "asked", "layers", "devices"),
    [
        ([8 * GIB], {}, 32, None),
        ([RESERVE + 1050 * 2**20], {}, 10, None),
        ([8 * GIB, 8 * GIB], {}, 32, None),
        # the first takes half of them, and is the one that ends it
        ([RESERVE + 1000 * 2**20, 8 * GIB], {"tensor_split": [1, 1]}, 20, None),
        # no memory left by another program: the other GPU is used
        ([RESERVE - 1, 8 * GIB], {}, 32, ["CUDA1"]),
        ([RESERVE - 1, 0], {}, 0, ()),
        ([8 * GIB, RESERVE - 1], {"devices": ["CUDA1"]}, 0, ()),
        ([8 * GIB, 8 * GIB], {"devices": ["CUDA1"]}, 32, ["CUDA1"]),
        ([8 * GIB], {"devices": []}, 0, []),
    ],
)
def test_layers_and_devices(
    free: list[int], asked: dict[str, Any], layers: int, devices: Any, machine: Machine
) -> None:
    """Every GPU in use must have room; one without is not used, unless it was asked for."""
    chosen = machine(free, calls=[], **asked)
    assert (chosen.gpu_layers, chosen.config.model.gpu_layers) == (layers, layers)
    assert chosen.config.model.devices == devices
    assert ("Note" in "\n".join(chosen.report)) == (devices != asked.get("devices"))


def test_model_parameters_reach_the_estimate(machine: Machine) -> None:
    """What the user says of the split holds in it, and afterwards."""
    calls: list[ModelParams] = []
    asked: dict[str, Any] = {"tensor_split": [3, 1], "main_gpu": 1, "split_mode": "layer"}
    chosen = machine([GIB, GIB], calls=calls, **asked)
    for params in [*calls, chosen.config.model]:
        assert {name: getattr(params, name) for name in asked} == asked
    assert calls


@pytest.mark.parametrize(("asked", "layers"), [(0, 0), (5, 5), (1000, LAYERS)])
def test_given_layers_are_taken(asked: int, layers: int, machine: Machine) -> None:
    """No estimate contradicts the user; the number is at most that of all layers."""
    assert machine([RESERVE], gpu_layers=asked).gpu_layers == layers


@pytest.mark.parametrize("asked", [None, 5])
def test_a_gpu_that_llcuda_cannot_use(asked: int | None, machine: Machine) -> None:
    """It gets neither layers nor buffers."""
    chosen = machine([8 * GIB], compatible=False, gpu_layers=asked)
    assert (chosen.gpu_layers, chosen.config.model.devices) == (0, ())


def test_an_estimate_that_fails(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """All layers, said once in the log and in the report."""
    chosen = machine([RESERVE], failure=ContextError("because"), calls=[])
    assert chosen.gpu_layers == LAYERS
    assert "too many" in chosen.report[-1]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "because" in record.getMessage()


def test_wrong_parameters_are_errors(machine: Machine) -> None:
    """Those that the estimate finds are the user's."""
    with pytest.raises(ArgumentError):
        machine([GIB], failure=ArgumentError("devices"), calls=[], devices=["x"])


KIB, MIB = 2**10, 2**20
TRAIN = 131_072


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return the automatic context on a machine with so many free MiB.

    The model: 1 GiB of weights, 32 KiB for each KV cell, 128 MiB and 1 KiB a cell of buffers.
    """

    def run(
        free: int, *, gpu: bool, train: int = TRAIN, cell: int = 32 * KIB, **options: Any
    ) -> int:
        kind = "gpu" if gpu else "cpu"

        def simulate(path: Path, facts: FileFacts, model: ModelParams, context: Any) -> Any:
            cells = context.ctx_size * context.sequences
            if cells > 2**26:
                raise ContextError("too many to count")
            compute = 128 * MIB + KIB * context.ctx_size
            return [DeviceMemory("X", kind, GIB, cells * cell, compute, free * MIB, 64 * GIB)]

        devices = [DeviceInfo("X", "", kind, "CUDA" if gpu else "CPU", free * MIB, 64 * GIB)]
        check = {"compatible": gpu, "platform": "local", "gpu_name": None, "reason": "none"}
        check |= {"compute_capability": "7.5"}
        facts = FileFacts("llama", 1000, LAYERS - 1, train)
        monkeypatch.setattr(autofit, "read_facts", lambda path: facts)
        monkeypatch.setattr(autofit, "simulate", simulate)
        monkeypatch.setattr(autofit, "check_gpu_compatibility", lambda: check)
        monkeypatch.setattr(autofit.library, "devices", lambda: devices)
        sharing = {name: options.pop(name) for name in ("models", "budget") if name in options}
        fitted = fit(EngineConfig.from_kwargs(**options), Path("model.gguf"), **sharing)
        assert fitted.config.engine.ctx_size is not None
        return fitted.config.engine.ctx_size

    return run


def test_the_context_is_what_the_model_was_trained_on(roomy: Callable[..., int]) -> None:
    """Where its KV cells take at most half of what is free beside the weights; 4 GiB here."""
    assert roomy(1024 + 8192, gpu=False) == TRAIN
    assert roomy(1024 + 8191, gpu=False) == TRAIN - 256
    assert roomy(1024 + 384 + 8192, gpu=True) == TRAIN
    assert roomy(1024 + 384 + 8191, gpu=True) == TRAIN - 256
    assert roomy(40_000, gpu=False, train=1000) == 1000
    assert roomy(40_000, gpu=False, train=100_001) == 100_001
    assert roomy(40_000, gpu=False, train=0) == 2048


@pytest.mark.parametrize("gpu", [False, True])
def test_all_sequences_count(gpu: bool, roomy: Callable[..., int]) -> None:
    """Four sequences get a quarter each; a cache that takes more than half leaves the least."""
    beside = 1024 + (384 if gpu else 0)
    assert roomy(beside + 8192, gpu=gpu, n_parallel=4) == TRAIN // 4
    assert roomy(beside + 8192, gpu=gpu, cache_size=TRAIN * 2) == 2048


def test_the_least_context(roomy: Callable[..., int]) -> None:
    """2,048 tokens however little is free, and a context that was given stays."""
    assert roomy(1100, gpu=False) == roomy(10, gpu=False) == 2048
    assert roomy(10, gpu=True) == 2048
    assert roomy(1025, gpu=False, ctx_size=50_000) == 50_000
    assert roomy(60_000, gpu=False, ctx_size=100) == 100
    assert roomy(60_000, gpu=False, train=2**30) < 2**21  # more cells than can be counted


def test_buffers_must_fit_as_well(roomy: Callable[..., int]) -> None:
    """Cells of a byte each: the 1 KiB of buffers for each of them decides."""
    size = roomy(1024 + 128 + 64, gpu=False, cell=1)
    assert size == 65_536 - 256


def test_models_share_what_is_free(roomy: Callable[..., int]) -> None:
    """A server of two models gives each half; its budget bounds both."""
    assert roomy(2 * (1024 + 8192), gpu=False, models=2) == TRAIN
    assert roomy(60_000, gpu=False, budget=(1024 + 2048) * MIB) == TRAIN // 4
    assert roomy(60_000, gpu=False, models=2, budget=2 * (1024 + 2048) * MIB) == TRAIN // 4
