"""Eole's own engine, in bfloat16: as it comes, or `eole:compile` with its torch.compile.

A batch runs until its longest text is written; tokens beyond a text's length do not count.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import peers
from peers import SAMPLING, Setup, Text, checkpoint


def missing() -> str:
    """Return which of its packages are missing."""
    return peers.without("eole", "torch", "transformers", "pyonmttok")


def prepare(setup: Setup) -> Path:
    """Convert the checkpoint."""

    def write(folder: Path) -> None:
        from argparse import ArgumentParser

        from eole.bin.convert.convert_HF import LlamaHFConverter

        parser = ArgumentParser()
        LlamaHFConverter.add_args(parser)
        options = ["--model_dir", str(checkpoint.make(setup)), "--output", str(folder)]
        LlamaHFConverter.run(parser.parse_args([*options, "--dtype", "bf16"]))

    return checkpoint.once(setup.folder / "eole", write)


class Peer(peers.Peer):
    """InferenceEnginePY, which takes words."""

    def __init__(self, setup: Setup) -> None:
        os.environ["EOLE_TORCH_COMPILE"] = str(int(setup.variant == "compile"))
        import eole
        from eole.config.run import PredictConfig
        from eole.inference_engine import InferenceEnginePY

        self.version, self._rows = eole.__version__, 1
        self._engine = InferenceEnginePY(
            PredictConfig(
                model_path=[str(prepare(setup))], src="", beam_size=1, max_length_ratio=0,
                batch_size=setup.rows, gpu_ranks=[0] if setup.gpu else [], world_size=1,
                compute_dtype="bf16", seed=1, **SAMPLING,
            )
        )  # fmt: skip

    def open(self, rows: int) -> None:
        """Take batches of so many texts."""
        self._rows = rows

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Generate batch by batch."""
        return [n for batch in peers.batches(texts, self._rows) for n in self._batch(batch)]

    def _batch(self, texts: Sequence[Text]) -> list[int]:
        longest = max(text.length for text in texts)
        _, _, written = self._engine.infer_list(
            [" ".join(checkpoint.words(text.prompt)) for text in texts],
            settings={"max_length": longest, "min_length": longest},  # no end before that
        )
        counts = [len(best[0].split()) for best in written]
        return [min(text.length, n) for text, n in zip(texts, counts, strict=True)]
