"""Tiny factual texts of two to seven sentences with questions, as a user might type them.

People have a kind, a thing and a place; some move, some give things away. The state is simulated,
so that "Who has the ball?" has an answer. Knows nothing of the plots.
"""

from random import Random

from demo_model import world
from demo_model.questions import UNKNOWN
from demo_model.teller import Fact
from demo_model.template import options

THINGS = (
    *world.HEAVY_THINGS,
    *world.LIGHT_THINGS,
    *options(
        "bone|car|bike|phone|sword|guitar|chair|table|house|dress|shirt|shoe|cake|apple|flower|"
        "rose|plate|knife|horn|mask|rope|tent|toy|truck|van|fish|pen|door|jacket|sock|watch"
    ),
)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def micro_text(rng: Random) -> tuple[str, list[Fact]]:
    """A short text, and its questions in random order."""
    present = rng.random() < 0.6
    be, have, go, give, do = (
        ("is", "has", "goes", "gives", "does") if present else ("was", "had", "went", "gave", "did")
    )
    count = rng.choice((1, 1, 2, 2, 3))
    people: list[world.Character] = []
    while len(people) < count:
        people.append(world.make_character(rng, tuple(people), invented=0.5))
    names = [person.name or "" for person in people]
    things = rng.sample(THINGS, count)
    places = rng.sample(list(world.PLACES), 2 * count)
    sentences: list[str] = []
    facts: list[Fact] = []
    for index, person in enumerate(people):
        name, thing, colour = names[index], things[index], rng.choice(world.COLOURS)
        home, goal = places[2 * index], places[2 * index + 1]
        pronoun, draw = "She" if person.female else "He", rng.random()
        kind, held = world.article(person.kind), world.article(f"{colour} {thing}")
        subject = name
        if draw < 0.2 and count == 1:
            subject = f"My {person.kind} {name}"
            facts.append(Fact("what", f"What {be} {name}?", f"{name} {be} {kind}.", person.kind))
        elif draw < 0.75:
            described = (
                kind if rng.random() < 0.5 else world.article(f"{person.trait} {person.kind}")
            )
            sentences.append(f"{name} {be} {described}.")
            subject = pronoun
            facts.append(Fact("what", f"What {be} {name}?", f"{name} {be} {kind}.", person.kind))
        sentences.append(f"{subject} {have} {held}.")
        colours = (f"What colour {be} the {thing}?", f"What color {be} {name}'s {thing}?")
        answer = f"The {thing} {be} {colour}."
        facts.append(Fact("colour", rng.choice(colours), answer, colour))
        if rng.random() < 0.4:
            live, lives = ("live", "lives") if present else ("live", "lived")
            where = world.PLACES[home]
            sentences.append(f"{pronoun} {lives} {where}.")
            answer = f"{name} {lives} {where}."
            facts.append(Fact("where", f"Where {do} {name} {live}?", answer, home))
        if rng.random() < 0.5:
            sentences.append(f"{pronoun} {go} to the {goal}.")
            answer = f"{name} {go} to the {goal}."
            facts.append(Fact("where", f"Where {do} {name} go?", answer, goal))
    owner = dict(zip(things, names, strict=True))
    if count > 1 and rng.random() < 0.6:
        giver, receiver = rng.sample(range(count), 2)
        sentences.append(f"{names[giver]} {give} the {things[giver]} to {names[receiver]}.")
        owner[things[giver]] = names[receiver]
        answer = f"{names[giver]} {give} the {things[giver]} to {names[receiver]}."
        facts.append(Fact("who", f"Who {do} {names[giver]} give the {things[giver]} to?", answer,
                          names[receiver]))  # fmt: skip
    else:
        for name, thing in zip(names, things, strict=True):
            answer = f"{name} {have} {_held(thing, sentences)}."
            facts.append(Fact("what", f"What {do} {name} have?", answer, thing))
    end = "" if present else " at the end"
    for thing in things:
        answer = f"{owner[thing]} {have} the {thing}{end}."
        facts.append(Fact("who", f"Who {have} the {thing}{end}?", answer, owner[thing]))
    rng.shuffle(facts)
    if rng.random() < 0.2:
        stranger = rng.choice([name for name in world.GIRLS + world.BOYS if name not in names])
        options = (
            f"Where {be} {stranger}?",
            f"What {do} {stranger} have?",
            f"How old {be} {names[0]}?",
            f"Why {be} {names[0]} sad?",
        )
        facts.append(Fact("unknown", rng.choice(options), UNKNOWN, "Unknown"))
    return " ".join(sentences), [
        Fact(fact.kind, fact.question, fact.answer, _capital(fact.word)) for fact in facts
    ]


def _held(thing: str, sentences: list[str]) -> str:
    """The thing as the text introduced it: "a red ball"."""
    sentence = next(sentence for sentence in sentences if sentence.endswith(f" {thing}."))
    words = sentence.rstrip(".").split()
    return " ".join(words[-3:])
