from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llcuda import Model, Utf8Decoder
from llcuda.errors import ArgumentError
from tests.conftest import VENDOR_MODELS
from tests.support import models

FILES = sorted(path.with_suffix("") for path in VENDOR_MODELS.glob("*.gguf.inp"))
# WordPiece (BERT) lowers the case and keeps neither accents nor spaces: no text comes back whole.
LOSSY = {"bert-bge"}
# SentencePiece of Llama 2 and Phi-3 puts a space before the text.
SPACE_IN_FRONT = {"llama-spm", "phi-3"}


def name(path: Path) -> str:
    """Return the short name of a vocabulary file."""
    return path.stem.removeprefix("ggml-vocab-")


def cleaned(text: str) -> str:
    """Return `text` as models with clean_up_tokenization_spaces detokenize it: "a ?" is "a?"."""
    for mark in "?!.,":
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def test_the_vocabularies_are_there() -> None:
    """Without the source of llama.cpp nothing below would be tested."""
    assert len(FILES) >= 13, f"{VENDOR_MODELS} is missing: run 'python build/fetch.py'"


@pytest.fixture(scope="module", params=FILES, ids=name)
def vocabulary(request: pytest.FixtureRequest) -> Iterator[tuple[str, Model, list, list]]:
    """A name, its model, the recorded texts and the recorded tokens."""
    path: Path = request.param
    texts = path.with_suffix(".gguf.inp").read_bytes().decode()
    inputs = texts.split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    tokens = [[int(token) for token in line.split()] for line in lines]
    with Model(path, vocab_only=True) as model:
        yield name(path), model, inputs, tokens


def test_texts_tokenize_as_recorded(vocabulary: tuple[str, Model, list, list]) -> None:
    """The reference tokenizers' own tokens, without BOS and EOS."""
    _, model, inputs, expected = vocabulary
    pairs = list(zip(inputs, expected, strict=False))
    assert len(pairs) >= 40
    for text, tokens in pairs:
        assert tokens == model.tokenize(text, add_special=False)


def test_tokens_detokenize_to_the_text(vocabulary: tuple[str, Model, list, list]) -> None:
    """Whole and piece by piece, but for what the tokenizer itself drops."""
    kind, model, inputs, recorded = vocabulary
    if kind in LOSSY:
        lowered = model.detokenize(model.tokenize("Hello World", add_special=False))
        assert "hello world" == lowered.strip()
        return
    for text, tokens in zip(inputs, recorded, strict=False):
        decoder = Utf8Decoder()
        pieces = "".join(decoder.decode(model.piece_bytes(token)) for token in tokens)
        pieces += decoder.flush()
        whole = model.detokenize(tokens)
        if kind in SPACE_IN_FRONT:
            assert text == pieces.removeprefix(" ")
            assert text == whole
        else:
            assert text == pieces
            assert text == whole
            assert model.detokenize(tokens, clean_spaces=True) in (text, cleaned(text))


@pytest.mark.parametrize("text", ["What is it ? I ' m , no .", "I 'm , ça n't", " two  spaces "])
def test_spaces_before_punctuation_stay(
    vocabulary: tuple[str, Model, list, list], text: str
) -> None:
    """With BOS and without, as text and as what is left of control tokens."""
    kind, model, _, _ = vocabulary
    if kind in LOSSY:
        return
    for added in (True, False):
        tokens = model.tokenize(text, add_special=added)
        assert text == model.detokenize(tokens)
        assert text == model.detokenize(tokens, remove_special=True)


def test_wordpiece_is_cleaned_by_default() -> None:
    """Its tokens are the same with a space before punctuation and without one."""
    with Model(VENDOR_MODELS / "ggml-vocab-bert-bge.gguf", vocab_only=True) as model:
        tokens = model.tokenize("It is, he said.", add_special=False)
        assert tokens == model.tokenize("It is , he said .", add_special=False)
        assert "it is, he said." == model.detokenize(tokens).strip()
        assert "it is , he said ." == model.detokenize(tokens, clean_spaces=False).strip()


@given(text=st.text())
def test_any_text_survives(model: Model, text: str) -> None:
    """Byte-level BPE loses nothing."""
    tokens = model.tokenize(text, add_special=False)
    assert text == model.detokenize(tokens)
    decoder = Utf8Decoder()
    pieces = "".join(decoder.decode(model.piece_bytes(token)) for token in tokens)
    assert text == pieces + decoder.flush()


@given(raw=st.binary(max_size=50))
@example(raw=b"a\xf4\x90\x80\x80\xf7\xbf\xbf\xbfb")  # code points past the last
def test_any_bytes_tokenize(model: Model, raw: bytes) -> None:
    """Invalid UTF-8 is replaced, nothing fails."""
    model.detokenize(model.tokenize(raw))


@given(tokens=st.lists(st.integers(0, models.VOCABULARY - 1)))
def test_any_tokens_detokenize(model: Model, tokens: list[int]) -> None:
    """The pieces of any tokens are the text of all."""
    pieces = b"".join(model.piece_bytes(token, special=True) for token in tokens)
    assert pieces.decode(errors="replace") == model.detokenize(tokens, special=True)


def test_special_tokens_are_parsed_only_when_asked(model: Model) -> None:
    """A text from outside cannot smuggle control tokens in."""
    text = "<|user|>the"
    user = models.VOCABULARY - 2
    assert user not in model.tokenize(text)
    assert user == model.tokenize(text, parse_special=True)[1]
    assert models.BOS == model.tokenize(text)[0]
    assert models.BOS != model.tokenize(text, add_special=False)[0]


def test_special_tokens_have_text_only_when_asked(model: Model) -> None:
    """Control tokens are no part of the text."""
    tokens = [models.BOS, *model.tokenize("the", add_special=False)]
    assert ("the", "<|bos|>the") == (
        model.detokenize(tokens),
        model.detokenize(tokens, special=True),
    )
    assert (b"", b"<|bos|>") == (
        model.piece_bytes(models.BOS), model.piece_bytes(models.BOS, special=True)
    )  # fmt: skip


def test_a_long_piece_is_whole(model_files: dict[str, Path], tmp_path: Path) -> None:
    """Of any length."""
    metadata, tensors = models.llama()
    metadata["tokenizer.ggml.tokens"][models.VOCABULARY - 1] = "x" * 10_000
    with Model(models.write(tmp_path / "long.gguf", metadata, tensors)) as model:
        assert b"x" * 10_000 == model.piece_bytes(models.VOCABULARY - 1, special=True)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", None, 5, ["a"], 1.5])
def test_no_text(text: object, model: Model) -> None:
    """Lone surrogates and what is no text."""
    with pytest.raises(ArgumentError):
        model.tokenize(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [[-1], [models.VOCABULARY], ["a"], [None], [2**40], [1.5]])
def test_no_tokens(tokens: list, model: Model) -> None:
    """Outside the vocabulary."""
    with pytest.raises(ArgumentError):
        model.detokenize(tokens)


def test_all_pieces_at_once(demo: Model) -> None:
    """Each is that of piece_bytes(); names stand for control tokens and ends."""
    pieces, named = demo.pieces()
    assert {*named} == {t for t in range(demo.vocab_size) if demo.is_control(t) or demo.is_eog(t)}
    expected = [demo.piece_bytes(t, special=t in named) for t in range(demo.vocab_size)]
    assert expected == pieces
