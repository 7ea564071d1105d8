"""The teller: holds the cast of one story, says its sentences and notes the facts it told.

A plot (see the `plots_*` modules) receives a `Teller` and calls `say` and `ask`. Facts are noted
together with the sentence that states them, so an answer can never disagree with the story. The
teller knows nothing of chats or of tokens.
"""

from dataclasses import dataclass
from random import Random
from zlib import crc32

from demo_model import world
from demo_model.template import Preferring, render
from demo_model.world import Character


@dataclass(frozen=True)
class Fact:
    """A question about the story with its full answer and, where one exists, a one-word answer."""

    kind: str
    question: str
    answer: str
    word: str = ""


class Teller:
    """One story in the making; `words` are what templates may fill in.

    Keys: `h` the hero, `f` the friend, `r` a third character, each with `_he _him _his _s _kind
    _a _went`; `thing` and `other` (with `_n` the bare noun and `a_` the article); `food`; the
    places `p` and `q` (with `at_` and `to_`); `time` such as "one sunny morning".
    """

    def __init__(self, seed_source: Random, plot_name: str = "") -> None:
        self.rng = rng = Preferring(seed_source.getrandbits(64))
        self.plot_name = plot_name
        self.words: dict[str, str] = {}
        self.used: set[str] = set()
        self.sentences: list[str] = []
        self.facts: list[Fact] = []
        self.summary: list[str] = []
        self.topics: list[str] = []
        self.title = ""
        self.ending_start = 0
        self.ending_feeling = ""
        self.weather = ""
        self.day_time = ""
        self.cast: dict[str, Character] = {}
        hero = world.make_character(rng)
        friend = world.make_character(rng, (hero,), world.HELPER_TRAITS)
        third = world.make_character(rng, (hero, friend))
        if rng.random() < 0.25 and friend.kind not in ("girl", "boy"):
            friend = Character(None, friend.kind, friend.trait, friend.female)
        self.bind_character("h", hero)
        rng.taste = crc32(hero.kind.encode()) % 8
        self.bind_character("f", friend)
        self.bind_character("r", third)
        home = rng.choice(world.HOMES)
        places = rng.several([place for place in world.PLACES if place != home], 3)
        for key, place in zip("lpqx", [home, *places], strict=True):
            self.bind_place(key, place)
        self.bind_things(world.HEAVY_THINGS + world.LIGHT_THINGS)
        food, other_food = rng.several(world.FOODS, 2)
        self.bind_food("food", food)
        self.bind_food("meal", other_food)

    # the cast

    def bind_character(self, key: str, character: Character) -> None:
        """Makes a character known to templates under `key`."""
        self.cast[key] = character
        name, kind = character.name, character.kind
        shown = name or f"the {kind}"
        described = world.article(f"{character.trait} {kind}")
        pronouns = ("she", "her", "her") if character.female else ("he", "him", "his")
        self.words |= {
            key: shown,
            f"{key}_s": f"{shown}'s",
            f"{key}_he": pronouns[0],
            f"{key}_him": pronouns[1],
            f"{key}_his": pronouns[2],
            f"{key}_He": pronouns[0].capitalize(),
            f"{key}_himself": "herself" if character.female else "himself",
            f"{key}_kind": kind,
            f"{key}_a_kind": world.article(kind),
            f"{key}_trait": character.trait,
            f"{key}_described": described,
            f"{key}_a": f"{described} named {name}" if name else described,
            f"{key}_went": world.MOTION.get(kind, "walked" if self.rng.random() < 0.6 else "went"),
        }

    def set_trait(self, trait: str) -> None:
        """Gives the hero a trait that the plot needs."""
        hero = self.cast["h"]
        self.bind_character("h", Character(hero.name, hero.kind, trait, hero.female))

    def name_friend(self) -> None:
        """Makes sure that the friend has a name."""
        friend = self.cast["f"]
        if friend.name is None:
            names = world.GIRLS if friend.female else world.BOYS
            taken = (self.words["h"], self.words["r"])
            name = self.rng.choice([name for name in names if name not in taken])
            self.bind_character("f", Character(name, friend.kind, friend.trait, friend.female))

    def bind_place(self, key: str, place: str) -> None:
        """Makes a place known to templates under `key`."""
        self.words |= {
            key: f"the {place}",
            f"{key}_n": place,
            f"at_{key}": world.PLACES[place],
            f"to_{key}": f"to the {place}",
        }

    def bind_things(self, nouns: tuple[str, ...]) -> None:
        """Draws `thing` (its colour may stay unsaid) and `other` (coloured) from the nouns."""
        for key, noun in zip(("thing", "other"), self.rng.several(nouns, 2), strict=True):
            colour = self.rng.choice(world.COLOURS)
            if key == "thing" and self.rng.random() < 0.15:
                colour = ""
            self.bind_thing(key, noun, colour)

    def bind_thing(self, key: str, noun: str, colour: str) -> None:
        """Makes a thing known to templates under `key`."""
        shown = f"{colour} {noun}".strip()
        self.words |= {
            key: shown,
            f"{key}_n": noun,
            f"a_{key}": world.article(shown),
            f"{key}_colour": colour,
        }

    def bind_food(self, key: str, food: world.Food) -> None:
        """Makes a food known to templates under `key`."""
        self.words |= {
            key: food.name,
            f"a_{key}": food.with_article,
            f"{key}_in_general": food.in_general,
            f"{key}_it": "them" if food.plural else "it",
            f"{key}_was": "were" if food.plural else "was",
            f"{key}_half": "half of them" if food.plural else "half of it",
        }

    # telling

    def chance(self, probability: float) -> bool:
        """True with the given probability; an even one is tilted as the rng's taste is."""
        if 0.45 < probability < 0.56:
            probability = (0.36, 0.64)[self.rng.taste % 2]
        return self.rng.random() < probability

    def fill(self, template: str, *, held_out: bool = False) -> str:
        """A template filled in, without noting what it used."""
        return render(template, self.rng, self.words, held_out=held_out)

    def say(self, *templates: str) -> None:
        """Adds sentences to the story."""
        for template in templates:
            text = render(template, self.rng, self.words, used=self.used).strip()
            if text:
                self.sentences.append(self._with_pronoun(text))

    def _with_pronoun(self, text: str) -> str:
        """At times "She" for the hero's name, where the sentence before is about nobody else."""
        words, before = self.words, self.sentences[-1] if self.sentences else ""
        hero, others = words["h"], (words["f"], words["r"], words["f_kind"], words["r_kind"])
        clear = hero in before and not any(other.lower() in before.lower() for other in others)
        if not clear or '"' in before or self.rng.random() < 0.3:
            return text
        if text.startswith(f"{hero}'s "):
            return words["h_his"].capitalize() + text[len(hero) + 2 :]
        if text.startswith(f"{hero} ") and not text.startswith(f"{hero} and "):
            return words["h_He"] + text[len(hero) :]
        return text

    def ask(self, kind: str, question: str, answer: str, word: str = "") -> None:
        """Notes a fact; the answer must hold no choices, so that there is one right answer."""
        self.facts.append(Fact(kind, question, answer, word))

    def why(self, what: str, answer: str) -> None:
        """Notes a reason: `what` is "did $h cry"."""
        self.ask("why", f"{{why {what}?|~what was the reason: why {what}?}}", answer)

    def either(self, true: str, false: str, answer: str) -> None:
        """Notes a yes/no question: one of the two is asked, the answer names the truth."""
        if self.chance(0.5):
            self.ask("yes/no", true, f"Yes, {answer}", "Yes")
        else:
            self.ask("yes/no", false, f"No, {answer}", "No")

    def choose(self, *options: tuple[str, ...]) -> tuple[str, ...]:
        """One of several rows of templates that belong together."""
        return self.rng.choice(options)

    def feel(self, who: str, feelings: str, when: str) -> str:
        """Notes how `who` felt ("when ..."), and returns the feeling for a sentence."""
        feeling = self.rng.choice(feelings.split("|"))
        self.ask(
            "feeling",
            f"how did ${who} feel {when}?",
            f"${who} felt {feeling} {when}.",
            feeling,
        )
        return feeling

    def tell_summary(self, *templates: str) -> None:
        """Notes the story in one or two sentences."""
        self.summary = list(templates)

    def story(self) -> str:
        """The whole text."""
        return " ".join(self.sentences)

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs that a held-out split looks at, as far as the story shows them."""
        words = self.words
        replacements = [(words["h"], words["h_kind"]), (words["h_kind"], self.plot_name)]
        if {"thing", "a_thing", "thing_n"} & self.used:
            replacements.append((words["thing_colour"], words["thing_n"]))
            replacements.append((words["thing_n"], words["p_n"]))
        if {"f", "f_a"} & self.used:
            replacements.append((words["f"], words["f_kind"]))
            replacements.append((words["h_kind"], words["f_kind"]))
        return replacements
