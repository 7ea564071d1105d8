"""What patched llama.cpp computes, against the same build with a patch's switch set.

A library that was built without patches passes: there both runs are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llcuda.bench.synthetic import SHAPES, make_synthetic_model
from llcuda.native import library
from tests.support.churn import CHURN
from tests.support.programs import run

# Decodes in every way and prints a digest of all logits, and the cells. Argument: a model's file.
DECODES = """
import hashlib, sys
from llcuda import Context, Model
from llcuda.errors import NoRoomError

with Model(sys.argv[1], gpu_layers=0) as model:
    for unified, sequences in ((False, 1), (False, 5), (False, 16), (True, 1), (True, 6)):
        digest = hashlib.sha256()
        with Context(
            model, sequences=sequences, ctx_size=640, unified_kv=unified, threads=1,
            batch_size=64, ubatch_size=16, outputs_max=64,
        ) as context:
            def decode(tokens, seqs):
                context.decode_batch(tokens, seqs, logits=[True] * len(tokens))
                for i in range(len(tokens)):
                    digest.update(context.logits(i).tobytes())
            for seq in range(sequences):  # one micro-batch, and four
                length = 7 + 9 * seq % 58
                decode([(3 * i + seq) % 256 for i in range(length)], [seq] * length)
            for step in range(40):  # one micro-batch each
                decode([(step + seq) % 256 for seq in range(sequences)], list(range(sequences)))
            some = list(range(0, sequences, 2))
            context.memory.remove(0, 20)
            for step in range(5):
                decode([(step * 5 + seq) % 256 for seq in some], some)
            full = 0  # the cells of a sliding window are taken again meanwhile
            try:
                while True:
                    context.decode([full % 256] * 11, 0)
                    full += 1
            except NoRoomError:
                pass
            cells = [context.memory.range(seq) for seq in range(sequences)]
        print(unified, sequences, full, cells, digest.hexdigest())
"""


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        *((kind, patch) for kind in ("llama", "gemma3")
          for patch in ("SINGLE_UBATCH", "KQ_MASK", "COUPLED")),
        ("llama", "BATCH_INVARIANT"),
        ("llama", "WORK_BUFFER"),
        ("llama", "HUGE_PAGES"),
    ],
)  # fmt: skip
def test_no_logit_and_no_cell_changes(
    kind: str, patch: str, model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    patched = with_all_patches(model_files[kind])
    monkeypatch.setenv(f"LLCUDA_NO_{patch}", "1")
    assert patched == run(DECODES, model_files[kind]).stdout


@functools.cache
def with_all_patches(file: Path) -> str:
    """Return what DECODES prints of a model; it is computed once for all patches."""
    patched = run(DECODES, file)
    assert 5 == len(patched.stdout.splitlines()), patched.stderr
    return patched.stdout


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mamba", "lfm2", "qwen2vl"])
@pytest.mark.parametrize(
    ("left", "cache"), [("copied", "split"), ("left", "split"), ("copied", "unified")]
)
def test_kept_graphs_compute_what_new_ones_do(
    kind: str, left: str, cache: str, model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are equal, bit for bit, and far more steps reuse a graph."""
    *kept, reused = run(CHURN, model_files[kind], left, cache, "0").stdout.split()
    monkeypatch.setenv("LLCUDA_NO_KEPT_GRAPHS", "1")
    *built, reused_without = run(CHURN, model_files[kind], left, cache, "0").stdout.split()
    assert built == kept
    if "kept-graphs" in library.patches():
        assert int(reused) > (2 if cache == "split" else 1) * int(reused_without)


# Shifts a text, goes back to its beginning, and prints its positions.
SHIFT = """
import sys
from llcuda import Context, Model
from llcuda.errors import UnsupportedError

with Model(sys.argv[1], gpu_layers=0) as model, Context(model, ctx_size=256, threads=1) as context:
    context.decode(list(range(60)))
    context.memory.remove(0, 5, 25)
    context.memory.shift(-20, 0, 25)
    context.decode(list(range(20)))
    print(context.memory.range())
    try:
        context.memory.remove(0, 5)
    except UnsupportedError:
        print("refused")
    print(context.memory.range())
"""


def test_swa_cells_keeps_what_the_window_hides(
    model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the patch a rollback to cells that are gone is refused, and changes nothing."""
    kept = "range(0, 60)\nrange(0, 5)\n"
    assert kept == run(SHIFT, model_files["gemma3"]).stdout
    monkeypatch.setenv("LLCUDA_NO_SWA_CELLS", "1")
    assert "range(5, 60)\nrefused\nrange(5, 60)\n" == run(SHIFT, model_files["gemma3"]).stdout


# Writes the logits of sequences, of the last step. Arguments: a model's file, layers on the GPU,
# whether the logits stay on the device, sequences, whether there are BF16 copies, where to write.
STEP = """
import sys
import numpy as np
from llcuda import Context, Model

path, layers, left, rows, copies, target = sys.argv[1:]
rows, devices = int(rows), ["CUDA0"] if int(layers) else ()
seqs = list(range(rows))
with Model(path, gpu_layers=int(layers), devices=devices, bf16_copies=bool(copies)) as model:
    with Context(
        model, sequences=rows, ctx_size=64, unified_kv=False, outputs_max=rows, threads=1,
        device_logits=left == "left",
    ) as context:
        for seq in seqs:
            context.decode([(300 + seq + i) % 1024 for i in range(8)], seq)
        for step in range(14):  # two shapes, each of which comes back
            some = seqs if step % 3 else seqs[: -(-rows // 2)]
            context.decode_batch([(7 * seq + step) % 1024 for seq in some], some)
        np.save(target, [context.logits(i) for i in seqs])
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Return a function that makes a model whose matrices have a type, of many tokens if `wide`."""
    folder = tmp_path_factory.mktemp("cache")

    def make(file_type: str, wide: bool) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(folder))
            patch.setitem(SHAPES, "wide", replace(SHAPES["tiny"], vocabulary=2**16))
            return make_synthetic_model("wide" if wide else "tiny", file_type)

    return make


def step(
    model: Path, layers: int, logits: str = "copied", rows: int = 64, copies: str = ""
) -> np.ndarray:
    """Return what the program above computes."""
    target = model.with_name("logits.npy")
    result = run(STEP, model, layers, logits, rows, copies, target)
    assert not result.returncode, result.stderr
    return np.load(target).astype(np.float64)


@pytest.mark.parametrize(
    "name", ["OUTPUT_BUFFER", "DEVICE_EMBEDDING", "ASYNC_INPUTS", "KEPT_GRAPHS"]
)
def test_patches_that_compute_the_same_change_no_logit(
    name: str, models: Callable[[str, bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = 99 if gpu() else 0
    model = models("F16", False)
    patched = step(model, layers, "left")
    monkeypatch.setenv(f"LLCUDA_NO_{name}", "1")
    np.testing.assert_array_equal(step(model, layers, "left"), patched)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "file_type", "rows", "copies"),
    [("CUBLAS_F32", "F16", 64, ""), ("MMF_ROWS", "F16", 12, ""),
     ("DEQUANTIZED", "Q8_0", 64, ""), ("DEQUANTIZED", "Q4_K_M", 64, ""),
     ("WIDE_MATRICES", "F16", 1, ""), ("WIDE_MATRICES", "Q8_0", 3, ""),
     ("BF16_COPIES", "Q8_0", 12, "yes"), ("BF16_COPIES", "Q4_K_M", 64, "yes")],
)  # fmt: skip
def test_other_arithmetic_is_about_as_exact(
    name: str, file_type: str, rows: int, copies: str, models: Callable[[str, bool], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Against the same weights on the CPU; and the distributions stay what they were."""
    if not gpu():
        pytest.skip("needs a GPU")
    model = models(file_type, name == "WIDE_MATRICES")
    expected, patched = step(model, 0, rows=rows), step(model, 99, rows=rows, copies=copies)
    monkeypatch.setenv(f"LLCUDA_NO_{name}", "1")
    unpatched = step(model, 99, rows=rows, copies=copies)
    assert np.abs(patched - expected).mean() <= 1.2 * np.abs(unpatched - expected).mean()
    p, q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (unpatched, patched))
    divergence = (np.exp(p) * (p - q)).sum(axis=1).mean()
    assert divergence < (1e-5 if file_type == "F16" else 1e-3)


def gpu() -> bool:
    """Tell whether there is a GPU."""
    return any(device.kind == "gpu" for device in library.devices())
