from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import llcuda

PACKAGE = Path(llcuda.__file__).parent
# design.md, "Layout": a module imports from its own layer and those before it.
LAYERS = (
    ("errors", "text", "metrics", "timings", "demo", "download", "progress", "gguf_types",
     "target", "cache", "checkpoint"),
    ("params", "lora", "hub", "hub_folder"),
    ("steps", "guide"),
    ("native", "nf4", "converter", "conversion"),
    ("gguf_parser", "gguf_writer", "pairs"),
    ("gbnf", "structured", "structured_grammar", "structured_schema", "structured_tokenizer"),
    ("request", "completion", "scheduler", "speculation", "gguf_remote", "device", "unsloth",
     "conversion_tokenizer", "conversion_rows", "conversion_child", "chat",
     "chat_arguments", "chat_functions", "chat_guide", "chat_messages", "chat_prompt",
     "chat_reader", "chat_sandbox", "chat_split", "chat_syntax", "conversation"),
    ("embedding", "embedders", "engine", "worker", "desk", "reporter", "delivery"),
    ("configuration",),
    ("tensor_types",),
    ("tensor_graph",),
    ("tensor_shapes",),
    ("tensor_ops", "tensor_host", "tensor_files"),
    ("tensor_matmul", "tensor_dlpack", "tensor_nf4"),
    ("tensor",),
    ("inference", "core", "quality", "shapes", "loops", "measure", "bench", "doctor",
     "gguf_inspect"),
    ("bench_output", "bench_plot"),
    ("openai", "openai_errors", "openai_responses", "openai_text", "server", "server_chat",
     "server_door", "server_metrics", "server_models", "server_page", "server_stream",
     "server_text", "server_vectors"),
    ("cli_conversation", "cli_markdown"),
    ("cli_chat", "cli_doctor", "cli_files", "cli_quality", "cli_serve"),
    ("cli", "__main__"),
)  # fmt: skip
KNOW_NOTHING_OF_NATIVE = {"scheduler", "text", "metrics", "errors", "params", "steps"}


def layer(name: str) -> int:
    """Return the number of the layer that holds module `name`."""
    found = [number for number, names in enumerate(LAYERS) if name in names]
    assert found, f"llcuda.{name} has no place in tests/unit/test_imports.py"
    return found[0]


def imported(path: Path) -> set[str]:
    """Return the modules of llcuda that a file imports, but for type checking."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "llcuda":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llcuda."):
            names.add(str(node.module).split(".")[1])
    return {name for name in names if (PACKAGE / f"{name}.py").exists() or name == "native"}


def test_modules_import_in_one_direction() -> None:
    """No module imports from a later layer."""
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        later = {other for other in imported(path) if layer(other) > layer(name)}
        assert set() == later, f"{path.name} imports {later}"
        if name in KNOW_NOTHING_OF_NATIVE:
            assert "native" not in imported(path)


def test_importing_llcuda_touches_nothing() -> None:
    """No numpy, no cffi, no thread, no open file: the library loads at first use."""
    program = (
        "import sys, threading, os\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "import llcuda\n"
        "heavy = {'numpy', 'cffi', '_cffi_backend', 'rich', 'typer', 'llcuda.native'}\n"
        "print(sorted(heavy & set(sys.modules)), threading.active_count(),\n"
        "      len(os.listdir('/proc/self/fd')) - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ("[] 1 0\n", "") == (result.stdout, result.stderr)


def test_every_public_name_can_be_imported() -> None:
    """dir(llcuda) promises nothing that is not there; unknown names are AttributeErrors."""
    for name in dir(llcuda):
        assert getattr(llcuda, name) is not None
    assert not hasattr(llcuda, "no_such_name")
