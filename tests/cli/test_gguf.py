"""llcuda gguf: inspect, validate, get, set, remove, split, merge."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llcuda import demo_model
from llcuda.gguf_parser import GGUFReader
from tests.support.commands import documents, run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the demo model in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").write_bytes(demo_model().read_bytes())
    return "model.gguf"


def test_inspect_is_llcuda_inspect(file: str) -> None:
    """In a group as well."""
    shown = [
        run(*command, file).stdout.partition("load_model")[0]  # free memory changes
        for command in (("gguf", "inspect"), ("inspect",))
    ]
    assert shown[0] == shown[1] != ""


def test_validate(file: str) -> None:
    """Exit status 1 if anything is wrong with a file; the others are read all the same."""
    Path("text.gguf").write_text("hello")
    result = run("gguf", "validate", file, "text.gguf", "none.gguf", file)
    assert result.status == 1
    assert result.stdout == f"{file}: nothing is wrong\n" * 2
    assert "text.gguf is not a GGUF file" in result.stderr
    assert "none.gguf" in result.stderr
    found = documents("gguf", "validate", "--json", file, "text.gguf")
    assert [len(document["problems"]) for document in found] == [0, 1]
    assert run("gguf", "validate", file).status == 0


def test_validate_a_truncated_file(file: str) -> None:
    """It is named once, with what to do."""
    Path(file).write_bytes(demo_model().read_bytes()[:100_000])
    result = run("gguf", "validate", file)
    assert (1, 1) == (result.status, result.stderr.count(file))
    assert "it is truncated; download or copy the file again\n" in result.stderr


@pytest.mark.parametrize(
    ("value", "kind", "found", "printed"),
    [
        ("My model", "string", "STRING", "My model\n"),
        ("[1]", "string", "STRING", "[1]\n"),
        ("-3", "int8", "INT8", "-3\n"),
        ("18446744073709551615", "UINT64", "UINT64", "18446744073709551615\n"),
        ("0.5", "float32", "FLOAT32", "0.5\n"),
        ("1e300", "float64", "FLOAT64", "1e+300\n"),
        ("True", "bool", "BOOL", "true\n"),
        ("[1, 2, 3]", "uint16", "UINT16", "[1, 2, 3]\n"),
        ("[true, false]", "bool", "BOOL", "[true, false]\n"),
        ("[0.5, 1]", "float32", "FLOAT32", "[0.5, 1.0]\n"),
    ],
)
def test_set_and_get(file: str, value: str, kind: str, found: str, printed: str) -> None:
    """A new key of each type; a second time it keeps the type."""
    asked = ("gguf", "set", file, "new.key", value)
    result = run(*asked, "--type", kind)
    assert (result.status, result.stdout) == (0, f"{file}\n"), result.stderr
    for _ in range(2):
        with GGUFReader(file) as reader:
            assert reader.metadata.type("new.key").name == found
            assert reader.validate() == []
        assert run("gguf", "get", file, "new.key").stdout == printed
        assert run(*asked).status == 0


def test_set_writes_another_file(file: str) -> None:
    """With a value of a file, and an array of texts; the source stays."""
    Path("template").write_text("{{ messages }}\nä\n", encoding="utf-8")
    before = Path(file).read_bytes()
    key = "tokenizer.chat_template"
    result = run("gguf", "set", file, key, "-f", "template", "-o", "new.gguf")
    assert result.stdout == "new.gguf\n"
    assert run("gguf", "get", "new.gguf", key).stdout == "{{ messages }}\nä\n"
    texts = '["a", "ä"]'
    asked = ("gguf", "set", "new.gguf", "texts", texts)
    assert run(*asked, "--type", "string").status == 0
    assert run("gguf", "get", "new.gguf", "texts").stdout == f"{texts}\n"
    assert Path(file).read_bytes() == before
    removed = run("gguf", "remove", "new.gguf", "texts", key)
    assert removed.stdout == "new.gguf\n"
    with GGUFReader("new.gguf") as reader:
        assert not {"texts", key} & set(reader.metadata)


def test_split_and_merge(file: str) -> None:
    """The names are printed; merged, the file is as before."""
    for arguments in (("--max-size", "2M"), ("parts.gguf", "--max-tensors", 20)):
        result = run("gguf", "split", file, *arguments)
        names = result.stdout.split()
        assert re.fullmatch(r"(model|parts)-00001-of-0000\d\.gguf", names[0])
        assert run("gguf", "merge", names[-1], "whole.gguf").stdout == "whole.gguf\n"
        assert Path("whole.gguf").read_bytes() == Path(file).read_bytes()
    refused = run("gguf", "merge", file, "again.gguf")
    assert refused.stderr.startswith(f"error: FILE: {file} is a whole model, not one of several")
    again = run("gguf", "split", names[0], "--max-tensors", 30)
    assert again.stdout.startswith("parts-00001-of-0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("get", "model.gguf", "general.nam"), "has no such key; did you mean general.name?"),
        (("set", "model.gguf", "k"), "give VALUE or --file, one of them"),
        (("set", "model.gguf", "k", "1"), "KEY k: model.gguf has no such key; --type gives"),
        (("set", "model.gguf", "k", "1", "--type", "int"), "--type int: expected one of uint8"),
        (
            ("set", "model.gguf", "k", "300", "--type", "uint8"),
            "300' is not a uint8: expected 0 to",
        ),
        (("set", "model.gguf", "k", "x", "--type", "float32"), "VALUE of k: 'x' is not a float32"),
        (("set", "model.gguf", "k", "1e39", "--type", "float32"), "is not a float32: expected"),
        (("set", "model.gguf", "k", "yes", "--type", "bool"), "expected true or false"),
        (("set", "model.gguf", "k", "[1,", "--type", "int8"), "VALUE of k: expected a JSON list"),
        (("set", "model.gguf", "k", "[[1]]", "--type", "int8"), "expected a JSON list of int8"),
        (("set", "model.gguf", "k", "[null]", "--type", "int8"), "None is not a int8"),
        (("set", "model.gguf", "k", "[1.5]", "--type", "int8"), "1.5 is not a int8"),
        (("set", "model.gguf", "split.count", "2", "--type", "uint16"), "merge or split the model"),
        (("set", "model.gguf", "general.alignment", "24", "--type", "uint32"), "a power of 2"),
        (("set", "demo", "general.name", "x"), "--output: demo is the name of a model"),
        (("set", "none.gguf", "k", "1"), "none.gguf"),
        (("remove", "model.gguf", "k"), "KEY k: model.gguf has no such key"),
        (("split", "model.gguf"), "give --max-size or --max-tensors"),
        (("split", "model.gguf", "--max-size", "2X"), "--max-size 2X: expected a size such as"),
        (("split", "model.gguf", "--max-size", "0"), "--max-size 0: expected a size such as"),
        (("split", "model.gguf", "--max-size", "10"), "--max-size 10: the metadata alone has"),
        (("split", "model.gguf", "--max-tensors", "0"), "--max-tensors 0: expected"),
        (
            ("split", "model.gguf", "--max-tensors", "999"),
            "--max-tensors 999: the whole model fits",
        ),
        (("split", "model.gguf", "no/x", "--max-tensors", "9"), "the folder no does not exist"),
        (("split", "demo", "--max-tensors", "9"), "TARGET: demo is the name of a model"),
        (("merge", "model.gguf", "x.gguf"), "is a whole model, not one of several"),
        (("merge", "none.gguf", "x.gguf"), "none.gguf"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_changes_nothing(file: str, arguments: tuple[str, ...], says: str) -> None:
    """One sentence in the words of the command line; the folder is as it was."""
    before = Path(file).read_bytes()
    result = run("gguf", *arguments)
    assert result.status in (1, 2)
    assert result.stdout == ""
    assert says in result.stderr
    assert Path(file).read_bytes() == before
    assert [path.name for path in Path().iterdir()] == [file]
