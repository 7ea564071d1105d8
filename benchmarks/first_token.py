"""The time from `pip install WHEEL` in an empty environment to the first token of a chat.

    python benchmarks/first_token.py WHEEL MODEL.gguf

A hub on this machine serves the model, so its download takes no network. pip has no cache: it
downloads what the wheel depends on from the package index, or reads it from --find-links. Prints
the seconds of each part, once for a Python program and once for `llcuda run` beside its download,
then one JSON line. Nothing outside a temporary folder is read or written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.hub_server import Asker, Hub

REPO = "newcomer/model-GGUF"
QUESTION = "Write a function that adds two numbers."
PROGRAM = """
import json, sys, time
times = [time.perf_counter()]
step = lambda: times.append(time.perf_counter())
import llcuda
from llcuda.hub import resolve
step()
path = resolve(sys.argv[1], progress=False)
step()
with llcuda.InferenceEngine() as engine:
    engine.load_model(path, verbose=False)
    step()
    first = next(delta.content for delta in engine.chat(sys.argv[2]) if delta.content)
    step()
    names = ("import", "download", "load", "first token")
    seconds = {name: b - a for name, a, b in zip(names, times, times[1:])}
    print(json.dumps(seconds), flush=True)
"""


def main() -> None:
    """Install, ask and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("model", type=Path, help="an instruct model, e.g. of 0.5 GB")
    parser.add_argument("--python", default=sys.executable, help="the interpreter to install into")
    parser.add_argument("--find-links", help="a folder with the wheels of the dependencies")
    options = parser.parse_args()
    for path in (options.wheel, options.model):
        if not path.is_file():
            sys.exit(f"error: {path} is not a file")
    with (
        tempfile.TemporaryDirectory() as folder,
        Hub({REPO: {options.model.name: options.model.read_bytes()}}) as hub,
    ):
        seconds = measure(Path(folder), hub, options)
    for part, value in seconds.items():
        print(f"{part:<28}{value:>8.2f} s")
    print(json.dumps({"wheel": options.wheel.name, "model": options.model.name, **seconds}))


def measure(folder: Path, hub: Hub, options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of each part.

    Args:
        folder: An empty folder.
        hub: The hub that serves the model.
        options: Those of the command line.
    """
    environment = folder / "environment"
    subprocess.run([options.python, "-m", "venv", environment], check=True)
    binaries = environment / "bin"
    install = [str(binaries / "pip"), "install", "--quiet", "--no-cache-dir", str(options.wheel)]
    if options.find_links:
        install.append(f"--find-links={options.find_links}")
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    subprocess.run(install, check=True)
    seconds["pip install"] = time.perf_counter() - began
    name = f"{REPO}:{options.model.name}"

    user = Asker(hub, folder / "first").environment(HOME=str(folder), PYTHONPATH="")
    program = [str(binaries / "python"), "-c", PROGRAM, name, QUESTION]
    line, in_all = first_bytes(program, user, folder, b"}")
    parts: dict[str, float] = json.loads(line)
    seconds["start of Python"] = in_all - sum(parts.values())
    seconds |= parts
    seconds["pip install to first token"] = seconds["pip install"] + in_all

    user = Asker(hub, folder / "second").environment(HOME=str(folder), PYTHONPATH="")
    command = [str(binaries / "llcuda"), "run", name, QUESTION, "--max-tokens", "4"]
    _, seconds["llcuda run to first token"] = first_bytes(command, user, folder)
    return seconds


def first_bytes(
    command: list[str], user: dict[str, str], folder: Path, end: bytes = b""
) -> tuple[bytes, float]:
    """Return what a command writes first, a byte or all until `end`, and the seconds until then.

    Args:
        command: The command.
        user: Its environment.
        folder: Where it runs.
        end: The last byte that is read.
    """
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=user, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        text = process.stdout.read(1)
        while text and not text.endswith(end):
            text += process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
    if not text:
        sys.exit(f"error: {command[0]} wrote nothing; its message is above")
    return text, seconds


if __name__ == "__main__":
    main()
