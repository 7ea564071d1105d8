"""The notebooks for Colab and Kaggle: well-formed, and what needs no GPU and no network runs."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import llcuda
from tests.support import fake_gpu
from tests.support.documents import ROOT
from tests.support.notebooks import NOTEBOOKS, Cell, Session, cells
from tests.support.programs import run

COLAB, KAGGLE = NOTEBOOKS
# What stands for the model and for sizes that a processor would take minutes for.
SMALLER = {
    "NEED_GPU = True": "NEED_GPU = False",
    '"gemma-3-1b-Q4_K_M"': '"demo"',
    "[2048, 2048]": "[64, 64]",
    "--measure startup,decode,": "--quick --measure decode,",
    "--requests 1,4,8": "--requests 1,2",
    "--depth 512,2048,4096,8192": "--depth 32",
    '"tests/gpu"': '"tests/gpu/test_embedding.py"',
    **{f"max_tokens={count}": "max_tokens=8" for count in (50, 80, 100, 200)},
}


def cell(name: str, notebook: Path = COLAB) -> Cell:
    """Return the cell with an id."""
    (found,) = (cell for cell in cells(notebook) if cell.id == name)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the tests' source as the notebooks fetch it."""
    source = tmp_path / "llcuda-source"
    source.mkdir()
    shutil.copy(ROOT / "pyproject.toml", source)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_two() -> None:
    assert ["colab_t4.ipynb", "kaggle_two_t4.ipynb"] == [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_format(notebook: Path) -> None:
    """Version 4.5 of nbformat: every cell with an id of its own, code without outputs."""
    document: dict[str, Any] = json.loads(notebook.read_text("utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    for cell in document["cells"]:
        assert {"cell_type", "id", "metadata", "source"} <= cell.keys()
        assert cell["cell_type"] in ("code", "markdown")
        assert all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_schema(notebook: Path) -> None:
    """As nbformat itself checks it, where it is installed."""
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.from_dict(json.loads(notebook.read_text("utf-8"))))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_says_what_was_not_measured(notebook: Path) -> None:
    """The figures of the documents are named as theirs."""
    assert "never measured by us on a T4" in cells(notebook)[0].text


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_compiles(notebook: Path) -> None:
    """Also those that install."""
    for cell in cells(notebook):
        if cell.kind == "code":
            compile(cell.python, cell.id, "exec")


def test_what_both_share_is_the_same() -> None:
    """Only the text before, the benchmark's GPU and the report's files differ."""
    colab, kaggle = ({cell.id: cell.text for cell in cells(path)} for path in NOTEBOOKS)
    ours = {"title", "bench", "report", "bench-title", "tests-title", "report-title"}
    assert ours == {name for name in colab if colab[name] != kaggle.get(name)}
    one_gpu = "!CUDA_VISIBLE_DEVICES=0 llcuda bench"
    assert kaggle["bench"] == colab["bench"].replace("!llcuda bench", one_gpu)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run_with_the_demo_model(
    notebook: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In their order, but for those that need a network; the last one shows the report."""
    session, shown = Session(SMALLER), ""
    for cell in session.run_all(notebook):
        shown = capsys.readouterr().out.strip()
        assert shown, cell.id
    assert session.replaced == SMALLER.keys()
    assert not session.names["engine"].is_loaded
    lines = shown.splitlines()
    assert ("```text", "```") == (lines[0], lines[-1])
    runs = 2 if notebook == KAGGLE else 1
    assert runs == sum(line.startswith("demo.gguf: ") for line in lines)
    assert "Now over llcuda 2" in lines
    assert any(re.match(r"Tests: \d+ passed, 0 failed, 0 errors,", line) for line in lines)


# --- two GPUs ---

ON_TWO_GPUS = f"""{fake_gpu.INSTALL}
import sys
from tests.support.notebooks import NOTEBOOKS, Session, cells

session = Session({{'"gemma-3-1b-Q4_K_M"': '"demo"'}})
session.names["NEED_GPU"] = True
for cell in cells(NOTEBOOKS[1]):
    if cell.id in sys.argv[1:]:
        session.run(cell)
"""


def test_the_cells_for_two_gpus(tmp_path: Path, backend: Path) -> None:
    """A model over both, then an engine on each, on a machine with two T4 that the CPU plays."""
    machine = fake_gpu.environment(tmp_path, backend=backend, gpus=(fake_gpu.T4, fake_gpu.T4))
    names = ("install", "version", "check", "download", "load", "parallel")
    mine = ("split", "one-engine-a-card")
    result = run(ON_TWO_GPUS, *names, *mine, environment=machine, timeout=300)
    assert 0 == result.returncode, result.stderr
    assert "both GPUs, one text:" in result.stdout
    assert "engines: 1, " in result.stdout
    assert "engines: 2, " in result.stdout


# --- bad input: the cell says what to do ---


@pytest.mark.parametrize("command", [None, "echo NVIDIA-SMI has failed; exit 9"])
def test_a_machine_without_a_gpu(
    command: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No nvidia-smi, or one that finds no driver, ends the run with the menu's words."""
    if command:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"Runtime > Change runtime type > T4 GPU"):
        Session().run(cell("gpu"))
    Session({"NEED_GPU = True": "NEED_GPU = False"}).run(cell("gpu"))


def test_a_machine_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '| CUDA Version: 12.4 |'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    Session().run(cell("gpu"))


@pytest.mark.parametrize(
    ("settings", "upload", "asked"),
    [
        ({}, "llcuda-3.0.0+cu124-x.whl", "llcuda[cuda] @ file://{}/llcuda-3.0.0%2Bcu124-x.whl"),
        ({'WHEEL = ""': 'WHEEL = "b.whl"'}, "llcuda-a.whl", "llcuda[cuda] @ file://{}/b.whl"),
        ({'WHEEL = ""': 'WHEEL = "https://a.b/c.whl"'}, None, "llcuda[cuda] @ https://a.b/c.whl"),
        ({'EXTRA = "cuda"': 'EXTRA = "cuda13"'}, "llcuda-a.whl", "llcuda[cuda13] @ file://{}/llcuda-a.whl"),
    ],
)  # fmt: skip
def test_a_wheel_is_installed(
    settings: dict[str, str], upload: str | None, asked: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The one that is named, or the one in this folder; pip reads each as a requirement."""
    monkeypatch.chdir(tmp_path)
    if upload:
        (tmp_path / upload).touch()
    session = Session(settings)
    session.run(cell("install"))
    assert [f'install -q "{asked.format(tmp_path)}"'] == session.pip


def test_the_source_is_compiled_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = Session({"FROM_SOURCE = False": "FROM_SOURCE = True"})
    session.run(cell("install"))
    (command,) = session.pip
    assert "git+https://github.com/llcuda/llcuda.git" in command
    assert command.endswith("--config-settings=cmake.define.LLCUDA_CUDA=ON")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "Upload a wheel .*set WHEEL to its address.* 20 to 40 minutes"),
        ({'WHEEL = ""': 'WHEEL = "b.whl"'}, "pip has not installed llcuda"),
    ],
)
def test_nothing_is_installed(
    settings: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=says):
        Session(settings).run(cell("install"))


def test_a_wheel_that_does_not_fit_the_driver(tmp_path: Path, backend: Path) -> None:
    """On Colab's driver a wheel that CUDA 13 built ends the run with the wheel that fits."""
    machine = fake_gpu.environment(tmp_path, backend=backend, build="13.0", driver="550.54.15")
    result = run(ON_TWO_GPUS, "version", "check", environment=machine)
    assert 1 == result.returncode
    assert "GPU: Tesla T4" in result.stdout
    assert "llcuda cannot use the GPU" in result.stderr
    assert "+cu124-TAGS.whl[cuda]" in result.stderr


def test_a_model_that_cannot_be_downloaded() -> None:
    """The library's error, and what to do in a notebook."""
    session = Session({"gemma-3-1b-Q4_K_M": "no-such-model"}, names={"llcuda": llcuda})
    with pytest.raises(SystemExit, match=r"no model is called 'no-such-model'(.|\n)*> Internet"):
        session.run(cell("download"))
