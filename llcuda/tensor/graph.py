"""What a tensor is made of: memory, or an operation on other nodes that is yet to be computed.

`compute` turns any number of nodes into one graph of ggml. Whether that is done at once or later is
`lazy`'s business.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from llcuda.errors import ClosedError
from llcuda.native import tensor as native
from llcuda.native.tensor import Storage
from llcuda.tensor.dtype import Device, DType

MAX_DIMS = 4
_changing = threading.Lock()  # nodes become memory all at once
Shape = tuple[int, ...]


class Node:
    """A tensor's shape and type, and either its memory, its base, or its sources.

    shape, strides: as numpy has them, strides in bytes; 0 along the axis of a quantised type's
    blocks, where single values have no address. offset: bytes, in the memory or in the base. A base
    is never a view.
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
        """Where the values lie, once they are computed."""
        return self.storage if self.base is None else self.base.storage

    @property
    def is_contiguous(self) -> bool:
        """Whether the values lie row by row without gaps."""
        return self.strides == row_major(self.dtype, self.shape)

    @property
    def numel(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the values without gaps."""
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
        node.strides = _settled(dtype, shape, strides)
    return node


def view(node: Node, shape: Shape, strides: Shape, offset: int = 0) -> Node:
    """Return other shape and strides over a node's memory, which need not be computed yet."""
    made = Node(node.dtype, shape, node.device)
    made.op = "VIEW"
    made.base = node if node.base is None else node.base
    made.offset = node.offset + offset
    made.strides = _settled(node.dtype, shape, strides)
    return made


def _settled(dtype: DType, shape: Shape, strides: Shape) -> Shape:
    """Return strides as ggml wants them where axes of one value leave a choice."""
    tight = row_major(dtype, shape)
    same = all(size == 1 or a == b for size, a, b in zip(shape, strides, tight, strict=True))
    return tight if same else strides


def operation(
    op: str,
    dtype: DType,
    shape: Shape,
    sources: Sequence[Node],
    numbers: Sequence[int] = (),
    values: Sequence[float] = (),
    device: Device | None = None,
) -> Node:
    """Return a node that is yet to be computed. op: the end of a LLCUDA_OP_ name."""
    made = Node(dtype, shape, sources[0].device if device is None else device)
    made.op = op
    made.sources = tuple(sources)
    made.numbers = tuple(numbers)
    made.values = tuple(values)
    return made


# --- computing ---


def compute(wanted: Iterable[Node]) -> None:
    """Give each node its memory, with one graph for all that are on one device."""
    by_device: dict[int, list[Node]] = {}
    for node in wanted:
        whole = node if node.base is None else node.base
        if whole.storage is None and whole not in by_device.setdefault(whole.device, []):
            by_device[whole.device].append(whole)
    for nodes in by_device.values():
        if nodes:
            _compute(nodes)


def _compute(wanted: list[Node]) -> None:
    results = {node: _room(node.device, node.dtype, node.shape) for node in wanted}
    with _changing:
        order = _in_order(wanted)
        used = [node.memory for node in order]
        places = {node: place for place, node in enumerate(order)}
        records = bytearray(native.node_record().size * len(order))
        for place, node in enumerate(order):
            _pack(records, place, node, places, results.get(node))
        names = list(dict.fromkeys(node.op for node in order if node.op not in ("LEAF", "VIEW")))
    native.compute(wanted[0].device, records, len(order), " and ".join(names[:3]).lower())
    with _changing:
        for node, storage in results.items():
            node.storage, node.sources, node.op = storage, (), "LEAF"
    del used  # until here another thread must not free what the graph reads


def _in_order(wanted: list[Node]) -> list[Node]:
    """Return all that must be known for `wanted`, sources before what uses them."""
    order: dict[Node, None] = {}
    stack = [(node, False) for node in reversed(wanted)]
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
    known = node.memory is not None
    storage = node.memory if known else result
    sources = () if known else (node.sources if node.base is None else (node.base,))
    rest = MAX_DIMS - len(node.shape)
    sizes = (*reversed(node.shape), *(1,) * rest)
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
    record = native.node_record()
    record.pack_into(
        records,
        place * record.size,
        native.constant("LLCUDA_OP_LEAF" if known else f"LLCUDA_OP_{node.op}"),
        node.dtype.number,
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


def _room(device: Device, dtype: DType, shape: Shape) -> Storage:
    sizes = (*reversed(shape), *(1,) * (MAX_DIMS - len(shape)))
    return native.allocate(device, dtype.number, sizes, size_of(dtype, shape))


def empty(dtype: DType, shape: Shape, device: Device) -> Node:
    """Return a node over new memory that is not set; OutOfMemoryError."""
    return leaf(_room(device, dtype, shape), dtype, shape)


# --- at once or later ---


class Holder(Protocol):
    """What a user holds of a node."""

    _node: Node | None


class _Later(threading.local):
    depth = 0

    def __init__(self) -> None:
        self.held: list[weakref.ref[Any]] = []


_later = _Later()


@contextmanager
def lazy() -> Iterator[None]:
    """Compute what is done in this block at its end, as one graph a device.

    Only tensors that are still referred to get memory of their own; what lies between is planned by
    ggml, which lets results share memory and, on a GPU, fuses operations. Shapes and types are
    checked at once, and `numpy()` and whatever else needs values computes all so far. After an
    exception in the block its tensors are computed when they are asked for.
    """
    _later.depth += 1
    try:
        yield
        if _later.depth == 1:
            flush()
    finally:
        _later.depth -= 1
        if not _later.depth:
            _later.held.clear()


def hold(holder: Holder, node: Node) -> None:
    """Compute `node`, which `holder` refers to: now, or at the end of the block."""
    if _later.depth:
        _later.held.append(weakref.ref(holder))
    elif node.memory is None:
        compute([node])


def flush() -> None:
    """Compute what is held of this thread's block."""
    holders = [reference() for reference in _later.held]
    _later.held.clear()
    compute([h._node for h in holders if h is not None and h._node is not None])


def memory_of(node: Node) -> Storage:
    """Return where a node's values lie, computed if need be."""
    if node.memory is None and _later.depth:
        flush()
    if node.memory is None:
        compute([node])
    if node.memory is None:
        raise ClosedError("this tensor was not computed")
    return node.memory
