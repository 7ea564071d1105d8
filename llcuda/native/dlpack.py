"""DLPack's capsules and structs, in C's terms; `llcuda.tensor.dlpack` makes tensors of them.

The structs are those of https://dmlc.github.io/dlpack/latest/c_api.html.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from llcuda.errors import TensorError
from llcuda.native import library
from llcuda.native.tensor import CPU, Storage
from llcuda.params import wrong_argument

CPU_MEMORY, CUDA_MEMORY = 1, 2
CPU_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost: memory of the host, also if CUDA has pinned it
GPU_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged: memory of a GPU, also if CUDA moves it
READ_ONLY = 1
MAX_DIMS = 64  # axes of a capsule, as numpy has them
ADDRESSES = 2**63  # end of the addresses that memory can have
PLAIN, VERSIONED = b"dltensor", b"dltensor_versioned"
USED = {PLAIN: b"used_dltensor", VERSIONED: b"used_dltensor_versioned"}

_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", _api))  # fmt: skip
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", _api)
)


@dataclass(frozen=True, slots=True)
class View:
    """A tensor in the memory of a capsule.

    Attributes:
        kind: DLPack's code of the type, and the bits of a value.
        shape: Sizes, slowest first.
        strides: Bytes between neighbours along each axis.
        offset: Bytes from the beginning of the memory.
    """

    kind: tuple[int, int]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


def device_of(device: int) -> tuple[int, int]:
    """Return DLPack's type and number of a device, as plain integers, which torch needs.

    Args:
        device: A device of `llcuda.native.tensor`.
    """
    return (CPU_MEMORY, 0) if device == CPU else (CUDA_MEMORY, int(device))


def export(storage: Storage, view: View, versioned: bool) -> Any:
    """Return a capsule over a storage, which keeps the storage alive.

    Args:
        storage: The memory.
        view: The tensor in it.
        versioned: Whether the capsule is one of DLPack 1.0 and later.

    Raises:
        TensorError: There is no memory for the capsule.
    """
    ffi, lib = library.load()
    code, bits = view.kind
    shape, strides = (
        ffi.new("int64_t[]", list(sizes) or 1) for sizes in (view.shape, view.strides)
    )
    for axis, stride in enumerate(view.strides):
        strides[axis] = stride * 8 // bits
    tensor = ffi.new("struct llcuda_dl_tensor *")
    tensor.device_type, tensor.device_id = device_of(storage.device)
    tensor.ndim, tensor.code, tensor.bits, tensor.lanes = len(view.shape), code, bits, 1
    tensor.shape, tensor.strides, tensor.byte_offset = shape, strides, view.offset
    flags = READ_ONLY if storage.readonly else 0
    managed = lib.llcuda_dlpack_new(storage.pointer, tensor, versioned, flags)
    if managed == ffi.NULL:
        library.fail(TensorError, "cannot share this tensor")
    drop = int(ffi.cast("uintptr_t", ffi.addressof(lib, "llcuda_dlpack_drop")))
    address = int(ffi.cast("uintptr_t", managed))
    return _new(address, VERSIONED if versioned else PLAIN, drop)


def take(capsule: Any, device: int) -> tuple[Storage, View]:
    """Take over the memory of a capsule.

    Args:
        capsule: The capsule, which nobody has taken.
        device: The device of the memory.

    Returns:
        The memory, which is let go of with the storage, and the tensor in it.

    Raises:
        ArgumentError: It is not such a capsule, or holds what a tensor cannot be.
        TensorError: The memory cannot be used.
    """
    ffi, lib = library.load()
    name = next((name for name in (VERSIONED, PLAIN) if _is_valid(capsule, name)), None)
    if name is None:
        raise wrong_argument("source", "expected a DLPack capsule that nobody has taken")
    versioned = name is VERSIONED
    kind = "struct llcuda_dl_versioned *" if versioned else "struct llcuda_dl_managed *"
    managed = ffi.cast(kind, _pointer(capsule, name))
    if versioned and managed.major != 1:
        rule = f"expected DLPack 1.x, got {managed.major}.{managed.minor}"
        raise wrong_argument("source", rule)
    view, size = _view_of(managed.tensor, device, ffi)
    pointer = lib.llcuda_storage_take(device, managed, versioned, size)
    if pointer == ffi.NULL:
        library.fail(TensorError, "cannot use this memory")
    _rename(capsule, USED[name])
    return Storage(device, pointer, size, bool(versioned and managed.flags & READ_ONLY)), view


def _view_of(tensor: Any, device: int, ffi: Any) -> tuple[View, int]:
    """Return a DLTensor as a view, and the bytes of its memory.

    Raises:
        ArgumentError: It is what no tensor can be, or lies on another device.
    """
    size = tensor.bits // 8
    if tensor.lanes != 1 or tensor.bits % 8 or not size:
        elements = f"{tensor.lanes} values of {tensor.bits} bits"
        raise wrong_argument("source", f"expected elements of whole bytes, got {elements}")
    place = (tensor.device_type, tensor.device_id)
    if (
        (place[0] not in CPU_DEVICES)
        if device == CPU
        else (place[0] not in GPU_DEVICES or place[1] != device)
    ):
        rule = f"the capsule lies on DLPack's device {place}, its owner says another one"
        raise wrong_argument("source", rule)
    if not 0 <= tensor.ndim <= MAX_DIMS or (tensor.ndim and tensor.shape == ffi.NULL):
        rule = f"expected a shape of 0 to {MAX_DIMS} axes, got {tensor.ndim}"
        raise wrong_argument("source", rule)
    shape = tuple(tensor.shape[0 : tensor.ndim]) if tensor.ndim else ()
    data = int(ffi.cast("uintptr_t", tensor.data))
    address = data + tensor.byte_offset
    if any(n < 1 for n in shape) or not data or address % size:
        rule = f"shape {list(shape)} at {address:#x} is empty, or not aligned"
        raise wrong_argument("source", rule)
    step, strides = size, list[int]()
    for axis in reversed(range(tensor.ndim)):
        given = tensor.strides != ffi.NULL and shape[axis] > 1  # the only value has no neighbour
        strides.insert(0, tensor.strides[axis] * size if given else step)
        step *= shape[axis]
    if any(stride <= 0 for stride in strides):
        rule = f"expected strides of more than 0 bytes, got {strides}"
        raise wrong_argument("source", rule, "make it contiguous")
    span = size + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if max(address + span, step) > ADDRESSES:
        rule = f"shape {list(shape)} with strides {strides} is larger than memory can be"
        raise wrong_argument("source", rule)
    return View((tensor.code, tensor.bits), shape, tuple(strides)), span
