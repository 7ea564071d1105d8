"""Writing GGUF files from metadata and tensors, by the gguf package."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llcuda.errors import LlcudaError, shown
from llcuda.files import atomic_write, local_path
from llcuda.native.gguf.metadata import LOSSLESS, Metadata, Texts
from llcuda.native.gguf.types import NUMPY_VALUES, GGMLType, GGUFValueType
from llcuda.params import check_number, wrong_argument, wrong_value

if TYPE_CHECKING:
    from gguf import GGUFWriter

MAX_DIMS = 4
MAX_NAME_BYTES = 63  # of a tensor
MAX_FLOAT = float(np.finfo(np.float32).max)
_NUMBERS = {
    np.dtype(name): kind for kind, name in NUMPY_VALUES.items() if kind != GGUFValueType.BOOL
}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor given by its bytes in a file, e.g. of `GGUFReader.get_tensor_data`.

    Attributes:
        shape: Sizes of the axes, row-major as in numpy; 1 to 4 of them.
        ggml_type: Type of the values.
        data: Bytes of the values.
    """

    shape: Sequence[int]
    ggml_type: GGMLType
    data: bytes | memoryview


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any] | RawTensor],
) -> Path:
    """Write a GGUF file. An existing file is replaced when the new one is complete.

    Args:
        path: The file.
        metadata: Values by key: str, bool, float (float32), int (uint32, else the first of int32,
            uint64 and int64 that holds it), numpy's numbers (their type), and lists or arrays of
            these. The metadata of a `GGUFReader` keeps its types.
        tensors: Arrays of floats or signed integers, or RawTensors, by name. Each is asked for
            twice, in order, for its shape and for its bytes: a mapping may make a tensor when it
            is asked, and keep none.

    Returns:
        The path.

    Raises:
        ArgumentError: GGUF has no type for a value, or a name or shape is not allowed.
        ModelError: The file cannot be written.
        LlcudaError: The gguf package is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise LlcudaError(
            "writing a GGUF file needs the gguf package; pip install 'gguf>=0.17'"
        ) from error
    target = Path(local_path(path))
    for name, given in (("metadata", metadata), ("tensors", tensors)):
        if not isinstance(given, Mapping):
            raise wrong_value(name, given, "expected a mapping, such as a dict")
    with atomic_write(target) as part:
        writer = gguf.GGUFWriter(part, str(metadata.get("general.architecture", "")))
        try:
            for key in metadata:
                _check_text("metadata", key)
                if key != "general.architecture":
                    _add_value(writer, key, metadata)
            for name, tensor in tensors.items():
                _add_tensor_info(writer, name, tensor)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors.values():
                writer.write_tensor_data(_bytes(tensor))
        finally:
            writer.close()
    return target


def _add_value(writer: GGUFWriter, key: str, metadata: Mapping[str, Any]) -> None:
    import gguf

    value = metadata[key]
    is_array = isinstance(value, (list, tuple, np.ndarray, Texts))
    elements = value if is_array else [value]
    if not key:
        raise wrong_argument("metadata", "a key is empty", remedy="leave it out")
    if not len(elements):
        raise wrong_argument(f"metadata[{key!r}]", "the array is empty", remedy="leave it out")
    if key == "general.alignment" and (type(value) is not int or value < 1 or value & (value - 1)):
        raise wrong_value(f"metadata[{key!r}]", value, "expected a power of 2")
    if isinstance(elements, np.ndarray) and elements.ndim != 1:
        raise wrong_argument(f"metadata[{key!r}]", "expected an array of one dimension")
    kind = metadata.type(key) if isinstance(metadata, Metadata) else type_of_value(key, elements)
    plain = elements.tolist() if isinstance(elements, np.ndarray) else list(elements)
    if kind == GGUFValueType.STRING:
        try:
            plain = [text.encode(errors=LOSSLESS) for text in plain]
        except UnicodeEncodeError as error:
            raise wrong_argument(f"metadata[{key!r}]", str(error)) from None
    if kind == GGUFValueType.FLOAT32 and any(MAX_FLOAT < abs(x) < math.inf for x in plain):
        rule = "a number is too large for Float32"
        raise wrong_argument(f"metadata[{key!r}]", rule, "give a numpy.float64")
    if key == "general.alignment":
        writer.data_alignment = plain[0]
    value_type = gguf.GGUFValueType(kind)
    if is_array:
        writer.add_key_value(key, plain, gguf.GGUFValueType.ARRAY, sub_type=value_type)
    else:
        writer.add_key_value(key, plain[0], value_type)


def _check_text(parameter: str, text: Any) -> None:
    """Raise ArgumentError unless the name of a value or of a tensor is a text."""
    if not isinstance(text, str):
        raise wrong_value(parameter, text, "expected texts as names")
    try:
        text.encode(errors=LOSSLESS)
    except UnicodeEncodeError as error:
        raise wrong_value(parameter, text, str(error)) from None


def type_of_value(key: str, elements: Sequence[Any] | NDArray[Any]) -> GGUFValueType:
    """Return the type that `write_gguf` gives to a value, or to the elements of an array.

    Args:
        key: The key of the value, for an error.
        elements: The elements; of another value a list of it alone.

    Raises:
        ArgumentError: GGUF has no type that holds all of them.
    """
    kinds: set[Any]
    if isinstance(elements, np.ndarray):
        kinds = {elements.dtype}
    else:
        kinds = {e.dtype if isinstance(e, np.generic) else type(e) for e in elements}
    if len(kinds) == 1:
        (kind,) = kinds
        if kind is str:
            return GGUFValueType.STRING
        if kind in (bool, np.dtype(bool)):
            return GGUFValueType.BOOL
        if kind is float:
            return GGUFValueType.FLOAT32
        if kind is int:
            low, high = min(elements), max(elements)
            for name in ("UINT32", "INT32", "UINT64", "INT64"):
                bounds = np.iinfo(name.lower())
                if bounds.min <= low and high <= bounds.max:
                    return GGUFValueType[name]
        elif kind in _NUMBERS:
            return _NUMBERS[kind]
    raise wrong_argument(f"metadata[{key!r}]", f"GGUF has no type for {shown(elements)}")


def _add_tensor_info(writer: GGUFWriter, name: str, tensor: NDArray[Any] | RawTensor) -> None:
    import gguf

    _check_text("tensors", name)
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES or "\0" in name:
        rule = f"a name has 1 to {MAX_NAME_BYTES} bytes, and no NUL among them"
        raise wrong_argument(f"tensors[{name!r}]", rule)
    if not isinstance(tensor, np.ndarray | RawTensor):
        raise wrong_value(f"tensors[{name!r}]", tensor, "expected a numpy array or a RawTensor")
    if not isinstance(tensor.shape, Sequence) or isinstance(tensor.shape, str | bytes):
        raise wrong_value(f"tensors[{name!r}].shape", tensor.shape, "expected a list of sizes")
    if not 1 <= len(tensor.shape) <= MAX_DIMS:
        rule = f"expected 1 to {MAX_DIMS} axes, not the shape {[*tensor.shape]}"
        raise wrong_argument(f"tensors[{name!r}]", rule)
    if isinstance(tensor, RawTensor):
        check_number(f"tensors[{name!r}].ggml_type", tensor.ggml_type, "int", 0, 2**31 - 1)
    for size in tensor.shape:
        check_number(f"tensors[{name!r}].shape", size, "int", 0, 2**63 - 1)
    try:
        if isinstance(tensor, RawTensor):
            raw_type = gguf.GGMLQuantizationType(tensor.ggml_type)
            nbytes, dtype = memoryview(tensor.data).nbytes, np.dtype(np.float32)  # not uint8
            writer.add_tensor_info(name, tensor.shape, dtype, nbytes, raw_type)
        else:
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes)
    except ValueError as error:
        raise wrong_argument(f"tensors[{name!r}]", str(error)) from None


def _bytes(tensor: NDArray[Any] | RawTensor) -> NDArray[Any]:
    if isinstance(tensor, RawTensor):
        return np.frombuffer(tensor.data, np.uint8)
    return np.ascontiguousarray(tensor)
