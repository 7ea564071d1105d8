"""Measures the exported model through llama.cpp and writes a report (Markdown and JSON).

    python -m demo_model.evaluate --model llcuda/data/demo.gguf --out report

Stories, questions and wordings are held out (see `corpus.document`).
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from random import Random

from demo_model import questions, stories
from demo_model.corpus import END, HELD_OUT_SEEDS, START, story_request
from demo_model.template import render
from llcuda import Engine, Model

TURN_LIMIT = 300
STORY_PROMPTS = (
    "Once upon a time",
    "One day",
    "There was a",
    "Once upon a time there was a little robot",
    "In the forest",
    "Long ago, a grumpy old",
    "Mia was a",
    "It was a windy",
    "Once upon a time, there was a brave knight named",
    "This is the story of a dragon who",
)
CHAT = (
    "hello",
    "Tell me a story about a brave fox named Lily.",
    "Who is the story about?",
    "how did lily feel at the end",
    "What colour was Lily's bicycle?",
    "Now a story about a penguin and a lost hat, please.",
    "What animal was the hero?",
    "What is the capital of France?",
    "thank you!",
)


def generate(
    engine: Engine, prompt: str, temperature: float = 0.0, seed: int = 1
) -> tuple[str, bool]:
    """What follows the prompt, and whether it ended by itself within TURN_LIMIT tokens.

    The prompt holds special tokens as text; the first `<|bos|>` is added.
    """
    tokens = engine.model.tokenize(prompt, parse_special=True)
    asked = {"max_tokens": TURN_LIMIT, "temperature": temperature, "seed": seed}
    done = engine.submit(tokens, top_k=0, top_p=1.0, **asked).result()
    return done.text, done.finish_reason == "stop"


def chat_prompt(turns: list[tuple[str, str]]) -> str:
    """The turns in ChatML, ready for the assistant's answer."""
    text = "".join(f"{START}{role}\n{content}{END}\n" for role, content in turns)
    return f"{text}{START}assistant\n"


def measure_questions(engine: Engine, count: int) -> dict[str, tuple[int, int]]:
    """Right answers and asked questions by kind; an answer must match to the letter."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    seed = HELD_OUT_SEEDS * 2
    while sum(asked.values()) < count:
        seed += 1
        teller = stories.tell(Random(seed), held_out=True)
        turns = [
            ("user", story_request(teller, held_out=True)),
            ("assistant", teller.story()),
        ]
        for fact in questions.pick_facts(teller, 2):
            question = render(fact.question, teller.rng, teller.words, held_out=True)
            expected = teller.fill(fact.answer)
            answer, _ = generate(engine, chat_prompt([*turns, ("user", question)]))
            asked[fact.kind] += 1
            right[fact.kind] += answer == expected
    return {kind: (right[kind], asked[kind]) for kind in sorted(asked)}


def follows_request(request_words: dict[str, str], story: str) -> bool:
    """Whether the story's hero has the asked name, kind and trait."""
    beginning = " ".join(re.split(r"(?<=[.!?]) ", story)[:2])
    return all(request_words[key] in beginning for key in ("h", "h_kind", "h_trait"))


def measure_stories(engine: Engine, count: int) -> dict[str, float]:
    """Shares of turns that end by themselves, and of stories with the asked hero."""
    ended: Counter[str] = Counter()
    followed = 0
    texts: set[str] = set()
    for index in range(count):
        teller = stories.tell(Random(HELD_OUT_SEEDS * 3 + index), held_out=True)
        wish = f"Tell me a story about {teller.words['h_a']}."
        story, end = generate(engine, chat_prompt([("user", wish)]))
        ended["chat, greedy"] += end
        followed += follows_request(teller.words, story)
        texts.add(story)
        request = story_request(teller, held_out=True)
        ended["chat, 0.8"] += generate(engine, chat_prompt([("user", request)]), 0.8, index)[1]
        beginning = teller.sentences[0]
        ended["raw, greedy"] += generate(engine, beginning)[1]
        ended["raw, 0.8"] += generate(engine, beginning, 0.8, index)[1]
    shares = {f"ends by itself ({kind})": number / count for kind, number in ended.items()}
    shares["the asked name, animal and trait"] = followed / count
    shares["different stories"] = len(texts) / count
    return shares


def hold_chat(engine: Engine) -> list[tuple[str, str]]:
    """One long greedy conversation."""
    turns: list[tuple[str, str]] = []
    for question in CHAT:
        turns.append(("user", question))
        turns.append(("assistant", generate(engine, chat_prompt(turns))[0]))
    return turns


def main() -> None:
    """Measures and writes `report.md` and `report.json`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--stories", type=int, default=50)
    arguments = parser.parse_args()
    engine = Engine(Model(arguments.model), ctx_size=1024)
    by_kind = measure_questions(engine, arguments.questions)
    shares = measure_stories(engine, arguments.stories)
    right, asked = (sum(pair[i] for pair in by_kind.values()) for i in (0, 1))
    lines = [
        "# Measured through llama.cpp",
        "",
        "| held-out questions | right | asked |",
        "| - | - | - |",
    ]
    lines += [f"| {kind} | {pair[0]} | {pair[1]} |" for kind, pair in by_kind.items()]
    lines += [f"| all | {right} | {asked} |", "", "| share | |", "| - | - |"]
    lines += [f"| {name} | {share:.1%} |" for name, share in shares.items()]
    lines += ["", "## Greedy stories", ""]
    for prompt in STORY_PROMPTS:
        lines += [f"**{prompt}**{generate(engine, prompt)[0]}", ""]
    lines += ["## A greedy chat", ""]
    lines += [f"- {role}: {content}" for role, content in hold_chat(engine)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "report.md").write_text("\n".join(lines) + "\n")
    result = {"questions": by_kind, "accuracy": right / asked, "shares": shares}
    (arguments.out / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
