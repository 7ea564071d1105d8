"""`load_tensors` of `llcuda.core`: tensors of a GGUF file, which `llcuda.gguf_parser` reads."""

from __future__ import annotations

import os
from collections.abc import Iterable

from llcuda.errors import UnsupportedError
from llcuda.gguf_parser import GGUFReader, GGUFTensorInfo
from llcuda.native.tensor import adopt
from llcuda.params import wrong_argument, wrong_value
from llcuda.tensor.dtype import FROM_GGML, Device
from llcuda.tensor.graph import Node, empty, leaf, memory_of
from llcuda.tensor.shape import check_shape


def load(
    path: str | os.PathLike[str], names: Iterable[str] | None, device: Device
) -> dict[str, Node]:
    """Return the named tensors of a file, or all; on the CPU they are views of its mapping."""
    if isinstance(names, str):
        raise wrong_value("names", names, "expected a list of names")
    with GGUFReader(path) as reader:
        chosen = reader.list_tensors() if names is None else list(names)
        if missing := [name for name in chosen if name not in reader.tensors]:
            raise wrong_argument("names", f"{os.fspath(path)} has no tensor {missing[0]!r}")
        return {name: _load(reader, reader.tensors[name], device) for name in chosen}


def _load(reader: GGUFReader, info: GGUFTensorInfo, device: Device) -> Node:
    dtype = FROM_GGML.get(info.ggml_type)
    if dtype is None:
        raise UnsupportedError(
            f"names={info.name!r}: llcuda.core has no tensors of type {info.ggml_type.name}",
            parameter="names",
            remedy="read it with GGUFReader.numpy()",
        )
    shape, data = check_shape(info.shape), reader.get_tensor_data(info.name)
    if device.is_cpu:
        return leaf(adopt(data), dtype, shape)
    node = empty(dtype, shape, device)
    memory_of(node).write(0, data)
    return node
