"""Plots of nights, winters, wishes and full bellies."""

from demo_model import world
from demo_model.frame import finish
from demo_model.plots import plot
from demo_model.teller import Teller
from demo_model.template import options

STORES = ("nuts", "berries", "corn", "honey", "cheese")


@plot("night noise", times="night evening", weather="dark windy quiet cold", avoid="day")
def night_noise(t: Teller) -> None:
    """A strange noise; the hero looks, and it is something harmless."""
    t.title, t.topics = (
        "The Noise",
        [
            "a strange noise",
            "a dark night",
            "a noise in the night",
            "a ghost",
            "the night",
            "something spooky",
        ],
    )
    noise = t.rng.choice(["knocking", "scratching", "humming", "rattling", "whispering", "tapping"])
    source, then = t.choose(
        ("a branch that touched the window", "$h tied the branch back and laughed"),
        ("a mouse that was looking for cheese", "$h gave the mouse a piece of cheese"),
        ("a kitten that was cold", "$h gave the kitten some warm milk"),
        ("an old gate that moved in the wind", "$h closed the gate and laughed"),
        ("a hungry hedgehog", "$h gave the hedgehog an apple"),
        ("a bird that could not find its nest", "$h carried the bird back to its nest"),
    )
    place = t.rng.choice(["under the stairs", "behind the house", "at the window", "in the shed"])
    t.words |= {"noise": noise, "source": source, "spot": place}
    t.name_friend()
    t.say(
        "$time, $h lay in bed{| and wanted to sleep}.",
        "{Suddenly|Then} there was a {strange |soft |loud |}$noise $spot.",
        '"{What is that|Who is there}?" {asked|whispered} $h. {Nobody answered|There was no'
        " answer}.",
    )
    t.ask("what", "what did $h hear?", "$h heard a $noise.", noise)
    t.ask(
        "where",
        "where did the noise come from?",
        "The noise came from $spot."
        if place.startswith(("under", "behind"))
        else "The noise was $spot.",
    )
    t.words["mood"] = t.feel("h", "afraid|scared|nervous", "when $h_he heard the noise")
    t.say(
        "{$h was $mood and pulled the blanket over $h_his head|$h felt $mood. It could be a"
        " ghost|$h"
        " was so $mood that $h_he could not move}.",
        "{There it was again|The $noise came again}.",
    )
    if t.chance(0.5):
        t.say(
            "$h {ran to|woke} $f, $f_described{ who lived next door| who slept in the same house}."
            ' "{We will look together|Come, we will look}!" said $f.'
        )
        t.ask("who", "who went with $h?", "$f went with $h.", "$f")
        t.say("They took a lamp and {went to look|went there together}.")
    else:
        t.say(
            "{But $h was also curious|But $h wanted to know it}. $h_He took a lamp and {went to"
            " look|went there on tiptoe}."
        )
        t.ask("yes/no", "did anyone go with $h?", "No, $h went alone.", "No")
    t.ask("what", "what did $h take along?", "$h took a lamp.", "lamp")
    t.say(
        "{There was no ghost|It was not a ghost|There was no monster}. It was only $source.",
        then + ".",
    )
    t.ask("what", "what {was|made} the noise?", "It was $source.")
    t.ask("what", "what did $h do then?", then + ".")
    t.either("was the noise harmless?", "was it a ghost?", "it was only $source.")
    t.tell_summary("$once, $h heard a $noise $spot and was $mood.", "It was only $source.")
    finish(
        t, "relieved|calm|happy", "things look different in the light|it is good to look closely"
    )


@plot(
    "lazy winter", trait="lazy", avoid="trait hobby day", times="day morning", weather="cold snowy"
)
def lazy_winter(t: Teller) -> None:
    """The lazy hero plays all summer, is hungry in winter, and is helped."""
    t.title, t.topics = (
        "The Long Winter",
        ["a lazy $h_kind", "winter", "being lazy", "snow", "hard work"],
    )
    t.name_friend()
    idle = t.rng.choice(["slept in the sun", "played the flute", "lay in the grass", "danced"])
    t.words |= {"idle": idle}
    t.bind_food("meal", t.rng.choice([food for food in world.FOODS if food.name in STORES]))
    t.say(
        "All summer long, $h $idle.",
        "$h_s neighbour $f, $f_described, {worked every day|was always busy} and collected"
        " $a_meal for the winter.",
        '"{Come and help me|You should work too}," said $f. "{Winter is far away|Not'
        " today|Tomorrow,"
        ' perhaps}," said $h.',
        "Then the winter came. {Snow fell|The wind was cold}, and {everything was white|the"
        " pond was"
        " ice}.",
        "$h had {nothing to eat|no food at all}.",
    )
    t.ask("what", "what did $h do all summer?", "$h $idle all summer.")
    t.ask("what", "what did $f collect?", "$f collected $a_meal.")
    t.ask("who", "who worked in the summer?", "$f worked in the summer.", "$f")
    t.why("was $h hungry", "$h was hungry because $h_he had not worked in the summer.")
    t.words["mood"] = t.feel("h", "hungry|cold|ashamed", "in the winter")
    t.say(
        "$h was $mood. $time, $h_he {went to $f|knocked at $f_s door}{| through the snow}.",
        '"{Please help me|May I come in}," said $h. "I was {lazy|wrong}."',
        '$f {smiled|nodded} and said, "{Come in|Sit down}. There is enough {for two|for both of'
        ' us}."',
        "{In the spring|The next summer}, $h worked with $f {every day|from morning to evening}.",
    )
    t.ask("who", "who helped $h?", "$f helped $h.", "$f")
    t.either("did $f help $h?", "did $f send $h away?", "$f let $h in.")
    t.ask("what", "what did $h do {in the spring|the next year}?", "$h worked with $f.")
    t.tell_summary(
        "All summer, $h $idle, while $f worked.",
        "In the winter $h was hungry, and $f helped $h_him.",
    )
    finish(t, "thankful|glad|happy", "it is wise to think of tomorrow|work comes before play")


@plot("wish")
def wish(t: Teller) -> None:
    """A fairy grants one wish, and the hero thinks of someone else."""
    t.title, t.topics = "One Wish", ["a wish", "a fairy", "magic", "dreams", "a dream", "gold"]
    giver = t.rng.choice(["a fairy", "a golden fish", "a little star", "a tiny wizard"])
    kind = giver.split()[-1]
    ill = t.rng.choice(
        options("could not walk|could not see|had lost $f_his home|was always alone")
    )
    ill = ill.replace("$f_his", t.words["f_his"])
    effect = {
        "could not walk": "could walk and run",
        "could not see": "could see the blue sky",
        "was always alone": "had many friends",
    }.get(ill, "had a new home")
    t.words |= {"giver": giver, "magic": f"the {kind}", "ill": ill, "effect": effect}
    t.name_friend()
    t.say(
        "$time, $h {met|saw} $giver $at_p. It was caught in {a bush|some grass|a net}.",
        "$h {set it free|helped it at once}.",
        '"{Thank you|You are kind}," said $magic. "{You have one wish|I will give you one wish}."',
    )
    t.ask("who", "who gave $h a wish?", f"{giver[0].upper()}{giver[1:]} gave $h a wish.", kind)
    t.ask("where", "where did $h meet $magic?", "$h met $magic $at_p.", "$p_n")
    t.why("did $h get a wish", "$h got a wish because $h_he helped $magic.")
    t.say(
        "{$h thought of $a_thing. $h_He thought of gold|$h could have $a_thing or a house full of"
        " gold|$h thought for a long time. $h_He wanted $a_thing so much}.",
        "But then $h thought of $f, $f_described who $ill.",
        '"{I wish|Then I wish} that $f is {happy|well}," said $h.',
        "There was a {bright|warm} light, and {from then on|from that day} $f $effect.",
    )
    t.ask("what", "what did $h want for $h_himself?", "$h wanted $a_thing.", "$thing_n")
    t.ask("who", "who did $h {think of|help with the wish}?", "$h thought of $f.", "$f")
    t.ask("what", "what happened to $f after the wish?", "After the wish, $f $effect.")
    t.either("did the wish come true?", "did $h wish for $a_thing?", "$f $effect.")
    t.tell_summary("$once, $h helped $giver and got one wish.", "$h used it for $f, who $ill.")
    finish(t, "happy|glad|rich", "the best wish is for someone else|giving is better than having")


@plot("moon in the well", times="night evening", weather="quiet clear warm", avoid="day")
def moon(t: Teller) -> None:
    """The hero takes the moon's reflection for the moon."""
    water = t.rng.choice(["pond", "well", "lake", "river", "bucket"])
    t.title, t.topics = (
        "The Moon in the $water",
        ["the moon", "a funny mistake", "the night", "the stars", "something funny", "space"],
    )
    tool = t.rng.choice(["a net", "a rope", "a bucket", "a long stick", "a ladder"])
    if water == "bucket":
        tool = "a net"
    t.words |= {"water": water, "tool": tool}
    t.say(
        "$time, $h looked into the $water. There was the moon!",
        '"{The moon has fallen into the $water|Oh no, the moon has fallen down}!" cried $h. "{I'
        " must"
        ' save it|I must get it out}!"',
        "$h {ran and got|fetched} $tool and tried {to pull it out|to catch it}.",
        "{But every time, the moon broke into pieces|Each time the water moved, and the moon"
        " was gone}.",
    )
    t.ask("what", "what did $h see in the $water?", "$h saw the moon in the $water.", "moon")
    t.ask("what", "what did $h use?", "$h used $tool.")
    t.why("did $h want to help the moon", "$h thought that the moon had fallen into the $water.")
    t.words["mood"] = t.feel("h", "sad|worried|sorry", "about the moon")
    t.say(
        '{$h was $mood.|"Poor moon," said $h. $h_He was $mood.}',
        "{Then|Just then} $f_a came by and asked what was wrong.",
        '{$f laughed and pointed up.|$f smiled and said, "Look up!"}',
        "{$h looked up. There was the moon in the sky|There, high in the sky, was the moon}{,"
        " round and"
        " bright| as always}!",
        '"{You saw only its picture in the water|The water is like a mirror}," said $f.',
    )
    t.ask("where", "where was the moon really?", "The moon was in the sky.", "sky")
    t.ask("who", "who told $h the truth?", "$f told $h the truth.", "$f")
    t.either(
        "was the moon in the sky?", "did the moon fall into the $water?", "the moon was in the sky."
    )
    t.say("{They both laughed|$h laughed too|They laughed until their bellies hurt}.")
    t.tell_summary(
        "$once, $h thought that the moon had fallen into the $water.",
        "$f showed $h_him that it was still in the sky.",
    )
    finish(t, "relieved|happy|glad", "it helps to look twice|not everything is as it seems")


@plot("greedy", trait="greedy", avoid="trait food")
def greedy(t: Teller) -> None:
    """The greedy hero eats everything, has a belly ache, and is forgiven."""
    t.title, t.topics = (
        "Too Much",
        ["a greedy $h_kind", "eating too much", "being greedy", "food", "something funny"],
    )
    t.name_friend()
    amount = t.rng.choice(["ten", "twelve", "twenty", "thirty"])
    treat = t.rng.choice(["pancakes", "cookies", "plums", "cherries", "buns", "pears"])
    t.words |= {"amount": amount, "treat": treat}
    t.say(
        "$time, $f, $f_described, brought $amount $treat for {a party|everyone} $at_p.",
        '"{They are for all of us|Please wait for the others}," said $f{| and went to get some'
        " water}.",
        '$h {looked at them|smelled them}. "{Only one|Just one little bite}," {said|thought} $h.',
        "{One became two, and two became three|Then $h_he took another one, and another one},"
        " until all"
        " the $treat were gone.",
    )
    t.ask("what", "what did $h eat?", "$h ate $amount $treat.", treat)
    t.ask("what", "how many $treat were there?", "There were $amount $treat.", amount)
    t.ask("who", "who brought the $treat?", "$f brought the $treat.", "$f")
    t.words["mood"] = t.feel("h", "ill|terrible|sick", "after eating")
    t.say(
        "{Then $h felt very $mood|Soon $h_he felt $mood}. {$h_s belly hurt|$h could not move"
        " any more}.",
        '"{What happened|Where are the $treat}?" asked $f. {$h looked at the ground|$h turned'
        ' red}. "I'
        ' ate them all. {I am sorry|Forgive me}."',
        "{$f was not happy, but made $h a cup of tea|$f shook $f_his head and gave $h some tea}.",
        "The next {day|morning}, $h {worked hard|got up early} and made new $treat for everyone.",
    )
    t.why("was $h {ill|unwell}", "$h was ill because $h_he ate all the $treat.")
    t.ask("what", "what did $h do the next day?", "The next day, $h made new $treat.")
    t.either("did $h say sorry?", "did $h share the $treat?", "$h ate them all and said sorry.")
    t.tell_summary(
        "$once, $h ate all the $treat that $f had brought.",
        "$h_He felt $mood, said sorry, and made new $treat.",
    )
    finish(t, "better|happy|sorry", "enough is as good as a feast|it is better to share")
