from __future__ import annotations

import numpy as np
import pytest

from llcuda.native import layout, library

NODE = [7, 1, *range(4), *range(4, 8), *range(8, 12), *range(12, 20), *range(8), 2**60, 99]
COMPARISON = [0.5, 0.25, 0.125, True]


def test_what_python_packs_is_what_c_reads() -> None:
    """Every field of a struct with arrays and a pointer, and nothing behind it."""
    ffi, _ = library.load()
    packer = layout.packer("llcuda_node")
    assert ffi.sizeof("struct llcuda_node") == packer.size
    node = ffi.from_buffer("struct llcuda_node *", packer.pack(*NODE))
    fields = [node.op, node.type, *node.ne, *node.nb, *node.source, *node.numbers, *node.values]
    assert NODE == [*fields, int(ffi.cast("uintptr_t", node.storage)), node.offset]


def test_what_c_writes_is_what_numpy_reads() -> None:
    """Fields by their names, with the padding of the compiler."""
    ffi, _ = library.load()
    rows = ffi.new("struct llcuda_comparison[]", [COMPARISON] * 3)
    array = np.frombuffer(ffi.buffer(rows), layout.dtype("llcuda_comparison"))
    assert [tuple(COMPARISON)] * 3 == array.tolist()


def test_a_struct_that_is_not_there() -> None:
    """A wrong name is not a guess."""
    with pytest.raises(Exception, match="no_such_struct"):
        layout.packer("no_such_struct")
