"""From sampling parameters to steps, and from steps to llama.cpp's sampler objects."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llcuda import samplers as steps
from llcuda.errors import SamplingError
from llcuda.native import callbacks, library
from llcuda.native.gbnf import grammar_error
from llcuda.native.grammar_check import check_grammar
from llcuda.params import SamplingParams, wrong_value

MAX_SUPERSET = 2**20  # candidates; no vocabulary has more tokens


def steps_of(params: SamplingParams, seed: int) -> list[steps.Step]:
    """Return the chain that parameters describe, in the order of llama.cpp's own default.

    Args:
        params: The parameters.
        seed: The seed of every step that draws.
    """
    p = params
    chain: list[steps.Step] = []
    if p.logit_bias:
        chain.append(steps.LogitBias(p.logit_bias))
    if p.grammar is not None:
        chain.append(steps.Grammar(p.grammar, p.grammar_root))
    if (p.repeat_penalty, p.frequency_penalty, p.presence_penalty) != (1, 0, 0):
        chain.append(
            steps.Penalties(
                p.penalty_last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty
            )
        )
    if p.dry_multiplier:
        chain.append(
            steps.DRY(
                p.dry_multiplier, p.dry_base, p.dry_allowed_length, p.dry_last_n, p.dry_breakers
            )
        )
    if p.temperature == 0:
        return [*chain, steps.Greedy()]
    temperature = steps.Temperature(p.temperature, p.dynatemp_range, p.dynatemp_exponent)
    if p.mirostat == 1:
        return [*chain, temperature, steps.Mirostat(p.mirostat_tau, p.mirostat_eta, seed=seed)]
    if p.mirostat == 2:
        return [*chain, temperature, steps.MirostatV2(p.mirostat_tau, p.mirostat_eta, seed)]
    if p.top_n_sigma > 0:
        chain.append(steps.TopNSigma(p.top_n_sigma))
    if p.top_k:
        chain.append(steps.TopK(p.top_k))
    if p.typical_p < 1:
        chain.append(steps.Typical(p.typical_p, p.min_keep))
    if p.top_p < 1:
        chain.append(steps.TopP(p.top_p, p.min_keep))
    if p.min_p > 0:
        chain.append(steps.MinP(p.min_p, p.min_keep))
    if p.xtc_probability > 0:
        chain.append(steps.XTC(p.xtc_probability, p.xtc_threshold, p.min_keep, seed))
    chain.append(temperature)
    if p.adaptive_target >= 0:
        return [*chain, steps.AdaptiveP(p.adaptive_target, p.adaptive_decay, seed)]
    return [*chain, steps.Distribution(seed)]


def _parts_of(chain: Sequence[steps.Step]) -> list[steps.Step]:
    """Return the steps of a chain as llama.cpp computes them."""
    parts: list[steps.Step] = []
    for step in chain:
        parts += _split(step) if isinstance(step, steps.Penalties) else [step]
    return parts


def superset_of(chain: Sequence[steps.Step]) -> tuple[int, list[int]]:
    """Return which logits can decide what a chain chooses.

    A TopK or Greedy keeps few candidates. The steps before it can only lower some others: penalties
    those of the last tokens, a bias below 0 its own; or raise those that a bias above 0 names.

    Args:
        chain: The steps.

    Returns:
        How many of the highest logits, and which tokens besides; (0, []) for all logits.
    """
    lowered, raised = 0, list[int]()
    for step in chain:
        if isinstance(step, steps.TopK) and step.k:
            return (step.k + lowered, raised) if step.k < MAX_SUPERSET else (0, [])
        if isinstance(step, steps.Greedy):
            return 1 + lowered, raised
        if isinstance(step, steps.DRY):
            lowered += step.last_n
        elif (
            isinstance(step, steps.Penalties)
            and min(step.repeat - 1, step.frequency, step.presence) >= 0
        ):
            lowered += step.last_n * len(_split(step))
        elif isinstance(step, steps.LogitBias):
            lowered += sum(bias <= 0 for bias in step.bias.values())
            raised += [token for token, bias in step.bias.items() if bias > 0]
        elif not isinstance(step, steps.Temperature) or step.temperature <= 0 or step.spread:
            break
    return 0, []


def _split(step: steps.Penalties) -> list[steps.Penalties]:
    """Return penalties as those that count the prompt and those that do not."""
    if step.repeat == 1 or not (step.frequency or step.presence):
        return [step]
    return [replace(step, frequency=0.0, presence=0.0), replace(step, repeat=1.0)]


def prompt_window(step: steps.Step) -> int:
    """Return how many of the last tokens of a prompt a step counts."""
    if isinstance(step, steps.DRY) or (isinstance(step, steps.Penalties) and step.repeat != 1):
        return step.last_n
    return 0


def draw_params(chain: Sequence[steps.Step]) -> dict[str, Any] | None:
    """Return what a device needs to choose as a chain does.

    A device knows LogitBias, Penalties, TopK up to LLCUDA_MOST_CANDIDATES, TopP, MinP, Temperature
    and Distribution in this order, or Greedy after the first two. Of a sequence's tokens it has one
    count each, so it does not know Penalties that count some with the prompt and some without.

    Args:
        chain: The steps.

    Returns:
        The numbers of these steps by name; None if a device cannot do what the chain does.
    """
    kinds = (
        steps.LogitBias, steps.Penalties, steps.TopK, steps.TopP, steps.MinP, steps.Temperature,
        steps.Distribution,
    )  # fmt: skip
    by_kind: dict[type, Any] = {type(step): step for step in chain}
    order = [type(step) for step in chain]
    if order[-1] is steps.Greedy:
        by_kind |= {steps.TopK: steps.TopK(1), steps.Distribution: steps.Distribution(0)}
        order[-1:] = [steps.TopK, steps.Distribution]
    if order != [kind for kind in kinds if kind in by_kind]:
        return None
    bias, penalties, top_k, top_p, min_p, temperature, end = (by_kind.get(kind) for kind in kinds)
    if end is None or any(getattr(step, "min_keep", 0) > 1 for step in (top_p, min_p)):
        return None
    if penalties and len(_split(penalties)) > 1:
        return None
    if temperature and (temperature.temperature <= 0 or temperature.spread):
        return None
    _, lib = library.load()
    if top_k and top_k.k > lib.LLCUDA_MOST_CANDIDATES:
        return None
    return {
        "k": top_k.k if top_k else 0,
        "top_p": top_p.p if top_p else 1.0,
        "min_p": min_p.p if min_p else 0.0,
        "temperature": temperature.temperature if temperature else 1.0,
        "seed": end.seed,
        "bias": dict(bias.bias) if bias else {},
        "last_n": penalties.last_n if penalties else 0,
        "repeat": penalties.repeat if penalties else 1.0,
        "frequency": penalties.frequency if penalties else 0.0,
        "presence": penalties.presence if penalties else 0.0,
    }


def draw_seed() -> int:
    """Return a random seed, never 2**32 - 1, which llama.cpp reads as "at random"."""
    return secrets.randbelow(2**32 - 1)


def owned_draw(pointer: Any) -> Any:
    """Return a llcuda_draw that is freed with its last reference.

    Args:
        pointer: The llcuda_draw.

    Raises:
        MemoryError: The pointer is null.
    """
    ffi, lib = library.load()
    if pointer == ffi.NULL:
        raise MemoryError("no memory for a sampler")
    return ffi.gc(pointer, lib.llcuda_draw_free)


class Part(NamedTuple):
    """A C sampler of a chain, which owns it.

    Attributes:
        pointer: The llama_sampler.
        prompt_window: How many of the last tokens of a prompt it counts.
    """

    pointer: Any
    prompt_window: int


def clone_chain(parts: Sequence[Part]) -> tuple[Any, list[Part]]:
    """Return a copy of a chain in the same state, which the caller frees, and its parts.

    Args:
        parts: The parts of the chain.

    Raises:
        SamplingError: llama.cpp cannot clone a part.
        Exception: What a Python step raised.
    """
    ffi, lib = library.load()
    pointer = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    copies: list[Part] = []
    for part in parts:
        copy = lib.llcuda_sampler_clone(part.pointer)
        if copy == ffi.NULL:
            lib.llama_sampler_free(pointer)
            callbacks.reraise()
            library.fail(SamplingError, "this chain cannot be cloned")
        lib.llama_sampler_chain_add(pointer, copy)
        copies.append(part._replace(pointer=copy))
    return pointer, copies


class ChainBuilder:
    """Builds the C sampler of each step for one vocabulary.

    Args:
        vocab: The llama_vocab.
        vocab_size: Its number of tokens.
        seed: The seed of every step that draws and has none of its own.

    Attributes:
        handles (list[Any]): What the C objects of Python steps refer to; must live as long.
        parts (list[Part]): The C samplers of the chain that was built, in order.
    """

    def __init__(self, vocab: Any, vocab_size: int, seed: int) -> None:
        self._ffi, self._lib = library.load()
        self._vocab = vocab
        self._vocab_size = vocab_size
        self._seed = seed
        self.handles: list[Any] = []
        self.parts: list[Part] = []

    def build(self, chain: Sequence[steps.Step]) -> Any:
        """Return a llama_sampler chain, which the caller frees.

        Args:
            chain: The steps.

        Raises:
            ArgumentError: A token is outside the vocabulary.
            GrammarError: A grammar does not parse.
            SamplingError: llama.cpp cannot create a step.
        """
        lib = self._lib
        pointer = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        try:
            for step in _parts_of(chain):
                sampler = _BUILD[type(step)](self, step)
                if sampler == self._ffi.NULL:
                    library.fail(SamplingError, f"llama.cpp cannot create {step}")
                lib.llama_sampler_chain_add(pointer, sampler)
                self.parts.append(Part(sampler, prompt_window(step)))
        except BaseException:
            lib.llama_sampler_free(pointer)
            raise
        return pointer

    def device_draw(self, chain: Sequence[steps.Step]) -> Any:
        """Return the llcuda_draw with which a device chooses as a chain does.

        Args:
            chain: The steps.

        Returns:
            The llcuda_draw; None if a device cannot do what the chain does.

        Raises:
            ArgumentError: A token is outside the vocabulary.
        """
        k = draw_params(chain)
        if k is None:
            return None
        tokens = list(k["bias"])
        for token in tokens:
            self._check_token(token, "logit_bias")
        return owned_draw(
            self._lib.llcuda_draw_new(
                k["k"], k["top_p"], k["min_p"], k["temperature"], self._seed_of(k["seed"]),
                len(tokens), tokens, list(k["bias"].values()), k["last_n"], k["repeat"],
                k["frequency"], k["presence"],
            )
        )  # fmt: skip

    def _seed_of(self, seed: int | None) -> int:
        return self._seed if seed is None else seed

    def _check_token(self, token: int, parameter: str) -> None:
        if token >= self._vocab_size:
            raise wrong_value(parameter, token, f"expected a token, 0 to {self._vocab_size - 1}")

    def _logit_bias(self, step: steps.LogitBias) -> Any:
        biases = self._ffi.new("llama_logit_bias[]", len(step.bias))
        for item, (token, bias) in zip(biases, step.bias.items(), strict=True):
            self._check_token(token, "logit_bias")
            item.token, item.bias = token, bias
        return self._lib.llama_sampler_init_logit_bias(self._vocab_size, len(biases), biases)

    def _grammar(self, step: steps.Grammar) -> Any:
        ffi, lib = self._ffi, self._lib
        if not step.grammar.strip():
            raise grammar_error("it is empty", "write a rule: root ::= ...")
        check_grammar(step.grammar)
        for token in step.tokens:
            self._check_token(token, "tokens")
        texts = [ffi.new("char[]", pattern.encode()) for pattern in step.patterns]
        patterns = ffi.new("char *[]", texts)
        sampler = lib.llcuda_grammar(
            self._vocab, step.grammar.encode(), step.root.encode(), patterns, len(texts),
            list(step.tokens), len(step.tokens),
        )  # fmt: skip
        if sampler == ffi.NULL:
            log = library.errors(ffi, lib).partition("error parsing grammar: ")
            reason = (log[2] or log[0]).partition("\n")[0].strip().removesuffix(" at")
            rule = f"it does not parse from rule {step.root!r}" + (reason and f": {reason}")
            raise grammar_error(rule, 'write rules such as root ::= "yes" | "no"')
        return sampler

    def _dry(self, step: steps.DRY) -> Any:
        texts = [self._ffi.new("char[]", breaker.encode()) for breaker in step.breakers]
        breakers = self._ffi.new("const char *[]", texts)
        return self._lib.llama_sampler_init_dry(
            self._vocab, step.multiplier, step.base, step.allowed_length, step.last_n,
            breakers, len(texts),
        )  # fmt: skip

    def _python(self, step: steps.Python) -> Any:
        handle = self._ffi.new_handle(step)
        self.handles.append(handle)
        return self._lib.llcuda_python_step(handle)

    def _simple(self, name: str, *arguments: Any) -> Any:
        return getattr(self._lib, f"llama_sampler_init_{name}")(*arguments)


_BUILD: dict[type[steps.Step], Callable[[ChainBuilder, Any], Any]] = {
    steps.Greedy: lambda b, s: b._simple("greedy"),
    steps.Distribution: lambda b, s: b._simple("dist", b._seed_of(s.seed)),
    steps.TopK: lambda b, s: b._simple("top_k", s.k),
    steps.TopP: lambda b, s: b._simple("top_p", s.p, s.min_keep),
    steps.MinP: lambda b, s: b._simple("min_p", s.p, s.min_keep),
    steps.Typical: lambda b, s: b._simple("typical", s.p, s.min_keep),
    steps.TopNSigma: lambda b, s: b._simple("top_n_sigma", s.n),
    steps.XTC: lambda b, s: b._simple(
        "xtc", s.probability, s.threshold, s.min_keep, b._seed_of(s.seed)
    ),
    steps.Temperature: lambda b, s: (
        b._simple("temp_ext", s.temperature, s.spread, s.exponent)
        if s.spread
        else b._simple("temp", s.temperature)
    ),
    steps.Mirostat: lambda b, s: b._simple(
        "mirostat", b._vocab_size, b._seed_of(s.seed), s.tau, s.eta, s.m
    ),
    steps.MirostatV2: lambda b, s: b._simple("mirostat_v2", b._seed_of(s.seed), s.tau, s.eta),
    steps.AdaptiveP: lambda b, s: b._simple("adaptive_p", s.target, s.decay, b._seed_of(s.seed)),
    steps.Penalties: lambda b, s: b._simple(
        "penalties", b._vocab_size, s.last_n, s.repeat, s.frequency, s.presence
    ),
    steps.DRY: ChainBuilder._dry,
    steps.LogitBias: ChainBuilder._logit_bias,
    steps.Grammar: ChainBuilder._grammar,
    steps.Infill: lambda b, s: b._simple("infill", b._vocab),
    steps.Python: ChainBuilder._python,
}
STEPS = frozenset(_BUILD)
