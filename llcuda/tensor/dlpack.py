"""DLPack of a Tensor, without a copy; `llcuda.native.dlpack` holds the capsules."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from llcuda.native import dlpack
from llcuda.native.tensor import CPU, stream, synchronize
from llcuda.params import wrong_argument, wrong_value
from llcuda.tensor.dtype import Device, DType
from llcuda.tensor.graph import Node, leaf, memory_of, operation
from llcuda.tensor.host import to_device
from llcuda.tensor.shape import check_shape

# DLPack's code of each type, and its bits.
KINDS = {
    DType.Int32: (0, 32),
    DType.Int64: (0, 64),
    DType.UInt8: (1, 8),
    DType.Float16: (2, 16),
    DType.Float32: (2, 32),
    DType.BFloat16: (4, 16),
}
DTYPES = {kind: dtype for dtype, kind in KINDS.items()}
NO_WAIT = -1  # a stream: the consumer waits by itself


def export(
    node: Node,
    consumer_stream: Any,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    copy: bool | None,
) -> Any:
    """Return a capsule, by the rules of the array API: BufferError for what cannot be shared."""
    if node.dtype not in KINDS:
        raise BufferError(
            f"{node.dtype.name}: ggml's types cannot be shared; share .to(DType.Float32)"
        )
    if not isinstance(copy, bool | None):
        raise wrong_value("copy", copy, "expected True, False or None")
    if not isinstance(consumer_stream, Integral | None):
        raise wrong_value("stream", consumer_stream, "expected a number, or None")
    for parameter, pair in (("max_version", max_version), ("dl_device", dl_device)):
        if pair is not None and not _is_pair(pair):
            raise wrong_value(parameter, pair, "expected two integers, or None")
    if dl_device is not None and tuple(dl_device) != dlpack.device_of(node.device):
        if copy is False or tuple(dl_device) != dlpack.device_of(CPU):
            raise BufferError(
                f"dl_device={dl_device}: cannot share a tensor on {node.device} there; use .to()"
            )
        node = to_device(node, Device("cpu"))
    elif copy:
        node = operation("CAST", node.dtype, node.shape, [node])
    storage = memory_of(node)
    versioned = max_version is not None and max_version[0] >= 1
    if storage.readonly and not versioned:
        raise BufferError(
            f"max_version={max_version}: a read-only tensor needs DLPack 1.0; share a copy"
        )
    if consumer_stream != NO_WAIT:
        synchronize(node.device)
    view = dlpack.View(KINDS[node.dtype], node.shape, node.strides, node.offset)
    return dlpack.export(storage, view, versioned)


def adopt(source: Any, copy: bool | None) -> Node:
    """Return a node over the memory of an object with __dlpack__, or over a copy."""
    if not hasattr(source, "__dlpack__") or not hasattr(source, "__dlpack_device__"):
        raise wrong_argument(
            "source", f"expected an object with __dlpack__, got {type(source).__name__}"
        )
    if not isinstance(copy, bool | None):
        raise wrong_value("copy", copy, "expected True, False or None")
    place = source.__dlpack_device__()
    if not _is_pair(place):
        rule = f"expected two integers from its __dlpack_device__(), got {place!r:.80}"
        raise wrong_argument("source", rule)
    kind, number = (int(part) for part in place)
    if kind in dlpack.CPU_DEVICES:
        device, keywords = Device("cpu"), {}
    elif kind in dlpack.GPU_DEVICES and number >= 0:
        device = Device(number)
        keywords = {"stream": stream(device) or None}
    else:
        raise wrong_argument(
            "source",
            f"expected memory of the CPU or of a CUDA GPU, got DLPack's device {kind, number}",
        )
    try:
        capsule = source.__dlpack__(max_version=(1, 0), **keywords)
    except TypeError:  # older than DLPack 1.0
        capsule = source.__dlpack__(**keywords)
    storage, view = dlpack.take(capsule, device)
    dtype = DTYPES.get(view.kind)
    if dtype is None:
        known = ", ".join(dtype.name for dtype in KINDS)
        raise wrong_argument(
            "source", f"expected one of the types {known}, got DLPack's {view.kind}"
        )
    node = leaf(storage, dtype, check_shape(view.shape), view.strides)
    return operation("CAST", dtype, node.shape, [node]) if copy else node


def _is_pair(value: Any) -> bool:
    """Whether a value is two integers, such as an Enum's member and a number."""
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(part, Integral) for part in value)
    )
