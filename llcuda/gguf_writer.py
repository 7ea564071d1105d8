"""A GGUF file from metadata and tensors, through the gguf package."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llcuda.errors import ArgumentError, LlcudaError, ModelError
from llcuda.native.gguf.metadata import LOSSLESS, Metadata, Texts
from llcuda.native.gguf.types import NUMPY_VALUES, GGMLType, ValueType

if TYPE_CHECKING:
    from gguf import GGUFWriter

MOST_DIMENSIONS = 4
LONGEST_NAME = 63  # bytes of a tensor's name
_NUMBERS = {np.dtype(name): kind for kind, name in NUMPY_VALUES.items() if kind != ValueType.BOOL}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor's bytes as a file holds them, e.g. of `GGUFReader.get_tensor_data`."""

    shape: Sequence[int]
    ggml_type: GGMLType
    data: bytes | memoryview


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any] | RawTensor],
) -> Path:
    """Write a file and return its path; one that is there is replaced when the new one is whole.

    metadata: str, bool, int (uint32; int32, uint64 or int64 where that does not hold it), float
        (float32), numpy's numbers (their type), and lists or arrays of these. A reader's metadata
        keeps its types.
    tensors: arrays of floats or signed integers, or RawTensor. Each is asked for twice, in order,
        for its shape and for its bytes: a mapping may make one when it is asked, and keep none.

    Raises ArgumentError for what GGUF has no type for, ModelError when it cannot be written,
    LlcudaError without the gguf package.
    """
    try:
        import gguf
    except ImportError as error:
        raise LlcudaError(
            "writing a GGUF file needs the gguf package: pip install 'gguf>=0.17'"
        ) from error
    into = Path(path)
    part = into.with_name(f".{into.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(part, str(metadata.get("general.architecture", "")))
    try:
        for key in metadata:
            if key != "general.architecture":
                _add_pair(writer, key, metadata)
        for name, tensor in tensors.items():
            _announce(writer, name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors.values():
            writer.write_tensor_data(_bytes(tensor))
        writer.close()
        part.replace(into)
    except OSError as error:
        raise ModelError(f"cannot write {into}: {error.strerror}") from error
    finally:
        writer.close()
        part.unlink(missing_ok=True)
    return into


def _add_pair(writer: GGUFWriter, key: str, metadata: Mapping[str, Any]) -> None:
    import gguf

    value = metadata[key]
    array = isinstance(value, (list, tuple, np.ndarray, Texts))
    elements = value if array else [value]
    if not key or not len(elements):
        raise ArgumentError(f"the key {key!r} is empty, or its array is: leave it out")
    if key == "general.alignment" and (type(value) is not int or value < 1 or value & (value - 1)):
        raise ArgumentError(f"general.alignment={value!r}: expected a power of 2")
    kind = metadata.type(key) if isinstance(metadata, Metadata) else _type(key, elements)
    plain = elements.tolist() if isinstance(elements, np.ndarray) else list(elements)
    if kind == ValueType.STRING:
        plain = [text.encode(errors=LOSSLESS) for text in plain]
    if key == "general.alignment":
        writer.data_alignment = plain[0]
    of = gguf.GGUFValueType(kind)
    if array:
        writer.add_key_value(key, plain, gguf.GGUFValueType.ARRAY, sub_type=of)
    else:
        writer.add_key_value(key, plain[0], of)


def _type(key: str, elements: Sequence[Any] | NDArray[Any]) -> ValueType:
    """Return the type that holds all elements."""
    kinds: set[Any]
    if isinstance(elements, np.ndarray):
        kinds = {elements.dtype}
    else:
        kinds = {e.dtype if isinstance(e, np.generic) else type(e) for e in elements}
    if len(kinds) == 1:
        (kind,) = kinds
        if kind is str:
            return ValueType.STRING
        if kind in (bool, np.dtype(bool)):
            return ValueType.BOOL
        if kind is float:
            return ValueType.FLOAT32
        if kind is int:
            low, high = min(elements), max(elements)
            for name in ("UINT32", "INT32", "UINT64", "INT64"):
                info = np.iinfo(name.lower())
                if info.min <= low and high <= info.max:
                    return ValueType[name]
        elif kind in _NUMBERS:
            return _NUMBERS[kind]
    raise ArgumentError(f"{key}: GGUF has no type for {elements!r:.200}")


def _announce(writer: GGUFWriter, name: str, tensor: NDArray[Any] | RawTensor) -> None:
    import gguf

    if not 1 <= len(name.encode()) <= LONGEST_NAME or "\0" in name:
        raise ArgumentError(f"tensor {name!r}: 1 to {LONGEST_NAME} bytes, none 0")
    if not 1 <= len(tensor.shape) <= MOST_DIMENSIONS:
        raise ArgumentError(f"tensor {name!r} of shape {[*tensor.shape]}: 1 to 4 dimensions")
    try:
        if isinstance(tensor, RawTensor):
            raw = gguf.GGMLQuantizationType(tensor.ggml_type)
            size, kind = memoryview(tensor.data).nbytes, np.dtype(np.float32)  # any but uint8
            writer.add_tensor_info(name, tensor.shape, kind, size, raw)
        else:
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes)
    except ValueError as error:
        raise ArgumentError(f"tensor {name!r}: {error}") from None


def _bytes(tensor: NDArray[Any] | RawTensor) -> NDArray[Any]:
    if isinstance(tensor, RawTensor):
        return np.frombuffer(tensor.data, np.uint8)
    return np.ascontiguousarray(tensor)
