"""CTranslate2's Generator, in bfloat16; the variant is another type, as ctranslate2:int8_bfloat16.

A callback ends each text at its length, and its row leaves the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import peers
from peers import SAMPLING, Setup, Text, checkpoint


def missing() -> str:
    """Return which of its packages are missing; the converter needs transformers."""
    return peers.without("ctranslate2", "torch", "transformers")


def prepare(setup: Setup) -> Path:
    """Convert the checkpoint."""

    def write(folder: Path) -> None:
        from ctranslate2.converters import TransformersConverter

        converter = TransformersConverter(str(checkpoint.make(setup)))
        converter.convert(str(folder), quantization=setup.variant or "bfloat16", force=True)

    return checkpoint.once(setup.folder / f"ctranslate2-{setup.variant or 'bfloat16'}", write)


class Peer(peers.Peer):
    """A Generator."""

    def __init__(self, setup: Setup) -> None:
        import ctranslate2

        self.version, self._rows = ctranslate2.__version__, 1
        self._generator = ctranslate2.Generator(
            str(prepare(setup)),
            device="cuda" if setup.gpu else "cpu",
            compute_type=setup.variant or "bfloat16" if setup.gpu else "default",
            intra_threads=setup.threads,
        )

    def open(self, rows: int) -> None:
        """Take batches of so many texts."""
        self._rows = rows

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Generate batch by batch."""
        return [n for batch in peers.batches(texts, self._rows) for n in self._batch(batch)]

    def _batch(self, texts: Sequence[Text]) -> list[int]:
        # Steps count from the end of the shortest prompt; what the others have more is forced.
        shortest = min(len(text.prompt) for text in texts)
        ends = [text.length + len(text.prompt) - shortest for text in texts]
        several = len(texts) > 1
        results = self._generator.generate_batch(
            [checkpoint.words(text.prompt) for text in texts],
            max_length=max(ends),
            min_length=max(ends),  # no end before that
            include_prompt_in_result=False,
            sampling_topk=SAMPLING["top_k"],
            sampling_topp=SAMPLING["top_p"],
            sampling_temperature=SAMPLING["temperature"],
            callback=(lambda step: step.step + 1 >= ends[step.batch_id]) if several else None,
        )
        return [len(result.sequences_ids[0]) for result in results]
