"""Memory and graphs of ggml, in C's terms; `llcuda.tensor.tensor` has the class Tensor.

A device is the number of a CUDA GPU, or CPU. Sizes and strides are in ggml's order, fastest first,
four of each, strides in bytes. `llcuda.tensor.ops` checks what ggml would end the process for.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llcuda.errors import OutOfMemoryError, TensorError, UnsupportedError
from llcuda.native import layout, library
from llcuda.native.cuda_build import Remark
from llcuda.native.gguf.types import GGML_BLOCK_SIZE, GGML_TYPE_SIZE, GGMLType
from llcuda.native.oom import MIB, available_memory
from llcuda.params import default_threads

CPU = -1
LARGE = 64 * MIB  # bytes of an allocation, from which on free memory is checked first


class Storage:
    """Counted memory on a device, freed when neither Python nor another library refers to it.

    Args:
        device: The device.
        pointer: The llcuda_storage; the object takes over one reference.
        size: Bytes.
        readonly: Whether the memory must not be written.

    Attributes:
        address (int): The address of the memory on its device.
        device (int): The device.
        size (int): Bytes.
        readonly (bool): Whether the memory must not be written.
    """

    __slots__ = ("_owner", "address", "device", "readonly", "size")

    def __init__(self, device: int, pointer: Any, size: int, readonly: bool = False) -> None:
        ffi, lib = library.load()
        self._owner = library.Owner(pointer, lib.llcuda_storage_release, None)
        self.address = int(ffi.cast("uintptr_t", lib.llcuda_storage_data(pointer)))
        self.device = device
        self.size = size
        self.readonly = readonly

    @property
    def pointer(self) -> Any:
        """The llcuda_storage, for the rest of llcuda.native; ForkError in a forked child."""
        pointer = self._owner.pointer
        if pointer is None:
            library.load()
        return pointer

    @property
    def number(self) -> int:
        """The address of the llcuda_storage, for a record of a graph."""
        ffi, _ = library.load()
        return int(ffi.cast("uintptr_t", self.pointer))

    def write(self, offset: int, data: Any) -> None:
        """Copy a buffer into the memory.

        Args:
            offset: Bytes from the beginning of the memory.
            data: The buffer; may be the mapping of a file.
        """
        ffi, lib = library.load()
        source = ffi.from_buffer(data)
        _check(lib.llcuda_storage_write(self.pointer, offset, source, len(source)))

    def read(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Return a copy of some bytes.

        Args:
            offset: Bytes from the beginning of the memory.
            size: How many bytes.
        """
        ffi, lib = library.load()
        values = np.empty(size, np.uint8)
        _check(lib.llcuda_storage_read(self.pointer, offset, ffi.from_buffer(values), size))
        return values

    def clear(self, offset: int, size: int) -> None:
        """Set bytes to 0.

        Args:
            offset: Bytes from the beginning of the memory.
            size: How many bytes.
        """
        _, lib = library.load()
        _check(lib.llcuda_storage_clear(self.pointer, offset, size))

    def copy(self, offset: int, source: Storage, source_offset: int, size: int) -> None:
        """Copy bytes of another storage, on any device, into the memory.

        Args:
            offset: Bytes from the beginning of the memory.
            source: The other storage.
            source_offset: Bytes from the beginning of its memory.
            size: How many bytes.
        """
        _, lib = library.load()
        _check(lib.llcuda_storage_copy(self.pointer, offset, source.pointer, source_offset, size))


def allocate(device: int, number: int, sizes: Sequence[int], size: int) -> Storage:
    """Return new memory for a tensor; its values are not set.

    Args:
        device: The device.
        number: The ggml type.
        sizes: The tensor's sizes.
        size: Its bytes.

    Raises:
        OutOfMemoryError: The device has too little memory.
        TensorError: The memory cannot be allocated for another reason.
    """
    ffi, lib = library.load()
    if device == CPU and size > LARGE and size > (free := available_memory()):
        raise OutOfMemoryError(
            f"too little memory: {size / MIB:,.0f} MiB more were asked, {free / MIB:,.0f} MiB are "
            "free on CPU; free some"
        )
    pointer = lib.llcuda_storage_new(device, number, tuple(sizes))
    if pointer == ffi.NULL:
        library.fail(TensorError, f"cannot allocate a tensor of {size:,} bytes")
    return Storage(device, pointer, size)


def adopt(data: Any) -> Storage:
    """Return the memory of a buffer as a storage on the CPU, without a copy.

    Args:
        data: The buffer, which the storage keeps alive.
    """
    ffi, lib = library.load()
    view = memoryview(data)
    source = ffi.from_buffer(view)
    owner = ffi.cast("void *", id(source))  # cffi's object holds the buffer
    pointer = lib.llcuda_storage_adopt(CPU, source, len(source), owner)
    return Storage(CPU, pointer, len(source), view.readonly)


def node_record() -> struct.Struct:
    """Return what packs one node of a graph, in the order of llcuda_node's fields."""
    return layout.packer("llcuda_node")


def compute(device: int, records: bytearray, count: int, work: str) -> None:
    """Compute the nodes of a graph, in their order.

    Args:
        device: The device.
        records: The nodes, packed with `node_record`.
        count: How many nodes.
        work: What they compute, for the error.

    Raises:
        UnsupportedError: The device lacks an operation.
        TensorError: The computation failed.
    """
    ffi, lib = library.load()
    nodes = ffi.cast("struct llcuda_node *", ffi.from_buffer(records))
    status = lib.llcuda_compute(device, nodes, count, default_threads())
    if status == lib.LLCUDA_UNSUPPORTED:
        library.fail(UnsupportedError, f"{work}: this device cannot compute it")
    if status:
        library.fail(TensorError, f"{work} failed")


# --- devices ---


@functools.cache
def gpu_count() -> int:
    """Return how many CUDA GPUs ggml sees; 0 in a build without CUDA."""
    _, lib = library.load()
    return int(lib.llcuda_gpu_count())


@functools.cache
def refused_gpus() -> dict[int, Remark]:
    """Return why GPUs cannot be used, by their number."""
    refused = library.refused_gpus()
    numbers = {f"CUDA{number}": number for number in range(gpu_count())}
    return {numbers[name]: remark for name, remark in refused.items()}


def device_facts(device: int) -> dict[str, Any]:
    """Return the name and the memory of a device, and what CUDA tells of a GPU.

    Args:
        device: The device.

    Returns:
        `name`, `free_memory` and `total_memory` in bytes; with CUDA also
        `compute_capability_major`, `compute_capability_minor`, `multiprocessor_count`, `warp_size`,
        `shared_memory_per_block` and `shared_memory_per_block_optin`.
    """
    ffi, lib = library.load()
    handle = lib.llcuda_device_handle(device)
    free, total = memory(device)
    facts: dict[str, Any] = {
        "name": ffi.string(lib.ggml_backend_dev_description(handle)).decode(errors="replace"),
        "free_memory": free,
        "total_memory": total,
    }
    gpu = ffi.new("struct llcuda_gpu *")
    if device != CPU and lib.llcuda_gpu_properties(device, gpu) == 0:
        facts |= {
            "compute_capability_major": gpu.capability_major,
            "compute_capability_minor": gpu.capability_minor,
            "multiprocessor_count": gpu.multiprocessors,
            "warp_size": gpu.warp_size,
            "shared_memory_per_block": gpu.shared_memory,
            "shared_memory_per_block_optin": gpu.shared_memory_most,
        }
    return facts


def memory(device: int) -> tuple[int, int]:
    """Return the bytes that new tensors may take, and all bytes of a device.

    Args:
        device: The device.

    Raises:
        DeviceLostError: The GPU failed.
    """
    ffi, lib = library.load()
    free, total = ffi.new("size_t *"), ffi.new("size_t *")
    _check(lib.llcuda_memory_now(lib.llcuda_device_handle(device), free, total))
    if device == CPU:
        return available_memory(), int(total[0])
    return int(free[0] + lib.llcuda_device_kept(device)), int(total[0])


def synchronize(device: int) -> None:
    """Wait until a device has computed everything that it was given.

    Args:
        device: The device.
    """
    _, lib = library.load()
    _check(lib.llcuda_device_synchronize(device))


def release(device: int) -> None:
    """Give memory that is cached for the next tensors back to the system.

    Args:
        device: The device.
    """
    _, lib = library.load()
    _check(lib.llcuda_device_release(device))


def stream(device: int) -> int:
    """Return the address of the CUDA stream that a device computes on; 0 for the CPU.

    Args:
        device: The device.
    """
    ffi, lib = library.load()
    address = ffi.new("uintptr_t *")
    _check(lib.llcuda_device_stream(device, address))
    return int(address[0])


# --- types ---


@functools.cache
def constant(name: str) -> int:
    """Return a constant of the binding.

    Args:
        name: Its name in C.
    """
    _, lib = library.load()
    return int(getattr(lib, name))


def to_float(number: int, rows: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """Return the values of rows of a ggml type.

    Args:
        number: The ggml type.
        rows: The bytes of the rows.
        columns: Values of a row.

    Returns:
        A new array of shape (rows, columns).
    """
    ffi, lib = library.load()
    size, nbytes = GGML_BLOCK_SIZE[GGMLType(number)], GGML_TYPE_SIZE[GGMLType(number)]
    count = rows.size // (columns // size * nbytes)
    values = np.empty((count, columns), np.float32)
    pointer = ffi.cast("float *", ffi.from_buffer(values))
    _check(lib.llcuda_rows_to_float(number, ffi.from_buffer(rows), pointer, count, columns))
    return values


def from_float(
    number: int, values: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """Return values as rows of a ggml type.

    Args:
        number: The ggml type.
        values: An array of shape (rows, columns).
        importance: The weight of each column in the error of quantization, shape (columns,).

    Returns:
        The bytes of the rows.

    Raises:
        UnsupportedError: The type needs an importance.
        TensorError: The type's scales cannot hold the values.
    """
    ffi, lib = library.load()
    count, columns = values.shape
    size, nbytes = GGML_BLOCK_SIZE[GGMLType(number)], GGML_TYPE_SIZE[GGMLType(number)]
    rows = np.empty(count * (columns // size) * nbytes, np.uint8)
    weights = ffi.NULL if importance is None else ffi.from_buffer(importance)
    status = lib.llcuda_rows_from_float(
        number,
        ffi.cast("float *", ffi.from_buffer(values)),
        ffi.from_buffer(rows),
        count,
        columns,
        ffi.cast("float *", weights),
    )
    if status == lib.LLCUDA_UNSUPPORTED:
        raise UnsupportedError(
            "importance=None: this type needs the importance of each column",
            parameter="importance",
            remedy="give importance=",
        )
    if status:
        library.fail(TensorError, "these values cannot be quantized: some are too large")
    return rows


def _check(status: int) -> None:
    if status:
        library.fail(TensorError, "the tensor's memory cannot be used")
