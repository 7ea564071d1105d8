"""Tensors of a GGUF file on a device, straight from the file's mapping."""

from __future__ import annotations

import os
from collections.abc import Iterable

from llcuda.demo import resolve
from llcuda.errors import ArgumentError, UnsupportedError
from llcuda.gguf_parser import GGUFReader, GGUFTensorInfo
from llcuda.native import tensor as native
from llcuda.tensor.dtype import FROM_GGML, Device
from llcuda.tensor.graph import Node, empty, leaf, memory_of
from llcuda.tensor.shape import check_shape


def load(
    path: str | os.PathLike[str], names: Iterable[str] | None, device: Device
) -> dict[str, Node]:
    """Return named tensors of a file, or all; on the CPU they are the mapping itself."""
    if isinstance(names, str):
        raise ArgumentError(f"names={names!r}: expected a list of names")
    with GGUFReader(resolve(os.fspath(path))) as reader:
        wanted = list(reader.tensors) if names is None else list(names)
        if missing := [name for name in wanted if name not in reader.tensors]:
            raise ArgumentError(f"{os.fspath(path)} has no tensor {missing[0]!r}")
        return {name: _load(reader, reader.tensors[name], device) for name in wanted}


def _load(reader: GGUFReader, info: GGUFTensorInfo, device: Device) -> Node:
    dtype = FROM_GGML.get(info.ggml_type)
    if dtype is None:
        raise UnsupportedError(f"{info.name} is {info.ggml_type.name}, which tensors cannot be")
    shape, data = check_shape(info.shape), reader.get_tensor_data(info.name)
    if device.is_cpu:
        return leaf(native.adopt(data), dtype, shape)
    node = empty(dtype, shape, device)
    memory_of(node).write(0, data)
    return node
