"""The nodes behind tensors: memory, or an operation on other nodes that is not computed yet.

`evaluate` turns any number of nodes into one graph of ggml. `lazy` decides whether that happens at
once or later.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from llcuda.errors import ClosedError
from llcuda.native.tensor import Storage, allocate, compute, constant, node_record
from llcuda.tensor.dtype import Device, DType

MAX_DIMS = 4
_changing = threading.Lock()  # the nodes of a graph become memory all at once
Shape = tuple[int, ...]


class Node:
    """The shape and type of a tensor, and either its memory, its base, or its sources.

    Args:
        dtype: The type of the values.
        shape: The size of each axis, row-major as in numpy.
        device: Where the values are, or will be computed.

    Attributes:
        strides: Bytes from one value to the next along each axis; 0 along the axis of a quantized
            type's blocks, where single values have no address.
        storage: The memory; None for a view, and for an operation that is not computed yet.
        base: The node whose memory a view shows; never a view itself.
        offset: Bytes from the beginning of the memory, or of the base.
        op: The end of the operation's LLCUDA_OP_ name; "LEAF" for memory.
        sources: The operands.
        numbers: The whole-number parameters of the operation, at most 8.
        values: Its parameters that are floats, at most 8.
    """

    __slots__ = (
        "base",
        "device",
        "dtype",
        "numbers",
        "offset",
        "op",
        "shape",
        "sources",
        "storage",
        "strides",
        "values",
    )

    def __init__(self, dtype: DType, shape: Shape, device: Device) -> None:
        self.dtype = dtype
        self.shape = shape
        self.device = device
        self.strides = row_major(dtype, shape)
        self.offset = 0
        self.storage: Storage | None = None
        self.base: Node | None = None
        self.op = "LEAF"
        self.sources: tuple[Node, ...] = ()
        self.numbers: tuple[int, ...] = ()
        self.values: tuple[float, ...] = ()

    @property
    def memory(self) -> Storage | None:
        """The memory of the values; None before they are computed."""
        return self.storage if self.base is None else self.base.storage

    @property
    def is_contiguous(self) -> bool:
        """Whether the values lie row by row without gaps."""
        return self.strides == row_major(self.dtype, self.shape)

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values without gaps."""
        return size_of(self.dtype, self.shape)


def size_of(dtype: DType, shape: Shape) -> int:
    """Return the bytes of a tensor."""
    values, nbytes = dtype.block
    return math.prod(shape) // values * nbytes


def row_major(dtype: DType, shape: Shape) -> Shape:
    """Return the strides of values that lie row by row without gaps."""
    values, step = dtype.block
    strides: list[int] = []
    for size in reversed(shape):
        inside = dtype.is_quantized and not strides
        strides.append(0 if inside else step)
        step *= size // values if inside else size
    return tuple(reversed(strides))


def leaf(storage: Storage, dtype: DType, shape: Shape, strides: Shape | None = None) -> Node:
    """Return a node over memory."""
    node = Node(dtype, shape, Device(storage.device))
    node.storage = storage
    if strides is not None:
        node.strides = _normal_strides(dtype, shape, strides)
    return node


def view(node: Node, shape: Shape, strides: Shape, offset: int = 0) -> Node:
    """Return another shape and strides over a node's memory, which need not be computed yet."""
    shown = Node(node.dtype, shape, node.device)
    shown.op = "VIEW"
    shown.base = node if node.base is None else node.base
    shown.offset = node.offset + offset
    shown.strides = _normal_strides(node.dtype, shape, strides)
    return shown


def _normal_strides(dtype: DType, shape: Shape, strides: Shape) -> Shape:
    """Return strides as ggml wants them where axes of one value leave a choice."""
    contiguous = row_major(dtype, shape)
    same = all(size == 1 or a == b for size, a, b in zip(shape, strides, contiguous, strict=True))
    return contiguous if same else strides


def operation(
    op: str,
    dtype: DType,
    shape: Shape,
    sources: Sequence[Node],
    numbers: Sequence[int] = (),
    values: Sequence[float] = (),
    device: Device | None = None,
) -> Node:
    """Return a node that is not computed yet.

    Args:
        op: The end of a LLCUDA_OP_ name.
        dtype: The type of the result.
        shape: The shape of the result.
        sources: The operands.
        numbers: The whole-number parameters, at most 8.
        values: The parameters that are floats, at most 8.
        device: Where it is computed; None = where the first operand is.
    """
    node = Node(dtype, shape, sources[0].device if device is None else device)
    node.op = op
    node.sources = tuple(sources)
    node.numbers = tuple(numbers)
    node.values = tuple(values)
    return node


# --- computing ---


def evaluate(nodes: Iterable[Node]) -> None:
    """Give each node its memory, with one graph for all nodes on one device."""
    by_device: dict[int, list[Node]] = {}
    for node in nodes:
        whole = node if node.base is None else node.base
        if whole.storage is None and whole not in by_device.setdefault(whole.device, []):
            by_device[whole.device].append(whole)
    for results in by_device.values():
        if results:
            _evaluate_graph(results)


def _evaluate_graph(nodes: list[Node]) -> None:
    results = {node: _allocate(node.device, node.dtype, node.shape) for node in nodes}
    with _changing:
        order = _in_order(nodes)
        used = [node.memory for node in order]
        places = {node: place for place, node in enumerate(order)}
        records = bytearray(node_record().size * len(order))
        for place, node in enumerate(order):
            _pack(records, place, node, places, results.get(node))
        ops = list(dict.fromkeys(node.op for node in order if node.op not in ("LEAF", "VIEW")))
    compute(nodes[0].device, records, len(order), " and ".join(ops[:3]).lower())
    with _changing:
        for node, storage in results.items():
            node.storage, node.sources, node.op = storage, (), "LEAF"
    del used  # until here another thread must not free what the graph reads


def _in_order(nodes: list[Node]) -> list[Node]:
    """Return nodes and all that they are computed from, sources before what uses them."""
    order: dict[Node, None] = {}
    stack = [(node, False) for node in reversed(nodes)]
    while stack:
        node, ready = stack.pop()
        if node in order:
            continue
        before = () if node.memory is not None else node.sources or (node.base,)
        if ready or not before:
            order[node] = None
        else:
            stack.append((node, True))
            stack += [(source, False) for source in reversed(before) if source is not None]
    return list(order)


def _pack(
    records: bytearray, place: int, node: Node, places: dict[Node, int], result: Storage | None
) -> None:
    """Write the C record of a node at a place of the graph."""
    known = node.memory is not None
    storage = node.memory if known else result
    sources = () if known else (node.sources if node.base is None else (node.base,))
    sizes = _ggml_sizes(node.shape)
    step = node.dtype.block[1]
    # Axes of one value, ours and those that fill up, go on beyond all values: ggml's kernel for
    # transposed copies takes a smaller stride for that of a matrix without gaps.
    ends = (size * stride for size, stride in zip(node.shape, node.strides, strict=True))
    beyond = max(size_of(node.dtype, node.shape), *ends, 0)
    strides = tuple(
        beyond if size == 1 and not node.is_contiguous else stride or step
        for size, stride in zip(reversed(node.shape), reversed(node.strides), strict=True)
    ) or (step,)
    strides += (beyond,) * (MAX_DIMS - len(strides))
    record = node_record()
    record.pack_into(
        records,
        place * record.size,
        constant("LLCUDA_OP_LEAF" if known else f"LLCUDA_OP_{node.op}"),
        node.dtype.ggml_type,
        *sizes,
        *strides,
        *(places[source] for source in sources),
        *(-1,) * (MAX_DIMS - len(sources)),
        *node.numbers,
        *(0,) * (8 - len(node.numbers)),
        *node.values,
        *(0.0,) * (8 - len(node.values)),
        0 if storage is None else storage.number,
        node.offset,
    )


def _ggml_sizes(shape: Shape) -> Shape:
    """Return a shape as ggml has it: four sizes, fastest first."""
    return (*reversed(shape), *(1,) * (MAX_DIMS - len(shape)))


def _allocate(device: Device, dtype: DType, shape: Shape) -> Storage:
    return allocate(device, dtype.ggml_type, _ggml_sizes(shape), size_of(dtype, shape))


def empty(dtype: DType, shape: Shape, device: Device) -> Node:
    """Return a node over new memory, whose values are not set.

    Raises:
        OutOfMemoryError: The device has too little memory.
    """
    return leaf(_allocate(device, dtype, shape), dtype, shape)


# --- at once or later ---


class Holder(Protocol):
    """An object that refers to a node as long as its values are needed; None when they are not."""

    node: Node | None


class _Pending(threading.local):
    """The block of `lazy` that a thread is in."""

    depth = 0

    def __init__(self) -> None:
        self.holders: list[weakref.ref[Any]] = []


_pending = _Pending()


@contextmanager
def lazy() -> Iterator[None]:
    """Compute the operations of this block at its end, as one graph for each device.

    Only tensors that are still referred to get memory of their own. ggml plans the memory of
    intermediate results, which may share it, and fuses operations on a GPU. Shapes and types are
    checked at once. `numpy()`, and whatever else needs values, computes the operations so far.
    After an exception in the block its tensors are computed when they are asked for. Blocks may be
    nested; the outermost one computes.
    """
    _pending.depth += 1
    try:
        yield
        if _pending.depth == 1:
            flush()
    finally:
        _pending.depth -= 1
        if not _pending.depth:
            _pending.holders.clear()


def hold(holder: Holder, node: Node) -> None:
    """Compute the node of a holder: now, or at the end of the block."""
    if _pending.depth:
        _pending.holders.append(weakref.ref(holder))
    elif node.memory is None:
        evaluate([node])


def flush() -> None:
    """Compute the nodes that are held in this thread's block."""
    holders = [reference() for reference in _pending.holders]
    _pending.holders.clear()
    evaluate([h.node for h in holders if h is not None and h.node is not None])


def memory_of(node: Node) -> Storage:
    """Return the memory of a node's values, which are computed if they are not."""
    if node.memory is None and _pending.depth:
        flush()
    if node.memory is None:
        evaluate([node])
    if node.memory is None:
        raise ClosedError("this tensor was not computed")
    return node.memory
