from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import llcuda

PACKAGE = Path(llcuda.__file__).parent
# docs/decisions.md, "The house": a package imports from itself and from those on earlier lines.
ORDER = (
    {"errors", "_instead", "_pickling", "_version", "progress"},
    {"_lazy", "guide", "files", "display"},
    {"keywords", "demo"},
    {"params"},
    {"samplers"},
    {"steps"},
    {"hub", "running"},
    {"native"},
    {"structured", "gguf_parser", "gguf_writer", "nf4", "device"},
    {"tensor", "chat", "embeddings", "conversion", "gguf_editor"},
    {"engine"},
    {"inference", "core", "unsloth", "evaluate", "llama_cpp"},
    {"batch", "quality"},
    {"__init__"},
    {"bench", "server"},
    {"ray"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
EXCEPTIONS = {
    ("chat", "inference"),  # llcuda.chat(...) delegates in one line
    ("native.model", "conversion.convert"),  # Model.from_pretrained delegates in one line
}
KNOW_NOTHING_OF_NATIVE = ("params", "samplers", "guide", "engine.scheduler", "engine.detokenizer")


def module_graph() -> dict[str, set[str]]:
    """Return which modules of llcuda each of them imports, also in functions and for types."""
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if "lib" not in path.parts
    }
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        imports = graph.setdefault(module, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("llcuda."):
                base = str(node.module).removeprefix("llcuda").removeprefix(".")
                for name in (alias.name for alias in node.names):
                    inner = f"{base}.{name}".removeprefix(".")
                    imports.add(inner if inner in paths else base or "__init__")
            elif isinstance(node, ast.Import):
                names = {a.name for a in node.names if f"{a.name}.".startswith("llcuda.")}
                imports |= {n.removeprefix("llcuda").removeprefix(".") or "__init__" for n in names}
    return {
        module: {other for other in imports if (module, other) not in EXCEPTIONS}
        for module, imports in graph.items()
    }


def test_packages_import_in_one_direction_without_circles() -> None:
    """No package imports a later one, and no module itself by a detour, not even for types."""
    graph = module_graph()
    TopologicalSorter(graph).prepare()
    for module, imports in graph.items():
        home = module.partition(".")[0]
        for other in imports:
            package = other.partition(".")[0]
            assert package == home or RANK[package] < RANK[home], f"{module} imports {other}"
        if module in KNOW_NOTHING_OF_NATIVE:
            assert not any(other.startswith("native") for other in imports), module


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
