"""A Hugging Face checkpoint with the shapes of a model and random weights, in bfloat16.

transformers, CTranslate2, Eole and vLLM load it, or what they convert it to. A word of its
tokenizer is one token, so that a prompt's tokens can be given as text, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers import Setup

SPECIAL = {"unk_token": 0, "bos_token": 1, "eos_token": 2, "pad_token": 3}


def word(token: int) -> str:
    """Return the text of a token."""
    names = {number: f"<{name.removesuffix('_token')}>" for name, number in SPECIAL.items()}
    return names.get(token, f"w{token}")


def words(tokens: Sequence[int]) -> list[str]:
    """Return the text of each token."""
    return [word(token) for token in tokens]


def make(setup: Setup) -> Path:
    """Return the checkpoint's folder, writing it if it is not there."""
    return once(setup.folder / "hf", lambda folder: _write(setup.shape, folder))


def once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return the folder that `write` fills; a half written one is not taken for a whole one."""
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        part.rename(folder)
    return folder


def config(shape: dict[str, Any]) -> Any:
    """Return transformers' configuration of a shape."""
    import transformers

    kinds = {"gemma3": "Gemma3TextConfig", "llama": "LlamaConfig", "qwen2": "Qwen2Config"}
    more: dict[str, Any] = {"rope_theta": shape["rope_base"]}
    if shape["architecture"] == "gemma3":
        more["sliding_window"] = shape["window"]
    return getattr(transformers, kinds[shape["architecture"]])(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        intermediate_size=shape["feed_forward"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head"],
        max_position_embeddings=shape["context"],
        rms_norm_eps=shape["epsilon"],
        tie_word_embeddings=shape["tied"],
        **{f"{name}_id": number for name, number in SPECIAL.items() if name != "unk_token"},
        **more,
    )


def _write(shape: dict[str, Any], folder: Path) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config(shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    vocabulary = {word(token): token for token in range(shape["vocabulary"])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], ignore_merges=True, unk_token=word(0))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{name: word(number) for name, number in SPECIAL.items()}
    ).save_pretrained(folder)
