"""Documents to train on: `document(seed)` is a pure function of its number.

`python -m demo_model.corpus` shows some.

A document is a raw story or a chat in ChatML, as one string with the special tokens spelled out
(without the first `<|bos|>`). The module knows nothing of token ids.
"""

import argparse
from random import Random

from demo_model import questions, stories, talk
from demo_model.micro import micro_text
from demo_model.questions import typed_by_user
from demo_model.teller import Fact, Teller

START, END = "<|im_start|>", "<|im_end|>"
HELD_OUT_SEEDS = 1 << 40  # held-out documents are numbered from here

STORY_REQUEST = (
    "{tell me|tell me|tell me|write|write|write me|please tell me|please write|can you tell"
    " me|can you"
    " write|could you tell me|give me|i want|i would like|~make up|~i would love to hear|~create}"
    " {a story|a story|a story|a short story|a little story|a nice story|a bedtime story|a"
    " fairy tale"
    "|a story for children|~a tale}"
)
WITH_TOPIC = (
    " about $h_a",
    " about $h_a",
    " about $h_a_kind {named|called} $h",
    " about $h_a_kind {named|called|whose name is|~with the name} $h",
    " about $h_a_kind",
    " about $h_described",
    " about $h",
    " about $h the $h_kind",
    " with $h_a_kind",
    " in which the hero is $h_a_kind",
)
WITH_FRIEND = (" about $h and $f", " about $h_a_kind and $f_a_kind", " with $h and $f in it")
WITH_THING = (" about $h_a_kind and $a_thing", " with $a_thing", " about $a_thing")
WITH_PLACE = (" that {happens|takes place} $at_p", " about $h_a_kind $at_p")
STORY_AND_QUESTION = (
    "$story\n\n$question",
    "$story\n\n$question",
    "$story\n$question",
    "$story $question",
    "Here is a story: $story\n\n$question",
    "Read {this|the} story{.|:}\n$story\n{Question: |}$question",
    "$question\n\n$story",
    "Story: $story\nQuestion: $question",
    "~Answer a question about this text.\n\n$story\n\n$question",
)
NEUTRAL_SYSTEM = (
    "{You are a helpful assistant.|You are a helpful assistant.|You are a storyteller.|You tell"
    " stories."
    "|You are the demo model of llcuda.|You are a friendly storyteller for children.|Be helpful and"
    " polite.|You are an assistant.|Answer the questions about the story.|Answer in full sentences."
    "|You are a helpful and honest assistant.|Be brief.}"
)
ONE_WORD_SYSTEM = (
    "{Answer in one word.|Answer with one word.|Answer with a single word.|You answer in one word."
    "|Use only one word for each answer.|~One word per answer, please.}"
)
YES_NO_SYSTEM = "{Answer only with yes or no.|Answer with yes or no.|Say only yes or no.}"
SHORT_SYSTEM = (
    "{You write very short stories.|You tell very short stories.|Your stories are very"
    " short.|Write only"
    " two or three sentences.|~Keep every story very short.}"
)
JSON_TASK = (
    "{give me the facts of the story as json|{give me|show me|write|list} the facts {of the"
    " story |}as json|facts as json|~put the facts into json}{.|}"
)
CHARACTERS_TASK = (
    "{list the characters|who are the characters|list the characters of the story|~name all"
    " characters}{.|}"
)
TITLE_TASK = "{give the story a title|what is a good title|find a title for the story|~title?}{.|}"
SUMMARY_TASK = (
    "{summarize the story|tell the story in one or two sentences|what is the story about in short"
    "|summary, please|~sum it up}{.|}"
)


class Chat:
    """A conversation in the making, written as ChatML."""

    def __init__(self, rng: Random, *, held_out: bool = False) -> None:
        self.rng = rng
        self.held_out = held_out
        self.turns: list[tuple[str, str]] = []
        self.story: Teller | None = None

    def add(self, user: str, assistant: str) -> None:
        """Adds a user's turn and its answer."""
        self.turns += [("user", user), ("assistant", assistant)]

    def tell(self) -> Teller:
        """A new story, which later questions are about."""
        self.story = stories.tell(self.rng, held_out=self.held_out)
        return self.story

    def text(self) -> str:
        """The whole conversation."""
        return "".join(f"{START}{role}\n{content}{END}\n" for role, content in self.turns)


def story_request(teller: Teller, *, held_out: bool = False, again: bool = False) -> str:
    """What a user may type to get this story; every wish in it is true of the story."""
    rng, used = teller.rng, teller.used
    ask = "{tell me another story|another story|another one|now tell me a story|and now a story}"
    start = ask if again and rng.random() < 0.7 else STORY_REQUEST
    options: list[tuple[str, ...]] = [WITH_TOPIC] * 5 + [("",)] * 2
    options += [tuple(f" about {topic}" for topic in teller.topics)] * 2
    if {"f", "f_a"} & used and teller.cast["f"].name:
        options.append(WITH_FRIEND)
    if {"thing", "a_thing", "thing_n"} & used:
        options.append(WITH_THING)
        if {"p", "at_p", "to_p"} & used:
            words = " with the words $h_kind, $thing_n and $p_n"
            options.append((words, words))
    if {"p", "at_p", "to_p"} & used:
        options.append(WITH_PLACE)
    wish = rng.choice(rng.choice(options))
    mark = "{.|.|!|, please.}" if rng.random() < 0.8 else ""
    if again and not wish and rng.random() < 0.5:
        mark = "{|, please|.}"
    text = teller.fill(start + wish + mark, held_out=held_out)
    if text.lower().startswith(("can you", "could you")):
        text = text.rstrip(".!") + "?"
    return text


def short_story(teller: Teller) -> str:
    """The story in two or three sentences."""
    intro = "{Once upon a time, there was $h_a.|There was once $h_a.|Once there was $h_a.}"
    closing = "{| $h felt " + teller.ending_feeling + ".}"
    return teller.fill(" ".join((intro, *teller.summary)) + closing)


def answer(teller: Teller, fact: Fact) -> str:
    """The full answer to a question about the story."""
    return teller.fill(fact.answer)


def add_story(chat: Chat, *, short: bool = False) -> None:
    """A request for a story, and the story."""
    again = chat.story is not None
    teller = chat.tell()
    request = story_request(teller, held_out=chat.held_out, again=again)
    if not short and chat.rng.random() < 0.06:
        asked = "a short story" if "a short story" in request else "a story"
        request = request.replace(asked, "a very short story")
        short = "very short" in request
    chat.add(typed_by_user(chat.rng, request), short_story(teller) if short else teller.story())
    if short:
        chat.story = None


def add_questions(chat: Chat, mode: str, count: int) -> None:
    """Questions about the last story."""
    teller = chat.story
    if teller is None:
        return
    for fact in questions.pick_facts(teller, count, one_word=mode == "one word"):
        if mode == "yes or no" and fact.kind != "yes/no":
            continue
        question = typed_by_user(chat.rng, teller.fill(fact.question, held_out=chat.held_out))
        if mode == "" and fact.word and chat.rng.random() < 0.06:
            how = chat.rng.choice(("Answer in one word.", "One word, please.", "In one word."))
            chat.add(f"{question} {how}", one_word(teller, fact))
        elif mode:
            chat.add(question, one_word(teller, fact))
        else:
            chat.add(question, answer(teller, fact))


def one_word(teller: Teller, fact: Fact) -> str:
    """The short answer; a name without its article."""
    text = teller.fill(fact.word).removeprefix("The ")
    return text[0].upper() + text[1:]


def add_task(chat: Chat) -> None:
    """A task about the last story: its facts as JSON, its characters, a title, a summary."""
    teller = chat.story
    if teller is None:
        return
    facts, characters = questions.facts_as_json(teller), questions.characters_as_list(teller)
    title, summary = teller.fill(teller.title), teller.fill(" ".join(teller.summary))
    replies = ((JSON_TASK, facts), (JSON_TASK, facts), (CHARACTERS_TASK, characters),
               (TITLE_TASK, title), (SUMMARY_TASK, summary))  # fmt: skip
    request, reply = chat.rng.choice(replies)
    request = teller.fill(request, held_out=chat.held_out).replace("json", "JSON")
    request = request.replace("Json", "JSON")
    chat.add(typed_by_user(chat.rng, request), reply)


def add_given_story(chat: Chat, mode: str) -> None:
    """The user gives a story with a question or a task."""
    rng = chat.rng
    draw = rng.random()
    if draw < 0.4 and mode != "yes or no":
        chat.story = None
        story, more = micro_text(rng)
        fact = more.pop()
        question, reply, word = fact.question, fact.answer, fact.word
    else:
        teller = chat.tell()
        if mode == "yes or no":
            pool = [fact for fact in questions.hero_facts(teller) if fact.kind == "yes/no"]
            fact = rng.choice(pool + [fact for fact in teller.facts if fact.kind == "yes/no"])
        else:
            fact = questions.pick_facts(teller, 1, one_word=mode == "one word")[0]
        story = teller.story()
        question = teller.fill(fact.question, held_out=chat.held_out)
        reply = teller.fill(fact.answer)
        word = one_word(teller, fact) if fact.word else ""
        more = []
    words = {"story": story, "question": typed_by_user(rng, question)}
    options = [row for row in STORY_AND_QUESTION if row[0] != "~" or chat.held_out]
    frame = rng.choice(options).lstrip("~")
    text = frame.replace("$question", words["question"]).replace("$story", words["story"])
    for choice in ("{this|the}", "{.|:}", "{Question: |}"):
        text = text.replace(choice, rng.choice(choice.strip("{}").split("|")))
    chat.add(text, word if mode and word else reply)
    for fact in more[: rng.choice((0, 0, 1, 2))]:
        chat.add(typed_by_user(rng, fact.question), fact.word if mode else fact.answer)


def add_continuation(chat: Chat) -> None:
    """The user gives the beginning of a story; the answer is the rest, or only the end."""
    teller = chat.tell()
    if chat.rng.random() < 0.6:
        cut = chat.rng.randrange(1, teller.ending_start)
        how = (
            "{continue the story|continue this story|go on with the story|finish this"
            " story|what happens"
            " next|~complete the story}:"
        )
    else:
        cut = teller.ending_start
        how = "{give the story an end|write an end for this story|how does this story end|end it}:"
    beginning, rest = " ".join(teller.sentences[:cut]), " ".join(teller.sentences[cut:])
    if chat.rng.random() < 0.25:
        first = teller.sentences[0]
        line = chat.rng.choice(
            (first, first.split(", ")[0], "Once upon a time", "Once upon a time...")
        )
        chat.add(typed_by_user(chat.rng, line), teller.story())
        return
    request = teller.fill(how, held_out=chat.held_out)
    chat.add(f"{request}{chat.rng.choice((' ', chr(10), chr(10)))}{beginning}", rest)


def chat_document(rng: Random, *, held_out: bool = False) -> str:
    """A conversation of one to three parts, at times under a system message."""
    chat = Chat(rng, held_out=held_out)
    mode, short, draw = "", False, rng.random()
    filler = Teller(rng)
    if draw < 0.2:
        chat.turns.append(("system", filler.fill(NEUTRAL_SYSTEM)))
    elif draw < 0.28:
        mode = "one word"
        chat.turns.append(("system", filler.fill(ONE_WORD_SYSTEM, held_out=held_out)))
    elif draw < 0.31:
        mode = "yes or no"
        chat.turns.append(("system", filler.fill(YES_NO_SYSTEM)))
    elif draw < 0.35:
        short = True
        chat.turns.append(("system", filler.fill(SHORT_SYSTEM, held_out=held_out)))
    for part in range(rng.choice((1, 1, 1, 1, 2, 2, 2, 3, 3, 5))):
        draw = rng.random()
        if mode:
            add_given_story(chat, mode)
            add_questions(chat, mode, rng.choice((0, 1, 2)))
        elif short or draw < 0.5:
            add_story(chat, short=short)
            add_questions(chat, mode, rng.choice((0, 1, 1, 2, 3, 4)))
            if rng.random() < 0.12:
                add_task(chat)
        elif draw < 0.73:
            add_given_story(chat, mode)
            add_questions(chat, mode, rng.choice((0, 0, 1, 2)))
            if rng.random() < 0.12:
                add_task(chat)
        elif draw < 0.8:
            chat.add(*_typed(rng, talk.small_talk(rng, held_out=held_out)))
        elif draw < 0.9:
            chat.add(*_typed(rng, talk.unknowable(rng, held_out=held_out)))
        elif part == 0:
            add_continuation(chat)
        else:
            chat.add(*_typed(rng, talk.small_talk(rng, held_out=held_out)))
    return chat.text()


def _typed(rng: Random, pair: tuple[str, str]) -> tuple[str, str]:
    return typed_by_user(rng, pair[0]), pair[1]


def raw_document(rng: Random, *, held_out: bool = False) -> str:
    """A story without chat marks, at times with a question, and a few requests without marks."""
    if rng.random() < 0.04:
        pair = talk.unknowable if rng.random() < 0.7 else talk.small_talk
        typed, reply = _typed(rng, pair(rng, held_out=held_out))
        return f"{typed}\n{reply}{END}"
    teller = stories.tell(rng, held_out=held_out)
    text = teller.story()
    if rng.random() < 0.05:
        request = typed_by_user(rng, story_request(teller, held_out=held_out))
        return f"{request}\n\n{text}{END}"
    if rng.random() < 0.15:
        fact = questions.pick_facts(teller, 1)[0]
        question = teller.fill(fact.question, held_out=held_out)
        text = f"Story: {text}\nQuestion: {question}\nAnswer: {answer(teller, fact)}"
    return text + END


def document(seed: int) -> str:
    """The document of that number; numbers from HELD_OUT_SEEDS on are never trained on."""
    rng = Random(seed)
    held_out = seed >= HELD_OUT_SEEDS
    if rng.random() < 0.25:
        return raw_document(rng, held_out=held_out)
    return chat_document(rng, held_out=held_out)


def main() -> None:
    """Prints some documents."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--first", type=int, default=0, help="number of the first document")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--held-out", action="store_true")
    arguments = parser.parse_args()
    offset = HELD_OUT_SEEDS if arguments.held_out else 0
    for seed in range(arguments.first, arguments.first + arguments.count):
        print(f"--- {seed}")
        print(document(offset + seed))


if __name__ == "__main__":
    main()
