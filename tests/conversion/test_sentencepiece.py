"""What is made of tokenizer.json; tests/oracles compares the tokens with transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llcuda.conversion.sentencepiece import complete_tokenizer
from llcuda.errors import ModelError

BPE = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": {"<unk>": 0, "a": 1}}
ADDED = [{"id": 2, "content": "<end>", "special": True}]


def completed(folder: Path, content: Any, **files: Any) -> dict[str, Any]:
    """Complete a tokenizer and return the JSON files of its folder."""
    for name, value in {"tokenizer": content, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    complete_tokenizer(folder)
    return {path.stem: json.loads(path.read_bytes()) for path in folder.glob("*.json")}


@pytest.mark.parametrize(
    "model", [{}, {"type": "WordPiece", "byte_fallback": True}, {**BPE, "byte_fallback": False}]
)
def test_other_tokenizers_are_left_alone(model: dict[str, Any], tmp_path: Path) -> None:
    """Only BPE with byte fallback is SentencePiece."""
    content = {"model": model}
    assert {"tokenizer": content} == completed(tmp_path, content)
    assert ["tokenizer.json"] == [path.name for path in tmp_path.iterdir()]


def test_a_folder_without_tokenizer_json(tmp_path: Path) -> None:
    """Nothing is written."""
    complete_tokenizer(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_its_own_sentencepiece_model_is_kept(tmp_path: Path) -> None:
    """The configuration gets the added tokens; a link's file is not written."""
    own = tmp_path / "own.txt"
    own.write_text('{"x": 1}')
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "tokenizer.model").write_bytes(b"own")
    (stage / "tokenizer_config.json").symlink_to(own)
    files = completed(stage, {"model": BPE, "added_tokens": ADDED})
    expected = {"x": 1, "added_tokens_decoder": {"2": ADDED[0]}, "add_prefix_space": False}
    assert expected == files["tokenizer_config"]
    assert b"own" == (stage / "tokenizer.model").read_bytes()
    assert '{"x": 1}' == own.read_text()


@pytest.mark.parametrize("unknown", ["<none>", {"content": "<none>"}])
def test_an_unknown_token_outside_of_the_vocabulary(unknown: Any, tmp_path: Path) -> None:
    """SentencePiece cannot do without one: no tokenizer.model is made."""
    files = completed(
        tmp_path, {"model": {**BPE, "unk_token": None}},
        tokenizer_config={"unk_token": unknown, "added_tokens_decoder": {}},
    )  # fmt: skip
    assert {} == files["tokenizer_config"]["added_tokens_decoder"]
    assert not (tmp_path / "tokenizer.model").exists()


METASPACE = {"type": "Metaspace", "prepend_scheme": "first"}


@pytest.mark.parametrize(
    ("steps", "adds"),
    [
        ({}, False),
        ({"normalizer": None, "pre_tokenizer": None}, False),
        ({"normalizer": {"type": "Prepend"}}, True),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}]}}, True),
        ({"normalizer": {"type": "Replace"}}, False),
        ({"pre_tokenizer": METASPACE}, True),
        ({"pre_tokenizer": {"type": "Metaspace"}}, True),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [METASPACE]}}, True),
        ({"pre_tokenizer": {**METASPACE, "prepend_scheme": "never"}}, False),
    ],
)
def test_a_space_before_the_text(steps: dict[str, Any], adds: bool, tmp_path: Path) -> None:
    """A normalizer or a pre-tokenizer may add it, also in a sequence; the configuration wins."""
    (tmp_path / "tokenizer.model").write_bytes(b"own")
    content = {"model": BPE, **steps}
    assert adds is completed(tmp_path, content)["tokenizer_config"]["add_prefix_space"]
    given = {"add_prefix_space": not adds}
    files = completed(tmp_path, content, tokenizer_config=given)
    assert (not adds) is files["tokenizer_config"]["add_prefix_space"]


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    """By its name."""
    (tmp_path / "tokenizer.json").write_text("[")
    with pytest.raises(ModelError, match=r"tokenizer\.json is not JSON"):
        complete_tokenizer(tmp_path)
