"""llama-server's own API with real models: gaps in code, and slots that go to files and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llcuda import Engine, Model
from llcuda.server.models import ModelSpec
from tests.real.conftest import QWEN, file
from tests.support.server import served

BEFORE = '#include <cstdio>\n#include "llama.h"\n\nint main() {\n'
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


def test_gaps_are_filled(tmp_path: Path) -> None:
    """The names of another file come into the code; slots of the server are kept in files."""
    spec = ModelSpec("qwen", str(file(QWEN)), parameters={"ctx_size": 512, "n_parallel": 2})
    with served(spec, slot_folder=tmp_path) as server:
        answer = server.post(
            "/infill",
            input_extra=[{"filename": "llama.h", "text": "LLAMA_API int llama_n_threads();\n"}],
            input_prefix=BEFORE,
            prompt="    int n_threads = llama_",
            input_suffix="}\n",
            n_predict=8,
            temperature=0,
        ).json()
        assert answer["content"].startswith("n_threads();")
        code = {"prompt": "def add(a, b):\n    return ", "suffix": "\n\nassert add(1, 2) == 3\n"}
        answer = server.post("/v1/completions", **code, max_tokens=5, temperature=0).json()
        assert "+" in answer["choices"][0]["text"]
        asked = {"prompt": "The capital of France is", "n_predict": 4, "temperature": 0}
        first = server.post("/completion", **asked, id_slot=1).json()
        assert "Paris" in first["content"]
        assert server.post("/slots/1?action=save", filename="paris").json()["n_saved"]
        server.client.post("/slots/1?action=erase")
        assert server.post("/slots/0?action=restore", filename="paris").json()["n_restored"]
        again = server.post("/completion", **asked, id_slot=0).json()
        assert (first["content"], 1) == (again["content"], again["timings"]["prompt_n"])


def test_a_sliding_window_in_a_file(gemma: Model, tmp_path: Path) -> None:
    """A text longer than the window can be continued from its file, but not shortened."""
    text = "The ship sailed on over the dark sea. " * 80
    assert len(gemma.tokenize(text)) > gemma.sliding_window + 100
    with Engine(gemma, ctx_size=1024, n_parallel=2) as engine:
        first = engine.submit(text, slot=0, **GREEDY).result()
        saved = engine.save_slot(0, tmp_path / "ship")
        longer = [*gemma.tokenize(text), *first.tokens, *gemma.tokenize(" And then", False)]
        expected = engine.submit(longer, slot=0, **GREEDY).result()
        for slot in (0, 1):
            engine.erase_slot(slot)
        assert saved == engine.restore_slot(1, tmp_path / "ship")
        whole = engine.submit(longer, slot=1, **GREEDY).result()
        assert (saved, expected.text) == (whole.cached_tokens, whole.text)
        engine.erase_slot(1)
        engine.restore_slot(1, tmp_path / "ship")
        again = engine.submit(text, slot=1, **GREEDY).result()
        assert (0, first.text) == (again.cached_tokens, again.text)
