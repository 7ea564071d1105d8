"""Forks, and libraries that are not ours."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from llcuda.errors import LibraryError
from llcuda.native import library
from tests.support import models
from tests.support.programs import run


class TestFork:
    """A forked child after the library was loaded."""

    PROGRAM = """
import os, sys
import llcuda
from llcuda.errors import ForkError
model = llcuda.Model(sys.argv[1])
context = llcuda.Context(model, threads=2, ctx_size=256)
context.decode([1, 2, 3])
sampler = llcuda.Sampler(seed=1, model=model)
child = os.fork()
if child == 0:
    for use in (lambda: model.tokenize("a"), lambda: context.decode([1]), context.logits,
                context.n_past, lambda: sampler.accept(1), sampler.clone, sampler.reset,
                lambda: llcuda.Model(sys.argv[1]), lambda: llcuda.Context(model)):
        try:
            use()
            os._exit(1)
        except ForkError:
            pass
    del model, context, sampler
    import gc
    gc.collect()
    sys.exit(0)
status = os.waitpid(child, 0)[1]
context.decode([4])
print(status, context.n_past(), sampler.sample(context) >= 0)
"""

    def test_the_child_is_told_and_the_parent_is_unharmed(
        self, model_files: dict[str, Path]
    ) -> None:
        """ForkError in the child for every use; the parent decodes on."""
        result = run(self.PROGRAM, model_files["llama"])
        assert ("0 4 True\n", "") == (result.stdout, result.stderr)

    def test_a_child_forked_before_the_load_loads_for_itself(
        self, model_files: dict[str, Path]
    ) -> None:
        """Import llcuda alone does not count."""
        program = (
            "import os, sys, llcuda\n"
            "child = os.fork()\n"
            "if child: sys.exit(os.waitpid(child, 0)[1])\n"
            "print(llcuda.Model(sys.argv[1]).vocab_size)\n"
        )
        result = run(program, model_files["llama"])
        assert (0, f"{models.VOCABULARY}\n") == (result.returncode, result.stdout)

    def test_the_exit_of_a_child_skips_what_libraries_do_there(self) -> None:
        """CUDA's libraries fault there; one of C's functions stands for them."""
        program = (
            "import ctypes, os, sys\n"
            "from llcuda.native import library\n"
            "_, lib = library.load()\n"
            "libc = ctypes.CDLL(None)\n"
            "libc.on_exit(ctypes.cast(libc.abort, ctypes.c_void_p), None)\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    lib.llcuda_forked()\n"
            "    print('printed')\n"
            "    sys.exit(7)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
            "os._exit(0)\n"
        )
        result = run(program)
        assert ("printed\n7\n", "") == (result.stdout, result.stderr)


class TestLibrary:
    """Another library than the one that the binding was built with."""

    def test_a_library_of_another_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The message names both."""
        ffi, lib = library.load()

        class Other:
            def __getattr__(self, name: str) -> Any:
                return getattr(lib, name)

            def ggml_commit(self) -> Any:
                return self.text

            text = ffi.new("char[]", b"0123456")

        class Binding:
            __file__ = sys.modules["llcuda.native._llama"].__file__
            ffi = library.load()[0]
            lib = Other()

        monkeypatch.setattr(library.importlib, "import_module", lambda name: Binding)
        with pytest.raises(LibraryError, match="0123456"):
            library.open_library()

    def test_a_foreign_library_that_is_loaded_already(
        self, model_files: dict[str, Path], tmp_path: Path
    ) -> None:
        """A copy of libllama from elsewhere, loaded with its symbols for all, is noticed."""
        program = (
            "import ctypes, sys\n"
            "for name in ('libggml-base', 'libggml', 'libllama'):\n"
            "    ctypes.CDLL(f'{sys.argv[1]}/{name}.so', ctypes.RTLD_GLOBAL)\n"
            "import llcuda\n"
            "try:\n"
            "    llcuda.Model(sys.argv[2])\n"
            "except llcuda.LlcudaError as error:\n"
            "    print(type(error).__name__, sys.argv[1] in str(error))\n"
        )
        binding = sys.modules["llcuda.native._llama"].__file__
        assert binding is not None
        ours = Path(binding).parents[1] / "lib"
        for path in ours.glob("*.so"):
            shutil.copy(path, tmp_path)
        result = run(program, tmp_path, model_files["llama"])
        assert "LibraryError True\n" == result.stdout, result.stderr

    def test_a_missing_binding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The message says what builds it."""

        def fail(name: str) -> None:
            raise ImportError("no such file")

        monkeypatch.setattr(library.importlib, "import_module", fail)
        with pytest.raises(LibraryError, match="pip install"):
            library.open_library()
