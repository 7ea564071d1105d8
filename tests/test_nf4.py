"""NF4 and FP4, without bitsandbytes: published tables, cases by hand, and what it once answered."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llcuda import nf4
from llcuda.errors import ArgumentError

# QLoRA (arXiv 2305.14314), appendix E.
PUBLISHED_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
# bitsandbytes 0.50.2: the first hexadecimal digits of SHA-256 over (packed, absmax, the 8-bit
# scales, theirs), by type, block size and number of weights.
ANSWERS = {
    ("nf4", 64, 100_003): "46f0f5bb6166fe63",
    ("nf4", 256, 65_536): "6f3866742b253482",
    ("nf4", 4096, 9_000): "eca05f3efa4b6ae9",
    ("fp4", 64, 100_003): "9c74fff8078ef785",
    ("fp4", 128, 32_771): "d64829e9bb71d2c0",
    ("fp4", 2048, 6_144): "d4193846a3388f10",
}
OFFSET = 2.625  # the mean of scales depends on the order of a sum, so it is given


def weights(count: int) -> Any:
    """Return float32 weights that are the same everywhere, of growing size, some of them zero."""
    i = np.arange(count)
    values = ((i * 7919 % 20_011 - 10_005) / 10_005 * (1 + i // 4096 % 7)).astype(np.float32)
    values[1000:1200] = 0
    return values


def digest(*arrays: Any) -> str:
    """Return what stands for the bytes of some arrays."""
    joined = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return hashlib.sha256(joined).hexdigest()[:16]


def formula(packed: Any, absmax: Any, table: Any, block_size: int, count: int) -> Any:
    """Return the float32 products, computed in the plainest way."""
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]
    return np.array(table, np.float32)[codes] * np.repeat(absmax, block_size)[:count]


def bfloat16(values: Any) -> Any:
    """Return the bits of the nearest bfloat16, of two the even one; normal numbers only."""
    mantissa, exponent = np.frexp(values)
    rounded = np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(np.float32)
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("nf4", PUBLISHED_NF4),
        ("fp4", [s * v / 192 for s in (1, -1) for v in (0, 1, 128, 192, 64, 96, 32, 48)]),
    ],
)
def test_tables(kind: str, table: list[float]) -> None:
    """A byte for each code gives the published values, the high half first."""
    packed = np.array([high << 4 | high + 1 for high in range(0, 16, 2)], np.uint8)
    values = nf4.dequantize(
        packed, np.ones(1, np.float32), quant_type=kind, block_size=64, shape=(4, 4)
    )
    assert (4, 4) == values.shape and np.float32 == values.dtype
    assert np.array_equal(np.array(table, np.float32).reshape(4, 4), values)


def test_odd_number_of_weights() -> None:
    """Of the last byte the high half counts, and a block's scale ends with the block."""
    packed = np.full(33, 0xF0, np.uint8)
    scales = np.array([2, 3, 0.5], np.float32)
    values = nf4.dequantize(packed, scales, quant_type="nf4", block_size=32, shape=(65,))
    assert [2, -2] * 16 + [3, -3] * 16 + [0.5] == values.tolist()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 3e-8, 6e4, 1e-40])
@given(data=st.data())
def test_rounding(kind: str, scale: float, data: st.DataObject) -> None:
    """float16 and bfloat16 are the float32 product, rounded once, also where it is subnormal."""
    count = data.draw(st.integers(1, 700))
    block_size = data.draw(st.sampled_from(nf4.BLOCK_SIZES))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    packed = random.integers(0, 256, (count + 1) // 2, np.uint8)
    absmax = random.uniform(0.5, 2, -(-count // block_size)).astype(np.float32) * np.float32(scale)
    expected = formula(packed, absmax, nf4.CODES[kind], block_size, count)

    def values(dtype: Any) -> Any:
        form: Any = {"quant_type": kind, "block_size": block_size, "shape": (count,)}
        return nf4.dequantize(packed, absmax, **form, dtype=dtype)

    assert np.array_equal(expected, values(np.float32))
    with np.errstate(over="ignore"):
        assert np.array_equal(expected.astype(np.float16), values("float16"))
    if scale > 1e-30:
        assert np.array_equal(bfloat16(expected), values("bfloat16"))


@given(
    kind=st.sampled_from(["nf4", "fp4"]),
    block_size=st.sampled_from(nf4.BLOCK_SIZES),
    count=st.integers(1, 5000),
    seed=st.integers(0, 2**32),
)
def test_round_trip(kind: str, block_size: int, count: int, seed: int) -> None:
    """Each weight becomes the nearest of its block's 16 values, and a second time the same."""
    values = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    packed, absmax = nf4.quantize(values, quant_type=kind, block_size=block_size)
    form: Any = {"quant_type": kind, "block_size": block_size}
    back = nf4.dequantize(packed, absmax, **form, shape=(count,))
    table = np.array(nf4.CODES[kind], np.float32)
    scales = np.repeat(absmax, block_size)[:count]
    errors = np.abs(values[:, None] - table * scales[:, None])
    assert np.all(np.abs(values - back) <= errors.min(axis=1) + 1e-6 * scales)
    again = nf4.quantize(back, **form)
    assert np.array_equal(back, nf4.dequantize(*again, **form, shape=(count,)))


@pytest.mark.parametrize(("kind", "block_size", "count"), ANSWERS)
def test_answers_of_bitsandbytes(kind: str, block_size: int, count: int) -> None:
    """Packed weights, scales, and the scales in 8 bits are those of bitsandbytes 0.50.2."""
    packed, absmax = nf4.quantize(weights(count), quant_type=kind, block_size=block_size)
    quantized, _, nested, _ = nf4.quantize_absmax(absmax, offset=OFFSET)
    assert ANSWERS[kind, block_size, count] == digest(packed, absmax, quantized, nested)


def test_many_weights() -> None:
    """Threads share the work: several million weights are what their pieces are."""
    values = weights(3_000_001)
    packed, absmax = nf4.quantize(values, quant_type="nf4")
    form: Any = {"quant_type": "nf4", "block_size": 64, "dtype": "float16"}
    whole = nf4.dequantize(packed, absmax, **form, shape=(3_000_001,))
    for begin in range(0, 3_000_001, 2**18):
        piece = values[begin : begin + 2**18]
        part = slice(begin // 64, begin // 64 + 2**12)
        ends = packed[begin // 2 : begin // 2 + (piece.size + 1) // 2]
        quantized = nf4.quantize(piece, quant_type="nf4")
        assert np.array_equal(ends, quantized[0]) and np.array_equal(absmax[part], quantized[1])
        assert np.array_equal(
            whole[begin : begin + 2**18],
            nf4.dequantize(ends, absmax[part], **form, shape=piece.shape),
        )


def test_out_and_code() -> None:
    """`out` is what comes back, and `code` takes the place of the type's values."""
    out = np.empty((2, 2), np.uint16)
    code = np.arange(16, dtype=np.float32)
    values = nf4.dequantize(
        np.array([0x12, 0x3F], np.uint8), np.array([2], np.float32), quant_type="nf4",
        block_size=64, shape=[2, 2], dtype="bfloat16", code=code, out=out,
    )  # fmt: skip
    assert values is out
    assert np.array_equal(bfloat16(np.array([[2, 4], [6, 30]], np.float32)), out)


def test_double_quantization() -> None:
    """A scale is its code's value times that of its block of scales, plus the offset."""
    code = np.linspace(-1, 1, 256, dtype=np.float32)
    scales = nf4.absmax(
        np.array([0, 255, 255], np.uint8), code, np.array([0.5, 2], np.float32), 2, 3.0
    )
    assert [2.5, 3.5, 5.0] == scales.tolist()
    parts = np.zeros(1, np.uint8), code, np.array([0.5], np.float32)
    assert [2.5] == nf4.absmax(*parts, 2**64, 3).tolist()


@given(count=st.integers(1, 2000), seed=st.integers(0, 2**32))
def test_double_quantization_back(count: int, seed: int) -> None:
    """Scales come back within the widest step of the 8-bit type, their mean as the offset."""
    scales = np.random.default_rng(seed).uniform(1, 2, count).astype(np.float32)
    quantized, code, nested, offset = nf4.quantize_absmax(scales)
    assert offset == pytest.approx(scales.mean(dtype=float), rel=1e-7)
    back = nf4.absmax(quantized, code, nested, offset=offset)
    bound = np.repeat(nested, nf4.NESTED_BLOCK_SIZE)[:count] * 0.0075
    assert np.all(np.abs(back - scales) <= bound + 1e-6)


def test_dynamic_code() -> None:
    """The 8-bit type: ascending, -0.993 to 1, symmetric but for 1, seven powers of ten."""
    code = nf4.dynamic_code()
    assert (256,) == code.shape and np.all(np.diff(code) > 0)
    assert np.array_equal(-code[:127], code[:127:-1][1:])
    assert [0, 1, 5.5e-7] == pytest.approx([code[127], code[255], code[128]])


def checkpoint(nested: bool = True, **changes: Any) -> dict[str, Any]:
    """Return the tensors of "w" as bitsandbytes saves them, 100 weights in rows of 20."""
    packed, absmax = nf4.quantize(weights(100), quant_type="nf4")
    facts = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [5, 20]}
    tensors = {"w": packed[:, None], "w.quant_map": np.array(nf4.NF4, np.float32)}
    if nested:
        quantized, code, scales, offset = nf4.quantize_absmax(absmax)
        tensors |= {"w.nested_absmax": scales, "w.nested_quant_map": code, "w.absmax": quantized}
        facts |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    else:
        tensors["w.absmax"] = absmax
    text = json.dumps(facts | changes).encode()
    tensors["w.quant_state.bitsandbytes__nf4"] = np.frombuffer(text, np.uint8)
    return tensors


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", [np.uint8, np.float32])
def test_state(nested: bool, storage: Any) -> None:
    """A checkpoint's tensors become the weights, whatever type they are stored as."""
    tensors = checkpoint(nested)
    if storage is np.float32:
        tensors["w"] = np.append(tensors["w"], np.zeros(2, np.uint8)).view(storage)
        tensors["w.quant_state.bitsandbytes__nf4"] = np.frombuffer(
            json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16",
                        "shape": [4, 26], "nested_blocksize": 256, "nested_offset": 1.0}
                       ).encode(), np.uint8,
        )  # fmt: skip
    state = nf4.QuantState.from_tensors("w", tensors)
    assert ("nf4", 64, "bfloat16") == (state.quant_type, state.block_size, state.dtype)
    assert np.uint16 == state.dequantize().dtype and state.shape == state.dequantize().shape
    values = state.dequantize(np.float32).reshape(-1)[:100]
    expected = formula(checkpoint()["w"].reshape(-1), state.absmax, nf4.NF4, 64, 100)
    assert np.array_equal(expected, values)
    if not nested:
        assert np.all(np.abs(values - weights(100)) < 0.16)


GOOD: dict[str, Any] = {
    "packed": np.zeros(50, np.uint8),
    "absmax": np.ones(2, np.float32),
    "quant_type": "nf4",
    "block_size": 64,
    "shape": (100,),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packed": np.zeros(49, np.uint8)}, "packed: expected 50 elements, got 49"),
        ({"packed": np.zeros(51, np.uint8)}, "packed: expected 50 elements, got 51"),
        ({"packed": np.zeros(50, np.int8)}, "packed: expected an array of uint8, got int8"),
        ({"packed": b"0" * 50}, "packed: expected an array of uint8, got bytes"),
        ({"absmax": np.ones(1, np.float32)}, "absmax: expected 2 elements, got 1"),
        ({"absmax": np.ones(2)}, "absmax: expected an array of float32, got float64"),
        ({"absmax": np.array([1, np.nan], np.float32)}, "absmax: expected finite numbers"),
        ({"absmax": np.array([np.inf, 1], np.float32)}, "absmax: expected finite numbers"),
        ({"quant_type": "int4"}, "quant_type='int4': expected 'nf4' or 'fp4'"),
        ({"quant_type": ["nf4"]}, "expected 'nf4' or 'fp4'"),
        ({"block_size": 48}, "block_size=48: expected one of 32, 64"),
        ({"block_size": 0}, "block_size=0"),
        ({"block_size": -64}, "block_size=-64"),
        ({"block_size": 64.0}, r"block_size=64\.0"),
        ({"block_size": 8192}, "block_size=8192"),
        ({"shape": ()}, "shape"),
        ({"shape": (100, 0)}, "shape"),
        ({"shape": (-10, -10)}, "shape"),
        ({"shape": (2**62, 2**62)}, "packed: expected"),
        ({"shape": 100}, "shape=100: expected integers above 0"),
        ({"dtype": "float64"}, "dtype='float64': expected one of float32, float16, bfloat16"),
        ({"dtype": None}, "dtype=None"),
        ({"dtype": object()}, "dtype"),
        ({"code": np.zeros(15, np.float32)}, "code: expected 16 elements, got 15"),
        ({"code": np.full(16, np.nan, np.float32)}, "code: expected finite numbers"),
        ({"out": np.empty(99, np.float32)}, "out: expected an array of float32"),
        ({"out": np.empty(100, np.float16)}, "out: expected an array of float32"),
        ({"out": np.empty(200, np.float32)[::2]}, "out: expected a contiguous array"),
        ({"out": np.frombuffer(bytes(400), np.float32)}, "out: expected a contiguous array"),
    ],
)
def test_dequantize_refuses(changes: dict[str, Any], message: str) -> None:
    """What does not fit together is an ArgumentError that says what was expected."""
    nf4.dequantize(**GOOD)
    with pytest.raises(ArgumentError, match=message):
        nf4.dequantize(**(GOOD | changes))


@pytest.mark.parametrize(
    "call",
    [
        lambda: nf4.quantize(np.array([1, np.nan], np.float32), quant_type="nf4"),
        lambda: nf4.quantize(np.append(weights(10**6), np.float32(np.inf)), quant_type="fp4"),
        lambda: nf4.quantize(np.ones(3), quant_type="nf4"),
        lambda: nf4.quantize([1.0], quant_type="nf4"),  # type: ignore[arg-type]
        lambda: nf4.quantize(np.ones(0, np.float32), quant_type="nf4"),
        lambda: nf4.quantize(weights(3), quant_type="nf5"),
        lambda: nf4.quantize(weights(3), quant_type="nf4", block_size=96),
        lambda: nf4.quantize_absmax(np.ones(0, np.float32)),
        lambda: nf4.quantize_absmax(np.array([np.inf], np.float32)),
        lambda: nf4.quantize_absmax(np.ones(3, np.float32), offset=float("nan")),
        lambda: nf4.quantize_absmax(np.ones(3, np.float32), offset=True),
        lambda: double(code=np.zeros(255, np.float32)),
        lambda: double(nested_absmax=np.zeros(2, np.float32)),
        lambda: double(nested_block_size=0),
        lambda: double(nested_block_size="256"),
        lambda: double(offset=float("inf")),
        lambda: double(offset=10**400),
        lambda: double(quantized=np.zeros(4, np.int32)),
    ],
)
def test_others_refuse(call: Callable[[], Any]) -> None:
    """So it is in the other functions; NaN and inf are found wherever they stand."""
    with pytest.raises(ArgumentError, match="expected"):
        call()


def double(**changes: Any) -> Any:
    """Call absmax() with arguments that fit, but for `changes`."""
    good: dict[str, Any] = {
        "quantized": np.zeros(4, np.uint8),
        "code": nf4.dynamic_code(),
        "nested_absmax": np.ones(1, np.float32),
    }
    return nf4.absmax(**(good | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("w"), "no tensor w$"),
        (lambda t: t.pop("w.absmax"), "no tensor w.absmax"),
        (lambda t: t.pop("w.quant_map"), "no tensor w.quant_map"),
        (lambda t: t.pop("w.nested_quant_map"), "no tensor w.nested_quant_map"),
        (lambda t: t.pop("w.nested_absmax"), "w: absmax: expected an array of float32, got uint8"),
        (lambda t: t.pop("w.quant_state.bitsandbytes__nf4"), "w is not a 4-bit weight"),
        (lambda t: t.update({"w.absmax": t["w.absmax"][:1]}), "w: absmax: expected 2 elements"),
        (lambda t: t.update({"w": t["w"][:-1]}), "w: packed: expected 50 elements, got 49"),
        (lambda t: t.update({"w": None}), "w: "),
        (lambda t: t.update({"w.quant_map": np.zeros(16, np.float32)}), "other values than NF4"),
        (lambda t: t.update(facts(b"{")), "expected a JSON object"),
        (lambda t: t.update(facts(b"[]")), "expected a JSON object"),
        (lambda t: t.update(facts(b"\xff\xfe")), "expected a JSON object"),
        (lambda t: t.update(facts(b"[" * 100_000)), "expected a JSON object"),
        (lambda t: t.update(facts(b"{}")), "quant_type is None"),
        (lambda t: t.update(checkpoint(quant_type="fp4")), "quant_type is 'fp4'"),
        (lambda t: t.update(checkpoint(blocksize=63)), "block_size=63"),
        (lambda t: t.update(checkpoint(blocksize="64")), "block_size='64'"),
        (lambda t: t.update(checkpoint(shape=None)), "shape=None"),
        (lambda t: t.update(checkpoint(shape=[10, 1e1])), "shape"),
        (lambda t: t.update(checkpoint(dtype="int8")), "dtype='int8'"),
        (lambda t: t.update(checkpoint(nested_offset="1")), "offset='1'"),
        (lambda t: t.update(checkpoint(nested_blocksize=0)), "nested_block_size=0"),
        (lambda t: t.update(facts(b'{"quant_type": "nf4"}')), "nested_block_size=None"),
    ],
)
def test_state_refuses(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    """A checkpoint that lacks something, or contradicts itself, is an ArgumentError at once."""
    tensors = checkpoint()
    nf4.QuantState.from_tensors("w", tensors)
    change(tensors)
    with pytest.raises(ArgumentError, match=message):
        nf4.QuantState.from_tensors("w", tensors)


def facts(text: bytes) -> dict[str, Any]:
    """Return the tensor that holds a weight's facts."""
    return {"w.quant_state.bitsandbytes__nf4": np.frombuffer(text, np.uint8)}
