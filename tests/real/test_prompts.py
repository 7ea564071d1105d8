"""Raw prompts on real weights."""

from __future__ import annotations

from llcuda import Engine, Model

CHAT = "<|im_start|>user\nSay hello in French.<|im_end|>\n<|im_start|>assistant\n"
FILL_IN = "<|fim_prefix|>def add(a, b):\n    <|fim_suffix|>\n<|fim_middle|>"


def test_a_chat_written_by_hand(engine: Engine) -> None:
    """The template's tokens written in a raw prompt are those tokens, and the turn ends."""
    done = engine.submit(CHAT, temperature=0, max_tokens=32).result()
    assert (13, "stop") == (done.prompt_tokens, done.finish_reason)
    assert "Bonjour" in done.text
    assert "<|" not in done.text
    as_text = engine.submit(CHAT, temperature=0, max_tokens=1, parse_special=False).result()
    assert 26 == as_text.prompt_tokens


def test_fill_in_the_middle(engine: Engine) -> None:
    """Qwen's marks of prefix, suffix and middle work in a text."""
    done = engine.submit(FILL_IN, temperature=0, max_tokens=8).result()
    assert 11 == done.prompt_tokens
    assert done.text.startswith("return a + b")


def test_the_repetition_penalty_counts_the_prompt(gemma: Model) -> None:
    """The word that the prompt repeats is not repeated again."""
    rhyme = "Mary had a little lamb. Mary had a little lamb. Mary had a little"
    with Engine(gemma, ctx_size=256) as engine:
        plain = engine.submit(rhyme, temperature=0, max_tokens=2).result()
        assert plain.text.startswith(" lamb")
        for penalty in ({"repeat_penalty": 1.3}, {"dry_multiplier": 2.0}):
            penalized = engine.submit(rhyme, temperature=0, max_tokens=2, **penalty).result()
            assert " baby" == penalized.text[:5]
