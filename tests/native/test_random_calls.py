"""Random sequences of calls with random arguments: each answers or raises one of our errors.

100 examples here; 10,000 with HYPOTHESIS_PROFILE=long. With RANDOM_CALLS_LOG=file the sequence
that runs is written there first, for the case that it ends the process.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llcuda import Adapter, Context, Model, Sampler
from llcuda import samplers as steps
from llcuda.errors import LlcudaError
from tests.support import models

LOG = os.environ.get("RANDOM_CALLS_LOG")
HUGE = [2**15, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30]
whole = st.one_of(
    st.integers(0, 20), st.integers(-300, 700), st.sampled_from(HUGE + [-n for n in HUGE])
)
nonsense = st.sampled_from(
    [
        None,
        True,
        math.nan,
        math.inf,
        -math.inf,
        1.5,
        "x",
        "",
        b"\xff",
        "\ud800",
        "a\0b",
        [],
        {},
        [None],
    ]
)
number = st.one_of(st.floats(), st.floats(0, 1), whole)
small = st.integers(0, 3)


def often(good: st.SearchStrategy[Any], other: st.SearchStrategy[Any] = nonsense) -> Any:
    """Return mostly good arguments, so that sequences get anywhere."""
    return st.integers(0, 9).flatmap(lambda n: good if n else st.one_of(whole, other))


token = often(st.integers(0, models.VOCABULARY - 1))
tokens = often(st.lists(st.integers(0, models.VOCABULARY - 1), max_size=40), st.lists(token))
seq = often(small)
position = st.one_of(st.none(), often(st.integers(0, 60)))
index = often(st.integers(-5, 40))
flag = often(st.booleans())
text = st.one_of(st.text(max_size=30), st.binary(max_size=20), nonsense)

STEPS = st.one_of(
    st.builds(lambda: ("Greedy", ())),
    *(
        st.tuples(st.just(name), st.tuples(*arguments))
        for name, arguments in {
            "Distribution": [often(st.integers(0, 9))],
            "TopK": [whole],
            "TopP": [number, whole],
            "MinP": [number, whole],
            "Typical": [number, whole],
            "TopNSigma": [number],
            "XTC": [number, number, whole],
            "Temperature": [number, number, number],
            "Mirostat": [number, number, whole],
            "MirostatV2": [number, number],
            "AdaptiveP": [number, number],
            "Penalties": [whole, number, number, number],
            "DRY": [number, number, whole, whole, st.lists(text, max_size=3)],
            "LogitBias": [st.dictionaries(st.one_of(whole, st.text()), number, max_size=3)],
            "Grammar": [
                st.sampled_from(['root ::= "a"+', "root ::= [a-z]*", "root ::= x", "root ::= root"])
            ],
            "Infill": [],
        }.items()
    ),
    st.tuples(st.just("python"), st.tuples(st.one_of(token, nonsense, st.lists(index)))),
)
PARAMETERS: dict[str, Any] = {
    "ctx_size": often(st.sampled_from([1, 64, 256, 300, 1000])),
    "sequences": often(st.integers(1, 4)),
    "batch_size": often(st.integers(1, 64)),
    "ubatch_size": often(st.integers(1, 64)),
    "outputs_max": often(st.integers(0, 64)),
    "unified_kv": flag,
    "flash_attention": st.one_of(st.none(), flag),
    "type_k": st.sampled_from(["f16", "f32", "bf16", "q8_0", "q4_0", "iq4_nl", "x"]),
    "type_v": st.sampled_from(["f16", "f32", "bf16", "q8_0", "q5_1", "x"]),
    "rope_scaling": st.sampled_from([None, "none", "linear", "yarn", "longrope"]),
    "rope_freq_base": st.one_of(st.none(), number),
    "rope_freq_scale": st.one_of(st.none(), number),
    "yarn_ext_factor": st.one_of(st.none(), number),
    "yarn_orig_ctx": st.one_of(st.none(), whole),
    "embeddings": flag,
    "pooling": st.sampled_from([None, "none", "mean", "cls", "last", "rank"]),
    "attention": st.sampled_from([None, "causal", "non_causal"]),
    "swa_full": flag,
    "threads": st.just(1),
}
# The name of an operation, its target and its arguments.
OPERATIONS: dict[str, list[Any]] = {
    "context": [small, st.fixed_dictionaries({}, optional=PARAMETERS)],
    "sampler": [small, st.lists(STEPS, max_size=5)],
    "sampler_by_parameters": [
        small,
        st.fixed_dictionaries(
            {}, optional={"temperature": number, "top_k": whole, "seed": whole, "min_p": number}
        ),
    ],
    "decode": [small, tokens, seq, position, st.sampled_from(["last", "all", "none", 5])],
    "decode_batch": [
        small,
        st.lists(st.tuples(token, seq), max_size=20),
        st.one_of(st.none(), st.lists(position, max_size=3)),
    ],
    "score": [small, tokens, seq],
    "encode": [small, tokens],
    "sample": [small, small, index],
    "sample_logits": [small, st.lists(number, max_size=3)],
    "accept": [small, token],
    "reset": [small],
    "clone": [small, small],
    "logits": [small, index],
    "embeddings": [small, index],
    "sequence_embedding": [small, seq],
    "logprobs": [
        small,
        st.lists(token, max_size=3),
        st.lists(index, max_size=3),
        often(st.integers(0, 9)),
    ],
    "top_logprobs": [small, whole, index],
    "remove": [small, seq, position, position],
    "rollback": [small, whole, seq],
    "copy": [small, seq, seq, position, position],
    "keep": [small, seq],
    "shift": [small, whole, seq, position, position],
    "divide": [small, whole, seq, position, position],
    "clear": [small, flag],
    "range": [small, seq],
    "save": [small, st.one_of(st.none(), seq), flag],
    "load": [small, st.one_of(st.none(), seq), st.integers(0, 3)],
    "adapters": [small, number],
    "threads": [small, st.sampled_from([1, 1, 1, 0, -1, None, "x", 10**9])],
    "cancel": [small],
    "timings": [small],
    "close": [small],
    "close_model": [small],
    "tokenize": [small, text, flag, flag],
    "detokenize": [small, tokens, flag, flag, flag],
    "piece": [small, token],
    "facts": [small],
}
operations = st.lists(
    st.one_of(*(st.tuples(st.just(n), st.tuples(*a)) for n, a in OPERATIONS.items())), max_size=30
)


class World:
    """Models, contexts, samplers and states by number; a number that is none yet is skipped."""

    def __init__(self, files: list[Path], adapter: Path) -> None:
        self.files, self.adapter_file = files, adapter
        self.models: dict[int, Model] = {}
        self.contexts: dict[int, Context] = {}
        self.samplers: dict[int, Sampler] = {}
        self.states: list[bytes] = [b"", b"LLCUDAST"]

    def model(self, number: int) -> Model:
        """Return a model, loaded when it is first used or was closed."""
        if number not in self.models or self.models[number].closed:
            self.models[number] = Model(self.files[number])
        return self.models[number]

    def context_of(self, number: int) -> Context:
        """Return a context, a plain one when there is none."""
        if number not in self.contexts:
            self.contexts[number] = Context(self.model(number), threads=1, ctx_size=256)
        return self.contexts[number]

    def sampler_of(self, number: int) -> Sampler:
        """Return a sampler, a plain one when there is none."""
        return self.samplers.setdefault(number, Sampler(seed=1))

    def run(self, name: str, target: int, *arguments: Any) -> None:
        """Run one operation; raises what it raises."""
        own: Callable[..., Any] | None = getattr(self, f"do_{name}", None)
        if own is not None:
            own(target, *arguments)
        elif hasattr(Context, name) and name not in ("memory",):
            attribute = getattr(self.context_of(target), name)
            if callable(attribute):
                attribute(*arguments)
        else:
            getattr(self.context_of(target).memory, name)(*arguments)

    def do_context(self, number: int, parameters: dict[str, Any]) -> None:
        """Make a context in place of another."""
        self.contexts[number] = Context(self.model(number), **parameters)

    def do_sampler(self, number: int, chain: list[Any]) -> None:
        """Make a sampler of steps."""
        samplers = [
            steps.Python(lambda candidates, result=arguments[0]: result)
            if name == "python"
            else getattr(steps, name)(*arguments)
            for name, arguments in chain
        ]
        self.samplers[number] = Sampler(chain=[*samplers, steps.Distribution(1)])

    def do_sampler_by_parameters(self, number: int, parameters: dict[str, Any]) -> None:
        """Make a sampler of parameters."""
        self.samplers[number] = Sampler(**parameters)

    def do_decode_batch(self, number: int, rows: list[Any], positions: Any) -> None:
        """Decode rows."""
        given = None if positions is None else (positions * 20)[: len(rows)]
        self.context_of(number).decode_batch([r[0] for r in rows], [r[1] for r in rows], given)

    def do_sample(self, number: int, sampler: int, index: Any) -> None:
        """Sample, and decode what was sampled."""
        context = self.context_of(number)
        context.decode([self.sampler_of(sampler).sample(context, index)])

    def do_sample_logits(self, number: int, values: list[Any]) -> None:
        """Sample from numbers of one's own."""
        model = self.model(number)
        logits = (values * models.VOCABULARY)[: model.vocab_size]
        with np.errstate(over="ignore"):
            self.sampler_of(number).sample_logits(logits, model)

    def do_accept(self, number: int, token: Any) -> None:
        """Accept a token."""
        self.sampler_of(number).accept(token, self.model(number))

    def do_reset(self, number: int) -> None:
        """Reset a sampler."""
        self.sampler_of(number).reset()

    def do_clone(self, number: int, target: int) -> None:
        """Clone a sampler."""
        self.samplers[target] = self.sampler_of(number).clone()

    def do_save(self, number: int, seq: Any, partial: Any) -> None:
        """Keep a state."""
        self.states.append(self.context_of(number).memory.save(seq, partial))

    def do_load(self, number: int, seq: Any, which: int) -> None:
        """Restore one of the last states."""
        self.context_of(number).memory.load(self.states[-1 - which % len(self.states)], seq)

    def do_adapters(self, number: int, scale: Any) -> None:
        """Apply the adapter."""
        context = self.context_of(number)
        context.set_adapters({Adapter(context.model, self.adapter_file): scale})

    def do_threads(self, number: int, threads: Any) -> None:
        """Change the number of threads."""
        self.context_of(number).set_threads(threads)

    def do_timings(self, number: int) -> None:
        """Read and reset the timings."""
        self.context_of(number).timings.as_dict()
        self.context_of(number).reset_timings()

    def do_close_model(self, number: int) -> None:
        """Close a model under its contexts."""
        self.model(number).close()

    def do_tokenize(self, number: int, *arguments: Any) -> None:
        """Tokenize."""
        self.model(number).tokenize(*arguments)

    def do_detokenize(self, number: int, *arguments: Any) -> None:
        """Detokenize."""
        self.model(number).detokenize(*arguments)

    def do_piece(self, number: int, token: Any) -> None:
        """Read a token's texts and kinds."""
        model = self.model(number)
        for read in (model.piece, model.piece_bytes, model.is_eog, model.is_control):
            read(token)

    def do_facts(self, number: int) -> None:
        """Read what there is to read."""
        model, context = self.model(number), self.context_of(number)
        repr((model, context, dict(model.metadata), model.chat_template, context.output_indices()))


@pytest.fixture(scope="module")
def files(model_files: dict[str, Path]) -> tuple[list[Path], Path]:
    """The models in the order of their numbers, and the adapter."""
    return [model_files[name] for name in models.BUILDERS], model_files["lora"]


@given(sequence=operations)
def test_any_calls_answer_or_raise_our_errors(
    files: tuple[list[Path], Path], sequence: list[Any]
) -> None:
    """Nothing ends the process, and no exception but ours and TypeError comes out."""
    if LOG:
        Path(LOG).write_text(repr(sequence).replace("), (", "),\n ("))
    world = World(*files)
    for name, arguments in sequence:
        with contextlib.suppress(LlcudaError, TypeError):
            world.run(name, *arguments)
    for context in world.contexts.values():
        context.close()
    for model in world.models.values():
        model.close()
