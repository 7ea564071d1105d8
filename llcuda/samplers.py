"""The steps of an explicit sampler chain: every sampler of llama.cpp, and one's own in Python.

::

    Sampler(chain=[steps.TopK(40), steps.Temperature(0.7), steps.Distribution(seed=1)])

Each step sees the candidates that the one before left. The last one must choose: Greedy,
Distribution, Mirostat, MirostatV2, AdaptiveP, or a Python step that returns a token. Values are
checked when a step is made (ArgumentError). Plain data; `llcuda.native.chain` builds the C objects.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llcuda.errors import ArgumentError
from llcuda.params import SamplingParams, check_texts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


MAX_PATTERN = 4096  # bytes; the compiler of regular expressions recurses


class Step:
    """Base of all steps. `chooses`: whether it may end a chain."""

    chooses = False

    def _check(self, **values: Any) -> None:
        SamplingParams(**values)  # the same bounds as the parameters of the same name


@dataclass(frozen=True)
class Greedy(Step):
    """Choose the candidate with the highest logit."""

    chooses = True


@dataclass(frozen=True)
class Distribution(Step):
    """Draw a candidate by probability. seed: None = the sampler's (`Sampler.seed`)."""

    seed: int | None = None
    chooses = True

    def __post_init__(self) -> None:
        self._check(seed=self.seed)


@dataclass(frozen=True)
class TopK(Step):
    """Keep the k highest logits (0 = all). Fan et al., arXiv:1805.04833."""

    k: int

    def __post_init__(self) -> None:
        self._check(top_k=self.k)


@dataclass(frozen=True)
class TopP(Step):
    """Keep the smallest set with probability p (nucleus). Holtzman et al., arXiv:1904.09751."""

    p: float
    min_keep: int = 1

    def __post_init__(self) -> None:
        self._check(top_p=self.p, min_keep=self.min_keep)


@dataclass(frozen=True)
class MinP(Step):
    """Keep what has at least p times the best candidate's probability."""

    p: float
    min_keep: int = 1

    def __post_init__(self) -> None:
        self._check(min_p=self.p, min_keep=self.min_keep)


@dataclass(frozen=True)
class Typical(Step):
    """Locally typical sampling. Meister et al., arXiv:2202.00666."""

    p: float
    min_keep: int = 1

    def __post_init__(self) -> None:
        self._check(typical_p=self.p, min_keep=self.min_keep)


@dataclass(frozen=True)
class TopNSigma(Step):
    """Keep logits within n standard deviations of the best (<= 0: off). arXiv:2411.07641."""

    n: float

    def __post_init__(self) -> None:
        self._check(top_n_sigma=self.n)


@dataclass(frozen=True)
class XTC(Step):
    """Exclude top choices above `threshold`, all but the least of them, at `probability`."""

    probability: float
    threshold: float = 0.1
    min_keep: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        self._check(
            xtc_probability=self.probability,
            xtc_threshold=self.threshold,
            min_keep=self.min_keep,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Temperature(Step):
    """Divide the logits; 0 leaves only the best. With spread: by entropy, +- spread."""

    temperature: float
    spread: float = 0.0
    exponent: float = 1.0

    def __post_init__(self) -> None:
        self._check(
            temperature=self.temperature,
            dynatemp_range=self.spread,
            dynatemp_exponent=self.exponent,
        )


@dataclass(frozen=True)
class Mirostat(Step):
    """Mirostat 1 (`m` tokens in its estimate). Basu et al., arXiv:2007.14966. Chooses."""

    tau: float = 5.0
    eta: float = 0.1
    m: int = 100
    seed: int | None = None
    chooses = True

    def __post_init__(self) -> None:
        self._check(mirostat_tau=self.tau, mirostat_eta=self.eta, seed=self.seed, min_keep=self.m)


@dataclass(frozen=True)
class MirostatV2(Step):
    """Mirostat 2. Basu et al., arXiv:2007.14966. Chooses."""

    tau: float = 5.0
    eta: float = 0.1
    seed: int | None = None
    chooses = True

    def __post_init__(self) -> None:
        self._check(mirostat_tau=self.tau, mirostat_eta=self.eta, seed=self.seed)


@dataclass(frozen=True)
class AdaptiveP(Step):
    """Choose near a target probability that adapts (target < 0: off).

    A clone keeps what it adapted to, but draws from the seed anew.
    """

    target: float
    decay: float = 0.9
    seed: int | None = None
    chooses = True

    def __post_init__(self) -> None:
        self._check(adaptive_target=self.target, adaptive_decay=self.decay, seed=self.seed)


@dataclass(frozen=True)
class Penalties(Step):
    """Make the last `last_n` accepted tokens less likely."""

    last_n: int = 64
    repeat: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0

    def __post_init__(self) -> None:
        self._check(
            penalty_last_n=self.last_n,
            repeat_penalty=self.repeat,
            frequency_penalty=self.frequency,
            presence_penalty=self.presence,
        )


@dataclass(frozen=True)
class DRY(Step):
    """Make the continuation of a repetition less likely."""

    multiplier: float
    base: float = 1.75
    allowed_length: int = 2
    last_n: int = 1024
    breakers: Sequence[str] = ("\n", ":", '"', "*")

    def __post_init__(self) -> None:
        self._check(
            dry_multiplier=self.multiplier,
            dry_base=self.base,
            dry_allowed_length=self.allowed_length,
            dry_last_n=self.last_n,
            dry_breakers=self.breakers,
        )


@dataclass(frozen=True)
class LogitBias(Step):
    """Add a number to the logits of tokens; -inf forbids them."""

    bias: Mapping[int, float]

    def __post_init__(self) -> None:
        self._check(logit_bias=self.bias)


@dataclass(frozen=True)
class Grammar(Step):
    r"""Forbid what a GBNF grammar does not allow; the text must be accepted from its start.

    patterns, tokens: a lazy grammar, which begins at the first match of a pattern (an ECMAScript
    regular expression; at its first group) or at one of the tokens. Every pattern is looked for in
    the whole text again after each token: r"(#)" is fast, r"[\s\S]*?(#)" takes seconds.
    """

    grammar: str
    root: str = "root"
    patterns: Sequence[str] = ()
    tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.grammar is None:
            raise ArgumentError("grammar=None: expected a text", parameter="grammar")
        self._check(grammar=self.grammar, grammar_root=self.root)
        check_texts("patterns", self.patterns, MAX_PATTERN)
        self._check(logit_bias=dict.fromkeys(self.tokens, 0.0))


@dataclass(frozen=True)
class Infill(Step):
    """For fill-in-the-middle, after TopK and TopP: prefers the end where it is likely."""


@dataclass
class Python(Step):
    """A step written in Python.

    apply: gets the candidates as a structured numpy array, fields id (int32), logit (float32) and
        p (float32); may change logits in place. Returns None, or an int: choose this token, or an
        array: the candidates to keep (a mask or indices).
    accept: called with each chosen token. reset: called by Sampler.reset().
    What apply raises reaches the caller of `Sampler.sample` unchanged.
    """

    apply: Callable[[npt.NDArray[np.void]], int | npt.NDArray[Any] | None]
    accept: Callable[[int], None] = lambda token: None
    reset: Callable[[], None] = lambda: None
    chooses = True

    def __post_init__(self) -> None:
        for name in ("apply", "accept", "reset"):
            if not callable(getattr(self, name)):
                raise ArgumentError(
                    f"{name}={getattr(self, name)!r}: expected a function", parameter=name
                )

    def run(self, buffer: Any, selected: int) -> tuple[int, int]:
        """Apply to C's candidates; return (index of the choice or -1, how many are kept)."""
        import numpy as np

        dtype = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        memory = np.frombuffer(buffer, dtype)
        candidates = memory.copy()  # apply may keep hold of it, C's memory goes
        result = self.apply(candidates)
        for field in ("logit", "p"):
            memory[field] = candidates[field]
        if result is None:
            return selected, len(memory)
        if isinstance(result, int | np.integer) and not isinstance(result, bool):
            (found,) = np.nonzero(memory["id"] == result)
            if not len(found):
                raise ArgumentError(f"the step chose token {result}, which is no candidate")
            return int(found[0]), len(memory)
        kept = _kept(result, len(memory))
        memory[: len(kept)] = memory[kept]
        return -1, len(kept)

    def clone(self) -> Python:
        """Return a copy for a cloned chain: copy.deepcopy, which shares closures."""
        return copy.deepcopy(self)


def _kept(result: Any, count: int) -> npt.NDArray[np.intp]:
    """Return the indices that a step's result keeps of `count` candidates; ArgumentError."""
    import numpy as np

    try:
        array = np.asarray(result)
    except ValueError:
        array = np.asarray(None)
    if array.dtype == bool and array.shape == (count,):
        indices = np.flatnonzero(array)
    elif array.ndim == 1 and array.dtype.kind in "iu":
        indices = array.astype(np.intp)
    else:
        raise ArgumentError(
            f"the step returned {result!r}: expected None, a token, a mask of {count} candidates "
            "or their indices"
        )
    if not 0 < len(indices) <= count or not -count <= indices.min() <= indices.max() < count:
        raise ArgumentError(
            f"the step kept {len(indices)} candidates: expected 1 to {count}, indices below that"
        )
    return indices
