"""Questions about a told story: its facts, who its hero is, and what the story does not say.

Also the facts as JSON. The module knows nothing of chats or of tokens.
"""

import json
from random import Random

from demo_model import world
from demo_model.teller import Fact, Teller

UNKNOWN = "The story does not say."

_NEVER_TOLD = (
    "how old {was|is} $h?",
    "what did $h have for breakfast?",
    "what was the name of $h_s {aunt|uncle|teacher|cousin|~doctor}?",
    "how many {cousins|toys|books|~uncles} did $h have?",
    "what colour was $h_s {bed|door|chair|~table}?",
    "what was $h_s favourite {song|colour|book|~game}?",
    "how {tall|heavy} was $h?",
    "what did $h do the next {year|month}?",
    "where was $h born?",
    "what language did $h speak?",
    "who was $h_s {doctor|teacher|king}?",
    "what time did $h get up?",
)


def hero_facts(teller: Teller) -> list[Fact]:
    """Facts that every story has: the hero's name, kind and trait, and yes/no questions on them."""
    words, rng = teller.words, teller.rng
    facts = [
        Fact(
            "who",
            "{who is the story about|who is the hero of the story|~who is the main character}?",
            "The story is about $h, $h_described.",
            "$h",
        ),
        Fact("who", "what {was|is} the name of the $h_kind?", "The $h_kind was named $h.", "$h"),
        Fact(
            "what",
            "{what animal was|what was|what kind of creature was} $h?"
            if words["h_kind"] in world.ANIMALS
            else "what was $h?",
            "$h was $h_a_kind.",
            "$h_kind",
        ),
    ]
    if not ({"f", "f_a"} & teller.used) and "they" not in teller.story():
        facts.append(Fact("who", "who helped $h?", "Nobody helped $h.", "Nobody"))
    other = rng.choice([kind for kind in world.ANIMALS if kind != words["h_kind"]])
    if rng.random() < 0.5:
        facts.append(Fact("yes/no", "was $h $h_a_kind?", "Yes, $h was $h_a_kind.", "Yes"))
    else:
        asked = world.article(other)
        facts.append(Fact("yes/no", f"was $h {asked}?", "No, $h was $h_a_kind.", "No"))
    if {"f", "f_a"} & teller.used and teller.cast["f"].name:
        facts.append(
            Fact("what", "what {was|kind of creature was} $f?", "$f was $f_a_kind.", "$f_kind")
        )
    colour = words["thing_colour"]
    if {"thing", "a_thing", "thing_n"} & teller.used and colour:
        facts.append(
            Fact(
                "colour",
                "{what colour was the $thing_n|what color was the $thing_n|what was the colour"
                " of the"
                " $thing_n|~which colour did the $thing_n have}?",
                "The $thing_n was $thing_colour.",
                "$thing_colour",
            )
        )
        wrong = rng.choice([name for name in world.COLOURS if name != colour])
        if rng.random() < 0.5:
            facts.append(
                Fact(
                    "yes/no",
                    "was the $thing_n $thing_colour?",
                    "Yes, the $thing_n was $thing_colour.",
                    "Yes",
                )
            )
        else:
            facts.append(
                Fact(
                    "yes/no",
                    f"was the $thing_n {wrong}?",
                    "No, the $thing_n was $thing_colour.",
                    "No",
                )
            )
    return facts


def unknown_fact(teller: Teller) -> Fact:
    """A question that the story does not answer."""
    words, rng = teller.words, teller.rng
    questions = [*_NEVER_TOLD]
    told = " ".join(teller.sentences)
    stranger = rng.choice([name for name in world.GIRLS + world.BOYS if name not in told])
    questions += [f"what did {stranger} {{do|say|find}}?", f"where did {stranger} live?"] * 2
    absent = rng.choice([noun for noun in world.HEAVY_THINGS if noun not in told])
    questions += [f"what colour was the {absent}?", f"who had the {absent}?"] * 2
    if not teller.weather:
        questions += ["what was the weather like?"] * 2
    if f" {words['at_l']}" not in told:
        questions += ["where did $h live?"] * 2
    if "favourite food" not in told:
        questions += ["what was $h_s favourite food?"]
    if "boots" not in told:
        questions += ["what colour were $h_s boots?"]
    uncoloured = not words["thing_colour"] and {"thing", "a_thing", "thing_n"} & teller.used
    if uncoloured and "brown and dirty" not in told:
        questions += ["what colour was the $thing_n?"] * 6
    return Fact("unknown", rng.choice(questions), UNKNOWN, "Unknown")


def pick_facts(teller: Teller, count: int, *, one_word: bool = False) -> list[Fact]:
    """Some different facts, one in six of them unknown; with `one_word`, ones that have a word."""
    known = teller.facts + hero_facts(teller)
    if one_word:
        known = [fact for fact in known if fact.word]
    teller.rng.shuffle(known)
    picked: list[Fact] = []
    seen: set[str] = set()
    for fact in known:
        if fact.question not in seen and len(picked) < count:
            seen.add(fact.question)
            picked.append(fact)
    return [unknown_fact(teller) if teller.rng.random() < 1 / 6 else fact for fact in picked]


def facts_as_json(teller: Teller) -> str:
    """The story's facts under fixed keys, `null` where the story has none."""
    words, used = teller.words, teller.used
    with_friend, with_thing = {"f", "f_a"} & used, {"thing", "a_thing", "thing_n"} & used
    with_place = {"p", "at_p", "to_p"} & used
    return json.dumps(
        {
            "hero": words["h"],
            "animal": words["h_kind"],
            "friend": words["f"] if with_friend else None,
            "object": words["thing"] if with_thing else None,
            "place": words["p_n"] if with_place else None,
            "feeling": teller.ending_feeling,
        }
    )


def characters_as_list(teller: Teller) -> str:
    """The characters, one line each."""
    lines = []
    for key in ("h", "f", "r"):
        if {key, f"{key}_a"} & teller.used:
            character = teller.cast[key]
            name = character.name or world.article(character.kind)
            lines.append(f"- {name}, {character.kind}" if character.name else f"- {name}")
    return "\n".join(lines)


def typed_by_user(rng: Random, text: str) -> str:
    """The text as people type it: at times in lower case, at times without the last mark."""
    draw = rng.random()
    if draw < 0.14:
        return text.lower().rstrip("?.! ")
    if draw < 0.2:
        return text.lower()
    if draw < 0.26:
        return text.rstrip("?.! ")
    return text
