"""The files of a SentencePiece tokenizer that transformers omits and llama.cpp's converter reads.

transformers 5 saves a SentencePiece tokenizer (Gemma, Llama 2, Phi 3, Mistral) only as
tokenizer.json, whose merges give the order in which pieces are joined. SentencePiece gives that
order by scores.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llcuda.conversion.checkpoint import read_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def complete_tokenizer(folder: Path) -> None:
    """Write tokenizer.model and the added tokens if tokenizer.json is of a SentencePiece model."""
    if not (folder / "tokenizer.json").is_file():
        return
    content = read_json(folder / "tokenizer.json")
    model = content.get("model", {})
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    unknown = _token_text(model.get("unk_token") or config.get("unk_token"))
    if not (folder / "tokenizer.model").is_file() and unknown in model.get("vocab", {}):
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(content, unknown))
    config.setdefault(
        "added_tokens_decoder",
        {str(token["id"]): token for token in content.get("added_tokens", [])},
    )
    if config.get("add_prefix_space") is None:
        config["add_prefix_space"] = _adds_space(content)
    path.unlink(missing_ok=True)  # a link to the checkpoint's own file
    path.write_text(json.dumps(config))


def sentencepiece_model(content: dict[str, Any], unknown: str) -> bytes:
    """Return the SentencePiece model that a tokenizer.json with byte fallback was made from.

    Args:
        content: The content of tokenizer.json.
        unknown: The text of the token for unknown characters.

    Returns:
        The content of tokenizer.model.
    """
    from sentencepiece import sentencepiece_model_pb2 as protocol

    model = content["model"]
    tokens = {number: text for text, number in model["vocab"].items()}
    kinds = {number: _kind(text, unknown) for number, text in tokens.items()}
    for added in content.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        if kinds.get(added["id"]) != UNKNOWN:
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    proto = protocol.ModelProto()
    for number in range(max(tokens) + 1):
        text = tokens.get(number, f"[PAD{number}]")
        score = -float(ranks.get(text, len(merges))) if kinds.get(number) == NORMAL else 0.0
        proto.pieces.add(piece=text, score=score, type=kinds.get(number, UNUSED))
    proto.trainer_spec.model_type = protocol.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = _adds_space(content)
    proto.normalizer_spec.remove_extra_whitespaces = False
    serialized: bytes = proto.SerializeToString()
    return serialized


def _token_text(token: Any) -> str:
    """Return the text of a special token in a configuration, which is a text or an object."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _kind(text: str, unknown: str) -> int:
    if text == unknown:
        return UNKNOWN
    return BYTE if _BYTE.fullmatch(text) else NORMAL


def _adds_space(content: dict[str, Any]) -> bool:
    """Return whether the tokenizer puts a space before a text, by a normalizer or Metaspace."""
    steps = [content.get("normalizer") or {}, content.get("pre_tokenizer") or {}]
    for step in steps:  # the list grows while it is read, because a Sequence holds steps
        steps += step.get("normalizers", []) + step.get("pretokenizers", [])
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
