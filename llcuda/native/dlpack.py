"""DLPack's capsules: what another library may look at, and what it lets us look at.

The structs are those of https://dmlc.github.io/dlpack/latest/c_api.html.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from llcuda.errors import ArgumentError, TensorError
from llcuda.native import library
from llcuda.native.tensor import CPU, Storage

CPU_MEMORY, CUDA_MEMORY = 1, 2
OF_THE_CPU = (1, 3)  # host memory, also where CUDA has pinned it
OF_A_GPU = (2, 13)  # a GPU's, also where CUDA moves it
READ_ONLY = 1
PLAIN, VERSIONED = b"dltensor", b"dltensor_versioned"
TAKEN = {PLAIN: b"used_dltensor", VERSIONED: b"used_dltensor_versioned"}

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
    """What a capsule shows. kind: code and bits; strides and offset in bytes."""

    kind: tuple[int, int]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


def device_of(device: int) -> tuple[int, int]:
    """Return DLPack's name of a device, in plain integers: torch makes texts of them."""
    return (CPU_MEMORY, 0) if device == CPU else (CUDA_MEMORY, int(device))


def export(storage: Storage, view: View, versioned: bool) -> Any:
    """Return a capsule over a storage; it keeps the storage until its taker lets go."""
    ffi, lib = library.load()
    code, bits = view.kind
    shape, strides = (
        ffi.new("int64_t[]", list(sizes) or 1) for sizes in (view.shape, view.strides)
    )
    for place, stride in enumerate(view.strides):
        strides[place] = stride * 8 // bits
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
    """Return what a capsule holds, which is ours to let go of from now on; ArgumentError."""
    ffi, lib = library.load()
    name = next((name for name in (VERSIONED, PLAIN) if _is_valid(capsule, name)), None)
    if name is None:
        raise ArgumentError("expected a DLPack capsule that nobody has taken")
    versioned = name is VERSIONED
    kind = "struct llcuda_dl_versioned *" if versioned else "struct llcuda_dl_managed *"
    managed = ffi.cast(kind, _pointer(capsule, name))
    if versioned and managed.major != 1:
        raise ArgumentError(f"DLPack {managed.major}.{managed.minor}: expected 1.x")
    view = _look(managed.tensor, ffi)
    span = sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
    size = span + view.kind[1] // 8
    pointer = lib.llcuda_storage_take(device, managed, versioned, size)
    if pointer == ffi.NULL:
        library.fail(TensorError, "cannot use this memory")
    _rename(capsule, TAKEN[name])
    return Storage(device, pointer, size, bool(versioned and managed.flags & READ_ONLY)), view


def _look(tensor: Any, ffi: Any) -> View:
    """Return what a DLTensor is; ArgumentError for what tensors cannot be."""
    shape = tuple(tensor.shape[0 : tensor.ndim]) if tensor.ndim else ()
    size = tensor.bits // 8
    if tensor.lanes != 1 or tensor.bits % 8 or not size:
        raise ArgumentError(f"{tensor.lanes} values of {tensor.bits} bits: not for tensors")
    address = int(ffi.cast("uintptr_t", tensor.data)) + tensor.byte_offset
    if any(n < 1 for n in shape) or not address or address % size:
        raise ArgumentError(f"shape {list(shape)} at {address:#x}: empty, or not aligned")
    step, strides = size, list[int]()
    for place in reversed(range(tensor.ndim)):
        given = tensor.strides != ffi.NULL
        strides.insert(0, tensor.strides[place] * size if given else step)
        step *= shape[place]
    if any(n > 1 and stride <= 0 for n, stride in zip(shape, strides, strict=True)):
        raise ArgumentError(f"strides {strides} bytes: expected more than 0; make it contiguous")
    return View((tensor.code, tensor.bits), shape, tuple(max(stride, 0) for stride in strides))
