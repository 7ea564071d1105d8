"""The native library: loaded once, at first use; its log, its errors, its devices, its handles.

`load` imports the binding, checks that it runs with the libraries that it was built with, loads the
backends that this machine can run and sends the C log to Python's `logging`. Everything in
llcuda.native calls it before it touches C.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
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
    ModelChangedError,
    NoOutputError,
    NoRoomError,
    OutOfMemoryError,
    SamplingError,
    UnsupportedError,
)
from llcuda.native import callbacks, cuda_libraries
from llcuda.native.cuda_build import (
    CudaBuild,
    Driver,
    Remark,
    RuntimeLibraries,
    gpu_problem,
    loading_problem,
    no_gpu,
    parse,
)
from llcuda.native.oom import available_memory, oom_message
from llcuda.native.shared_objects import is_truncated

BUILD_COMMAND = "pip install --no-cache-dir ."
BINDING = "llcuda.native._llama"
CUDA_LIBRARY = "libggml-cuda.so"
CUDA = "CUDA"  # ggml's name of that backend
NOT_NUMBERS = "the logits are not numbers (NaN), because weights are damaged or overflow their type"
logger = logging.getLogger("llcuda")

_lock = threading.RLock()
EXIT_SECONDS = 30  # for C functions of daemon threads to end

_loaded: tuple[Any, Any] | None = None
_forked = False
_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_backends: list[tuple[str, str]] = []
_why_no_gpu: list[Remark] = []  # why the CUDA backend has no GPU
_refused: dict[str, Remark] = {}  # GPUs that llcuda cannot use, by ggml's name, and why
_cuda_libraries = RuntimeLibraries()


def load() -> tuple[Any, Any]:
    """Return cffi's ffi and lib; the first call loads the library.

    Raises:
        LibraryError: The library is missing, cannot run here, or is another package's.
        ForkError: This process was forked from one that had loaded it.
    """
    global _loaded
    callbacks.park_at_exit()
    if _loaded is not None:
        return _loaded
    if _forked:
        raise ForkError(
            "llcuda was loaded before this process was forked, and its threads do not exist here; "
            "start workers with multiprocessing's 'spawn', or load models, and look at devices and "
            "sizes, only after the fork"
        )
    with _lock:
        if _loaded is None:
            _loaded = open_library()
    return _loaded


def _binding() -> tuple[Any, Any, Path]:
    """Return ffi, lib and the folder of the libraries; load no backend."""
    if BINDING not in sys.modules:
        _check_files()
    try:
        binding = importlib.import_module(BINDING)
    except ImportError as error:
        raise LibraryError(
            f"llcuda's native library cannot be loaded ({error}); "
            f"build it with '{BUILD_COMMAND}' in llcuda's source folder, or install a wheel again"
        ) from error
    return binding.ffi, binding.lib, Path(str(binding.__file__)).parents[1] / "lib"


def _check_files() -> None:
    """Raise LibraryError if a library is truncated: the process would end when it is loaded."""
    spec = importlib.util.find_spec(BINDING)
    if spec is None or spec.origin is None:
        return
    package = Path(spec.origin).parents[1]
    bundled = package.with_name("llcuda.libs")  # what auditwheel put into the wheel
    for path in (Path(spec.origin), *(package / "lib").glob("*.so"), *bundled.glob("*.so*")):
        if is_truncated(path):
            raise LibraryError(
                f"{path} is truncated, as after an installation on a full disk; install llcuda"
                " again with pip's option --force-reinstall"
            )


def installation() -> tuple[Path, str]:
    """Return the folder of the libraries and llama.cpp's commit; load no backend.

    Raises:
        LibraryError: The native library is missing.
    """
    ffi, lib, folder = _binding()
    return folder, ffi.string(lib.llcuda_commit()).decode()


def patches() -> list[str]:
    """Return the names of the changes to llama.cpp in the library (build/patches).

    Raises:
        LibraryError: The native library is missing.
    """
    ffi, lib, _ = _binding()
    return [name for name in ffi.string(lib.llcuda_patches()).decode().split(",") if name]


def cuda_build() -> CudaBuild | None:
    """Return how the CUDA backend of the package was built; None without one. Load no backend.

    Raises:
        LibraryError: The native library is missing.
    """
    ffi, lib, folder = _binding()
    version, architectures = (
        ffi.string(name).decode()
        for name in (lib.llcuda_cuda_version(), lib.llcuda_cuda_architectures())
    )
    if not version or not (folder / CUDA_LIBRARY).is_file():
        return None
    return parse(version, architectures)


def open_library() -> tuple[Any, Any]:
    """Load the library, for `load`, which keeps what this returns.

    Returns:
        cffi's ffi and lib.

    Raises:
        LibraryError: The library is missing, cannot run here, or is another package's.
    """
    ffi, lib, folder = _binding()
    loaded = Path(ffi.string(lib.llcuda_library_path()).decode()).resolve()
    if loaded.parent != folder.resolve():
        raise LibraryError(
            f"another package's libllama is loaded in this process: {loaded}, not that in {folder};"
            " import llcuda before that package, or in another process"
        )
    built, present = (ffi.string(f()).decode() for f in (lib.llcuda_commit, lib.ggml_commit))
    if built != present:
        raise LibraryError(
            f"the binding was built for llama.cpp {built}, but {loaded.parent} holds {present}; "
            f"build both again with '{BUILD_COMMAND}' in llcuda's source folder"
        )
    callbacks.define(ffi)
    lib.llcuda_init(threading.main_thread().ident or 0)
    sync_log_level(lib)
    _load_backends(ffi, lib, folder)
    os.register_at_fork(after_in_child=_after_fork)
    return ffi, lib


def sync_log_level(lib: Any) -> None:
    """Let C deliver only the lines that the logger takes now.

    Args:
        lib: cffi's lib.
    """
    level = callbacks.logger.getEffectiveLevel()
    delivered = [ggml for ggml, python in callbacks.LOG_LEVELS.items() if python >= level]
    lib.llcuda_log_level(min(delivered, default=max(callbacks.LOG_LEVELS) + 1))


# --- backends ---

# What a CPU variant needs of the operating system, which ggml's own score does not ask. Where a
# virtual machine lists AMX without permitting it, the first matrix product would end the process.
_FEATURES = {
    "sandybridge": "avx", "ivybridge": "avx", "piledriver": "avx", "haswell": "avx",
    "alderlake": "avx", "skylakex": "avx512", "cannonlake": "avx512", "cascadelake": "avx512",
    "icelake": "avx512", "cooperlake": "avx512", "zen4": "avx512", "sapphirerapids": "amx",
}  # fmt: skip


def _load_backends(ffi: Any, lib: Any, folder: Path) -> None:
    """Load the best CPU variant that really runs, and every other backend that loads."""
    scores = {}
    for path in sorted(folder.glob("libggml-cpu*.so")):
        feature = _FEATURES.get(path.stem.removeprefix("libggml-cpu-"))
        score = lib.llcuda_backend_score(os.fsencode(path))
        if score > 0 and (feature is None or lib.llcuda_cpu_permits(feature.encode())):
            scores[path] = score
        else:
            _backends.append((path.name, "does not run on this processor"))
    if not any(folder.glob("libggml-cpu*.so")):
        raise LibraryError(
            f"{folder} has no CPU backend; install llcuda again with pip's option --force-reinstall"
        )
    if not scores:
        raise LibraryError(
            f"no CPU backend in {folder} runs on this processor, for it was built on another "
            f"machine; build here with '{BUILD_COMMAND}' in llcuda's source folder"
        )
    others = [p for p in sorted(folder.glob("libggml-*.so")) if "-cpu" not in p.name]
    for path in [*(p for p in others if p.name != "libggml-base.so"), max(scores, key=scores.get)]:  # type: ignore[arg-type]
        if path.name == CUDA_LIBRARY:
            _load_cuda(ffi, lib, path)
        else:
            _load_backend(ffi, lib, path)


def _load_backend(ffi: Any, lib: Any, path: Path) -> str:
    """Load a backend, note what came of it, and return what was logged."""
    is_loaded = lib.llcuda_backend_load(os.fsencode(path))
    text = errors(ffi, lib)
    _backends.append((path.name, "loaded" if is_loaded else text or "failed to load"))
    return text


def _load_cuda(ffi: Any, lib: Any, path: Path) -> None:
    """Load the CUDA backend after its run-time libraries, and note and log which GPUs stay unused.

    A backend that the binding does not know of is of another wheel, over which this one was
    unpacked; it may belong to another llama.cpp.
    """
    global _cuda_libraries
    build, driver = cuda_build(), cuda_libraries.driver()
    remark = loading_problem(build, driver)
    if remark is not None or build is None:
        _backends.append((path.name, "not loaded"))
    else:
        if build.version is not None:
            _cuda_libraries = cuda_libraries.load_runtime(build.version)
        if not callbacks.logger.isEnabledFor(logging.INFO):
            lib.llcuda_log_level(max(callbacks.LOG_LEVELS) + 1)  # one sentence below says it all
        text = _load_backend(ffi, lib, path)
        sync_log_level(lib)
        if not lib.llcuda_gpu_count():
            remark = no_gpu(text, build, _cuda_libraries)
        for name, reason in _unusable_gpus(ffi, lib, build, driver):
            _refused[name] = reason
            logger.warning("%s is not used: %s", name, reason)
    if remark is not None:
        _why_no_gpu.append(remark)
        logger.warning("%s; the CPU is used", remark)


def _unusable_gpus(
    ffi: Any, lib: Any, build: CudaBuild, driver: Driver | None
) -> Iterator[tuple[str, Remark]]:
    """Yield ggml's name of each GPU that cannot be used, and why."""
    facts = ffi.new("struct llcuda_gpu *")
    for number in range(lib.llcuda_gpu_count()):
        if lib.llcuda_gpu_properties(number, facts):
            continue
        device = lib.llcuda_device_handle(number)
        texts = lib.ggml_backend_dev_name(device), lib.ggml_backend_dev_description(device)
        name, description = (ffi.string(text).decode(errors="replace") for text in texts)
        capability = facts.capability_major, facts.capability_minor
        remark = gpu_problem(description, capability, build, driver)
        if remark is not None:
            yield name, remark


def backends() -> list[tuple[str, str]]:
    """Return the file of each backend in the package, and "loaded" or why it is not."""
    load()
    return list(_backends)


def why_no_gpu() -> Remark | None:
    """Return why the CUDA backend has no GPU; None if it has one, or if it is not there."""
    load()
    return _why_no_gpu[0] if _why_no_gpu else None


def refused_gpus() -> dict[str, Remark]:
    """Return why GPUs of the CUDA backend are not used, by ggml's name; `devices` omits them."""
    load()
    return dict(_refused)


def runtime_libraries() -> RuntimeLibraries:
    """Return CUDA's run-time libraries that the CUDA backend was given; empty without one."""
    load()
    return _cuda_libraries


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device that ggml sees.

    Attributes:
        name: ggml's name, as `ModelParams.devices` takes it.
        description: The product's name.
        kind: "cpu", "gpu", "igpu" or "accelerator".
        backend: The name of its backend.
        free_memory: Free bytes; of the CPU those that this process may still take.
        total_memory: All bytes.
    """

    name: str
    description: str
    kind: str
    backend: str
    free_memory: int
    total_memory: int


def devices() -> list[DeviceInfo]:
    """Return the devices of all loaded backends but the GPUs that llcuda cannot use.

    Raises:
        DeviceLostError: A GPU failed.
    """
    ffi, lib = load()
    kinds = {
        lib.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
        lib.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
        lib.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
    }
    infos = []
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        texts = (
            lib.ggml_backend_dev_name(device),
            lib.ggml_backend_dev_description(device),
            lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(device)),
        )
        name, description, backend = (ffi.string(text).decode(errors="replace") for text in texts)
        if name in _refused:
            continue
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        if lib.llcuda_memory_now(device, free, total):
            raise _device_lost(errors(ffi, lib))
        kind = kinds.get(lib.ggml_backend_dev_type(device), "accelerator")
        left = available_memory() if kind == "cpu" else free[0]
        infos.append(DeviceInfo(name, description, kind, backend, left, total[0]))
    return infos


def gpus() -> list[DeviceInfo]:
    """Return the GPUs of all loaded backends; integrated ones only where there is no other.

    Raises:
        DeviceLostError: A GPU failed.
    """
    known = devices()
    separate = [device for device in known if device.kind == "gpu"]
    return separate or [device for device in known if device.kind == "igpu"]


def versions() -> dict[str, str]:
    """Return versions by name: llama.cpp, commit, ggml, and the folder of the libraries."""
    ffi, lib = load()
    return {
        "llama.cpp": ffi.string(lib.llama_version()).decode(),
        "commit": ffi.string(lib.ggml_commit()).decode(),
        "ggml": ffi.string(lib.ggml_version()).decode(),
        "folder": str(Path(ffi.string(lib.llcuda_library_path()).decode()).resolve().parent),
    }


def features() -> dict[str, dict[str, str]]:
    """Return the build features of each loaded backend, as {"CUDA": {"ARCHS": "750", ...}}."""
    ffi, lib = load()
    by_backend: dict[str, dict[str, str]] = {}
    backend = ""
    for part in ffi.string(lib.llama_print_system_info()).decode().split(" | ")[:-1]:
        *backends, feature = part.split(" : ")
        backend = backends[-1] if backends else backend
        name, _, value = feature.partition(" = ")
        by_backend.setdefault(backend, {})[name] = value
    return by_backend


# --- errors ---


def errors(ffi: Any, lib: Any, keep: bool = False) -> str:
    """Return this thread's last warnings and errors of the C log, one a line.

    Args:
        ffi: cffi's ffi.
        lib: cffi's lib.
        keep: Do not forget them.
    """
    text: str = ffi.string(lib.llcuda_errors()).decode(errors="replace")
    if not keep:
        lib.llcuda_clear_errors()
    return text


def fail(kind: type[LlcudaError], message: str, log: str | None = None) -> NoReturn:
    """Raise an error with the last lines of the C log.

    Args:
        kind: The error to raise, unless the log has another reason.
        message: What failed.
        log: The lines; None takes this thread's last ones.

    Raises:
        OutOfMemoryError: The log tells of too little memory; the message says how much is free.
        DeviceLostError: A GPU failed.
        LlcudaError: Else `kind`.
    """
    ffi, lib = load()
    log = errors(ffi, lib) if log is None else log
    if "cuda" in log.lower() and not lib.llcuda_gpus_answer():
        raise _device_lost(log)
    if reason := oom_message(log, kind, _free_memory):
        kind, message = OutOfMemoryError, f"{reason} ({message})"
    raise kind(f"{message}\n{log}" if log else message)


def _free_memory() -> list[tuple[str, int, int]]:
    """Return the name, the free and the total bytes of each GPU, or of the machine without one."""
    present = devices()
    listed = [device for device in present if device.kind != "cpu"] or present
    return [(device.name, device.free_memory, device.total_memory) for device in listed]


def _device_lost(log: str) -> DeviceLostError:
    return DeviceLostError(
        "a GPU failed, and this process cannot use it any more; save what there is, and start "
        f"another process\n{log}"
    )


def check(status: int, message: Callable[[], str]) -> None:
    """Raise the error that a status of the shim stands for.

    Args:
        status: The status; 0 and above raise nothing, but for NO_ROOM and ABORTED.
        message: Returns what was asked for; called only for an error.

    Raises:
        LlcudaError: The error, with the last lines of the C log.
        BaseException: What a callback raised during the call.
    """
    if status >= 0 and status not in (1, 2):
        return
    ffi, lib = load()
    callbacks.reraise()
    log = errors(ffi, lib)  # now: `message` may call C
    if status == lib.LLCUDA_LOST and not lib.llcuda_gpus_answer():
        raise _device_lost(log)
    if status == lib.LLCUDA_FILE_CHANGED:
        changed = ModelChangedError(log.splitlines()[-1])
        changed.remedy = "load the model again, or with mmap=False, which reads the file"
        raise changed
    kind, reason = {
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
        lib.LLCUDA_NOT_A_NUMBER: (SamplingError, NOT_NUMBERS),
        lib.LLCUDA_UNSUPPORTED: (UnsupportedError, "this memory cannot do that"),
        lib.LLCUDA_LOST: (DecodeError, "this context failed before: renew() it, or create another"),
    }.get(status, (DecodeError, "llama.cpp failed"))
    fail(kind, f"{reason}: {message()}", log)


# --- handles ---


class Owner:
    """Owns one C pointer, which is freed with the last reference to the owner.

    Args:
        pointer: The pointer; None after a fork, in the child.
        free: The C function that frees it.
        parent: The owner of what the C object refers to, kept as long as this one.
    """

    __slots__ = ("__weakref__", "finalizer", "parent", "pointer")

    def __init__(self, pointer: Any, free: Callable[[Any], Any], parent: Owner | None) -> None:
        self.pointer = pointer
        self.parent = parent
        # The finalizer holds the parent too: a child's memory goes before its parent's.
        self.finalizer = weakref.finalize(self, _free, free, pointer, parent)
        if not _owners:
            _end_before_finalizers()
        _owners.add(self)

    def leave_parent(self) -> None:
        """Let go of the parent, to whose memory the C object refers no longer."""
        if finalizer := self.finalizer.detach():
            _, _, (free, pointer, _), _ = finalizer
            self.parent = None
            self.finalizer = weakref.finalize(self, _free, free, pointer, None)


def _free(free: Callable[[Any], Any], pointer: Any, parent: Owner | None) -> None:
    free(pointer)


class Handle:
    """What a Python object holds of its C object: an owner, until `close`.

    A method takes `owner` into a local variable, so that a close in another thread cannot free the
    pointer under a running call.

    Args:
        name: What the object is, for errors.
        pointer: The C object.
        free: The C function that frees it.
        parent: The owner of what the C object refers to.
        stands_on: The handle without which the object must not be used any more.
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
        """The owner of the C object.

        Raises:
            ClosedError: This object is closed, or the one that it stands on.
            ForkError: This process was forked since.
        """
        if self._stands_on is not None and self._stands_on._owner is None:
            raise ClosedError(f"the {self._stands_on._name} of this {self._name} is closed")
        return self.held

    @property
    def held(self) -> Owner:
        """The owner, even if the object that this one stands on is closed."""
        owner = self._owner
        if owner is None:
            raise ClosedError(f"this {self._name} is closed")
        if owner.pointer is None:
            callbacks.park_at_exit()
            if not _forked:
                raise ClosedError(f"this {self._name} is closed, because Python is exiting")
            raise ForkError(f"this {self._name} was loaded before the fork of this process")
        return owner

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._owner is None

    def close(self) -> None:
        """Let go of the owner; the pointer is freed when no child and no running call needs it."""
        self._owner = None


_open: weakref.WeakSet[Any] = weakref.WeakSet()


def close_at_exit(user: Any) -> None:
    """Have an object closed at exit, before Python frees the C objects that its thread works on.

    Args:
        user: The object, which has a method `close` and is not kept alive.
    """
    _open.add(user)
    _end_before_finalizers()


def _end_before_finalizers() -> None:
    """Have `_close_all` run at exit before the finalizers of the C objects.

    They run in one exit function, which was registered with the first of them. Exit functions run
    in reverse order of their registration.
    """
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    """Close what has a thread, and let no daemon thread compute while its memory is freed."""
    for user in list(_open):
        user.close()
    owners = list(_owners)
    for owner in owners:
        owner.pointer = None  # a thread that asks for it is parked
    callbacks.begin_exit()
    deadline = time.monotonic() + EXIT_SECONDS
    while _thread_computes():
        if time.monotonic() > deadline:  # free nothing under it
            for owner in owners:
                owner.finalizer.detach()
            return
        time.sleep(0.005)


def _thread_computes() -> bool:
    """Return whether another thread is in a C function, or about to call one."""
    frames = sys._current_frames()
    del frames[threading.get_ident()]
    own = os.path.dirname(__file__)  # noqa: PTH120 - of every module that calls C
    for top in frames.values():
        frame: FrameType | None = top
        parked = top.f_code is callbacks.park_at_exit.__code__
        while frame is not None and not parked:  # also below a callback of the user's
            if frame.f_code.co_filename.startswith(own):
                return True
            frame = frame.f_back
    return False


def _after_fork() -> None:
    """Leave every pointer to the parent process: its threads, which they need, are not here."""
    global _loaded, _forked
    if _loaded is not None and (CUDA_LIBRARY, "loaded") in _backends:
        _loaded[1].llcuda_forked()  # CUDA's libraries fault at the exit of a forked child
    _forked, _loaded = True, None
    for owner in list(_owners):
        owner.finalizer.detach()
        owner.pointer = None
