"""The demo model and an engine on it, for each file of tests."""

from collections.abc import Iterator

import pytest

from llcuda import Engine, Model


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    with Engine(model, n_parallel=4, ctx_size=512, threads=1) as engine:
        yield engine
