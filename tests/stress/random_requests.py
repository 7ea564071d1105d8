"""Random engine requests on tiny models, each answer compared with a fresh engine's.

    python -m tests.stress.random_requests --requests 20000    # the whole run, in child processes
    python -m tests.stress.random_requests --session 17        # one session, in this process
    python -m tests.stress.random_requests --replay FILE       # a session that a failure printed

A session is one engine with random settings, and rounds of requests from several threads. The
reference is an engine of one slot that is made for the request, with the same adapters. Tokens,
text, finish reason and counters have to be equal. With batch_invariant=True so have
log-probabilities, bit for bit. Otherwise they may differ by the rounding that "What makes a text
the same again" (docs/decisions.md) describes, and a token where rounding decides: the sampler
chooses it too when it gets the fresh engine's logits with noise of that size.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import pprint
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llcuda import Adapter, Context, Engine, Model, Sampler
from llcuda.chat.session import ChatCompletion
from llcuda.chat.session import start as start_chat
from llcuda.engine.outputs import Completion, TokenLogprob
from llcuda.engine.request import RequestParams, kept_tokens, request_params
from llcuda.errors import ArgumentError, LlcudaError, QueueFullError
from llcuda.structured import compile_response_format
from tests.stress.children import run_in_children
from tests.support import models

KINDS = ("llama", "gemma3", "mamba", "lfm2", "qwen2vl")
WINDOWS = ("gemma3", "lfm2")  # have a sliding window
# What a log-probability may differ by: four times the most that 20,000 requests have shown.
ROUNDING = {"llama": 1e-4, "gemma3": 5e-3, "mamba": 1e-4, "lfm2": 1e-4, "qwen2vl": 1e-4}
F16_CELLS = 200  # times as much: each shift rounds the keys again
WAIT = 120.0  # seconds for any answer

Spec = dict[str, Any]  # literals only, so that a failure prints what runs again

_LINES = (
    "the and a in on one sea hat cat fox red blue tree the cat and the hat on a sea then there was",
    "another thing that he saw when she went out into the forest 12 3.5 [1, 2] yes no maybe : ; (",
)
WORDS = [word for line in _LINES for word in line.split()]
WORDS += ['{"a": 1}', "émile", "日本", "🦊", "\n\n", "<|user|>", "<|assistant|>"]

TOOLS: list[Spec] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look at a place.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"enum": ["sea", "tree"]}, "far": {"type": "boolean"}},
                "required": ["place"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "count",
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
                "required": ["n"],
                "additionalProperties": False,
            },
        },
    },
]
TOOL_TEMPLATE = (
    "{% if tools %}<|user|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}Answer with "
    '<tool_call>{"name": ..., "arguments": ...}</tool_call>{% endif %}'
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for call in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}{% endfor %}<|assistant|>"
)

FORMATS: list[Spec] = [
    {"type": "choice", "choices": ["yes", "no", "maybe the sea"]},
    {"type": "choice", "choices": ["the red fox", "the red hat", "the blue hat and the cat"]},
    {"type": "regex", "regex": "[a-c]{3,12}"},
    {"type": "regex", "regex": "(the|a) (cat|fox) (saw|was) [0-9]{1,3}"},
    {"type": "regex", "regex": "é{1,4}日?"},
    {"type": "json_object"},
    {
        "type": "json_schema",
        "json_schema": {
            "schema": {
                "type": "object",
                "properties": {
                    "name": {"enum": ["Tom", "Mia"]},
                    "age": {"type": "integer", "minimum": 1, "maximum": 99},
                    "red": {"type": "boolean"},
                },
                "required": ["name", "age", "red"],
                "additionalProperties": False,
            }
        },
    },
    {
        "type": "json_schema",
        "json_schema": {
            "schema": {"type": "array", "items": {"enum": [1, 22, None]}, "maxItems": 4}
        },
    },
    {"type": "gbnf", "grammar": 'root ::= ("a" | "bb")+ "." [0-9]?'},
    {"type": "lark", "grammar": 'start: "sea" /[a-z ]{1,9}/ "!"'},
]
GRAMMARS = [
    'root ::= [a-z ]+ "." root?',
    'root ::= "the " ("cat" | "fox") [ a-z]*',
    "root ::= [^a-m]{1,30}",
]


# --- planning: a session from a number ---


def session(seed: int) -> Spec:
    """Return the session of a number, as literals."""
    dice = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    n_parallel = dice.choice([1, 2, 3, 4, 6, 8])
    ctx_size = dice.choice([48, 64, 96, 128, 192])
    batch_size = dice.choice([8, 9, 16, 32, 64, 128])
    settings: Spec = {
        "n_parallel": n_parallel,
        "ctx_size": ctx_size,
        "batch_size": batch_size,
        "ubatch_size": dice.choice([4, 8, 16, batch_size]),
    }
    if dice.random() < 0.5:
        settings["cache_size"] = ctx_size * (n_parallel + dice.choice([1, 2, 5]))
    if dice.random() < 0.15:
        settings["type_k"] = settings["type_v"] = "f16"
    else:
        settings["type_k"] = settings["type_v"] = "f32"
    if dice.random() < 0.3:
        settings["speculation"] = dice.choice([1, 2, 4, 7])
    elif dice.random() < 0.35 and (kind not in ("mamba", "lfm2") or n_parallel == 1):
        settings["device_logits"] = True
    shifts = kind in ("llama", "gemma3")
    if kind == "gemma3" and dice.random() < 0.4 and not settings.get("speculation"):
        settings["swa_full"] = shifts = False  # the memory shifts in small contexts only
    if dice.random() < 0.15:
        settings["unified_kv"] = True
        shifts = shifts and kind != "gemma3"
    if dice.random() < 0.1:
        settings["queue_size"] = dice.choice([1, 2, 4])
    if dice.random() < 0.3 and not settings.get("unified_kv"):
        settings["batch_invariant"] = True
    if not settings.get("batch_invariant") or dice.random() < 0.5:
        settings["flash_attention"] = False
    exact = "batch_invariant" in settings
    trunks = [_words(dice, dice.randint(3, ctx_size // 4)) for _ in range(3)]
    rounds: list[Spec] = []
    for number in range(dice.randint(3, 7)):
        adapters = dice.choice([None, None, None, 0.0, 0.5, 1.0, 1.0, -2.0])
        requests = [
            _request(dice, trunks, shifts, exact, ctx_size, number)
            for _ in range(dice.choice([1, 2, 3, 5, 8, 12, 16]))
        ]
        rounds.append(
            {
                "adapters": adapters,
                "held": dice.random() < 0.4,
                "threads": dice.choice([1, 1, 2, 3, 4]),
                "reload": dice.random() < 0.15 and not (exact and kind in WINDOWS),
                "mixed": dice.random() < 0.08,
                "requests": requests,
            }
        )
    return {"seed": seed, "kind": kind, "settings": settings, "rounds": rounds}


def _words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(count))


def _request(
    dice: random.Random, trunks: list[str], shifts: bool, exact: bool, ctx_size: int, number: int
) -> Spec:
    chance = dice.random()
    if chance < 0.05:
        return _bad(dice)
    if chance < 0.08:
        return {
            "call": "embed",
            "texts": [_words(dice, dice.randint(1, 9)) for _ in range(dice.randint(1, 4))],
            "pooling": dice.choice(["mean", "last"]),
        }
    if chance < 0.11:
        return {
            "call": "state",
            "prompt": _words(dice, dice.randint(2, 20)),
            "count": dice.randint(1, 12),
            "whole": dice.random() < 0.5,
            "file": dice.random() < 0.5,
        }
    spec: Spec = {"call": "submit", "parameters": _parameters(dice, shifts, exact, ctx_size)}
    if chance < 0.19:
        spec["call"] = "chat"
        spec["messages"] = [
            {"role": "user", "content": _words(dice, dice.randint(1, 8))}
            for _ in range(dice.choice([1, 1, 2]))
        ]
        if dice.random() < 0.6:
            spec["tools"] = TOOLS if dice.random() < 0.5 else TOOLS[1:]
            choices: list[Any] = ["auto", "none", "required"]
            choices.append({"type": "function", "function": {"name": "count"}})
            spec["tool_choice"] = dice.choice(choices)
            spec["parameters"].pop("response_format", None)
            spec["parameters"].pop("grammar", None)
    else:
        trunk = dice.choice(trunks)
        cut = dice.choice([len(trunk), dice.randint(1, len(trunk))])
        spec["prompt"] = trunk[:cut] + _words(dice, dice.choice([0, 0, 1, 3, 10]))
        spec["prompt"] = spec["prompt"] or "a"
        if number and dice.random() < 0.3:
            spec["after"] = dice.randrange(100)  # continue an earlier answer, as it was or shifted
            spec["shifted"] = dice.random() < 0.5
        if dice.random() < 0.1:
            spec["parse_special"] = False
        if dice.random() < 0.12:
            spec["n"] = dice.choice([2, 3, 5])
    if dice.random() < 0.12:
        spec["cancel_after"] = dice.randint(0, 12)
    elif dice.random() < 0.04:
        spec["parameters"]["timeout"] = dice.choice([1e-4, 0.003, 0.02])
    spec["reader"] = dice.choice(["result", "result", "iterate", "await", "more"])
    if dice.random() < 0.04 and "response_format" not in spec["parameters"]:
        spec["guide"] = dice.choice(["even", "raises", "forces", "short mask"])
        spec["parameters"].pop("grammar", None)
    if dice.random() < 0.05:
        spec["function"] = dice.choice(["nothing", "no repeats", "raises"])
    free = not {"response_format", "grammar"} & spec["parameters"].keys() and "guide" not in spec
    if free and spec["call"] != "chat" and dice.random() < 0.1:
        spec["parameters"]["min_tokens"] = min(
            dice.choice([1, 3, 8]), spec["parameters"]["max_tokens"]
        )
    if dice.random() < 0.1:
        spec["parameters"]["priority"] = dice.choice([-1, 0, 1])
    return spec


def _parameters(dice: random.Random, shifts: bool, exact: bool, ctx_size: int) -> Spec:
    """Return random parameters of `submit`; most of them at their defaults."""
    p: Spec = {
        "seed": dice.choice([0, 1, 7, 2**32 - 2, dice.randrange(2**32 - 1)]),
        "max_tokens": dice.choice([1, 2, 5, 10, 20, 40, ctx_size * 2]),
        "temperature": dice.choice([0, 0, 0.7, 1.0, 1.5]),
    }

    def sometimes(name: str, share: float, *values: Any) -> None:
        if dice.random() < share:
            p[name] = dice.choice(values)

    sometimes("logprobs", 0.8, 0, 1, 3, 20)
    sometimes("ignore_eos", 0.5, True)
    sometimes("top_k", 0.3, 0, 1, 5, 100)
    sometimes("top_p", 0.3, 0.5, 0.9, 1.0)
    sometimes("min_p", 0.1, 0.05, 0.2)
    sometimes("typical_p", 0.05, 0.5, 0.9)
    sometimes("top_n_sigma", 0.05, 1.0)
    sometimes("xtc_probability", 0.05, 0.5)
    sometimes("mirostat", 0.06, 1, 2)
    sometimes("dynatemp_range", 0.05, 0.5)
    if exact:  # a clone draws anew, so that no parting could be explained
        sometimes("adaptive_target", 0.05, 0.3)
    sometimes("repeat_penalty", 0.15, 1.1, 1.5, 0.8)
    sometimes("frequency_penalty", 0.12, 0.3, -0.2, 1.0)
    sometimes("presence_penalty", 0.12, 0.3, 1.0)
    sometimes("penalty_last_n", 0.12, 0, 5, 64, 1000)
    sometimes("dry_multiplier", 0.12, 0.8, 4.0)
    sometimes("dry_allowed_length", 0.05, 1, 3)
    sometimes("dry_last_n", 0.05, 8, 200)
    sometimes("stop", 0.15, ["e"], ["the", "zz"], [" a", "a ", "aa"], ["é"], "\n")
    sometimes("stop_tokens", 0.1, [101], [5, 260, 261], [32])
    sometimes("shown_tokens", 0.05, [models.BOS, models.EOS, 286, 287])
    sometimes("logit_bias", 0.1, {101: 3.0}, {97: -1e9, 98: 5.0}, {models.EOS: 6.0})
    if dice.random() < 0.12:
        p["response_format"] = dice.choice(FORMATS)
    elif dice.random() < 0.06:
        p["grammar"] = dice.choice(GRAMMARS)
    if dice.random() < 0.12:
        p["echo"] = True
        if dice.random() < 0.4:
            p["max_tokens"] = 0
    if dice.random() < 0.5:
        p["overflow"] = dice.choice(["truncate", "shift", "shift"] if shifts else ["truncate"])
        sometimes("keep", 0.5, 1, 3, 10, 30, 1000)
    if p.get("overflow") == "shift" and dice.random() < 0.5:
        p["max_tokens"] = ctx_size * 3
    return p


def _bad(dice: random.Random) -> Spec:
    """Return a request that is refused."""
    return {
        "call": "bad",
        "prompt": "the sea",
        "parameters": {"seed": 1, "max_tokens": 5},
        **dice.choice(BAD),
    }


BAD: list[Spec] = [
    {"prompt": []},
    {"prompt": ""},
    {"prompt": [models.VOCABULARY]},
    {"prompt": [-1]},
    {"prompt": ["a", "b"]},
    {"prompt": 5},
    {"prompt": "the " * 4000},
    *(
        {"parameters": p}
        for p in (
            {"max_tokens": 0},
            {"max_tokens": -1},
            {"temperature": -1},
            {"temperature": "hot"},
            {"stop": [""]},
            {"stop": 5},
            {"stop_tokens": [10**7]},
            {"logit_bias": {10**7: 1.0}},
            {"keep": 3},
            {"overflow": "burst"},
            {"timeout": -1},
            {"logprobs": 101},
            {"temprature": 1},
            {"grammar": "x"},
            {"grammar": "root ::= root"},
            {"response_format": {"type": "poem"}},
            {"response_format": {"type": "regex", "regex": "("}},
            {"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'},
            {"seed": 2**32},
            {"guide": 5},
        )
    ),
]


# --- functions and guides of one's own ---


def own_function(kind: str) -> Callable[[Any, Any], Any]:
    """Return a function over logits that changes nothing, bars the last tokens, or raises."""

    def function(tokens: Any, logits: Any) -> Any:
        if kind == "raises" and tokens[-1] % 16 == 0:
            raise LookupError("the function has had enough")
        if kind != "no repeats":
            return None
        changed = logits.copy()
        changed[tokens[-3:]] = -np.inf
        return changed

    return function


class OwnGuide:
    """Allows even tokens, forces tokens, raises after a while, or returns a wrong mask.

    Args:
        kind: Which of these.
    """

    def __init__(self, kind: str) -> None:
        self.kind, self.count = kind, 0
        words = (models.VOCABULARY + 31) // 32
        self._mask = np.full(words, 0x55555555, np.uint32)

    def mask(self) -> Any:
        """Return the even tokens."""
        if self.kind == "raises" and self.count >= 3:
            raise LookupError("the guide has had enough")
        if self.kind == "short mask" and self.count >= 2:
            return self._mask[:-1]
        return self._mask

    def accept(self, token: int) -> None:
        """Count."""
        self.count += 1

    def forced(self) -> list[int]:
        """Return the rest of three tokens that come between two others."""
        place = self.count % 4
        return [100, 102, 104][place - 1 :] if self.kind == "forces" and place else []


# --- running ---


@dataclass
class Answer:
    """What came of one request.

    Attributes:
        result: The completion, the vectors, or the exception.
        text: The text that a reader has seen.
        prompt: The tokens that were submitted; None where there are none to compare.
        params: The parameters that they were submitted with.
        message: A chat's message, without the ids of its calls.
        reason: A chat's finish reason.
    """

    result: Any
    text: str | None = None
    prompt: Any = None
    params: RequestParams | None = None
    message: Any = None
    reason: str | None = None


@dataclass
class Failure:
    """An answer that differs.

    Attributes:
        place: The round, the request, and the continuation.
        problem: What differs.
        spec: The request.
    """

    place: tuple[int, int, int]
    problem: str
    spec: Spec


@dataclass
class Report:
    """What a session found.

    Attributes:
        requests: How many answers were compared.
        failures: The answers that differ.
        parted: How many texts parted where rounding decides.
        largest: The largest difference of a log-probability.
        counts: How often each thing happened.
    """

    requests: int = 0
    failures: list[Failure] = field(default_factory=list)
    parted: int = 0
    largest: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)


class Files:
    """Model and adapter files of each kind, in a folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, kind: str) -> Path:
        """Return the model's file, written when it is first asked for."""
        path = self.folder / f"{kind}.gguf"
        builders: dict[str, Callable[[], Any]] = {**models.BUILDERS, "lfm2": models.lfm2}
        return path if path.exists() else models.write(path, *builders[kind]())

    def adapter(self, kind: str) -> Path:
        """Return the file of an adapter for that model."""
        path = self.folder / f"{kind}-lora.gguf"
        return path if path.exists() else models.write(path, *_adapter(kind))


def _adapter(kind: str) -> tuple[Spec, models.Tensors]:
    """Return metadata and tensors of an adapter for the first matrices of a tiny model."""
    metadata, _ = models.lora()
    weights = models.Weights(5)
    for name, (rows, columns) in _matrices(kind).items():
        weights.matrix(f"{name}.lora_a", 4, columns)
        weights.matrix(f"{name}.lora_b", rows, 4)
    return {**metadata, "general.architecture": kind}, weights.tensors


def _matrices(kind: str) -> dict[str, tuple[int, int]]:
    size, queries = models.EMBEDDING, models.HEADS * models.HEAD_SIZE
    if kind == "mamba":
        return {"blk.0.ssm_in.weight": (4 * size, size), "blk.1.ssm_out.weight": (size, 2 * size)}
    attention = "blk.1.attn_q.weight" if kind == "lfm2" else "blk.0.attn_q.weight"
    return {
        attention: (queries, size),
        "blk.1.ffn_down.weight": (size, models.FEED_FORWARD),
    }


class Session:
    """Runs a session and compares its answers.

    Args:
        spec: The session.
        files: The model files.
    """

    def __init__(self, spec: Spec, files: Files) -> None:
        self.spec, self.kind = spec, str(spec["kind"])
        self.settings: Spec = {"threads": 1, **spec["settings"]}
        self.files = files
        self.report = Report()
        self.rounding = ROUNDING[self.kind]
        if self.settings["type_k"] == "f16":
            self.rounding *= F16_CELLS
        # The state of one sequence leaves out what a window hides: other cells, other sums.
        self.state_rounding = self.rounding
        if self.settings.get("batch_invariant"):
            self.rounding = 0.0
            if self.kind not in WINDOWS:
                self.state_rounding = 0.0
        self._references: dict[str, Answer] = {}
        self._history: list[tuple[float, list[int]]] = []  # adapters' scale, tokens

    def run(self) -> Report:
        """Return what differs."""
        with Model(self.files.model(self.kind), gpu_layers=0) as self.model:
            self.adapter = Adapter(self.model, self.files.adapter(self.kind))
            with Engine(self.model, **self.settings) as self.engine:
                scale = 0.0
                earlier: list[Answer] = []
                for number, given in enumerate(self.spec["rounds"]):
                    if given["adapters"] is not None:
                        scale = given["adapters"]
                        with self.engine.loop.hold():
                            self.engine.context.set_adapters(self._adapters(scale))
                    answers = self._round(given, earlier, scale)
                    if given["reload"]:
                        self._reload()
                    for place, spec, answer in answers:
                        self._check((number, *place), spec, answer, scale, given["mixed"])
                        if isinstance(answer.result, Completion):
                            earlier.append(answer)
                if (reason := self.engine.loop.closed) is not None:
                    self._fail((-1, -1, -1), {}, f"the engine is closed: {reason!r}")
        return self.report

    def _adapters(self, scale: float) -> dict[Adapter, float]:
        return {self.adapter: scale} if scale else {}

    def _fail(self, place: tuple[int, int, int], spec: Spec, problem: str) -> None:
        self.report.failures.append(Failure(place, problem, spec))

    # --- a round ---

    def _round(
        self, given: Spec, earlier: list[Answer], scale: float
    ) -> list[tuple[tuple[int, int], Spec, Answer]]:
        """Return the answers of a round, asked by its threads."""
        answers: list[tuple[tuple[int, int], Spec, Answer]] = []
        specs = list(enumerate(given["requests"]))
        count = given["threads"]
        if given["held"]:
            with self.engine.loop.hold():
                waits = [(i, spec, self._ask(spec, earlier)) for i, spec in specs]
            for i, spec, wait in waits:
                answers += [((i, j), spec, answer) for j, answer in enumerate(wait())]
            return answers

        def client(share: list[tuple[int, Spec]]) -> None:
            for i, spec in share:
                try:
                    found = self._ask(spec, earlier)()
                except BaseException as error:
                    self._fail((-1, i, -1), spec, f"{error!r}")
                    raise
                answers.extend(((i, j), spec, answer) for j, answer in enumerate(found))

        threads = [threading.Thread(target=client, args=(specs[k::count],)) for k in range(count)]
        for thread in threads:
            thread.start()
        if given["mixed"]:  # the answers of this round are of both adapters
            time.sleep(0.005)
            self._set_adapters_beside(1.5)
            time.sleep(0.005)
            self._set_adapters_beside(scale)
        for thread in threads:
            thread.join()
        return sorted(answers, key=lambda item: item[0])

    def _set_adapters_beside(self, scale: float) -> None:
        with self.engine.loop.hold():
            self.engine.context.set_adapters(self._adapters(scale))

    def _reload(self) -> None:
        """Save and load what the engine's context holds, which has to change nothing.

        The state of one sequence leaves out what a sliding window hides, a context's does not.
        """
        context = self.engine.context
        sequences = range(context.params.sequences)
        windows = self.kind in WINDOWS
        with self.engine.loop.hold():
            before = [context.memory.range(seq) for seq in sequences]
            for seq in [None] if windows else sequences:
                if seq is None or len(before[seq]):
                    context.memory.load(context.memory.save(seq), seq)
                    self.report.counts["reloaded"] += 1
            after = [context.memory.range(seq) for seq in sequences]
        if before != after:
            self._fail((-1, -1, -1), {}, f"positions after load: {after}, before: {before}")

    def _prompt(self, spec: Spec, earlier: list[Answer]) -> Any:
        prompt = spec["prompt"]
        if "after" in spec and earlier:
            answer = earlier[spec["after"] % len(earlier)]
            rest = self.model.tokenize(prompt, add_special=False)[:20]
            tokens = [*answer.prompt, *answer.result.tokens]
            if spec["shifted"]:
                tokens = self._shifted(answer)
            return [*tokens, *rest]
        return prompt

    def _shifted(self, answer: Answer) -> list[int]:
        """Return what shifts have left of a text in the cache."""
        limit, params = int(self.settings["ctx_size"]), answer.params
        tokens = list(answer.prompt)
        for token in answer.result.tokens:
            tokens.append(token)
            if params is not None and len(tokens) >= limit and params.overflow == "shift":
                begin = kept_tokens(params, self.model.adds_bos, limit)
                del tokens[begin : begin + (len(tokens) - 1 - begin) // 2]
        return tokens[: limit - 1]

    def _ask(self, spec: Spec, earlier: list[Answer]) -> Callable[[], list[Answer]]:
        """Submit a request; return what waits for its answers."""
        call = spec["call"]
        if call == "embed":
            return lambda: [self._embed(self.engine.embed, spec)]
        if call == "state":
            return lambda: [Answer(None)]
        prompt = None if call == "chat" else self._prompt(spec, earlier)
        try:
            handles = submit(self.engine, spec, prompt)
        except Exception as error:
            refused = [Answer(error, prompt=prompt)]
            return lambda: refused
        return lambda: [self._read(handle, spec, prompt) for handle in handles]

    def _read(self, handle: Any, spec: Spec, prompt: Any) -> Answer:
        answer = Answer(None, prompt=self._tokens(prompt, spec))
        answer.params = handle.request.params if spec["call"] == "chat" else handle.params
        try:
            result = read(handle, spec, answer)
        except Exception as error:
            answer.result = error
            return answer
        if isinstance(result, ChatCompletion):
            answer.message, answer.reason = _without_ids(result.message), result.finish_reason
            result = result.completion
        answer.result = result
        return answer

    def _tokens(self, prompt: Any, spec: Spec) -> list[int]:
        if isinstance(prompt, str):
            special = spec.get("parse_special", True)
            return self.model.tokenize(prompt, parse_special=special)
        return list(prompt) if isinstance(prompt, list) else []

    @staticmethod
    def _embed(call: Callable[..., Any], spec: Spec) -> Answer:
        try:
            return Answer(call(spec["texts"], pooling=spec["pooling"]))
        except Exception as error:
            return Answer(error)

    # --- the reference ---

    @contextmanager
    def _fresh(self, scale: float) -> Iterator[Engine]:
        """Make an engine of one slot that has answered nothing."""
        plain = {
            name: value
            for name, value in self.settings.items()
            if name not in ("cache_size", "speculation", "device_logits", "queue_size")
        }
        with Engine(self.model, **{**plain, "n_parallel": 1, "unified_kv": False}) as engine:
            engine.context.set_adapters(self._adapters(scale))
            yield engine

    def _reference(self, spec: Spec, prompt: Any, number: int, scale: float) -> Answer:
        """Return a fresh engine's answer to one request."""
        spec = {k: v for k, v in spec.items() if k not in ("cancel_after", "n", "after")}
        parameters = dict(spec.get("parameters", {}))
        if spec["call"] != "bad":
            parameters.pop("timeout", None)
        if number:
            parameters["seed"] = (parameters["seed"] + number) % (2**32 - 1)
        if "parameters" in spec:
            spec = {**spec, "parameters": parameters, "reader": "result"}
        key = repr((spec, prompt, scale))
        if key not in self._references:
            with self._fresh(scale) as engine:
                if spec["call"] == "embed":
                    self._references[key] = self._embed(_embed_alone(engine), spec)
                else:
                    try:
                        [handle] = submit(engine, spec, prompt)
                    except Exception as error:
                        self._references[key] = Answer(error, prompt=prompt)
                    else:
                        self._references[key] = self._read(handle, spec, prompt)
        return self._references[key]

    # --- comparing ---

    def _check(
        self, place: tuple[int, int, int], spec: Spec, got: Answer, scale: float, mixed: bool
    ) -> None:
        report, counts = self.report, self.report.counts
        report.requests += 1
        counts[spec["call"]] += 1
        if spec["call"] == "state":
            if problem := self._state(spec, scale):
                self._fail(place, spec, problem)
            return
        if isinstance(got.result, QueueFullError) and "queue_size" in self.settings:
            counts["queue full"] += 1
            return
        if mixed and spec["call"] != "bad":
            counts["mixed adapters"] += 1
            foreign = isinstance(got.result, Exception) and not isinstance(got.result, LlcudaError)
            if foreign and not {"guide", "function"} & spec.keys():
                self._fail(place, spec, f"{got.result!r}")
            if isinstance(got.result, Completion):
                self._remember(got, float("nan"))
            return
        if "n" in spec and "guide" in spec:
            want: Answer = Answer(ArgumentError("guide"))
            problem = "" if isinstance(got.result, ArgumentError) else f"{got.result!r}"
        else:
            want = self._reference(spec, self._original(got, spec), place[2], scale)
            problem = self._difference(spec, got, want, scale)
        if problem:
            self._fail(place, spec, problem)
        if isinstance(got.result, Completion):
            counts[got.result.finish_reason] += 1
            counts["cached tokens"] += got.result.cached_tokens
            if not problem:
                self._check_counters(place, spec, got, scale)
            self._remember(got, scale)
        elif isinstance(got.result, Exception):
            counts[type(got.result).__name__] += 1

    @staticmethod
    def _original(got: Answer, spec: Spec) -> Any:
        if "after" in spec or spec["call"] == "bad":
            return got.prompt
        return spec.get("prompt")

    def _remember(self, got: Answer, scale: float) -> None:
        prompt = list(got.prompt)
        if got.result.dropped_tokens:
            return  # its beginning is known to the engine only
        self._history.append((scale, prompt + list(got.result.tokens)))

    def _check_counters(
        self, place: tuple[int, int, int], spec: Spec, got: Answer, scale: float
    ) -> None:
        done = got.result
        limit = done.prompt_tokens - 1
        if spec["parameters"].get("echo"):
            limit = 0
        if not 0 <= done.cached_tokens <= limit:
            self._fail(place, spec, f"cached_tokens={done.cached_tokens}, limit {limit}")
        if not 0 <= done.forced_tokens <= len(done.tokens):
            self._fail(place, spec, f"forced_tokens={done.forced_tokens}")
        times = done.queue_seconds, done.prefill_seconds, done.decode_seconds
        if min(times) < 0 or abs(sum(times) - done.latency_seconds) > 1e-6:
            self._fail(place, spec, f"times {times}, {done.latency_seconds}")

    def _difference(self, spec: Spec, got: Answer, want: Answer, scale: float) -> str:
        """Return what differs beyond rounding; "" for nothing."""
        a, b = got.result, want.result
        if isinstance(a, Exception) or isinstance(b, Exception):
            if type(a) is type(b) and str(a) == str(b):
                return ""
            ended = isinstance(a, Completion) and a.finish_reason in ("cancelled", "timeout")
            return "" if ended else f"{_short(a)}, fresh: {_short(b)}"
        if isinstance(b, np.ndarray):
            if a.shape == b.shape and self._close(a, b):
                return ""
            return f"vectors differ by {np.abs(a - b).max() if a.shape == b.shape else a.shape}"
        for name in ("prompt_tokens", "dropped_tokens", "seed"):
            if getattr(a, name) != getattr(b, name):
                return f"{name}={getattr(a, name)}, fresh: {getattr(b, name)}"
        problem = self._scores(a.prompt_logprobs, b.prompt_logprobs, "prompt_logprobs")
        if problem and a.finish_reason not in ("cancelled", "timeout"):
            return problem
        common = _common(a.tokens, b.tokens)
        scores = [(c.logprobs or [])[:common] for c in (a, b)]
        if problem := self._scores(*scores, "logprobs"):
            return problem
        if got.text is not None and got.text != a.text:
            return f"a reader got {got.text!r}, the text is {a.text!r}"
        if a.finish_reason in ("cancelled", "timeout"):
            text = a.text.rstrip("\ufffd")
            if common == len(a.tokens) and b.text.startswith(text):
                return ""
            if common == len(a.tokens) and "stop" in spec["parameters"]:
                return ""  # the beginning of a stop text is shown at an early end
        if a.tokens == b.tokens:
            for name in ("text", "finish_reason"):
                if getattr(a, name) != getattr(b, name):
                    return f"{name}={getattr(a, name)!r}, fresh: {getattr(b, name)!r}"
            if (got.message, got.reason) != (want.message, want.reason):
                return f"{got.message} {got.reason}, fresh: {want.message} {want.reason}"
            return ""
        if self.rounding and self._is_rounding(spec, got, b, common, scale):
            self.report.parted += 1
            return ""
        rests = [tokens[common : common + 5] for tokens in (a.tokens, b.tokens)]
        return f"tokens part at {common}: {rests[0]}, fresh: {rests[1]}"

    def _close(self, a: Any, b: Any) -> bool:
        return np.allclose(a, b, rtol=0, atol=self.rounding)

    def _same_scores(self, a: Any, b: Any) -> bool:
        return np.allclose(a, b, rtol=0, atol=self.state_rounding)

    def _scores(
        self, got: list[TokenLogprob] | None, want: list[TokenLogprob] | None, name: str
    ) -> str:
        if got is None or want is None:
            return "" if got is want else f"{name}: {got}, fresh: {want}"
        if len(got) != len(want):
            return f"{len(got)} {name}, fresh: {len(want)}"
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            values = [(a.logprob, b.logprob)]
            values += [(x, y) for (_, x), (_, y) in zip(a.top, b.top, strict=False)]
            for x, y in values:
                if self.rounding and not np.isinf(x):
                    self.report.largest = max(self.report.largest, abs(x - y) / self.rounding)
            if a.token != b.token or len(a.top) != len(b.top):
                return f"{name}[{i}]={a}, fresh: {b}"
            if not self._close([x for x, _ in values], [y for _, y in values]):
                return f"{name}[{i}]={a}, fresh: {b}"
            theirs = dict(b.top)
            least = min(theirs.values(), default=0.0)
            for token, value in a.top:
                other = theirs.get(token, least)
                if abs(value - other) > 2 * self.rounding:
                    return f"{name}[{i}]: {a}, fresh: {b}"
        return ""

    def _is_rounding(
        self, spec: Spec, got: Answer, want: Completion, common: int, scale: float
    ) -> bool:
        """Whether noise in a fresh context's logits makes the sampler choose both next tokens."""
        tokens = [*want.tokens[:common]]
        nexts = {t[common] if common < len(t) else None for t in (got.result.tokens, want.tokens)}
        chosen: set[int] = set()
        prompt = got.prompt
        parameters = {k: v for k, v in spec["parameters"].items() if k != "timeout"}
        response_format = parameters.pop("response_format", None)
        guide: Any = OwnGuide(spec["guide"]) if "guide" in spec else None
        if spec["call"] == "chat":
            prompt, guide = self._chat_prompt(spec)
        elif response_format is not None:
            grammar = compile_response_format(self.model, response_format)
            guide = grammar.guide() if grammar is not None else None
        parameters.setdefault("max_tokens", 1)
        params, sampling = request_params({**parameters, "seed": want.seed})
        fields = {n: getattr(sampling, n) for n in type(sampling).__dataclass_fields__}
        if params.ignore_eos:
            fields["logit_bias"] = {
                **fields["logit_bias"],
                **dict.fromkeys(self.model.eog_tokens, -1e30),
            }
        sampler = Sampler(model=self.model, **fields)
        names = ("ctx_size", "batch_size", "ubatch_size", "type_k", "type_v", "swa_full", "threads")
        sizes = {n: self.settings[n] for n in names if n in self.settings}
        context = Context(self.model, flash_attention=False, **sizes)
        with context:
            context.set_adapters(self._adapters(scale))
            sequence = self._fitting(list(prompt), params)
            sampler.accept_prompt(sequence)
            context.decode(sequence)
            ends = [*self.model.eog_tokens, *params.stop_tokens]
            for i, token in enumerate([*tokens, None]):
                logits = context.logits().copy()
                if spec.get("function") == "no repeats":
                    logits[sequence[-3:]] = -np.inf
                if i < params.min_tokens:
                    logits[ends] = -np.inf
                forced = list(getattr(guide, "forced", list)())
                if guide is not None and not forced:
                    mask = guide.mask()
                    if mask is not None:
                        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
                        logits[bits[: len(logits)] == 0] = -np.inf
                if token is None:
                    if forced:
                        return False
                    chosen = {choice for choice, _ in self._choices(sampler, logits)}
                    break
                if forced:
                    sampler.accept(token)
                else:
                    choices = self._choices(sampler, logits)
                    following = (after for choice, after in choices if choice == token)
                    if (after := next(following, None)) is None:
                        return False
                    sampler = after
                if guide is not None:
                    guide.accept(token)
                sequence.append(token)
                if len(sequence) >= context.ctx_size and params.overflow == "shift":
                    begin = kept_tokens(params, self.model.adds_bos, context.ctx_size)
                    end = begin + (len(sequence) - 1 - begin) // 2
                    context.memory.remove(0, begin, end)
                    context.memory.shift(begin - end, 0, end)
                    del sequence[begin:end]
                context.decode([token])
        return nexts - {None} <= chosen

    def _choices(self, sampler: Sampler, logits: Any) -> Iterator[tuple[int, Sampler]]:
        """Return the tokens that a sampler may choose where rounding decides, and it after each."""
        dice = np.random.default_rng(1)
        for i in range(600):
            noise = dice.normal(0, self.rounding * 0.3 ** (i % 6), len(logits)) if i else 0
            after = sampler.clone()
            yield after.sample_logits(logits + noise), after

    def _chat_prompt(self, spec: Spec) -> tuple[list[int], Any]:
        """Return the tokens of a chat's prompt, and its guide."""
        guides: list[Any] = [None]

        def submit(tokens: list[int], **parameters: Any) -> Any:
            guides[:] = [tokens, parameters.get("guide")]
            raise StopIteration

        with suppress(StopIteration):
            chat(submit, self.model, self.settings["ctx_size"], spec)
        tokens, guide = guides
        return tokens, guide

    def _fitting(self, tokens: list[int], params: RequestParams) -> list[int]:
        limit = int(self.settings["ctx_size"])
        if len(tokens) <= limit - bool(params.max_tokens):
            return tokens
        keep = kept_tokens(params, self.model.adds_bos, limit)
        return tokens[:keep] + tokens[len(tokens) - (limit * 3 // 4 - keep) :]

    # --- states ---

    def _state(self, spec: Spec, scale: float) -> str:
        """Return how a text differs that goes on from a saved state, beside other texts."""
        names = ("type_k", "type_v", "swa_full", "batch_size", "ubatch_size", "batch_invariant")
        sizes = {n: self.settings[n] for n in names if n in self.settings}
        prompt = self.model.tokenize(spec["prompt"])
        sizes |= {"flash_attention": False, "threads": 1, "ctx_size": 256, "unified_kv": False}
        seq = None if spec["whole"] else 0
        with Context(self.model, sequences=2, **sizes) as context:
            context.set_adapters(self._adapters(scale))
            context.decode(prompt)
            state: Any = context.save_state(seq=seq)
            if spec["file"]:
                state = self.files.folder / f"{threading.get_ident()}.state"
                context.save_state(state, seq=seq)
            expected = _continue(context, 0, prompt[-1], spec["count"])
            with Context(self.model, sequences=2, **sizes) as other:
                other.set_adapters(self._adapters(scale))
                other.decode(prompt[::-1], seq=1 if seq is None else 0)
                target = 0 if seq is None else 1
                other.load_state(state, seq=None if seq is None else target)
                got = _continue(other, target, prompt[-1], spec["count"])
            context.load_state(state, seq=seq)
            again = _continue(context, 0, prompt[-1], spec["count"])
        for name, (tokens, scores) in (("elsewhere", got), ("again", again)):
            if tokens != expected[0]:
                common = _common(tokens, expected[0])
                same = self._same_scores(scores[:common], expected[1][:common])
                if not self.state_rounding or not same:
                    return f"from a state {name}: {tokens}, at once: {expected[0]}"
                self.report.parted += 1
            elif not self._same_scores(scores, expected[1]):
                return f"from a state {name}: {scores}, at once: {expected[1]}"
        return ""


def _continue(context: Context, seq: int, token: int, count: int) -> tuple[list[int], list[float]]:
    """Return greedy tokens with their log-probabilities; the first one after `token`."""
    tokens, scores = list[int](), list[float]()
    for _ in range(count):
        context.decode([token], seq=seq)
        [(token, score)] = context.top_logprobs(1)
        tokens.append(token)
        scores.append(score)
    return tokens, scores


def _embed_alone(engine: Engine) -> Callable[..., Any]:
    def embed(texts: list[str], pooling: str) -> Any:
        rows = []
        for i, text in enumerate(texts):
            try:
                rows.append(engine.embed([text], pooling=pooling))
            except ArgumentError as error:  # as of the list
                error.args = (error.problem.replace("texts[0]", f"texts[{i}]"),)
                raise
        return np.concatenate(rows)

    return embed


def submit(engine: Engine, spec: Spec, prompt: Any) -> list[Any]:
    """Submit a request and return its handles."""
    parameters = dict(spec["parameters"])
    if "guide" in spec:
        parameters["guide"] = OwnGuide(spec["guide"])
    if "function" in spec:
        parameters["logits_processor"] = own_function(spec["function"])
    if spec["call"] == "chat":
        return [chat(engine.submit, engine.model, engine.ctx_size, spec)]
    if "parse_special" in spec:
        parameters["parse_special"] = spec["parse_special"]
    if "n" in spec:
        return list(engine.submit_n(prompt, spec["n"], **parameters))
    return [engine.submit(prompt, **parameters)]


def chat(call: Callable[..., Any], model: Model, ctx_size: int, spec: Spec) -> Any:
    """Start a chat that submits by `call`, as `Engine.chat` does."""
    keywords: Spec = {k: spec[k] for k in ("tools", "tool_choice") if k in spec}
    if "tools" in spec:
        keywords["template"] = TOOL_TEMPLATE
    parameters = dict(spec["parameters"])
    if "guide" in spec:
        parameters["guide"] = OwnGuide(spec["guide"])
    if "function" in spec:
        parameters["logits_processor"] = own_function(spec["function"])
    return start_chat(call, model, ctx_size, spec["messages"], **keywords, **parameters)


def read(handle: Any, spec: Spec, answer: Answer) -> Any:
    """Return the result of a handle, read in the way that the request says."""
    cancel_after = spec.get("cancel_after")
    reader = spec["reader"]
    if spec["call"] == "chat":
        reader = "await" if reader in ("await", "more") else "result"
    if reader == "await":
        if cancel_after is not None:
            handle.cancel()

        async def wait() -> Any:
            return await handle

        return asyncio.run(wait())
    if reader == "result":
        if cancel_after is not None:
            request = handle.request if spec["call"] == "chat" else handle
            while not request.done and len(request.tokens) < cancel_after:
                time.sleep(0.0005)
            handle.cancel()
        return handle.result(WAIT)
    texts: list[str] = []
    if reader == "more":

        async def more() -> None:
            while text := await handle.more():
                texts.append(text)
                if cancel_after is not None and len(texts) > cancel_after:
                    handle.cancel()

        asyncio.run(more())
    else:
        for text in handle:
            texts.append(text)
            if cancel_after is not None and len(texts) > cancel_after:
                handle.cancel()
    answer.text = "".join(texts)
    return handle.result(WAIT)


def _without_ids(message: Spec) -> Spec:
    calls = [{k: v for k, v in call.items() if k != "id"} for call in message.get("tool_calls", ())]
    return {**message, "tool_calls": calls}


def _common(a: list[int], b: list[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _short(result: Any) -> str:
    if isinstance(result, Completion):
        return f"{result.finish_reason} {result.tokens[:8]}"
    return repr(result)[:300]


# --- reducing a failure ---


def reduced(spec: Spec, files: Files, tries: int = 40) -> Spec:
    """Return a smaller session that fails too, found by leaving out rounds and requests."""

    def fails(candidate: Spec) -> bool:
        nonlocal tries
        tries -= 1
        return bool(Session(candidate, files).run().failures)

    if not fails(spec):
        return spec
    changed = True
    while changed and tries > 0:
        changed = False
        for smaller in _smaller(spec):
            if tries <= 0:
                break
            if fails(smaller):
                spec, changed = smaller, True
                break
    return spec


def _smaller(spec: Spec) -> Iterator[Spec]:
    rounds = spec["rounds"]
    for i in range(len(rounds)):
        if len(rounds) > 1:
            yield {**spec, "rounds": rounds[:i] + rounds[i + 1 :]}
    for i, given in enumerate(rounds):
        requests = given["requests"]
        size = max(1, len(requests) // 2)
        while size:
            for begin in range(0, len(requests), size):
                rest = requests[:begin] + requests[begin + size :]
                if rest:
                    yield {
                        **spec,
                        "rounds": [*rounds[:i], {**given, "requests": rest}, *rounds[i + 1 :]],
                    }
            size //= 2


# --- the command ---


def run_session(seed: int, files: Files) -> Spec:
    """Run the session of a number and return what the parent process prints."""
    report = Session(session(seed), files).run()
    return {
        "seed": seed,
        "inputs": report.requests,
        "failures": [asdict(failure) for failure in report.failures],
        "parted": report.parted,
        "largest": report.largest,
        "counts": dict(report.counts),
    }


def main() -> int:
    """Run sessions until so many requests were compared."""
    parser = argparse.ArgumentParser(description="Random engine requests, compared.")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first session")
    parser.add_argument("--session", type=int, help="run this one in this process")
    parser.add_argument("--replay", type=Path, help="run the session of a file in this process")
    parser.add_argument("--reduce", action="store_true", help="print the least that fails too")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        if given.child:
            return run_in_children.child(lambda seed: run_session(seed, files))
        if given.replay is not None:
            spec = ast.literal_eval(given.replay.read_text())
        elif given.session is not None:
            spec = session(given.session)
        else:
            return run_in_children("tests.stress.random_requests", given.first, given.requests)
        if given.reduce:
            spec = reduced(spec, files)
        report = Session(spec, files).run()
        for failure in report.failures:
            print(failure.place, failure.problem, failure.spec)
        if report.failures and given.reduce:
            pprint.pprint(spec, width=100, sort_dicts=False)
        print(f"{report.requests} requests, {report.parted} parted by rounding")
        print(f"largest difference {report.largest:.3g} of what is allowed, {dict(report.counts)}")
        return bool(report.failures)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
