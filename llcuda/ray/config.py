"""The settings of a server on a cluster, as keywords and as the arguments of a Serve file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llcuda.hub.names import served_name
from llcuda.keywords import check_keywords, explain_keywords
from llcuda.params import check_flag, check_number, wrong_value
from llcuda.server import Limits, ModelSpec
from llcuda.server.app import checked_texts
from llcuda.server.middleware import LOOPBACK
from llcuda.server.models import ModelPool
from llcuda.server.tracing import check_endpoint

MAX_REPLICAS = 4096
SPEC_KEYS = ("name", "source", "filename", "aliases")


@explain_keywords
@dataclass(frozen=True)
class ClusterConfig:
    """The settings of a server on a Ray cluster.

    Attributes:
        models: The models, all of which each replica serves.
        replicas: How many processes compute.
        min_replicas: Fewest of them; given with `max_replicas` in place of `replicas`, Ray changes
            their number by load.
        max_replicas: Most of them.
        num_gpus: GPUs of each replica; a part of 1 = several replicas share a GPU.
        num_cpus: Processors of each replica, which are the default of `threads`.
        ingress_replicas: How many processes take requests.
        replica_queue: Requests that wait inside a replica beside those that it computes; they are
            lost with it. None = half of its `n_parallel`.
        max_waiting: Requests that wait in each process that takes them.
        retries: How often a request is sent to another replica after one was lost.
        prefix_routing: Whether a prompt goes to the replica that has its beginning in its cache.
        max_imbalance: Requests that such a replica may have more than the least loaded one.
        memory_budget: As for `create_app`, for each replica; None = what is free, or the replica's
            part of a GPU.
        keys: As for `create_app`.
        cors_origins: As for `create_app`.
        hosts: As for `create_app`.
        limits: As for `create_app`.
        strict: As for `create_app`.
        otlp_endpoint: The OpenTelemetry collector that gets traces; None = no traces.
        drain_seconds: Longest time in which a replica that is removed finishes its requests.

    Raises:
        ArgumentError: A value is outside what is allowed.
    """

    models: Sequence[ModelSpec]
    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    num_gpus: float = 0.0
    num_cpus: float = 1.0
    ingress_replicas: int = 2
    replica_queue: int | None = None
    max_waiting: int = 1024
    retries: int = 2
    prefix_routing: bool = True
    max_imbalance: int = 4
    memory_budget: int | None = None
    keys: Sequence[str] = field(default=(), repr=False)
    cors_origins: Sequence[str] = ()
    hosts: Sequence[str] = LOOPBACK
    limits: Limits = field(default_factory=Limits)
    strict: bool = False
    otlp_endpoint: str | None = None
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        ModelPool(self.models, self.memory_budget)
        self._check_replicas()
        check_number("num_gpus", self.num_gpus, "number", 0, 64)
        check_number("num_cpus", self.num_cpus, "number", 0, 4096)
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            rule = "expected a whole number, or a part of 1"
            raise wrong_value("num_gpus", self.num_gpus, rule)
        check_number("ingress_replicas", self.ingress_replicas, "int", 1, MAX_REPLICAS)
        if self.replica_queue is not None:
            check_number("replica_queue", self.replica_queue, "int", 0)
        check_number("max_waiting", self.max_waiting, "int", 1)
        check_number("retries", self.retries, "int", 0, 100)
        check_flag("prefix_routing", self.prefix_routing)
        check_number("max_imbalance", self.max_imbalance, "int", 0)
        for name in ("keys", "cors_origins", "hosts"):
            checked_texts(name, getattr(self, name))
        if not isinstance(self.limits, Limits):
            raise wrong_value("limits", self.limits, "expected Limits")
        check_flag("strict", self.strict)
        if self.otlp_endpoint:
            check_endpoint(self.otlp_endpoint)
        check_number("drain_seconds", self.drain_seconds, "number", 0)
        for spec in self.models:
            if not self.num_gpus and spec.parameters.get("gpu_layers"):
                rule = f"{spec.name} has gpu_layers, and its replicas have no GPU"
                raise wrong_value("num_gpus", self.num_gpus, rule, "give 1, or a part of it")

    def _check_replicas(self) -> None:
        if self.replicas is not None:
            check_number("replicas", self.replicas, "int", 1, MAX_REPLICAS)
            if self.min_replicas is not None or self.max_replicas is not None:
                rule = "cannot be given beside the fewest and the most of them"
                raise wrong_value("replicas", self.replicas, rule, "give one or the other")
        if self.max_replicas is None:
            if self.min_replicas is not None:
                rule = "the most of them is missing"
                raise wrong_value("min_replicas", self.min_replicas, rule, "give max_replicas")
            return
        check_number("max_replicas", self.max_replicas, "int", 1, MAX_REPLICAS)
        if self.min_replicas is not None:
            check_number("min_replicas", self.min_replicas, "int", 1, self.max_replicas)

    @property
    def n_parallel(self) -> int:
        """Requests that a replica computes at once: those of its model with the most."""
        return max(spec.config().engine.n_parallel for spec in self.models)

    @property
    def max_ongoing(self) -> int:
        """Requests within a replica."""
        queue = self.n_parallel // 2 if self.replica_queue is None else self.replica_queue
        return self.n_parallel + queue

    @property
    def most_replicas(self) -> int:
        """The largest number of replicas."""
        return self.max_replicas or self.replicas or 1

    def replica_models(self) -> list[ModelSpec]:
        """Return the models with the defaults of a replica: its processors, no GPU where none."""
        defaults: dict[str, Any] = {"threads": max(1, int(self.num_cpus))}
        if not self.num_gpus:
            defaults |= {"gpu_layers": 0, "devices": ()}
        return [replace(spec, parameters={**defaults, **spec.parameters}) for spec in self.models]

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> ClusterConfig:
        """Return the settings of the `args` of a Serve file.

        Args:
            arguments: The keywords of this class; `models` as a list of mappings of ModelSpec's
                name, source, filename and aliases, and of keywords of `load_model`; `limits` as
                a mapping; `key_file` = a file with an API key on each line.

        Raises:
            ArgumentError: A value is outside what is allowed, or a file cannot be read.
            TypeError: A keyword is unknown.
        """
        if not isinstance(arguments, Mapping):
            raise wrong_value("args", arguments, "expected a mapping with models")
        given = dict(arguments)
        key_file = given.pop("key_file", None)
        check_keywords(given, cls, cls)
        tables = given.pop("models", None)
        if not isinstance(tables, Sequence) or isinstance(tables, str) or not tables:
            example = "give for example [{name: qwen, source: /models/qwen.gguf}]"
            raise wrong_value("models", tables, "expected a list of models", example)
        given["models"] = [_spec(i, table) for i, table in enumerate(tables)]
        if isinstance(limits := given.get("limits"), Mapping):
            check_keywords(limits, Limits, Limits)
            given["limits"] = Limits(**limits)
        if key_file is not None:
            given["keys"] = [*given.get("keys", ()), *_keys(key_file)]
        return cls(**given)


def _spec(index: int, table: Any) -> ModelSpec:
    place = f"models[{index}]"
    if not isinstance(table, Mapping) or not isinstance(table.get("source"), str):
        raise wrong_value(place, table, "expected a mapping with source")
    own = {key: table[key] for key in SPEC_KEYS if key in table}
    parameters = {key: value for key, value in table.items() if key not in SPEC_KEYS}
    return ModelSpec(**{"name": served_name(table["source"]), **own}, parameters=parameters)


def _keys(path: Any) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, TypeError, ValueError) as error:
        raise wrong_value("key_file", path, f"cannot be read: {error}") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise wrong_value("key_file", path, "has no key", "write a key on each line")
    return keys
