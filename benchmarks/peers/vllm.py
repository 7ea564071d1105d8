"""vLLM's LLM, in bfloat16 with CUDA graphs, or `vllm:eager` without."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import peers
from peers import SAMPLING, Setup, Text, checkpoint


def missing() -> str:
    """Return which of its packages are missing."""
    return peers.without("vllm", "torch", "transformers")


prepare = checkpoint.make


def _settings(setup: Setup) -> dict[str, Any]:
    """Return the parameters of an engine."""
    return {
        "model": str(checkpoint.make(setup)), "dtype": "bfloat16", "max_model_len": setup.context,
        "max_num_seqs": setup.rows, "enforce_eager": setup.variant == "eager", "seed": 1,
        "gpu_memory_utilization": 0.6, "disable_log_stats": True,
    }  # fmt: skip


class Peer(peers.Peer):
    """One LLM for every number of rows: a second one in a process would find the memory taken."""

    def __init__(self, setup: Setup) -> None:
        import vllm

        self.version, self._rows, self._params = vllm.__version__, 1, vllm.SamplingParams
        self._llm = vllm.LLM(**_settings(setup))

    def open(self, rows: int) -> None:
        """Give it so many texts at once."""
        self._rows = rows

    def generate(self, texts: Sequence[Text]) -> list[int]:
        """Generate batch by batch; within one, a text that is written leaves."""
        return [n for batch in peers.batches(texts, self._rows) for n in self._batch(batch)]

    def _batch(self, texts: Sequence[Text]) -> list[int]:
        results = self._llm.generate(
            [{"prompt_token_ids": text.prompt} for text in texts],
            [self._params(max_tokens=text.length, ignore_eos=True, **SAMPLING) for text in texts],
            use_tqdm=False,
        )
        return [len(result.outputs[0].token_ids) for result in results]


class Server(peers.Server):
    """AsyncLLM, whose requests are read token by token."""

    def __init__(self, setup: Setup) -> None:
        import vllm
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM

        self.version, self._params = vllm.__version__, vllm.SamplingParams
        self._deltas, self._numbers = RequestOutputKind.DELTA, itertools.count()
        self._llm = AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(**_settings(setup)))

    async def stream(self, text: Text, seed: int | None) -> AsyncIterator[int]:
        """Generate the text; the tokens of an output are those that are new."""
        params = self._params(
            max_tokens=text.length, ignore_eos=True, seed=seed, output_kind=self._deltas,
            **SAMPLING,
        )  # fmt: skip
        prompt, count = {"prompt_token_ids": text.prompt}, 0
        async for output in self._llm.generate(prompt, params, str(next(self._numbers))):
            count += len(output.outputs[0].token_ids)
            yield count

    def close(self) -> None:
        """End the process of the engine."""
        self._llm.shutdown()
