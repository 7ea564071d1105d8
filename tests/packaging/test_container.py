"""The Dockerfile and the compose file, by their linters and beside each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.build_scripts import load

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "packaging" / "Dockerfile"
COMPOSE = ROOT / "packaging" / "compose.yaml"
chroot = load("chroot", ROOT / "packaging")
STAGES = chroot.read(DOCKERFILE.read_text(), {})


def lint(content: str, folder: Path) -> str:
    """Return what hadolint says of a Dockerfile."""
    file = folder / "Dockerfile"
    file.write_text(content)
    command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def check_schema(file: Path) -> subprocess.CompletedProcess[str]:
    """Compare a compose file with the schema of the Compose Specification."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    """It also checks the shell of RUN."""
    assert "" == lint(DOCKERFILE.read_text(), tmp_path)
    assert "" == lint((ROOT / "deploy" / "Dockerfile").read_text(), tmp_path)
    assert "DL3020" in lint("FROM scratch\nADD a b\n", tmp_path)


def test_the_compose_file_has_its_schema(tmp_path: Path) -> None:
    """An unknown key is found."""
    result = check_schema(COMPOSE)
    assert 0 == result.returncode, result.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("cap_drop", "drop_caps"))
    assert 1 == check_schema(wrong).returncode


def test_the_services_are_targets_of_the_dockerfile() -> None:
    """Each service builds a stage, and publishes the image's port on this machine only."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert {"llcuda": "cpu", "llcuda-cuda": "cuda"} == {
        name: service["build"]["target"] for name, service in services.items()
    }
    for service in services.values():
        assert (
            DOCKERFILE
            == (COMPOSE.parent / service["build"]["context"]).resolve() / "packaging" / "Dockerfile"
        )
        assert ["127.0.0.1:${LLCUDA_PORT:-8080}:8080"] == service["ports"]
    assert ("EXPOSE", "8080") in STAGES["runtime"].steps


def test_the_build_context_has_what_is_copied_and_no_more() -> None:
    """.dockerignore lists the files of the COPY lines."""
    copied = {
        name
        for stage in STAGES.values()
        for word, rest in stage.steps
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert copied == {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize(
    ("target", "stages"),
    [
        ("cpu", {"source", "build-cpu", "wheel-cpu", "runtime"}),
        ("cuda", {"source", "build-cuda", "wheel-cuda", "runtime"}),
    ],
)
def test_the_stages_of_a_target(target: str, stages: set[str]) -> None:
    """The CPU's image compiles no CUDA, and the other way round."""
    needed, names = set(), {target}
    while names:
        needed |= names
        names = set().union(*(STAGES[name].needs() & STAGES.keys() for name in names)) - needed
    assert stages | {target} == needed


def builder(content: str, into: Path, **contexts: Path) -> Any:
    """Return a builder of a Dockerfile's stages."""
    return chroot.Builder(chroot.read(content, {}), into, contexts, {}, None)


def test_a_base_that_is_a_link_stays_as_it_is(tmp_path: Path) -> None:
    """The steps change a copy of what the link names."""
    base, link = tmp_path / "base", tmp_path / "link"
    base.mkdir()
    link.symlink_to(base)
    builder("FROM given AS own\nWORKDIR /here\n", tmp_path / "roots", given=link).build("own")
    assert (tmp_path / "roots" / "own" / "here").is_dir()
    assert not list(base.iterdir())


def test_stages_without_run_are_made_by_copying(tmp_path: Path) -> None:
    """From the checkout and from stages, or from the folders that stand for them."""
    content = """
FROM scratch AS first
COPY LICENSE pyproject.toml /texts/
FROM scratch AS wheels
FROM scratch AS second
WORKDIR /here
COPY --from=first /texts/*.toml ./
COPY --from=wheels /*.whl /
ENV PLACE=/here OTHER=${PLACE}
ENTRYPOINT ["program"]
FROM second AS third
ENV MORE=$PLACE/more
CMD ["argument"]
"""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "a.whl").touch()
    made = builder(content, tmp_path / "roots", wheels=wheels)
    made.build("third")
    root = tmp_path / "roots" / "third"
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {"here/pyproject.toml", "a.whl"} == files
    settings = made.settings["third"]
    assert "/here/more" == settings.environment["MORE"]
    assert ("/here", ["program"], ["argument"]) == (
        settings.workdir,
        settings.entrypoint,
        settings.command,
    )


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("FROM scratch AS a\nADD b c", "ADD: this script does not know the instruction"),
        ("FROM python:3.13 AS a", "FROM python:3.13: only debian:NAME-slim and scratch"),
        ("FROM scratch AS a\nCOPY missing /", "COPY missing: there is no such file"),
    ],
)
def test_what_the_script_cannot_do(content: str, error: str, tmp_path: Path) -> None:
    """It stops and says what."""
    with pytest.raises(SystemExit, match=error):
        builder(content, tmp_path).build("a")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--target", "gpu"], "--target gpu: expected one of source, build-cpu"),
        (["--target", "cpu", "--build-context", "wheel=."], "--build-context wheel: expected"),
        (["--target", "cpu", "--build-context", "wheel-cpu=/none"], "/none does not exist"),
        (["--target", "cpu", "--build-arg", "DEBIAN"], "DEBIAN: expected NAME=VALUE"),
        (["--target", "cpu", "--certificates", "/none"], "--certificates: /none does not exist"),
    ],
)
def test_wrong_options_of_the_script(arguments: list[str], error: str, tmp_path: Path) -> None:
    """Nothing is made."""
    command = [sys.executable, str(ROOT / "packaging" / "chroot.py"), "--into", str(tmp_path / "x")]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert 1 == result.returncode
    assert error in result.stderr
    assert not (tmp_path / "x").exists()
