"""Load the native library once, at first use; its log, its errors, its devices.

`load()` imports the binding, checks that it runs with the libraries it was built with, loads
the backends that this machine can run and routes the C log to Python's `logging`. Everything
in this package calls it before it touches C.
"""

from __future__ import annotations

import importlib
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
    ForkError,
    LibraryError,
    LlcudaError,
    NoOutputError,
    NoRoomError,
    SamplingError,
    UnsupportedError,
)
from llcuda.native import callbacks

BUILD_COMMAND = "pip install --no-cache-dir ."

_lock = threading.RLock()
_loaded: tuple[Any, Any] | None = None
_forked = False
_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_backends: list[tuple[str, str]] = []


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


def _load() -> tuple[Any, Any]:
    try:
        binding = importlib.import_module("llcuda.native._llama")
    except ImportError as error:
        raise LibraryError(
            f"llcuda's native library cannot be loaded ({error}). "
            f"Build it with '{BUILD_COMMAND}' in llcuda's source folder."
        ) from error
    ffi, lib = binding.ffi, binding.lib
    folder = Path(str(binding.__file__)).parents[1] / "lib"
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
        lib.llcuda_clear_errors()
        if lib.ggml_backend_load(os.fsencode(path)) == ffi.NULL:
            _backends.append((path.name, errors(ffi, lib) or "failed to load"))
        else:
            _backends.append((path.name, "loaded"))


def backends() -> list[tuple[str, str]]:
    """Return (file, "loaded" or why not) for each backend in the package."""
    load()
    return list(_backends)


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
        lib.ggml_backend_dev_memory(device, free, total)
        texts = (
            lib.ggml_backend_dev_name(device),
            lib.ggml_backend_dev_description(device),
            lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(device)),
        )
        name, description, backend = (ffi.string(text).decode(errors="replace") for text in texts)
        kind = kinds.get(lib.ggml_backend_dev_type(device), "accelerator")
        found.append(DeviceInfo(name, description, kind, backend, free[0], total[0]))
    return found


def versions() -> dict[str, str]:
    """Return llama.cpp's version and commit, ggml's version, and the CUDA architectures built."""
    ffi, lib = load()
    return {
        "llama.cpp": ffi.string(lib.llama_version()).decode(),
        "commit": ffi.string(lib.ggml_commit()).decode(),
        "ggml": ffi.string(lib.ggml_version()).decode(),
        "cuda_architectures": ffi.string(lib.llcuda_cuda_architectures()).decode(),
        "folder": str(Path(ffi.string(lib.llcuda_library_path()).decode()).resolve().parent),
    }


# --- errors ---


def errors(ffi: Any, lib: Any, keep: bool = False) -> str:
    """Return this thread's last warnings and errors of the C log, and forget them unless `keep`."""
    text: str = ffi.string(lib.llcuda_errors()).decode(errors="replace")
    if not keep:
        lib.llcuda_clear_errors()
    return text


def fail(kind: type[LlcudaError], message: str) -> NoReturn:
    """Raise `kind` with `message` and the C log's last lines."""
    ffi, lib = load()
    lines = errors(ffi, lib)
    raise kind(f"{message}\n{lines}" if lines else message)


def check(status: int, message: Callable[[], str]) -> None:
    """Raise what a status of the shim stands for; `message` says what was asked."""
    if status >= 0 and status not in (1, 2):
        return
    _, lib = load()
    callbacks.reraise()
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
    }.get(status, (DecodeError, "llama.cpp failed"))
    fail(kind, f"{why}: {message()}")


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
