"""The class Tensor of `llcuda.core`; `llcuda.native.tensor` below it holds memory and graphs."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llcuda._pickling import stays_in_process
from llcuda.errors import ArgumentError, ClosedError, TensorError, shown
from llcuda.native.dlpack import device_of
from llcuda.params import wrong_value
from llcuda.tensor import dlpack, ops
from llcuda.tensor.dtype import NUMPY, Device, DType, check_dtype
from llcuda.tensor.graph import Node, empty, flush, hold, memory_of
from llcuda.tensor.host import from_array, from_bytes, to_array, to_device, to_dtype, write
from llcuda.tensor.matmul import multiply
from llcuda.tensor.shape import (
    check_blocks,
    check_shape,
    contiguous,
    float_type,
    reshape,
    take,
    transpose,
)


@stays_in_process("its numpy() array")
class Tensor:
    """Values of one type on one device, in 0 to 4 axes, none of them empty.

    `Tensor(shape)` does not set the values. Memory is freed with the last tensor, view or DLPack
    object that uses it. Operators have numpy's rules of broadcasting; `+`, `-`, `*` and `/` also
    take Python's numbers. A result has the type and the device of its operands.

    Args:
        shape: Sizes of the axes, each at least 1; the last axis is the one whose values are
            adjacent.
        dtype: Type of the values; the last axis of a quantized type is a multiple of its block.
        device: A GPU's number, "cuda:0", -1 or "cpu"; None is the first GPU, or the CPU on a
            machine without one.

    Raises:
        ArgumentError: The shape, type or device is not possible.
        TensorError: The blocks of the type do not fit the last axis.
        OutOfMemoryError: The device has too little memory.
    """

    __slots__ = ("__weakref__", "node")
    __array_ufunc__ = None  # makes numpy leave mixed arithmetic to us, which refuses it
    node: Node | None  # for this package only; None after close()

    def __init__(self, shape: Any, dtype: DType = DType.Float32, device: Any = None) -> None:
        sizes = check_shape(shape)
        check_blocks(check_dtype(dtype), sizes)
        self.node = empty(dtype, sizes, Device(device))

    @classmethod
    def _of(cls, node: Node) -> Self:
        tensor = cls.__new__(cls)
        tensor.node = node
        hold(tensor, node)
        return tensor

    @property
    def _node(self) -> Node:
        if self.node is None:
            raise ClosedError("this tensor is closed")
        return self.node

    # --- creation ---

    @classmethod
    def zeros(cls, shape: Any, dtype: DType = DType.Float32, device: Any = None) -> Self:
        """Return a tensor of zeros; one of a quantized type consists of zero bytes.

        Args:
            shape: See `Tensor`.
            dtype: See `Tensor`.
            device: See `Tensor`.

        Raises:
            ArgumentError: The shape, type or device is not possible.
            OutOfMemoryError: The device has too little memory.
        """
        tensor = cls(shape, dtype, device)
        node = tensor._node
        memory_of(node).clear(0, node.nbytes)
        return tensor

    @classmethod
    def ones(cls, shape: Any, dtype: DType = DType.Float32, device: Any = None) -> Self:
        """Return a tensor of ones.

        Args:
            shape: See `Tensor`.
            dtype: Type of the values; not a quantized one.
            device: See `Tensor`.

        Raises:
            ArgumentError: The shape, type or device is not possible.
            TensorError: The type is quantized.
            OutOfMemoryError: The device has too little memory.
        """
        return cls.full(shape, 1, dtype, device)

    @classmethod
    def full(cls, shape: Any, value: Any, dtype: DType = DType.Float32, device: Any = None) -> Self:
        """Return a tensor all of whose values are equal.

        Args:
            shape: See `Tensor`.
            value: The value, a number; a whole one that fits the type for Int32, Int64 and UInt8.
            dtype: Type of the values; not a quantized one.
            device: See `Tensor`.

        Raises:
            ArgumentError: The shape, value, type or device is not possible.
            TensorError: The type is quantized.
            OutOfMemoryError: The device has too little memory.
        """
        sizes, on_device = check_shape(shape), Device(device)
        if not isinstance(value, Real):
            raise wrong_value("value", value, "expected a number")
        if check_dtype(dtype).is_float:
            return cls._of(ops.full(value, dtype, sizes, on_device))
        if dtype.is_quantized:
            raise TensorError(
                f"full: {dtype.name} is quantized", remedy=f"use .to({dtype!r}) on floats"
            )
        try:
            values = np.full(sizes, operator.index(value), NUMPY[dtype])  # type: ignore[arg-type]
        except (TypeError, OverflowError) as error:
            raise wrong_value("value", value, f"{dtype.name} cannot hold it: {error}") from None
        return cls._of(from_array(values, on_device))

    @classmethod
    def from_numpy(cls, array: Any, device: Any = None) -> Self:
        """Return a copy of a numpy array.

        Args:
            array: An array of float32, float16, int32, int64 or uint8.
            device: See `Tensor`.

        Returns:
            A tensor of the array's shape and type.

        Raises:
            ArgumentError: The array has another type, more than 4 axes or no values.
            OutOfMemoryError: The device has too little memory.
        """
        return cls._of(from_array(array, Device(device)))

    @classmethod
    def from_bytes(cls, data: Any, shape: Any, dtype: DType, device: Any = None) -> Self:
        """Return a copy of a tensor's bytes, as they are in memory or in a GGUF file.

        Args:
            data: A buffer, e.g. bytes or a memoryview, of exactly the tensor's size.
            shape: See `Tensor`.
            dtype: See `Tensor`.
            device: See `Tensor`.

        Raises:
            ArgumentError: The shape, type or device is not possible, or the buffer has another
                size.
            OutOfMemoryError: The device has too little memory.
        """
        sizes = check_shape(shape)
        check_blocks(check_dtype(dtype), sizes)
        return cls._of(from_bytes(data, dtype, sizes, Device(device)))

    @classmethod
    def from_dlpack(cls, source: Any, copy: bool | None = None) -> Self:
        """Return a tensor over the memory of an array of numpy, torch or cupy.

        Args:
            source: An object with `__dlpack__`, in memory of the CPU or of a CUDA GPU.
            copy: True copies the values; None and False share them.

        Raises:
            ArgumentError: The memory, type or shape cannot be a tensor's.
        """
        return cls._of(dlpack.adopt(source, copy))

    # --- properties ---

    @property
    def shape(self) -> list[int]:
        """Sizes of the axes."""
        return list(self._node.shape)

    @property
    def strides(self) -> list[int]:
        """Bytes from value to value along each axis; 0 along the blocks of a quantized type."""
        return list(self._node.strides)

    @property
    def dtype(self) -> DType:
        """Type of the values."""
        return self._node.dtype

    @property
    def device(self) -> Device:
        """Device of the values: a GPU's number, or -1 for the CPU."""
        return self._node.device

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._node.shape)

    def numel(self) -> int:
        """Return the number of values."""
        return self._node.numel

    def nbytes(self) -> int:
        """Return the bytes of the values."""
        return self._node.nbytes

    def is_contiguous(self) -> bool:
        """Return whether the values lie row by row without gaps."""
        return self._node.is_contiguous

    def __repr__(self) -> str:
        if self.node is None:
            return "Tensor(closed)"
        return f"Tensor({self.shape}, {self.dtype!r}, device={self.device!s})"

    def __len__(self) -> int:
        if not self._node.shape:
            raise TypeError("a tensor without axes has no length")
        return self._node.shape[0]

    def __bool__(self) -> bool:
        return bool(self.item())

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def close(self) -> None:
        """Release the memory, which is freed when no view needs it.

        Any later use but `repr` and `close` is a ClosedError.
        """
        self.node = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- copies and conversions ---

    def numpy(self) -> NDArray[Any]:
        """Return the values as a new numpy array.

        Returns:
            An array of the tensor's shape and type; float32 for BFloat16 and quantized types.

        Raises:
            TensorError: An operation that the values depend on failed on the device.
        """
        return to_array(self._node)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("copy=False: numpy() copies; use np.from_dlpack()")
        values = self.numpy()
        return values if dtype is None else values.astype(dtype)

    def item(self) -> float | int:
        """Return the value of a tensor that has only one.

        Raises:
            TensorError: The tensor has several values.
        """
        if self.numel() != 1:
            raise TensorError(
                f"item: expected a tensor of one value, got {self.numel()}",
                remedy="index it first, or use .numpy()",
            )
        value: float | int = self.numpy().reshape(-1)[0].item()
        return value

    def tobytes(self) -> bytes:
        """Return the bytes of the values, row by row; `from_bytes` reads them."""
        node = contiguous(self._node)
        return memory_of(node).read(node.offset, node.nbytes).tobytes()

    def write(self, array: Any) -> None:
        """Replace the values.

        Args:
            array: A numpy array of the tensor's shape and type.

        Raises:
            TensorError: The shape or type differs, the tensor's values lie with gaps, or the
                tensor is read-only.
        """
        flush()  # operations that wait for the present values
        write(self._node, array)

    def to(self, target: Any, importance: Any = None) -> Tensor:
        """Return the values as another type, or on another device.

        Args:
            target: A DType, which may be quantized, or a device; see `Tensor`.
            importance: For a quantized type, how much each column counts: an array of as many
                numbers as the last axis has values. Some types need it.

        Returns:
            A new tensor; this one where nothing changes.

        Raises:
            ArgumentError: There is no such device, or `importance` does not fit.
            TensorError: The blocks of the type do not fit the last axis, or it cannot hold the
                values.
            UnsupportedError: The type needs an importance.
            OutOfMemoryError: The device has too little memory.
        """
        if isinstance(target, DType):
            if target is self.dtype:
                return self
            return Tensor._of(to_dtype(self._node, target, importance))
        device = Device(target)
        return self if device == self.device else Tensor._of(to_device(self._node, device))

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        return dlpack.export(self._node, stream, max_version, dl_device, copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return device_of(self.device)

    # --- views ---

    def reshape(self, *shape: Any) -> Tensor:
        """Return the values in another shape, as a view where possible.

        Args:
            *shape: The sizes, or a sequence of them; -1 for one size that follows from the others.

        Raises:
            TensorError: The shape has another number of values, or changes the last axis of a
                quantized type.
        """
        return Tensor._of(reshape(self._node, _sizes(shape)))

    def view(self, *shape: Any) -> Tensor:
        """Return the values in another shape, without a copy.

        Args:
            *shape: See `reshape`.

        Raises:
            TensorError: The shape has another number of values, changes the last axis of a
                quantized type, or needs a copy.
        """
        return Tensor._of(reshape(self._node, _sizes(shape), copy=False))

    def transpose(self, *axes: Any) -> Tensor:
        """Return a view with the axes in another order.

        Args:
            *axes: Each axis once, or a sequence of them; by default all in reverse.

        Raises:
            ArgumentError: An axis is missing, or named twice.
        """
        return Tensor._of(transpose(self._node, _sizes(axes) if axes else None))

    @property
    def T(self) -> Tensor:  # noqa: N802  # numpy's name
        """A view with the axes reversed."""
        return self.transpose()

    def contiguous(self) -> Tensor:
        """Return the values row by row without gaps; this tensor where they lie so."""
        return self if self.is_contiguous() else Tensor._of(contiguous(self._node))

    def __getitem__(self, key: Any) -> Tensor:
        return Tensor._of(take(self._node, key))

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
        return _binary("DIV", self, _scalar_like(self, other) if _is_number(other) else other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return (
            _binary("DIV", _scalar_like(self, other), self) if _is_number(other) else NotImplemented
        )

    def __neg__(self) -> Tensor:
        return Tensor._of(ops.unary("neg", self._node))

    def __abs__(self) -> Tensor:
        return Tensor._of(ops.unary("abs", self._node))

    def __matmul__(self, other: Any) -> Tensor:
        if not isinstance(other, Tensor):
            return NotImplemented
        return Tensor._of(multiply(self._node, other._node))

    def sum(self, axis: int | None = None) -> Tensor:
        """Return sums, computed in Float32.

        Args:
            axis: Axis to sum along, which the result lacks; None sums all values.

        Raises:
            ArgumentError: There is no such axis.
            TensorError: The type is not a floating-point type.
        """
        return Tensor._of(ops.total(self._node, axis, mean=False))

    def mean(self, axis: int | None = None) -> Tensor:
        """Return means, computed in Float32.

        Args:
            axis: Axis to take the mean along, which the result lacks; None takes all values.

        Raises:
            ArgumentError: There is no such axis.
            TensorError: The type is not a floating-point type.
        """
        return Tensor._of(ops.total(self._node, axis, mean=True))

    def argmax(self, axis: int | None = -1) -> Tensor:
        """Return the indices of the largest values; of equal ones any, as devices differ.

        Args:
            axis: Axis to search along, which the result lacks; None searches all values.

        Returns:
            A tensor of Int32.

        Raises:
            ArgumentError: There is no such axis.
            TensorError: The type is not a floating-point type.
        """
        return Tensor._of(ops.argmax(self._node, axis))


def _sizes(arguments: tuple[Any, ...]) -> Any:
    """Return the arguments, or the one sequence that is given in their place."""
    is_sequence = len(arguments) == 1 and hasattr(arguments[0], "__iter__")
    return arguments[0] if is_sequence else arguments


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def tensor_of(node: Node) -> Tensor:
    """Return a tensor of a node, which is computed now or at the end of a lazy block."""
    return Tensor._of(node)


def node_of(value: Any) -> Node:
    """Return the node of a tensor; ArgumentError for other values, ClosedError after close()."""
    if not isinstance(value, Tensor):
        raise ArgumentError(
            f"{shown(value)}: expected a Tensor",
            remedy="make one with Tensor.from_numpy() or Tensor.full()",
        )
    return value._node


def _scaled(tensor: Tensor, factor: Any, bias: Any) -> Tensor:
    return Tensor._of(ops.scale(tensor._node, factor, bias))


def _binary(op: str, a: Any, b: Any) -> Tensor:
    if isinstance(b, np.ndarray):  # numpy's own error speaks of concatenation
        raise TypeError("a Tensor and a numpy array do not mix; use Tensor.from_numpy()")
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return NotImplemented  # type: ignore[no-any-return]
    return Tensor._of(ops.binary(op, a._node, b._node))


def _scalar_like(tensor: Tensor, value: Any) -> Tensor:
    float_type("div", tensor._node)
    return Tensor.full([], value, tensor.dtype, tensor.device)
