"""Plots about things that are lost, found, built and dug up."""

from demo_model import world
from demo_model.frame import finish, on_the_way
from demo_model.plots import plot
from demo_model.teller import Teller


@plot("lost thing")
def lost_thing(t: Teller) -> None:
    """The hero loses a thing, looks in a wrong place, and someone helps to find it."""
    t.title, t.topics = "The Lost $thing_n", ["a lost $thing_n", "losing something"]
    light = t.words["thing_n"] in world.LIGHT_THINGS
    cause, reason = t.choose(
        ("A strong wind came and blew it away.", "the wind blew it away")
        if light
        else ("It fell out of $h_his bag.", "it fell out of $h_his bag"),
        ("$h_he put it down to rest and forgot it.", "$h_he put it down and forgot it"),
        (
            "There was a hole in $h_his pocket, and it {fell out|was gone}.",
            "there was a hole in $h_his pocket",
        ),
    )
    t.say(
        "$h had $a_thing{| and loved it very much| and took it everywhere}.",
        "$time, $h {took it|went with it} $to_p{| to play}.",
        cause,
        "{When $h looked for the $thing_n, it was gone|Later $h saw that the $thing_n was gone}.",
    )
    t.ask("what", "what did $h lose?", "$h lost the $thing.", "$thing_n")
    t.ask("where", "where did $h lose the $thing_n?", "$h lost the $thing $at_p.", "$p_n")
    t.why("did $h lose the $thing_n", f"$h lost the $thing because {reason}.")
    t.words["mood"] = t.feel("h", "sad|worried|unhappy", "when the $thing_n was gone")
    t.say(
        '{$h was very $mood.|$h felt $mood.|"Where is my $thing_n?" {said|asked} $h. $h_He was very'
        ' $mood.|"Oh no! My $thing_n!" cried $h. $h_He felt very $mood.}',
        "$h_he looked {for it|everywhere} $at_q, but it was not there.",
    )
    t.ask("where", "where did $h look first?", "$h looked $at_q first.", "$q_n")
    if t.chance(0.6):
        t.say(
            "Then $h met $f_a.",
            '{"Why are you $mood?" asked $f.|"Can I help you?" asked $f.}'
            ' "I {have lost|cannot find} my $thing_n," said $h.',
            "{They looked|They searched|$h and $f looked} {under the bushes|behind the"
            " stones|in the"
            " tall grass|under the leaves} together, and {there it was|$f found it}.",
        )
        t.ask("who", "who helped $h?", "$f helped $h.", "$f")
        ending = "$f helped $h_him to look for it, and they found it."
    else:
        t.say(
            "Then $h had an idea. $h_He {went|walked} back {slowly|step by step} $to_p.",
            "There, {under a bush|behind a big stone|in the grass|under some leaves},"
            " $h_he saw something {$thing_colour|small}."
            if t.words["thing_colour"]
            else "There, {under a bush|behind a big stone|in the grass|under some leaves},"
            " $h_he saw something.",
            "It was the $thing_n!",
        )
        t.ask("yes/no", "did anyone help $h?", "No, $h found the $thing alone.", "No")
        ending = "$h_He went back and found it."
    t.either(
        "did $h find the $thing_n?", "did $h lose the $thing_n for ever?", "$h found the $thing."
    )
    t.tell_summary("$once, $h lost $h_his $thing $at_p.", ending)
    finish(
        t,
        "happy|glad|relieved",
        "friends help each other|it is good to stay calm"
        if "f" in t.used
        else "it is good to stay calm|it helps to look twice",
    )


@plot("found thing")
def found_thing(t: Teller) -> None:
    """The hero finds a thing and gives it back to the one who lost it."""
    t.title, t.topics = "The $thing_n", ["honesty", "finding $a_thing", "being honest", "kindness"]
    t.say(
        "$time, $h $h_went $to_p.",
        "{There $h_he found|Under a tree, $h_he found|In the grass lay} $a_thing.",
        "{It was the most beautiful $thing_n in the world|It looked very nice|$h_he liked it very"
        " much}, and $h_he wanted to keep it.",
    )
    t.ask("what", "what did $h find?", "$h found $a_thing.", "$thing_n")
    t.ask("where", "where did $h find the $thing_n?", "$h found the $thing $at_p.", "$p_n")
    t.either(
        "did $h want to keep the $thing_n?",
        "did $h want to sell the $thing_n?",
        "$h wanted to keep the $thing.",
    )
    on_the_way(t, 0.3)
    t.words["mood"] = t.feel("f", "sad|unhappy", "about the $thing_n")
    t.say(
        "{Then|Soon|A little later,} $h met $f_a. $f was {very|so} $mood.",
        '"I {have lost|lost} my $thing_n," said $f. {"It was a present from my grandmother."'
        '|"I have looked for it all day."|"I miss it so much."}',
        "{$h thought for a moment|$h looked at the $thing_n and thought|It was not easy for $h}."
        " Then $h_he gave the $thing_n {back |}to $f.",
    )
    t.ask("who", "who had lost the $thing_n?", "$f had lost the $thing.", "$f")
    t.ask("who", "who got the $thing_n back?", "$f got the $thing back.", "$f")
    t.why("was $f $mood", "$f was $mood because the $thing was lost.")
    if t.chance(0.6):
        t.say(
            '"Thank you! You are {honest|a good friend|very kind}," said $f, and gave $h $a_food.'
        )
        t.ask("what", "what did $f give $h?", "$f gave $h $a_food.", "$food")
    else:
        t.say(
            '"Thank you{| so much}!" {said|cried} $f. "{We can play with it together|Come and'
            ' play with me}!" And they {played until the evening|played all day}.'
        )
        t.ask("what", "what did $h and $f do together?", "$h and $f played together.")
    t.tell_summary("$once, $h found $a_thing $at_p.", "$h_He gave it back to $f, who had lost it.")
    finish(t, "happy|proud|glad", "it is good to be honest|giving back is better than keeping")


@plot("build a thing")
def build(t: Teller) -> None:
    """The hero builds something; the first try fails, the second works."""
    thing, use, fail, why = t.choose(
        ("boat", "to sail on the water", "the boat sank", "there was a hole in it"),
        (
            "treehouse",
            "to look at the stars",
            "the treehouse fell down",
            "the nails were too short",
        ),
        ("bridge", "to cross the water", "the bridge broke", "the wood was too thin"),
        ("swing", "to swing up to the sky", "the rope broke", "the rope was too old"),
        ("cart", "to carry apples", "a wheel came off", "the wheel was too small"),
        ("raft", "to float down the river", "the raft fell apart", "the knots were not tight"),
        ("little house", "to keep out the rain", "the roof fell in", "the roof was too heavy"),
    )
    t.words |= {"made": thing, "use": use, "failed": fail, "cause": why}
    t.title, t.topics = (
        "The $made",
        ["building a $made", "trying again", "not giving up", "hard work"],
    )
    t.say(
        "$time, $h wanted to build a $made $use.",
        "$h_he {took|found|got} some {wood|old wood|planks} and {a rope|some nails|a hammer}, and"
        " {worked for hours|began to work|worked very hard} $at_p.",
        "{But|Oh dear!|Then} $failed, because $cause.",
    )
    t.ask("what", "what did $h {build|want to build}?", "$h built a $made.", "$made")
    t.ask("where", "where did $h build the $made?", "$h built the $made $at_p.", "$p_n")
    t.why("did $h want a $made", "$h wanted a $made $use.")
    t.ask("why", "what went wrong?", "It went wrong because $cause.")
    t.words["mood"] = t.feel("h", "sad|angry|tired", "when $failed")
    t.say(
        '{$h was $mood and wanted to {give up|stop}.|"I will never {do|finish} it!" said $h. $h_He'
        " was very $mood.}",
        '{Then came $f_a.|Just then $f_a {came by|walked by}.} "{Try again|Do not give up}! I will'
        ' help you," said $f.',
        "$f {held the wood|brought more wood|showed $h what to do}, and $h {worked|tried} again.",
        "{This time it was strong and good|This time everything went well|In the evening, the $made"
        " was ready}.",
    )
    t.ask("who", "who helped $h?", "$f helped $h.", "$f")
    t.either("did $h try again?", "did $h give up?", "$h tried again.")
    if t.chance(0.5):
        t.say("$h and $f {tried it at once|used it the whole day}{|, and it did not break}.")
    t.tell_summary("$once, $h built a $made, but $failed.", "$f helped $h_him to try again.")
    finish(t, "happy|proud", "you should never give up|two can do more than one")


@plot("treasure")
def treasure(t: Teller) -> None:
    """The hero finds a map and digs up a chest."""
    t.title, t.topics = (
        "The Treasure",
        ["a treasure", "an old map", "a treasure map", "adventure", "an adventure"],
    )
    container = t.rng.choice(["chest", "bottle", "drawer", "hat", "book"])
    t.words["source"] = f"an old {container}"
    t.say(
        "$time, $h found {an old|a torn} map in $source.",
        "{There was a big cross on the map|A red cross was on the map|The map had a cross on it}."
        " {The cross|It} {was|stood} $at_p.",
        '"{A treasure|There must be a treasure}!" {cried|said|thought} $h, and {took a'
        " spade|packed a spade} {at once|and ran}.",
    )
    t.ask("where", "where did $h find the map?", "$h found the map in $source.", container)
    t.ask("what", "what did $h find in $source?", "$h found a map.", "map")
    t.ask("where", "where was the cross on the map?", "The cross was $at_p.", "$p_n")
    t.ask("what", "what did $h take along?", "$h took a spade.", "spade")
    on_the_way(t)
    if t.chance(0.55):
        t.say(
            '{Near|On the way to} $p, $h met $f_a. "May I come {with you|too}?" asked $f.'
            ' "Yes," said $h, "We can share {the treasure|what we find}."'
        )
        t.ask("who", "who came with $h?", "$f came with $h.", "$f")
        t.say("{They dug|$h and $f dug} {and dug|for a long time|a deep hole}.")
    else:
        t.say("$h_he dug {and dug|for a long time|a deep hole}{, until $h_his arms were tired|}.")
    content, reaction = t.choose(
        ("$a_thing", "It {shone in the sun|was very old|looked like new}."),
        ("a hundred old coins", "They {shone in the sun|were all made of gold}."),
        ("a letter", 'On it stood: "The best treasure is a good friend."'),
        ("seeds", "They were the seeds of {beautiful flowers|tall sunflowers}."),
    )
    if content == "$a_thing":
        t.used.add("thing")
        content = t.words["a_thing"]
    verb = "was" if content.startswith("a") and not content.startswith("a hundred") else "were"
    t.words["content"] = content
    t.say(
        "{At last|Then|Suddenly} there was a {small|heavy|wooden} chest{| in the ground}."
        f" {{Inside|In the chest|In it}} {verb} $content.",
        reaction,
    )
    t.ask("what", "what was in the chest?", f"In the chest {verb} $content.")
    t.either("did $h find a chest?", "was the chest empty?", "$h found a chest with $content.")
    t.tell_summary(
        "$once, $h found a treasure map in $source.", "$h_He dug $at_p and found $content."
    )
    finish(
        t,
        "happy|rich|excited|glad",
        "sharing is the best treasure" if "f" in t.used else "it is good to be curious",
    )
