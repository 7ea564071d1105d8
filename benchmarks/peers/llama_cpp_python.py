"""llama-cpp-python's `Llama` on llcuda's libraries, so that only the binding differs.

Its pure Python package comes from the pinned archive, which `prepare` downloads once. The packages
that it imports are the dependency group peer-llama-cpp-python. It decodes one text at a time:
several are written one after the other, as behind a lock.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peers
from peers import SAMPLING, Setup, Text

BUILD = Path(__file__).resolve().parents[2] / "build"


def missing() -> str:
    """Return which packages are missing that llama_cpp imports."""
    return peers.without("diskcache", "jinja2", "typing_extensions")


def folder() -> Path:
    """Return the folder of the package."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "llcuda" / "peers"


def prepare(setup: Setup | None = None) -> None:
    """Unpack llama_cpp from the archive with llama.cpp's source."""
    if (folder() / "llama_cpp").is_dir():
        return
    sys.path.insert(0, str(BUILD))
    import fetch

    folder().mkdir(parents=True, exist_ok=True)
    fetch.unpack_folders(folder(), "llama_cpp")


class Peer(peers.Peer):
    """A model as the users of llama-cpp-python load it."""

    at_once = 1

    def __init__(self, setup: Setup) -> None:
        from llcuda.native import library

        # llcuda first: it loads the libraries and their backends, which the peer then shares.
        os.environ["LLAMA_CPP_LIB_PATH"] = library.versions()["folder"]
        sys.path.insert(0, str(folder()))
        import llama_cpp
        import llama_cpp.llama_cpp as raw

        # A text must not end before its length. `Llama` has no option for that, and a logit_bias
        # copies all logits for every token.
        raw.llama_vocab_is_eog = lambda vocab, token: False
        self.version = llama_cpp.__version__
        self._llama = llama_cpp.Llama(
            str(setup.gguf), n_gpu_layers=-1, n_ctx=setup.context, n_threads=setup.threads,
            n_threads_batch=setup.threads, flash_attn=True, verbose=False, seed=1,
        )  # fmt: skip

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Call `Llama` for one text after the other."""
        return [self.write(text) for text in texts]

    def write(self, text: Text, **options: Any) -> int:
        """Write one text, with further options of `Llama`; return the number of its tokens.

        `Llama` writes beyond the length while the last character is incomplete.
        """
        self._llama.reset()
        answer = self._llama(
            text.prompt,
            max_tokens=text.length,
            min_p=0.0,
            repeat_penalty=1.0,
            **SAMPLING,
            **options,
        )
        return min(text.length, answer["usage"]["completion_tokens"])
