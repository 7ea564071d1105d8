"""Model files that change while they are mapped, and weights that are not numbers."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from llcuda import Context, Model, Sampler
from llcuda.engine import Engine
from llcuda.errors import SamplingError
from tests.support import models
from tests.support.programs import run
from tests.support.waiting import PATIENCE

START = """
import logging, os, sys, threading, time
from pathlib import Path
from llcuda import Context, Engine, Model, quantize
from llcuda.errors import DecodeError, ModelChangedError, ModelError

logging.basicConfig(stream=sys.stdout, format="%(levelname)s", level=logging.WARNING)
logging.getLogger("llcuda.engine").setLevel(logging.CRITICAL)  # its end is logged by its thread
path = Path(sys.argv[1])
before = path.stat()
size = before.st_size

def overwrite(offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)

def attempt(use):
    try:
        use()
        print("computed")
    except ModelChangedError as error:
        assert isinstance(error, ModelError) and isinstance(error, DecodeError)
        assert str(error).startswith(f"{path}: it was ") and "mmap=False" in str(error), error
        print("refused", str(error).removeprefix(f"{path}: it was ").split()[0])
"""

LATER = """
copy = path.with_name("copy.gguf")
copy.write_bytes(path.read_bytes())
how, mapped, threads = sys.argv[2:]
changes = {
    "truncated": lambda: os.truncate(path, 4096),
    "emptied": lambda: os.truncate(path, 0),
    "appended": lambda: overwrite(size, b"1"),
    "overwritten": lambda: overwrite(size // 2, b"\\xff" * (size // 2)),
    "restored": lambda: (
        overwrite(size // 2, b"\\xff" * (size // 4)),
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns)),
    ),
    "protected": lambda: path.chmod(0o400),
    "touched": lambda: os.utime(path, (1, 1)),
    "replaced": lambda: copy.replace(path),
}
with Model(path, mmap=mapped == "mapped") as model:
    context = Context(model, ctx_size=256, threads=int(threads))
    context.decode([1, 2, 3])
    engine = Engine(model, ctx_size=256, threads=int(threads))
    changes[how]()
    for _ in range(2):
        attempt(lambda: context.decode([1, 2, 3]))
    for _ in range(2):
        attempt(lambda: engine.submit([1, 2, 3], max_tokens=2).result(120))
    print(engine.state == "failed")
    attempt(lambda: Context(model, ctx_size=256))
    engine.close()
with Model("demo") as model, Context(model, ctx_size=256) as context:
    attempt(lambda: context.decode([1, 2, 3]))
"""


READ = [*["computed"] * 4, "False", "computed", "computed"]  # what a model without a fault says


@pytest.fixture
def file(model_files: dict[str, Path], tmp_path: Path) -> Path:
    """A model that a test may spoil."""
    return Path(shutil.copy(model_files["llama"], tmp_path / "model.gguf"))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("truncated", "refused truncated"),
        ("emptied", "refused truncated"),
        ("appended", "refused overwritten"),
        ("overwritten", "refused overwritten"),
        ("restored", "refused overwritten"),
        ("protected", "computed"),
        ("replaced", "computed"),
    ],
)
def test_a_file_that_changes(how: str, expected: str, threads: int, file: Path) -> None:
    """Each use of the model is an error that names the file; other models compute on."""
    result = run(START + LATER, file, how, "mapped", threads)
    changed = str(expected != "computed")
    lines = [*[expected] * 4, changed, expected, "computed"]
    assert (lines, "") == (result.stdout.splitlines(), result.stderr)


def test_a_file_that_is_touched(file: Path) -> None:
    """Another date over the same bytes is one warning."""
    result = run(START + LATER, file, "touched", "mapped", 1)
    assert ["WARNING", *READ] == result.stdout.splitlines()


@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_a_file_that_was_read(how: str, file: Path) -> None:
    """Without a mapping the file may change."""
    result = run(START + LATER, file, how, "read", 1)
    assert READ == result.stdout.splitlines()


WHILE_COMPUTING = """
def truncate():
    computing.wait()
    time.sleep(0.1)
    os.truncate(path, 4096)

def compute():
    while True:
        context.memory.clear()
        computing.set()
        context.decode([5] * 512)

computing = threading.Event()
threading.Thread(target=truncate).start()
with Model(path) as model, Context(model, ctx_size=512, threads=4) as context:
    attempt(compute)
"""


def test_a_file_that_is_truncated_during_a_decode(file: Path) -> None:
    """The decode that runs then, or the next one, is the error."""
    result = run(START + WHILE_COMPUTING, file)
    assert ("refused truncated\n", "") == (result.stdout, result.stderr)


WHILE_QUANTIZING = """
target = path.with_name("target.gguf")
attempt(lambda: quantize(path, target, "Q8_0", progress=lambda done: os.truncate(path, 4096)))
print(target.exists())
"""


def test_a_file_that_is_truncated_while_it_is_quantized(file: Path) -> None:
    """No target appears."""
    result = run(START + WHILE_QUANTIZING, file)
    assert ("refused truncated\nFalse\n", "") == (result.stdout, result.stderr)


FOREIGN = """
import mmap
other = path.with_name("other.bin")
other.write_bytes(bytes(8192))
with Model(path) as model, other.open("r+b") as file:
    mapping = mmap.mmap(file.fileno(), 0)
    os.truncate(other, 0)
    mapping[5000]
"""


def test_other_bus_errors_are_not_hidden(file: Path) -> None:
    """A file of someone else ends the process, with faulthandler's report."""
    result = run(START + FOREIGN, file)
    assert -signal.SIGBUS == result.returncode
    assert "Bus error" in result.stderr


@pytest.mark.parametrize("device_logits", [False, True])
@pytest.mark.parametrize("given", [{}, {"temperature": 0}, {"top_k": 0}, {"mirostat": 2}], ids=str)
def test_weights_that_are_not_numbers(
    given: dict[str, float], device_logits: bool, tmp_path: Path
) -> None:
    """Nothing is sampled; the error says why, also in a batch and in the engine."""
    metadata, tensors = models.BUILDERS["llama"]()
    tensors["output_norm.weight"] = np.full_like(tensors["output_norm.weight"], np.nan)
    with Model(models.write(tmp_path / "nan.gguf", metadata, tensors)) as model:
        with Context(model, ctx_size=256, threads=1, device_logits=device_logits) as context:
            context.decode([1, 2, 3])
            with pytest.raises(SamplingError, match=r"not numbers \(NaN\)"):
                Sampler(seed=1, **given).sample(context)
        with (
            Engine(model, ctx_size=256, threads=1) as engine,
            pytest.raises(SamplingError, match=r"not numbers \(NaN\)"),
        ):
            engine.submit([1, 2, 3], max_tokens=2, **given).result(PATIENCE)


READ_AT_ONCE = """
import ctypes, os, shutil, sys, threading
from pathlib import Path
from llcuda import Model

libc = ctypes.CDLL(None)
source, path = map(Path, sys.argv[1:])
for _ in range(60):
    shutil.copy(source, path)
    with Model(path):
        (line,) = [line for line in Path("/proc/self/maps").open() if line.split()[-1] == str(path)]
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        os.truncate(path, 0)
        barrier = threading.Barrier(8)
        sums = []

        def read():
            data = ctypes.create_string_buffer(end - begin)
            barrier.wait()
            libc.memcpy(data, ctypes.c_void_p(begin), ctypes.c_size_t(end - begin))
            sums.append(sum(data.raw))

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sums == [0] * 8
print("read")
"""


def test_threads_that_read_lost_pages_at_once(file: Path, tmp_path: Path) -> None:
    """A page that another thread has replaced meanwhile is read again."""
    result = run(READ_AT_ONCE, file, tmp_path / "read.gguf")
    assert ("read\n", "") == (result.stdout, result.stderr)
