"""The class Tensor: values on a device, and what Python's operators do with them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llcuda.errors import ArgumentError, ClosedError, TensorError
from llcuda.native.dlpack import device_of
from llcuda.tensor import dlpack, ops
from llcuda.tensor import shape as shapes
from llcuda.tensor.dtype import NUMPY, Device, DType, check_dtype
from llcuda.tensor.graph import Node, empty, flush, hold, memory_of
from llcuda.tensor.host import from_array, from_bytes, to_array, to_device, to_dtype, write
from llcuda.tensor.matmul import matmul


class Tensor:
    """Values of one type on one device; made without values to hold, which are then anything.

    shape: up to 4 sizes above 0. device: see Device; None = the first GPU, or the CPU without one.
    Raises ArgumentError for what is no shape, type or device, TensorError (a RuntimeError) for
    tensors that do not fit each other, OutOfMemoryError. Memory is freed with the last tensor, view
    or DLPack object over it.
    """

    __slots__ = ("__weakref__", "_node")
    __array_ufunc__ = None  # numpy leaves mixed arithmetic to us, and we refuse it
    _node: Node | None

    def __init__(self, shape: Any, dtype: DType = DType.Float32, device: Any = None) -> None:
        sizes = shapes.check_shape(shape)
        shapes.check_room(check_dtype(dtype), sizes)
        self._node = empty(dtype, sizes, Device(device))

    @classmethod
    def _of(cls, node: Node) -> Self:
        made = cls.__new__(cls)
        made._node = node
        hold(made, node)
        return made

    # --- made from something ---

    @classmethod
    def zeros(cls, shape: Any, dtype: DType = DType.Float32, device: Any = None) -> Self:
        """Return a tensor of zeros; of ggml's types a tensor whose bytes are 0."""
        made = cls(shape, dtype, device)
        node = made._have
        memory_of(node).clear(0, node.nbytes)
        return made

    @classmethod
    def ones(cls, shape: Any, dtype: DType = DType.Float32, device: Any = None) -> Self:
        """Return a tensor of ones."""
        return cls.full(shape, 1, dtype, device)

    @classmethod
    def full(cls, shape: Any, value: Any, dtype: DType = DType.Float32, device: Any = None) -> Self:
        """Return a tensor that holds one value."""
        sizes, where = shapes.check_shape(shape), Device(device)
        if not isinstance(value, Real):
            raise ArgumentError(f"value={value!r}: expected a number")
        if check_dtype(dtype).is_float:
            return cls._of(ops.full(value, dtype, sizes, where))
        if dtype.is_quantized:
            raise TensorError(f"full: {dtype.name} is made by .to({dtype!r}) from floats")
        try:
            values = np.full(sizes, operator.index(value), NUMPY[dtype])  # type: ignore[arg-type]
        except (TypeError, OverflowError) as error:
            raise ArgumentError(f"value={value!r} for {dtype.name}: {error}") from None
        return cls._of(from_array(values, where))

    @classmethod
    def from_numpy(cls, array: Any, device: Any = None) -> Self:
        """Return a copy of a numpy array, with its shape and type."""
        return cls._of(from_array(array, Device(device)))

    @classmethod
    def from_bytes(cls, data: Any, shape: Any, dtype: DType, device: Any = None) -> Self:
        """Return a copy of a buffer that holds a tensor as it lies in memory or in a GGUF file."""
        sizes = shapes.check_shape(shape)
        shapes.check_room(check_dtype(dtype), sizes)
        return cls._of(from_bytes(data, dtype, sizes, Device(device)))

    @classmethod
    def from_dlpack(cls, source: Any, copy: bool | None = None) -> Self:
        """Return a tensor over a numpy, torch or cupy array's memory; copy=True: over a copy."""
        return cls._of(dlpack.adopt(source, copy))

    # --- what it is ---

    @property
    def _have(self) -> Node:
        if self._node is None:
            raise ClosedError("this tensor is closed")
        return self._node

    @property
    def shape(self) -> list[int]:
        """The sizes, as numpy has them."""
        return list(self._have.shape)

    @property
    def strides(self) -> list[int]:
        """The bytes from value to value along each axis; 0 inside the blocks of ggml's types."""
        return list(self._have.strides)

    @property
    def dtype(self) -> DType:
        """The type of the values."""
        return self._have.dtype

    @property
    def device(self) -> Device:
        """Where it is: a GPU's number, or -1 for the CPU."""
        return self._have.device

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self._have.shape)

    def numel(self) -> int:
        """Return how many values there are."""
        return self._have.numel

    def nbytes(self) -> int:
        """Return the bytes of the values."""
        return self._have.nbytes

    def is_contiguous(self) -> bool:
        """Return whether the values lie row by row without gaps."""
        return self._have.is_contiguous

    def __repr__(self) -> str:
        if self._node is None:
            return "Tensor(closed)"
        return f"Tensor({self.shape}, {self.dtype!r}, device={self.device!s})"

    def __len__(self) -> int:
        if not self._have.shape:
            raise TypeError("a tensor without axes has no length")
        return self._have.shape[0]

    def __bool__(self) -> bool:
        return bool(self.item())

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def close(self) -> None:
        """Let go of the memory, freed when no view needs it; use after it is a ClosedError."""
        self._node = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- to something ---

    def numpy(self) -> NDArray[Any]:
        """Return the values as a new array; BFloat16 and ggml's types as float32."""
        return to_array(self._have)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("numpy() copies; np.from_dlpack() does not")
        values = self.numpy()
        return values if dtype is None else values.astype(dtype)

    def item(self) -> float | int:
        """Return the one value; TensorError for more."""
        if self.numel() != 1:
            raise TensorError(f"item() is for one value, not for {self.numel()}")
        value: float | int = self.numpy().reshape(-1)[0].item()
        return value

    def tobytes(self) -> bytes:
        """Return the values as they lie in memory, row by row."""
        node = shapes.contiguous(self._have)
        return memory_of(node).read(node.offset, node.nbytes).tobytes()

    def write(self, array: Any) -> None:
        """Replace the values by those of a numpy array of the same shape and type."""
        flush()  # what waits for the values that are there
        write(self._have, array)

    def to(self, target: Any, importance: Any = None) -> Tensor:
        """Return the values as another type, or on another device; itself where nothing changes.

        target: a DType, quantised ones too, or a device. importance: for quantising, how much each
        column counts; some types need it.
        """
        if isinstance(target, DType):
            if target is self.dtype:
                return self
            return Tensor._of(to_dtype(self._have, target, importance))
        device = Device(target)
        return self if device == self.device else Tensor._of(to_device(self._have, device))

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        return dlpack.export(self._have, stream, max_version, dl_device, copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return device_of(self.device)

    # --- other shapes over the same values ---

    def reshape(self, *shape: Any) -> Tensor:
        """Return the values in another shape, -1 for a size that follows; a view where possible."""
        return Tensor._of(shapes.reshape(self._have, _sizes(shape)))

    def view(self, *shape: Any) -> Tensor:
        """Return the values in another shape, without a copy; TensorError where that cannot be."""
        return Tensor._of(shapes.reshape(self._have, _sizes(shape), copy=False))

    def transpose(self, *axes: Any) -> Tensor:
        """Return the axes in another order, by default reversed; a view."""
        return Tensor._of(shapes.transpose(self._have, _sizes(axes) if axes else None))

    @property
    def T(self) -> Tensor:  # noqa: N802  # numpy's name
        """The axes reversed; a view."""
        return self.transpose()

    def contiguous(self) -> Tensor:
        """Return the values row by row without gaps; itself where they lie so."""
        return self if self.is_contiguous() else Tensor._of(shapes.contiguous(self._have))

    def __getitem__(self, key: Any) -> Tensor:
        return Tensor._of(shapes.take(self._have, key))

    # --- arithmetic ---

    def __add__(self, other: Any) -> Tensor:
        return _scaled(self, 1, other) if _is_number(other) else _binary("ADD", self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return _scaled(self, 1, -other) if _is_number(other) else _binary("SUB", self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _scaled(self, -1, other) if _is_number(other) else NotImplemented

    def __mul__(self, other: Any) -> Tensor:
        return _scaled(self, other, 0) if _is_number(other) else _binary("MUL", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return _binary("DIV", self, _like(self, other) if _is_number(other) else other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _binary("DIV", _like(self, other), self) if _is_number(other) else NotImplemented

    def __neg__(self) -> Tensor:
        return Tensor._of(ops.unary("neg", self._have))

    def __abs__(self) -> Tensor:
        return Tensor._of(ops.unary("abs", self._have))

    def __matmul__(self, other: Any) -> Tensor:
        if not isinstance(other, Tensor):
            return NotImplemented
        return Tensor._of(matmul(self._have, other._have))

    def sum(self, axis: int | None = None) -> Tensor:
        """Return the sums along an axis, or of all values; summed in Float32."""
        return Tensor._of(ops.total(self._have, axis, mean=False))

    def mean(self, axis: int | None = None) -> Tensor:
        """Return the means along an axis, or of all values."""
        return Tensor._of(ops.total(self._have, axis, mean=True))

    def argmax(self, axis: int | None = -1) -> Tensor:
        """Return where the largest value along an axis is, as Int32; None = of all values.

        Of several that are equal, any: devices differ.
        """
        return Tensor._of(ops.argmax(self._have, axis))


def _sizes(given: tuple[Any, ...]) -> Any:
    return given[0] if len(given) == 1 and hasattr(given[0], "__iter__") else given


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def node_of(value: Any) -> Node:
    """Return a tensor's node; ArgumentError for what is no tensor, ClosedError after close()."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"{value!r:.80}: expected a Tensor")
    return value._have


def _scaled(tensor: Tensor, factor: Any, bias: Any) -> Tensor:
    return Tensor._of(ops.scale(tensor._have, factor, bias))


def _binary(op: str, a: Any, b: Any) -> Tensor:
    if isinstance(b, np.ndarray):  # numpy's own error speaks of concatenation
        raise TypeError("a Tensor and a numpy array do not mix: see Tensor.from_numpy()")
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return NotImplemented  # type: ignore[no-any-return]
    return Tensor._of(ops.binary(op, a._have, b._have))


def _like(tensor: Tensor, value: Any) -> Tensor:
    shapes.floats("div", tensor._have)
    return Tensor.full([], value, tensor.dtype, tensor.device)
