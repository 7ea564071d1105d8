"""CUDA's run-time libraries on a machine with a GPU: one file of each, beside torch or without."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from llcuda import Model
from llcuda.native import library
from tests.support.programs import run

pytestmark = pytest.mark.gpu


def test_each_library_is_loaded_once(gpu_demo: Model) -> None:
    """The files that `llcuda doctor` names are those in the process, and no GPU is refused."""
    paths = library.runtime_libraries().paths
    assert [] == library.runtime_libraries().missing
    maps = set(re.findall(r"(/\S+\.so[.\d]*)$", Path("/proc/self/maps").read_text(), re.MULTILINE))
    for name, path in paths.items():
        assert [path] == [file for file in maps if Path(file).name.startswith(name)]
    assert {} == library.refused_gpus()


BESIDE = """
import sys
def torch_product():
    import torch
    a = torch.ones(64, 64, device="cuda")
    print((a @ a)[0, 0].item())
def llcuda_text():
    import llcuda
    with llcuda.InferenceEngine() as engine:
        engine.load_model("demo", gpu_layers=99, ctx_size=256, silent=True)
        assert engine.model.params.devices != ()
        print(engine.infer("Once upon a time", max_tokens=8, temperature=0).tokens_generated)
for name in sys.argv[1:]:
    globals()[name]()
"""

TORCH_FIRST = ("torch_product", "llcuda_text")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize(
    "names", [("torch_product", "llcuda_text"), ("llcuda_text", "torch_product")]
)
def test_beside_torch_in_both_orders(names: tuple[str, str]) -> None:
    """Both compute, whatever CUDA torch was built with."""
    result = run(BESIDE, *names, timeout=300)
    expected = {"torch_product": "64.0", "llcuda_text": "8"}
    assert [expected[name] for name in names] == result.stdout.split(), result.stderr
