"""The CUDA backend at load: GPUs that are used, refused or missing, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_cuda, fake_gpu
from tests.support.fake_cuda import OURS
from tests.support.fake_gpu import A100, INSTALL, P100, T4
from tests.support.programs import run

# Loads by the contract's call, prints what it printed, then the place of the layers and a text.
ENGINE = f"""{INSTALL}
import json, sys, llcuda
with llcuda.InferenceEngine() as engine:
    engine.load_model("demo", ctx_size=256, **json.loads(sys.argv[1]))
    print("devices:", engine.model.params.gpu_layers, engine.model.params.devices)
    print("text:", engine.infer("Once upon a time", max_tokens=8, temperature=0).tokens_generated)
"""


def load(environment: dict[str, str], arguments: str = "{}") -> tuple[list[str], list[str]]:
    """Return the lines that loading the demo model prints, and those that it logs."""
    result = run(ENGINE, arguments, environment=environment)
    assert result.returncode == 0, result.stderr
    assert "text: 8" in result.stdout
    return result.stdout.splitlines(), result.stderr.splitlines()


def test_a_gpu_is_used(backend: Path, tmp_path: Path) -> None:
    """The contract's lines for a T4 with driver 550, and no warning."""
    printed, logged = load(fake_gpu.environment(tmp_path, backend=backend))
    assert [] == logged
    assert printed[:7] == [
        "Loading model: demo",
        "",
        "Auto-configuring optimal settings...",
        "GPU Check:",
        "  Platform: local",
        "  GPU: Tesla T4",
        "  Compute Capability: 7.5",
    ]
    assert printed[7:10] == [
        "  Status: ✓ Compatible",
        "✓ Model loaded and ready for inference",
        "  GPU Layers: 9",
    ]


@pytest.mark.parametrize(
    ("driver", "build", "expected"),
    [
        (
            "550.54.15",
            "13.0",
            "it runs CUDA 12.4 at most, and this llcuda was built with 13.0: pip",
        ),
        (
            "570.86.10",
            "13.0",
            "it runs CUDA 12.8 at most, and this llcuda was built with 13.0: pip",
        ),
        ("470.57.02", "12.4", "was built with 12.4: install driver 525 or newer"),
    ],
)
def test_a_driver_that_is_too_old(
    driver: str, build: str, expected: str, backend: Path, tmp_path: Path
) -> None:
    """One line in the log; the printed lines keep their order and say that the CPU computes."""
    machine = fake_gpu.environment(tmp_path, backend=backend, seen=(), driver=driver, build=build)
    printed, (logged,) = load(machine)
    assert expected in logged
    assert logged.endswith("; the CPU is used")
    assert "  GPU: Tesla T4" == printed[5]
    assert printed[7].startswith("  Status: CPU (")
    assert expected in printed[7]
    assert "  GPU Layers: 0" == printed[9]
    assert [] == load_silently(machine)


def load_silently(environment: dict[str, str]) -> list[str]:
    """Return what `silent=True` prints of the contract's lines."""
    printed, _ = load(environment, '{"silent": true}')
    return [line for line in printed if not line.startswith(("devices: ", "text: "))]


def test_a_build_without_cuda(tmp_path: Path) -> None:
    """One line in the log, which names the wheel; none where the CPU was asked for."""
    machine = fake_gpu.environment(tmp_path, build="")
    _, (logged,) = load(machine)
    assert "Tesla T4 has compute capability 7.5, but this llcuda was built without CUDA" in logged
    assert "pip install 'llcuda-VERSION+cu124-TAGS.whl[cuda]'" in logged
    assert [] == load(machine, '{"gpu_layers": 0}')[1]


def test_no_gpu(backend: Path, tmp_path: Path) -> None:
    """A driver without a GPU."""
    _, (logged,) = load(fake_gpu.environment(tmp_path, backend=backend, gpus=()))
    assert "the CUDA backend sees no GPU: check nvidia-smi" in logged


def test_a_gpu_of_another_backend(backend: Path, tmp_path: Path) -> None:
    """Vulkan's GPUs take all layers by themselves, where CUDA has none."""
    gpu = "AMD Radeon RX 7900 XT,0.0,20000,20480"
    machine = fake_gpu.environment(
        tmp_path, backend=backend, name="Vulkan", gpus=(), seen=[gpu], build=""
    )
    printed, logged = load(machine)
    assert [] == logged
    assert printed[5:10] == [
        "  GPU: AMD Radeon RX 7900 XT",
        "  Compute Capability: none (Vulkan)",
        "  Status: ✓ Compatible",
        "✓ Model loaded and ready for inference",
        "  GPU Layers: 9",
    ]


REFUSED = f"""{INSTALL}
import llcuda
from llcuda.core import Device, Tensor
from llcuda.native import library
print([device.name for device in library.devices()], list(library.refused_gpus()))
def attempt(function):
    try:
        return function()
    except llcuda.LlcudaError as error:
        return error
print(attempt(lambda: llcuda.Model("demo", devices=["CUDA0"])))
print(attempt(lambda: Tensor.zeros([2], device=0)))
print(Device(), Tensor.zeros([2]).device)
with llcuda.Model("demo", gpu_layers=99) as model, llcuda.Context(model, ctx_size=256) as context:
    before = {{device.name: device.free_memory for device in library.devices()}}
    context.decode(model.tokenize("Once"))
print([device.name for device in llcuda.memory_needed("demo", ctx_size=256) if device.model])
"""


def refuse(environment: dict[str, str]) -> tuple[list[str], str]:
    """Return what the program prints, and the warning."""
    result = run(REFUSED, environment=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr.strip()


def test_ptx_that_the_driver_cannot_compile(backend: Path, tmp_path: Path) -> None:
    """An A100 with driver 535 runs no wheel that has machine code for 7.5 only."""
    machine = fake_gpu.environment(tmp_path, backend=backend, gpus=[A100], driver="535.104.05")
    printed, logged = refuse(machine)
    why = "too old to compile this llcuda's PTX: it knows CUDA 12.2, and the PTX is of 12.4"
    assert "CUDA0 is not used: " in logged and why in logged and 1 == len(logged.splitlines())
    assert "['CPU'] ['CUDA0']" == printed[0]
    for line in printed[1:3]:
        assert why in line and "install driver 550 or newer" in line
    assert ["cpu cpu", "['CPU']"] == printed[3:]


def test_the_same_gpu_with_machine_code(backend: Path, tmp_path: Path) -> None:
    """The wheel for more GPUs runs with driver 535."""
    machine = fake_gpu.environment(
        tmp_path, backend=backend, gpus=[A100], driver="535.104.05", architectures="75,80,86,89,90"
    )
    printed, logged = load(machine)
    assert ([], "  GPU Layers: 9") == (logged, printed[9])


def test_an_old_gpu_beside_a_good_one(backend: Path, tmp_path: Path) -> None:
    """The old one is refused by name and capability, and nothing is put on it."""
    machine = fake_gpu.environment(tmp_path, backend=backend, gpus=[P100, T4])
    printed, logged = refuse(machine)
    assert "CUDA0 is not used: Tesla P100-PCIE-16GB has compute capability 6.0" in logged
    assert "needs 7.5 or higher" in logged
    assert "['CUDA1', 'CPU'] ['CUDA0']" == printed[0]
    assert ["cuda:1 cuda:1", "['CUDA1', 'CPU']"] == printed[3:]
    other = fake_gpu.environment(tmp_path / "engine", backend=backend, gpus=[P100, T4])
    assert "  GPU Layers: 9" in load(other)[0]


def test_a_backend_of_another_wheel(backend: Path, tmp_path: Path) -> None:
    """A wheel without CUDA was unpacked over one with it: the leftover is not loaded."""
    machine = fake_gpu.environment(tmp_path, backend=backend, build="")
    _, (logged,) = load(machine)
    assert "the CUDA backend is a leftover of another llcuda: " in logged
    assert "pip install --force-reinstall --no-deps" in logged


@pytest.fixture(scope="session")
def needy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake backend, which needs run-time libraries and a function of CUDA 97.4."""
    folder = tmp_path_factory.mktemp("needy")
    source = f"{fake_cuda.CUDART} int cudaNew(void) {{ return 0; }}"
    name = f"libcudart.so.{OURS}"
    runtime = fake_cuda.compile_library(folder / "libs" / name, source, {"VERSION": 97_040})
    needed = [runtime, *fake_cuda.cublas(folder / "libs")]
    return fake_gpu.build_backend(folder / "libggml-cuda.so", needed, "cudaNew")


def packages(folder: Path, runtime: str = fake_cuda.CUDART) -> Path:
    """Install run-time libraries as NVIDIA's packages do."""
    place = folder / "nvidia" / f"cu{OURS}" / "lib"
    fake_cuda.compile_library(place / f"libcudart.so.{OURS}", runtime, {"VERSION": 97_040})
    fake_cuda.cublas(place)
    return folder


def needing(folder: Path, needy: Path, **options: Any) -> dict[str, str]:
    """Return a machine whose llcuda was built with the fake CUDA."""
    version = f"{OURS}.4"
    return fake_gpu.environment(folder, backend=needy, build=version, cuda=version, **options)


def test_run_time_libraries_are_found(needy: Path, tmp_path: Path) -> None:
    """Those of packages, without LD_LIBRARY_PATH."""
    source = f"{fake_cuda.CUDART} int cudaNew(void) {{ return 0; }}"
    site = packages(tmp_path / "site", source)
    printed, logged = load(needing(tmp_path / "machine", needy, packages=site))
    assert [] == logged, logged
    assert "  GPU Layers: 9" in printed


def test_run_time_libraries_are_missing(needy: Path, tmp_path: Path) -> None:
    """One sentence with all names and the command."""
    _, (logged,) = load(needing(tmp_path, needy, seen=()))
    names = f"libcudart.so.{OURS} and libcublasLt.so.{OURS} and libcublas.so.{OURS}"
    assert f"the CUDA backend does not find {names}: pip install 'llcuda[cuda{OURS}]'" in logged


def test_run_time_libraries_that_do_not_fit(needy: Path, tmp_path: Path) -> None:
    """They lack a function: which files they are, and what to do."""
    site = packages(tmp_path / "site")
    _, (logged,) = load(needing(tmp_path / "machine", needy, packages=site, seen=()))
    assert f"the CUDA libraries {site}/nvidia/cu{OURS}/lib/libcudart.so.{OURS}" in logged
    assert "do not fit this llcuda" in logged
    assert "pip install --upgrade nvidia-cublas nvidia-cuda-runtime" in logged


DOCTOR = f"{INSTALL}\nfrom llcuda.cli import diagnose\nprint(diagnose.diagnose().as_dict())"


def test_doctor_names_the_run_time_libraries(needy: Path, tmp_path: Path) -> None:
    """Their files, so that a wrong one is seen."""
    source = f"{fake_cuda.CUDART} int cudaNew(void) {{ return 0; }}"
    site = packages(tmp_path / "site", source)
    result = run(DOCTOR, environment=needing(tmp_path / "machine", needy, packages=site))
    path = site / "nvidia" / f"cu{OURS}" / "lib" / f"libcudart.so.{OURS}"
    assert f"'libcudart.so.{OURS}': '{path}'" in result.stdout, result.stderr


def test_doctor_names_a_wheel_once_for_two_cards(backend: Path, tmp_path: Path) -> None:
    """Two T4s with a driver that is too old are one problem."""
    machine = fake_gpu.environment(
        tmp_path, backend=backend, gpus=[T4, T4], seen=(), driver="550.54.15", build="13.0"
    )
    result = run(DOCTOR, environment=machine)
    assert 1 == result.stdout.count("pip install 'llcuda-VERSION+cu124-TAGS.whl[cuda]'")


@pytest.mark.parametrize(
    ("breaks", "problem"),
    [
        (False, "the Vulkan backend sees no GPU"),
        (True, "the Vulkan backend cannot be loaded: "),
    ],
)
def test_doctor_on_another_backend_without_a_gpu(
    breaks: bool, problem: str, backend: Path, tmp_path: Path
) -> None:
    """It names the packages of the driver."""
    machine = fake_gpu.environment(
        tmp_path, backend=backend, name="Vulkan", gpus=(), seen=(), build=""
    )
    if breaks:
        (tmp_path / "llcuda" / "lib" / "libggml-vulkan.so").write_text("not a library\n" * 9)
    result = run(DOCTOR, environment=machine)
    assert f"'what': '{problem}" in result.stdout.replace('"', "'"), result.stderr
    assert "'mend': 'apt install libvulkan1 mesa-vulkan-drivers'" in result.stdout


# Prints what quantized matrices of so many rows take of a GPU.
MATRICES = f"""{INSTALL}
import sys
from llcuda.core import Device, DType, Tensor
for rows in map(int, sys.argv[1:]):
    free = Device.get_free_memory(0)
    matrix = Tensor([rows, 512], DType.Q4_0, 0)
    print(free - Device.get_free_memory(0))
    del matrix
"""


def test_quantized_matrices_end_in_whole_blocks_of_rows(backend: Path, tmp_path: Path) -> None:
    """Kernels read four rows at once, also where a matrix ends before; that must be memory."""
    row = 512 // 32 * 18  # bytes of Q4_0
    machine = fake_gpu.environment(tmp_path, backend=backend)
    result = run(MATRICES, "128", "129", "130", "3", environment=machine)
    assert result.returncode == 0, result.stderr
    assert [128 * row, 132 * row, 132 * row, 4 * row] == list(map(int, result.stdout.split()))
