"""lm-eval's local-completions: its rolling perplexity, by token ids and by text.

lm-eval asks the Hugging Face Hub for the tokenizer. The server's /tokenize takes its place.
"""

from __future__ import annotations

import math
from typing import Any

import checks
import requests
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

TEXT = (
    "The harbour was quiet in the early morning. Two fishing boats lay at the pier, and a man "
    "mended a net on the deck of the larger one. He did not look up when the bell of the church "
    "rang. The wind came from the west, and it smelled of salt and of rain. Later the first "
    "children walked down the street to the school, and the baker opened the door of his shop. "
    "Nobody spoke about the storm, although everybody had seen the clouds above the islands."
)


def ask(path: str, **body: object) -> Any:
    """Ask the server for JSON."""
    answer = requests.post(f"{checks.URL}/{path}", json=body, timeout=60)
    answer.raise_for_status()
    return answer.json()


class Client(LocalCompletionsAPI):
    """local-completions with the tokenizer of the server.

    Args:
        tokenized: Whether prompts are sent as token ids.
    """

    def __init__(self, tokenized: bool) -> None:
        super().__init__(
            base_url=f"{checks.URL}/v1/completions",
            model=checks.MODEL,
            tokenizer_backend=None,
            max_length=65,  # several windows
        )
        self.tokenizer = "the server's"  # only asked whether there is one
        self.tokenized_requests = tokenized

    @property
    def prefix_token_id(self) -> int:
        """The token before the first of a text."""
        return self.tok_encode("<|endoftext|>")[0]

    def tok_encode(self, string: str, **_: object) -> list[int]:
        """Return the tokens of a text."""
        return ask("tokenize", content=string, add_special=False)["tokens"]

    def decode_batch(self, tokens: list[list[int]]) -> list[str]:
        """Return the texts of token ids."""
        return [ask("detokenize", tokens=ids)["content"] for ids in tokens]


@checks.check
def perplexity() -> object:
    values = []
    for tokenized in (True, False):
        client = Client(tokenized)
        request = Instance("loglikelihood_rolling", {}, (TEXT,), 0)
        (total,) = client.loglikelihood_rolling([request], disable_tqdm=True)
        values.append(math.exp(-total / len(client.tok_encode(TEXT))))
    by_ids, by_text = values
    assert 1 < by_ids < 1000 and math.isclose(by_ids, by_text, rel_tol=1e-3), values
    return f"{by_ids:.4f} by token ids, {by_text:.4f} by text"
