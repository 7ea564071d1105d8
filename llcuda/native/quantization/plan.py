"""What a quantization makes of each tensor, before it is done."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llcuda.errors import ModelError
from llcuda.files import local_path
from llcuda.hub.resolver import resolve
from llcuda.native import callbacks, library
from llcuda.native.gguf.check import check_file, check_tensors
from llcuda.native.gguf.types import GGMLType
from llcuda.native.quantization.file_types import (
    FILE_TYPES,
    MATRIX_TYPES,
    PLAIN,
    TENSOR_TYPES,
    check_file_type,
    needs_matrix,
)
from llcuda.native.quantization.imatrix import ImportanceMatrix
from llcuda.params import check_number, check_texts, default_threads, wrong_argument, wrong_value

BUFFER_SIZE = 2**22  # bytes of rows at once for each thread, so that they stay in its cache
MAX_TEXT = 127  # bytes of a text in the metadata that llama.cpp lets a caller set

_LINE = re.compile(
    r"\[ *\d+/ *\d+\] (\S+) +- \[([\d, ]+)\], type = +(\S+), size = .*?(?:-> .*\((\S+)\))?"
)


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor before and after a quantization.

    Attributes:
        name: The name.
        shape: Sizes, rows before columns.
        old_type: The type in the source.
        new_type: The type in the target.
        old_nbytes: Bytes in the source.
        nbytes: Bytes in the target.
        needs_matrix: Whether the new type needs an importance matrix.
    """

    name: str
    shape: tuple[int, ...]
    old_type: GGMLType
    new_type: GGMLType
    old_nbytes: int
    nbytes: int
    needs_matrix: bool


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """What a quantization makes of a model.

    Attributes:
        file_type: The type of the file.
        tensors: The tensors, in the order in which they are written.
    """

    file_type: str
    tensors: tuple[TensorPlan, ...]

    @property
    def old_nbytes(self) -> int:
        """Bytes of the source's tensors."""
        return sum(tensor.old_nbytes for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the target's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def needs_matrix(self) -> list[str]:
        """The names of the tensors that cannot be made without an importance matrix."""
        return [tensor.name for tensor in self.tensors if tensor.needs_matrix]

    @property
    def requantizes(self) -> list[str]:
        """The names of the tensors that are quantized already, and change their type."""
        return [
            t.name for t in self.tensors if t.old_type not in PLAIN and t.old_type != t.new_type
        ]


class QuantizeJob:
    """The arguments of a quantization, checked, and the structs that C gets.

    Args:
        source: The model, as `llcuda.hub.resolve` takes it.
        file_type: One of FILE_TYPES or MATRIX_TYPES.
        imatrix: An importance matrix, or its file.
        tensor_types: Types of single tensors, by regular expressions over their names.
        threads: Processors; None is all.

    Attributes:
        path (Path): The model file.
        file_type (str): The type, in upper case.
        matrix (ImportanceMatrix | None): The importance matrix.
        matrix_file (str): Its file; empty if it was given as an object.

    Raises:
        ModelNotFoundError: A file does not exist.
        ModelError: A file is damaged.
        ArgumentError: An argument is not allowed.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        file_type: str,
        imatrix: ImportanceMatrix | str | os.PathLike[str] | None,
        tensor_types: Mapping[str, str] | None,
        threads: int | None = None,
    ) -> None:
        self.path = resolve(source, parameter="source")
        self.file_type = check_file_type(file_type, (*FILE_TYPES, *MATRIX_TYPES))
        self.overrides = _check_overrides(
            {} if tensor_types is None else tensor_types, self.file_type
        )
        self.threads = threads
        if threads is not None:
            check_number("threads", threads, "int", 1, 512)
        check_file(self.path)
        self._ffi, self._lib = library.load()
        library.sync_log_level(self._lib)
        check_tensors(self.path)
        for pattern, _ in self.overrides:
            if self._lib.llcuda_search(pattern.encode(), self._ffi.NULL, 0, self._ffi.NULL):
                raise wrong_argument("tensor_types", f"{pattern!r} is not a regular expression")
        self.matrix_file = ""
        if imatrix is not None and not isinstance(imatrix, ImportanceMatrix):
            self.matrix_file = local_path(imatrix, "imatrix")
            imatrix = ImportanceMatrix.load(imatrix)
        elif imatrix is not None and (name := imatrix.implausible()):
            raise wrong_argument("imatrix", f"{name} has values that are not sums of squares")
        self.matrix = imatrix
        self._kept: list[Any] = []  # what the parameters point to

    def c_params(self, requantize: bool = False) -> Any:
        """Return llama_model_quantize_params, valid as long as this object.

        Args:
            requantize: Allow weights that are quantized already.
        """
        ffi, lib = self._ffi, self._lib
        params = lib.llama_model_quantize_default_params()
        params.nthread = self.threads or default_threads()
        params.max_buf_size = BUFFER_SIZE * params.nthread
        params.ftype = _number(lib, self.file_type)
        params.allow_requantize = requantize
        overrides = [(self._text(name), int(kind)) for name, kind in self.overrides]
        if overrides:
            array = ffi.new("struct llama_model_tensor_override[]", [*overrides, (ffi.NULL, 0)])
            params.tt_overrides = self._keep(array)
        if self.matrix is not None:
            params.imatrix = self._matrix_data(self.matrix)
            params.kv_overrides = self._matrix_facts(self.matrix)
        return params

    def _keep(self, value: Any) -> Any:
        self._kept.append(value)
        return value

    def _text(self, text: str) -> Any:
        return self._keep(self._ffi.new("char[]", text.encode()))

    def _matrix_data(self, matrix: ImportanceMatrix) -> Any:
        rows: list[Any] = []
        for name in matrix.entries:
            means = self._keep(matrix.means(name))
            rows.append((self._text(name), self._ffi.from_buffer("float[]", means), means.size))
        end = (self._ffi.NULL, self._ffi.NULL, 0)
        return self._keep(self._ffi.new("struct llama_model_imatrix_data[]", [*rows, end]))

    def _matrix_facts(self, matrix: ImportanceMatrix) -> Any:
        """Return the metadata that llama.cpp's own tool leaves in a file made with a matrix."""
        facts: dict[str, str | int] = {
            "file": self.matrix_file,
            "dataset": matrix.datasets[0] if matrix.datasets else "",
            "entries_count": len(matrix.entries),
            "chunks_count": matrix.chunks,
        }
        array = self._ffi.new("struct llama_model_kv_override[]", len(facts) + 1)
        for item, (key, value) in zip(array, facts.items(), strict=False):
            item.key = f"quantize.imatrix.{key}".encode()
            if isinstance(value, int):
                item.tag, item.val_i64 = self._lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
            else:
                item.tag = self._lib.LLAMA_KV_OVERRIDE_TYPE_STR
                item.val_str = value.encode()[:MAX_TEXT].decode(errors="ignore").encode()
        return self._keep(array)

    def plan(self) -> QuantizePlan:
        """Return what llama.cpp would make of the tensors.

        Raises:
            ModelError: The model cannot be quantized.
            ArgumentError: A name in tensor_types finds no tensor, or none that is quantized.
        """
        with callbacks.without_repeated_warnings():
            lines = self._lib.llcuda_quantize_plan(os.fsencode(self.path), self.c_params())
        if lines == self._ffi.NULL:
            library.fail(ModelError, f"cannot quantize {self.path}")
        text = self._ffi.string(lines).decode(errors="replace")
        plan = QuantizePlan(self.file_type, tuple(map(self._read_line, text.splitlines())))
        self._check_names(plan)
        return plan

    def _read_line(self, line: str) -> TensorPlan:
        match = _LINE.fullmatch(line)
        if not match:
            raise ModelError(f"{self.path} has a tensor that cannot be quantized: {line}")
        name, sizes, old, new = match.groups()
        columns, *others = map(int, sizes.split(","))
        rows = others[0] * others[1] * others[2]
        while others and others[-1] == 1:
            others.pop()
        types = GGMLType[old.upper()], GGMLType[(new or old).upper()]
        before, after = (rows * self._lib.llcuda_row_size(int(kind), columns) for kind in types)
        needs = needs_matrix(name, types[1], self.file_type)
        return TensorPlan(name, (*reversed(others), columns), *types, before, after, needs)

    def _check_names(self, plan: QuantizePlan) -> None:
        ffi, names = self._ffi, [tensor.name for tensor in plan.tensors]
        texts = [ffi.new("char[]", name.encode()) for name in names]
        flags = ffi.new("bool[]", len(names))
        left = set(names)
        for pattern, kind in self.overrides:
            self._lib.llcuda_search(pattern.encode(), texts, len(texts), flags)
            hits = {name for name, hit in zip(names, flags, strict=True) if hit}
            if not hits:
                near = difflib.get_close_matches(pattern, names, 3, 0.5)
                hint = f"there are {', '.join(near)}" if near else None
                raise wrong_argument("tensor_types", f"no tensor is called {pattern!r}", hint)
            taken = [t for t in plan.tensors if t.name in hits & left]
            if all(t.new_type != kind and t.new_type in PLAIN for t in taken):
                raise wrong_argument(
                    "tensor_types",
                    f"{pattern!r} only finds tensors that are never quantized, or "
                    "that an expression before it has found",
                )
            left -= hits


def _check_overrides(tensor_types: Any, file_type: str) -> list[tuple[str, GGMLType]]:
    if not isinstance(tensor_types, Mapping):
        raise wrong_value("tensor_types", tensor_types, "expected a mapping of name to type")
    check_texts("tensor_types", list(tensor_types))
    if tensor_types and file_type in ("F32", "F16", "BF16"):
        raise wrong_argument(
            "tensor_types",
            f"{file_type} is one type for all tensors",
            remedy="choose a quantized type",
        )
    return [
        (name, GGMLType[check_file_type(kind, TENSOR_TYPES, "tensor_types")])
        for name, kind in tensor_types.items()
    ]


def file_type_name(number: int) -> str | None:
    """Return the name of a file's type, such as "Q4_K_M"; None for one that `quantize` has not.

    Args:
        number: `general.file_type` of the file's metadata.
    """
    _, lib = library.load()
    names = (*FILE_TYPES, *MATRIX_TYPES)
    return next((name for name in names if _number(lib, name) == number), None)


def _number(lib: Any, file_type: str) -> int:
    kind = "ALL" if file_type == "F32" else "MOSTLY"
    number: int = getattr(lib, f"LLAMA_FTYPE_{kind}_{file_type}")
    return number
