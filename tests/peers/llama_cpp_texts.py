"""Compare the texts of llama-cpp-python's `Llama` and of llcuda's, token by token.

    python -m tests.peers.llama_cpp_texts --models FOLDER

Both compute with llcuda's libraries, each in a process of its own with one thread and without flash
attention, so that only the classes differ. Their Python package comes from the pinned archive with
llama.cpp's source; it needs the dependency group peer-llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from tests.support import build_scripts

MODELS = ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "gemma-3-270m-q4_k_m.gguf")
SIZES: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "flash_attn": False}
PROMPT = "The capital of France is Paris. The capital of Italy is"
CODE = "def fibonacci(n):\n"
CHAT = [{"role": "user", "content": "Name three colours."}]
# Name of a case -> the method, and its arguments.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("create_completion", {"prompt": PROMPT, "temperature": 0}),
    "greedy code": ("create_completion", {"prompt": CODE, "temperature": 0}),
    "defaults, seed 1": ("create_completion", {"prompt": PROMPT, "seed": 1}),
    "a second call": ("create_completion", {"prompt": PROMPT}),
    "temperature 1.5": ("create_completion", {"prompt": CODE, "temperature": 1.5, "seed": 3}),
    "no filters": ("create_completion", {"prompt": PROMPT, "temperature": -1.0, "seed": 2}),
    "typical_p": ("create_completion", {"prompt": PROMPT, "typical_p": 0.6, "seed": 4}),
    "mirostat 1": ("create_completion", {"prompt": PROMPT, "mirostat_mode": 1, "seed": 5}),
    "mirostat 2": ("create_completion", {"prompt": PROMPT, "mirostat_mode": 2, "seed": 5}),
    "repeat_penalty": (
        "create_completion",
        {"prompt": CODE, "temperature": 0, "repeat_penalty": 1.3},
    ),
    "other penalties": (
        "create_completion",
        {"prompt": CODE, "temperature": 0, "frequency_penalty": 0.7, "presence_penalty": 0.4},
    ),
    "logit_bias": (
        "create_completion",
        {"prompt": PROMPT, "temperature": 0, "logit_bias": {"264": 5.0}},
    ),
    "stop": ("create_completion", {"prompt": PROMPT, "temperature": 0, "stop": ["of"]}),
    "echo": ("create_completion", {"prompt": PROMPT, "temperature": 0, "echo": True}),
    "generate": ("generate", {"tokens": PROMPT, "temp": 0.0}),
    "generate, seed 7": ("generate", {"tokens": CODE, "temp": 0.9, "top_k": 20}),
    "chat": ("create_chat_completion", {"messages": CHAT, "temperature": 0}),
    "chat, seed 6": ("create_chat_completion", {"messages": CHAT, "seed": 6}),
}


def texts(llama: Any, model: str) -> dict[str, Any]:
    """Return what each case gives."""
    given: dict[str, Any] = {}
    for name, (method, arguments) in CASES.items():
        if method == "create_chat_completion" and model.startswith("gemma"):
            continue  # a base model without a template
        if method == "generate":
            llama.set_seed(7)
            prompt = llama.tokenize(arguments["tokens"].encode())
            options = {k: v for k, v in arguments.items() if k != "tokens"}
            given[name] = list(islice(llama.generate(prompt, **options), 16))
            continue
        [choice] = getattr(llama, method)(**arguments, max_tokens=16)["choices"]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        given[name] = [text, choice["finish_reason"]]
    return given


def child(kind: str, path: Path, folder: Path) -> None:
    """Print the results of one class as JSON.

    Args:
        kind: "peer" or "llcuda".
        path: The model.
        folder: The folder of the peer's package.
    """
    from llcuda.native import library

    if kind == "peer":
        import os

        # llcuda first: it loads the libraries and their backends, which the peer then shares.
        os.environ["LLAMA_CPP_LIB_PATH"] = library.versions()["folder"]
        sys.path.insert(0, str(folder))
        from llama_cpp import Llama
    else:
        from llcuda.llama_cpp import Llama
    llama: Any = Llama(model_path=str(path), verbose=False, **SIZES)
    print(json.dumps(texts(llama, path.name)))


def results(kind: str, path: Path, folder: Path) -> dict[str, Any]:
    """Return the results of one class, in a process of its own."""
    command = [sys.executable, "-m", "tests.peers.llama_cpp_texts", "--child", kind]
    command += ["--models", str(path), "--folder", str(folder)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answers: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answers


def main() -> None:
    """Print a table; exit with 1 when a text differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="the folder of the models")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.models, options.folder)
        return
    differing = 0
    print("| model | case | equal |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        build_scripts.load("fetch").unpack_folders(Path(folder), "llama_cpp")
        for model in MODELS:
            path = options.models.resolve() / model
            peer, own = (results(kind, path, Path(folder)) for kind in ("peer", "llcuda"))
            for name in peer:
                equal = peer[name] == own[name]
                differing += not equal
                shown = "yes" if equal else f"no: {peer[name]!r}, here {own[name]!r}"
                print(f"| {model} | {name} | {shown} |", flush=True)
    print(f"\n{differing} differ")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
