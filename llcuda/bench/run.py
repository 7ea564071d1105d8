"""`llcuda bench`: which measurements on which model, and the document that they end in.

Prints nothing: each part of the document goes to a callback as soon as it is there.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llcuda import device
from llcuda.bench import measure
from llcuda.bench.loops import Pace, Subject, prompt
from llcuda.bench.measure import Row
from llcuda.engine.autofit import fit
from llcuda.engine.config import EngineConfig
from llcuda.errors import ArgumentError, LlcudaError
from llcuda.native import library
from llcuda.native.context import SMALL_MODEL, Context
from llcuda.native.cuda_build import CudaBuild, parse
from llcuda.native.estimate import read_facts
from llcuda.native.model import Model
from llcuda.params import KV_TYPES, ModelParams, check_number, default_threads

FORMAT = 1  # of the document
# Each with the option that lists what to measure, if there is one.
TABLES = {
    "startup": None,
    "prefill": "prefill",
    "decode": None,
    "parallel": "parallel",
    "sampling": None,
    "depth": "depth",
    "kv": "kv_types",
    "layers": "layers",
    "memory": None,
}
USUAL_TABLES = ("startup", "prefill", "decode", "parallel", "sampling", "memory")
QUICK_TABLES = ("startup", "prefill", "decode", "parallel")
MOST_SAMPLED, MOST_SAMPLED_ON_CPU = 64, 4  # rows with which the sampling chains are compared
ON_GPU = Pace(turns=5, seconds=0.5, steps=(16, 128))
ON_CPU = Pace(turns=3, seconds=0.5, steps=(4, 64))
QUICK = Pace(turns=3, seconds=0.1, steps=(4, 32))


@dataclass(frozen=True, slots=True)
class BenchParams:
    """What to measure.

    tables: names of TABLES; None = the usual ones, and those whose list is given.
    prefill: tokens of prompts; parallel: texts at once; depth: tokens in the cache; kv_types: types
        of its cells; layers: how many on the GPUs. None = what suits the processor.
    gpu_layers, threads: as for a model and a context. quick: fewer tables and turns.
    """

    tables: Sequence[str] | None = None
    prefill: Sequence[int] | None = None
    parallel: Sequence[int] | None = None
    depth: Sequence[int] | None = None
    kv_types: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        for name in self.tables or ():
            if name not in TABLES:
                raise ArgumentError(f"measure {name!r}: expected some of {', '.join(TABLES)}")
        for name, low, high in (
            ("prefill", 1, 2**20), ("parallel", 1, 256), ("depth", 0, 2**20), ("layers", 0, 2**16),
        ):  # fmt: skip
            for number in getattr(self, name) or ():
                check_number(name, number, "int", low, high)
        for name in self.kv_types or ():
            if name not in KV_TYPES:
                raise ArgumentError(f"kv_types {name!r}: expected some of {', '.join(KV_TYPES)}")
        for table, option in TABLES.items():
            given = option and getattr(self, option) is not None
            if given and self.tables is not None and table not in self.tables:
                raise ArgumentError(f"{option} is given, but {table} is not to be measured")
        if self.gpu_layers is not None and "layers" in self.chosen:
            raise ArgumentError("layers measures several numbers of layers: gpu_layers is too much")

    @property
    def chosen(self) -> list[str]:
        """The tables to measure, in the order of TABLES."""
        if self.tables is not None:
            return [table for table in TABLES if table in self.tables]
        usual = QUICK_TABLES if self.quick else USUAL_TABLES
        return [
            table
            for table, option in TABLES.items()
            if table in usual or (option and getattr(self, option) is not None)
        ]


class Bench:
    """Measures the model of a file; `document` holds what there is so far.

    on_part: called with "header" and the document when it says where this runs, with "model" and
        what it is, and with each table's name and rows.
    on_status: called with what is being measured.
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
        """Measure everything and return the document; what cannot be measured says why in it."""
        params, chosen = self._params, self._params.chosen
        self._read_memory("before llcuda")
        placed = self._place()
        gpu = bool(placed.gpu_layers)
        pace = QUICK if params.quick else ON_GPU if gpu else ON_CPU
        self.document |= describe(placed)
        self._on_part("header", self.document)
        if "startup" in chosen:
            self._on_status("startup")
            turns = 1 if params.quick else 3
            self._table("startup", measure.startup(self._path, placed, params.threads, turns))
        self._read_memory("libraries loaded")
        with Model(self._path, params=placed) as model:
            self.document["model"] = describe_model(model, params.threads)
            self._on_part("model", self.document["model"])
            self._read_memory("model loaded")
            subject = Subject(model, gpu, params.threads, pace)
            for table in ("prefill", "decode", "parallel", "sampling", "depth", "kv"):
                if table in chosen:
                    self._on_status(table)
                    self._table(table, self._rows(table, subject))
            if "memory" in chosen and gpu:
                with Context(model, ctx_size=2048, threads=params.threads) as context:
                    context.decode(prompt(model, 512))
                    context.synchronize()
                    self._read_memory("and a context of 2,048 tokens")
        self._read_memory("closed")
        if "memory" in chosen and (gpu or params.tables):
            self._table("memory", self._readings if gpu else [_no_gpu("state", "GPU memory")])
        if "layers" in chosen:
            self._table("layers", self._layer_rows(gpu, pace))
        return self.document

    def _place(self) -> ModelParams:
        """Return where the layers go: on the GPUs as many as fit beside a context of 2,048."""
        config = EngineConfig.from_kwargs(gpu_layers=self._params.gpu_layers)
        return fit(config, self._path, automatic_ctx_size=True).config.model

    def _rows(self, table: str, subject: Subject) -> Iterable[Row]:
        params, gpu, quick = self._params, subject.gpu, self._params.quick
        parallel = params.parallel or ((1, 4) if quick else (1, 4, 16, 64) if gpu else (1, 4, 16))
        if table == "prefill":
            usual = (128,) if quick else (128, 512, 2048) if gpu else (128, 512)
            return measure.prefill(subject, params.prefill or usual)
        if table == "decode":
            speed = device.gpu_speed() if gpu and _gpus() == 1 else None
            if speed:
                self.document["bandwidth"] = _bandwidth(speed, subject.model)
            return measure.decode(subject, speed and speed["memory_bandwidth"])
        if table == "parallel":
            return measure.parallel(subject, parallel)
        if table == "sampling":
            limit = MOST_SAMPLED if gpu else MOST_SAMPLED_ON_CPU
            most = max((n for n in parallel if n <= limit), default=limit)
            return measure.sampling(subject, sorted({1, most}))
        deep = 4096 if gpu else 512
        if table == "depth":
            return measure.depth(subject, params.depth or ((0, 4096, 16384) if gpu else (0, 512)))
        return measure.kv(subject, params.kv_types or ("f16", "q8_0", "q4_0"), deep)

    def _layer_rows(self, gpu: bool, pace: Pace) -> Iterable[Row]:
        if not gpu:
            return [_no_gpu("gpu_layers", "layers on the GPU")]
        self._on_status("layers")
        every = read_facts(self._path).layers + 1
        usual = sorted({every * part // 4 for part in range(5)})
        counts = self._params.layers or usual
        return measure.layers(self._path, counts, self._params.threads, pace)

    def _table(self, name: str, rows: Iterable[Row]) -> None:
        """Take a table's rows as they come, so that an interrupted run keeps those it has."""
        kept = self.document["tables"][name] = []
        try:
            for row in rows:
                found = {key: _rounded(value) for key, value in row.items() if value is not None}
                kept.append(found)
                self._on_status(f"{name} {next(iter(row.values()))}")
        except LlcudaError as error:
            kept.append({"error": measure.first_line(error)})
        speed = device.gpu_speed()
        if speed:
            self.document["clocks"][name] = [speed["clock"], speed["memory_clock"]]
        self._on_part(name, kept)

    def _read_memory(self, state: str) -> None:
        """Note what is taken of the first GPU, by everyone who uses it."""
        found = device.detect_cuda()["gpus"]
        total = found[0]["memory"] if found else None
        if total is not None:
            taken = total - (device.free_memory() or 0)
            self._readings.append({"state": state, "gpu_bytes": taken})


def describe(placed: ModelParams) -> dict[str, Any]:
    """Return what is known of the machine and the build."""
    import llcuda

    found, versions, features = device.detect_cuda(), library.versions(), library.features()
    cpu = next((d.description for d in library.devices() if d.kind == "cpu"), "")
    gpu = found["gpus"][0] if found["gpus"] and placed.gpu_layers else None
    build = library.cuda_build() or CudaBuild()
    if not build.machine:  # built for "native": the backend itself says what that was
        numbers = features.get("CUDA", {}).get("ARCHS", "").split(",")
        build = parse("", ",".join(number[:-1] for number in numbers))
    ptx = gpu and build.runs_as_ptx(device.capability(gpu))
    return {
        "llcuda": llcuda.__version__,
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": {
            "name": gpu["name"] if gpu else cpu,
            "gpus": _gpus() if gpu else 0,
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
    """Return what is known of the model."""
    return {
        "file": str(model.path),
        "description": model.description,
        "bytes": model.size,
        "parameters": model.parameter_count,
        "layers": model.layer_count,
        "gpu_layers": model.params.gpu_layers,
        "threads": threads or (1 if model.size < SMALL_MODEL else default_threads()),
        "load_seconds": model.load_seconds,
    }


def _bandwidth(speed: device.GpuSpeed, model: Model) -> dict[str, Any]:
    return {
        "bytes_per_second": speed["memory_bandwidth"],
        "source": "NVML: highest memory clock x bus width x 2",
        "bytes_per_token": measure.bytes_per_token(model),
    }


def _gpus() -> int:
    return sum(d.kind == "gpu" for d in library.devices())


def _no_gpu(key: str, what: str) -> Row:
    return {key: what, "error": "no GPU is used"}


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def names(text: str | None, known: Iterable[str] = ()) -> tuple[str, ...] | None:
    """Return the names of a list with commas; "all" means the `known` ones."""
    if text is None:
        return None
    found = tuple(part.strip() for part in text.split(","))
    return tuple(known) if known and found == ("all",) else found


def numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return the whole numbers of a list with commas, as an option has it; ArgumentError."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(
            f"--{option} {text}: expected whole numbers with commas between, e.g. 1,4,16"
        ) from None
