"""Plots near home: a birthday, a quarrel, the way back, a vegetable."""

from demo_model.frame import finish
from demo_model.plots import plot
from demo_model.teller import Teller
from demo_model.template import options


@plot("birthday", times="morning day")
def birthday(t: Teller) -> None:
    """The hero thinks that everybody forgot the birthday; there is a party."""
    t.title, t.topics = "The Birthday", ["a birthday", "a surprise party", "a surprise"]
    t.name_friend()
    t.say(
        "$time, $h woke up and was {very |}excited. It was $h_his birthday!",
        "But {nobody said anything|no one said a word|nobody came}. $h $h_went to $f,"
        " $f_described.",
        '"{I have no time|I am busy} today," said $f, and closed the door.',
    )
    t.ask("what", "what day was it for $h?", "It was $h_s birthday.", "birthday")
    t.ask("who", "who had no time?", "$f had no time.", "$f")
    t.words["mood"] = t.feel("h", "sad|lonely|disappointed", "when $f closed the door")
    t.why(
        "was $h $mood", "$h was $mood because it seemed that everyone had forgotten the birthday."
    )
    t.say(
        "$h {was|felt} very $mood.",
        '{"Everyone has forgotten me," {said|thought} $h.|$h_he thought that everyone had forgotten'
        " it.}",
        "$h_he walked around $at_p {all alone|until the evening|for hours}.",
        'When $h {came|got} home, the house was dark. $h opened the door. "Surprise!" {cried|called'
        "|shouted} $f and {all the others|many friends}.",
        "There was {a big cake|music|singing} and {a lot of laughing|many candles}, and $f gave $h"
        " $a_thing.",
    )
    t.ask("where", "where did $h walk around?", "$h walked around $at_p.", "$p_n")
    t.ask(
        "what",
        "what did $h get {from $f|for the birthday}?",
        "$h got $a_thing from $f.",
        "$thing_n",
    )
    t.ask("who", "who gave $h the $thing_n?", "$f gave $h the $thing.", "$f")
    t.either(
        "was there a party?",
        "did the friends forget the birthday?",
        "the friends made a surprise party.",
    )
    t.tell_summary(
        "$once, $h thought that everyone had forgotten $h_his birthday.",
        "But $f and the others made a surprise party and gave $h_him $a_thing.",
    )
    finish(t, "happy|surprised|loved", "good friends do not forget|a surprise needs a secret")


@plot("quarrel")
def quarrel(t: Teller) -> None:
    """Two friends want the same thing, and learn to take turns."""
    t.title, t.topics = (
        "The Quarrel",
        ["a quarrel", "two friends who quarrel", "taking turns", "friendship", "saying sorry"],
    )
    t.name_friend()
    end, result = t.choose(
        ("the $thing_n fell into the water", "They needed a long stick to get it back."),
        ("the $thing_n flew over the wall", "They had to climb over the wall to get it."),
        ("the $thing_n fell into the mud", "Now it was brown and dirty, and they had to wash it."),
        ("the $thing_n got a crack", "They had to mend it with glue."),
    )
    t.words["result"] = t.fill(end).replace("The", "the", 1)
    t.say(
        "$h had a friend named $f. $f was $f_described.",
        "$time, {they|$h and $f} found $a_thing $at_p.",
        '"{It is mine|I saw it first}!" {cried|said} $h. "No, {it is mine|I saw it first}!"'
        " {cried|said} $f.",
        "{They pulled and pulled|$h pulled on one side and $f on the other|Both of them"
        " pulled}, and"
        " $result.",
        '"{That is your fault|Look what you have done}!" {they both cried|said $f}.',
    )
    t.ask("what", "what did $h and $f find?", "$h and $f found $a_thing.", "$thing_n")
    t.ask("where", "where did they find the $thing_n?", "They found the $thing $at_p.", "$p_n")
    t.why("did $h and $f quarrel", "$h and $f quarrelled because both wanted the $thing.")
    t.ask("what", "what happened {when they pulled|to the $thing_n}?", "When they pulled, $result.")
    t.words["mood"] = t.feel("h", "angry|sad|lonely", "after the quarrel")
    t.say(
        "{For a while|For an hour|The whole day} they did not {talk|speak}. $h was $mood"
        "{, and $f was sad too|}.",
        'Then $h said, "I am sorry. {We can share it|We can take turns|You may have it first}." "{I'
        ' am sorry too|I was wrong too}," said $f.',
        result,
        "{Then they took turns|After that, they played with it together}.",
    )
    t.ask("who", "who said sorry first?", "$h said sorry first.", "$h")
    t.either(
        "did they make up?", "did $f say sorry first?", "$h said sorry first, and they made up."
    )
    t.tell_summary(
        "$once, $h and $f found $a_thing and quarrelled about it.",
        "Then $h said sorry, and they took turns.",
    )
    finish(
        t, "happy|glad|better", "it is better to take turns|a friend is worth more than $a_thing"
    )


@plot("lost way", avoid="family")
def lost_way(t: Teller) -> None:
    """The hero follows something pretty, gets lost, and finds the way home."""
    t.title, t.topics = (
        "The Way Home",
        ["getting lost", "finding the way home", "an adventure", "the $p_n"],
    )
    lure = t.rng.choice(options("a butterfly|a little bird|a rainbow|a dragonfly|a rolling apple"))
    clue, how = t.choose(
        ("the stars", "followed the brightest star"),
        ("a stream", "followed the stream"),
        ("$h_his own footprints", "followed the footprints"),
        ("the smell of bread", "followed the smell"),
        ("the bell of the village", "followed the sound of the bell"),
    )
    t.words |= {"lure": lure, "clue": clue.replace("$h_his", t.words["h_his"]), "how": how}
    t.say(
        "$time, $h {saw|noticed} $lure $at_p and {ran after it|followed it}.",
        "{On and on|Further and further} $h_he went, {and then it was gone|until it was gone}.",
        "$h {looked around|turned around}. {Nothing looked familiar|The trees all looked the"
        " same|$h_He"
        " did not know the place}.",
    )
    t.ask("what", "what did $h follow first?", "$h followed $lure.")
    t.why("did $h get lost", "$h got lost because $h_he followed $lure.")
    t.words["mood"] = t.feel("h", "afraid|lonely|scared", "when $h_he was lost")
    t.say(
        '{$h was $mood.|"I am lost," said $h. $h_He was $mood.|"Where am I?" asked $h. $h_He felt'
        " $mood.}"
    )
    if t.chance(0.55):
        t.say(
            'Then $f_a came{| out of the bushes| along the path}. "Are you lost?" asked $f.',
            "$f {showed $h|told $h to look for} $clue. {Together they|They} $how.",
            "{Soon|After an hour|In the end} {they saw $h_s house|they were home}.",
        )
        t.ask("who", "who helped $h?", "$f helped $h.", "$f")
        t.tell_summary(
            "$once, $h followed $lure and got lost.", "$f showed $h_him $clue, and they $how home."
        )
    else:
        t.say(
            '{"Do not cry," $h told $h_himself.|But $h was clever and {sat down to think|looked'
            " around}.}",
            "Then $h_he noticed $clue. $h_He $how{| step by step}.",
            "{Soon|After an hour|In the end} $h_he saw {$h_his house|$h_his home} again.",
        )
        t.ask("yes/no", "did anyone help $h?", "No, $h found the way home alone.", "No")
        t.tell_summary(
            "$once, $h followed $lure and got lost.", "Then $h_he noticed $clue and $how home."
        )
    t.ask("how", "how did $h find the way home?", "$h $how.")
    t.either("did $h get home?", "did $h stay $at_q for ever?", "$h found the way home.")
    finish(t, "happy|relieved|safe", "you should not run off alone|it is good to stay calm")


@plot("big vegetable")
def big_vegetable(t: Teller) -> None:
    """Something is too heavy for one, and too heavy for two."""
    t.title, t.topics = (
        "The Big $crop",
        ["a big vegetable", "working together", "friends who work together", "dinner"],
    )
    crop = t.rng.choice(["turnip", "pumpkin", "carrot", "cabbage", "radish", "beetroot"])
    t.words |= {"crop": crop}
    t.name_friend()
    t.say(
        "In $h_s garden {grew|there was} a {very big|huge|giant} $crop.",
        "$time, $h wanted to {pull it out|take it home} for {dinner|soup|a party}.",
        "$h_he pulled and pulled, but {it did not move|the $crop did not move|it stayed in the"
        " ground}.",
        "{So $h called|Then $h called|$h asked for help and called} $f, $f_described. They {both"
        " |}pulled {together|with all their strength}, but it {still |}did not move.",
        'Then came $r, $r_described. {"Let me help," said $r.|"May I help?" asked'
        ' $r.|"You need one more," said $r.}',
        "{One, two, three! They|All three} pulled, and {plop|pop}, out came the $crop!",
    )
    t.ask("what", "what was in $h_s garden?", "There was a big $crop in $h_s garden.", crop)
    t.ask("who", "who did $h call first?", "$h called $f first.", "$f")
    t.ask("who", "who came last?", "$r came last.", "$r")
    t.why("did $h need help", "$h needed help because the $crop did not move.")
    t.either(
        "did they get the $crop out?",
        "could $h pull the $crop out alone?",
        "$h, $f and $r pulled it out together.",
    )
    dish = t.rng.choice(["soup", "stew", "a pie", "a salad", "pancakes"])
    t.words["dish"] = dish
    t.say("{In the evening|Then|After that} they {cooked|made} $dish for everyone.")
    t.ask("what", "what did they make of the $crop?", "They made $dish.")
    t.tell_summary(
        "$once, $h could not pull out a big $crop.", "$f and $r helped, and together they made it."
    )
    finish(t, "happy|full|glad", "together we are strong|every little help counts")
