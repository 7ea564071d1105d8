"""llcuda.core as its users know it, and every operation against numpy."""

from __future__ import annotations

import ctypes
import gc
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llcuda
from llcuda import core
from llcuda.core import Device, DType, Tensor, get_device_count, get_device_properties, matmul
from llcuda.errors import (
    ArgumentError,
    ClosedError,
    OutOfMemoryError,
    TensorError,
    UnsupportedError,
)
from llcuda.gguf_parser import GGUFReader
from llcuda.native import dlpack
from tests.support.tensor_tools import (
    DEVICES,
    FLOATS,
    PLAIN,
    QUANTIZED,
    ROUNDING,
    Array,
    close,
    made,
    normal,
    on_each_device,
)

MIB = 2**20


@on_each_device
def test_the_contract(device: str) -> None:
    """What users of the older llcuda write runs as it is written."""
    properties = get_device_properties(device)
    assert properties.name and properties.total_memory > 0
    assert (properties.multiprocessor_count > 0) == (device != "cpu")
    a = Tensor.zeros([64, 32], dtype=DType.Float16, device=device)
    t = Tensor([32, 16], dtype=DType.Float16, device=device)
    c = a @ t
    assert matmul(a, t).shape == c.shape == [64, 16]
    assert c.dtype is DType.Float16 and c.device == Device(device) and c.ndim == 2
    assert (c.numel(), c.nbytes(), c.is_contiguous()) == (1024, 2048, True)
    assert c.to("cpu").device == -1
    with pytest.raises(RuntimeError, match="Incompatible dimensions"):
        a @ a


def test_devices() -> None:
    """Devices are numbers; the default is the first GPU, or the CPU."""
    assert get_device_count() == Device.count()
    assert Device("cpu") == -1 and str(Device(-1)) == "cpu"
    assert Tensor([1]).device == (0 if get_device_count() else -1)
    for wrong in (get_device_count(), -2, "gpu", "cuda:99", 1.5, True):
        with pytest.raises(ArgumentError, match="device"):
            Device(wrong)


@pytest.mark.parametrize(
    "use",
    [
        lambda number: Tensor([2], device=number),
        lambda number: Tensor.zeros([2, 2], dtype=DType.Float16, device=number),
        lambda number: Tensor.from_numpy(np.zeros(2, np.float32), number),
        lambda number: Tensor([2], device="cpu").to(number),
        lambda number: core.load_tensors("demo", ["output_norm.weight"], number),
        get_device_properties,
        Device.properties,
        Device.get_free_memory,
        Device.get_total_memory,
        Device.synchronize,
        Device.release_memory,
    ],
)
def test_a_gpu_that_is_not_there(use: Callable[[Any], Any]) -> None:
    """One sentence says what is wrong and what to do, and names the device as it was given."""
    number = get_device_count()
    for device in (number, f"cuda:{number}"):
        with pytest.raises(
            ArgumentError, match=r"^device=[^;]+: [^;]+; [^;]*device='cpu'"
        ) as error:
            use(device)
        assert error.value.parameter == "device" and repr(device) in str(error.value)


def taken(device: str) -> int:
    """Return the bytes that are in use: of a GPU, or by this process."""
    if device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps is not in use
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    return Device.get_total_memory(device) - Device.get_free_memory(device)


@on_each_device
def test_memory_is_taken_and_given_back(device: str) -> None:
    """A tensor takes its bytes, and its end gives them back when no view needs them."""
    gc.collect()  # what other tests left must not go meanwhile
    before = taken(device)
    tensor = Tensor.zeros([256, MIB], DType.UInt8, device)
    view = tensor[:1]
    del tensor
    assert taken(device) - before > 200 * MIB
    view.close()
    assert taken(device) - before < 64 * MIB
    assert Device.get_total_memory(device) >= Device.get_free_memory(device) > 0


@on_each_device
@pytest.mark.parametrize("dtype", [*PLAIN, *QUANTIZED])
def test_values_come_back(device: str, dtype: DType) -> None:
    """Every type holds values, moves to another device and back, and says what it holds."""
    if dtype in (DType.Int32, DType.Int64, DType.UInt8):
        kind = {"Int32": np.int32, "Int64": np.int64, "UInt8": np.uint8}[dtype.name]
        values: Array = np.arange(512, dtype=np.int64).reshape(2, 256).astype(kind)
        tensor = Tensor.from_numpy(values, device)
        assert tensor.numpy().dtype == kind
        np.testing.assert_array_equal(values, tensor.numpy())
    else:
        tensor, values = made(normal(2, 256), device, dtype)
        error = np.abs(values - normal(2, 256)).mean()
        assert error < (0.02 if dtype in FLOATS else 0.75)
    assert tensor.dtype is dtype and tensor.shape == [2, 256]
    again = Tensor.from_bytes(tensor.tobytes(), [2, 256], dtype, device)
    np.testing.assert_array_equal(tensor.numpy(), again.to("cpu").to(device).numpy())
    np.testing.assert_array_equal(tensor[1:].numpy(), tensor.numpy()[1:])


UNARY: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "tanh": np.tanh,
    "square": np.square,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "log": lambda x: np.log(np.abs(x)),
    "sqrt": lambda x: np.sqrt(np.abs(x)),
}


@on_each_device
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_values(device: str, dtype: DType, name: str) -> None:
    """Functions of single values, also of a view with gaps."""
    tensor, values = made(normal(3, 4, 70), device, dtype)
    if name in ("log", "sqrt"):
        tensor = abs(tensor)
    # ggml's tables of GELU, and of half precision
    rounding = max(ROUNDING[dtype], 1e-3 if "gelu" in name else 0)
    expected = UNARY[name](values)
    assert close(getattr(core, name)(tensor), expected, rounding)
    assert close(getattr(core, name)(tensor[:, 1:, ::2]), expected[:, 1:, ::2], rounding)
    assert getattr(core, name)(tensor).dtype is dtype


@on_each_device
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([2, 3, 4, 5], [2, 3, 4, 5]),
        ([4, 5], [5]),
        ([5], [4, 5]),
        ([4, 1], [1, 5]),
        ([3, 1, 5], [2, 3, 4, 1]),
        ([], [7]),
        ([6], []),
    ],
)
def test_arithmetic(device: str, dtype: DType, left: list[int], right: list[int]) -> None:
    """Operands are broadcast as numpy has it."""
    a, x = made(normal(*left), device, dtype)
    b, y = made(normal(*right, seed=2) + 3, device, dtype)
    for actual, expected in ((a + b, x + y), (a - b, x - y), (a * b, x * y), (a / b, x / y)):
        assert close(actual, expected, ROUNDING[dtype])


@on_each_device
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gaps", [False, True], ids=["transposed", "gaps"])
def test_arithmetic_with_numbers(device: str, dtype: DType, gaps: bool) -> None:
    """Numbers stand on either side; scale and clamp take two; of a view with gaps too."""
    a, x = made(normal(5, 66) + 3, device, dtype)
    a, x = (a[1:, ::2], x[1:, ::2]) if gaps else (a.T, x.T)
    for actual, expected in (
        (a + 1, x + 1),
        (2 - a, 2 - x),
        (a * 0.5, x * 0.5),
        (3 / a, 3 / x),
        (a / 3, x / 3),
        (-a, -x),
        (core.scale(a, 2, -1), 2 * x - 1),
        (core.clamp(a, 2.5, 3.5), x.clip(2.5, 3.5)),
    ):
        assert close(actual, expected, ROUNDING[dtype])


@on_each_device
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_along_an_axis(device: str, dtype: DType, axis: int | None) -> None:
    """Sums, means, the largest, softmax."""
    a, x = made(normal(5, 6, 40), device, dtype)
    x = x.astype(np.float64)
    rounding = ROUNDING[dtype]
    assert close(a.sum(axis), x.sum(axis), rounding)
    assert close(a.mean(axis), x.mean(axis), rounding)
    b = made(np.random.default_rng(3).permutation(1200).reshape(5, 6, 40).astype("f4"), device)[0]
    np.testing.assert_array_equal(b.argmax(axis).numpy(), b.numpy().argmax(axis))
    if axis is not None:
        powers = np.exp(x)
        assert close(core.softmax(a, axis), powers / powers.sum(axis, keepdims=True), rounding)


@on_each_device
@pytest.mark.parametrize("dtype", FLOATS)
def test_norms(device: str, dtype: DType) -> None:
    """Rows of the last axis are normalised, and weighted."""
    a, x = made(normal(3, 5, 48), device, dtype)
    w, weight = made(normal(48, seed=2), device)
    flat = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    assert close(core.rms_norm(a), flat, ROUNDING[dtype])
    assert close(core.rms_norm(a, w), flat * weight, ROUNDING[dtype])
    centred = x - x.mean(-1, keepdims=True)
    centred /= np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    assert close(core.layer_norm(a, w, eps=1e-6), centred * weight, ROUNDING[dtype])


PRODUCTS = [
    ([5, 33], [33, 7]),
    ([33], [33, 7]),
    ([5, 33], [33]),
    ([33], [33]),
    ([3, 5, 33], [33, 7]),
    ([3, 5, 33], [3, 33, 7]),
    ([2, 1, 5, 33], [3, 33, 7]),
    ([5, 33], [2, 3, 33, 7]),
    ([2, 2, 1, 8], [2, 1, 8, 1]),
    ([1, 1], [1, 1]),
]


@on_each_device
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("left", "right"), PRODUCTS)
def test_products(device: str, dtype: DType, left: list[int], right: list[int]) -> None:
    """Vectors, matrices and batches are multiplied, whole, transposed and in part."""
    a, x = made(normal(*left), device, dtype)
    b, y = made(normal(*right, seed=2), device, dtype)
    actual = a @ b
    assert actual.dtype is dtype
    assert close(actual, x @ y, ROUNDING[dtype])
    if (left, right) == PRODUCTS[0]:
        assert close(b.T @ a.T, y.T @ x.T, ROUNDING[dtype])
        assert close(a[:, ::2] @ b[::2], x[:, ::2] @ y[::2], ROUNDING[dtype])
        assert close(a[:, 1:] @ b[1:, :5], x[:, 1:] @ y[1:, :5], ROUNDING[dtype])


@on_each_device
@pytest.mark.parametrize("dtype", QUANTIZED)
def test_quantized_weights(device: str, dtype: DType) -> None:
    """Weights stay in blocks: x @ w.T and w @ x, in Float32 and Float16; rows by number."""
    w, weights = made(normal(96, 512, scale=0.1), device, dtype)
    x, values = made(normal(3, 512, seed=2), device)
    try:
        actual = x @ w.T
    except UnsupportedError:
        assert device != "cpu"  # types that CUDA has no kernels for
        return
    # Both backends round the other operand to 8 bits.
    assert close(actual, values @ weights.T, 0.02)
    assert close(w @ x.T, weights @ values.T, 0.02)
    assert close(w @ x[0], weights @ values[0], 0.02)
    half = x.to(DType.Float16) @ w.T
    assert half.dtype is DType.Float16 and close(half, values @ weights.T, 0.02)
    joined = core.concat([w[:32], w[32:]])
    np.testing.assert_array_equal(joined.numpy(), weights)
    np.testing.assert_array_equal(w.T.numpy(), weights.T)
    with pytest.raises(TensorError, match=r"x @ w\.T"):
        x[:, :96] @ w
    rows = Tensor.from_numpy(np.array([5, 0, 95], np.int32), device)
    try:
        chosen = core.get_rows(w, rows)
    except UnsupportedError:
        assert device != "cpu"
        return
    assert close(chosen, weights[[5, 0, 95]], 1e-6)


@on_each_device
@pytest.mark.parametrize("dtype", FLOATS)
def test_parts_of_what_is_transposed_are_copied(device: str, dtype: DType) -> None:
    """The kernel that ggml has for such copies takes some parts for a whole."""
    a, x = made(normal(8, 8), device, dtype)
    assert close(a.T[:6] + a[:6], x.T[:6] + x[:6], ROUNDING[dtype])
    assert close(a.T[:6, 1:5] * 2, x.T[:6, 1:5] * 2, ROUNDING[dtype])
    b, y = made(normal(2, 5, 8, seed=2), device, dtype)
    for part in ((slice(None), slice(4)), (slice(3), slice(1, 5)), (slice(1), slice(4))):
        turned, wanted = b.transpose(1, 2, 0)[part], y.transpose(1, 2, 0)[part]
        assert close(turned * 2, wanted * 2, ROUNDING[dtype])
        assert close(turned.reshape(1, *wanted.shape) * 2, wanted[None] * 2, ROUNDING[dtype])


@on_each_device
def test_rows_by_number(device: str) -> None:
    """Rows come in the order and shape of their numbers; none outside the table is looked at."""
    for dtype in (*FLOATS, DType.Int32):
        if dtype is DType.Int32:
            values: Array = np.arange(40, dtype=np.int32).reshape(8, 5)
            table = Tensor.from_numpy(values, device)
        else:
            table, values = made(normal(8, 5), device, dtype)
        numbers = np.array([[7, 0], [3, 3]], np.int32)
        actual = core.get_rows(table, Tensor.from_numpy(numbers, device))
        assert actual.dtype is dtype
        np.testing.assert_array_equal(actual.numpy(), values[numbers])
        for wrong in (-1, 8, 2**31 - 1):
            with pytest.raises(ArgumentError, match="table of 8"):
                core.get_rows(table, Tensor.from_numpy(np.array([wrong], np.int32), device))


@on_each_device
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("neox", [False, True])
def test_rope(device: str, dtype: DType, neox: bool) -> None:
    """Pairs of values turn by position / base ** (2 i / dims)."""
    x, values = made(normal(2, 6, 3, 16), device, dtype)
    positions = np.array([0, 1, 2, 5, 100, 900], np.int32)
    actual = core.rope(x, Tensor.from_numpy(positions, device), dims=12, base=500.0, neox=neox)
    expected = values.copy()
    angle = positions[:, None, None] / 500.0 ** (np.arange(6) / 6)
    first = values[..., :6] if neox else values[..., 0:12:2]
    second = values[..., 6:12] if neox else values[..., 1:12:2]
    turned = first * np.cos(angle) - second * np.sin(angle)
    other = first * np.sin(angle) + second * np.cos(angle)
    if neox:
        expected[..., :6], expected[..., 6:12] = turned, other
    else:
        expected[..., 0:12:2], expected[..., 1:12:2] = turned, other
    assert close(actual, expected, max(ROUNDING[dtype], 1e-4))


@on_each_device
@pytest.mark.parametrize("dtype", [*FLOATS, DType.Int32, DType.Int64, DType.UInt8])
def test_shapes(device: str, dtype: DType) -> None:
    """Views, copies and parts are numpy's."""
    tensor = Tensor.from_numpy(np.arange(120, dtype=np.int32).reshape(2, 3, 4, 5), device).to(dtype)
    values = tensor.numpy()
    cases: list[tuple[Callable[[Any], Any], bool]] = [
        (lambda x: x.reshape(6, 20), True),
        (lambda x: x.reshape(-1), True),
        (lambda x: x.transpose(2, 0, 3, 1), True),
        (lambda x: x.T, True),
        (lambda x: x[1, ..., -1], True),
        (lambda x: x[:, 1:3, ::2, 2], True),
        (lambda x: x[0][1][2], True),
        (lambda x: x.transpose(1, 0, 2, 3).reshape(6, 20), device == "cpu" or dtype in FLOATS),
    ]
    for case, supported in cases:
        if supported or dtype is DType.Int32:
            np.testing.assert_array_equal(case(tensor).numpy(), case(values))
    for axis in range(-4, 4):
        actual = core.concat([tensor, tensor, tensor], axis)
        np.testing.assert_array_equal(actual.numpy(), np.concatenate([values] * 3, axis))
    with pytest.raises(TensorError, match="gaps"):
        tensor.T.view(120)
    assert [x.shape for x in tensor[:, 0, 0, 0]] == [[], []]


@on_each_device
def test_types_convert(device: str) -> None:
    """Any type becomes any other, as numpy converts."""
    values = np.array([[0, 1, 2, 250, 7, 9, 100, 3]], np.int32)
    tensor = Tensor.from_numpy(values, device)
    for source in PLAIN:
        for target in PLAIN:
            actual = tensor.to(source).to(target)
            assert actual.dtype is target
            np.testing.assert_array_equal(actual.numpy(), values)
    np.testing.assert_array_equal(tensor.to(DType.Float32).to(DType.UInt8).numpy(), values)


@on_each_device
def test_filled(device: str) -> None:
    """zeros, ones and full, for every type that can."""
    for dtype in DType:
        assert not Tensor.zeros([2, 256], dtype, device).numpy()[:, :1].any() or dtype.is_quantized
        if not dtype.is_quantized:
            for shape in ([], [3], [2, 3, 4, 5]):
                assert (Tensor.ones(shape, dtype, device).numpy() == 1).all()
                assert (Tensor.full(shape, 7, dtype, device).numpy() == np.full(shape, 7)).all()
    tensor = Tensor([2, 3], device=device)
    tensor.write(normal(2, 3))
    np.testing.assert_array_equal(tensor.numpy(), normal(2, 3))


@on_each_device
def test_a_lazy_block_is_one_graph(device: str) -> None:
    """A block gives what single operations give, also where values are read inside it."""
    a, x = made(normal(8, 16), device)
    b, y = made(normal(16, 8, seed=2), device)
    with core.lazy():
        product = a @ b
        left = core.silu(product)[2:]
        right = (product * 2).T
        inside = product.sum().item()
        total = (left + right[:6]).sum()
        with pytest.raises(RuntimeError, match="Incompatible"):
            left @ left
    expected = x @ y
    assert inside == pytest.approx(expected.sum(), rel=1e-4)
    wanted = (expected / (1 + np.exp(-expected)))[2:] + (expected * 2).T[:6]
    assert close(total, np.asarray(wanted.sum()), 1e-4)
    np.testing.assert_array_equal(right.numpy(), (product * 2).T.numpy())
    with pytest.raises(ZeroDivisionError), core.lazy():
        later = a + 1
        raise ZeroDivisionError
    assert close(later, x + 1, 1e-6)


@on_each_device
def test_dlpack_shares_memory(device: str) -> None:
    """Numpy sees a tensor's memory and a tensor numpy's, as long as either lives."""
    source = normal(4, 6)
    tensor = Tensor.from_dlpack(source[1:, ::2])
    assert tensor.shape == [3, 3] and tensor.strides == [24, 8]
    source[1, 0] = 42
    assert tensor[0, 0].item() == 42
    assert close(tensor @ tensor.T, source[1:, ::2] @ source[1:, ::2].T, 1e-5)
    del source
    gc.collect()
    assert tensor[0, 0].item() == 42
    own = Tensor.zeros([2, 3], device="cpu")
    seen = np.from_dlpack(own.T)
    own.write(normal(2, 3))
    np.testing.assert_array_equal(seen, normal(2, 3).T)
    own.close()
    np.testing.assert_array_equal(seen, normal(2, 3).T)
    moved = Tensor.full([5], 3, DType.Int64, device)
    np.testing.assert_array_equal(np.asarray(moved), [3] * 5)
    copied = Tensor.from_dlpack(seen, copy=True)
    np.testing.assert_array_equal(copied.numpy(), seen)


@on_each_device
def test_tensors_of_a_file(device: str) -> None:
    """Named tensors of a GGUF file hold the file's bytes; on the CPU they are its mapping."""
    names = ["token_embd.weight", "output_norm.weight"]
    tensors = core.load_tensors("demo", names, device)
    assert list(tensors) == names
    with GGUFReader(llcuda.demo_model()) as reader:
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor.numpy(), reader.numpy(name))
    assert len(core.load_tensors("demo", device=device)) == 74
    if device == "cpu":
        with pytest.raises(TensorError, match="read-only"):
            tensors["output_norm.weight"].write(np.zeros(256, np.float32))
    with pytest.raises(ArgumentError, match="no tensor 'x'"):
        core.load_tensors("demo", ["x"], device)


WRONG: list[tuple[type[Exception], str, Callable[[Tensor, str], Any]]] = [
    (ArgumentError, "shape", lambda t, d: Tensor([0, 3], device=d)),
    (ArgumentError, "shape", lambda t, d: Tensor([-1], device=d)),
    (ArgumentError, "shape", lambda t, d: Tensor([1.5], device=d)),
    (ArgumentError, "at most 4", lambda t, d: Tensor([1] * 5, device=d)),
    (ArgumentError, "2\\*\\*60", lambda t, d: Tensor([2**40, 2**40], device=d)),
    (ArgumentError, "DType", lambda t, d: Tensor([1], dtype="f16", device=d)),
    (TensorError, "multiple of 256", lambda t, d: Tensor([2, 100], DType.Q4_K, d)),
    (ArgumentError, "float64", lambda t, d: Tensor.from_numpy(np.zeros(2), d)),
    (ArgumentError, "object", lambda t, d: Tensor.from_numpy([object()], d)),
    (ArgumentError, "bytes", lambda t, d: Tensor.from_bytes(b"12", [4], DType.UInt8, d)),
    (ArgumentError, "__dlpack__", lambda t, d: Tensor.from_dlpack([1])),
    (ArgumentError, "empty", lambda t, d: Tensor.from_dlpack(np.zeros([2, 0], "f4"))),
    (ArgumentError, "strides", lambda t, d: Tensor.from_dlpack(np.zeros(4, "f4")[::-1])),
    (ArgumentError, "type", lambda t, d: Tensor.from_dlpack(np.zeros(4, "f8"))),
    (BufferError, "ggml", lambda t, d: np.from_dlpack(Tensor.zeros([256], DType.Q4_K, "cpu"))),
    (TensorError, "do not fit", lambda t, d: t + Tensor([3], device=d)),
    (TensorError, "one type", lambda t, d: t + t.to(DType.Float16)),
    (TensorError, "one type", lambda t, d: t.to(DType.Int32) * t.to(DType.Int32)),
    (TensorError, "one type", lambda t, d: core.silu(t.to(DType.UInt8))),
    (TypeError, "from_numpy", lambda t, d: t - np.zeros([4, 6])),
    (TypeError, "from_numpy", lambda t, d: np.zeros([4, 6]) + t),
    (TypeError, ".", lambda t, d: t @ 3),
    (TypeError, ".", lambda t, d: "x" * t),
    (TensorError, "Incompatible", lambda t, d: t @ Tensor([], device=d)),
    (TensorError, "Incompatible", lambda t, d: t.reshape(2, 3, 4) @ t.reshape(3, 4, 2)),
    (ArgumentError, "axis", lambda t, d: core.softmax(t, 2)),
    (ArgumentError, "axis", lambda t, d: t.sum(True)),
    (ArgumentError, "axes", lambda t, d: t.transpose(0, 0)),
    (TensorError, "24 values", lambda t, d: t.reshape(5, 5)),
    (TensorError, "24 values", lambda t, d: t.reshape(5, -1)),
    (ArgumentError, "shape", lambda t, d: t.reshape(-1, -1)),
    (ArgumentError, "index", lambda t, d: t[4]),
    (ArgumentError, "index", lambda t, d: t["x"]),
    (ArgumentError, "step", lambda t, d: t[::-1]),
    (ArgumentError, "nothing is left", lambda t, d: t[3:3]),
    (ArgumentError, "3 indices", lambda t, d: t[0, 0, 0]),
    (ArgumentError, "a Tensor", lambda t, d: core.silu(np.zeros(3))),
    (ArgumentError, "no tensors", lambda t, d: core.concat([])),
    (TensorError, "but for axis", lambda t, d: core.concat([t, t.T])),
    (TensorError, "weight", lambda t, d: core.rms_norm(t, t)),
    (ArgumentError, "eps", lambda t, d: core.rms_norm(t, eps=-1)),
    (ArgumentError, "high", lambda t, d: core.clamp(t, 1, 0)),
    (TensorError, "Int32", lambda t, d: core.get_rows(t, t)),
    (TensorError, "positions", lambda t, d: core.rope(t, t)),
    (TensorError, "item", lambda t, d: t.item()),
    (TensorError, "does not fit", lambda t, d: t.write(np.zeros([4, 6]))),
    (ArgumentError, "importance", lambda t, d: t.to(DType.Float16, importance=[1])),
    (ArgumentError, "device", lambda t, d: t.to("nowhere")),
    (TensorError, "too large", lambda t, d: Tensor.full([256], 1e20, device=d).to(DType.Q2_K)),
    (TensorError, "not finite", lambda t, d: Tensor.full([256], np.inf, device=d).to(DType.Q8_0)),
    (UnsupportedError, "importance", lambda t, d: Tensor.ones([256], device=d).to(DType.IQ2_XXS)),
    (FileNotFoundError, "nowhere", lambda t, d: core.load_tensors("nowhere.gguf")),
]  # fmt: skip


@on_each_device
@pytest.mark.parametrize(("kind", "message", "wrong"), WRONG, ids=range(len(WRONG)))
def test_bad_input(
    device: str, kind: type[Exception], message: str, wrong: Callable[[Tensor, str], Any]
) -> None:
    """Each is refused with a message that says what is wrong, and the tensor is as it was."""
    tensor, values = made(normal(4, 6), device)
    with pytest.raises(kind, match=message):
        wrong(tensor, device)
    np.testing.assert_array_equal(tensor.numpy(), values)


@on_each_device
@pytest.mark.parametrize(
    ("a", "b", "rule", "remedy"),
    [
        ([2, 3], [2, 3], "3 columns on the left, 2 rows on the right",
         "transpose an operand with .T"),
        ([2, 2, 3], [3, 3, 2], "the axes before the last two cannot be broadcast",
         "use .reshape()"),
        ([2, 3], [], "expected tensors with an axis",
         "use *, or .item() of the one without an axis"),
    ],
)  # fmt: skip
def test_incompatible_dimensions(
    device: str, a: list[int], b: list[int], rule: str, remedy: str
) -> None:
    """A product that does not fit says which sizes differ, and what to do."""
    with pytest.raises(TensorError) as caught:
        Tensor.zeros(a, device=device) @ Tensor.zeros(b, device=device)
    assert caught.value.problem == f"Incompatible dimensions: {a} @ {b}: {rule}"
    assert caught.value.remedy == remedy


@on_each_device
def test_use_after_close(device: str) -> None:
    """A closed tensor says so; views of it live on."""
    tensor, values = made(normal(4, 6), device)
    part = tensor[1:]
    with tensor:
        pass
    for use in (tensor.numpy, lambda: tensor.shape, lambda: tensor @ part.T, tensor.__dlpack__):
        with pytest.raises(ClosedError):
            use()
    tensor.close()
    assert repr(tensor) == "Tensor(closed)"
    np.testing.assert_array_equal(part.numpy(), values[1:])


@on_each_device
def test_out_of_memory(device: str) -> None:
    """Too large a tensor, or result, is an error that says what is free, and all goes on."""
    small, values = made(normal(4, 6), device)
    with pytest.raises(OutOfMemoryError, match="free on"):
        Tensor([2**40], device=device)
    tall = Tensor([2**22, 1], device=device)
    with pytest.raises(OutOfMemoryError):
        tall @ tall.reshape(1, 2**22)
    assert close(small + 1, values + 1, 1e-6)


@pytest.mark.skipif(len(DEVICES) < 2, reason="needs a GPU")
def test_two_devices_do_not_mix() -> None:
    """Operands on two devices are refused."""
    with pytest.raises(RuntimeError, match="same device"):
        Tensor([2, 2], device="cpu") @ Tensor([2, 2], device=0)


def test_dlpack_devices_are_plain_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch writes the number into a device's name, where our Device would be "cuda:1" again."""
    monkeypatch.setattr("llcuda.tensor.dtype.gpu_count", lambda: 2)
    kind, number = dlpack.device_of(Device("cuda:1"))
    assert (2, "1") == (kind, str(number))
