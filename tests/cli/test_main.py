"""The command line: texts and errors, and as a process of its own its streams and signals."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llcuda import Engine, Model, server
from llcuda.__main__ import main as start
from llcuda.cli import serve
from llcuda.cli.answer import show_text
from llcuda.errors import DecodeAbortedError
from llcuda.native.c_params import SMALL_MODEL, threads_for
from llcuda.params import default_threads
from llcuda.server import log
from tests.support.commands import call
from tests.support.server import CERTIFICATE
from tests.support.waiting import PATIENCE, eventually


def llcuda_command(
    *arguments: str, text: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "llcuda", *arguments]
    wide = {**os.environ, "COLUMNS": "300"}  # typer breaks its messages at the terminal's width
    return subprocess.run(
        command, input=text or b"", env=wide, capture_output=True, check=False, timeout=120
    )


@pytest.mark.parametrize("command", ["run", "chat", "serve", "bench"])
def test_help_of_threads(command: str) -> None:
    """The help says below which size a model gets one thread, as `threads_for` decides it."""
    size = f"1 for a model below {SMALL_MODEL >> 20} MiB"
    assert size in " ".join(call(command, "--help").stdout.split())
    assert (threads_for(SMALL_MODEL - 1), threads_for(SMALL_MODEL)) == (1, default_threads())


def test_run_streams_a_text() -> None:
    """The text is on stdout and nothing on stderr."""
    result = llcuda_command("run", "Once upon a time", "-n", "12", "--seed", "1")
    assert result.returncode == 0, result.stderr.decode()
    assert len(result.stdout.decode().split()) > 5
    assert result.stderr == b""


def test_run_is_reproducible_by_seed() -> None:
    """The same seed gives the same text, another one another text."""
    texts = [
        call("run", "One day", "-n", "30", "--seed", seed, "--temperature", "1").stdout
        for seed in ("3", "3", "4")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_run_reads_stdin_and_prints_json() -> None:
    """--json prints one document with the text, the counts, the seed and the timings."""
    result = llcuda_command("run", "-n", "5", "--json", "--seed", "2", text=b"Once upon a time\n")
    document = json.loads(result.stdout)
    assert document["tokens_generated"] == 5
    assert document["finish_reason"] == "length"
    assert document["seed"] == 2
    assert document["prompt_tokens"] > 3
    assert document["timings"]["decode_calls"] == 4
    assert document["text"]


def test_run_is_the_engine() -> None:
    """The text, its end and its counts are those of a request to the engine."""
    prompt = "Once upon a time there was a fox. " * 30
    options = ("--raw", "-n", "30", "--json", "--seed", "2", "--threads", "1")
    document = json.loads(call("run", prompt, *options).stdout)
    with Model("demo") as model, Engine(model, ctx_size=2048, ubatch_size=128, threads=1) as engine:
        done = engine.submit(prompt, max_tokens=30, seed=2).result(PATIENCE)
    assert (document["text"], document["finish_reason"]) == (done.text, done.finish_reason)
    assert document["tokens_generated"] == len(done.tokens)
    assert document["prompt_tokens"] == done.prompt_tokens


def test_a_text_may_fill_its_context() -> None:
    """It ends there, with the reason "context"."""
    arguments = ("run", "Once", "-n", "50", "--ctx-size", "8", "--json", "--raw")
    document = json.loads(call(*arguments).stdout)
    assert document["finish_reason"] == "context"
    assert document["prompt_tokens"] + document["tokens_generated"] == 8


def test_run_ends_by_itself() -> None:
    """The demo model ends its turn."""
    chat = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    result = call("run", chat, "--raw", "--temperature", "0", "--json")
    assert json.loads(result.stdout)["finish_reason"] == "stop"


def test_control_tokens_in_a_prompt() -> None:
    """They are read as such; --no-special reads them as text."""
    counts = []
    for options in (["--raw"], ["--special"], ["--no-special"]):
        result = call("run", "<|im_end|>", *options, "-n", "1", "--json")
        counts.append(json.loads(result.stdout)["prompt_tokens"])
    assert [2, 2, 6] == counts


def test_echo_shows_the_prompt_first() -> None:
    """--echo prints the prompt, then its continuation."""
    result = call("run", "--echo", "One day", "-n", "3")
    assert result.stdout.startswith("One day")


def test_structured_output(tmp_path: Path) -> None:
    """--json-schema and --regex say what the whole text is."""
    path = tmp_path / "schema.json"
    path.write_text('{"type": "array", "items": {"enum": [1, "a"]}, "minItems": 2, "maxItems": 3}')
    result = call("run", "Numbers:", "--json-schema", str(path), "--seed", "1")
    assert set(json.loads(result.stdout)) <= {1, "a"}
    result = call("run", "Numbers:", "--regex", "[1-9][0-9]{2}", "--seed", "1")
    assert 100 <= int(result.stdout) <= 999
    path.write_text('{"items": {"type": "strin"}}')
    result = call("run", "Numbers:", "--json-schema", str(path))
    assert "error: --json-schema: schema at #/items: Invalid type: strin" in result.stderr


def test_grammar_file(tmp_path: Path) -> None:
    """--grammar holds the text to a GBNF file."""
    path = tmp_path / "yes.gbnf"
    path.write_text('root ::= "yes" | "no"')
    result = call("run", "Is it so?", "--grammar", str(path))
    assert result.stdout.strip() in ("yes", "no")


def test_a_template_from_stdin() -> None:
    """It is read once, and is no part of the prompt."""
    template, options = b"{{ messages[0].content }}", ("-n", "1", "--json")
    arguments = ("run", "demo", "Hello", "--chat-template", "/dev/stdin", *options)
    result = llcuda_command(*arguments, text=template)
    assert 0 == result.returncode, result.stderr
    assert 5 > json.loads(result.stdout)["prompt_tokens"]


def endless(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a text that a grammar keeps from ending."""
    command = [sys.executable, "-m", "llcuda", "run", "demo", "Once", "-n", "40000"]
    command += ["--ctx-size", "40000", "--grammar", "/dev/stdin", "--seed", "1", *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    process.stdin.write(b"root ::= [a-z ] root")
    process.stdin.close()
    process.stdin = None
    return process


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_keeps_what_there_is(as_json: bool) -> None:
    """SIGINT ends the generation with status 130; what was generated is printed whole."""
    started = time.perf_counter()
    process = endless()
    assert process.stdout
    begun = process.stdout.read(20)  # however busy the machine is
    if as_json:  # which shows nothing before its end: wait twice as long as the text took
        took = time.perf_counter() - started
        process.kill()
        process.communicate()
        begun, process = b"", endless("--json")
        time.sleep(2 * took + 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err.decode()
    assert err == b""
    text = json.loads(out)["text"] if as_json else (begun + out).decode()
    assert len(text) > 10
    if as_json:
        assert json.loads(out)["finish_reason"] == "interrupted"


def test_ctrl_c_does_not_wait_for_a_long_prompt() -> None:
    """The decode that runs is aborted; there is no text, and the engine goes on."""
    sizes = {"ctx_size": 40_000, "batch_size": 32_768}  # the prompt is one decode, of seconds
    with Model("demo", gpu_layers=0) as model, Engine(model, threads=1, **sizes) as engine:

        def press() -> None:
            begun = eventually(lambda: engine.load().running == 1)
            time.sleep(0.2)
            if begun:
                os.kill(os.getpid(), signal.SIGINT)

        request = engine.submit(list(range(300, 400)) * 300)
        threading.Thread(target=press).start()
        pieces: list[str] = []
        assert show_text(request, engine.context, pieces.append)
        assert [] == pieces
        with pytest.raises(DecodeAbortedError):
            request.result(0)
        assert engine.submit("One day", max_tokens=2).result(PATIENCE).tokens


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["run", "-m", "/no/such.gguf", "x"], 1, "GGUF file not found: /no/such.gguf"),
        (["run", "-m", "/etc/hostname", "x"], 1, "not a GGUF file"),
        (["run", "--temperature", "-1", "x"], 2, "--temperature -1.0: expected"),
        (["run", "--temperature", "nan", "x"], 2, "--temperature nan: expected"),
        (["run", "--top-k", "-5", "x"], 2, "--top-k -5: expected"),
        (["run", "-n", "0", "x"], 2, "error: --max-tokens 0: expected a number at least 1"),
        (["run", "-n", "y", "x"], 2, "error: --max-tokens y: expected a whole number"),
        (["run", "--top-p", "y", "x"], 2, "error: --top-p y: expected a number"),
        (["run", "-n", "99999999999", "x"], 2, "--max-tokens 99999999999: expected"),
        (["run", "--seed", "-1", "x"], 2, "--seed -1: expected"),
        (["run", "--threads", "1000", "x"], 2, "--threads 1000: expected"),
        (
            ["run", "--ctx-size", "4", "a b c d e f g h i j k l m n o p"],
            2,
            "tokens, prompt and answer may have 4; give a shorter prompt or a larger --ctx-size",
        ),
        (["run"], 2, "stdin is empty"),
        (["run", ""], 2, "PROMPT is empty"),
        (
            ["run", "--grammar", "/no/such.gbnf", "x"],
            2,
            "/no/such.gbnf: cannot be read: No such",
        ),
        (["run", "--json-schema", "/no/such.json", "x"], 2, "cannot be read: No such file"),
        (["run", "--json-schema", __file__, "x"], 2, "is not JSON"),
        (["run", "--regex", "(", "x"], 2, "error: --regex: at 1(8): invalid regex"),
        (["run", "--regex", "a", "--json-schema", __file__, "x"], 2, "give one of --json-schema"),
        (["bench", "--compare", "/no"], 2, "--compare '/no': cannot be read: No such file"),
        (["bench", "--threads", "1000"], 2, "error: --threads 1000: expected a whole number from"),
        (["nonsense"], 2, "No such command"),
        (["run", "demo", "x", "-ngl", "y"], 2, "error: --gpu-layers y: expected a whole number"),
        (["run", "demo", "x", "--temp", "y"], 2, "error: --temperature y: expected a number"),
        (["chat", "demo", "-c", "y"], 2, "error: --ctx-size y: expected a whole number"),
        (["run", "demo", "x", "--num-ctx", "9"], 2, "no such option; give --ctx-size"),
        (["run", "demo", "--n-predict=9"], 2, "--n-predict: no such option; give --max-tokens"),
        (["bench", "demo", "--num-gpu", "9"], 2, "--num-gpu: no such option; give --gpu-layers"),
        (["chat", "demo", "-p", "hi"], 2, "-p: no such option; the prompt needs no option"),
        (["run", "demo", "hi", "-p", "ho"], 2, "error: --prompt: the prompt is also given as hi;"),
        (["run", "-m", "demo", "hi", "-p", "ho"], 2, "is also given as hi; leave out one of them"),
        (["run", "-m", "demo", "-p", ""], 2, "PROMPT is empty"),
        (
            ["run", "-hf", "org/repo", "hi"],
            2,
            "-hf: no such option; a repository is a model",
        ),
        (["run", "demo", "hi", "-no-cnv"], 2, "-no-cnv: no such option; give --raw"),
        (["serve", "demo", "-ctk", "q8_0"], 2, "-ctk: no such option; give --type-k"),
        (["serve", "demo", "--max-model-len", "512"], 2, "no such option; give --ctx-size"),
        (["serve", "--alias", "x", "demo"], 2, "a name stands before the model: llcuda serve NAME"),
        (["tokenize", "demo", "--temp", "0"], 2, "No such option: --temp"),
        (["-m", "demo", "x"], 2, "-m: no such option; the model follows a command: llcuda chat"),
        (["run", "demo", "hi", "--format", "json"], 2, "--format: no such option; a schema says"),
        (["show", "demo", "--license"], 2, "--license: no such option; `llcuda show MODEL` shows"),
        (["stop"], 2, "stop: no such command; Ctrl-C ends `llcuda serve`"),
        (["Five names"], 2, "a prompt follows one: llcuda run demo 'Five names'"),
    ],
)
def test_errors_are_one_message(arguments: list[str], status: int, message: str) -> None:
    """A wrong argument or file is a message on stderr and a status, never a trace."""
    result = call(*arguments)
    shown = " ".join(result.stderr.replace("│", " ").split())
    assert (status, True) == (result.status, message in shown), shown
    assert "" == result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["serve", "--port", "70000"], 2, "error: --port 70000: expected a number at most 65535"),
        (["serve", "--pooling", "max"], 2, "error: --pooling 'max': expected one of mean, cls"),
        (["serve", "--max-body", "0"], 2, "error: --max-body 0: expected MB above 0; e.g."),
        (
            ["serve", "--max-bodies", "1"],
            2,
            "error: --max-bodies 1: less than --max-body",
        ),
        (["serve", "--body-timeout", "0"], 2, "error: --body-timeout 0.0: expected a number at"),
        (["serve", "--idle-timeout", "0"], 2, "error: --idle-timeout 0.0: expected a number at"),
        (["serve", "--log-level", "loud"], 2, "error: --log-level 'loud': expected one of debug,"),
        (["serve", "--log-format", "xml"], 2, "error: --log-format 'xml': expected one of text,"),
        (["serve", "demo", "--chat-template", "no.jinja"], 2, "no.jinja: cannot be read: No such"),
        (["serve", "--api-key-file", "/no/such"], 2, "--api-key-file /no/such: cannot be read: No"),
        (["serve", "--memory", "0.001"], 2, "error: --memory: demo alone takes 0.0247 GB, and the"),
        (
            ["serve", "--memory", "inf"],
            2,
            "error: --memory inf: expected GB above 0;",
        ),
        (["serve", "--tls-cert", f"{CERTIFICATE}"], 2, "has no private key; give --tls-key FILE"),
        (["serve", "-c", "100000000"], 1, "error: 400,000,000 KV cells need at least 1,"),
    ],
)
def test_errors_of_serve(
    arguments: list[str], status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is wrong with the log; the log of this process stays as it is."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    logger = logging.getLogger("llcuda")
    level = logger.level
    result = call(*arguments, *([] if "--port" in arguments else ["--port", "0"]))
    logger.setLevel(level)
    shown = " ".join(result.stderr.replace("│", " ").split())
    assert (status, True) == (result.status, message in shown), shown
    assert "" == result.stdout


@pytest.mark.parametrize("option", ["--bare-tool-calls", "--no-bare-tool-calls"])
def test_serve_passes_its_options_on(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the models of the app that it serves."""
    specs: list[server.ModelSpec] = []
    monkeypatch.setattr(server, "create_app", lambda models, **_: specs.extend(models))
    monkeypatch.setattr(server, "serve", lambda app, **_: None)
    monkeypatch.setattr(log, "configure_logging", lambda *_: None)
    result = CliRunner().invoke(serve.app, ["demo", option, "--port", "0"])
    assert 0 == result.exit_code, result.output
    assert [option == "--bare-tool-calls"] == [s.parameters["bare_tool_calls"] for s in specs]


def test_bad_grammar_names_the_reason(tmp_path: Path) -> None:
    """A grammar that does not parse is status 2 with llama.cpp's reason."""
    path = tmp_path / "bad.gbnf"
    path.write_text("root ::= (")
    result = call("run", "x", "--grammar", str(path))
    assert result.status == 2
    assert "expecting ')'" in result.stderr


def test_ctrl_c_while_the_command_line_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is status 130 and no trace, as later."""

    class Interrupted(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "llcuda.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "llcuda.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        start()
    assert 130 == ended.value.code


def test_ascii_terminal_gets_replacements() -> None:
    """A terminal that cannot show a character does not end the program."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "llcuda", "run", "--echo", "Zoë and Ünal", "-n", "3"]
    result = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["--help", "run demo hi -n 2"])
def test_full_disk_behind_stdout(command: str, unbuffered: str) -> None:
    """It is one message and status 1, however the interpreter buffers."""
    line = [sys.executable, "-m", "llcuda", *command.split()]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            line, env=environment, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE
        )
    expected = b"error: cannot write to stdout: No space left on device\n"
    assert (1, expected) == (result.returncode, result.stderr)
