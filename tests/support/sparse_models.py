"""Model files of full size whose weights take no room on the disk: a header and a hole."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from llcuda.bench.synthetic import ALIGNMENT, SHAPES, ModelShape, write_header
from llcuda.native.quantization.quantize import quantize_plan

LLAMA_2_7B = ModelShape(
    "llama", layers=32, width=4096, heads=32, kv_heads=32, head=128, feed_forward=11_008,
    vocabulary=32_000, context=4096, rope_base=1e4, epsilon=1e-5, tied=False,
)  # fmt: skip


def sparse_model(folder: Path, name: str, file_type: str) -> Path:
    """Write the header of a model, with the types that a quantization gives its tensors.

    Args:
        folder: Where the file is written.
        name: One of SHAPES, or "llama-2-7b".
        file_type: The type of the file.
    """
    shape = SHAPES.get(name, LLAMA_2_7B)
    path = folder / f"{name}-{file_type}.gguf"
    write_header(shape, path)
    size = path.stat().st_size
    tensors = [name for name, _ in shape.tensors()]
    header = bytearray(path.read_bytes())
    os.truncate(path, _padded(size) + 4 * shape.layers * 2**30)  # more than F16 weights take
    if file_type == "F16":
        return path
    plan = {tensor.name: tensor for tensor in quantize_plan(path, file_type).tensors}
    offset = 0
    for name in tensors:
        key = struct.pack("<Q", len(name)) + name.encode()
        place = header.rindex(key) + len(key)
        (dimensions,) = struct.unpack_from("<I", header, place)
        kind = plan[name].new_type.value
        struct.pack_into("<IQ", header, place + 4 + 8 * dimensions, kind, offset)
        offset += _padded(plan[name].nbytes)
    path.write_bytes(header)
    os.truncate(path, _padded(size) + offset)
    return path


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
