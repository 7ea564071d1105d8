"""A GPU that is full, and one that fails: errors, and a process that goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llcuda import Context, Engine, Model
from llcuda.errors import ContextError, DecodeError, ModelError, OutOfMemoryError
from tests.gpu.conftest import Cuda
from tests.support.programs import run
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.gpu

MIB = 2**20
PROMPT = [5 + i % 90 for i in range(2000)]
LARGE: Any = {"ctx_size": 4096, "batch_size": 2048, "ubatch_size": 2048}


def test_while_loading(cuda: Cuda) -> None:
    """It is an error of the model that says what was asked and free; then the model loads."""
    with cuda.full(), pytest.raises(OutOfMemoryError, match="MiB are free on CUDA0") as caught:
        Model("demo", gpu_layers=99, devices=["CUDA0"])
    assert isinstance(caught.value, ModelError)
    assert "MiB more were asked of CUDA0" in str(caught.value)
    with Model("demo", gpu_layers=99) as model, Context(model, ctx_size=256) as context:
        context.decode([5])


def test_while_making_a_context(cuda: Cuda, gpu_demo: Model) -> None:
    """A smaller context can be made afterwards, in the memory that is left."""
    with cuda.full(left=96 * MIB):
        with pytest.raises(OutOfMemoryError, match="smaller ctx_size") as caught:
            Context(gpu_demo, ctx_size=2**20)
        assert isinstance(caught.value, ContextError)
        with Context(gpu_demo, ctx_size=256) as context:
            context.decode([5])


def test_in_a_decode(cuda: Cuda, gpu_demo: Model) -> None:
    """The batch is undone, other texts are not, and the context computes on as if nothing was."""
    with Context(gpu_demo, sequences=2, **LARGE) as context:
        with Context(gpu_demo, sequences=2, **LARGE) as other:
            other.decode(PROMPT[:3], 0)
            other.decode(PROMPT[:3], 1)
            other.decode(PROMPT, 1)
            other.decode([9], 1)
            expected = np.array(other.logits())
        context.decode(PROMPT[:3], 0)
        context.decode(PROMPT[:3], 1)
        with cuda.full(), pytest.raises(OutOfMemoryError, match="MiB are free") as caught:
            context.decode(PROMPT, 1)
            context.logits()
        assert isinstance(caught.value, DecodeError)
        assert [context.n_past(seq) for seq in (0, 1)] == [3, 3]
        context.decode(PROMPT, 1)
        context.decode([9], 1)
        np.testing.assert_allclose(context.logits(), expected, atol=1e-3)


def test_in_an_engine(cuda: Cuda, gpu_demo: Model) -> None:
    """The request that found no room fails; those that follow are computed."""
    asked: dict[str, Any] = {"max_tokens": 30, "temperature": 0}
    options = {"n_parallel": 2, "ctx_size": 4096, "batch_size": 2048, "ubatch_size": 2048}
    with Engine(gpu_demo, **options) as engine:
        expected = engine.submit("Once upon a time", **asked).result(PATIENCE).text
    with Engine(gpu_demo, **options) as engine:
        engine.submit("One day", **asked).result(PATIENCE)
        with cuda.full(), pytest.raises(OutOfMemoryError):
            engine.submit(PROMPT, max_tokens=1).result(PATIENCE)
        assert engine.submit("Once upon a time", **asked).result(PATIENCE).text == expected
        request = engine.submit(PROMPT, max_tokens=1, ignore_eos=True)
        assert "length" == request.result(PATIENCE).finish_reason


LOST = """
import ctypes
from llcuda import Context, Engine, Model, device
from llcuda.errors import DeviceLostError
from llcuda.native import library

PTX = b'''
.version 6.4
.target sm_75
.address_size 64
.visible .entry fail() { trap; }
'''
model = Model("demo", gpu_layers=99)
context = Context(model, ctx_size=256)
engine = Engine(model, ctx_size=256)
context.decode([5])
context.logits()
engine.submit("Once", max_tokens=3).result(120)
cuda = ctypes.CDLL("libcuda.so.1")
module, function = ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cuModuleLoadData(ctypes.byref(module), PTX) == 0
assert cuda.cuModuleGetFunction(ctypes.byref(function), module, b"fail") == 0
assert cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None) == 0
cuda.cuCtxSynchronize()
for use in (
    lambda: (context.decode([6]), context.logits()),
    lambda: context.decode([6]),
    lambda: engine.submit("Once", max_tokens=3).result(120),
    lambda: Context(model, ctx_size=256).decode([5]),
    library.devices,
):
    try:
        use()
        print("nothing")
    except DeviceLostError as error:
        print("lost:", str(error).splitlines()[0])
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[0])
engine.close()
context.close()
model.close()
with Model("demo", devices=()) as model, Context(model, ctx_size=256) as context:
    context.decode([5])
    print("the CPU computes")
"""


def test_a_gpu_that_fails_does_not_take_the_process_with_it() -> None:
    """Each use says that the GPU is lost; closing is quiet, and the CPU still computes."""
    result = run(LOST)
    assert result.returncode == 0, result.stdout + result.stderr
    *uses, last = result.stdout.splitlines()
    assert uses == [use for use in uses if use.startswith("lost: a GPU failed")]
    assert (len(uses), last) == (5, "the CPU computes")
