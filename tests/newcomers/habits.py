"""Scripts of peers' users that run as they are: only the names of packages and programs are ours.

A test puts its own server's address in place of the script's, and the real models' tests put
another model in place of "demo". The first line of a script says how its server is started.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.support.commands import tool_folder

SCRIPTS = Path(__file__).parent / "scripts" / "as_they_are"
ADDRESS = re.compile(r"http://(localhost|127\.0\.0\.1):\d+")
SERVER = re.compile(r"`llcuda (serve [^`]+)`")


class Habit(NamedTuple):
    """What a script needs.

    Attributes:
        peer: Whose users write so.
        modules: The modules that it imports beside those of llcuda's dev extra.
        infill: Whether it needs a model that fills gaps, which the demo model does not.
    """

    peer: str
    modules: tuple[str, ...] = ()
    infill: bool = False


HABITS = {
    "anthropic_messages.py": Habit("Anthropic"),
    "hugging_face_client.py": Habit("transformers serve, TGI"),
    "instructor_schema.py": Habit("instructor", ("instructor",)),
    "langchain_chat_openai.py": Habit("LangChain", ("langchain_openai",)),
    "langchain_llama_cpp.py": Habit("LangChain", ("langchain_community",)),
    "llama_cpp_command_line.sh": Habit("llama.cpp"),
    "llama_cpp_python.py": Habit("llama-cpp-python"),
    "llama_server.sh": Habit("llama.cpp"),
    "llama_server_infill.sh": Habit("llama.cpp", infill=True),
    "llm_command_line.sh": Habit("llm"),
    "lm_studio_client.py": Habit("LM Studio"),
    "mlx_lm_command_line.sh": Habit("mlx_lm"),
    "ollama_client.py": Habit("ollama"),
    "ollama_command_line.sh": Habit("ollama"),
    "ollama_package.py": Habit("ollama"),
    "ollama_server.sh": Habit("ollama"),
    "openai_client.py": Habit("OpenAI"),
    "outlines_choice.py": Habit("Outlines", ("outlines", "numba")),
    "vllm_client.py": Habit("vLLM"),
}


def missing(name: str) -> list[str]:
    """Return the modules that a script needs and that are not installed."""
    return [module for module in HABITS[name].modules if find_spec(module) is None]


def source(name: str, model: str = "demo", address: str = "") -> str:
    """Return a script.

    Args:
        name: The name of the file.
        model: What takes the place of the demo model.
        address: What takes the place of the server's address.
    """
    text = ADDRESS.sub(address, (SCRIPTS / name).read_text(encoding="utf-8"))
    return with_model(text, model) if name.endswith(".py") else with_file(text, model)


def server_arguments(name: str) -> list[str]:
    """Return the arguments of llcuda that start a script's server; [] for a script without one."""
    command = SERVER.search((SCRIPTS / name).read_text(encoding="utf-8"))
    return command.group(1).split() if command else []


def with_model(text: str, model: str) -> str:
    """Return Python code on another model than the demo."""
    return text.replace('"demo"', json.dumps(model))


def with_file(text: str, model: str) -> str:
    """Return lines of a shell on another model than the demo."""
    text = with_model(text, model)
    return re.sub(r"\bdemo\b", lambda _: shlex.quote(model), text)


def run(name: str, text: str) -> None:
    """Run the text of a script in Python; what it prints goes to stdout."""
    exec(compile(text, name, "exec", dont_inherit=True), {"__name__": "__main__"})


def printed(name: str, text: str, home: Path) -> str:
    """Run the text of a script in a process of its own, and return what it prints.

    Args:
        name: The name of the file.
        text: The script.
        home: The home of the process, where it also runs.
    """
    program = [sys.executable, "-c"] if name.endswith(".py") else ["bash", "-ec"]
    result = subprocess.run(
        [*program, text],
        cwd=home,
        env={**os.environ, "HOME": str(home), "PATH": f"{tool_folder(home)}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, f"{name}: {result.stdout}{result.stderr}"
    return result.stdout
