"""Plots about others: rescues, sharing, shelter, new neighbours, illness."""

from demo_model.frame import finish, on_the_way
from demo_model.plots import plot
from demo_model.teller import Teller
from demo_model.template import options
from demo_model.world import article


@plot("rescue")
def rescue(t: Teller) -> None:
    """Someone is stuck, the first try fails, the second frees them."""
    t.title, t.topics = (
        "The Rescue",
        ["helping someone who is stuck", "a rescue", "helping others", "an adventure", "kindness"],
    )
    trap, tool, act = t.choose(
        ("in a deep hole", "a long rope", "$h let down the rope and pulled"),
        ("in the mud", "a strong branch", "$h held out the branch and pulled"),
        ("in an old net", "a sharp stone", "$h cut the net with the stone"),
        ("under a heavy log", "a long stick", "$h lifted the log with the stick"),
        ("in a thorn bush", "a pair of scissors", "$h cut the thorns one by one"),
        ("high up in a tree", "a ladder", "$h put the ladder against the tree"),
    )
    t.words |= {"trap": trap, "tool": tool}
    t.say(
        "$time, $h $h_went $to_p.",
        '{Suddenly|There} $h_he heard {a voice|someone}. "{Help|Help me}!" {it cried|called the'
        " voice}.",
        "It was $f_a, who was stuck $trap.",
    )
    t.ask("where", "where was $f stuck?", "$f was stuck $trap.")
    t.ask("who", "who was stuck?", "$f was stuck.", "$f")
    t.words["mood"] = t.feel("f", "afraid|frightened|scared", "when $h came")
    t.say(
        "$f was very $mood.",
        '"{Do not worry|Do not be afraid|Stay calm}," said $h, "I will help you."',
        "{First $h pulled with all $h_his strength, but it did not work|$h tried it alone, but"
        " $h_he"
        " was not strong enough|First it did not work}.",
        "{Then|So} $h {ran and got|looked around and found|went to fetch} $tool. "
        + act.replace("$h", "$h_He", 1)
        + ", and $f was {free|free at last}.",
    )
    t.ask("what", "what did $h use to help $f?", "$h used $tool.")
    t.ask("who", "who helped $f?", "$h helped $f.", "$h")
    t.either("did $h help $f?", "did $h leave $f alone?", "$h helped $f with $tool.")
    t.say(
        '"Thank you, {dear |}$h!" said $f. "{You saved me|You are very brave|I will never forget'
        ' it}."'
    )
    if t.chance(0.4):
        t.say("The next {day|week}, $f {brought|gave} $h $a_food.")
        t.ask("what", "what did $f {bring|give} $h?", "$f gave $h $a_food.", "$food")
    t.tell_summary("$once, $h found $f stuck $trap.", "$h used $tool, and $f was free again.")
    finish(t, "happy|proud|glad", "it is good to help others|a calm head helps more than strength")


@plot("sharing")
def sharing(t: Teller) -> None:
    """The hero has food, someone hungry comes; later the kindness returns."""
    t.title, t.topics = (
        "Sharing",
        ["sharing", "$a_food", "a hungry $f_kind", "kindness", "friendship"],
    )
    t.say(
        "$time, $h {had|packed} $a_food and $h_went $to_p.",
        "$h_he {sat down under a tree|sat down on a stone|wanted to eat}{| and was hungry}.",
        '{Then|Just then} $f_a {came by|came along}. "I have not eaten {all day|since yesterday},"'
        " said $f.",
    )
    t.ask("what", "what did $h have?", "$h had $a_food.", "$food")
    t.ask("where", "where did $h meet $f?", "$h met $f $at_p.", "$p_n")
    t.ask("who", "who was hungry?", "$f was hungry.", "$f")
    if t.chance(0.35):
        t.say(
            '"This is mine," said $h, and ate $food_it alone. $f went away {sadly|without a word}.',
            "{But|Soon} $h {felt bad|did not feel good}. $h_He ran after $f and {said"
            ' sorry|said, "I'
            ' am sorry"}.',
            "$h_he had some {more |}food in $h_his bag and gave it to $f.",
        )
        t.either(
            "did $h say sorry?",
            "did $h share the $food at first?",
            "$h ate the $food alone and said sorry later.",
        )
        t.tell_summary(
            "$once, $h ate $a_food alone, although $f was hungry.",
            "Later $h_he said sorry and gave $f some food.",
        )
        t.ask("who", "who said sorry?", "$h said sorry.", "$h")
    else:
        t.say(
            "{$h thought about it|$h did not think long|$h smiled}. {Then $h_he|$h_He} gave $f"
            " $food_half.",
            '{"Thank you," said $f.|$f thanked $h and ate.|"You are very kind," said $f.}',
        )
        t.ask("who", "who shared the $food?", "$h shared the $food.", "$h")
        t.either(
            "did $h share the $food?", "did $h eat the $food alone?", "$h shared the $food with $f."
        )
        way = t.choose(
            ("lost the way home", "showed $h_him the way"),
            ("fell into the water", "pulled $h_him out"),
            ("hurt $h_his foot", "carried $h_him home"),
            ("could not carry a heavy bag", "carried it for $h_him"),
        )
        t.words |= {"trouble": t.fill(way[0]), "rescue": t.fill(way[1])}
        t.words["trouble"] = t.words["trouble"][0].lower() + t.words["trouble"][1:]
        t.words["rescue"] = t.words["rescue"][0].lower() + t.words["rescue"][1:]
        t.say(
            "{Some days later|The next week|The next day}, $h $trouble.",
            "{Who came to help? It was $f|Then $f came}! $f $rescue.",
            '"You {shared your food with|helped} me, {and |}now I help you," said $f.',
        )
        t.ask("what", "what happened to $h later?", "Later $h $trouble.")
        t.ask("who", "who helped $h later?", "$f helped $h.", "$f")
        t.tell_summary("$once, $h shared $a_food with $f.", "Later, when $h $trouble, $f $rescue.")
    finish(t, "happy|glad|thankful", "sharing makes friends|it is good to share")


@plot("storm", weather="cloudy windy grey", times="day afternoon evening")
def storm(t: Teller) -> None:
    """The hero is caught by a storm and finds shelter with someone."""
    t.title, t.topics = (
        "The Storm",
        ["a storm", "the rain", "finding shelter", "bad weather", "friendship"],
    )
    shelter = t.rng.choice(["hollow tree", "small cave", "little hut", "old barn", "warm burrow"])
    game = t.rng.choice(options("told stories|played cards|sang songs|drank tea|guessed riddles"))
    t.words |= {"shelter": shelter, "a_shelter": article(shelter), "game": game}
    t.say(
        "$time, $h was on the way $to_p.",
        "{Dark clouds came|The sky grew dark|The wind blew hard}, and {it began to rain|the rain"
        " began to fall|heavy rain began}. {Soon $h was wet|$h was soon wet and cold}.",
    )
    t.ask("where", "where did $h want to go?", "$h wanted to go $to_p.", "$p_n")
    t.words["mood"] = t.feel("h", "afraid|cold|worried", "in the rain")
    t.say(
        "{There was thunder|It thundered|There was a flash of lightning}, and $h was $mood.",
        "Then $h_he saw $a_shelter{| between the trees| not far away} and ran {to it|there}.",
        '{"May I come in?" {asked|said} $h.|"Is anyone here?" {asked|called} $h.} In the $shelter'
        " lived $f_a.",
        '"{Come in|Of course}," said $f.{| "You can stay until the rain stops."}',
        "{They|$h and $f} $game {while it rained|until the storm was over|all the time}.",
    )
    t.ask("where", "where did $h find shelter?", "$h found shelter in $a_shelter.")
    t.ask("who", "who lived in the $shelter?", "$f lived in the $shelter.", "$f")
    t.ask("what", "what did $h and $f do in the $shelter?", "$h and $f $game.")
    t.why("did $h run to the $shelter", "$h ran to the $shelter because of the rain.")
    t.either("did $f let $h in?", "did $f send $h away?", "$f let $h in.")
    if t.chance(0.5):
        t.say("$f {even |}gave $h $a_food{| and a dry towel}.")
        t.ask("what", "what did $f give $h?", "$f gave $h $a_food.", "$food")
    t.say("{When|As soon as} the sun came out, $h {said thank you|thanked $f} and went on.")
    t.tell_summary(
        "$once, $h was caught in a storm on the way $to_p.",
        "$f let $h_him into $a_shelter, and they $game.",
    )
    finish(t, "happy|warm|glad|thankful", "an open door makes a friend|after rain comes sunshine")


@plot("new neighbour", avoid="family")
def new_neighbour(t: Teller) -> None:
    """Someone new and lonely arrives; the hero makes the first step."""
    t.title, t.topics = (
        "The New Neighbour",
        ["a new neighbour", "being lonely", "making a friend", "friendship", "friends", "kindness"],
    )
    t.name_friend()
    game = t.rng.choice(["hide and seek", "football", "chess", "tag", "with marbles", "pirates"])
    reason = t.rng.choice(
        ["$f was too shy", "$f spoke very softly", "$f looked so strange", "nobody knew $f"]
    )
    t.words |= {"game": game, "reason": t.fill(reason).replace("Nobody", "nobody")}
    t.say(
        "$time, a new neighbour came $to_p. It was $f_a.",
        "Nobody {talked|spoke} to $f, because $reason.",
    )
    t.ask("who", "who was the new neighbour?", "The new neighbour was $f.", "$f")
    t.why("did nobody talk to $f", "Nobody talked to $f because $reason.")
    t.words["mood"] = t.feel("f", "lonely|sad", "in the beginning")
    t.say(
        "$f {sat alone every day|played alone|always sat at the window} and {was|felt} $mood.",
        "$h {saw it|saw $f}, and {had an idea|thought about it all night}. $h_He took"
        " $a_food and {went to $f|knocked at the door}.",
        '"Hello, I am $h. {I brought you $a_food|This is for you}," said $h{|, and smiled}.',
        '{$f smiled for the first time|$f was surprised and smiled|"Thank you," said $f softly}.',
        "{Then|After that} they played $game {until it was dark|the whole day|together}.",
    )
    t.ask("what", "what did $h bring $f?", "$h brought $f $a_food.", "$food")
    t.ask("what", "what did $h and $f play?", "$h and $f played $game.")
    t.either("did $f smile?", "did $f send $h away?", "$f smiled.")
    if t.chance(0.5):
        t.say(
            "Soon {the others|all the others} came {too|to play with them}, and $f was never"
            " {alone|lonely} again."
        )
    t.tell_summary(
        "$once, $f came $to_p and was $mood.", "$h brought $f $a_food, and they played $game."
    )
    finish(t, "happy|glad", "a friendly word is enough|the first step makes a friend")


@plot("sick friend")
def sick_friend(t: Teller) -> None:
    """A friend is ill; the hero fetches what helps."""
    t.title, t.topics = (
        "A Sick Friend",
        ["a sick friend", "helping a friend who is ill", "friendship", "friends"],
    )
    t.name_friend()
    ill, cure = t.choose(
        ("a bad cold", "green tea leaves"),
        ("a fever", "fresh lemons"),
        ("a sore throat", "honey from the bees"),
        ("a stomach ache", "fresh mint"),
        ("a headache", "a blue flower"),
        ("a cough", "sweet roots"),
    )
    t.words |= {"ill": ill, "cure": cure}
    t.say(
        "$h had a friend named $f. $f was $f_described.",
        "$time, $f {did not come to play|stayed in bed|could not get up}, because $f_he had $ill.",
        "{$h wanted to help|$h knew what to do}. The $r_kind $r said that $cure would help.",
    )
    t.ask("who", "who was ill?", "$f was ill.", "$f")
    t.ask("what", "what did $f have?", "$f had $ill.")
    t.ask("who", "who knew what would help?", "$r knew what would help.", "$r")
    t.ask("what", "what {would help|helped} $f?", "$cure would help $f.")
    t.why("did $f stay {in bed|at home}", "$f stayed in bed because $f_he had $ill.")
    t.say("So $h $h_went $to_p to {get|find} $cure.")
    t.ask("where", "where did $h go to get it?", "$h went $to_p.", "$p_n")
    on_the_way(t)
    t.say(
        "{It took a long time|It was a long way|The way was steep}, but $h {did not stop|thought of"
        " $f|did not give up}.",
        "{In the evening|At last|Two hours later} $h came back with $cure.",
        "{The next morning|After two days|The next day}, $f {was well again|could play again}.",
        '"You are the best friend{| in the world}," said $f.',
    )
    t.either("did $f get well again?", "did $h give up?", "$h got $cure, and $f got well again.")
    t.tell_summary("$once, $f had $ill.", "$h went $to_p to get $cure, and $f got well again.")
    finish(t, "happy|glad|relieved", "a friend in need is never alone|it is good to have friends")
