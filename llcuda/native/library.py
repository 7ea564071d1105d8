"""Load the native library once, at first use; its log, its errors, its devices.

`load()` imports the binding, checks that it runs with the libraries it was built with, loads
the backends that this machine can run and routes the C log to Python's `logging`. Everything
in this package calls it before it touches C.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llcuda.errors import (
    BatchError,
    ClosedError,
    ConcurrencyError,
    DecodeAbortedError,
    DecodeError,
    DeviceLostError,
    ForkError,
    LibraryError,
    LlcudaError,
    NoOutputError,
    NoRoomError,
    OutOfMemoryError,
    SamplingError,
    UnsupportedError,
)
from llcuda.native import callbacks
from llcuda.native.cuda_build import CudaBuild, Remark, no_gpu, parse
from llcuda.native.oom import available_memory, oom_message

BUILD_COMMAND = "pip install --no-cache-dir ."
CUDA_LIBRARY = "libggml-cuda.so"
logger = logging.getLogger("llcuda")

_lock = threading.RLock()
_loaded: tuple[Any, Any] | None = None
_forked = False
_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_backends: list[tuple[str, str]] = []
_idle: list[Remark] = []  # why the CUDA backend has no GPU


def load() -> tuple[Any, Any]:
    """Return cffi's (ffi, lib), loading the library at the first call.

    Raises LibraryError when it is missing or another package's, ForkError in a forked child.
    """
    global _loaded
    if _loaded is not None:
        return _loaded
    if _forked:
        raise ForkError(
            "llcuda was loaded before this process was forked, and its threads do not exist here. "
            "Start workers with multiprocessing's 'spawn', or load models after the fork only."
        )
    with _lock:
        if _loaded is None:
            _loaded = _load()
    return _loaded


def _binding() -> tuple[Any, Any, Path]:
    """Return (ffi, lib, the folder of the libraries), with no backend loaded."""
    try:
        binding = importlib.import_module("llcuda.native._llama")
    except ImportError as error:
        raise LibraryError(
            f"llcuda's native library cannot be loaded ({error}). "
            f"Build it with '{BUILD_COMMAND}' in llcuda's source folder."
        ) from error
    return binding.ffi, binding.lib, Path(str(binding.__file__)).parents[1] / "lib"


def installation() -> tuple[Path, str]:
    """Return the folder of the libraries and llama.cpp's commit; loads no backend."""
    ffi, lib, folder = _binding()
    return folder, ffi.string(lib.llcuda_commit()).decode()


def cuda_build() -> CudaBuild | None:
    """Return what the package's CUDA backend is; None without one. Loads no backend.

    Raises LibraryError when the native library is missing.
    """
    ffi, lib, folder = _binding()
    if not (folder / CUDA_LIBRARY).is_file():
        return None
    names = lib.llcuda_cuda_version(), lib.llcuda_cuda_architectures()
    return parse(*(ffi.string(name).decode() for name in names))


def _load() -> tuple[Any, Any]:
    ffi, lib, folder = _binding()
    found = Path(ffi.string(lib.llcuda_library_path()).decode()).resolve()
    if found.parent != folder.resolve():
        raise LibraryError(
            f"another package's libllama is loaded in this process: {found}. "
            f"Import llcuda before it, or use a process of its own; ours is in {folder}."
        )
    built, present = (ffi.string(f()).decode() for f in (lib.llcuda_commit, lib.ggml_commit))
    if built != present:
        raise LibraryError(
            f"the binding was built for llama.cpp {built}, but {found.parent} holds {present}. "
            f"Build both again with '{BUILD_COMMAND}' in llcuda's source folder."
        )
    callbacks.define(ffi)
    lib.llcuda_init(threading.main_thread().ident or 0)
    sync_log_level(lib)
    _load_backends(ffi, lib, folder)
    os.register_at_fork(after_in_child=_after_fork)
    return ffi, lib


def sync_log_level(lib: Any) -> None:
    """Let C deliver only the lines that the logger takes."""
    level = callbacks.logger.getEffectiveLevel()
    taken = [ggml for ggml, python in callbacks.LOG_LEVELS.items() if python >= level]
    lib.llcuda_log_level(min(taken, default=max(callbacks.LOG_LEVELS) + 1))


# --- backends ---

# What the name of a CPU variant demands beyond ggml's own score, which does not ask the
# operating system. On a virtual machine that lists AMX without permitting it, the first
# matrix product would end the process.
_DEMANDS = {
    "sandybridge": "avx", "ivybridge": "avx", "piledriver": "avx", "haswell": "avx",
    "alderlake": "avx", "skylakex": "avx512", "cannonlake": "avx512", "cascadelake": "avx512",
    "icelake": "avx512", "cooperlake": "avx512", "zen4": "avx512", "sapphirerapids": "amx",
}  # fmt: skip


def _load_backends(ffi: Any, lib: Any, folder: Path) -> None:
    """Load the best CPU variant that really runs, and every other backend that loads."""
    scores = {}
    for path in sorted(folder.glob("libggml-cpu*.so")):
        demand = _DEMANDS.get(path.stem.removeprefix("libggml-cpu-"))
        score = lib.llcuda_backend_score(os.fsencode(path))
        if score > 0 and (demand is None or lib.llcuda_cpu_permits(demand.encode())):
            scores[path] = score
        else:
            _backends.append((path.name, "does not run on this processor"))
    if not scores:
        raise LibraryError(
            f"no CPU backend in {folder} runs on this processor; it was built on another machine. "
            f"Build for this one with '{BUILD_COMMAND}' in llcuda's source folder."
        )
    others = [p for p in sorted(folder.glob("libggml-*.so")) if "-cpu" not in p.name]
    for path in [*(p for p in others if p.name != "libggml-base.so"), max(scores, key=scores.get)]:  # type: ignore[arg-type]
        worked = lib.llcuda_backend_load(os.fsencode(path))
        text = errors(ffi, lib)
        _backends.append((path.name, "loaded" if worked else text or "failed to load"))
        if path.name == CUDA_LIBRARY and not lib.ggml_backend_dev_count():
            _idle.append(no_gpu(text))
            logger.warning("%s; the CPU is used", _idle[0])


def backends() -> list[tuple[str, str]]:
    """Return (file, "loaded" or why not) for each backend in the package."""
    load()
    return list(_backends)


def why_no_gpu() -> Remark | None:
    """Return why the CUDA backend in the package has no GPU; None without one, or when it has."""
    load()
    return _idle[0] if _idle else None


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device that ggml sees: its name, what it is, "cpu" or "gpu", and its memory in bytes."""

    name: str
    description: str
    kind: str
    backend: str
    free_memory: int
    total_memory: int


def devices() -> list[DeviceInfo]:
    """Return the devices of all loaded backends."""
    ffi, lib = load()
    kinds = {
        lib.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
        lib.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
        lib.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
    }
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        if lib.llcuda_memory_now(device, free, total):
            raise _lost(errors(ffi, lib))
        texts = (
            lib.ggml_backend_dev_name(device),
            lib.ggml_backend_dev_description(device),
            lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(device)),
        )
        name, description, backend = (ffi.string(text).decode(errors="replace") for text in texts)
        kind = kinds.get(lib.ggml_backend_dev_type(device), "accelerator")
        left = available_memory() if kind == "cpu" else free[0]
        found.append(DeviceInfo(name, description, kind, backend, left, total[0]))
    return found


def versions() -> dict[str, str]:
    """Return llama.cpp's version and commit, ggml's version, and the folder of the libraries."""
    ffi, lib = load()
    return {
        "llama.cpp": ffi.string(lib.llama_version()).decode(),
        "commit": ffi.string(lib.ggml_commit()).decode(),
        "ggml": ffi.string(lib.ggml_version()).decode(),
        "folder": str(Path(ffi.string(lib.llcuda_library_path()).decode()).resolve().parent),
    }


def features() -> dict[str, dict[str, str]]:
    """Return what each loaded backend says of its build, e.g. {"CUDA": {"ARCHS": "750", ...}}."""
    ffi, lib = load()
    found: dict[str, dict[str, str]] = {}
    backend = ""
    for part in ffi.string(lib.llama_print_system_info()).decode().split(" | ")[:-1]:
        *backends, feature = part.split(" : ")
        backend = backends[-1] if backends else backend
        name, _, value = feature.partition(" = ")
        found.setdefault(backend, {})[name] = value
    return found


# --- errors ---


def errors(ffi: Any, lib: Any, keep: bool = False) -> str:
    """Return this thread's last warnings and errors of the C log, and forget them unless `keep`."""
    text: str = ffi.string(lib.llcuda_errors()).decode(errors="replace")
    if not keep:
        lib.llcuda_clear_errors()
    return text


def fail(kind: type[LlcudaError], message: str, lines: str | None = None) -> NoReturn:
    """Raise `kind` with `message` and the C log's last lines, or `lines`.

    Where these say that memory is short, OutOfMemoryError, which says how much is free; after a
    fault of a GPU DeviceLostError.
    """
    ffi, lib = load()
    lines = errors(ffi, lib) if lines is None else lines
    if "cuda" in lines.lower() and not lib.llcuda_gpus_answer():
        raise _lost(lines)
    if reason := oom_message(lines, kind, _free_memory):
        kind, message = OutOfMemoryError, f"{reason} ({message})"
    raise kind(f"{message}\n{lines}" if lines else message)


def _free_memory() -> list[tuple[str, int, int]]:
    """Return the name, the free and the total bytes of each GPU, or of the machine without one."""
    found = [(d.name, d.free_memory, d.total_memory, d.kind) for d in devices()]
    gpus = [device[:3] for device in found if device[3] != "cpu"]
    return gpus or [device[:3] for device in found]


def _lost(lines: str) -> DeviceLostError:
    return DeviceLostError(
        "a GPU failed, and this process cannot use it any more: save what there is, and start "
        f"another process\n{lines}"
    )


def check(status: int, message: Callable[[], str]) -> None:
    """Raise what a status of the shim stands for; `message` says what was asked."""
    if status >= 0 and status not in (1, 2):
        return
    ffi, lib = load()
    callbacks.reraise()
    lines = errors(ffi, lib)  # now: `message` may call C
    if status == lib.LLCUDA_LOST and not lib.llcuda_gpus_answer():
        raise _lost(lines)
    kind, why = {
        lib.LLCUDA_NO_ROOM: (NoRoomError, "no free KV cells"),
        lib.LLCUDA_ABORTED: (DecodeAbortedError, "cancelled"),
        lib.LLCUDA_INVALID_BATCH: (BatchError, "llama.cpp rejected the batch"),
        lib.LLCUDA_BUSY: (ConcurrencyError, "another thread is inside this context"),
        lib.LLCUDA_CLOSED: (ClosedError, "the context is closed"),
        lib.LLCUDA_BAD_TOKEN: (BatchError, "a token is outside the vocabulary"),
        lib.LLCUDA_BAD_SEQUENCE: (BatchError, "unknown sequence"),
        lib.LLCUDA_BAD_POSITION: (BatchError, "position out of range"),
        lib.LLCUDA_TOO_MANY_TOKENS: (BatchError, "more tokens than one batch holds"),
        lib.LLCUDA_TOO_MANY_OUTPUTS: (BatchError, "more rows of logits than outputs_max"),
        lib.LLCUDA_NO_OUTPUT: (NoOutputError, "not computed"),
        lib.LLCUDA_NO_CANDIDATES: (SamplingError, "no candidate is left"),
        lib.LLCUDA_UNSUPPORTED: (UnsupportedError, "this memory cannot do that"),
        lib.LLCUDA_LOST: (DecodeError, "this context failed before: create another"),
    }.get(status, (DecodeError, "llama.cpp failed"))
    fail(kind, f"{why}: {message()}", lines)


# --- handles ---


class Owner:
    """Owns one C pointer; freed with the last reference. A child's owner refers to its parent's."""

    __slots__ = ("__weakref__", "finalizer", "parent", "pointer")

    def __init__(self, pointer: Any, free: Callable[[Any], Any], parent: Owner | None) -> None:
        self.pointer = pointer
        self.parent = parent
        # The finalizer holds the parent too: a child's memory goes before its parent's.
        self.finalizer = weakref.finalize(self, _free, free, pointer, parent)
        _owners.add(self)


def _free(free: Callable[[Any], Any], pointer: Any, parent: Owner | None) -> None:
    free(pointer)


class Handle:
    """What a Python object holds of its C object: an owner, until close().

    A method takes `owner` into a local variable, so that a close() in another thread cannot free
    the pointer under a running call.
    """

    __slots__ = ("_name", "_owner", "_stands_on")

    def __init__(
        self,
        name: str,
        pointer: Any,
        free: Callable[[Any], Any],
        parent: Owner | None = None,
        stands_on: Handle | None = None,
    ) -> None:
        self._name = name
        self._owner: Owner | None = Owner(pointer, free, parent)
        self._stands_on = stands_on

    @property
    def owner(self) -> Owner:
        """The owner; ClosedError after close(), here or of what this stands on; ForkError."""
        if self._stands_on is not None and self._stands_on._owner is None:
            raise ClosedError(f"the {self._stands_on._name} of this {self._name} is closed")
        return self.held

    @property
    def held(self) -> Owner:
        """The owner, also when what this stands on is closed."""
        owner = self._owner
        if owner is None:
            raise ClosedError(f"this {self._name} is closed")
        if owner.pointer is None:
            raise ForkError(f"this {self._name} was loaded before the fork of this process")
        return owner

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._owner is None

    def close(self) -> None:
        """Let go of the owner; its pointer is freed when no child and no running call needs it."""
        self._owner = None


def _after_fork() -> None:
    """Leave every pointer to the parent process: its threads, which they need, are not here."""
    global _loaded, _forked
    _forked, _loaded = True, None
    for owner in list(_owners):
        owner.finalizer.detach()
        owner.pointer = None
