"""What all stories share: how they open, small things seen on the way, how they close.

Plots call `on_the_way` and `finish`; `stories.tell` calls `open_story`. Each line that states
something worth asking notes the fact.
"""

from demo_model import world
from demo_model.teller import Teller
from demo_model.template import options

HOBBIES = options(
    "sing|dance|paint|climb|swim|count the stars|bake cakes|tell jokes|"
    "pick flowers|play the flute|read books|fly kites|look at the clouds|"
    "collect shells|play hide and seek|run in the rain|jump over puddles|"
    "draw pictures"
)
GLAD_FEELINGS = options(
    "happy|glad|proud|relieved|rich|excited|content|thankful|warm|loved|brave|safe|calm"
)
ONCE = (
    "Once upon a time,|Once upon a time,|Once upon a time,|Once upon a time|Long ago,|Once,"
    "|A long time ago,"
)
HABITS = options(
    "drank a cup of milk|watered the flowers|sang a song|fed the birds|swept the floor|washed the"
    " windows|opened all the windows|looked at the sky|counted the birds|made some"
    " tea|stretched and"
    " yawned|said hello to the sun|ran around the house"
)
HOPES = options(
    "see the sea|fly like a bird|find a treasure|have many friends|build a ship|meet a"
    " king|climb the"
    " highest mountain|see the whole world|write a book|ride on a cloud|be in a play|win a prize"
)
MEETINGS = options(
    "picked a blue flower|picked a red leaf|rested on a big stone|drank some water from a stream"
    "|ate a few berries|heard a bird singing|greeted an old snail|jumped over a ditch|found a shiny"
    " penny|waved to a farmer|sang a little song|counted the trees|skipped a stone over the water"
)
SIGHTS = options(
    "a yellow butterfly|a tiny snail|a rainbow|two white swans|"
    "a long train of ants|a red bird|a cloud that looked like a sheep|"
    "a big blue beetle|a bee on a flower|a spider in its web|"
    "a field full of flowers|three ducklings|a ladybird|an empty nest|"
    "a very tall tree"
)


def set_time(teller: Teller, weather: tuple[str, ...], times: tuple[str, ...]) -> None:
    """Chooses when the story happens: `time` is "one sunny morning" for the plot to use once."""
    day_time = teller.rng.choice(times or world.DAY_TIMES[:4])
    adjective = ""
    if weather or teller.chance(0.5):
        adjective = teller.rng.choice(weather or world.DAY_WEATHER)
    teller.weather, teller.day_time = adjective, day_time
    described = f"{adjective} {day_time}".strip()
    teller.words |= {
        "time": f"one {described}",
        "once": f"one {described}",
        "a_time": world.article(described if adjective else f"ordinary {day_time}"),
        "that_time": f"that {day_time}",
    }
    if adjective:
        teller.ask("when", "what was the weather like?", f"It was {adjective}.", adjective)
    if day_time != "day":
        teller.ask(
            "when",
            "{what time of day was it|when did it happen}?",
            f"It was {day_time}.",
            day_time,
        )


def open_story(teller: Teller, avoid: tuple[str, ...] = ()) -> None:
    """Tells who the hero is, then perhaps a detail or two.

    `avoid` names details that would contradict the plot.
    """
    lives = "{lived|had a home} $at_l"
    with_home = teller.chance(0.5)
    day_first = "day" not in avoid and teller.chance(0.25)
    if day_first:
        place = " $at_l" if with_home else ""
        start = (
            "$h_a {woke up early|looked out of the window|sat in front of the house|was awake"
            "|was already up|was looking for something to do|was in a good mood}."
        )
        if teller.chance(0.4):
            teller.say(f"$time, {start}")
            if with_home:
                teller.say("$h {lived|had a home} $at_l.")
        elif teller.weather in ("sunny", "warm", "bright", "fine") and teller.chance(0.4):
            teller.say(f"{{The sun was shining|The birds were singing}}{place}.", start)
        else:
            teller.say(f"It was $a_time{place}.", start)
        teller.words["time"] = teller.words["that_time"]
    elif with_home:
        teller.say(
            f"{{{ONCE}}} {{there was $h_a who {lives}|$h_a {lives}|there lived $h_a $at_l}}."
            if teller.chance(0.65)
            else f"{{There was {{once |}}$h_a who {lives}|$h_a {lives}"
            f"|This is the story of $h_a who {lives}|$at_l there lived $h_a}}."
        )
    else:
        teller.say(
            f"{{{ONCE}}} there was $h_a."
            if teller.chance(0.5)
            else "{There was once $h_a|There was $h_a|This is the story of $h_a"
            "|$h was $h_described}."
        )
    if with_home:
        teller.ask("where", "where did $h live?", "$h lived $at_l.", "$l_n")
    tell_details(teller, avoid)


def tell_details(teller: Teller, avoid: tuple[str, ...]) -> None:
    """Up to two things about the hero that the plot does not need."""
    every = ("hobby", "food", "boots", "house", "family", "trait", "habit", "hope")
    details = [detail for detail in every if detail not in avoid]
    for detail in teller.rng.several(details, teller.rng.choice((0, 0, 0, 1, 1, 2))):
        if detail == "hobby":
            hobby = teller.rng.choice(HOBBIES)
            teller.say(f"$h {{loved|liked}} to {hobby}{{| every day| more than anything}}.")
            teller.ask("what", "what did $h {like|love} to do?", f"$h loved to {hobby}.")
        elif detail == "food":
            teller.say("$h_s favourite food was $meal_in_general.")
            teller.ask(
                "what",
                "what was $h_s favourite food?",
                "$h_s favourite food was $meal_in_general.",
                "$meal_in_general",
            )
        elif detail == "boots":
            colour = teller.rng.choice(world.COLOURS)
            teller.say(
                f"{{$h {{always |}}wore {{a pair of |}}{colour} boots|$h_s boots were {colour}"
                f"|$h had {{a pair of |}}{colour} boots{{| that were a little too big}}}}."
            )
            teller.ask(
                "colour",
                "what colour were $h_s boots?",
                f"$h_s boots were {colour}.",
                colour,
            )
        elif detail == "house":
            look = teller.rng.choice(
                options("a round door|a crooked chimney|a green roof|big windows|a little bell")
            )
            teller.say(f"$h_s house had {look}{{| and a small garden}}.")
            teller.ask("what", "what did $h_s house have?", f"$h_s house had {look}.")
        elif detail == "family":
            family = teller.rng.choice(
                options(
                    "$h_his mother|$h_his grandmother|$h_his father|$h_his two brothers|"
                    "$h_his little sister"
                )
            )
            teller.say(f"$h {{lived with|shared a house with}} {family}.")
            teller.ask("who", "who did $h live with?", f"$h lived with {family}.")
        elif detail == "habit":
            habit = teller.rng.choice(HABITS)
            teller.say(f"{{Every|Each}} morning $h {habit}.")
            teller.ask("what", "what did $h do every morning?", f"Every morning $h {habit}.")
        elif detail == "hope":
            hope = teller.rng.choice(HOPES)
            teller.say(f"$h_s {{biggest |}}dream was to {hope}{{| one day}}.")
            teller.ask("what", "what was $h_s dream?", f"$h_s dream was to {hope}.")
        else:
            teller.say(
                "{Everyone|Everybody} {said|knew} that $h was very $h_trait.",
            )


def on_the_way(teller: Teller, probability: float = 0.5) -> None:
    """Perhaps something small that happens between two events of the plot."""
    if not teller.chance(probability) or "sight" in teller.words:
        return
    if teller.chance(0.4):
        meeting = teller.rng.choice(MEETINGS)
        teller.words["sight"] = meeting
        teller.say("{On the way,|Along the way,|After a while,} $h $sight{| and went on}.")
        teller.ask("what", "what did $h do on the way?", "On the way, $h $sight.")
        return
    sight = teller.rng.choice(SIGHTS)
    teller.words["sight"] = sight
    teller.say(
        "{On the way, $h saw $sight{| and smiled| and stopped to look}"
        "|$h {walked and walked|went on and on} and saw $sight on the way"
        "|Suddenly there was $sight on the way, and $h {smiled|stopped to look}"
        "|Along the way, $h_he saw $sight{, but $h_he did not stop|}}."
    )
    teller.ask("what", "what did $h see on the way?", "$h saw $sight on the way.")


def finish(teller: Teller, feelings: str, morals: str = "") -> None:
    """Closes the story: the hero's feeling, perhaps a moral, and what happened last."""
    teller.ending_start = len(teller.sentences)
    feeling = teller.feel("h", feelings, "at the end")
    teller.words["feeling"] = feeling
    teller.ending_feeling = feeling
    with_friend = bool({"f", "f_a"} & teller.used)
    if feeling == "better":
        teller.say("{$h felt {much|so much} better|In the end, $h felt better}.")
    elif feeling in GLAD_FEELINGS:
        teller.say(
            "{$h {felt|was} {very|so|really} $feeling{| that day| and {smiled|laughed}}"
            "|How $feeling $h was|In the end, $h {was|felt} very $feeling"
            "|$h had never {felt|been} so $feeling{| before}"
            "|It was a good day, and $h {was|felt} $feeling"
            "|$h {smiled|laughed} and felt very $feeling}."
        )
    else:
        teller.say("{$h {felt|was} {very|so|really} $feeling|In the end, $h was very $feeling}.")
    if morals and teller.chance(0.6):
        moral = teller.fill(teller.rng.choice(morals.split("|")))
        moral = moral[0].lower() + moral[1:]
        teller.say(f"$h {{had learned|learned|now knew|understood}} that {moral}.")
        teller.ask(
            "learn",
            "what {did $h learn|is the moral of the story|~lesson did $h learn}?",
            f"$h learned that {moral}.",
        )
    closings = [
        ("$h went home and {slept well|slept very well}.", "$h went home and slept well."),
        ("That night, $h {slept|slept well} and had {good|sweet} dreams.", "$h had good dreams."),
        ("$h told everyone at home about it.", "$h told everyone at home about it."),
        ("$h_he sang {all the way home|a song on the way home}.", "$h sang on the way home."),
    ]
    if {"p", "at_p", "to_p"} & teller.used:
        closings.append(("That night, $h {dreamed|dreamt} of $p.", "$h dreamed of $p."))
    if with_friend:
        closings += [
            ("$h and $f {became|were now} good friends.", "$h and $f became good friends."),
            ("Then $h and $f ate $a_meal together.", "$h and $f ate $a_meal together."),
            ("$h and $f sat under a tree and laughed.", "$h and $f sat under a tree."),
            ("$h hugged $f{ and said goodbye|}.", "$h hugged $f."),
            ("$h and $f danced until {it was dark|the moon came out}.", "$h and $f danced."),
        ]
    sentence, fact = teller.rng.choice(closings)
    if teller.chance(0.8):
        teller.say(sentence)
        teller.ask(
            "end",
            "{what happened at the end|how did the story end|~what happened in the end}?",
            f"At the end, {fact}",
        )
    if teller.chance(0.2):
        teller.say("{The end|And that is the end of the story}.")
