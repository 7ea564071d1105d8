"""Probabilities of tokens in llama-server's shape, of the model and after sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from llcuda.engine.logprobs import NEVER
from llcuda.engine.outputs import TokenLogprob
from llcuda.native.model import Model
from llcuda.params import SamplingParams, wrong_value
from llcuda.server.llama_server.protocol import PROBED, GenerationBody

_COMPUTED = ("top_k", "top_p", "min_p", "temperature", "min_keep")  # `after_sampling` knows them
# Parameters of steps that others turn on.
_WITHOUT_EFFECT = (
    "seed", "penalty_last_n", "grammar_root", "dry_base", "dry_allowed_length", "dry_last_n",
    "dry_breakers", "xtc_threshold", "dynatemp_exponent", "mirostat_tau", "mirostat_eta",
    "adaptive_decay",
)  # fmt: skip
_RESTRICTIONS = ("response_format", "min_tokens")  # of the tokens, by other means than sampling


def check_probabilities(body: GenerationBody, keywords: Mapping[str, Any], model: Model) -> None:
    """Refuse probabilities after sampling where they cannot be told from the model's.

    Args:
        body: The body of the request.
        keywords: Its keywords for `Engine.submit`.
        model: The model.

    Raises:
        ArgumentError: Other steps of sampling change the probabilities, or top_k is too large.
    """
    if not (body.post_sampling_probs and body.n_probs):
        return
    sampling, default = _sampling(keywords), SamplingParams()
    most = PROBED - len(_forbidden(keywords, model))
    known = (*_COMPUTED, *_WITHOUT_EFFECT)
    steps = [field.name for field in fields(SamplingParams) if field.name not in known]
    others = [name for name in steps if getattr(sampling, name) != getattr(default, name)]
    others += [body.places.get(name, name) for name in _RESTRICTIONS if keywords.get(name)]
    if not 0 < sampling.top_k <= most:
        others.insert(0, f"top_k={sampling.top_k}")
    if others:
        rule = (
            f"cannot be computed with {', '.join(others)}; it is for top_k from 1 to {most}, "
            "top_p, min_p, min_keep and temperature"
        )
        raise wrong_value("post_sampling_probs", True, rule)


def probabilities(
    body: GenerationBody,
    model: Model,
    keywords: Mapping[str, Any],
    scores: Sequence[TokenLogprob],
) -> list[dict[str, Any]]:
    """Return `completion_probabilities` of tokens.

    Args:
        body: The body of the request.
        model: The model.
        keywords: The keywords of the request for `Engine.submit`.
        scores: The log-probabilities of the tokens.
    """
    count = body.n_probs or 0

    def entry(token: int, name: str, number: float) -> dict[str, Any]:
        piece = list(model.piece_bytes(token, special=True))
        return {"id": token, "token": model.token_name(token), "bytes": piece, name: number}

    if not body.post_sampling_probs:
        return [
            {
                **entry(score.token, "logprob", max(score.logprob, NEVER)),
                "top_logprobs": [entry(t, "logprob", max(p, NEVER)) for t, p in score.top[:count]],
            }
            for score in scores
        ]
    sampling, forbidden = _sampling(keywords), _forbidden(keywords, model)
    documents = []
    for score in scores:
        left = after_sampling([pair for pair in score.top if pair[0] not in forbidden], sampling)
        chosen = dict(left).get(score.token, 0.0)
        top = [entry(token, "prob", share) for token, share in left[:count]]
        documents.append({**entry(score.token, "prob", chosen), "top_probs": top})
    return documents


def after_sampling(
    top: Sequence[tuple[int, float]], sampling: SamplingParams
) -> list[tuple[int, float]]:
    """Return what top_k, top_p, min_p and temperature leave of the most probable tokens.

    Args:
        top: Tokens and their log-probabilities, best first, at least top_k of them.
        sampling: How the token was chosen.

    Returns:
        Tokens and their probabilities, best first.
    """
    kept = [(token, logprob) for token, logprob in top[: sampling.top_k] if logprob > -math.inf]
    if sampling.temperature <= 0:
        return [(token, 1.0) for token, _ in kept[:1]]
    least = max(1, sampling.min_keep)
    total, number = 0.0, 0
    for share in _normalized([logprob for _, logprob in kept]):
        if total >= sampling.top_p and number >= least:
            break
        total, number = total + share, number + 1
    kept = kept[:number]
    bound = math.log(sampling.min_p) + kept[0][1] if sampling.min_p > 0 else -math.inf
    kept = [pair for i, pair in enumerate(kept) if pair[1] >= bound or i < least]
    shares = _normalized([logprob / sampling.temperature for _, logprob in kept])
    return [(token, share) for (token, _), share in zip(kept, shares, strict=True) if share > 0]


def _normalized(logits: Sequence[float]) -> list[float]:
    """Return the probabilities of logits, the largest of which comes first."""
    weights = [math.exp(logit - logits[0]) for logit in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def _sampling(keywords: Mapping[str, Any]) -> SamplingParams:
    """Return how tokens are chosen, out of the keywords of `Engine.submit`."""
    names = {item.name for item in fields(SamplingParams)}
    return SamplingParams(**{name: value for name, value in keywords.items() if name in names})


def _forbidden(keywords: Mapping[str, Any], model: Model) -> frozenset[int]:
    """Return the tokens that ignore_eos takes away."""
    return model.eog_tokens if keywords.get("ignore_eos") else frozenset()
