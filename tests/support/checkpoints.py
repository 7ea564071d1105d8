"""Small checkpoints of random weights with real tokenizers, as transformers writes them.

The SentencePiece tokenizers are trained here, on the demo model's stories; the byte-level ones are
rebuilt from the vocabularies beside llama.cpp's source, so that its converter knows them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from demo_model.corpus import document

ROOT = Path(__file__).resolve().parents[2]
TEXT = "The fox ran home: it was late, 23 stars shone.\nWho's there? 'Nobody', said the wind."
VOCABULARY = 640
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
}
_BYTE_LEVEL = {"bos_token_id": None, "eos_token_id": 151_643, "pad_token_id": 151_643}
_SENTENCEPIECE = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
# name: (transformers' class, its configuration)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("Gemma3Text", {"vocab_size": VOCABULARY, "num_hidden_layers": 7,
                              "sliding_window": 16, "query_pre_attn_scalar": 16,
                              "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}),
    "llama": ("Llama", {**_SENTENCEPIECE, "tie_word_embeddings": False}),
    "llama3": ("Llama", {"vocab_size": 128_256, "rope_parameters": _LLAMA3, "bos_token_id": 128_000,
                         "eos_token_id": 128_001, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"vocab_size": 151_936, "tie_word_embeddings": True, **_BYTE_LEVEL}),
    "qwen3": ("Qwen3", {"vocab_size": 151_936, "tie_word_embeddings": True, **_BYTE_LEVEL}),
    "phi3": ("Phi3", {**_SENTENCEPIECE, "pad_token_id": 0}),
    "mistral": ("Mistral", {**_SENTENCEPIECE, "sliding_window": None}),
}  # fmt: skip


def model(kind: str, seed: int = 1, **changes: Any) -> Any:
    """Return a model with random weights; also norms and biases are not what they begin as."""
    name, settings = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**_SMALL, **settings, **changes})
    torch.manual_seed(seed)
    loaded = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in loaded.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return loaded.eval()


def tokenizer(kind: str, folder: Path) -> Any:
    """Return the tokenizer that goes with a kind of model; its files are made in `folder`."""
    if kind in ("qwen2", "qwen3"):
        return _byte_level("qwen2", digits="", eos="<|endoftext|>")
    if kind == "llama3":
        begin, end = "<|begin_of_text|>", "<|end_of_text|>"
        return _byte_level("llama-bpe", digits="{1,3}", bos=begin, eos=end)
    _train(folder / "tokenizer.model", kind)
    name = "Gemma" if kind == "gemma3" else "Llama"
    tokenizer_class = getattr(transformers, f"{name}TokenizerFast")
    return tokenizer_class.from_pretrained(folder, add_bos_token=True)


def save(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a checkpoint and its tokenizer into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(kind, folder).save_pretrained(folder)
    model(kind, **changes).save_pretrained(folder)
    return folder


def _train(path: Path, kind: str) -> None:
    """Write a SentencePiece model with the special tokens of Gemma, of Phi 3 or of Llama 2."""
    special: dict[str, Any] = {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    if kind == "phi3":
        special["user_defined_symbols"] = ["<|endoftext|>", "<|user|>", "<|end|>"]
    if kind == "gemma3":
        special = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "add_dummy_prefix": False}
        special |= {"pad_piece": "<pad>", "bos_piece": "<bos>", "eos_piece": "<eos>"}
        special |= {"user_defined_symbols": ["<mask>", "<start_of_turn>", "<end_of_turn>"]}
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for n in range(60) for line in document(n).splitlines()),
        model_writer=written,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **special,
    )
    path.write_bytes(written.getvalue())


def _byte_level(name: str, *, digits: str, eos: str, bos: str | None = None) -> Any:
    """Return a byte-level tokenizer with a vocabulary of llama.cpp's tests."""
    reader = gguf.GGUFReader(ROOT / f"vendor/llama.cpp/models/ggml-vocab-{name}.gguf")
    tokens, kinds, merges = (
        reader.fields[f"tokenizer.ggml.{key}"].contents()
        for key in ("tokens", "token_type", "merges")
    )
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    vocabulary = {token: i for i, token in enumerate(tokens) if kinds[i] == 1}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(m.split(" ")) for m in merges]))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS.replace("DIGITS", digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, bos_token=bos)
    if bos:
        fast._tokenizer.post_processor = _begin(bos, tokens.index(bos))
    return fast


def _begin(token: str, number: int) -> Any:
    """Return the rule that puts a token before each text."""
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])
