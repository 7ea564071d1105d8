"""llama-cpp-python's `Llama` on our own libraries, so that only the binding differs.

Its pure Python package comes from the pinned archive, which `prepare` downloads once. It decodes
one text at a time: more are written one after the other, as behind a lock.
"""

from __future__ import annotations

import os
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

import peers
from peers import SAMPLING, Setup, Text

BUILD = Path(__file__).resolve().parents[2] / "build"


def missing() -> str:
    """Say what llama_cpp itself imports and is not there."""
    return peers.without("diskcache", "jinja2", "typing_extensions")


def folder() -> Path:
    """Return where the package is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "llcuda" / "peers"


def prepare(setup: Setup | None = None) -> None:
    """Unpack llama_cpp from the archive that llama.cpp's source comes from."""
    if (folder() / "llama_cpp").is_dir():
        return
    sys.path.insert(0, str(BUILD))
    import fetch

    folder().mkdir(parents=True, exist_ok=True)
    pin = tomllib.loads((fetch.VENDOR / "llama.cpp.toml").read_text())
    with tarfile.open(fetch.download(pin, folder())) as tar:
        for member in tar.getmembers():
            _, _, member.name = member.name.partition("/")
            if member.name.startswith("llama_cpp/"):
                tar.extract(member, folder(), filter="data")


class Peer(peers.Peer):
    """A model as the users of llama-cpp-python hold one."""

    at_once = 1

    def __init__(self, setup: Setup) -> None:
        from llcuda.native import library

        # Ours first: it loads the libraries and their backends, which the peer then shares.
        os.environ["LLAMA_CPP_LIB_PATH"] = library.versions()["folder"]
        sys.path.insert(0, str(folder()))
        import llama_cpp
        import llama_cpp.llama_cpp as raw

        # A text that ends by itself would be counted short. `Llama` has no option against it, and
        # a logit_bias copies all logits for every token.
        raw.llama_vocab_is_eog = lambda vocab, token: False
        self.version = llama_cpp.__version__
        self._llama = llama_cpp.Llama(
            str(setup.gguf), n_gpu_layers=-1, n_ctx=setup.context, n_threads=setup.threads,
            n_threads_batch=setup.threads, flash_attn=True, verbose=False, seed=1,
        )  # fmt: skip

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Call `Llama` for one text after the other."""
        return [self._write(text) for text in texts]

    def _write(self, text: Text) -> int:
        self._llama.reset()
        answer = self._llama(
            text.prompt, max_tokens=text.length, min_p=0.0, repeat_penalty=1.0, **SAMPLING
        )
        return answer["usage"]["completion_tokens"]
