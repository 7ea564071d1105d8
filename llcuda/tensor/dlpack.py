"""Tensors shared with numpy, torch and cupy, without a copy."""

from __future__ import annotations

from typing import Any

from llcuda.errors import ArgumentError
from llcuda.native import dlpack
from llcuda.native import tensor as native
from llcuda.tensor.dtype import Device, DType
from llcuda.tensor.graph import Node, leaf, memory_of, operation
from llcuda.tensor.host import to_device
from llcuda.tensor.shape import check_shape

# DLPack's type codes, and bits.
KINDS = {
    DType.Int32: (0, 32),
    DType.Int64: (0, 64),
    DType.UInt8: (1, 8),
    DType.Float16: (2, 16),
    DType.Float32: (2, 32),
    DType.BFloat16: (4, 16),
}
DTYPES = {kind: dtype for dtype, kind in KINDS.items()}
NO_WAIT = -1  # a stream: the taker has seen to it


def export(
    node: Node,
    stream: Any,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    copy: bool | None,
) -> Any:
    """Return a capsule, by the array API's rules: BufferError for what cannot be shared."""
    if node.dtype not in KINDS:
        raise BufferError(f"{node.dtype.name} is ggml's own: share .to(DType.Float32)")
    if dl_device is not None and tuple(dl_device) != dlpack.device_of(node.device):
        if copy is False or tuple(dl_device) != dlpack.device_of(native.CPU):
            raise BufferError(f"a tensor on {node.device} cannot be shared as {dl_device}")
        node = to_device(node, Device("cpu"))
    elif copy:
        node = operation("CAST", node.dtype, node.shape, [node])
    storage = memory_of(node)
    versioned = max_version is not None and max_version[0] >= 1
    if storage.readonly and not versioned:
        raise BufferError("a read-only tensor needs a taker that knows DLPack 1.0; copy it first")
    if stream != NO_WAIT:
        native.synchronize(node.device)
    view = dlpack.View(KINDS[node.dtype], node.shape, node.strides, node.offset)
    return dlpack.export(storage, view, versioned)


def adopt(source: Any, copy: bool | None) -> Node:
    """Return a node over the memory of an object with __dlpack__; ArgumentError."""
    if not hasattr(source, "__dlpack__") or not hasattr(source, "__dlpack_device__"):
        raise ArgumentError(f"{type(source).__name__} does not share memory: it has no __dlpack__")
    kind, number = (int(part) for part in source.__dlpack_device__())
    if kind in dlpack.OF_THE_CPU:
        device, how = Device("cpu"), {}
    elif kind in dlpack.OF_A_GPU:
        device = Device(number)
        how = {"stream": native.stream(device) or None}
    else:
        raise ArgumentError(f"DLPack device {kind}: expected memory of the CPU or of a CUDA GPU")
    try:
        capsule = source.__dlpack__(max_version=(1, 0), **how)
    except TypeError:  # older than DLPack 1.0
        capsule = source.__dlpack__(**how)
    storage, view = dlpack.take(capsule, device)
    dtype = DTYPES.get(view.kind)
    if dtype is None:
        raise ArgumentError(
            f"DLPack type {view.kind}: expected one of {', '.join(kind.name for kind in KINDS)}"
        )
    node = leaf(storage, dtype, check_shape(view.shape), view.strides)
    return operation("CAST", dtype, node.shape, [node]) if copy else node
