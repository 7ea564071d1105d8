"""The native layer on real weights: those of the model that ships with the package.

After another training the texts here are other ones: see demo_model/.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llcuda import Context, Model, Sampler

Make = Callable[..., Context]
STORIES = {
    "Once upon a time": ", there was a grumpy girl named Lena. One day, Lena found a tiny seed in "
    "the forest. She planted it next to the house and waited. But nothing happened.",
    "One day, a fox": " named Arlo was already up. He lived in the village. Arlo's biggest dream "
    "was to see the whole world one day.",
}
# Eight-bit weights meet other kernels in batches of another size.
TOLERANCE = {"rtol": 0, "atol": 0.1}


def continued(context: Context, prompt: str, max_tokens: int, seq: int = 0) -> str:
    """Return the greedy continuation of `prompt`, at most so many tokens."""
    model, sampler = context.model, Sampler(temperature=0)
    context.decode(model.tokenize(prompt, parse_special=True), seq)
    tokens: list[int] = []
    while len(tokens) < max_tokens and not model.is_eog(token := sampler.sample(context)):
        tokens.append(token)
        context.decode([token], seq)
    return model.detokenize(tokens)


@pytest.mark.parametrize("prompt", STORIES)
def test_greedy_stories_are_fixed(prompt: str, demo: Model, make_context: Make) -> None:
    """The same words on every CPU."""
    text = continued(make_context(demo, ctx_size=512), prompt, 60)
    assert STORIES[prompt] == text[: len(STORIES[prompt])]


def test_stories_in_one_batch_equal_each_alone(demo: Model, make_context: Make) -> None:
    """Several greedy stories, token by token in one batch, as each alone."""
    together = make_context(demo, sequences=2, ctx_size=512)
    for seq, prompt in enumerate(STORIES):
        together.decode(demo.tokenize(prompt), seq, logits="none")
        together.memory.rollback(1, seq)
    tokens = [demo.tokenize(prompt)[-1] for prompt in STORIES]
    stories: list[list[int]] = [[], []]
    for _ in range(30):
        together.decode_batch(tokens, [0, 1])
        tokens = [int(np.argmax(together.logits(i))) for i in range(2)]
        for seq, token in enumerate(tokens):
            stories[seq].append(token)
    for seq, prompt in enumerate(STORIES):
        assert STORIES[prompt].startswith(demo.detokenize(stories[seq])[:60])


def test_rolled_back_and_forked_equal_fresh(demo: Model, make_context: Make) -> None:
    """On real weights, too."""
    prompt, more = demo.tokenize("Once upon a time, there was"), demo.tokenize(" a cat", False)
    other = make_context(demo, sequences=2)
    other.decode(prompt)
    expected = other.logits().copy()
    context = make_context(demo, sequences=2)
    context.decode(prompt[:-1])
    context.memory.copy(0, 1)
    context.decode([prompt[-1], *more])
    context.memory.rollback(len(more) + 1)
    for seq in (0, 1):
        context.decode(prompt[-1:], seq)
        np.testing.assert_allclose(context.logits(), expected, **TOLERANCE)


def test_a_story_is_likelier_than_its_words_in_disorder(demo: Model, make_context: Make) -> None:
    """score() gives a perplexity that tells language from none."""
    story = demo.tokenize("Once upon a time, there was a little girl. She was happy.")
    shuffled = [story[0], *np.random.default_rng(0).permutation(story[1:]).tolist()]
    first, second = (float(make_context(demo).score(tokens).mean()) for tokens in (story, shuffled))
    assert first > second + 1


def test_quantized_kv_cells(demo: Model, make_context: Make) -> None:
    """Cells of 8 bits change next to nothing."""
    tokens = demo.tokenize("Once upon a time, there was a little girl.")
    plain, small = make_context(demo), make_context(demo, type_k="q8_0", type_v="q8_0")
    for context in (plain, small):
        context.decode(tokens)
    difference = np.abs(plain.logits() - small.logits()).max()
    assert 0 < difference < 0.5
