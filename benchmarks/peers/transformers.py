"""transformers' `generate`: by default as it comes; `transformers:static` with a static cache.

With a static cache on a GPU `generate` compiles the model by torch.compile. A batch runs until its
longest text is written, since `generate` lets the others wait for that; tokens beyond a text's
length do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peers
from peers import SAMPLING, Setup, Text, checkpoint


def missing() -> str:
    """Return which of its packages are missing."""
    return peers.without("torch", "transformers", "accelerate")


prepare = checkpoint.make


class Peer(peers.Peer):
    """The checkpoint in bfloat16."""

    def __init__(self, setup: Setup) -> None:
        import torch
        import transformers

        self.version = f"{transformers.__version__}, torch {torch.__version__}"
        torch.set_float32_matmul_precision("high")
        self._torch, self._rows = torch, 1
        self._device = "cuda" if setup.gpu else "cpu"
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.make(setup), dtype=torch.bfloat16, device_map=self._device
        ).eval()
        self._model.generation_config.eos_token_id = None
        self._options: dict[str, Any] = {"do_sample": True, "pad_token_id": 0, **SAMPLING}
        if setup.variant == "static":
            self._options["cache_implementation"] = "static"

    def open(self, rows: int) -> None:
        """Take batches of so many texts."""
        self._rows = rows

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Generate batch by batch."""
        return [n for batch in peers.batches(texts, self._rows) for n in self._batch(batch)]

    def warm_up(self, texts: Sequence[Text]) -> None:
        """Write the batch with the longest text, so that all is compiled.

        A static cache has the size of the longest text so far, and is compiled anew where a text
        grows beyond the sliding window.
        """
        batches = peers.batches(texts, self._rows)
        self._batch(max(batches, key=lambda batch: max(text.length for text in batch)))

    def _batch(self, texts: Sequence[Text]) -> list[int]:
        size, torch = max(len(text.prompt) for text in texts), self._torch
        ids = torch.zeros((len(texts), size), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, size - len(text.prompt) :] = torch.tensor(text.prompt)
            mask[row, size - len(text.prompt) :] = 1
        written = self._model.generate(
            ids.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=max(text.length for text in texts),
            **self._options,
        ).cpu()
        return [min(text.length, written.shape[1] - size) for text in texts]
