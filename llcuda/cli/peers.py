"""Options and commands of llama.cpp, ollama, vLLM and llm, and what a user of llcuda types."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable

# Options of peers, and the options here.
_OPTIONS = {
    "--temp": "--temperature",
    "-t": "--threads",
    "-c": "--ctx-size",
    "--num-ctx": "--ctx-size",
    "--n-ctx": "--ctx-size",
    "-ngl": "--gpu-layers",
    "--n-gpu-layers": "--gpu-layers",
    "--num-gpu": "--gpu-layers",
    "--num-predict": "--max-tokens",
    "--n-predict": "--max-tokens",
    "--num-thread": "--threads",
    "--lora": "--adapter",
    "--grammar-file": "--grammar",
    "--json-schema-file": "--json-schema",
    "--chat-template-file": "--chat-template",
    "--system-prompt": "--system",
    "-sys": "--system",
    "--schema": "--json-schema",
    "-np": "--parallel",
    "--max-num-seqs": "--parallel",
    "--max-model-len": "--ctx-size",
    "--max-num-batched-tokens": "--batch-size",
    "-b": "--batch-size",
    "-ub": "--ubatch-size",
    "-tb": "--threads-batch",
    "-fa": "--flash-attention",
    "--flash-attn": "--flash-attention",
    "-ctk": "--type-k",
    "--cache-type-k": "--type-k",
    "--kv-cache-dtype": "--type-k",
    "-ctv": "--type-v",
    "--cache-type-v": "--type-v",
    "-sm": "--split-mode",
    "-ts": "--tensor-split",
    "-mg": "--main-gpu",
    "-dev": "--devices",
    "--device": "--devices",
    "-no-cnv": "--raw",
    "--no-conversation": "--raw",
}
_MODEL = (
    'the model follows a command: llcuda chat MODEL, llcuda serve MODEL, llcuda run MODEL "PROMPT"'
)
_REPOSITORY = 'a repository is a model\'s name: llcuda run org/repo:Q4_K_M "PROMPT"'
_NAME = "a name stands before the model: llcuda serve NAME=MODEL"
_PROMPT = 'the prompt needs no option: llcuda run MODEL "PROMPT"'
_CHAT = "`llcuda chat MODEL` is a conversation"
_SHOW = "`llcuda show MODEL` shows all there is"
# Options of peers that are something else here.
_OTHER_WAYS = {
    "-p": _PROMPT,
    "--prompt": _PROMPT,
    "-f": 'a file is read from stdin: llcuda run MODEL "PROMPT" < FILE',
    "-m": _MODEL,
    "--model": _MODEL,
    "-hf": _REPOSITORY,
    "--hf-repo": _REPOSITORY,
    "-a": _NAME,
    "--alias": _NAME,
    "--served-model-name": _NAME,
    "-cnv": _CHAT,
    "--conversation": _CHAT,
    "-i": _CHAT,
    "--interactive": _CHAT,
    "--format": 'a schema says what JSON to write: llcuda run MODEL "PROMPT" --json-schema FILE',
    "--keepalive": "a model stays as long as the command runs; leave it out",
    "--nowordwrap": "lines are never wrapped; leave it out",
    "--modelfile": _SHOW,
    "--parameters": _SHOW,
    "--license": _SHOW,
    "-cb": "requests are always computed in one batch; leave it out",
    "--cont-batching": "requests are always computed in one batch; leave it out",
    "--jinja": "the model's chat template is always used; leave it out",
    "--dtype": "the file says the type of the weights; leave it out",
    "--gpu-memory-utilization": "a share cannot be given; --memory GB bounds what models take",
    "--tensor-parallel-size": "all GPUs take part; --split-mode says how",
    "--verbose": "`llcuda run --json` prints timings, /stats shows them in a chat",
}
# Commands of peers.
_COMMANDS = {
    "create": "`llcuda quantize` and `llcuda convert` write models, `llcuda cp` gives a name",
    "delete": "`llcuda rm MODEL` deletes a model",
    "generate": '`llcuda run MODEL "PROMPT"` generates a text',
    "models": "`llcuda list` shows the models",
    "prompt": '`llcuda run MODEL "PROMPT"` answers a prompt',
    "remove": "`llcuda rm MODEL` deletes a model",
    "server": "`llcuda serve MODEL` starts the server",
    "stop": "Ctrl-C ends `llcuda serve`; `llcuda ps` shows the servers",
}


def option_advice(name: str, words: Iterable[str], options: Collection[str]) -> str | None:
    """Return an error that says what to type for a peer's option; None for any other option.

    Args:
        name: The unknown option; only its beginning where it has one dash and several letters.
        words: The words of the command line.
        options: The names of the options that the command has.
    """
    written = [word.partition("=")[0] for word in words if word.startswith(name)]
    for option in (*written, name):
        here = _OPTIONS.get(option)
        if here in options:
            return f"{option}: no such option; give {here}"
        if option in _OTHER_WAYS:
            return f"{option}: no such option; {_OTHER_WAYS[option]}"
    return None


def misread_advice(words: Iterable[str], options: Collection[str]) -> str | None:
    """Return the advice for a peer's option whose letters would be read as options here.

    Such as -hf, which is -h and -f, and -no-cnv, which is -n with a value.

    Args:
        words: The words after a command, in which "--" ends the options.
        options: As those of `option_advice`.
    """
    typed = itertools.takewhile(lambda word: word != "--", words)
    misread = [word for word in typed if re.fullmatch(r"-[a-z][a-z-]+", word)]
    advices = (option_advice(word, [word], options) for word in misread if word not in options)
    return next(filter(None, advices), None)


def command_advice(name: str) -> str | None:
    """Return an error that says what to type for a peer's command; None for any other word.

    Args:
        name: The unknown command.
    """
    if name in _COMMANDS:
        return f"{name}: no such command; {_COMMANDS[name]}"
    if len(name.split()) > 1:
        return f"{name!r}: no such command; a prompt follows one: llcuda run demo {name!r}"
    return None
