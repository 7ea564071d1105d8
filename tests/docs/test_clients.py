"""The table of clients in docs/server.md is that of the tree."""

from __future__ import annotations

import json

import pytest

from tests.clients import run


def rows(text: str) -> list[list[str]]:
    """Return the cells of the table between the marks."""
    between = text.partition(run.MARKS[0])[2].partition(run.MARKS[1])[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in between.splitlines()]


def test_table() -> None:
    """Its clients, versions and columns; a cell has an outcome where a script has the check."""
    clients, _ = run.listed()
    lines = [
        {"client": client["name"], "check": check, "ok": True}
        for client in clients
        for check in run.client_checks(client)
    ]
    expected = rows(run.replace_table("".join(run.MARKS), run.table(clients, lines)))
    actual = rows(run.DOCUMENT.read_text(encoding="utf-8"))
    assert expected == [[cell.replace("**no**", "yes") for cell in row] for row in actual]


def test_scripts() -> None:
    """Each script is listed, and has a chat or what its client does instead."""
    clients, _ = run.listed()
    scripts = {path.relative_to(run.HERE).as_posix() for path in run.HERE.glob("[!_]*/*.*")}
    helpers = {"python/checks.py", "node/checks.mjs", "node/package.json", "node/package-lock.json"}
    assert helpers | {client["script"] for client in clients} == scripts
    assert all(run.client_checks(client) for client in clients)


def test_pins() -> None:
    """The lock file has the versions of package.json, which are exact."""
    folder = run.HERE / "node"
    pins = json.loads((folder / "package.json").read_text(encoding="utf-8"))["dependencies"]
    lock = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert pins == {name: lock[f"node_modules/{name}"]["version"] for name in pins}


def test_missing_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named with a remedy."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    clients, _ = run.listed()
    sentence = run.missing_programs(clients)
    assert "node is missing: apt-get install nodejs npm" in sentence
    assert "uv is missing: pip install uv" in sentence
