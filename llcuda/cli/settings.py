"""The settings of a model and its engine as options and as keys of a file, each declared once.

`SETTINGS` says what the help has of each keyword of `EngineConfig.from_kwargs`; its type is the
keyword's, and its limits are those of the library. An option that is not given leaves the library's
default. A command takes all settings or some of them, see `takes_settings`.
"""

from __future__ import annotations

import functools
import inspect
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from llcuda.cli.console import MODEL
from llcuda.errors import ArgumentError
from llcuda.keywords import NEAR, ConfigKeywords

DEVICES, CACHE, COMPUTATION, ROPE = "Devices and weights", "KV cache", "Computation", "Positions"
LIMITS = "Limits"
MODELS = "llcuda.models"  # the key of a context's `meta` with the tables of a file

Pooling = Annotated[
    str | None,
    typer.Option(
        help="Of embeddings: mean, cls, last, rank. Default: the model's.",
        metavar="POOLING",
        rich_help_panel=MODEL,
    ),
]


@dataclass(frozen=True, slots=True)
class Setting:
    """An option.

    Attributes:
        help: What the help says.
        metavar: What its value is; None for a switch.
        panel: The heading in the help.
        option: Its name, where it is not that of the keyword.
        short: Further names.
    """

    help: str
    metavar: str | None = None
    panel: str = COMPUTATION
    option: str = ""
    short: tuple[str, ...] = ()


_KV_TYPES = "f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl or f32"

SETTINGS = {
    "gpu_layers": Setting(
        "Layers on the GPU; 0 = none. Default: all that fit.", "LAYERS", MODEL, short=("-ngl",)
    ),
    "ctx_size": Setting(
        "Tokens of each sequence: prompt and answer together. Default: what the model was trained"
        " on, as far as memory allows.",
        "TOKENS",
        MODEL,
        short=("-c",),
    ),
    "n_parallel": Setting("Sequences in one batch. Default: 4.", "SEQUENCES", MODEL, "parallel"),
    "threads": Setting(
        "Default: every processor, or 1 for a model below 32 MiB.", "THREADS", MODEL
    ),
    "threads_batch": Setting("For prompts. Default: those of --threads.", "THREADS"),
    "split_mode": Setting(
        "How GPUs share the model: none, layer, row or tensor. Default: layer.", "MODE", DEVICES
    ),
    "tensor_split": Setting("Share of each GPU, such as 3,1.", "SHARES", DEVICES),
    "main_gpu": Setting("The GPU of --split-mode none.", "INDEX", DEVICES),
    "devices": Setting("A device to use; may be repeated. Default: all GPUs.", "DEVICE", DEVICES),
    "mmap": Setting("Map the file instead of reading it. Default: yes.", None, DEVICES),
    "mlock": Setting("Keep the file in RAM.", None, DEVICES),
    "check_tensors": Setting("Look for invalid weights.", None, DEVICES),
    "overrides": Setting("Replace a metadata key; may be repeated.", "KEY=VALUE", DEVICES),
    "bf16_copies": Setting("Matrices as BF16 too, for many texts (Hopper).", None, DEVICES),
    "bf16_to_f16": Setting(
        "BF16 weights as F16 on the GPU. Default: on compute capability 7.5.", None, DEVICES
    ),
    "cache_size": Setting(
        "KV cells of all sequences. Default: sequences x context.", "CELLS", CACHE
    ),
    "type_k": Setting(f"Type of the keys: {_KV_TYPES}. Default: f16.", "TYPE", CACHE),
    "type_v": Setting("Type of the values. Default: f16.", "TYPE", CACHE),
    "offload_kqv": Setting("Attention and KV cache on the GPU. Default: yes.", None, CACHE),
    "swa_full": Setting("Whole sequences in layers with a window. Default: yes.", None, CACHE),
    "unified_kv": Setting("One buffer for all sequences. Default: no.", None, CACHE),
    "flash_attention": Setting("Default: where the device has it."),
    "batch_size": Setting("Prompt tokens of one step. Default: 512.", "TOKENS"),
    "ubatch_size": Setting("Tokens computed at once. Default: 128.", "TOKENS"),
    "outputs_max": Setting("Rows of logits of one step; 0 = --batch-size.", "ROWS"),
    "speculation": Setting("Tokens guessed for each step; 0 = off. Default: 0.", "TOKENS"),
    "device_logits": Setting("Logits stay on the GPU. Default: where it helps."),
    "op_offload": Setting("The GPU computes large prompts of CPU layers. Default: yes."),
    "batch_invariant": Setting(
        "On the CPU: answers do not depend on other requests and the cache."
    ),
    "cuda_graphs": Setting(
        "on, off, checked (first replays are compared) or auto (checked on a T4). Default: auto.",
        "MODE",
    ),
    "queue_size": Setting("Requests that may wait. Default: 1024.", "REQUESTS", LIMITS, "queue"),
    "rope_scaling": Setting("none, linear, yarn or longrope.", "METHOD", ROPE),
    "rope_freq_base": Setting("Base frequency of RoPE.", "NUMBER", ROPE),
    "rope_freq_scale": Setting("Scale of RoPE's frequency.", "NUMBER", ROPE),
    "yarn_ext_factor": Setting("YaRN's mix of extrapolation.", "NUMBER", ROPE),
    "yarn_attn_factor": Setting("YaRN's scale of attention.", "NUMBER", ROPE),
    "yarn_beta_fast": Setting("YaRN's upper number of rotations.", "NUMBER", ROPE),
    "yarn_beta_slow": Setting("YaRN's lower number of rotations.", "NUMBER", ROPE),
    "yarn_orig_ctx": Setting("Tokens of the original context.", "TOKENS", ROPE),
}
_SEVERAL = ("n_parallel", "cache_size", "unified_kv", "queue_size")  # for several texts at once
ONE_TEXT = {name: setting for name, setting in SETTINGS.items() if name not in _SEVERAL}
SIZES = {name: SETTINGS[name] for name in ("gpu_layers", "threads")}
# Other defaults: `Model` loads all layers, and a whole text is read by every processor.
WHOLE_MODEL = {
    **SIZES,
    "gpu_layers": replace(SIZES["gpu_layers"], help="Layers on the GPU; 0 = none. Default: all."),
}
THREADS = {"threads": replace(SIZES["threads"], help="Default: every processor.")}
READING = {**WHOLE_MODEL, **THREADS}
EMBEDDING = {
    "ctx_size": replace(
        SETTINGS["ctx_size"],
        help="Longest text. Default: as the model was trained, at most 2,048.",
    ),
    **WHOLE_MODEL,
}
_TYPES = get_type_hints(ConfigKeywords)
NO_OPTIONS = {"vocab_only": "such a model computes nothing"}


def _option_type(keyword: str) -> Any:
    """Return the type of an option: the keyword's, or None where it is not given."""
    if keyword in ("devices", "overrides"):
        return list[str] | None
    if keyword == "tensor_split":
        return str | None
    return _TYPES[keyword] | None


def takes_settings(
    settings: Mapping[str, Setting] = SETTINGS,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command settings as options.

    The command gets those that were given as keywords of `EngineConfig.from_kwargs`, its argument
    `settings`. They are checked before it runs.

    Args:
        settings: The settings by their keywords.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**arguments: Any) -> None:
            values = {name: arguments.pop(_option_name(name)) for name in settings}
            given = _parsed({name: v for name, v in values.items() if v not in (None, [])})
            if given:
                from llcuda.engine.config import EngineConfig

                EngineConfig.from_kwargs(**given)
            function(settings=given, **arguments)

        own = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.name != "settings"]
        parameters += [_parameter(keyword, setting) for keyword, setting in settings.items()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _parameter(keyword: str, setting: Setting) -> inspect.Parameter:
    """Return the parameter of a command from which Typer makes an option."""
    name = _option_name(keyword)
    flag = f"--{name.replace('_', '-')}"
    names = [flag, *setting.short] if setting.metavar else [f"{flag}/--no-{flag[2:]}"]
    option = typer.Option(
        *names, help=setting.help, metavar=setting.metavar, rich_help_panel=setting.panel
    )
    kind: Any = Annotated[_option_type(keyword), option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _option_name(keyword: str) -> str:
    return SETTINGS[keyword].option or keyword


def _parsed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with lists and mappings in place of their texts, and with what they imply."""
    if isinstance(shares := settings.get("tensor_split"), str):
        try:
            settings["tensor_split"] = [float(share) for share in shares.split(",")]
        except ValueError:
            raise ArgumentError(f"--tensor-split {shares}: expected numbers such as 3,1") from None
    if isinstance(pairs := settings.get("overrides"), list):
        settings["overrides"] = dict(_override(pair) for pair in pairs)
    if settings.get("batch_invariant"):  # on the CPU only
        settings.setdefault("devices", ())
    return settings


def _override(pair: str) -> tuple[str, int | float | bool | str]:
    key, equals, text = pair.partition("=")
    if not equals:
        raise ArgumentError(f"--overrides {pair}: expected KEY=VALUE")
    if text in ("true", "false"):
        return key, text == "true"
    for kind in (int, float):
        try:
            return key, kind(text)
        except ValueError:
            pass
    return key, text


# --- the file ---


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let a TOML file give the options that the command line does not give.

    Args:
        context: The command's; `context.meta` gets the tables of the models.
        path: The file.

    Raises:
        ArgumentError: The file is not TOML, or has a key that is no option.
    """
    if path is None or context.resilient_parsing:
        return path
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--config {path}: the file is not TOML: {error}") from None
    options = {
        name.removeprefix("--").replace("-", "_"): option
        for option in context.command.params
        for name in (*option.opts, str(option.name))
        if name.startswith("--") or name == option.name
    }
    options.pop("config")
    given: dict[str, Any] = {}
    for key, value in document.items():
        option = options.get(key.replace("-", "_"))
        if option is None:
            raise ArgumentError(f"--config {path}: {_unknown(key, options)}")
        if option.name == "models" and _is_tables(value):
            context.meta[MODELS] = value
            continue
        given[str(option.name)] = _as_option(f"--config {path}: {key}", option, value)
    context.default_map = {**(context.default_map or {}), **given}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        is_eager=True,
        callback=read_config,
        help="A TOML file with options as keys.",
        metavar="FILE",
    ),
]


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(key.replace("-", "_"), known, 1, NEAR)
    return f"no such option: {key}" + (f"; did you mean {near[0]}?" if near else "")


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _as_option(where: str, option: Any, value: Any) -> Any:
    """Return a value as the command line would give it."""
    is_list = getattr(option, "multiple", False) or option.nargs == -1
    if isinstance(value, dict):
        value = [f"{key}={_text(item)}" for key, item in value.items()]
    if isinstance(value, list) and not is_list:
        return ",".join(map(_text, value))
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list) for item in items):
        raise ArgumentError(f"{where}: expected a value or a list of values")
    if getattr(option, "is_flag", False) and not isinstance(value, bool):
        raise ArgumentError(f"{where} = {_text(value)}: expected true or false")
    if isinstance(value, bool) and not getattr(option, "is_flag", False):
        raise ArgumentError(f"{where} = {_text(value)}: expected no switch but a value")
    return [_text(item) for item in items] if is_list else value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def model_settings(table: Mapping[str, Any], others: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a table `[[models]]`.

    Args:
        table: The table, its keys with `_`.
        others: Keys that it may have besides.

    Raises:
        ArgumentError: A key is unknown.
    """
    keywords = {_option_name(name): name for name in SETTINGS}
    given: dict[str, Any] = {}
    for key, value in table.items():
        if key in others:
            continue
        if key not in keywords:
            raise ArgumentError(f"models: {_unknown(key, {**keywords, **dict.fromkeys(others)})}")
        given[keywords[key]] = value
    return _parsed(given)
