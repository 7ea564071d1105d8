"""Write the C source of llcuda.native._llama: cffi in API mode over build/cdef.

The declarations in cdef/ are what we use, no more; `...` leaves struct layouts and
constants to the compiler, which reads them from the pinned headers. CMake compiles the
result together with the shim (llcuda/native/shim). Usage: bindings.py OUTPUT.c
"""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SHIM = HERE.parent / "llcuda" / "native" / "shim"
# A file uses what is before it.
DECLARED = ("ggml", "ggml-tensor", "ggml-backend", "llama", "callbacks", "select")
SOURCES = [HERE / "cdef" / f"{name}.h" for name in DECLARED]
SOURCES += [SHIM / "shim.h", SHIM / "tensor" / "tensor.h"]


def main(output: Path) -> None:
    """Write the module's C source to `output`, unless it is there already, unchanged."""
    ffi = FFI()
    for source in SOURCES:
        ffi.cdef(source.read_text())
    includes = ("llama.h", "ggml-backend.h", "shim.h", "sampling/select.h", "tensor/tensor.h")
    headers = "".join(f'#include "{name}"\n' for name in includes)
    ffi.set_source("llcuda.native._llama", headers, py_limited_api=True)
    ffi.emit_c_code(str(output))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
