"""llcuda.hub.download: downloads continue in the next process, and only the file is accepted."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.hub_server import ASK, Asker, Hub, etag
from tests.support.programs import NOTEBOOK
from tests.support.waiting import eventually

REPO = "some/model"
FILE = "model-Q4_K_M.gguf"
NAME = f"{REPO}:{FILE}"
SIZE = 600_000
CHUNK = 50_000
HALF = 300_000
MODEL = np.random.default_rng(1).bytes(SIZE)
OTHER = np.random.default_rng(2).bytes(SIZE)
# What is read from the network is written 10 MiB at a time.
SMALL_CHUNKS = f"from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = {CHUNK}"
RESOLVE = ASK.replace("PREPARE", SMALL_CHUNKS), json.dumps([("resolve", [NAME], {})])
PULL = f"{SMALL_CHUNKS}\nfrom llcuda.cli.main import main; main()", "pull", NAME
LIBRARY = f"from huggingface_hub import hf_hub_download; print(hf_hub_download({REPO!r}, {FILE!r}))"
UPLOAD = """
import pathlib, sys
import hf_xet

with hf_xet.XetSession().new_upload_commit(endpoint=sys.argv[1]) as commit:
    upload = commit.start_upload_bytes(pathlib.Path(sys.argv[2]).read_bytes())
print(upload.result().xet_info.hash)
"""
OVER_XET = {"HF_HUB_DISABLE_XET": "0"}


@pytest.fixture
def server() -> Iterator[Hub]:
    """A hub with one model."""
    with Hub({REPO: {FILE: MODEL}}) as server:
        yield server


@pytest.fixture
def ask(server: Hub, tmp_path: Path) -> Asker:
    """A user of the server with an empty cache."""
    return Asker(server, tmp_path / "home")


@pytest.fixture
def chunk_store(server: Hub, ask: Asker, tmp_path: Path) -> None:
    """The model also lies in a chunk store: hf_xet's own, in a folder."""
    (tmp_path / "store").mkdir()
    (tmp_path / "upload").write_bytes(MODEL)
    server.chunk_store = f"local://{tmp_path / 'store'}"
    uploading = ask.start(UPLOAD, server.chunk_store, str(tmp_path / "upload"))
    output, errors = uploading.communicate(timeout=120)
    assert uploading.returncode == 0, errors
    server.chunks[FILE] = output.strip()


def spans(server: Hub) -> list[str]:
    """Return the range of each request for the file's bytes; "" is the whole."""
    requests = [request.split(" ") for request in server.requests]
    return [" ".join(span) for method, path, *span in requests if method == "GET" and FILE in path]


def interrupt(ask: Asker, how: signal.Signals = signal.SIGKILL, **environment: str) -> int:
    """End a process amid its download; return how many bytes of the file are on the disk."""
    ask.server.held[FILE] = HALF
    process = ask.start(*PULL, **environment)
    ask.wait_for_bytes(HALF - CHUNK)
    process.send_signal(how)
    output, errors = process.communicate(timeout=120)
    assert (output, errors) == ("", "")
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    (partial,) = ask.partials()
    return partial.stat().st_size


# --- the next process goes on ---


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_download_goes_on(ask: Asker, how: signal.Signals) -> None:
    """The next process asks for what is not on the disk, and no byte more is sent."""
    size = interrupt(ask, how)
    assert HALF - CHUNK < size <= HALF
    assert ask.path(NAME).read_bytes() == MODEL
    assert spans(ask.server) == ["", f"bytes={size}-"]
    assert ask.server.sent[FILE] == HALF + SIZE - size
    assert ask.partials() == []


def test_a_failed_download_goes_on(ask: Asker) -> None:
    """After errors for which huggingface_hub gives up, too."""
    ask.server.broken = {FILE: [HALF] + [0] * 20}
    message, _ = ask.error(NAME, prepare=SMALL_CHUNKS)
    assert message.startswith(f"cannot download {NAME} from {ask.server.url}: ")
    ask.server.broken.clear()
    assert ask.path(NAME).read_bytes() == MODEL
    assert spans(ask.server)[-1] == f"bytes={HALF}-"


def test_a_process_killed_before_it_named_the_file(ask: Asker) -> None:
    """Nothing is sent a second time."""
    path = ask.path(NAME)
    blob = path.resolve()
    path.unlink()
    blob.rename(blob.with_name(f"{blob.name}.llcuda.incomplete"))
    assert ask.path(NAME).read_bytes() == MODEL
    assert ask.server.sent[FILE] == SIZE


@pytest.mark.parametrize("ranges", ["ignored", "refused"])
def test_a_server_without_ranges_starts_anew(ask: Asker, ranges: str) -> None:
    """Whether it sends the whole file or 416."""
    size = interrupt(ask)
    ask.server.ranges = ranges
    assert ask.path(NAME).read_bytes() == MODEL
    assert spans(ask.server)[:2] == ["", f"bytes={size}-"]
    assert ask.server.sent[FILE] == HALF + SIZE


def test_another_file_on_the_server_starts_anew(ask: Asker) -> None:
    """A changed file is another one; its download has nothing of the old one."""
    interrupt(ask)
    ask.server.repos[REPO][FILE] = OTHER
    assert ask.path(NAME).read_bytes() == OTHER
    assert spans(ask.server) == ["", ""]


@pytest.mark.parametrize("left", [OTHER[:HALF], OTHER, MODEL + b"more"])
def test_a_damaged_half_starts_anew(ask: Asker, left: bytes) -> None:
    """What was left is not this file's beginning, or is more than the file."""
    interrupt(ask)
    (partial,) = ask.partials()
    partial.write_bytes(left)
    assert ask.path(NAME).read_bytes() == MODEL
    assert spans(ask.server)[-1] == ""
    assert ask.partials() == []


def test_only_the_rest_must_have_room(ask: Asker) -> None:
    """The disk needs room for what is still to come."""
    size = interrupt(ask)
    free = "import shutil; shutil.disk_usage = lambda path: type('', (), {{'free': {}}})"
    message, _ = ask.error(NAME, prepare=free.format(SIZE - size - 1))
    assert "GB to download" in message
    assert ask.path(NAME, prepare=free.format(SIZE - size)).read_bytes() == MODEL


def test_offline_keeps_the_half(ask: Asker) -> None:
    """With HF_HUB_OFFLINE half a file is no model, and stays."""
    interrupt(ask)
    ask.server.requests.clear()
    message, _ = ask.error(NAME, HF_HUB_OFFLINE="1")
    assert "is not in the cache, and HF_HUB_OFFLINE forbids" in message
    assert ask.server.requests == []
    assert len(ask.partials()) == 1


# --- only the file itself is accepted ---


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (MODEL[:-1], f"should be of size {SIZE} but has size {SIZE - 1}"),
        (MODEL + b"more", f"should be of size {SIZE} but has size {SIZE + 4}"),
        (b"<html>", "but has size 6"),
        (OTHER, f"the SHA-256 of the transfer is not {etag(MODEL)}, which the hub names"),
    ],
)
def test_a_false_body_is_no_model(ask: Asker, body: bytes, reason: str) -> None:
    """Too short, too long or other bytes: an error and an empty cache; the next try is anew."""
    ask.server.false[FILE] = body
    message, kinds = ask.error(NAME)
    assert reason in message
    assert kinds[0] == "ModelError"
    assert not list(ask.home.rglob(FILE))
    ask.server.false.clear()
    ask.server.sent.clear()
    assert ask.path(NAME).read_bytes() == MODEL
    assert ask.server.sent[FILE] == SIZE


def test_a_tag_that_proves_nothing(ask: Asker) -> None:
    """A file whose tag is no SHA-256 is downloaded whole, each time anew."""
    ask.server.tags[FILE] = "0" * 40
    ask.server.broken = {FILE: [HALF] + [0] * 20}
    ask.error(NAME, prepare=SMALL_CHUNKS)
    assert ask.partials() == []
    ask.server.broken.clear()
    assert ask.path(NAME).read_bytes() == MODEL


# --- a normal entry of the cache ---


def test_the_cache_is_huggingface_hubs(ask: Asker) -> None:
    """Its own functions find the file, the half of it and nothing to complain about."""
    scan = (
        "from huggingface_hub import scan_cache_dir, try_to_load_from_cache\n"
        "found = scan_cache_dir()\n"
        "files = [f for repo in found.repos for r in repo.revisions for f in r.files]\n"
        f"print(try_to_load_from_cache({REPO!r}, {FILE!r}), len(files), found.size_on_disk,\n"
        "      found.incomplete_size_on_disk, found.warnings)"
    )
    size = interrupt(ask)
    output, _ = ask.start(scan).communicate(timeout=120)
    assert f"None 0 0 {size} [" in output
    path = ask.path(NAME)
    output, _ = ask.start(scan).communicate(timeout=120)
    assert output == f"{path} 1 {SIZE} 0 []\n"
    assert path.is_symlink()
    assert path.resolve().name == etag(MODEL)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("second", [RESOLVE[0], LIBRARY], ids=["llcuda", "huggingface_hub"])
def test_two_processes_at_once(ask: Asker, second: str) -> None:
    """The second waits for the first, and each byte is sent once."""
    ask.server.held[FILE] = HALF
    first = ask.start(*RESOLVE)
    ask.wait_for_bytes(0)
    before = len(ask.server.requests)
    other = ask.start(second, RESOLVE[1])
    assert eventually(lambda: len(ask.server.requests) >= before + (1 if second == LIBRARY else 3))
    ask.server.resume.set()
    answers = [process.communicate(timeout=120) for process in (first, other)]
    assert [errors for _, errors in answers] == ["", ""]
    assert all(FILE in output for output, _ in answers)
    assert ask.path(NAME).read_bytes() == MODEL
    assert ask.server.sent[FILE] == SIZE


def test_one_that_waits_goes_on_for_one_that_is_killed(ask: Asker) -> None:
    """The lock of a killed process is free."""
    ask.server.held[FILE] = HALF
    first = ask.start(*RESOLVE)
    ask.wait_for_bytes(HALF - CHUNK)
    before = len(ask.server.requests)
    second = ask.start(*RESOLVE)
    assert eventually(lambda: len(ask.server.requests) >= before + 3)
    first.kill()
    first.communicate(timeout=120)
    output, errors = second.communicate(timeout=120)
    assert (second.returncode, errors) == (0, "")
    assert Path(json.loads(output)["value"]).read_bytes() == MODEL
    assert spans(ask.server)[1].startswith("bytes=")


def test_without_symbolic_links_the_file_is_there_once(ask: Asker) -> None:
    """On such a disk huggingface_hub downloads by itself, and moves the file to its place."""
    path = ask.path(NAME, HF_HUB_DISABLE_SYMLINKS="1")
    assert path.read_bytes() == MODEL
    held = [file for file in ask.home.rglob("*") if file.is_file() and file.stat().st_size == SIZE]
    assert held == [path]


def test_the_token_goes_to_the_hub_alone(ask: Asker) -> None:
    """HF_TOKEN opens a private repository; the server that has the bytes does not see it."""
    ask.server.private.add(REPO)
    ask.server.token = "hf_secret"
    ask.server.elsewhere = True
    ask.error(NAME)
    size = interrupt(ask, HF_TOKEN="hf_secret")
    assert ask.path(NAME, HF_TOKEN="hf_secret").read_bytes() == MODEL
    assert spans(ask.server)[-1] == f"bytes={size}-"
    assert f"GET elsewhere/{REPO}/resolve/" in "\n".join(ask.server.requests)
    assert ask.server.bearers
    assert not [path for path in ask.server.bearers if path.startswith("elsewhere/")]


# --- hf_xet's chunk store ---


@pytest.mark.usefixtures("chunk_store")
def test_chunks_instead_of_bytes(ask: Asker) -> None:
    """A file in the chunk store comes from there, unless HF_HUB_DISABLE_XET forbids it."""
    assert ask.path(NAME, **OVER_XET).read_bytes() == MODEL
    assert ask.server.sent[FILE] == 0


@pytest.mark.usefixtures("chunk_store")
def test_chunks_follow_the_bytes_of_another_process(ask: Asker) -> None:
    """What came by HTTP is a beginning for the chunks."""
    interrupt(ask)
    assert ask.path(NAME, **OVER_XET).read_bytes() == MODEL
    assert spans(ask.server) == [""]
    assert ask.server.sent[FILE] == HALF


@pytest.mark.usefixtures("chunk_store")
def test_a_full_disk_amid_the_chunks(ask: Asker) -> None:
    """What was written stays, and is not sent again."""
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({HALF}, -1))"
    message, _ = ask.error(NAME, prepare=full, **OVER_XET)
    assert message.endswith("File too large")
    assert [path.stat().st_size for path in ask.partials()] == [HALF]
    assert ask.path(NAME).read_bytes() == MODEL
    assert spans(ask.server) == [f"bytes={HALF}-"]


@pytest.mark.usefixtures("chunk_store")
def test_ctrl_c_while_the_chunk_store_is_silent(ask: Asker) -> None:
    """hf_xet's wait, which Ctrl-C does not reach, ends with the process."""
    ask.server.chunk_store = f"{ask.server.url}/chunks"
    process = ask.start(*PULL, **OVER_XET)
    assert eventually(lambda: any("chunks/" in request for request in ask.server.requests))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 130


@pytest.mark.usefixtures("chunk_store")
def test_a_chunk_store_with_other_chunks(ask: Asker) -> None:
    """An unknown key is an error."""
    ask.server.chunks[FILE] = "0" * 64
    message, kinds = ask.error(NAME, **OVER_XET)
    assert message.startswith(f"cannot download {NAME} from {ask.server.url}: ")
    assert kinds[0] == "ModelError"


# --- what is shown ---


@pytest.mark.parametrize("xet", ["0", "1"], ids=["chunks", "bytes"])
@pytest.mark.usefixtures("chunk_store")
def test_the_bar_begins_where_the_last_one_ended(ask: Asker, xet: str) -> None:
    """It never shows less than what was there, and ends at 100 %."""
    interrupt(ask)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    environment = ask.environment(HF_HUB_DISABLE_XET=xet)
    program = [sys.executable, "-c", *PULL]
    subprocess.run(program, env=environment, stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux's end of a terminal
        os.close(ours)
    percents = [int(number) for number in re.findall(rb"(\d+)%", shown)]
    assert 100 * (HALF - CHUNK) // SIZE <= percents[0] <= 100 * HALF // SIZE
    assert percents == sorted(percents)
    assert percents[-1] == 100


@pytest.mark.parametrize("xet", ["0", "1"], ids=["chunks", "bytes"])
@pytest.mark.usefixtures("chunk_store")
def test_a_notebook_has_a_bar(ask: Asker, xet: str) -> None:
    """There stderr is no terminal."""
    process = ask.start(f"{NOTEBOOK}\n{PULL[0]}", *PULL[1:], HF_HUB_DISABLE_XET=xet)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert Path(output.removesuffix("\n")).read_bytes() == MODEL
    assert "100%" in errors


def test_pull_in_a_pipe_prints_the_path_alone(ask: Asker) -> None:
    """No bar, no log: one line, the first time and the second."""
    for _ in range(2):
        process = ask.start(*PULL)
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        assert Path(output.removesuffix("\n")).read_bytes() == MODEL
