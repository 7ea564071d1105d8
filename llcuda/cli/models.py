"""`llcuda list`, `pull`, `show`, `cp`, `rm` and `ps`: models on this machine and on the hub."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli.console import complete_model, examples, stdout_console
from llcuda.errors import ArgumentError

if TYPE_CHECKING:
    from rich.table import Table

    from llcuda.hub.installed import InstalledModel
    from llcuda.hub.registry import RegistryEntry
    from llcuda.running import RunningServer

app = typer.Typer()

PIPE_WIDTH = 200  # columns that hold the longest name uncut where stdout is not a terminal
HEALTH_TIMEOUT = 2.0  # seconds until a server counts as silent
_AGES = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))

Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=complete_model,
        help="Short name, repo/id[:QUANTIZATION], https://huggingface.co/..., ollama://name:tag,"
        " or a path.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("list", epilog=examples("llcuda list --all --kind coder"))
def list_(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Show the models with a short name too.")
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="With a short name, of this kind: chat, reasoning, coder, vision, base, embedding"
            " or rerank.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the models on this machine; with --all also those that a short name downloads."""
    from llcuda.hub.installed import installed_models
    from llcuda.hub.registry import registry

    kinds = sorted({entry.kind for entry in registry().values()})
    if kind is not None and kind not in kinds:
        raise ArgumentError(f"--kind {kind}: expected one of {', '.join(kinds)}")
    here = installed_models() if kind is None else []
    entries = [
        entry
        for entry in registry().values()
        if (everything or kind is not None) and kind in (None, entry.kind)
    ]
    if as_json:
        print(json.dumps({"installed": _documents(here), "registry": _documents(entries)}))
        return
    console = stdout_console(pipe_width=PIPE_WIDTH)
    if here:
        console.print(_installed_table(here))
    if here and entries:
        console.print()
    if entries:
        console.print(_registry_table(entries))


def _documents(rows: list[Any]) -> list[dict[str, Any]]:
    documents = [asdict(row) for row in rows]
    return [
        {key: str(value) if key == "path" and value else value for key, value in row.items()}
        for row in documents
    ]


def _installed_table(models: list[InstalledModel]) -> Table:
    table = _table("Name", "Size", "Modified", "From")
    for model in models:
        facts = (_size(model.size), f"{_age(model.modified)} ago") if model.path else ("", "")
        table.add_row(model.name, *facts, f"= {model.target}" if model.target else model.source)
    return table


def _registry_table(entries: list[RegistryEntry]) -> Table:
    table = _table("Short name", "Kind", "Size", "Parameters", "Context", "License")
    for entry in entries:
        facts = (f"{entry.gigabytes:g} GB", f"{entry.parameters:g} B", f"{entry.context:,}")
        table.add_row(entry.name, entry.kind, *facts, entry.license)
    return table


@app.command(epilog=examples("llcuda pull qwen2.5-1.5b"))
def pull(
    name: Name,
    filename: Annotated[
        str | None, typer.Argument(metavar="FILE", help="The file, after repo/id.")
    ] = None,
    silent: Annotated[bool, typer.Option("--silent", help="No progress bar.")] = False,
) -> None:
    """Download a model, or its newer version, and print its path; a stopped download goes on."""
    from llcuda.hub.resolver import pull as pull_model

    print(pull_model(name, filename, progress=not silent))


@app.command(epilog=examples("llcuda show qwen2.5-1.5b"))
def show(
    name: Name,
    template: Annotated[
        bool, typer.Option("--template", help="Print only the chat template.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a model is: architecture, parameters, context, quantization, template, license."""
    from rich.text import Text

    document = describe_model(name)
    if template:
        if document["template"] is None:
            raise ArgumentError(f"{name}: has no chat template; it continues texts")
        print(document["template"])
        return
    if as_json:
        print(json.dumps(document))
        return
    text = document["template"]
    document["template"] = f"{len(text):,} characters; --template prints it" if text else "none"
    document["size"] = _size(document["size"])
    table = _table("", "")
    table.show_header = False
    for key, value in document.items():
        cell = f"{value:,}" if isinstance(value, int) else str(value)
        if value is not None:
            table.add_row(key.replace("_", " "), Text(cell if cell.isprintable() else ascii(cell)))
    stdout_console(pipe_width=PIPE_WIDTH).print(table)


def describe_model(name: str) -> dict[str, Any]:
    """Return what the header of a model says, ready for JSON; None is what it does not say.

    Args:
        name: The model, as `llcuda.hub.resolve` takes it. One on the hub is not downloaded.

    Raises:
        ModelNotFoundError: There is no such model.
        GGUFError: It is not a GGUF file.
    """
    from llcuda.cli.inspect import open_model
    from llcuda.gguf_parser import GGUFReader
    from llcuda.hub.names import part_names
    from llcuda.hub.registry import entry_of

    with open_model(name) as (path, downloaded), GGUFReader(path) as reader:
        metadata, summary = reader.metadata, reader.summary()
        files = [path.with_name(part) for part in part_names(path.name)]
        architecture = summary.architecture
        facts: dict[str, Any] = {
            "name": summary.name or None,
            "architecture": architecture or None,
            "parameters": summary.parameters,
            "context_length": metadata.get(f"{architecture}.context_length"),
            "embedding_length": metadata.get(f"{architecture}.embedding_length"),
            "layers": metadata.get(f"{architecture}.block_count"),
            "quantization": _quantization(metadata.get("general.file_type"), summary.types),
            "size": sum(file.stat().st_size for file in files) if downloaded else summary.nbytes,
            "license": metadata.get("general.license.name") or metadata.get("general.license"),
            "license_link": metadata.get("general.license.link"),
            "base_model": metadata.get("general.base_model.0.repo_url"),
            "template": metadata.get("tokenizer.chat_template"),
            "path": str(path) if downloaded else None,
        }
        if facts["license"] is None and (entry := entry_of(name)):
            facts["license"] = entry.license
        return {key: v.item() if hasattr(v, "item") else v for key, v in facts.items()}


@app.command(epilog=examples("llcuda cp unsloth/Qwen3-4B-GGUF:Q5_K_M writer"))
def cp(
    source: Name,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")],
) -> None:
    """Give a model a name of your own, which every command and the library take."""
    from llcuda.hub.installed import copy_name

    target = copy_name(source, name)
    print(f"{name} = {target}")


@app.command(epilog=examples("llcuda rm qwen2.5-1.5b"))
def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="Models that `llcuda list` shows.", autocompletion=complete_model
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete downloaded models, or forget names of `llcuda cp`; files that others share stay."""
    from llcuda.hub.installed import plan_removal, remove

    plans = [plan_removal(name) for name in names]
    for plan in plans:
        if plan.own_name is not None:
            print(f"{plan.name}: only this name; its model stays")
        else:
            count = len(plan.blobs) or len(plan.links)
            print(f"{plan.name}: {_size(plan.size)} in {count} file{'s' * (count > 1)}")
    if not yes and any(plan.own_name is None for plan in plans):
        if not sys.stdin.isatty():
            raise ArgumentError("rm: nobody can be asked, for stdin is not a terminal; give --yes")
        typer.confirm("Delete?", abort=True)
    for plan in plans:
        remove(plan)
        print(f"{plan.name}: deleted")


@app.command(epilog=examples("llcuda ps"))
def ps(as_json: AsJson = False) -> None:
    """Show the llcuda servers of this user that run on this machine, and what they serve."""
    from llcuda.running import running_servers

    servers = [(server, _health(server)) for server in running_servers()]
    if as_json:
        print(json.dumps([asdict(server) | {"health": health} for server, health in servers]))
        return
    if not servers:
        print("No llcuda server of this user runs on this machine; `llcuda serve` starts one.")
        return
    table = _table("Address", "Models", "Health", "Process", "Since")
    for server, health in servers:
        since = f"{_age(server.started)} ago"
        table.add_row(server.address, ", ".join(server.models), health, str(server.pid), since)
    stdout_console(pipe_width=PIPE_WIDTH).print(table)


def _health(server: RunningServer) -> str:
    """Return what a server says of itself; it needs no API key for that."""
    address = server.address.replace("//0.0.0.0", "//127.0.0.1").replace("//[::]", "//[::1]")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{address}/health", timeout=HEALTH_TIMEOUT) as response:
            return str(json.load(response)["status"])
    except urllib.error.HTTPError as error:
        return "failed" if error.code == 503 else f"HTTP {error.code}"
    except (OSError, ValueError, KeyError, TypeError):
        return "no answer"


def _quantization(file_type: Any, types: dict[str, int]) -> str | None:
    """Return the file's type, such as "Q4_K_M"; the most frequent type where it is unknown."""
    from llcuda.native.quantization.plan import file_type_name

    return file_type_name(file_type) or next(iter(types), None)


def _table(*columns: str) -> Table:
    from rich.table import Table

    return Table(*columns, box=None, pad_edge=False)


def _size(nbytes: int) -> str:
    """Return a size in units of 10^9 or 10^6 bytes, as download pages show it."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"


def _age(moment: float) -> str:
    """Return how long ago a time is, in its largest unit."""
    seconds = max(0.0, time.time() - moment)
    length, unit = next((pair for pair in _AGES if seconds >= pair[0]), _AGES[-1])
    count = int(seconds // length)
    return f"{count} {unit}{'' if count == 1 else 's'}"
