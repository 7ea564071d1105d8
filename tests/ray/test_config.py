"""The settings of a cluster, in Python and in a Serve file."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
import yaml
from ray.serve.schema import ServeDeploySchema

from llcuda.errors import ArgumentError
from llcuda.ray import ClusterConfig, app_from_config
from tests.support.checkout import ROOT
from tests.support.server import demo

SPECS = [demo()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 0}, "replicas=0: expected a whole number from 1 to 4,096"),
        ({"replicas": 2, "max_replicas": 3}, "replicas=2: cannot be given beside the fewest"),
        ({"min_replicas": 2}, "min_replicas=2: the most of them is missing; give max_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas=3: expected a whole number from 1"),
        ({"num_gpus": 1.5}, "num_gpus=1.5: expected a whole number, or a part of 1"),
        ({"num_gpus": -1}, "num_gpus=-1: expected a number from 0 to 64"),
        ({"keys": "secret"}, "keys: expected a list of texts"),
        ({"limits": 3}, "limits=3: expected Limits"),
        ({"retries": True}, "retries=True: expected a whole number from 0 to 100"),
        ({"otlp_endpoint": "collector:4318"}, "otlp_endpoint='collector:4318': expected a URL"),
        ({"drain_seconds": "long"}, "drain_seconds='long': expected a number"),
    ],
)
def test_a_wrong_value_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        ClusterConfig(SPECS, **options)
    assert str(caught.value).startswith(message)


def test_an_unknown_keyword_is_explained() -> None:
    with pytest.raises(TypeError, match="replica: did you mean replicas"):
        ClusterConfig(SPECS, replica=2)  # type: ignore[call-arg]


def test_layers_on_a_gpu_need_one() -> None:
    with pytest.raises(ArgumentError, match=r"num_gpus=0.0: demo has gpu_layers.*give 1"):
        ClusterConfig([demo(gpu_layers=9)])
    assert 9 == ClusterConfig([demo(gpu_layers=9)], num_gpus=1).models[0].parameters["gpu_layers"]


def test_a_replica_computes_with_its_processors() -> None:
    spec = demo()
    bare = type(spec)("demo", "demo", parameters={"n_parallel": 6})
    config = ClusterConfig([bare], num_cpus=3)
    [model] = config.replica_models()
    assert {"threads": 3, "gpu_layers": 0, "devices": (), "n_parallel": 6} == model.parameters
    assert (6, 9) == (config.n_parallel, config.max_ongoing)
    assert 7 == ClusterConfig([bare], replica_queue=1).max_ongoing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "args=[]: expected a mapping with models"),
        ({}, "models=None: expected a list of models"),
        ({"models": "demo"}, "models='demo': expected a list of models"),
        ({"models": [{"name": "x"}]}, "models[0]={'name': 'x'}: expected a mapping with source"),
        ({"models": [{"source": "demo"}], "key_file": "/no"}, "key_file='/no': cannot be read"),
    ],
)
def test_wrong_arguments_of_a_file_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        app_from_config(arguments)
    assert str(caught.value).startswith(message)


def test_unknown_arguments_of_a_file_are_explained() -> None:
    with pytest.raises(TypeError, match="replica_queu: did you mean replica_queue"):
        app_from_config({"models": [{"source": "demo"}], "replica_queu": 1})
    with pytest.raises(TypeError, match="n_paralel: did you mean n_parallel"):
        app_from_config({"models": [{"source": "demo", "n_paralel": 2}]})
    with pytest.raises(TypeError, match="dead_line: did you mean deadline"):
        app_from_config({"models": [{"source": "demo"}], "limits": {"dead_line": 2}})


def test_the_arguments_of_a_file_are_the_keywords(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret-1\n\n secret-2 \n")
    config = ClusterConfig.from_arguments(
        {
            "models": [{"source": "demo", "aliases": ["fox"], "n_parallel": 2}],
            "limits": {"deadline": 5},
            "key_file": str(keys),
        }
    )
    [spec] = config.models
    assert ("demo", ["fox"], {"n_parallel": 2}) == (spec.name, spec.aliases, spec.parameters)
    assert (["secret-1", "secret-2"], 5) == (config.keys, config.limits.deadline)
    assert "secret" not in repr(config)


def test_the_manifest_has_rays_schema_and_llcudas_settings(tmp_path: Path) -> None:
    manifest = yaml.safe_load((ROOT / "deploy" / "rayservice.yaml").read_text())
    assert ("ray.io/v1", "RayService") == (manifest["apiVersion"], manifest["kind"])
    document = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    [application] = ServeDeploySchema.model_validate(document).applications
    module, name = application.import_path.split(":")
    assert ("llcuda.ray", "app_from_config") == (module, name)
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    config = ClusterConfig.from_arguments({**application.args, "key_file": str(keys)})
    assert (4, 1, ()) == (config.max_replicas, config.num_gpus, tuple(config.hosts))
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] in (ROOT / "deploy" / "Dockerfile").read_text()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} == {item["name"] for item in container["env"]}


def test_the_reference_has_every_public_name() -> None:
    import llcuda.ray

    page = (ROOT / "docs" / "reference" / "cluster.md").read_text()
    shown = re.findall(r"(?m)^::: llcuda\.ray\.(\S+)$", page)
    assert sorted(shown) == sorted(llcuda.ray.__all__)
    assert all(inspect.getdoc(getattr(llcuda.ray, name)) for name in shown)
