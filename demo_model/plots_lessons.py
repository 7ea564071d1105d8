"""Plots in which the hero learns: courage, modesty, patience, a new skill."""

from demo_model import world
from demo_model.frame import finish
from demo_model.plots import plot
from demo_model.teller import Teller


@plot("fear", avoid="trait hobby")
def fear(t: Teller) -> None:
    """The hero is afraid of something and does it for a friend."""
    t.title, t.topics = "Being Brave", ["being brave", "being afraid of $dread", "courage", "fear"]
    dread, need, deed = t.choose(
        ("the dark", "was alone in a dark cave", "went into the dark cave"),
        ("deep water", "fell into the deep water", "jumped into the deep water"),
        ("high places", "sat on a high rock and could not get down", "climbed up the high rock"),
        ("thunder", "was alone in the thunderstorm", "ran out into the thunderstorm"),
        ("big dogs", "was in front of a big, angry dog", "stood in front of the big dog"),
        ("spiders", "was in a cellar full of spiders", "went down into the cellar"),
    )
    t.words |= {"dread": dread, "need": need, "deed": deed}
    t.name_friend()
    t.say(
        "{There was one thing: $h was afraid of $dread|But $h had a secret. $h_He was afraid of"
        " $dread|$h was not afraid of much, but $h_he was afraid of $dread}.",
        "{The others laughed about it|Nobody knew it|The others did not understand it}.",
        "$time, $h {heard a cry for help|heard a loud cry} $at_p.",
        "It was $h_his friend $f, $f_described, who $need.",
    )
    t.ask("what", "what was $h afraid of?", "$h was afraid of $dread.")
    t.ask("who", "who {needed|cried for} help?", "$f needed help.", "$f")
    t.ask("where", "where did $h hear the cry?", "$h heard the cry $at_p.", "$p_n")
    t.say(
        "{$h_s legs shook|$h_s heart beat fast|$h wanted to run away}.",
        '{"I must help $f," thought $h.|"Now I must be brave," said $h.|But then $h_he thought'
        " of $f.}",
        "$h {took a deep breath|closed $h_his eyes for a second|counted to three} and $deed.",
        '{"I am here," said $h.|"Take my hand," said $h.|"Come with me," said $h.} Soon {$f was'
        " safe|both were safe}.",
        '{"You are so brave," said $f.|"I thought that you were afraid of $dread," said $f.|"Thank'
        ' you for coming," said $f.}',
    )
    t.why("was $h brave", "$h was brave because $f needed help.")
    t.ask("what", "what did $h do to help?", "$h $deed.")
    t.either("did $h help $f?", "did $h run away?", "$h was brave and helped $f.")
    t.tell_summary("$h was afraid of $dread.", "But when $f $need, $h was brave and $deed.")
    finish(
        t,
        "proud|brave|happy",
        "being brave means to be afraid and to do it|you can be braver than you think",
    )


@plot("race", trait="proud", avoid="trait", times="morning afternoon day")
def race(t: Teller) -> None:
    """A proud hero races a modest friend and loses time on the way."""
    t.title, t.topics = (
        "The Race",
        ["a race", "a proud $h_kind", "a race between two friends", "sport", "running"],
    )
    t.name_friend()
    delay, because = t.choose(
        ("lay down in the grass and fell asleep", "$h_he fell asleep"),
        ("stopped to eat some berries", "$h_he stopped to eat"),
        ("looked back, laughed, and fell into a ditch", "$h_he fell into a ditch"),
        ("took the wrong path", "$h_he took the wrong path"),
        ("stopped to look at $h_himself in the water", "$h_he looked into the water"),
    )
    delay = delay.replace("$h_himself", t.words["h_himself"])
    t.words |= {"delay": delay, "because": because.replace("$h_he", t.words["h_he"])}
    t.say(
        '"{I am the fastest of all|Nobody is as fast as I am}," {said|cried|always said} $h.',
        '$time, $f, $f_described, said, "{Let us have a race|I will race you} $to_p{|,'
        ' if you like}."',
        "{Everyone came to watch|All the others came to see it|The $r_kind $r gave the sign}. {One,"
        " two, three, go|Ready, steady, go}!",
        "$h ran {ahead|in front} {at once|like the wind}. {Soon $f was far behind|Soon $h_he"
        " could not"
        " see $f any more}.",
        '"{I have enough time|This is too easy}," {said|thought} $h, and $delay.',
        "$f {did not stop|went on, step by step|never stopped}, and {passed by|came past}.",
        "{When $h saw it, it was too late|Then $h ran and ran, but it was too late}. $f {won the"
        " race|was the first $at_p}!",
    )
    t.ask("who", "who won the race?", "$f won the race.", "$f")
    t.ask("who", "who lost the race?", "$h lost the race.", "$h")
    t.ask("where", "where did they race to?", "They raced $to_p.", "$p_n")
    t.why("did $h lose the race", "$h lost the race because $because.")
    t.ask("what", "what did $h do {during the race|on the way}?", "$h $delay.")
    t.either("did $f win?", "did $h win?", "$f won the race.")
    if t.chance(0.6):
        t.say('"{Well done|You were better}," said $h{| quietly}. $h gave $f $a_thing as a prize.')
        t.ask("what", "what did $f get?", "$f got $a_thing as a prize.", "$thing_n")
    else:
        t.say(
            '"Do not be sad," said $f. "{You are fast|You run so well}, but {you must not'
            " stop|a race"
            ' is long}."'
        )
    t.tell_summary("$once, $h and $f had a race $to_p.", "$h $delay, so $f won.")
    finish(t, "ashamed|sorry|humble", "it is not good to boast|slow and steady wins")


@plot("garden", times="morning day")
def garden(t: Teller) -> None:
    """A seed, patience, something that goes wrong, a harvest."""
    t.title, t.topics = (
        "The Seed",
        [
            "a seed",
            "growing $plants",
            "a garden",
            "being patient",
            "nature",
            "a flower",
            "patience",
            "spring",
        ],
    )
    plant, plants = t.choose(
        ("sunflower", "sunflowers"),
        ("apple tree", "apple trees"),
        ("rose", "roses"),
        ("pumpkin", "pumpkins"),
        ("strawberry plant", "strawberries"),
        ("cherry tree", "cherry trees"),
    )
    trouble, remedy = t.choose(
        ("the ground was very dry", "carried water from the river every day"),
        ("the snails wanted to eat the leaves", "put a little fence around it"),
        ("a strong wind bent it", "tied it to a stick"),
        ("it got very cold at night", "covered it with a blanket"),
        ("weeds grew all around it", "pulled out the weeds"),
    )
    t.words |= {
        "plant": plant,
        "a_plant": world.article(plant),
        "plants": plants,
        "trouble": trouble,
        "remedy": remedy,
    }
    giver = t.chance(0.5)
    t.say(
        "$time, $f_a gave $h a {small|tiny|little} seed."
        if giver
        else "$time, $h found a {small|tiny|little} seed $at_p.",
        "$h planted it {behind|in front of|next to} the house and {waited|gave it some water}.",
        "{But nothing happened|Nothing happened}. $h {looked every morning|waited one week and"
        " another"
        " week}.",
    )
    if giver:
        t.ask("who", "who gave $h the seed?", "$f gave $h the seed.", "$f")
    else:
        t.ask("where", "where did $h find the seed?", "$h found the seed $at_p.", "$p_n")
    t.words["mood"] = t.feel("h", "impatient|sad|worried", "when nothing happened")
    t.say(
        '{$h was $mood.|"Why does it not grow?" asked $h. $h_He was $mood.|$h felt $mood.}',
        '"{Be patient|You must wait}," said $f. "{Good things take time|It is still asleep}."'
        if giver
        else '"{Be patient|You must wait}," said $h_his {mother|father}. "{Good things take'
        ' time|It is still asleep}."',
        "{Then one morning|At last}, {a little green leaf came out|there was a little green leaf}.",
        "{But|Then} $trouble. $h $remedy.",
        "{In the summer|Some weeks later}, {there stood a beautiful $plant|it had become a big"
        " $plant}.",
    )
    t.ask(
        "what", "what {grew|came} from the seed?", "$a_plant grew from the seed.", plant.split()[0]
    )
    t.ask("what", "what did $h do to help the plant?", "$h $remedy.")
    t.why("did the plant need help", "The plant needed help because $trouble.")
    t.either("did the seed grow?", "did the seed die?", "it became $a_plant.")
    t.say(
        "{Everyone came to see it|All the neighbours came to look at it|It was the most beautiful"
        " $plant of all}."
    )
    t.tell_summary(
        "$once, $h planted a little seed.", "$trouble, but $h $remedy, and $a_plant grew."
    )
    finish(t, "proud|happy", "good things take time|it is worth waiting")


@plot("new skill", avoid="hobby")
def new_skill(t: Teller) -> None:
    """The hero wants to learn something, fails, is taught, and shows it."""
    t.title, t.topics = (
        "Learning to $skill",
        ["learning to $skill", "practice", "a good teacher", "school", "learning"],
    )
    skill, fail, tip = t.choose(
        ("swim", "swallowed a lot of water", "kick with your legs"),
        ("whistle", "made only a little puff", "make your mouth small and round"),
        ("dance", "fell over $h_his own feet", "listen to the music"),
        ("ride a bike", "fell into the grass", "look ahead and not down"),
        ("paint", "made only brown spots", "look closely before you begin"),
        ("sing", "sang so badly that the birds flew away", "breathe slowly"),
        ("bake bread", "burned the bread", "wait and watch the fire"),
        ("skate", "sat down on the ice with a bump", "bend your knees"),
        ("juggle", "dropped all the balls", "begin with two balls"),
        ("tie a knot", "got tangled in the rope", "make a loop first"),
    )
    t.words |= {"skill": skill, "fail": fail.replace("$h_his", t.words["h_his"]), "tip": tip}
    t.say(
        "$h wanted to learn to $skill{| more than anything else|, but $h_he did not know how}.",
        "$time, $h_he went $to_p and tried it{| alone| for the first time}. $h_He $fail.",
    )
    t.ask("what", "what did $h want to learn?", "$h wanted to learn to $skill.")
    t.ask("where", "where did $h try it?", "$h tried it $at_p.", "$p_n")
    t.ask("what", "what happened {the first time|when $h tried it first}?", "$h $fail.")
    t.words["mood"] = t.feel("h", "sad|angry|embarrassed", "after the first try")
    t.say(
        '{$h was $mood.|"I will never learn it," said $h. $h_He was $mood.|$h felt $mood and'
        " sat down.}",
        '$f_a {saw it|had watched}. "{It is not so hard|Nobody can do it at once|I can teach you},"'
        ' said $f. "You must $tip."',
        "{The next day, $h tried again and again|From then on, $h practised every day|From then"
        " on, $h"
        " practised with $f}.",
        "{It was better|It went better each time|Slowly it became better}.",
        "{After a week|One week later|At last} $h could $skill {very well|better than anyone|all by"
        " $h_himself}.",
    )
    t.ask("who", "who {taught|helped} $h?", "$f taught $h.", "$f")
    t.ask("what", "what did $f {say|tell $h to do}?", '$f said, "You must $tip."')
    t.either("could $h $skill in the end?", "did $h give up?", "$h learned to $skill.")
    if t.chance(0.6):
        t.say("{There was a big feast|Everyone came to see it}, and $h got $a_thing as a prize.")
        t.ask("what", "what {prize |}did $h get?", "$h got $a_thing as a prize.", "$thing_n")
    t.tell_summary(
        "$h wanted to learn to $skill, but first $h_he $fail.",
        "$f taught $h_him, and after a week $h could $skill.",
    )
    finish(t, "proud|happy", "practice makes perfect|it is good to ask for help")
