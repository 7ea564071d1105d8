"""Plots about things that change hands: traded, bought, carried, broken."""

from demo_model.frame import finish, on_the_way
from demo_model.plots import plot
from demo_model.teller import Teller
from demo_model.template import options


@plot("trade")
def trade(t: Teller) -> None:
    """The hero trades one thing for another, and that for a third that someone needs."""
    t.title, t.topics = "A Good Trade", ["trading things", "$a_thing and $a_other", "a trade"]
    t.name_friend()
    need = t.rng.choice(["was cold at night", "had a birthday soon", "was ill in bed"])
    t.words |= {"need": need}
    t.say(
        "$h had $a_thing.",
        "$time, $h_he took it $to_p.",
        "There $h_he met $r_a. $r had $a_other.",
        '"{Shall we trade|Do you want to trade}?" asked $r. "Yes{|, please}," said $h.',
        "$h gave $r the $thing_n and got the $other_n.",
    )
    t.ask("what", "what did $h have {at first|in the beginning}?", "$h had $a_thing.", "$thing_n")
    t.ask("what", "what did $h get from $r?", "$h got $a_other from $r.", "$other_n")
    t.ask("who", "who got the $thing_n?", "$r got the $thing.", "$r")
    t.ask("where", "where did $h meet $r?", "$h met $r $at_p.", "$p_n")
    t.ask(
        "colour",
        "what colour was the $other_n?",
        "The $other_n was $other_colour.",
        "$other_colour",
    )
    on_the_way(t, 0.4)
    t.say(
        "{On the way home|Later|In the evening}, $h visited $f, $f_described, who $need.",
        '"{What a lovely|What a nice} $other_n!" said $f. {$h smiled and gave $f the'
        ' $other_n|"It is'
        ' for you," said $h|"You may have it," said $h}.',
        "Now $h had {no $thing_n and no $other_n|nothing}, but $f was so {happy|glad}.",
    )
    t.ask("who", "who got the $other_n in the end?", "$f got the $other.", "$f")
    t.why("did $h give $f the $other_n", "$h gave $f the $other because $f $need.")
    t.either("did $h give the $other_n away?", "did $h keep the $other_n?", "$h gave it to $f.")
    t.tell_summary(
        "$once, $h traded $a_thing for $a_other.", "$h_He gave the $other_n to $f, who $need."
    )
    finish(t, "happy|rich|glad|content", "giving makes you happy|a gift is better than a trade")


@plot("market coin", times="morning day")
def market_coin(t: Teller) -> None:
    """The hero has a coin, wants a thing, and spends the coin on someone else."""
    t.title, t.topics = (
        "The Coin",
        ["a coin", "kindness", "going to the market", "helping the poor"],
    )
    t.say(
        "$time, $h got {a coin|a shiny coin|a silver coin} from $h_his {grandmother|father|aunt}."
        if t.chance(0.5)
        else "$time, $h {found|had} a {shiny |}coin.",
        "$h_he wanted to buy $a_thing and {ran|went|hurried} to the market.",
    )
    t.ask("what", "what did $h want to buy?", "$h wanted to buy $a_thing.", "$thing_n")
    t.ask(
        "where",
        "where did $h want to buy the $thing_n?",
        "$h wanted to buy it at the market.",
        "market",
    )
    on_the_way(t)
    t.say(
        "{At the market|Near the market|In front of the market}, $h_he {saw|met} $f_a.",
        "$f {was crying|sat on the ground} and {was hungry|had nothing to eat}.",
        "{$h looked at $h_his coin|$h thought of the $thing_n|$h stopped}. Then $h_he bought"
        " $a_food"
        " and gave $food_it to $f.",
    )
    t.ask("what", "what did $h buy?", "$h bought $a_food.", "$food")
    t.ask("who", "who got the $food?", "$f got the $food.", "$f")
    t.why("did $h buy $a_food", "$h bought $a_food because $f was hungry.")
    t.either("did $h help $f?", "did $h buy the $thing_n?", "$h bought $a_food for $f.")
    if t.chance(0.5):
        t.say(
            'The seller of the $thing_n saw it. "You have a good heart," {the seller said|said the'
            " seller}, and gave $h the $thing_n as a present."
        )
        t.ask("who", "who gave $h the $thing_n?", "The seller gave $h the $thing.", "seller")
        t.tell_summary(
            "$once, $h wanted to buy $a_thing, but bought $a_food for $f.",
            "The seller gave $h_him the $thing_n as a present.",
        )
    else:
        t.say(
            '{"Thank you," said $f. "You are so kind."|$f ate and smiled again.|"I will never'
            ' forget this," said $f.}'
        )
        t.tell_summary(
            "$once, $h wanted to buy $a_thing.",
            "But $f was hungry, so $h_he bought $a_food for $f.",
        )
    finish(t, "happy|proud|glad", "kindness is worth more than $a_thing|it is good to be kind")


@plot("parcel", times="morning day")
def parcel(t: Teller) -> None:
    """The hero carries a thing to someone and must get past an obstacle."""
    t.title, t.topics = (
        "The Parcel",
        ["a parcel", "bringing $a_thing to a friend", "a long way", "a journey", "an adventure"],
    )
    t.name_friend()
    obstacle, way, question = t.choose(
        (
            "a wide river without a bridge",
            "{walked over the stones|found a fallen tree and walked over it}",
            "how did $h cross the river?",
        ),
        ("a big dog that barked", "{gave the dog a bone|spoke softly to the dog}", ""),
        ("a high wall", "climbed over it", ""),
        ("a fallen tree", "crawled under it", ""),
        ("a high fence", "crawled through a hole in it", ""),
    )
    way = t.fill(way)
    way = way[0].lower() + way[1:]
    t.words |= {"obstacle": obstacle, "way": way}
    t.say(
        "$time, $h had to bring $a_thing to $f, $f_described who lived $at_p.",
        "{$h_he put it into a box|$h_he packed it well|$h_he held it tight} and {set off|started}"
        "{| early}.",
    )
    t.ask("what", "what did $h {bring|carry} to $f?", "$h brought $f $a_thing.", "$thing_n")
    t.ask("where", "where did $f live?", "$f lived $at_p.", "$p_n")
    t.ask("who", "who got the $thing_n?", "$f got the $thing.", "$f")
    on_the_way(t)
    t.words["mood"] = t.feel("h", "worried|nervous|unsure", "on the way")
    t.say(
        "{Then|Halfway|After a while,} $h came to $obstacle. $h was $mood.",
        '{"I promised it," {said|thought} $h.|"What shall I do now?" {said|thought} $h.|But $h did'
        " not turn back.}",
        "$h_he $way{| and went on}.",
    )
    t.ask("what", "what was in the way?", "There was $obstacle in the way.")
    t.ask("how", question or "how did $h get past it?", "$h $way.")
    t.either("did $h go on?", "did $h turn back?", "$h went on.")
    t.say(
        "{In the evening|At last|Soon}, $h {stood in front of $f_s door|came to $f_s house}.",
        '"{Here is your $thing_n|This is for you}," said $h. $f was {very glad|so happy} and'
        " gave $h"
        " $a_food{| for the way home}.",
    )
    t.ask("what", "what did $h get from $f?", "$h got $a_food from $f.", "$food")
    t.tell_summary(
        "$once, $h had to bring $a_thing to $f.", "There was $obstacle in the way, but $h $way."
    )
    finish(t, "proud|happy|tired", "you should keep a promise|a promise is a promise")


@plot("broken thing")
def broken_thing(t: Teller) -> None:
    """The hero breaks someone's thing, hides it, and tells the truth in the end."""
    t.bind_things(("cup", "lamp", "clock", "mirror", "teapot", "bowl", "flute", "drum", "doll"))
    t.title, t.topics = (
        "The Broken $thing_n",
        ["telling the truth", "a broken $thing_n", "honesty", "a lie"],
    )
    t.name_friend()
    hidden = t.rng.choice(["under the bed", "behind a bush", "in a box", "under some leaves"])
    cause = t.rng.choice(
        options(
            "$h_he ran too fast|$h_he did not look|$h_his hands were wet|$h_he danced too wildly"
        )
    )
    t.words |= {
        "hidden": hidden,
        "cause": cause.replace("$h_he", t.words["h_he"]).replace("$h_his", t.words["h_his"]),
        "cause_h": cause.replace("$h_he", t.words["h"]).replace("$h_his", t.words["h_s"]),
    }
    t.say(
        "$time, $h was a guest at $f_s house. $f was $f_described.",
        "There was $a_thing on the table.",
        "$h {touched it|wanted to look at it}, but $cause, and the $thing_n {fell down and|fell"
        " and}"
        " broke.",
    )
    t.ask("what", "what {broke|did $h break}?", "$h broke the $thing.", "$thing_n")
    t.ask("who", "who broke the $thing_n?", "$h broke the $thing.", "$h")
    t.ask("who", "whose $thing_n was it?", "It was $f_s $thing.", "$f_s")
    t.why("did the $thing_n break", "The $thing broke because $cause_h.")
    t.words["mood"] = t.feel("h", "afraid|ashamed|bad", "after the $thing_n broke")
    t.say(
        "$h felt $mood and hid the pieces $hidden.",
        '"Where is my $thing_n?" asked $f. {"I do not know," said $h.|$h said nothing.|"Maybe'
        " the wind"
        ' took it," said $h.}',
        "{But that night $h could not sleep|But $h could not eat or play|All day long, $h"
        " thought of"
        " the $thing_n}.",
        '{In the end,|At last} $h {went to $f and |}said, "I broke your $thing_n. I am sorry."',
    )
    t.ask("where", "where did $h hide the pieces?", "$h hid the pieces $hidden.")
    t.either(
        "did $h tell the truth in the end?",
        "did $f break the $thing_n?",
        "$h broke it and told the truth in the end.",
    )
    t.say(
        '{"I am glad that you told me," said $f.|"Thank you for telling the truth," said $f.|$f was'
        " not angry.} {They glued the pieces together|Together they mended the $thing_n|$f"
        " {hugged|forgave} $h}.",
    )
    t.tell_summary(
        "$once, $h broke $f_s $thing and hid the pieces $hidden.",
        "In the end $h_he told the truth, and $f was not angry.",
    )
    finish(t, "better|relieved|happy", "it is best to tell the truth|it is brave to say sorry")
