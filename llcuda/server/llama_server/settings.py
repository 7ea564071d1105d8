"""The settings of a generation and of a model in llama-server's shapes."""

from __future__ import annotations

import math
from typing import Any

from llcuda.engine.request import RequestParams, request_params
from llcuda.params import SamplingParams
from llcuda.server.llama_server.protocol import FOREVER, STEPS, GenerationBody
from llcuda.server.models import LoadedModel
from llcuda.server.timings import build_info

# llama-server's names of sampling parameters, and llcuda's.
_SAMPLING = {
    "temperature": "temperature",
    "dynatemp_range": "dynatemp_range",
    "dynatemp_exponent": "dynatemp_exponent",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "top_n_sigma": "top_n_sigma",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "typical_p": "typical_p",
    "repeat_last_n": "penalty_last_n",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "dry_multiplier": "dry_multiplier",
    "dry_base": "dry_base",
    "dry_allowed_length": "dry_allowed_length",
    "dry_penalty_last_n": "dry_last_n",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "adaptive_target": "adaptive_target",
    "adaptive_decay": "adaptive_decay",
    "min_keep": "min_keep",
}


def generation_settings(
    body: GenerationBody, keywords: dict[str, Any], loaded: LoadedModel, seed: int
) -> dict[str, Any]:
    """Return `generation_settings`: what a text was generated with.

    Args:
        body: The body of the request.
        keywords: Its keywords for `Engine.submit`.
        loaded: The model.
        seed: The seed of the text.
    """
    given = {name: value for name, value in keywords.items() if name != "response_format"}
    params, sampling = request_params(given)
    biases = dict(sampling.logit_bias)
    if params.ignore_eos:
        biases |= dict.fromkeys(loaded.model.eog_tokens, -math.inf)
    return {
        **_settings(params, sampling, body.token_limit()),
        "seed": seed,
        "stream": bool(body.stream),
        "n_probs": body.n_probs or 0,
        "logit_bias": [
            {"token": token, "bias": bias if math.isfinite(bias) else None}
            for token, bias in biases.items()
        ],
        "grammar": body.grammar or "",
        "timings_per_token": bool(body.timings_per_token),
        "post_sampling_probs": bool(body.post_sampling_probs),
        "lora": loaded.adapter_scales(),
    }


def _settings(params: RequestParams, sampling: SamplingParams, limit: int) -> dict[str, Any]:
    limit = -1 if limit == FOREVER else limit
    names = {own: (name, off) for name, (own, off) in STEPS.items()}
    steps = [name for own, (name, off) in names.items() if getattr(sampling, own) != off]
    return {
        **{name: getattr(sampling, own) for name, own in _SAMPLING.items()},
        "dry_sequence_breakers": list(sampling.dry_breakers),
        "stop": list(params.stop or ()),
        "max_tokens": limit,
        "n_predict": limit,
        "n_keep": params.keep,
        "ignore_eos": params.ignore_eos,
        "samplers": steps,
    }


def properties(loaded: LoadedModel, path: str) -> dict[str, Any]:
    """Return the object of GET /props.

    Args:
        loaded: The model.
        path: The name of its file.
    """
    model, engine = loaded.model, loaded.text_engine()
    defaults = _settings(RequestParams(), SamplingParams(), FOREVER)
    bos = "" if model.bos is None else model.token_name(model.bos)
    eos = "" if model.eos is None else model.token_name(model.eos)
    return {
        "default_generation_settings": {
            "n_ctx": engine.ctx_size,
            "params": {**defaults, "seed": -1, "lora": loaded.adapter_scales()},
        },
        "total_slots": len(engine.slots()),
        "model_alias": loaded.spec.name,
        "model_path": path,
        "modalities": {"vision": False, "audio": False},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "chat_template": model.chat_template or "",
        "bos_token": bos,
        "eos_token": eos,
        "build_info": build_info(),
        "is_sleeping": False,
    }
