"""NF4 and FP4 against bitsandbytes itself, on the CPU, bit by bit.

Its AVX-512 kernel takes rows for whole blocks: where a row of 16 n weights is no whole number of
them, it picks the wrong scales (0.50.2), and it makes subnormal bfloat16 zero. Its own formula, its
CUDA kernels and we do neither. So tensors are flat here, where all its paths agree, but for the
second zero of FP4, which some of them make negative.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # or every shape is compiled
torch = pytest.importorskip("torch")
functional: Any = pytest.importorskip("bitsandbytes.functional")

from llcuda import nf4  # noqa: E402
from tests.test_nf4 import ANSWERS, OFFSET, digest, weights  # noqa: E402

SIZES = (1, 2, 31, 64, 65, 4095, 4096, 4112, 100_000, 1_000_003)
DTYPES = {"float32": "int32", "float16": "int16", "bfloat16": "int16"}  # and their bits


def random_weights(count: int, scale: float) -> Any:
    """Return normal weights with a stretch of zeros."""
    values = np.random.default_rng(count).standard_normal(count) * scale
    values[300:400] = 0
    return values.astype(np.float32)


def assert_same(theirs: Any, ours: Any) -> None:
    """Compare bit by bit, but for the sign of zeros."""
    bits = DTYPES[str(theirs.dtype).removeprefix("torch.")]
    equal = theirs.view(getattr(torch, bits)).numpy() == ours.view(bits)
    zero = (theirs == 0).numpy() & ((ours == 0) | (ours == 0x8000))
    assert np.all(equal | zero)


def test_tables() -> None:
    """The 16 values of each type and the 256 of the scales are bitsandbytes'."""
    for kind, code in nf4.CODES.items():
        assert functional.get_4bit_type(kind, "cpu").tolist() == np.float32(code).tolist()
    assert functional.create_dynamic_map().tolist() == nf4.dynamic_code().tolist()


@pytest.mark.parametrize("kind", nf4.CODES)
@pytest.mark.parametrize("block_size", nf4.BLOCK_SIZES)
@pytest.mark.parametrize("scale", [1, 1e-3, 1e30, 1e-39])
def test_quantization(kind: str, block_size: int, scale: float) -> None:
    """Bytes and scales are equal, also those in 8 bits, for whole and shorter blocks."""
    for count in SIZES:
        values = random_weights(count, scale)
        tensor = torch.from_numpy(values)
        packed, absmax = nf4.quantize(values, quant_type=kind, block_size=block_size)
        theirs, state = functional.quantize_4bit(tensor, blocksize=block_size, quant_type=kind)
        assert theirs.numpy().tobytes() == packed.tobytes()
        assert state.absmax.numpy().tobytes() == absmax.tobytes()
        _, state = functional.quantize_4bit(
            tensor, blocksize=block_size, quant_type=kind, compress_statistics=True
        )
        offset = float(state.offset)
        quantized, code, nested, _ = nf4.quantize_absmax(absmax, offset=offset)
        assert state.absmax.numpy().tobytes() == quantized.tobytes()
        assert state.state2.absmax.numpy().tobytes() == nested.tobytes()
        assert nf4.quantize_absmax(absmax)[3] == pytest.approx(offset, rel=1e-6)
        scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        ours = nf4.absmax(quantized, code, nested, offset=offset)
        assert scales.numpy().tobytes() == ours.tobytes()


@pytest.mark.parametrize("kind", nf4.CODES)
@pytest.mark.parametrize("block_size", nf4.BLOCK_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 1e-6, 1e5])
def test_dequantization(kind: str, block_size: int, dtype: str, scale: float) -> None:
    """Weights are equal in every bit, float16 where it overflows or is subnormal too."""
    for count in SIZES:
        packed = np.random.default_rng(count).integers(0, 256, (count + 1) // 2, np.uint8)
        absmax = np.abs(random_weights(-(-count // block_size), scale)) + np.float32(scale / 2)
        state = functional.QuantState(
            absmax=torch.from_numpy(absmax),
            shape=torch.Size([count]),
            dtype=getattr(torch, dtype),
            blocksize=block_size,
            quant_type=kind,
            code=functional.get_4bit_type(kind, "cpu"),
        )
        theirs = functional.dequantize_4bit(torch.from_numpy(packed)[:, None], state).reshape(-1)
        ours = nf4.dequantize(
            packed, absmax, quant_type=kind, block_size=block_size, shape=(count,), dtype=dtype
        )
        assert_same(theirs, ours)


@pytest.mark.parametrize("kind", nf4.CODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", ["uint8", "float32"])
def test_checkpoint(kind: str, dtype: str, nested: bool, storage: str, tmp_path: Path) -> None:
    """What safetensors reads of a saved Linear4bit are the weights that its state means."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    safetensors: Any = pytest.importorskip("safetensors.torch")
    layer = bitsandbytes.nn.Linear4bit(
        192, 100, bias=False, quant_type=kind, compress_statistics=nested,
        quant_storage=getattr(torch, storage),
    )  # fmt: skip
    layer.weight = bitsandbytes.nn.Params4bit(
        torch.randn(100, 192, dtype=getattr(torch, dtype)), requires_grad=False, quant_type=kind,
        compress_statistics=nested, quant_storage=getattr(torch, storage),
    )  # fmt: skip
    layer = layer.to("cpu")
    safetensors.save_file(layer.state_dict(), tmp_path / "model.safetensors")
    numpy: Any = pytest.importorskip("safetensors.numpy")
    tensors = numpy.load_file(tmp_path / "model.safetensors")
    state = nf4.QuantState.from_tensors("weight", tensors)
    assert (kind, dtype, (100, 192)) == (state.quant_type, state.dtype, state.shape)
    theirs = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert_same(theirs, state.dequantize())


def test_stored_answers() -> None:
    """The answers that the tests without bitsandbytes compare with are this version's too."""
    for (kind, block_size, count), answer in ANSWERS.items():
        packed, state = functional.quantize_4bit(
            torch.from_numpy(weights(count)), blocksize=block_size, quant_type=kind
        )
        scales, nested = functional.quantize_blockwise(state.absmax - OFFSET, blocksize=256)
        arrays = (packed, state.absmax, scales, nested.absmax)
        assert answer == digest(*(array.numpy() for array in arrays))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [64, 4096])
def test_speed(dtype: str, block_size: int, capsys: Any) -> None:
    """Turn by turn with bitsandbytes on the same threads; the ratio is printed, and above 1."""
    shape = (2048, 4096)
    values = torch.randn(shape, dtype=getattr(torch, dtype))
    packed, state = functional.quantize_4bit(values, blocksize=block_size, quant_type="nf4")
    ours = packed.numpy().reshape(-1), state.absmax.numpy()
    form: Any = {"quant_type": "nf4", "block_size": block_size, "shape": shape, "dtype": dtype}
    calls = {
        "bitsandbytes": lambda: functional.dequantize_4bit(packed, state),
        "llcuda": lambda: nf4.dequantize(*ours, **form),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(5):
        for name, call in calls.items():
            for _ in range(5):  # the threads of the other one's OpenMP still spin at the first
                began = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - began)
    rates = {name: values.nbytes / 1e9 / min(taken) for name, taken in times.items()}
    ratio = rates["llcuda"] / rates["bitsandbytes"]
    with capsys.disabled():
        print(json.dumps({"dtype": dtype, "block_size": block_size, "ratio": ratio, **rates}))
    assert ratio > 0
