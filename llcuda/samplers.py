"""The steps of an explicit sampler chain: every sampler of llama.cpp, and steps in Python.

Users import them as `llcuda.steps`.

::

    Sampler(chain=[steps.TopK(40), steps.Temperature(0.7), steps.Distribution(seed=1)])

Each step sees the candidates that the step before it left. The last step must choose: Greedy,
Distribution, Mirostat, MirostatV2, AdaptiveP, or a Python step that returns a token. Values are
checked when a step is made (ArgumentError). Steps are plain data; `llcuda.native.chain` makes the C
objects.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llcuda.errors import ArgumentError
from llcuda.params import check_sampling, check_texts, wrong_value

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


MAX_PATTERN = 4096  # bytes; the compiler of regular expressions recurses


class Step:
    """Base of all steps.

    Attributes:
        chooses: Whether the step may end a chain.
    """

    chooses = False
    _bounds: ClassVar[Mapping[str, str]] = {}  # of fields: the SamplingParams field with the same

    def __post_init__(self) -> None:
        for field, name in self._bounds.items():
            check_sampling(name, getattr(self, field), field)


@dataclass(frozen=True)
class Greedy(Step):
    """Choose the candidate with the highest logit."""

    chooses = True


@dataclass(frozen=True)
class Distribution(Step):
    """Draw a candidate by its probability.

    Attributes:
        seed: Seed of the random numbers; None = the sampler's, `Sampler.seed`.
    """

    seed: int | None = None
    chooses = True
    _bounds: ClassVar = {"seed": "seed"}


@dataclass(frozen=True)
class TopK(Step):
    """Keep the highest logits. Fan et al., arXiv:1805.04833.

    Attributes:
        k: Candidates to keep; 0 = all.
    """

    k: int
    _bounds: ClassVar = {"k": "top_k"}


@dataclass(frozen=True)
class TopP(Step):
    """Keep the smallest set with a probability (nucleus). Holtzman et al., arXiv:1904.09751.

    Attributes:
        p: Probability of the set; 1 = off.
        min_keep: Candidates that stay at least.
    """

    p: float
    min_keep: int = 1
    _bounds: ClassVar = {"p": "top_p", "min_keep": "min_keep"}


@dataclass(frozen=True)
class MinP(Step):
    """Keep candidates by their ratio to the best. Nguyen et al., arXiv:2407.01082.

    Attributes:
        p: Smallest ratio of a candidate's probability to the best one's; 0 = off.
        min_keep: Candidates that stay at least.
    """

    p: float
    min_keep: int = 1
    _bounds: ClassVar = {"p": "min_p", "min_keep": "min_keep"}


@dataclass(frozen=True)
class Typical(Step):
    """Keep the locally typical candidates. Meister et al., arXiv:2202.00666.

    Attributes:
        p: Probability of the set; 1 = off.
        min_keep: Candidates that stay at least.
    """

    p: float
    min_keep: int = 1
    _bounds: ClassVar = {"p": "typical_p", "min_keep": "min_keep"}


@dataclass(frozen=True)
class TopNSigma(Step):
    """Keep logits near the best one. Tang et al., arXiv:2411.07641.

    Attributes:
        n: Standard deviations below the best logit; 0 or less = off.
    """

    n: float
    _bounds: ClassVar = {"n": "top_n_sigma"}


@dataclass(frozen=True)
class XTC(Step):
    """Exclude the top choices at times, except the least probable of them.

    Attributes:
        probability: Chance that they are excluded; 0 = off.
        threshold: Probability from which a candidate is a top choice.
        min_keep: Candidates that stay at least.
        seed: Seed of the chance; None = the sampler's.
    """

    probability: float
    threshold: float = 0.1
    min_keep: int = 1
    seed: int | None = None
    _bounds: ClassVar = {
        "probability": "xtc_probability",
        "threshold": "xtc_threshold",
        "min_keep": "min_keep",
        "seed": "seed",
    }


@dataclass(frozen=True)
class Temperature(Step):
    """Divide the logits.

    Attributes:
        temperature: The divisor; 0 leaves only the best candidate.
        spread: The temperature varies by so much to both sides, by the entropy; 0 = off.
        exponent: Exponent of the normalised entropy.
    """

    temperature: float
    spread: float = 0.0
    exponent: float = 1.0
    _bounds: ClassVar = {
        "temperature": "temperature",
        "spread": "dynatemp_range",
        "exponent": "dynatemp_exponent",
    }


@dataclass(frozen=True)
class Mirostat(Step):
    """Choose by Mirostat 1. Basu et al., arXiv:2007.14966.

    Attributes:
        tau: Target of surprise, in bits.
        eta: Learning rate.
        m: Candidates from which the exponent of Zipf's law is estimated.
        seed: Seed of the random numbers; None = the sampler's.
    """

    tau: float = 5.0
    eta: float = 0.1
    m: int = 100
    seed: int | None = None
    chooses = True
    _bounds: ClassVar = {
        "tau": "mirostat_tau",
        "eta": "mirostat_eta",
        "m": "min_keep",
        "seed": "seed",
    }


@dataclass(frozen=True)
class MirostatV2(Step):
    """Choose by Mirostat 2. Basu et al., arXiv:2007.14966.

    Attributes:
        tau: Target of surprise, in bits.
        eta: Learning rate.
        seed: Seed of the random numbers; None = the sampler's.
    """

    tau: float = 5.0
    eta: float = 0.1
    seed: int | None = None
    chooses = True
    _bounds: ClassVar = {"tau": "mirostat_tau", "eta": "mirostat_eta", "seed": "seed"}


@dataclass(frozen=True)
class AdaptiveP(Step):
    """Choose near a target probability, which adapts to what was chosen.

    A clone keeps what the step adapted to, but draws from the seed anew.

    Attributes:
        target: The probability; below 0 = off.
        decay: Decay of the mean of chosen probabilities, 0 to 0.99.
        seed: Seed of the random numbers; None = the sampler's.
    """

    target: float
    decay: float = 0.9
    seed: int | None = None
    chooses = True
    _bounds: ClassVar = {"target": "adaptive_target", "decay": "adaptive_decay", "seed": "seed"}


@dataclass(frozen=True)
class Penalties(Step):
    """Make the last accepted tokens less likely.

    The repetition penalty counts those of `Sampler.accept_prompt` too.

    Attributes:
        last_n: Tokens to look back on.
        repeat: Divides the logits of repeated tokens; 1 = off.
        frequency: Subtracted for each time that a token came in the text; 0 = off.
        presence: Subtracted once if a token came in the text; 0 = off.
    """

    last_n: int = 64
    repeat: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    _bounds: ClassVar = {
        "last_n": "penalty_last_n",
        "repeat": "repeat_penalty",
        "frequency": "frequency_penalty",
        "presence": "presence_penalty",
    }


@dataclass(frozen=True)
class DRY(Step):
    """Make the continuation of a repetition less likely.

    A continuation of a repetition of n tokens loses multiplier x base^(n - allowed_length). The
    tokens of `Sampler.accept_prompt` count too.

    Attributes:
        multiplier: Strength; 0 = off.
        base: Base of the power.
        allowed_length: Longest repetition without a penalty.
        last_n: Tokens to look back on.
        breakers: Texts that no repetition goes beyond.
    """

    multiplier: float
    base: float = 1.75
    allowed_length: int = 2
    last_n: int = 1024
    breakers: Sequence[str] = ("\n", ":", '"', "*")
    _bounds: ClassVar = {
        "multiplier": "dry_multiplier",
        "base": "dry_base",
        "allowed_length": "dry_allowed_length",
        "last_n": "dry_last_n",
        "breakers": "dry_breakers",
    }


@dataclass(frozen=True)
class LogitBias(Step):
    """Add a number to the logits of tokens.

    Attributes:
        bias: Token -> number; -inf forbids the token.
    """

    bias: Mapping[int, float]
    _bounds: ClassVar = {"bias": "logit_bias"}


@dataclass(frozen=True)
class Grammar(Step):
    r"""Forbid what a GBNF grammar does not allow; the text must be accepted from its start.

    A lazy grammar, one with `patterns` or `tokens`, begins at the first match. Every pattern is
    searched in the whole text again after each token: r"(#)" is fast, r"[\s\S]*?(#)" takes
    seconds.

    Attributes:
        grammar: The grammar (llama.cpp, grammars/README.md).
        root: Its start rule.
        patterns: Regular expressions (ECMAScript) at whose match, or first group, a lazy grammar
            begins.
        tokens: Tokens at which a lazy grammar begins.
    """

    grammar: str
    root: str = "root"
    patterns: Sequence[str] = ()
    tokens: Sequence[int] = ()
    _bounds: ClassVar = {"grammar": "grammar", "root": "grammar_root"}

    def __post_init__(self) -> None:
        if self.grammar is None:
            raise wrong_value("grammar", self.grammar, "expected a text")
        super().__post_init__()
        check_texts("patterns", self.patterns, MAX_PATTERN)
        check_sampling("logit_bias", dict.fromkeys(self.tokens, 0.0), "tokens")


@dataclass(frozen=True)
class Infill(Step):
    """For fill-in-the-middle, after TopK and TopP: prefers the end where it is likely."""


def _nothing(*arguments: Any) -> None:
    """Do nothing; a function that, unlike a lambda, can be pickled."""


@dataclass
class Python(Step):
    """A step written in Python.

    What `apply` raises reaches the caller of `Sampler.sample` unchanged.

    Attributes:
        apply: Gets the candidates as a structured numpy array with the fields id (int32), logit
            (float32) and p (float32), and may change logits in place. Returns None, an int, which
            chooses that token, or the candidates to keep, as an array of indices or a mask.
        accept: Called with each chosen token.
        reset: Called by `Sampler.reset`.
    """

    apply: Callable[[npt.NDArray[np.void]], int | npt.NDArray[Any] | None]
    accept: Callable[[int], None] = _nothing
    reset: Callable[[], None] = _nothing
    chooses = True

    def __post_init__(self) -> None:
        for name in ("apply", "accept", "reset"):
            if not callable(getattr(self, name)):
                raise wrong_value(name, getattr(self, name), "expected a function")

    def run(self, buffer: Any, selected: int) -> tuple[int, int]:
        """Apply the step to candidates of C.

        Args:
            buffer: Memory of the candidates.
            selected: Index of the candidate that is chosen so far, -1 = none.

        Returns:
            The index of the chosen candidate or -1, and how many candidates are kept.
        """
        import numpy as np

        dtype = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        memory = np.frombuffer(buffer, dtype)
        candidates = memory.copy()  # apply may keep it, while the memory of C goes
        result = self.apply(candidates)
        for field in ("logit", "p"):
            memory[field] = candidates[field]
        if result is None:
            return selected, len(memory)
        if isinstance(result, int | np.integer) and not isinstance(result, bool):
            (matches,) = np.nonzero(memory["id"] == result)
            if not len(matches):
                raise ArgumentError(f"the step chose token {result}, which is not a candidate")
            return int(matches[0]), len(memory)
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
