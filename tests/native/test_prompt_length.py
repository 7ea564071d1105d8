"""Texts that are far too long for a context are told from their beginning."""

from __future__ import annotations

from pathlib import Path

import pytest

from llcuda import Model
from llcuda.native.prompt_length import is_far_too_long
from tests.conftest import VENDOR_MODELS

FILES = sorted(path.with_suffix("") for path in VENDOR_MODELS.glob("*.gguf.inp"))
LIMIT = 1_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem.removeprefix("ggml-vocab-"))
def test_a_small_part_of_a_long_text_is_tokenized(path: Path) -> None:
    """With every tokenizer; what may fit is never told to be too long."""
    text = "The quick brown fox 12 jumps: \u00e9t\u00e9 \U0001f600!\n" * 8_000
    with Model(path, vocab_only=True) as model:
        assert is_far_too_long(model, text, LIMIT)
        assert is_far_too_long(model, text.encode(), LIMIT)
        read = model.tokenizer_timings.tokenized_tokens
        count = len(model.tokenize(text))
        assert read < count / 2
        for limit in (count // 2 + 1, count):
            assert not is_far_too_long(model, text, limit)


def test_many_characters_in_a_token() -> None:
    """A text of few tokens is read to its end before it is refused, and passes if it fits."""
    spaces = " " * 600_000
    with Model(VENDOR_MODELS / "ggml-vocab-qwen2.gguf", vocab_only=True) as model:
        count = len(model.tokenize(spaces))
        assert count < len(spaces) / 32
        assert not is_far_too_long(model, spaces, count)
        assert is_far_too_long(model, spaces, count // 8)


@pytest.mark.parametrize("parse_special", [True, False])
def test_control_tokens_count_as_they_are_read(parse_special: bool) -> None:
    """As one token each, or as the tokens of their texts."""
    text = "<|im_start|>" * 30_000
    with Model(VENDOR_MODELS / "ggml-vocab-qwen2.gguf", vocab_only=True) as model:
        assert is_far_too_long(model, text, 4_000, parse_special) is not parse_special
