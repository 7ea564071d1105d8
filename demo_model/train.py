"""Trains the tokenizer and the demo model on generated documents, each seen once.

On a GPU (the shipped model):     python -m demo_model.train --out checkpoint
On a CPU (a smaller, weaker one): python -m demo_model.train --out checkpoint --small

Writes `tokenizer.json`, `model.safetensors` (f16), `shape.json` and `metrics.json` into `--out`.
Exporting and evaluating are other modules.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from demo_model.corpus import END, HELD_OUT_SEEDS, document
from demo_model.data import (
    BOS,
    PAD,
    SPECIAL_TOKENS,
    Rows,
    pack,
    stream_batches,
    stream_rows,
    train_tokenizer,
)
from demo_model.model import Shape, Transformer
from demo_model.stories import tell

IGNORE = -100
Mask = Tensor | BlockMask
UNSEEN_SEEDS = 1 << 39  # documents of the training kind that training never reaches


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train; `batch_rows` rows of the model's context a step."""

    steps: int = 6500
    batch_rows: int = 96
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup_steps: int = 150
    tokenizer_documents: int = 40_000
    evaluation_documents: int = 2000


SMALL_SHAPE = Shape(layers=4)
SMALL_SETTINGS = Settings(steps=2500, batch_rows=6, learning_rate=3e-3, evaluation_documents=200)


def document_numbers(tokens: Tensor) -> Tensor:
    """Which document of its row each token belongs to; padding counts as one of its own."""
    numbers = (tokens == BOS).cumsum(1)
    return numbers.masked_fill(tokens == PAD, 0)


def make_mask(tokens: Tensor) -> Mask:
    """Lets a token see what came before it in its own document."""
    numbers = document_numbers(tokens)
    length = tokens.shape[1]
    if tokens.is_cuda:

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (numbers[batch, query] == numbers[batch, key])

        return create_block_mask(visible, tokens.shape[0], None, length, length, tokens.device)
    same = numbers[:, None, :, None] == numbers[:, None, None, :]
    return same & torch.ones(length, length, dtype=torch.bool).tril()


def token_losses(model: Transformer, tokens: Tensor, targets: Tensor, mask: Mask) -> Tensor:
    """Cross entropy of every token in nats, zero where the target is ignored."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if isinstance(mask, Tensor):
            return functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        return flex_attention(query, key, value, block_mask=mask, enable_gqa=True)

    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
        logits = model(tokens, attend)
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    )


def compiled_losses(device: torch.device) -> Callable[[Transformer, Tensor, Tensor, Mask], Tensor]:
    """`token_losses`, compiled on a GPU (where flex attention needs it)."""
    return torch.compile(token_losses) if device.type == "cuda" else token_losses


def split_targets(rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and what follows each of them; what follows a document's end is ignored."""
    tokens = torch.from_numpy(rows.astype("int64")).to(device, non_blocking=True)
    targets = tokens[:, 1:].clone()
    targets[(targets == BOS) | (targets == PAD)] = IGNORE
    return tokens[:, :-1].contiguous(), targets.contiguous()


def make_optimizers(model: Transformer, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for p in model.blk.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    rate, decay = settings.learning_rate, settings.weight_decay
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def held_out_loss(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], batch_rows: int
) -> dict[str, float]:
    """Nats per token, and bits per byte of the text (special tokens left out)."""
    device = next(model.parameters()).device
    losses_of = compiled_losses(device)
    rows = pack([tokenizer.encode(text).ids for text in texts], model.shape.context + 1)
    sizes = torch.zeros(model.shape.vocab_size)
    for token in range(len(SPECIAL_TOKENS), tokenizer.get_vocab_size()):
        sizes[token] = len(tokenizer.id_to_token(token) or "")  # one symbol is one byte
    sizes = sizes.to(device)
    total = torch.zeros(4, device=device)
    with torch.no_grad():
        for start in range(0, len(rows), batch_rows):
            tokens, targets = split_targets(rows[start : start + batch_rows], device)
            losses = losses_of(model, tokens, targets, make_mask(tokens))
            flat = targets.flatten()
            counted = flat != IGNORE
            text = counted & (flat >= len(SPECIAL_TOKENS))
            size = sizes[flat.clamp(min=0)][text].sum()
            total += torch.stack((losses.sum(), counted.sum(), losses[text].sum(), size))
    nats, tokens_counted, text_nats, size_counted = total.tolist()
    return {
        "nats_per_token": nats / tokens_counted,
        "bits_per_byte": text_nats / math.log(2) / size_counted,
    }


def train(
    model: Transformer, batches: Iterator[Rows], settings: Settings, device: torch.device
) -> int:
    """Trains in place and returns the number of tokens trained on."""
    optimizers = make_optimizers(model, settings)
    losses_of = compiled_losses(device)
    seen, started = 0, time.perf_counter()
    for step in range(settings.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_factor(step, settings)
        tokens, targets = split_targets(next(batches), device)
        counted = (targets != IGNORE).sum()
        loss = losses_of(model, tokens, targets, make_mask(tokens)).sum() / counted
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += tokens.numel()
        if step % 100 == 0 or step == settings.steps - 1:
            elapsed = time.perf_counter() - started
            print(f"step {step:5d}  loss {loss.item():.4f}  {seen / 1e6:7.1f} M tokens"
                  f"  {seen / elapsed / 1e3:6.0f} k tokens/s", flush=True)  # fmt: skip
    return seen


def main() -> None:
    """Trains a model as the arguments say."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--small", action="store_true", help="the smaller run for a CPU")
    parser.add_argument("--steps", type=int, help="another number of steps")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    arguments = parser.parse_args()
    settings = SMALL_SETTINGS if arguments.small else Settings()
    shape = SMALL_SHAPE if arguments.small else Shape()
    if arguments.steps:
        settings = Settings(**{**asdict(settings), "steps": arguments.steps})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    texts = [document(UNSEEN_SEEDS // 2 + i) for i in range(settings.tokenizer_documents)]
    tokenizer = train_tokenizer(shape.vocab_size, texts)
    tokenizer.save(str(out / "tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} tokens in the vocabulary", flush=True)

    model = Transformer(shape).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters", flush=True)
    shards = stream_rows(out / "tokenizer.json", shape.context + 1, arguments.workers)
    started = time.perf_counter()
    seen = train(model, stream_batches(shards, settings.batch_rows), settings, device)
    metrics: dict[str, object] = {
        "parameters": parameters,
        "tokens_trained": seen,
        "seconds": round(time.perf_counter() - started, 1),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "settings": asdict(settings),
    }
    weights = {name: weight.detach().half().cpu() for name, weight in model.named_parameters()}
    save_file({name: weight.contiguous() for name, weight in weights.items()},
              out / "model.safetensors")  # fmt: skip
    (out / "shape.json").write_text(json.dumps(asdict(shape), indent=1))
    count = settings.evaluation_documents
    for name, first in (("unseen", UNSEEN_SEEDS), ("held_out", HELD_OUT_SEEDS)):
        documents = [document(first + i) for i in range(count)]
        held_out = name == "held_out"
        plain = [tell(Random(first + i), held_out=held_out).story() + END for i in range(count)]
        for kind, texts in (("documents", documents), ("stories", plain)):
            losses = held_out_loss(model, tokenizer, texts, 16)
            metrics[f"{name}_{kind}"] = losses
            print(name, kind, losses, flush=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


if __name__ == "__main__":
    main()
