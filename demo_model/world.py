"""The story world: its names, animals, things, places and foods, and which pairs are held out.

Lists and plain values only; what happens in a story is in the `plots_*` modules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from zlib import crc32

from demo_model.template import options

GIRLS = options(
    "Lily|Mia|Emma|Anna|Lucy|Bella|Luna|Rosie|Daisy|Zoe|Molly|Ella|Nora|Ruby|"
    "Sophie|Clara|Poppy|Ivy|Amy|Kate|Sue|Hazel|Tina|Mara|Nina|Lola|Tilly|Wendy|"
    "Greta|Maya|Olive|Penny|Sara|Dora|Jane|Fay|Holly|Pearl|June|Ada|Betty|Cora|"
    "Iris|Kitty|Rita|Vera|Lena|Alice"
)
BOYS = options(
    "Tom|Max|Ben|Tim|Sam|Jack|Leo|Oliver|Pip|Finn|Oscar|Henry|Toby|Felix|Hugo|"
    "Charlie|Milo|Bruno|Otto|Theo|Billy|Peter|Paul|Rudi|Jasper|Barney|Freddy|"
    "George|Harry|Noah|Adam|Luke|Rufus|Sid|Walter|Ned|Gus|Alfie|Arlo|Basil|Cody|"
    "Dan|Ernie|Frank|Jonas|Ken|Lars|Robin"
)

ANIMALS = options(
    "fox|rabbit|bear|mouse|cat|dog|owl|frog|duck|hedgehog|squirrel|deer|turtle|"
    "lion|elephant|monkey|pig|goat|horse|sheep|wolf|beaver|otter|penguin|badger|"
    "mole|hen|crow"
)
OTHERS = ("girl", "boy", "princess", "prince", "robot", "dragon", "girl", "boy")
RARE = options(
    "tiger|panda|koala|kangaroo|giraffe|zebra|camel|donkey|goose|parrot|swan|eagle|sparrow|hamster|"
    "kitten|puppy|lamb|cow|bull|snail|ant|beetle|lizard|snake|crocodile|hippo|seal|bat|chicken|"
    "unicorn|giant|dwarf|troll|monster|alien|knight|pirate|farmer|sailor|king|queen|wizard|witch|"
    "fairy|shepherd|baker|painter|leopard|moose|raccoon|skunk|weasel|toad|gorilla|llama|ostrich"
)
FEMALE, MALE = ("girl", "princess", "queen", "witch", "fairy"), ("boy", "prince", "king", "wizard")
PEOPLE = ("girl", "boy", "princess", "prince")
MOTION = {
    "rabbit": "hopped",
    "frog": "hopped",
    "owl": "flew",
    "crow": "flew",
    "dragon": "flew",
    "duck": "waddled",
    "penguin": "waddled",
    "turtle": "crawled",
    "horse": "trotted",
}
TRAITS = options(
    "brave|kind|shy|curious|clever|cheerful|playful|careful|gentle|honest|quiet|"
    "friendly|little|young|small|tiny|grumpy|silly|busy|"
    "patient|polite|little|brave|kind|curious"
)
HELPER_TRAITS = options("old|wise|kind|friendly|strong|clever|gentle|helpful|big|tiny|young")

COLOURS = options("red|blue|green|yellow|white|black|brown|pink|purple|orange|golden|silver")
LIGHT_THINGS = options("kite|hat|scarf|balloon|ribbon|feather|umbrella|flag|cap")
HEAVY_THINGS = options(
    "ball|drum|bell|book|ring|key|lamp|cup|basket|blanket|doll|spoon|flute|box|"
    "button|marble|crown|shell|stone|bag|coat|bucket|whistle|clock|pencil|"
    "necklace|mirror|teapot|bowl"
)

# place -> the phrase that answers "where"
PLACES = {
    "forest": "in the forest",
    "garden": "in the garden",
    "meadow": "in the meadow",
    "park": "in the park",
    "village": "in the village",
    "valley": "in the valley",
    "barn": "in the barn",
    "castle": "in the castle",
    "orchard": "in the orchard",
    "cornfield": "in the cornfield",
    "cave": "in the cave",
    "town": "in the town",
    "beach": "at the beach",
    "market": "at the market",
    "mill": "at the mill",
    "school": "at the school",
    "harbour": "at the harbour",
    "waterfall": "at the waterfall",
    "river": "by the river",
    "lake": "by the lake",
    "pond": "by the pond",
    "stream": "by the stream",
    "well": "by the well",
    "sea": "by the sea",
    "hill": "on the hill",
    "farm": "on the farm",
    "island": "on the island",
    "mountain": "on the mountain",
}
HOMES = options(
    "forest|meadow|village|valley|town|farm|island|mountain|river|lake|sea|hill|castle|orchard"
)


@dataclass(frozen=True)
class Food:
    """A food: with its article ("an apple", "some nuts") and whether it is a plural."""

    name: str
    with_article: str
    plural: bool = False

    @property
    def in_general(self) -> str:
        """As in "She likes pears"."""
        counted = self.with_article.startswith("a") and not self.plural
        if not counted:
            return self.name
        return f"{self.name}es" if self.name.endswith("ch") else f"{self.name}s"


FOODS = (
    *(Food(name, f"a {name}") for name in options("pear|cake|carrot|pie|pancake|melon|sandwich")),
    *(Food(name, f"an {name}") for name in ("apple", "orange")),
    *(Food(name, f"some {name}") for name in ["bread", "honey", "soup", "cheese", "corn"]),
    *(Food(name, f"some {name}", True) for name in options("berries|nuts|cookies|plums|cherries")),
)

DAY_WEATHER = options("sunny|warm|bright|cool|windy|cloudy|fine")
DAY_TIMES = ("morning", "afternoon", "day", "day", "evening")


@dataclass(frozen=True)
class Character:
    """Someone in a story; without a name it is called by its kind ("the old turtle")."""

    name: str | None
    kind: str
    trait: str
    female: bool


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' or noun.startswith('honest') else 'a'} {noun}"


def invent_name(rng: Random, female: bool) -> str:
    """A name that is in no list, so that a model learns to copy names; she-names end in a."""
    onsets = options(
        "b|c|d|f|g|h|j|k|l|m|n|p|qu|r|s|t|v|w|x|y|z|br|ch|cr|dr|fl|gr|kl|pr|sh|st|th|tr"
    )
    name = rng.choice(("", rng.choice(onsets), rng.choice(onsets), rng.choice(onsets)))
    name += rng.choice(("a", "e", "i", "o", "u", "ai", "ee", "oo", "y"))
    name += rng.choice(options("b|ck|d|ff|g|l|ll|m|n|nd|p|r|rt|s|st|t|v|x|z"))
    if rng.random() < 0.3:
        name += rng.choice("aeiou") + rng.choice("bdgklmnrstvz")
    if female:
        return (name + rng.choice(("a", "a", "ia", "ina", "ie"))).capitalize()
    return (name + rng.choice(("o", "i", "", "", "us", "in", "er"))).capitalize()


def make_character(
    rng: Random,
    taken: tuple[Character, ...] = (),
    traits: Sequence[str] = TRAITS,
    invented: float = 0.25,
) -> Character:
    """A named character that shares neither name nor kind with those taken.

    `invented` is the share of names that are in no list.
    """
    while True:
        female = rng.random() < 0.5
        kind = rng.choice(rng.choices((ANIMALS, OTHERS, RARE), (62, 22, 16))[0])
        if kind in FEMALE + MALE:
            female = kind in FEMALE
        trait = rng.choice(traits)
        if kind in PEOPLE and trait in ("old", "big", "wise"):
            trait = "friendly"
        if rng.random() < invented:
            name = invent_name(rng, female)
        else:
            names = GIRLS if female else BOYS
            favourite = crc32(kind.encode()) % len(names)
            name = names[(int(rng.random() ** 1.5 * len(names)) + favourite) % len(names)]
        if all(kind != other.kind and name != other.name for other in taken):
            return Character(name, kind, trait, female)


def is_held_out(first: str, second: str) -> bool:
    """Whether the pair (a name and an animal, an animal and a plot...) never occurs in training."""
    return crc32(f"{first}+{second}".encode()) % 16 == 0
