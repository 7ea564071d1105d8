"""CUDA's run-time libraries: which are taken, whoever loads them first, and what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_cuda
from tests.support.fake_cuda import BUILT, OTHER, OURS
from tests.support.programs import run

# argv: a JSON list of steps. Prints what each client sees, and which files are in the process.
PROGRAM = r"""
import ctypes, json, re, sys
from pathlib import Path
from llcuda.native import cuda_libraries
steps, site = json.loads(sys.argv[1]), sys.argv[2]
sys.path.insert(0, site)
answer = {"seen": []}
for step, *what in steps:
    if step == "search":
        answer |= vars(cuda_libraries.load_runtime(tuple(what)))
    elif step == "hold":  # a library of another package, loaded for all
        ctypes.CDLL(what[0], ctypes.RTLD_GLOBAL)
    else:
        library = ctypes.CDLL(what[0], ctypes.RTLD_GLOBAL if step == "torch" else 0)
        answer["seen"].append([library.runtime(), library.cublas()])
maps = Path("/proc/self/maps").read_text()
names = set(re.findall(r"/\S*/lib(?:cudart|cublas|cublasLt)\.so\.9[67]", maps))
answer["mapped"] = sorted(names)
print(json.dumps(answer))
"""
SEARCH = ["search", *BUILT]


class Site:
    """A folder of packages, a toolkit and a CUDA backend, all fakes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages = folder / "site"
        self.nvidia = self.packages / "nvidia"
        self.toolkit = folder / "toolkit"
        self.packages.mkdir()
        build = folder / "build"
        made = [fake_cuda.cudart(build), *fake_cuda.cublas(build)]
        self.backend = fake_cuda.client(folder / "backend.so", made)
        shutil.rmtree(build)

    def install(self, major: int = OURS, minor: int = 4, build: int = 1) -> list[str]:
        """Install NVIDIA's packages in the layout of CUDA 12's, and return the files."""
        files = fake_cuda.cublas(self.nvidia / "cublas" / "lib", major, build)
        files.append(fake_cuda.cudart(self.nvidia / "cuda_runtime" / "lib", major, minor))
        return sorted(map(str, files))

    def install_in_one_folder(self, major: int = OURS, build: int = 1) -> list[str]:
        """Install NVIDIA's packages in the layout of CUDA 13's, and return the files."""
        folder = self.nvidia / f"cu{major}" / "lib"
        return sorted(map(str, [fake_cuda.cudart(folder, major), *fake_cuda.cublas(folder, major)]))

    def torch(self, major: int = OURS) -> str:
        """Install a torch that uses NVIDIA's packages, and return its library."""
        rpath = "$ORIGIN/../../nvidia/cublas/lib:$ORIGIN/../../nvidia/cuda_runtime/lib"
        names = {"cudart": "cuda_runtime", "cublasLt": "cublas", "cublas": "cublas"}
        files = [
            self.nvidia / folder / "lib" / f"lib{name}.so.{major}" for name, folder in names.items()
        ]
        (self.packages / "torch").mkdir(exist_ok=True)
        (self.packages / "torch" / "__init__.py").touch()
        library = self.packages / "torch" / "lib" / "libtorch.so"
        return str(fake_cuda.client(library, files, rpath))

    def ask(self, *steps: list[Any], first: tuple[Path, ...] = (), **variables: object) -> Any:
        """Run the steps in a process of its own."""
        environment = fake_cuda.environment(*first, **variables)
        for name in ("CUDA_HOME", "CUDA_PATH"):
            if name not in variables:
                environment.pop(name, None)
        result = run(PROGRAM, json.dumps(steps), self.packages, environment=environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


RUNS = [97_040, 1]


@pytest.mark.parametrize("layout", ["install", "install_in_one_folder"])
def test_packages_for_python(site: Site, layout: str) -> None:
    """NVIDIA's packages of both layouts, without LD_LIBRARY_PATH."""
    files = getattr(site, layout)()
    answer = site.ask(SEARCH, ["backend", str(site.backend)])
    assert [RUNS] == answer["seen"]
    assert files == answer["mapped"] == sorted(answer["paths"].values())
    assert ([], []) == (answer["missing"], answer["errors"])


def test_a_toolkit(site: Site) -> None:
    """CUDA_HOME, where no package has them."""
    fake_cuda.cudart(site.toolkit / "lib64")
    fake_cuda.cublas(site.toolkit / "lib64")
    answer = site.ask(SEARCH, ["backend", str(site.backend)], CUDA_HOME=site.toolkit)
    assert [RUNS] == answer["seen"]


def test_the_linkers_own_folders(site: Site) -> None:
    """The last place, for a machine whose administrator set it."""
    fake_cuda.cudart(site.folder / "system")
    fake_cuda.cublas(site.folder / "system")
    backend = ["backend", str(site.backend)]
    assert [RUNS] == site.ask(SEARCH, backend, first=(site.folder / "system",))["seen"]


def test_another_major_version_first_on_the_path(site: Site) -> None:
    """Its libraries have other names, and its symbols other versions."""
    files = site.install()
    wrong = site.folder / "wrong"
    fake_cuda.cudart(wrong, OTHER)
    fake_cuda.cublas(wrong, OTHER, 2)
    steps = SEARCH, ["backend", str(site.backend)]
    answer = site.ask(*steps, first=(wrong,), CUDA_HOME=wrong)
    assert ([RUNS], files) == (answer["seen"], answer["mapped"])


@pytest.mark.parametrize("torch_first", [True, False])
def test_a_torch_of_the_same_kind_shares_its_libraries(site: Site, torch_first: bool) -> None:
    """Each file once, whoever loads first, though an older set is first on the path."""
    files = site.install()
    toolkit = site.toolkit / "lib64"
    fake_cuda.cudart(toolkit, minor=1)
    fake_cuda.cublas(toolkit, build=2)
    torch, backend = ["torch", site.torch()], ["backend", str(site.backend)]
    steps = [torch, SEARCH, backend] if torch_first else [SEARCH, backend, torch]
    answer = site.ask(*steps, CUDA_HOME=site.toolkit)
    assert [RUNS, RUNS] == answer["seen"]
    assert files == answer["mapped"]


@pytest.mark.parametrize("torch_first", [True, False])
def test_a_torch_of_the_other_kind(site: Site, torch_first: bool) -> None:
    """Both sets are in the process, and each library calls its own."""
    others = site.install(OTHER, 0, build=2)
    ours = site.install_in_one_folder()
    torch, backend = ["torch", site.torch(OTHER)], ["backend", str(site.backend)]
    steps = [torch, SEARCH, backend] if torch_first else [SEARCH, backend, torch]
    answer = site.ask(*steps)
    expected = [[96_000, 2], RUNS]
    assert (expected if torch_first else expected[::-1]) == answer["seen"]
    assert sorted(others + ours) == answer["mapped"]
    assert ours == sorted(answer["paths"].values())


def test_both_parts_of_cublas_come_from_one_folder(site: Site) -> None:
    """A folder with one of them is passed over, and said if nothing else is there."""
    site.install()
    half = site.nvidia / "cublas" / "lib" / f"libcublasLt.so.{OURS}"
    half.unlink()
    answer = site.ask(SEARCH)
    assert [f"libcublasLt.so.{OURS}", f"libcublas.so.{OURS}"] == answer["missing"]
    assert [f"{half} is missing"] == answer["errors"]
    fake_cuda.cublas(site.toolkit / "lib64", build=2)
    answer = site.ask(SEARCH, ["backend", str(site.backend)], CUDA_HOME=site.toolkit)
    assert ([[97_040, 2]], []) == (answer["seen"], answer["missing"])


def test_a_part_that_is_loaded_decides_about_the_other(site: Site) -> None:
    """Another package has loaded libcublasLt alone: libcublas is taken from beside it."""
    site.install()
    elsewhere = site.folder / "elsewhere"
    inner, outer = fake_cuda.cublas(elsewhere, build=2)
    answer = site.ask(["hold", str(inner)], SEARCH, ["backend", str(site.backend)])
    assert [[97_040, 2]] == answer["seen"]
    assert str(outer) == answer["paths"][f"libcublas.so.{OURS}"]


def test_a_newer_runtime_library_is_preferred(site: Site) -> None:
    """One older than the backend may lack functions; it is taken where no other is."""
    site.install(minor=1)
    backend = ["backend", str(site.backend)]
    assert [[97_010, 1]] == site.ask(SEARCH, backend)["seen"]
    fake_cuda.cudart(site.toolkit / "lib64", minor=9)
    assert [[97_090, 1]] == site.ask(SEARCH, backend, CUDA_HOME=site.toolkit)["seen"]


def test_a_damaged_file(site: Site) -> None:
    """As a full disk leaves it: the next folder is tried, and the reason is kept."""
    site.install()
    damaged = site.nvidia / "cuda_runtime" / "lib" / f"libcudart.so.{OURS}"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    answer = site.ask(SEARCH)
    assert [f"libcudart.so.{OURS}"] == answer["missing"]
    assert [f"{damaged} is truncated"] == answer["errors"]
    fake_cuda.cudart(site.toolkit / "lib64")
    backend = ["backend", str(site.backend)]
    assert [RUNS] == site.ask(SEARCH, backend, CUDA_HOME=site.toolkit)["seen"]


def test_nothing_is_there(site: Site) -> None:
    """All names; none of another major version counts."""
    site.install(OTHER)
    answer = site.ask(SEARCH)
    names = [f"lib{name}.so.{OURS}" for name in ("cudart", "cublasLt", "cublas")]
    assert (names, {}, []) == (answer["missing"], answer["paths"], answer["mapped"])
