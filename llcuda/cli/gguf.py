"""`llcuda gguf`: look at, check, change, split and merge GGUF files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from llcuda.cli.console import complete_model, examples, print_error
from llcuda.cli.inspect import inspect
from llcuda.cli.texts import read_file
from llcuda.errors import ArgumentError

app = typer.Typer()
commands = typer.Typer(no_args_is_help=True)
app.add_typer(
    commands,
    name="gguf",
    help="Look at, check, change, split and merge GGUF files.",
    epilog=examples("llcuda gguf inspect model.gguf"),
)

Source = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="GGUF file, short name, or repo/id.",
        autocompletion=complete_model,
    ),
]
Target = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="File to write. Default: FILE itself."),
]
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}

commands.command(
    "inspect",
    epilog=examples("llcuda gguf inspect model.gguf --tensors"),
    help="Show what a file holds and what it needs here; the same as `llcuda inspect`.",
)(inspect)


@commands.command(epilog=examples("llcuda gguf validate *.gguf"))
def validate(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="GGUF files, short names, or repo/id.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON document for each file, each in a line.")
    ] = False,
) -> None:
    """Read all of each file and list what is wrong; exit status 1 if anything is."""
    from llcuda.errors import LlcudaError
    from llcuda.gguf_parser import GGUFReader

    failed = False
    for file in files:
        try:
            with GGUFReader(file) as reader:
                problems = reader.validate()
        except LlcudaError as error:
            problems = [str(error)]
        failed |= bool(problems)
        if as_json:
            print(json.dumps({"file": file, "problems": problems}), flush=True)
        elif not problems:
            print(f"{file}: nothing is wrong", flush=True)
        for problem in () if as_json else problems:
            print_error(problem if problem.startswith(file) else f"{file}: {problem}")
    if failed:
        raise typer.Exit(1)


@commands.command(epilog=examples("llcuda gguf get model.gguf tokenizer.chat_template"))
def get(
    file: Source,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of the metadata.")],
) -> None:
    """Print a value of the metadata, whole; arrays and numbers as JSON."""
    from llcuda.gguf_parser import GGUFReader
    from llcuda.native.gguf.metadata import Texts

    with GGUFReader(file) as reader:
        if key not in reader.metadata:
            raise ArgumentError(f"KEY {key}: {_no_such_key(reader.path, reader.metadata, key)}")
        value: Any = reader.metadata[key]
        if isinstance(value, str):
            print(value)
        elif isinstance(value, Texts):
            print(json.dumps([*value], ensure_ascii=False))
        else:
            print(json.dumps(value.tolist() if hasattr(value, "tolist") else value))


@commands.command(
    "set",
    context_settings={"ignore_unknown_options": True},  # negative numbers
    epilog=examples(
        'llcuda gguf set model.gguf general.name "My model"',
        "llcuda gguf set model.gguf tokenizer.chat_template --file template.jinja",
        "llcuda gguf set model.gguf my.numbers '[1, 2, 3]' --type uint32 -o new.gguf",
    ),
)
def set_(
    file: Source,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of the metadata.")],
    value: Annotated[
        str | None,
        typer.Argument(
            metavar="VALUE", help="The value; an array as a JSON list.", show_default=False
        ),
    ] = None,
    value_file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="File with the value; - is stdin."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="uint8 to uint64, int8 to int64, float32, float64, bool or string; of an array,"
            " that of its elements. Default: the type that the key has.",
        ),
    ] = None,
    target: Target = None,
) -> None:
    """Set a key of the metadata. The file is written anew, and replaced when that is complete."""
    from llcuda.gguf_editor import set_metadata
    from llcuda.gguf_parser import GGUFReader
    from llcuda.progress import progress_bar

    if (value is None) == (value_file is None):
        raise ArgumentError("give VALUE or --file, one of them")
    text = value if value_file is None else read_file(value_file).decode()
    assert text is not None
    with GGUFReader(file, split=False) as reader:
        path, metadata = reader.path, reader.metadata
        if key in metadata:
            is_array = metadata.count(key) is not None
            name = kind or metadata.type(key).name
        elif kind is None:
            rule = _no_such_key(path, metadata, key)
            raise ArgumentError(f"KEY {key}: {rule}; --type gives a new key its type")
        else:
            is_array, name = text.lstrip().startswith("[") and kind != "string", kind
    changes = {key: _typed(key, text, name, is_array)}
    with progress_bar(f"Writing {(target or path).name}") as draw:
        print(set_metadata(file, changes, target=target, progress=draw))


@commands.command(epilog=examples("llcuda gguf remove model.gguf general.url general.author"))
def remove(
    file: Source,
    keys: Annotated[list[str], typer.Argument(metavar="KEY", help="Keys of the metadata.")],
    target: Target = None,
) -> None:
    """Remove keys of the metadata. The file is written anew, and replaced when that is complete."""
    from llcuda.gguf_editor import set_metadata
    from llcuda.gguf_parser import GGUFReader
    from llcuda.progress import progress_bar

    with GGUFReader(file, split=False) as reader:
        for key in keys:
            if key not in reader.metadata:
                raise ArgumentError(f"KEY {key}: {_no_such_key(reader.path, reader.metadata, key)}")
        path = reader.path
    with progress_bar(f"Writing {(target or path).name}") as draw:
        print(set_metadata(file, {}, remove=keys, target=target, progress=draw))


@commands.command(epilog=examples("llcuda gguf split model.gguf --max-size 2G"))
def split(
    file: Source,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="Beginning of the names, e.g. parts/model. Default: that of FILE.",
            show_default=False,
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest file: 500M, 2G (powers of 1,000) or bytes."),
    ] = None,
    max_tensors: Annotated[
        int | None,
        typer.Option(min=1, metavar="TENSORS", help="Largest number of tensors in a file."),
    ] = None,
) -> None:
    """Write a model in several files, named FILE-00001-of-00003.gguf and so on; print the names."""
    from llcuda.gguf_editor import split_gguf
    from llcuda.native.gguf.parts import model_file
    from llcuda.progress import progress_bar

    if max_size is None and max_tensors is None:
        raise ArgumentError("give --max-size or --max-tensors, e.g. --max-size 2G")
    size = None if max_size is None else _size(max_size)
    path = model_file(file)
    if target is None and not Path(file).is_file():
        raise ArgumentError(f"TARGET: {file} is the name of a model; give the names of the files")
    with progress_bar(f"Splitting {path.name}") as draw:
        paths = split_gguf(
            path, target or _stem(path), max_size=size, max_tensors=max_tensors, progress=draw
        )
    for part in paths:
        print(part)


@commands.command(epilog=examples("llcuda gguf merge model-00001-of-00003.gguf model.gguf"))
def merge(
    path: Annotated[
        str, typer.Argument(metavar="FILE", help="One of the files; the others lie beside it.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File to write.")],
) -> None:
    """Write a model of several files as one file."""
    from llcuda.gguf_editor import merge_gguf
    from llcuda.progress import progress_bar

    with progress_bar(f"Writing {target.name}") as draw:
        print(merge_gguf(path, target, progress=draw))


def _no_such_key(path: Path, metadata: Any, key: str) -> str:
    import difflib

    near = difflib.get_close_matches(key, [*metadata], 1)
    return f"{path.name} has no such key" + (f"; did you mean {near[0]}?" if near else "")


def _stem(path: Path) -> Path:
    """Return a file's name without that of a part, as the beginning of the names of parts."""
    return path.with_name(re.sub(r"-\d{5}-of-\d{5}\.gguf$", "", path.name))


def _size(text: str) -> int:
    matches = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(matches[1]) * UNITS[matches[2].upper()]) if matches else 0
    if not 0 < size < 2**63:
        raise ArgumentError(f"--max-size {text}: expected a size such as 500M or 2G")
    return size


def _typed(key: str, text: str, name: str, is_array: bool) -> Any:
    """Return a value of the metadata from its text.

    Raises:
        ArgumentError: The type is unknown, or the text is no such value.
    """
    import numpy as np

    from llcuda.native.gguf.types import NUMPY_VALUES, GGUFValueType

    kinds = {kind.name.lower(): kind for kind in GGUFValueType if kind != GGUFValueType.ARRAY}
    if name.lower() not in kinds:
        raise ArgumentError(f"--type {name}: expected one of {', '.join(kinds)}")
    kind = kinds[name.lower()]
    if is_array:
        try:
            elements = json.loads(text)
        except ValueError as error:
            raise ArgumentError(f"VALUE of {key}: expected a JSON list: {error}") from None
        if not isinstance(elements, list) or any(isinstance(e, list | dict) for e in elements):
            raise ArgumentError(f"VALUE of {key}: expected a JSON list of {name.lower()} values")
        values = [_element(key, element, kind.name.lower()) for element in elements]
        if kind == GGUFValueType.STRING:
            return [np.str_(text) for text in values]
        return np.array(values, bool if kind == GGUFValueType.BOOL else NUMPY_VALUES[kind])
    value = _element(key, text, kind.name.lower())
    others = {GGUFValueType.STRING: np.str_, GGUFValueType.BOOL: np.bool_}
    return others.get(kind, np.dtype(NUMPY_VALUES.get(kind, "b1")).type)(value)


def _element(key: str, given: Any, name: str) -> Any:
    """Return an element as Python has it."""
    import numpy as np

    problem = f"VALUE of {key}: {given!r} is not a {name}"
    if name == "string":
        if not isinstance(given, str):
            raise ArgumentError(problem)
        return given
    if name == "bool":
        truths = {"true": True, "false": False}
        if str(given).lower() not in truths:
            raise ArgumentError(f"{problem}; expected true or false")
        return truths[str(given).lower()]
    if isinstance(given, bool) or given is None:
        raise ArgumentError(problem)
    try:
        if name.startswith("float"):
            number = float(given)
            bound = float(np.finfo(name).max)
            fits = number != number or abs(number) in (float("inf"),) or abs(number) <= bound
            low, high = -bound, bound
        else:
            number = int(given) if not isinstance(given, float) else int(str(given))
            low, high = int(np.iinfo(name).min), int(np.iinfo(name).max)
            fits = low <= number <= high
    except ValueError:
        raise ArgumentError(problem) from None
    if not fits:
        raise ArgumentError(f"{problem}: expected {low} to {high}")
    return number
