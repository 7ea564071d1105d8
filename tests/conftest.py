"""Models of every kind, made once for a test session, and contexts on them.

Contexts compute with one thread: the models are tiny, and a build may run beside the tests.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from llcuda import Adapter, Context, Model, demo_model
from tests.support import checkout, fake_gpu, models
from tests.support.chains import Float32

HERE = Path(__file__).parent
VENDOR_MODELS = HERE.parent / "vendor" / "llama.cpp" / "models"

settings.register_profile(
    "default",
    max_examples=100,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,  # the same examples in each run
)
settings.register_profile(
    "long", settings.get_profile("default"), max_examples=10_000, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# A shell's background job ignores Ctrl-C, and hands that on to the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the process: its GPUs, and with `-n` its processor."""
    _hide_gpus(config)
    _take_one_processor(os.environ.get("PYTEST_XDIST_WORKER", ""))


def _take_one_processor(worker: str) -> None:
    """Give a worker of pytest-xdist a processor of its own, and its children the same.

    Models compute with a thread for each processor by default. Threads that wait for each other
    take time from another worker.
    """
    if worker and hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        number = int(worker.removeprefix("gw"))
        os.sched_setaffinity(0, {processors[number % len(processors)]})


def _hide_gpus(config: pytest.Config) -> None:
    """Hide the GPUs of this machine unless only tests that compute on them were asked for.

    The other tests compare with the arithmetic of the CPU.
    """
    rooms = {HERE / name for name in ("gpu", "real", "benchmarks")}
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    computes = all(rooms & {path, *path.parents} for path in asked)
    if not computes and "gpu" not in config.getoption("markexpr"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests unless -m names them."""
    if "slow" not in config.getoption("markexpr"):
        chosen = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.fixture(scope="module", autouse=True)
def files_of_the_checkout() -> Iterator[None]:
    """Fail when the tests of a module add or remove files of the checkout."""
    before = checkout.files()
    yield
    assert [] == sorted(checkout.files() ^ before), "tests write into tmp_path only"


@pytest.fixture(autouse=True)
def drawn_seeds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests without a seed draw the same ones in each run of a test.

    With pytest-randomly the seed of its run counts too, so that many runs try many seeds.
    """
    run = request.config.getoption("randomly_seed", None)
    monkeypatch.setattr(secrets, "randbelow", Random(f"{run} {request.node.nodeid}").randrange)


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CUDA backend without run-time libraries, which the CPU plays: tests.support.fake_gpu."""
    return fake_gpu.build_backend(tmp_path_factory.mktemp("backend") / "libggml-cuda.so")


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of the tiny models and of the adapter, by architecture and "lora"."""
    folder = tmp_path_factory.mktemp("models")
    builders = {**models.BUILDERS, "lora": models.lora}
    return {
        name: models.write(folder / f"{name}.gguf", *build()) for name, build in builders.items()
    }


@pytest.fixture(scope="session")
def model(model_files: dict[str, Path]) -> Iterator[Model]:
    """The tiny llama, shared by the session."""
    with Model(model_files["llama"]) as model:
        yield model


@pytest.fixture(scope="session")
def gemma(model_files: dict[str, Path]) -> Iterator[Model]:
    """The model with a sliding window of 16 tokens."""
    with Model(model_files["gemma3"]) as model:
        yield model


@pytest.fixture(scope="session")
def mamba(model_files: dict[str, Path]) -> Iterator[Model]:
    """The recurrent model."""
    with Model(model_files["mamba"]) as model:
        yield model


@pytest.fixture(scope="session")
def bert(model_files: dict[str, Path]) -> Iterator[Model]:
    """The encoder."""
    with Model(model_files["bert"]) as model:
        yield model


@pytest.fixture(scope="session")
def adapter(model: Model, model_files: dict[str, Path]) -> Adapter:
    """The LoRA adapter, loaded for the tiny llama."""
    return Adapter(model, model_files["lora"])


@pytest.fixture(scope="session")
def demo() -> Iterator[Model]:
    """The model that ships with the package; fails when it is missing."""
    assert demo_model().is_file(), f"{demo_model()} is missing: train it, see demo_model/"
    with Model("demo") as model:
        yield model


@pytest.fixture
def logits() -> Float32:
    """Logits for the tiny models' vocabulary, without ties."""
    return np.random.default_rng(7).normal(0, 3, models.VOCABULARY).astype(np.float32)


@pytest.fixture
def make_context() -> Iterator[Callable[..., Context]]:
    """Make contexts of 256 tokens on one thread, closed at the end of the test."""
    contexts: list[Context] = []

    def make(model: Model, **parameters: Any) -> Context:
        context = Context(model, **{"ctx_size": 256, "threads": 1, **parameters})
        contexts.append(context)
        return context

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def context(model: Model, make_context: Callable[..., Context]) -> Context:
    """A context of one sequence on the tiny llama."""
    return make_context(model)
