"""Run clients of other projects against `llcuda serve` with Qwen2.5-Coder 0.5B.

    python -m tests.clients.run --models FOLDER [--only WORD]

clients.toml lists the clients. Each in Python gets an environment of its own under .build/clients,
those in JavaScript share the folder of one lock file. A script prints a line of JSON for each
check; the table of all of them replaces the one in docs/server.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / ".build" / "clients"
DOCUMENT = ROOT / "docs" / "server.md"
MARKS = ("<!-- clients: begin -->\n", "<!-- clients: end -->\n")
MODEL_FILE = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
MODEL = "qwen"
CHECKS = ["chat", "stream", "auto", "required", "named", "parallel", "round_trip", "structured"]
CHECKS += ["perplexity"]
LIMIT = 600


def listed() -> tuple[list[dict[str, Any]], str]:
    """Return the clients of clients.toml, and the day of the packages below theirs."""
    table = tomllib.loads((HERE / "clients.toml").read_text(encoding="utf-8"))
    return table["client"], table["exclude-newer"]


def version(client: dict[str, Any]) -> str:
    """Return the pinned version of a client."""
    if "packages" in client:
        return str(client["packages"][0].partition("==")[2])
    pins = json.loads((HERE / "node" / "package.json").read_text(encoding="utf-8"))
    return str(pins["dependencies"][client["package"]])


def missing_programs(clients: list[dict[str, Any]]) -> str:
    """Return what must be installed first; "" = nothing."""
    needed = {"uv": "pip install uv"}
    if any(client["script"].endswith(".mjs") for client in clients):
        needed |= dict.fromkeys(("node", "npm"), "apt-get install nodejs npm (Node.js 20 or later)")
    return "; ".join(
        f"{name} is missing: {remedy}" for name, remedy in needed.items() if not program(name)
    )


def program(name: str) -> str | None:
    """Return the path of a program beside this interpreter or in PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=path)


def command_of(client: dict[str, Any], newest: str) -> list[str]:
    """Make the environment of a client; return the command that runs its script."""
    script = HERE / client["script"]
    if script.suffix == ".mjs":
        folder = BUILD / "node"
        shutil.copytree(HERE / "node", folder, dirs_exist_ok=True)
        lock = folder / "node_modules" / ".package-lock.json"
        pinned = HERE / "node" / "package-lock.json"
        if not lock.is_file() or lock.stat().st_mtime < pinned.stat().st_mtime:
            npm = [str(program("npm")), "ci", "--no-audit", "--no-fund"]
            subprocess.run(npm, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return [str(program("node")), str(folder / script.name)]
    folder = BUILD / script.stem
    uv = str(program("uv"))
    subprocess.run([uv, "venv", "--quiet", "--allow-existing", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    install = [uv, "pip", "install", "--quiet", "--python", python, "--exclude-newer", newest]
    subprocess.run([*install, *client["packages"]], check=True)
    return [python, str(script)]


@contextmanager
def server(model: Path) -> Iterator[str]:
    """Run `llcuda serve` for as long as the block runs; yield its address."""
    command = [sys.executable, "-u", "-m", "llcuda", "serve", f"{MODEL}={model}", "--port", "0"]
    command += ["--ctx-size", "4096", "--parallel", "2"]
    BUILD.mkdir(parents=True, exist_ok=True)
    log = BUILD / "server.log"
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True) as it,
    ):
        assert it.stdout is not None
        match = re.search(r"http://127\.0\.0\.1:\d+", it.stdout.readline())
        try:
            if match is None:
                sys.exit(f"llcuda serve did not start: {log}")
            yield match[0]
            if it.poll() is not None:
                sys.exit(f"llcuda serve ended with {it.returncode}: {log}")
        finally:
            it.terminate()


def run(client: dict[str, Any], command: list[str], url: str) -> list[dict[str, Any]]:
    """Run the script of a client; return its lines."""
    environment = {**os.environ, "LLCUDA_CLIENTS_URL": url, "LLCUDA_CLIENTS_MODEL": MODEL}
    environment |= {"NO_PROXY": "127.0.0.1", "OPENAI_API_KEY": "none"}
    environment.pop("PYTHONPATH", None)
    log = (BUILD / Path(client["script"]).name).with_suffix(".log")
    lines = []
    with log.open("w", encoding="utf-8") as stderr:
        try:
            ended = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=stderr, timeout=LIMIT
            )
            output, problem = ended.stdout, f"exit status {ended.returncode}"
        except subprocess.TimeoutExpired as expired:
            output, problem = expired.stdout or b"", f"no end within {LIMIT} s"
    for text in output.decode("utf-8", "replace").splitlines():
        if text.startswith('{"check":'):
            lines.append({"client": client["name"], "version": version(client), **json.loads(text)})
    ran = {line["check"] for line in lines}
    for name in client_checks(client):
        if name not in ran:
            row = {"client": client["name"], "version": version(client), "check": name}
            lines.append({**row, "ok": False, "detail": f"{problem}: {log}"})
    return lines


def client_checks(client: dict[str, Any]) -> list[str]:
    """Return the checks that the script of a client has, in the order of the columns."""
    text = (HERE / client["script"]).read_text(encoding="utf-8")
    found = re.findall(r'@checks\.check\ndef (\w+)|checks\.check\("(\w+)"', text)
    names = {python or node for python, node in found}
    return [name for name in CHECKS if name in names]


def table(clients: list[dict[str, Any]], lines: list[dict[str, Any]]) -> str:
    """Return the table in Markdown: a row for each client, a column for each check."""
    outcomes = {(line["client"], line["check"]): line["ok"] for line in lines}
    words = {True: "yes", False: "**no**", None: ""}
    heads = ["client", "version", *(name.replace("_", " ") for name in CHECKS)]
    rows = [heads, ["---"] * len(heads)]
    for client in clients:
        cells = [words[outcomes.get((client["name"], name))] for name in CHECKS]
        rows.append([client["name"], version(client), *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def replace_table(text: str, new: str) -> str:
    """Return a document with another table between the marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return before + MARKS[0] + new + MARKS[1] + after


def main() -> None:
    """Run the clients, print their lines, write the table; exit with 1 when a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help=f"the folder of {MODEL_FILE}")
    parser.add_argument("--only", default="", help="clients whose names have this; no table then")
    given = parser.parse_args()
    model = given.models.resolve() / MODEL_FILE
    if not model.is_file():
        parser.error(f"--models: {model} is missing")
    clients, newest = listed()
    chosen = [client for client in clients if given.only.lower() in client["name"].lower()]
    if not chosen:
        names = ", ".join(client["name"] for client in clients)
        parser.error(f"--only={given.only}: no client has this in its name; there are {names}")
    if missing := missing_programs(chosen):
        sys.exit(missing)
    commands = [command_of(client, newest) for client in chosen]
    lines = []
    with server(model) as url:
        for client, command in zip(chosen, commands, strict=True):
            for line in run(client, command, url):
                lines.append(line)
                print(json.dumps(line), flush=True)
    if not given.only:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(replace_table(text, table(clients, lines)), encoding="utf-8")
    failed = sum(not line["ok"] for line in lines)
    print(f"{len(lines)} checks of {len(chosen)} clients, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
