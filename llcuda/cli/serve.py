"""`llcuda serve`: an OpenAI-compatible server."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llcuda.cli.console import INTERRUPTED, MODEL, complete_model, examples
from llcuda.cli.options import Adapters, checked_adapters, template_text
from llcuda.cli.settings import (
    LIMITS,
    MODELS,
    Config,
    Pooling,
    model_settings,
    takes_settings,
)
from llcuda.cli.texts import option_text
from llcuda.errors import ArgumentError, LibraryError

if TYPE_CHECKING:
    from llcuda.server import ModelSpec

logger = logging.getLogger("llcuda.server")
app = typer.Typer()
EXIT_SECONDS = 5.0  # for threads that still work when the server has stopped
NETWORK, LOG = "Network", "Log"  # headings of options
UNITS = {"MB": 1e6, "GB": 1e9}
MAX_BYTES = 1e18
TABLE_KEYS = ("source", "name", "aliases", "pooling", "chat_template", "bare_tool_calls", "adapter")
CLUSTER = "Cluster (Ray)"
# Options of one process, which a cluster has no use for.
NOT_ON_RAY = ("uds", "tls_cert", "tls_key", "slot_save_path", "file_path", "idle_timeout")
# Options of a cluster, which one process has no use for.
ONLY_ON_RAY = ("ray_address", "replicas", "min_replicas", "max_replicas", "num_gpus", "num_cpus")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


@app.command(
    epilog=examples(
        "llcuda serve qwen2.5-1.5b",
        "llcuda serve chat=model.gguf --host 0.0.0.0 --api-key-file keys.txt",
    )
)
@takes_settings()
def serve(
    context: typer.Context,
    settings: dict[str, Any],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="GGUF file, short name or repo/id; NAME,ALIAS=FILE names it. Default: demo.",
            metavar="MODEL",
            autocompletion=complete_model,
        ),
    ] = None,
    config: Config = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address; 0.0.0.0 is all addresses.", metavar="ADDRESS", rich_help_panel=NETWORK
        ),
    ] = "127.0.0.1",
    uds: Annotated[
        Path | None,
        typer.Option(
            help="A Unix socket in place of an address.", metavar="PATH", rich_help_panel=NETWORK
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Certificate chain (PEM): HTTPS.",
            metavar="FILE",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Its key (PEM). Default: in the file of the certificate.",
            metavar="FILE",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="0 = a free port.", metavar="PORT", rich_help_panel=NETWORK
        ),
    ] = 8080,
    pooling: Pooling = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="A Jinja file, or the name of one of the model's templates.",
            metavar="FILE",
            rich_help_panel=MODEL,
        ),
    ] = None,
    bare_tool_calls: Annotated[
        bool,
        typer.Option(help="An answer of JSON that names a tool is a call.", rich_help_panel=MODEL),
    ] = True,
    adapter: Adapters = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GB for all models; default: what is free.",
            metavar="GB",
            rich_help_panel=MODEL,
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="LLCUDA_API_KEY",
            help="Required of clients; may be repeated.",
            metavar="KEY",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with a key on each line.",
            metavar="FILE",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name in requests; * = any; may be repeated.",
            metavar="HOST",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin whose pages may send requests, or localhost; may be repeated.",
            metavar="ORIGIN",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    slot_save_path: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder where clients save slots of the KV cache.",
            metavar="FOLDER",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    file_path: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of uploaded files and of results of batches. Default: a temporary one.",
            metavar="FOLDER",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Refuse a request of which something would be ignored.",
            rich_help_panel=LIMITS,
        ),
    ] = False,
    max_body: Annotated[
        float,
        typer.Option(
            min=0, help="Largest body of a request in MB.", metavar="MB", rich_help_panel=LIMITS
        ),
    ] = 16,
    max_bodies: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Bodies of all requests in MB. Default: 16 of the largest.",
            metavar="MB",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_file: Annotated[
        float,
        typer.Option(
            min=0, help="Largest uploaded file in MB.", metavar="MB", rich_help_panel=LIMITS
        ),
    ] = 200,
    max_files: Annotated[
        float,
        typer.Option(
            min=0,
            help="All files in MB, results of batches included.",
            metavar="MB",
            rich_help_panel=LIMITS,
        ),
    ] = 2000,
    body_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds until a body has arrived.",
            metavar="SECONDS",
            rich_help_panel=LIMITS,
        ),
    ] = 30,
    idle_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds until the head of a request has arrived.",
            metavar="SECONDS",
            rich_help_panel=LIMITS,
        ),
    ] = 30,
    deadline: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds of a request; 0 = none.", metavar="SECONDS", rich_help_panel=LIMITS
        ),
    ] = 600,
    drain: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to finish after SIGTERM.",
            metavar="SECONDS",
            rich_help_panel=LIMITS,
        ),
    ] = 30,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            help="OpenTelemetry collector that gets traces, such as http://localhost:4318.",
            metavar="URL",
            rich_help_panel=LOG,
        ),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Serve from replicas on a Ray cluster.", rich_help_panel=CLUSTER
        ),
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            help="Address of the cluster. Default: one on this machine.",
            metavar="ADDRESS",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            help="Processes that compute. Default: 1.", metavar="NUMBER", rich_help_panel=CLUSTER
        ),
    ] = None,
    min_replicas: Annotated[
        int | None,
        typer.Option(
            help="Fewest of them; Ray chooses by load.", metavar="NUMBER", rich_help_panel=CLUSTER
        ),
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(help="Most of them.", metavar="NUMBER", rich_help_panel=CLUSTER),
    ] = None,
    num_gpus: Annotated[
        float | None,
        typer.Option(
            help="GPUs of each replica, or its part of one. Default: 0.",
            metavar="NUMBER",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    num_cpus: Annotated[
        float | None,
        typer.Option(
            help="Processors of each replica. Default: 1.",
            metavar="NUMBER",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option(
            help="debug, info (a line for each request), warning or error.",
            metavar="LEVEL",
            rich_help_panel=LOG,
        ),
    ] = "info",
    log_format: Annotated[
        str, typer.Option(help="text or json.", metavar="FORMAT", rich_help_panel=LOG)
    ] = "text",
) -> None:
    """Serve the APIs of OpenAI, Anthropic, ollama and llama-server until SIGTERM or Ctrl-C."""
    try:
        from llcuda.progress import is_visible
        from llcuda.server import Limits, create_app
        from llcuda.server import serve as serve_app
        from llcuda.server.app import check_serving
        from llcuda.server.log import configure_logging
        from llcuda.server.submission import stop_threads
        from llcuda.server.tracing import otlp_provider
    except ModuleNotFoundError as error:
        missing = f"the server needs {error.name}: pip install 'llcuda[server]'"
        raise LibraryError(missing) from error
    configure_logging(log_level, log_format)
    _check_process(context, ray=ray)
    shared = {**settings, "bare_tool_calls": bare_tool_calls}
    if pooling is not None:
        shared["pooling"] = pooling
    if chat_template is not None:
        shared["template"] = template_text(chat_template)
    if adapter:
        shared["adapters"] = checked_adapters(adapter)
    tables = [] if models else context.meta.get(MODELS, [])
    specs = [_table_spec(i, table, shared) for i, table in enumerate(tables)]
    specs = specs or [_model_spec(argument, shared) for argument in models or ["demo"]]
    keys = [*(api_key or ()), *(_read_keys(api_key_file) if api_key_file else ())]
    total_body_bytes = None if max_bodies is None else _bytes("--max-bodies", max_bodies, "MB")
    if max_bodies is not None:
        _check_total("--max-bodies", max_bodies, "--max-body", max_body)
    _check_total("--max-files", max_files, "--max-file", max_file)
    if uds is not None:
        _check_address(context, uds)
    serving: dict[str, Any] = {
        "host": host,
        "port": port,
        "uds": uds,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "drain_seconds": drain,
        "idle_seconds": idle_timeout,
    }
    if not ray:
        check_serving(**serving)
    is_local = host in LOCAL_HOSTS or uds is not None
    if not is_local and not keys:
        typer.echo(f"warning: --host {host} is open to others; set --api-key", err=True)
    default_hosts = ("127.0.0.1", "localhost", "[::1]") if is_local else ()
    hosts = tuple(allowed_host) if allowed_host else default_hosts
    limits = Limits(
        body_bytes=_bytes("--max-body", max_body, "MB"),
        total_body_bytes=total_body_bytes,
        body_seconds=body_timeout,
        deadline=deadline or None,
        file_bytes=_bytes("--max-file", max_file, "MB"),
        total_file_bytes=_bytes("--max-files", max_files, "MB"),
    )
    common: dict[str, Any] = {
        "memory_budget": None if memory is None else _bytes("--memory", memory, "GB"),
        "keys": keys,
        "cors_origins": cors_origin or (),
        "hosts": () if "*" in hosts else hosts,
        "strict": strict,
        "limits": limits,
    }
    names = ", ".join(spec.name for spec in specs)

    def ready(address: str) -> None:
        print(f"{names} at {address}/v1", flush=True)
        page = "" if uds is not None else f"Chat page: {address}/   "
        print(f"{page}Press Ctrl-C to stop.", flush=True)

    if ray:
        from llcuda.ray.cluster import serve_on_ray
        from llcuda.ray.config import ClusterConfig

        counts: dict[str, Any] = {
            "replicas": replicas,
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "num_gpus": num_gpus,
            "num_cpus": num_cpus,
        }
        sizes = {name: value for name, value in counts.items() if value is not None}
        cluster = ClusterConfig(
            specs, **common, **sizes, otlp_endpoint=otlp_endpoint, drain_seconds=drain
        )
        serve_on_ray(cluster, address=ray_address, host=host, port=port, on_ready=ready)
        return
    app = create_app(
        specs,
        **common,
        slot_folder=slot_save_path,
        file_folder=file_path,
        progress=is_visible(),
        tracer_provider=otlp_provider(otlp_endpoint) if otlp_endpoint else None,
    )
    status = 0
    try:
        serve_app(app, on_ready=ready, **serving)
    except KeyboardInterrupt:
        status = INTERRUPTED
        raise
    finally:
        if not stop_threads(EXIT_SECONDS):
            logger.warning("the server ends while a large request is still read")
            os._exit(status)  # Python would wait for the thread


def _given(context: typer.Context, name: str) -> str | None:
    """Return how the user named an option; None for a default and for the environment."""
    words = {"COMMANDLINE": "--{}", "DEFAULT_MAP": "{} in the file of --config"}
    source = context.get_parameter_source(name)
    word = None if source is None else words.get(source.name)
    return word and word.format(name.replace("_", "-"))


def _check_process(context: typer.Context, *, ray: bool) -> None:
    """Refuse the options of one process on a cluster, and those of a cluster without --ray."""
    rule = "a cluster has no such option; leave it out"
    if not ray:
        rule = "belongs to a cluster; give --ray too"
    for name in NOT_ON_RAY if ray else ONLY_ON_RAY:
        if option := _given(context, name):
            raise ArgumentError(f"{option}: {rule}")


def _check_address(context: typer.Context, uds: Path) -> None:
    """Refuse an address beside a Unix socket, on the command line or in the file of options."""
    given = [option for name in ("host", "port") if (option := _given(context, name))]
    if given:
        verb = "is" if len(given) == 1 else "are"
        rule = f"a socket in place of an address, but {' and '.join(given)} {verb} given too"
        raise ArgumentError(f"--uds {uds}: {rule}; leave out one of them")


def _model_spec(argument: str, parameters: dict[str, Any]) -> ModelSpec:
    """Return the model of an argument, `NAME=MODEL`, `NAME,ALIAS,...=MODEL` or `MODEL`."""
    from llcuda.hub.names import served_name
    from llcuda.server import ModelSpec

    is_path = os.path.exists(argument)  # noqa: PTH110 - Path() refuses a NUL
    match = None if is_path else re.fullmatch(r"([^=/\\]+)=(.+)", argument)
    names, source = match.groups() if match else ("", argument)
    name, *aliases = [name.strip() for name in names.split(",")]
    return ModelSpec(
        name or served_name(source), source, parameters=parameters, aliases=tuple(aliases)
    )


def _bytes(option: str, number: float, unit: str) -> int:
    """Return the bytes of a number of MB or GB."""
    count = number * UNITS[unit]
    if not 1 <= count <= MAX_BYTES:
        raise ArgumentError(f"{option} {number:g}: expected {unit} above 0; e.g. {option} 8")
    return int(count)


def _check_total(option: str, total: float, part: str, size: float) -> None:
    """Raise ArgumentError for a limit of all that is less than the limit of one."""
    if total < size:
        rule = f"less than {part}, which is {size:g}"
        raise ArgumentError(f"{option} {total:g}: {rule}; give at least as much")


def _table_spec(index: int, table: Any, shared: dict[str, Any]) -> ModelSpec:
    """Return the model of a table `[[models]]` of the file."""
    from llcuda.hub.names import served_name
    from llcuda.server import ModelSpec

    where = f"models[{index}]"
    if not isinstance(table, dict):
        raise ArgumentError(f"{where}: expected a table with source")
    table = {key.replace("-", "_"): value for key, value in table.items()}
    source = table.get("source")
    if not isinstance(source, str):
        raise ArgumentError(f"{where}.source: expected a file, a short name or repo/id")
    parameters = {**shared, **model_settings(table, TABLE_KEYS)}
    parameters |= {key: table[key] for key in ("pooling", "bare_tool_calls") if key in table}
    if "chat_template" in table:
        parameters["template"] = template_text(str(table["chat_template"]))
    if isinstance(adapter := table.get("adapter", []), str):
        adapter = [adapter]
    if adapter:
        parameters["adapters"] = checked_adapters(map(str, adapter))
    name, aliases = table.get("name") or served_name(source), table.get("aliases", [])
    return ModelSpec(name, source, parameters=parameters, aliases=aliases)


def _read_keys(path: Path) -> list[str]:
    lines = option_text("--api-key-file", path, "write a key on each line").splitlines()
    return [line.strip() for line in lines if line.strip()]
