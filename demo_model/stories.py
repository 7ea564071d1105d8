"""Tells a whole story from a seed: chooses a plot, sets the scene, and keeps the held-out split."""

from random import Random
from zlib import crc32

from demo_model import (  # the order of these imports is the order of PLOTS: documents depend on it
    frame,
    plots_finding,
    plots_fortune,
    plots_friends,
    plots_home,
    plots_lessons,
    plots_nights,
    world,
)
from demo_model.plots import PLOTS
from demo_model.teller import Teller

__all__ = [
    "plots_finding",
    "plots_fortune",
    "plots_friends",
    "plots_home",
    "plots_lessons",
    "plots_nights",
    "tell",
    "tell_any",
]


def tell_any(rng: Random) -> Teller:
    """A story without regard to the held-out split."""
    teller = Teller(rng)
    chosen = PLOTS[teller.rng.index(len(PLOTS), crc32(teller.words["h_kind"].encode()))]
    teller.plot_name = chosen.name
    if chosen.trait:
        teller.set_trait(chosen.trait)
    elif teller.words["h_trait"] in ("lazy", "greedy") and chosen.name in ("sharing", "parcel"):
        teller.set_trait("young")
    frame.set_time(teller, chosen.weather, chosen.times)
    frame.open_story(teller, chosen.avoid)
    chosen.body(teller)
    return teller


def tell(rng: Random, *, held_out: bool = False) -> Teller:
    """A story whose pairs fit the split.

    Training stories hold none of the held-out pairs, held-out stories at least two.
    """
    while True:
        teller = tell_any(rng)
        count = sum(world.is_held_out(*pair) for pair in teller.pairs())
        if count >= 2 if held_out else count == 0:
            return teller
