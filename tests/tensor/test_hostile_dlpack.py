"""DLPack capsules that hold what no tensor can be, from owners that say what is not true."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llcuda.core import Tensor
from llcuda.errors import ArgumentError


class DLTensor(ctypes.Structure):
    """DLPack's struct of this name."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", DLTensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


KEPT: list[Any] = []  # the owners: their capsules have no deleter, so nobody says when they may go
new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))  # fmt: skip


class Owner:
    """An object with `__dlpack__` whose capsule has any fields.

    Args:
        versioned: Whether the capsule is one of DLPack 1.0.
        version: The version in the capsule.
        device: What `__dlpack_device__` returns.
        name: The name of the capsule.
        fields: Fields of the DLTensor that differ from those of 2 x 3 values of Float32.
    """

    def __init__(
        self,
        versioned: bool = True,
        version: tuple[int, int] = (1, 0),
        device: Any = (1, 0),
        name: bytes = b"",
        **fields: Any,
    ) -> None:
        KEPT.append(self)
        self.memory = np.arange(64, dtype=np.float32)
        self.device = device
        self.managed = Versioned(*version) if versioned else Managed()
        self.name = name or (b"dltensor_versioned" if versioned else b"dltensor")
        given = {
            "data": self.memory.ctypes.data, "device_type": 1, "ndim": 2, "code": 2, "bits": 32,
            "lanes": 1, "shape": (2, 3), "strides": (3, 1), **fields,
        }  # fmt: skip
        for field, value in given.items():
            if isinstance(value, tuple):
                value = (ctypes.c_int64 * max(1, len(value)))(*value)
            setattr(self.managed.tensor, field, value)

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **_: Any) -> Any:
        return new_capsule(ctypes.addressof(self.managed), self.name, None)


@pytest.mark.parametrize("versioned", [True, False])
def test_a_capsule_becomes_a_tensor(versioned: bool) -> None:
    """The fields above are those of a tensor."""
    owner = Owner(versioned, strides=None)
    tensor = Tensor.from_dlpack(owner)
    np.testing.assert_array_equal(owner.memory[:6].reshape(2, 3), tensor.numpy())
    strided = Tensor.from_dlpack(Owner(versioned, strides=(10, 2), byte_offset=4))
    np.testing.assert_array_equal([[1, 3, 5], [11, 13, 15]], strided.numpy())
    scalar = Tensor.from_dlpack(Owner(versioned, ndim=0, shape=None, strides=None))
    assert ([], 0.0) == (scalar.shape, scalar.item())


def test_the_stride_of_an_axis_of_one_value_means_nothing() -> None:
    """Whatever it is: no value has a neighbour there."""
    for stride in (0, -1, 2**62, -(2**63)):
        tensor = Tensor.from_dlpack(Owner(shape=(1, 3), strides=(stride, 1)))
        np.testing.assert_array_equal([[0, 1, 2]], tensor.numpy())


@pytest.mark.parametrize("versioned", [True, False], ids=["versioned", "plain"])
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"ndim": -1}, "0 to 64 axes, got -1"),
        ({"ndim": 2**31 - 1}, "0 to 64 axes"),
        ({"ndim": 5, "shape": (1,) * 5, "strides": None}, "at most 4 axes"),
        ({"shape": None}, "expected a shape"),
        ({"shape": (2, -3)}, "is empty"),
        ({"shape": (0, 3)}, "is empty"),
        ({"shape": (2**62, 2**62), "strides": None}, "larger than memory"),
        ({"shape": (2**63 - 1, 2)}, "larger than memory"),
        ({"strides": (-3, 1)}, "strides of more than 0"),
        ({"strides": (0, 1)}, "strides of more than 0"),
        ({"strides": (2**63 - 1, 1)}, "larger than memory"),
        ({"data": None}, "is empty, or not aligned"),
        ({"data": None, "byte_offset": 4096}, "is empty, or not aligned"),
        ({"byte_offset": 1}, "not aligned"),
        ({"byte_offset": 2**64 - 4}, "larger than memory"),
        ({"device_type": 2}, r"lies on DLPack's device \(2, 0\)"),
        ({"device_type": 7}, r"lies on DLPack's device \(7, 0\)"),
        ({"bits": 0}, "whole bytes"),
        ({"bits": 4}, "whole bytes"),
        ({"lanes": 0}, "whole bytes"),
        ({"lanes": 4}, "whole bytes"),
        ({"code": 77}, "expected one of the types"),
        ({"bits": 64}, "expected one of the types"),
        ({"name": b"used_dltensor"}, "that nobody has taken"),
        ({"name": b"other"}, "that nobody has taken"),
        ({"device": (7, 0)}, r"got DLPack's device \(7, 0\)"),
        ({"device": (2, 99)}, "device"),
        ({"device": (2, -1)}, "device"),
        ({"device": (1,)}, "two integers"),
        ({"device": None}, "two integers"),
        ({"device": ("1", "0")}, "two integers"),
        ({"device": (2**70, 0)}, "got DLPack's device"),
    ],
    ids=str,
)
def test_what_no_tensor_can_be(fields: dict[str, Any], says: str, versioned: bool) -> None:
    """An ArgumentError that names the source; nothing is read."""
    with pytest.raises(ArgumentError, match=says):
        Tensor.from_dlpack(Owner(versioned, **fields))


def test_a_version_that_is_not_known() -> None:
    """DLPack 2 may have other fields."""
    with pytest.raises(ArgumentError, match=r"expected DLPack 1\.x, got 2\.5"):
        Tensor.from_dlpack(Owner(version=(2, 5)))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: Tensor.from_dlpack(t, copy="yes"), "copy='yes': expected True, False or None"),
        (lambda t: t.__dlpack__(max_version=1), "max_version=1: expected two integers"),
        (lambda t: t.__dlpack__(max_version=()), "max_version"),
        (lambda t: t.__dlpack__(max_version=("1", "0")), "max_version"),
        (lambda t: t.__dlpack__(dl_device="cpu"), "dl_device='cpu': expected two integers"),
    ],
    ids=range(5),
)
def test_wrong_arguments_of_the_protocol(call: Callable[[Tensor], Any], says: str) -> None:
    """The parameter is named."""
    with pytest.raises(ArgumentError, match=says):
        call(Tensor.zeros([2], device="cpu"))
