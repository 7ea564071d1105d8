"""The demo model: what it is for, and answers that are known."""

from collections.abc import Iterator

import pytest

import llcuda
from llcuda import Engine, Model
from tests.support.waiting import PATIENCE

STORY = (
    "There was a boy named Tim. He had a green kite. One day, Tim lost the kite in the park. "
    "His friend Mia, a kind cat, found it. Tim was very happy."
)

GREEDY_STORY = (
    " grumpy boy named Jonas. One day, Jonas found a little seed in the barn. He planted it "
    "in front of the house and waited. But nothing happened. Jonas waited one week and "
    'another week. "Why does it not grow?" asked Jonas. He was impatient. "You must wait," '
    'said his father. "It is still asleep." At last, a little green leaf came out. Then the '
    "ground was very dry. Jonas carried water from the river every day. Some weeks later, "
    "there stood a beautiful pumpkin. All the neighbours came to look at it. Jonas had never "
    "felt so proud. He now knew that it is worth waiting. That night, Jonas slept well and "
    "had good dreams."
)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model("demo") as loaded:
        yield loaded


def greedy(model: Model, prompt: str) -> tuple[str, str]:
    with Engine(model, ctx_size=1024, threads=1) as engine:
        tokens = model.tokenize(prompt, parse_special=True)
        done = engine.submit(tokens, max_tokens=300, temperature=0).result(PATIENCE)
        return done.text, done.finish_reason


def chat(*turns: str, system: str = "") -> str:
    """Turns of user and assistant, in turn, as the model's template writes them."""
    named = [("system", system)] if system else []
    named += [(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in named)
    return f"{text}<|im_start|>assistant\n"


def test_it_is_small_and_named(model: Model) -> None:
    """At most 6,000,000 bytes, a llama, a context of 1,024, ChatML."""
    assert llcuda.demo_model().stat().st_size <= 6_000_000
    assert model.metadata["general.architecture"] == "llama"
    assert 2_000_000 <= model.parameter_count <= 6_000_000
    assert model.train_ctx_size == 1024
    assert "<|im_start|>" in (model.chat_template or "")


def test_greedy_story(model: Model) -> None:
    """The greedy story after "There was a" is this one, to the letter."""
    text, reason = greedy(model, "There was a")
    assert text == GREEDY_STORY
    assert reason == "stop"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What colour was the kite?", "green"),
        ("Where did Tim lose the kite?", "park"),
        ("How did Tim feel at the end?", "happy"),
    ],
)
def test_questions_about_a_story(model: Model, question: str, answer: str) -> None:
    """It answers simple questions about a given story, and ends its turn."""
    text, reason = greedy(model, chat(f"{STORY}\n\n{question}"))
    assert answer in text
    assert reason == "stop"


def test_a_chat_of_several_turns(model: Model) -> None:
    """A story on request has the asked hero, and the next turn knows it."""
    request = "Tell me a story about a brave fox named Lily."
    story, reason = greedy(model, chat(request))
    assert reason == "stop"
    assert "brave fox named Lily" in story
    answer, _ = greedy(model, chat(request, story, "Who is the story about?"))
    assert "Lily" in answer


def test_what_it_cannot_know(model: Model) -> None:
    """It says so instead of inventing."""
    text, _ = greedy(model, chat("What is the capital of France?"))
    assert "small model" in text
