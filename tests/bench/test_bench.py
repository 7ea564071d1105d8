"""llcuda bench: shapes, measurements, the document, comparison and plot."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import llcuda
from llcuda import Context, Model, device
from llcuda.bench import measure, run, synthetic
from llcuda.bench.loops import Budget, Subject
from llcuda.bench.measure import bytes_per_token
from llcuda.bench.plot import check_plot, draw_plot
from llcuda.bench.report import (
    REFERENCES,
    compare_documents,
    describe_reference,
    read_document,
    show_comparison,
    show_part,
)
from llcuda.bench.run import DEFAULT_TABLES, QUICK_TABLES, TABLES, Bench, BenchParams
from llcuda.bench.synthetic import SHAPES, file_size, make_synthetic_model, write_header
from llcuda.cli.main import main
from llcuda.errors import ArgumentError, ContextError, LlcudaError, ModelError
from llcuda.native import library
from llcuda.native.estimate import memory_needed
from llcuda.native.quantization.quantize import tensor_size
from tests.support.programs import run as run_program

FAST = Budget(turns=1, seconds=0.01, steps=(2, 4))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the shapes, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "llcuda" / "shapes"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure as little as possible."""
    for name in ("CPU_BUDGET", "QUICK_BUDGET"):
        monkeypatch.setattr(run, name, FAST)


def measured(params: BenchParams, path: Path | None = None) -> dict[str, Any]:
    """Measure, by default the demo model; the parts come as the document has them."""
    shown: dict[str, Any] = {}
    runner = Bench(
        path or llcuda.demo_model(), params, on_part=shown.__setitem__, on_status=lambda what: None
    )
    document = runner.run()
    assert document == shown.pop("header")
    assert document["model"] == shown.pop("model")
    assert document["tables"] == shown
    return document


# --- shapes ---


def test_a_shape_is_written_quantized_and_decoded(cache: Path) -> None:
    """Its vocabulary gives every text back, its sizes are the shape's, nothing else is left."""
    path = make_synthetic_model("tiny", "q4_k_m")
    shape = SHAPES["tiny"]
    with Model(path) as model, Context(model, ctx_size=64) as context:
        assert (shape.vocabulary, shape.layers) == (model.vocab_size, model.layer_count)
        assert "Q4_K - Medium" in model.description
        for text in ("bado keru", "Hello, wörld\n", "日本 🙂", "  a  b ", ""):
            tokens = model.tokenize(text)
            assert text == model.detokenize(tokens, remove_special=True)
        assert len(model.tokenize("bado keru", add_special=False)) == 3  # made-up words are known
        context.decode(model.tokenize("Hello"))
        assert context.logits().std() > 0
    assert [path] == list(cache.iterdir())


def test_a_shape_is_written_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file in the cache is taken; its F16 form, if that is there, is the source of others."""
    plain = make_synthetic_model("tiny", "F16")
    monkeypatch.setattr(synthetic, "write_header", lambda *arguments: pytest.fail("written again"))
    assert plain == make_synthetic_model("TINY", "f16")
    assert make_synthetic_model("tiny", "BF16").is_file()
    assert 2 == len(list(cache.iterdir()))


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_takes_each_shape(name: str, tmp_path: Path) -> None:
    """Its loader finds every tensor that the architecture needs, in the right dimensions."""
    shape = dataclasses.replace(SHAPES[name], vocabulary=512)
    path = tmp_path / "m.gguf"
    write_header(shape, path)
    os.truncate(path, path.stat().st_size + 64 + file_size(shape))  # weights: a hole of zeros
    (needed,) = memory_needed(path, gpu_layers=0, ctx_size=64)
    assert needed.model == pytest.approx(file_size(shape), rel=0.02)


def test_a_killed_writer_leaves_nothing_to_be_taken(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file has another name, and goes when the next one is made."""
    program = """
import os, signal
from llcuda.bench import synthetic

synthetic.write_weights = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
synthetic.make_synthetic_model("tiny", "Q8_0")
"""
    assert -9 == run_program(program).returncode
    (left,) = cache.iterdir()
    assert left.suffix == ".part"
    with monkeypatch.context() as patched:
        patched.setattr(synthetic, "write_weights", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_synthetic_model("tiny", "Q8_0")
    assert [] == list(cache.iterdir())
    assert make_synthetic_model("tiny", "Q8_0").stat().st_size > 10**6


def test_a_full_disk_is_said_before_writing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be written is compared with what is free."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3_000_000))
    with pytest.raises(ModelError, match=r"4 MB to write, 3 MB free; .*XDG_CACHE_HOME"):
        make_synthetic_model("tiny", "Q8_0")
    assert [] == list(cache.iterdir())


def test_shapes_need_the_gguf_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LlcudaError, match=r"pip install 'llcuda\[bench\]'"):
        make_synthetic_model("tiny")


@pytest.mark.parametrize(("name", "file_type"), [("gemma-9", "Q4_K_M"), ("tiny", "Q9")])
def test_unknown_shapes_and_types(name: str, file_type: str, cache: Path) -> None:
    """An unknown name is an error that lists the known ones."""
    with pytest.raises(ArgumentError, match="expected one of"):
        make_synthetic_model(name, file_type)


# --- measurements ---


@pytest.mark.usefixtures("fast")
def test_every_table_is_measured() -> None:
    """Each has its rows; rates are positive; what needs a GPU says so; the document is JSON."""
    document = measured(
        BenchParams(
            tables=tuple(TABLES), prefill=(8, 16), parallel=(1, 3), requests=(1, 2),
            depth=(0, 32), kv_types=("f16", "q8_0"), quick=True,
        )
    )  # fmt: skip
    tables = document["tables"]
    assert list(TABLES) == sorted(tables, key=list(TABLES).index)
    for name, rows in tables.items():
        if name not in ("graphs", "layers", "memory"):
            assert [] == [row for row in rows if "error" in row], name
        for row in rows:
            assert all(row[key] > 0 for key in row if key.endswith(("per_second", "seconds")))
    assert "process start to first token" == tables["startup"][-1]["phase"]
    assert [8, 16] == [row["tokens"] for row in tables["prefill"]]
    assert [1, 3] == [row["rows"] for row in tables["parallel"]]
    assert 4 + 5 == len(tables["sampling"])  # one row has no rows with parameters of their own
    assert [1, 2] == [row["n_parallel"] for row in tables["requests"]]
    assert ["on", "off", "on", "off"] == [row["flash_attention"] for row in tables["depth"]]
    assert [True, False, True, False] == ["over_off" in row for row in tables["depth"]]
    assert tables["kv"][0]["kv_bytes"] > tables["kv"][1]["kv_bytes"] > 0
    if not document["device"]["gpus"]:
        for name in ("graphs", "layers", "memory"):
            assert "no GPU is used" == tables[name][0]["error"], name
    assert document == json.loads(json.dumps(document))


@pytest.mark.usefixtures("fast")
def test_ratios_are_of_the_same_turns() -> None:
    """The engine's speed over the bare loop's is about the quotient of both columns."""
    (row,) = measured(BenchParams(tables=("parallel",), parallel=(2,)))["tables"]["parallel"]
    quotient = row["engine_tokens_per_second"] / row["copied_tokens_per_second"]
    assert row["over_copied"] == pytest.approx(quotient, rel=1e-3)


@pytest.mark.usefixtures("fast")
def test_requests_are_measured_whole() -> None:
    """One after the other, the rate is that of the median latency; its limits are ordered."""
    (row,) = measured(BenchParams(tables=("requests",), requests=(1,)))["tables"]["requests"]
    assert row["p50_ms"] <= row["p95_ms"]
    per_request = 1e3 * measure.REQUEST_TOKENS / row["tokens_per_second"]
    assert row["p50_ms"] == pytest.approx(per_request, rel=0.5)


def test_modes_of_cuda_graphs_are_compared(demo: Model) -> None:
    """Each mode has its rate, and the first one's ratio to the others; a CPU computes all alike."""
    (row,) = measure.graphs(Subject(demo, False, 1, FAST), (2,))
    on, checked, off = (row[f"{mode}_tokens_per_second"] for mode in ("on", "checked", "off"))
    assert row["over_checked"] == pytest.approx(on / checked)
    assert row["over_off"] == pytest.approx(on / off)


@pytest.mark.usefixtures("fast")
def test_what_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that cannot be made costs its row, and no other."""
    decode_loop = Subject.decode_loop

    def loop(self: Subject, rows: int, **parameters: Any) -> Any:
        if rows == 2:
            raise ContextError("too large\nand llama.cpp's log")
        return decode_loop(self, rows, **parameters)

    monkeypatch.setattr(Subject, "decode_loop", loop)
    rows = measured(BenchParams(tables=("parallel",), parallel=(1, 2, 3)))["tables"]["parallel"]
    assert [None, "too large", None] == [row.get("error") for row in rows]


@pytest.mark.usefixtures("fast")
def test_recurrent_models_are_measured(model_files: dict[str, Path]) -> None:
    """A memory that cannot be cut is filled anew each turn."""
    rows = measured(BenchParams(tables=("decode", "parallel"), parallel=(2,)), model_files["mamba"])
    assert [[], []] == [[r for r in table if "error" in r] for table in rows["tables"].values()]


def test_budget() -> None:
    """The slowest loop decides how many steps a turn has; a slow call is not repeated."""
    asked: list[int] = []

    def loop(seconds: float) -> Any:
        return lambda steps: asked.append(steps) or seconds

    turns = Budget(turns=2, seconds=1, steps=(2, 50)).compare({"a": loop(0.1), "b": loop(0.001)})
    assert {"a": [0.1, 0.1], "b": [0.001, 0.001]} == turns
    assert [2, 2, 10, 10, 10, 10] == asked
    calls = [5.0, 0.1, 0.2, 0.3, 0.2]
    assert 5.0 == Budget(turns=3, seconds=1, steps=(1, 1)).repeat(lambda: calls.pop(0))
    assert 0.2 == Budget(turns=3, seconds=1, steps=(1, 1)).repeat(lambda: calls.pop(0))


def test_bytes_that_a_token_reads(cache: Path, model_files: dict[str, Path]) -> None:
    """All weights, but of an embedding that is not the output matrix only a row."""
    with Model(make_synthetic_model("tiny", "Q8_0")) as tied, Model(model_files["llama"]) as untied:
        assert tied.size == bytes_per_token(tied)
        embedding = tensor_size(untied.path, "token_embd.weight")
        assert tensor_size(untied.path, "output.weight") > 0
        assert untied.size - embedding == bytes_per_token(untied)


def test_features_are_the_backends() -> None:
    """Each backend names its own."""
    assert all(value for value in library.features()["CPU"].values())


@pytest.mark.parametrize(
    ("chosen", "tables"),
    [
        ({}, DEFAULT_TABLES),
        ({"quick": True}, QUICK_TABLES),
        ({"quick": True, "depth": (1,)}, (*QUICK_TABLES, "depth")),
        ({"tables": ("kv", "decode")}, ("decode", "kv")),
    ],
)
def test_tables_to_measure(chosen: dict[str, Any], tables: tuple[str, ...]) -> None:
    """The usual ones, or those that are named; a list adds its table."""
    assert list(tables) == BenchParams(**chosen).chosen


# --- the GPU's clocks ---


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The driver of a T4 that does not say its clock."""

    class NVMLError(Exception):
        pass

    def refuse(*arguments: Any) -> int:
        raise NVMLError

    fake = SimpleNamespace(
        NVMLError=NVMLError, NVML_CLOCK_MEM=2, NVML_CLOCK_SM=1,
        nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: "handle", nvmlDeviceGetClockInfo=refuse,
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: {1: 1590, 2: 5001}[kind],
        nvmlDeviceGetMemoryBusWidth=lambda handle: 256,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_gpu_speed(nvml: SimpleNamespace) -> None:
    """A T4's memory moves 320 GB/s; what the driver does not say is None."""
    speed = device.gpu_speed()
    assert speed is not None
    assert (None, 1590, 5001) == (
        speed["clock"],
        speed["clock_limit"],
        speed["memory_clock_limit"],
    )
    assert speed["memory_bandwidth"] == pytest.approx(320e9, rel=0.01)
    assert device.gpu_speed(1) is None


# --- what is shown ---


@pytest.fixture(scope="module")
def printed() -> str:
    """What `llcuda bench --quick` printed."""
    command = [sys.executable, "-m", "llcuda", "bench", "--measure", "decode,prefill", "--quick"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "" == result.stderr
    return result.stdout


def test_tables_and_the_document_are_printed(printed: str) -> None:
    """Tables for people, and the document as the last line."""
    document = json.loads(printed.splitlines()[-1])
    assert document["device"]["name"] in printed
    assert "Prompts" in printed
    assert f"{document['tables']['prefill'][0]['tokens']}" in printed
    assert document["llcuda"] == llcuda.__version__


def test_two_runs_are_compared(printed: str, tmp_path: Path) -> None:
    """What a run printed is read again; ratios are now over before, of what both measured."""
    earlier = tmp_path / "before.txt"
    earlier.write_text(printed)
    before = read_document(str(earlier))
    now = json.loads(json.dumps(before))
    now["tables"]["prefill"][0]["tokens_per_second"] *= 2
    now["tables"]["parallel"] = [{"rows": 1, "engine_tokens_per_second": 5.0}]
    compared = compare_documents(now, before)
    rows = {(row["table"], row["figure"]): row["ratio"] for row in compared}
    assert rows["prefill", "tokens_per_second"] == pytest.approx(2)
    assert rows["decode", "tokens_per_second"] == 1
    assert ("parallel", "engine_tokens_per_second") not in rows


def test_of_the_ratios_only_those_to_off_are_compared() -> None:
    """Flash attention and CUDA graphs have a speed-up to compare; other ratios are of one run."""
    run = {"tables": {"parallel": [{"rows": 1, "over_left": 1.0}], "graphs": [{"over_off": 2.0}]}}
    assert ["over_off"] == [row["figure"] for row in compare_documents(run, run)]


def shown(show: Callable[[Console], None]) -> list[str]:
    """Return the lines that a function prints."""
    output = StringIO()
    show(Console(file=output, width=120))
    return [line.strip() for line in output.getvalue().splitlines() if line.strip()]


def test_the_comparison_is_shown(printed: str) -> None:
    """Ratios, and first what else differs; without a common figure it says so."""
    before = json.loads(printed.splitlines()[-1])
    now = json.loads(printed.splitlines()[-1])
    before["device"]["name"], now["device"]["name"] = "a GPU [1]", "another"
    now["tables"] = {"prefill": [{"tokens": 7, "tokens_per_second": 2000.0}]}
    before["tables"] = {"prefill": [{"tokens": 7, "tokens_per_second": 50.0}]}
    now["compared"] = compare_documents(now, before)
    now["compared_with"] = describe_reference(before)
    first, title, _, row = shown(lambda console: show_comparison(console, now))
    assert "another device: before a GPU [1], now another" == first
    assert "Now over before" == title
    assert ["tokens/s", "50", "2,000", "40.000"] == row.split()[-4:]
    same = {**now, "compared": [], "compared_with": describe_reference(now)}
    lines = shown(lambda console: show_comparison(console, same))
    assert ["Now over before", "nothing was measured in both runs"] == lines


def test_the_documents_figures_are_a_reference(tmp_path: Path) -> None:
    """A run on the documents' card compares with them by name; every figure of theirs is met."""
    assert ["t4"] == list(REFERENCES)
    reference = read_document("t4")
    rate = {"tokens_per_second": 268.6}
    depth = [
        {"depth": length, "flash_attention": state, "prefill_tokens_per_second": 1.0, **rate}
        for length in (512, 2048, 4096, 8192)
        for state in ("on", "off")
    ]
    depth = [{**row, "over_off": 1.0} if row["flash_attention"] == "on" else row for row in depth]
    requests = [{"n_parallel": n, **rate, "p50_ms": 345.0, "p95_ms": 725.0} for n in (1, 4, 8)]
    memory = [{"state": "and a context of 2,048 tokens", "gpu_bytes": 2**30}]
    now: dict[str, Any] = {
        "device": {"name": "Tesla T4"},
        "model": {"description": "gemma3 1B Q4_K - Medium"},
        "tables": {"requests": requests, "depth": depth, "memory": memory},
    }
    now["compared"] = compare_documents(now, reference)
    now["compared_with"] = describe_reference(reference)
    assert 5 + (8 + 4) + 1 == len(now["compared"])
    title, heading, first, *_, note = shown(lambda console: show_comparison(console, now))
    assert "Now over llcuda 2" == title
    assert ["of", "figure", "llcuda", "2", "now", "ratio"] == heading.split()
    assert ["tokens/s", "134", "269", "2.000"] == first.split()[-4:]
    assert "reported by its documents" in note


def test_a_file_has_precedence_over_a_reference(
    printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t4").write_text(printed)
    assert read_document("t4") == json.loads(printed.splitlines()[-1])


def test_the_device_is_shown(printed: str) -> None:
    """GPUs with their clocks, and code that the driver compiled."""
    header = json.loads(printed.splitlines()[-1])
    header["device"] = {
        "name": "GPU", "gpus": 2, "compute_capability": "9.0", "driver_version": "580",
        "clock": 1000, "clock_limit": 1980, "memory_clock": None, "memory_clock_limit": 2619,
    }  # fmt: skip
    header["build"] |= {"llama.cpp": "b1", "cuda": "CUDA 13.0", "code": "PTX"}
    assert [
        "GPU, compute capability 9.0, driver 580 (2 GPUs)",
        "clock 1000 of 1980 MHz",
        f"llcuda {llcuda.__version__}, llama.cpp b1, CUDA 13.0",
        "runs as PTX that the driver compiled: built for this GPU it would be faster",
    ] == shown(lambda console: show_part(console, "header", header))
    model = {**header["model"], "file": "/a/m.gguf", "gpu_layers": 3, "layers": 4, "threads": 1}
    (line,) = shown(lambda console: show_part(console, "model", model))
    assert line.startswith("m.gguf: ")
    assert "3 of 5 layers on the GPU, 1 thread, loaded in" in line


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[1]", '{"format": 1}', '{"format": 2, "tables": {}}']
)
def test_other_files_are_not_compared(text: str, tmp_path: Path) -> None:
    """A file that is not a document is an error that names it."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=r"^compare='.*other\.json': it is not a document.*t4$"):
        read_document(str(path))


def test_a_plot_is_drawn(printed: str, tmp_path: Path) -> None:
    """Every table that was measured has its place in the picture, in both formats."""
    document = json.loads(printed.splitlines()[-1])
    document["tables"]["parallel"] = [
        {"rows": 1, "engine_tokens_per_second": 5.0, "copied_tokens_per_second": 6.0},
        {"rows": 4, "error": "too large"},
    ]
    document["tables"]["sampling"] = [{"rows": 1, "chain": "greedy", "tokens_per_second": 5.0}]
    for name, begin in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG")):
        check_plot(tmp_path / name)
        draw_plot(document, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)


def test_a_plot_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error names the extra that brings it, before anything is measured."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LlcudaError, match=r"pip install 'llcuda\[plot\]'"):
        check_plot(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--shape", "tiny"], "not both"),
        (["--type", "Q8_0"], "--type is for --shape"),
        (["--shape", "gemma-9"], "--shape 'gemma-9': expected one of gemma-3-1b"),
        (["--parallel", "1,x"], "whole numbers with commas"),
        (["--parallel", "300"], "--parallel 300: expected a whole number from 1 to 256"),
        (["--measure", "speed"], "expected some of startup"),
        (["--measure", "decode", "--depth", "5"], "depth is not to be measured"),
        (["--kv-types", "f3"], "expected some of f32"),
        (["--layers", "1", "--gpu-layers", "1"], "several numbers of layers"),
        (["--plot", "a.pdf"], ".png or .svg"),
        (["--plot", "nowhere/a.png"], "no folder nowhere"),
        (["--compare", "none.json"], "No such file"),
        (["--requests", "0"], "--requests 0: expected a whole number from 1 to 256"),
        (["nonsense"], "no model is called"),
    ],
)
def test_bad_input(
    arguments: list[str], says: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One sentence, and nothing is measured."""
    monkeypatch.setattr(sys, "argv", ["llcuda", "bench", *arguments])
    monkeypatch.setattr(Bench, "run", lambda self: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        main()
    assert says in capsys.readouterr().err.replace("\n", " ")


def test_ctrl_c_keeps_what_there_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables that are complete, the rows that are there, and status 130."""

    def rows(*arguments: Any) -> Any:
        yield {"tokens": 1, "tokens_per_second": 2.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "prefill", rows)
    monkeypatch.setattr(sys, "argv", ["llcuda", "bench", "--measure", "prefill", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert 130 == stopped.value.code
    document = json.loads(capsys.readouterr().out)
    assert document["interrupted"]
    assert 1 == len(document["tables"]["prefill"])
