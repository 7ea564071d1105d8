"""Compares the exported files with the checkpoint: tokens, logits and greedy stories.

    python -m demo_model.compare --checkpoint checkpoint --exact demo-f32.gguf --shipped demo.gguf

`--exact` is an export with `--type F32`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer

from demo_model.corpus import HELD_OUT_SEEDS, document
from demo_model.data import BOS, IM_END
from demo_model.evaluate import STORY_PROMPTS
from demo_model.model import Shape, Transformer
from llcuda import Context, Model


def load_checkpoint(folder: Path) -> Transformer:
    """The trained model in float32."""
    model = Transformer(Shape(**json.loads((folder / "shape.json").read_text())))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.eval()


def compare_logits(model: Transformer, path: Path, sequences: list[list[int]]) -> dict[str, float]:
    """Largest difference of logits, their spread, and how often the best token is the same."""
    worst, spread, same, total = 0.0, 0.0, 0, 0
    with Model(path) as loaded, Context(loaded, ctx_size=1024) as context:
        for tokens in sequences:
            with torch.no_grad():
                ours: NDArray[np.float32] = model(torch.tensor([tokens]))[0].numpy()
            context.memory.clear(data=False)
            context.decode(tokens, logits="all")
            theirs = np.array([context.logits(i) for i in range(len(tokens))])
            worst = max(worst, float(np.abs(ours - theirs).max()))
            spread = max(spread, float(ours.std()))
            same += int((ours.argmax(1) == theirs.argmax(1)).sum())
            total += len(tokens)
    return {"largest difference": worst, "standard deviation": spread, "same best": same / total}


def greedy(model: Transformer, tokens: list[int]) -> list[int]:
    """Greedy continuation in PyTorch, up to the end of the turn."""
    generated = list(tokens)
    with torch.no_grad():
        while len(generated) < 300 and generated[-1] != IM_END:
            generated.append(int(model(torch.tensor([generated]))[0, -1].argmax()))
    return generated


def greedy_in_llama(context: Context, tokens: list[int]) -> list[int]:
    """Greedy continuation through llama.cpp, up to the end of the turn."""
    context.memory.clear(data=False)
    generated = list(tokens)
    context.decode(tokens)
    while len(generated) < 300 and generated[-1] != IM_END:
        generated.append(int(np.argmax(context.logits())))
        context.decode(generated[-1:])
    return generated


def main() -> None:
    """Prints what agrees and what does not."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--exact", type=Path, required=True)
    parser.add_argument("--shipped", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=1000)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))
    shipped = Model(arguments.shipped)

    texts = [document(HELD_OUT_SEEDS * 4 + i) for i in range(arguments.documents)]
    encoded = [tokenizer.encode(text).ids for text in texts]
    equal = sum(
        shipped.tokenize(text, parse_special=True) == [BOS, *ids]
        for text, ids in zip(texts, encoded, strict=True)
    )
    print(f"tokenized alike: {equal} of {len(texts)} documents")

    model = load_checkpoint(arguments.checkpoint)
    sequences = [[BOS, *ids][:512] for ids in encoded[:20]]
    for path in (arguments.exact, arguments.shipped):
        print(path.name, compare_logits(model, path, sequences))

    for path in (arguments.exact, arguments.shipped):
        same = 0
        with Model(path) as loaded, Context(loaded, ctx_size=1024) as context:
            for prompt in STORY_PROMPTS:
                start = [BOS, *tokenizer.encode(prompt).ids]
                same += greedy(model, start) == greedy_in_llama(context, start)
        print(f"greedy stories like PyTorch's ({path.name}): {same} of {len(STORY_PROMPTS)}")


if __name__ == "__main__":
    main()
