"""detect_cuda, check_gpu_compatibility and free_memory, with a fake of the driver's NVML."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from llcuda import device
from llcuda.errors import ArgumentError, LibraryError
from llcuda.native.cuda_build import CudaBuild, parse
from tests.support import fake_nvml
from tests.support.fake_nvml import A100, H200, P100, T4, Driver, Gpu, NVMLError, install

OFF = {
    "compatible": False,
    "platform": "local",
    "gpu_name": None,
    "compute_capability": None,
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment of the machine's, a build with CUDA, and a log line not yet written."""
    for name in ("CUDA_VISIBLE_DEVICES", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    for name in ("COLAB_GPU", "CUDA_CACHE_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "kept").touch()
    monkeypatch.setenv("CUDA_CACHE_PATH", str(tmp_path))
    device.log_newer_gpu.cache_clear()
    build(monkeypatch, parse("12.2", "75,90"))


def build(monkeypatch: pytest.MonkeyPatch, found: CudaBuild | None) -> None:
    """Have llcuda built so; None: without CUDA."""
    monkeypatch.setattr(device.library, "cuda_build", lambda: found)


def names() -> list[str]:
    """Return the names of the GPUs that are visible."""
    return [gpu["name"] for gpu in device.detect_cuda()["gpus"]]


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """All facts of the contract, and the session with the driver is closed."""
    driver = install(monkeypatch, T4)
    assert device.detect_cuda() == {
        "available": True,
        "version": "12.2",
        "gpus": [
            {
                "name": "Tesla T4",
                "compute_capability": "7.5",
                "memory": 16 * 2**30,
                "driver_version": "535.104.05",
            }
        ],
    }
    assert (driver.sessions, driver.opened) == (0, 1)


def test_compatible(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The GPU that llcuda is tuned for is compatible, and nothing is logged."""
    caplog.set_level(logging.INFO)
    install(monkeypatch, T4)
    assert device.check_gpu_compatibility() == {
        "compatible": True,
        "platform": "local",
        "gpu_name": "Tesla T4",
        "compute_capability": "7.5",
        "reason": "Tesla T4 has compute capability 7.5",
    }
    assert caplog.messages == []


def test_older_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the name, the compute capability and the required one."""
    install(monkeypatch, P100)
    assert device.check_gpu_compatibility() == {
        "compatible": False,
        "platform": "local",
        "gpu_name": "Tesla P100-PCIE-16GB",
        "compute_capability": "6.0",
        "reason": "Tesla P100-PCIE-16GB has compute capability 6.0, and GPU work needs 7.5 or"
        " higher: take a newer GPU; the CPU still works",
    }


def test_newer_gpus_work_and_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However often one asks, there is one line."""
    caplog.set_level(logging.INFO)
    install(monkeypatch, H200)
    assert device.check_gpu_compatibility()["compatible"]
    assert device.check_gpu_compatibility()["compatible"]
    assert caplog.messages == ["NVIDIA H200 has compute capability 9.0; llcuda is tuned for 7.5"]


def test_capabilities_compare_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """10.0 is above 7.5."""
    install(monkeypatch, Gpu("B200", (10, 0)))
    assert device.check_gpu_compatibility()["compatible"]


def test_the_first_gpu_that_will_do_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old GPU beside a good one does not spoil it."""
    install(monkeypatch, P100, T4)
    assert device.check_gpu_compatibility()["gpu_name"] == "Tesla T4"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nvidia-ml-py there is no GPU, and the reason is what to install."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    none_because(None, "GPUs cannot be detected: pip install nvidia-ml-py")


def none_because(version: str | None, reason: str) -> None:
    """Both functions say that there is no GPU, and why."""
    detected = {"available": False, "version": version, "gpus": [], "reason": reason}
    assert device.detect_cuda() == detected
    assert device.check_gpu_compatibility() == {**OFF, "reason": f"{reason}; the CPU is used"}


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing driver raises nothing; what to do is said, in a notebook by its own words."""
    install(monkeypatch, failure=NVMLError("Driver Not Loaded"))
    missing = "no NVIDIA driver answers (Driver Not Loaded)"
    none_because(None, f"{missing}: install the driver, or run where there is a GPU")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert "Runtime > Change runtime type" in device.check_gpu_compatibility()["reason"]


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's CUDA version is known, and that it finds nothing."""
    install(monkeypatch)
    none_because("12.2", "the driver finds no GPU: check nvidia-smi")


def test_a_failure_midway_closes_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error after the start is no exception either, and leaves nothing open."""
    driver = install(monkeypatch, Gpu(capability=None, parent=Gpu(capability=None)))
    assert not device.detect_cuda()["available"]
    assert driver.sessions == 0


def test_a_lost_gpu_keeps_the_others_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU that does not answer is logged; the next one still is number 1."""
    install(monkeypatch, Gpu(lost=True), H200)
    assert names() == ["NVIDIA H200"]
    assert caplog.messages == ["GPU 0 does not answer: GPU is lost"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert names() == ["NVIDIA H200"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("0", [T4]),
        ("2,0", [H200, T4]),
        (" 1 , 2 ", [P100, H200]),
        ("1,7,0", [P100]),  # what follows a wrong entry does not count
        ("0,-1,1", [T4]),
        ("GPU-2222", [H200]),
        ("GPU-11111111,0", [P100, T4]),
        ("MIG-a", [Gpu("H200 slice")]),
    ],
)
def test_cuda_visible_devices_chooses_and_orders(
    monkeypatch: pytest.MonkeyPatch, chosen: str, expected: list[Gpu]
) -> None:
    """Numbers, beginnings of UUIDs and slices, in the order given."""
    slice_ = Gpu("H200 slice", None, "MIG-a", parent=H200)
    install(monkeypatch, T4, P100, H200, slices=[slice_])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert names() == [gpu.name for gpu in expected]


@pytest.mark.parametrize("chosen", ["", "-1", "9", "none", "0,0", "GPU-", "GPU-9", "MIG-9", "0x0"])
def test_cuda_visible_devices_that_leaves_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    """Empty, wrong, ambiguous or double: no GPU, and the reason quotes the variable."""
    install(monkeypatch, T4, H200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    what = f"CUDA_VISIBLE_DEVICES={chosen!r} leaves no GPU visible"
    none_because("12.2", f"{what}: unset it, or name some of 0 to 1")


def test_a_slice_has_the_capability_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML may know it only of the whole GPU."""
    install(monkeypatch, H200, slices=[Gpu("H200 slice", None, "MIG-a", parent=H200)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a")
    assert device.check_gpu_compatibility()["compute_capability"] == "9.0"


def test_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number that detect_cuda gives; None where a GPU has no memory of its own."""
    install(monkeypatch, T4, Gpu("GB10", (12, 1), memory=None))
    assert [device.free_memory(0), device.free_memory(1)] == [15 * 2**30, None]
    assert [gpu["memory"] for gpu in device.detect_cuda()["gpus"]] == [16 * 2**30, None]


@pytest.mark.parametrize("index", [-1, 1])
def test_free_memory_of_a_gpu_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    """The message says how many there are."""
    install(monkeypatch, T4)
    with pytest.raises(ArgumentError, match=f"no GPU {index}: there are 1"):
        device.free_memory(index)


def test_free_memory_without_a_driver_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is the one of check_gpu_compatibility."""
    install(monkeypatch, failure=NVMLError("Driver Not Loaded"))
    with pytest.raises(ArgumentError, match="no GPU 0: no NVIDIA driver answers"):
        device.free_memory()


RUNS = "Tesla T4 has compute capability 7.5"
WHEEL = "pip install 'llcuda-VERSION+cu124-TAGS.whl[cuda]'"
CUDA12 = f"{WHEEL} (make wheel-cuda)"
CUDA12_FOR_8 = f"{WHEEL} (make wheel-cuda ARCHITECTURES='75;80')"
PTX = "too old to compile this llcuda's PTX"
OLD = "is too old: it runs CUDA"
NO_CUDA = "but this llcuda was built without CUDA"
WORKS = ("", "")
# By build and GPU: for the drivers 470, 525, 535, 550, 570 and 580, what is said and the way out.
MATRIX: dict[tuple[str | None, str], list[tuple[str, str]]] = {
    ("12.4", "T4"): [(OLD, "install driver 525 or newer; "), *[WORKS] * 5],
    ("12.4", "A100"): [
        (OLD, "install driver 550 or newer; "),
        *[(PTX, "install driver 550 or newer, or build with LLCUDA_CUDA_ARCHITECTURES=80")] * 2,
        *[WORKS] * 3,
    ],
    ("13.0", "T4"): [
        (OLD, f"install driver 525 or newer and {CUDA12}, or install driver 580 or newer"),
        *[(OLD, f"{CUDA12}, or install driver 580 or newer")] * 4,
        WORKS,
    ],
    ("13.0", "A100"): [
        (OLD, f"install driver 550 or newer and {CUDA12}, or install driver 580 or newer"),
        *[(OLD, f"{CUDA12_FOR_8}, or install driver 580 or newer")] * 2,
        *[(OLD, f"{CUDA12}, or install driver 580 or newer")] * 2,
        WORKS,
    ],
    (None, "T4"): [
        (NO_CUDA, f"install driver 525 or newer and {CUDA12}, or in llcuda's source folder"),
        *[(NO_CUDA, f"{CUDA12}, or in llcuda's source folder")] * 5,
    ],
    (None, "A100"): [
        (NO_CUDA, f"install driver 550 or newer and {CUDA12}, or in llcuda's source folder"),
        *[(NO_CUDA, f"{CUDA12_FOR_8}, or in llcuda's source folder")] * 2,
        *[(NO_CUDA, f"{CUDA12}, or in llcuda's source folder")] * 3,
    ],
}


@pytest.mark.parametrize("number", range(len(fake_nvml.CUDA)))
@pytest.mark.parametrize(("made", "name"), MATRIX)
def test_drivers_and_builds(
    made: str | None, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each driver with each build: whether it runs, or why not, and which wheel fits."""
    version, gpu = list(fake_nvml.CUDA)[number], {"T4": T4, "A100": A100}[name]
    install(monkeypatch, gpu, version=version)
    build(monkeypatch, None if made is None else parse(made, "75"))
    what, mend = MATRIX[made, name][number]
    answer, detected = device.check_gpu_compatibility(), device.detect_cuda()
    assert (answer["compatible"], detected["available"]) == (not what, True)
    assert ("reason" in detected) == bool(what)
    if what:
        assert what in answer["reason"]
        assert f": {mend}" in answer["reason"]
        assert answer["reason"] == f"{detected['reason']}; the CPU still works"
    if what in (OLD, PTX):
        assert f"the NVIDIA driver {version} is too old" in answer["reason"]


@pytest.mark.parametrize("made", ["12.4", "13.0", None])
@pytest.mark.parametrize("version", fake_nvml.CUDA)
def test_an_older_gpu_is_refused_with_every_driver(
    version: str, made: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither another wheel nor another driver would help, so neither is named."""
    install(monkeypatch, P100, version=version)
    build(monkeypatch, None if made is None else parse(made, "75"))
    assert "needs 7.5 or higher: take a newer GPU" in device.detect_cuda()["reason"]
    assert "whl" not in device.check_gpu_compatibility()["reason"]


@pytest.mark.parametrize("version", fake_nvml.CUDA)
def test_no_gpu_is_not_the_drivers_fault(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without a GPU is no reason for another wheel."""
    install(monkeypatch, version=version)
    build(monkeypatch, parse("13.0", "75"))
    none_because(fake_nvml.CUDA[version], "the driver finds no GPU: check nvidia-smi")


def test_a_card_beside_one_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU that works is enough for no reason at all."""
    install(monkeypatch, A100, T4)
    build(monkeypatch, parse("12.4", "75"))
    assert "reason" not in device.detect_cuda()
    assert device.check_gpu_compatibility()["gpu_name"] == "Tesla T4"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (parse("12.2", "80"), "this llcuda has no code for compute capability 7.5 (CUDA 12.2, "),
        (parse("12.8", "61"), "the NVIDIA driver 535.104.05 is too old to compile this llcuda's"),
    ],
)
def test_a_build_for_other_gpus(
    made: CudaBuild, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No code that the GPU runs: with the way out."""
    install(monkeypatch, T4)
    build(monkeypatch, made)
    answer = device.check_gpu_compatibility()
    assert not answer["compatible"]
    assert answer["reason"].startswith(expected)
    assert "LLCUDA_CUDA_ARCHITECTURES=75" in answer["reason"]
    assert answer["reason"].endswith("; the CPU still works")


def test_ptx_of_a_newer_cuda_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Driver 580 does not compile the PTX of 13.1, but that of the CUDA 12 wheel."""
    install(monkeypatch, H200, version="580.65.06")
    build(monkeypatch, parse("13.1", "75"))
    reason = device.check_gpu_compatibility()["reason"]
    assert f": {CUDA12}, or install driver 590 or newer, or build with" in reason


@pytest.mark.parametrize("made", [parse("12.8", "75"), parse("", ""), parse("12.2", "native")])
def test_a_build_that_can_use_the_gpu(
    monkeypatch: pytest.MonkeyPatch, made: CudaBuild | None
) -> None:
    """Machine code of a newer toolkit runs; of what is not known nothing is wrong."""
    install(monkeypatch, T4)
    build(monkeypatch, made)
    assert device.check_gpu_compatibility()["reason"] == RUNS


def test_a_missing_library_is_not_this_functions_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error when a model is loaded; here the GPU counts."""
    install(monkeypatch, T4)

    def missing() -> CudaBuild:
        raise LibraryError("no library")

    monkeypatch.setattr(device.library, "cuda_build", missing)
    assert device.check_gpu_compatibility()["compatible"]


def test_the_first_run_waits_for_the_drivers_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """With nothing in its cache that is said once, with how long; else it is not mentioned."""
    install(monkeypatch, H200)
    build(monkeypatch, parse("12.2", "75"))
    assert "note" not in device.check_gpu_compatibility()
    (tmp_path / "kept").unlink()
    for _ in range(2):
        note = device.check_gpu_compatibility()["note"]
    assert "compiles code for compute capability 9.0 at the first run" in note
    assert caplog.messages == [note]
    build(monkeypatch, parse("12.2", "75,90"))
    assert "note" not in device.check_gpu_compatibility()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "local"),
        ({"COLAB_RELEASE_TAG": "release"}, "colab"),
        ({"COLAB_GPU": "1"}, "colab"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, "kaggle"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch", "COLAB_RELEASE_TAG": "release"}, "kaggle"),
    ],
)
def test_platform(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    """The notebook services are known by their variables."""
    install(monkeypatch, T4)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert device.check_gpu_compatibility()["platform"] == expected


def test_the_real_package_has_every_function_that_is_called() -> None:
    """The fake promises no function that nvidia-ml-py lacks."""
    pynvml = pytest.importorskip("pynvml")
    called = [name for name in dir(Driver) if name.startswith("nvml")]
    assert [name for name in (*called, "NVMLError") if not hasattr(pynvml, name)] == []
    assert issubclass(pynvml.NVMLError_NotSupported, pynvml.NVMLError)
