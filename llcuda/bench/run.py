"""A run of `llcuda bench`: which tables it measures, and the document with the results.

It prints nothing. Each part of the document goes to a callback as soon as it is measured.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llcuda import device
from llcuda.bench import measure
from llcuda.bench.loops import Budget, Subject, make_prompt
from llcuda.bench.measure import Row
from llcuda.engine.autofit import fit
from llcuda.engine.config import CTX_SIZE, EngineConfig
from llcuda.errors import LlcudaError
from llcuda.native import library
from llcuda.native.c_params import threads_for
from llcuda.native.context import Context
from llcuda.native.cuda_build import CudaBuild, parse
from llcuda.native.estimate import read_facts
from llcuda.native.model import Model
from llcuda.params import KV_TYPES, ContextParams, ModelParams, check_number, wrong_value

FORMAT = 1  # of the document
# The tables, each with the field of BenchParams that lists what to measure, if there is one.
TABLES: Mapping[str, str | None] = {
    "startup": None,
    "prefill": "prefill",
    "decode": None,
    "parallel": "parallel",
    "graphs": "graphs",
    "sampling": None,
    "requests": "requests",
    "depth": "depth",
    "kv": "kv_types",
    "layers": "layers",
    "memory": None,
}
DEFAULT_TABLES = ("startup", "prefill", "decode", "parallel", "sampling", "memory")
QUICK_TABLES = ("startup", "prefill", "decode", "parallel")
MAX_SAMPLED_ROWS, MAX_SAMPLED_ROWS_ON_CPU = 64, 4  # of the table "sampling"
GPU_BUDGET = Budget(turns=5, seconds=0.5, steps=(16, 128))
CPU_BUDGET = Budget(turns=3, seconds=0.5, steps=(4, 64))
QUICK_BUDGET = Budget(turns=3, seconds=0.1, steps=(4, 32))


@dataclass(frozen=True, slots=True)
class BenchParams:
    """What to measure.

    A list that is None has a default that suits the processor.

    Attributes:
        tables: Names of TABLES; None is the default ones and those whose list is given.
        prefill: Tokens of prompts.
        parallel: Sequences in a batch.
        graphs: Sequences in a batch, with CUDA graphs and without.
        requests: Requests at once.
        depth: Tokens in the cache.
        kv_types: Types of the KV cells.
        layers: Numbers of layers on GPUs.
        gpu_layers: Layers on GPUs in all other tables; None is as many as fit.
        threads: Threads of the CPU; None is llcuda's default.
        quick: Whether to measure fewer tables in fewer turns.

    Raises:
        ArgumentError: A table or a type is unknown, or a number is out of range.
    """

    tables: Sequence[str] | None = None
    prefill: Sequence[int] | None = None
    parallel: Sequence[int] | None = None
    graphs: Sequence[int] | None = None
    requests: Sequence[int] | None = None
    depth: Sequence[int] | None = None
    kv_types: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        for name in self.tables or ():
            if name not in TABLES:
                raise wrong_value("measure", name, f"expected some of {', '.join(TABLES)}")
        for name, low, high in (
            ("prefill", 1, 2**20), ("parallel", 1, 256), ("graphs", 1, 256), ("requests", 1, 256),
            ("depth", 0, 2**20), ("layers", 0, 2**16),
        ):  # fmt: skip
            for number in getattr(self, name) or ():
                check_number(name, number, "int", low, high)
        for name in self.kv_types or ():
            if name not in KV_TYPES:
                raise wrong_value("kv_types", name, f"expected some of {', '.join(KV_TYPES)}")
        for table, listed in TABLES.items():
            given = listed and getattr(self, listed)
            if given and self.tables is not None and table not in self.tables:
                rule = f"the table {table} is not to be measured"
                raise wrong_value(str(listed), given, rule, "add it to measure")
        ContextParams(threads=self.threads)  # refuses a wrong number, which each table would report
        if self.gpu_layers is not None and "layers" in self.chosen:
            rule = "the table layers measures several numbers of layers"
            raise wrong_value("gpu_layers", self.gpu_layers, rule, "leave one of them out")

    @property
    def chosen(self) -> list[str]:
        """The tables to measure, in the order of TABLES."""
        if self.tables is not None:
            return [table for table in TABLES if table in self.tables]
        defaults = QUICK_TABLES if self.quick else DEFAULT_TABLES
        return [
            table
            for table, listed in TABLES.items()
            if table in defaults or (listed and getattr(self, listed) is not None)
        ]


class Bench:
    """Measures a model.

    Args:
        path: The model's file.
        params: What to measure.
        on_part: Called with a name and a content: "header" and the document once it describes the
            machine, "model" and the model's description, and each table's name and rows.
        on_status: Called with the measurement that begins.

    Attributes:
        document: The results so far.
    """

    def __init__(
        self,
        path: Path,
        params: BenchParams,
        *,
        on_part: Callable[[str, Any], None],
        on_status: Callable[[str], None],
    ) -> None:
        self._path, self._params = path, params
        self._on_part, self._on_status = on_part, on_status
        self._readings: list[Row] = []
        self.document: dict[str, Any] = {"format": FORMAT, "tables": {}, "clocks": {}}

    def run(self) -> dict[str, Any]:
        """Measure everything and return the document.

        A measurement that fails has a row with its error.
        """
        params, chosen = self._params, self._params.chosen
        self._read_memory("before llcuda")
        model_params = self._place_layers()
        gpu = bool(model_params.gpu_layers)
        budget = QUICK_BUDGET if params.quick else GPU_BUDGET if gpu else CPU_BUDGET
        self.document |= describe_machine(model_params)
        self._on_part("header", self.document)
        if "startup" in chosen:
            self._on_status("startup")
            turns = 1 if params.quick else 3
            rows = measure.startup(self._path, model_params, params.threads, turns)
            self._collect("startup", rows)
        self._read_memory("libraries loaded")
        with Model(self._path, params=model_params) as model:
            self.document["model"] = describe_model(model, params.threads)
            self._on_part("model", self.document["model"])
            self._read_memory("model loaded")
            subject = Subject(model, gpu, params.threads, budget)
            for table in (
                "prefill", "decode", "parallel", "graphs", "sampling", "requests", "depth", "kv",
            ):  # fmt: skip
                if table in chosen:
                    self._on_status(table)
                    self._collect(table, self._rows(table, subject))
            if "memory" in chosen and gpu:
                with Context(model, ctx_size=2048, threads=params.threads) as context:
                    context.decode(make_prompt(model, 512))
                    context.synchronize()
                    self._read_memory("and a context of 2,048 tokens")
        self._read_memory("closed")
        if "memory" in chosen and (gpu or params.tables):
            self._collect("memory", self._readings if gpu else [_no_gpu("state", "GPU memory")])
        if "layers" in chosen:
            self._collect("layers", self._layer_rows(gpu, budget))
        return self.document

    def _place_layers(self) -> ModelParams:
        """Return parameters with as many layers on GPUs as fit beside a small context."""
        config = EngineConfig.from_kwargs(gpu_layers=self._params.gpu_layers, ctx_size=CTX_SIZE)
        return fit(config, self._path).config.model

    def _rows(self, table: str, subject: Subject) -> Iterable[Row]:
        params, gpu, quick = self._params, subject.gpu, self._params.quick
        parallel = params.parallel or ((1, 4) if quick else (1, 4, 16, 64) if gpu else (1, 4, 16))
        if table == "prefill":
            lengths = (128,) if quick else (128, 512, 2048) if gpu else (128, 512)
            return measure.prefill(subject, params.prefill or lengths)
        if table == "decode":
            speed = device.gpu_speed() if gpu and _gpu_count() == 1 else None
            if speed:
                self.document["bandwidth"] = _bandwidth(speed, subject.model)
            return measure.decode(subject, speed and speed["memory_bandwidth"])
        if table == "parallel":
            return measure.parallel(subject, parallel)
        if table == "graphs":
            if not gpu:
                return [_no_gpu("rows", "CUDA graphs")]
            return measure.graphs(subject, params.graphs or (1, 4, 8))
        if table == "sampling":
            limit = MAX_SAMPLED_ROWS if gpu else MAX_SAMPLED_ROWS_ON_CPU
            max_rows = max((n for n in parallel if n <= limit), default=limit)
            return measure.sampling(subject, sorted({1, max_rows}))
        if table == "requests":
            return measure.requests(subject, params.requests or (1, 4, 8))
        if table == "depth":
            return measure.depth(subject, params.depth or ((0, 4096, 16384) if gpu else (0, 512)))
        length = 4096 if gpu else 512
        return measure.kv(subject, params.kv_types or ("f16", "q8_0", "q4_0"), length)

    def _layer_rows(self, gpu: bool, budget: Budget) -> Iterable[Row]:
        if not gpu:
            return [_no_gpu("gpu_layers", "layers on the GPU")]
        self._on_status("layers")
        all_layers = read_facts(self._path).layers + 1
        quarters = sorted({all_layers * quarter // 4 for quarter in range(5)})
        counts = self._params.layers or quarters
        return measure.layers(self._path, counts, self._params.threads, budget)

    def _collect(self, name: str, rows: Iterable[Row]) -> None:
        """Add a table's rows one by one, so that an interrupted run keeps those it has."""
        table = self.document["tables"][name] = []
        try:
            for row in rows:
                table.append({k: _rounded(value) for k, value in row.items() if value is not None})
                self._on_status(f"{name} {next(iter(row.values()))}")
        except LlcudaError as error:
            table.append({"error": measure.first_line(error)})
        speed = device.gpu_speed()
        if speed:
            self.document["clocks"][name] = [speed["clock"], speed["memory_clock"]]
        self._on_part(name, table)

    def _read_memory(self, state: str) -> None:
        """Add a reading of the first GPU's memory in use, by all processes."""
        gpus = device.detect_cuda()["gpus"]
        total = gpus[0]["memory"] if gpus else None
        if total is not None:
            used = total - (device.free_memory() or 0)
            self._readings.append({"state": state, "gpu_bytes": used})


def describe_machine(params: ModelParams) -> dict[str, Any]:
    """Return the part of the document on the machine and the build."""
    import llcuda

    cuda, versions, features = device.detect_cuda(), library.versions(), library.features()
    cpu = next((d.description for d in library.devices() if d.kind == "cpu"), "")
    gpu = cuda["gpus"][0] if cuda["gpus"] and params.gpu_layers else None
    build = library.cuda_build() or CudaBuild()
    if not build.machine:  # built for "native", which only the backend can tell
        numbers = features.get("CUDA", {}).get("ARCHS", "").split(",")
        build = parse("", ",".join(number[:-1] for number in numbers))
    ptx = gpu and build.runs_as_ptx(device.capability(gpu))
    return {
        "llcuda": llcuda.__version__,
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": {
            "name": gpu["name"] if gpu else cpu,
            "gpus": _gpu_count() if gpu else 0,
            **({**gpu, **(device.gpu_speed() or {})} if gpu else {}),
            "cpu": cpu,
            "platform": platform.platform(),
        },
        "build": {
            "llama.cpp": versions["commit"],
            "cuda": str(build) if build.machine else None,
            "code": None if ptx is None else "PTX" if ptx else "native",
            "features": features,
        },
    }


def describe_model(model: Model, threads: int | None) -> dict[str, Any]:
    """Return the part of the document on the model."""
    return {
        "file": str(model.path),
        "description": model.description,
        "bytes": model.size,
        "parameters": model.parameter_count,
        "layers": model.layer_count,
        "gpu_layers": model.params.gpu_layers,
        "threads": threads or threads_for(model.size),
        "load_seconds": model.load_seconds,
    }


def _bandwidth(speed: device.GpuSpeed, model: Model) -> dict[str, Any]:
    return {
        "bytes_per_second": speed["memory_bandwidth"],
        "source": "NVML: highest memory clock x bus width x 2",
        "bytes_per_token": measure.bytes_per_token(model),
    }


def _gpu_count() -> int:
    return sum(d.kind == "gpu" for d in library.devices())


def _no_gpu(key: str, what: str) -> Row:
    return {key: what, "error": "no GPU is used"}


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
