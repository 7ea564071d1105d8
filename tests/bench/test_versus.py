"""benchmarks/versus.py: peers in processes of their own, and what becomes of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import eventually

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import peers
import versus

FAKE = """
import os, subprocess, sys, time
import peers

def missing():
    return os.environ.get("FAKE_MISSING", "")

def prepare(setup):
    print("a peer may print what it likes")

class Peer(peers.Peer):
    version = "1.2"

    def __init__(self, setup):
        self.how, self.rows = setup.variant, 1
        self.at_once = 1 if self.how == "alone" else None
        if self.how == "children":
            other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            with open(os.environ["FAKE_PID"], "w") as file:
                file.write(str(other.pid))
            time.sleep(600)

    def open(self, rows):
        self.rows = rows

    def generate(self, texts):
        if self.rows > 1 and self.how == "fails":
            raise MemoryError("no room for so many")
        time.sleep(0.002 * len(texts) / self.rows)
        return [text.length - (self.how == "short" and text.length > 1) for text in texts]
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that only waits; what stands after the colon says how it goes wrong."""
    (tmp_path / "fake_peer.py").write_text(FAKE)
    monkeypatch.setitem(versus.PEERS, "fake", "fake_peer")
    monkeypatch.setitem(versus.PEERS, "llcuda", "fake_peer")
    monkeypatch.setattr(versus, "LOAD_GGUF", ())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], str]:
    """Return the JSON line and what stands above it."""
    versus.main(["--shape", "tiny", "--lengths", "4,6", *options])
    *shown, line = capsys.readouterr().out.splitlines()
    return json.loads(line), "\n".join(shown)


def by_peer(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each came to."""
    return {f"{peer['peer']} {peer['turn']}".strip(): peer for peer in document["peers"]}


@pytest.mark.usefixtures("fake")
def test_llcuda_runs_before_and_after_its_peers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Rates, start-up, ratios to llcuda's mean and drift stand in the table and in the JSON."""
    path = tmp_path / "found.json"
    document, shown = run(capsys, "--rows", "1,8", "--peers", "llcuda,fake", "--json", str(path))
    assert json.loads(path.read_text()) == document
    peers = by_peer(document)
    assert list(peers) == ["llcuda before", "fake", "llcuda after"]
    assert {"1", "8"} == set(document["drift"]["llcuda"]) == set(document["ratios"]["fake"])
    for rows, result in zip((1, 8), peers["fake"]["results"], strict=True):
        n_texts = max(rows, 4)
        assert (rows, n_texts, n_texts * 5) == (result["rows"], result["texts"], result["tokens"])
        rate = result["tokens"] / result["seconds"][0]
        assert result["tokens_per_second"] == pytest.approx(rate)
        ours = [versus.rates(peers[f"llcuda {turn}"])[rows] for turn in ("before", "after")]
        ratio = document["ratios"]["fake"][str(rows)]["llcuda"]
        assert ratio == pytest.approx(sum(ours) / 2 / rate)
    assert peers["fake"]["first_token_seconds"] > 0
    assert "llcuda before" in shown
    assert "llcuda, after over before" in shown


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("peer", "n_results", "reason"),
    [
        ("fake:fails", 1, "failed: MemoryError: no room for so many"),
        ("fake:short", 0, "failed: RuntimeError: wrote 16 tokens instead of 20"),
    ],
)
def test_a_peer_that_fails_harms_nobody(
    capsys: pytest.CaptureFixture[str], peer: str, n_results: int, reason: str
) -> None:
    """What it measured before stands, its reason is shown, and the others go on."""
    options = ["--rows", "1,2", "--peers", f"{peer},fake"]
    document, shown = run(capsys, *options)
    peers = by_peer(document)
    assert (n_results, reason) == (len(peers[peer]["results"]), peers[peer]["reason"])
    assert f"{peer}: {reason}" in shown
    assert 2 == len(peers["fake"]["results"])


@pytest.mark.usefixtures("fake")
def test_a_peer_takes_its_processes_along(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a peer has started ends with it, and gives back its memory."""
    monkeypatch.setenv("FAKE_PID", str(tmp_path / "pid"))
    document, _ = run(capsys, "--peers", "fake:children", "--limit", "2")
    assert "stopped after 2 s" == document["peers"][0]["reason"]
    status = Path("/proc", (tmp_path / "pid").read_text(), "status")

    def ended() -> bool:
        try:
            return "zombie" in status.read_text()
        except OSError:
            return True

    assert eventually(ended)


@pytest.mark.usefixtures("fake")
def test_a_peer_that_is_not_there_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and no process."""
    monkeypatch.setenv("FAKE_MISSING", "not installed: fake")
    document, shown = run(capsys, "--peers", "fake")
    assert {"fake": "not installed: fake"} == document["absent"]
    assert [] == document["peers"]
    assert "fake: not installed: fake" in shown


@pytest.mark.usefixtures("fake")
def test_a_peer_for_one_text_is_measured_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Its rate is that of one row at any number of rows."""
    document, _ = run(capsys, "--rows", "1,16", "--peers", "fake:alone")
    [peer] = document["peers"]
    single, many = peer["results"]
    assert {**single, "rows": 16} == many
    assert 4 == many["texts"]


@pytest.mark.parametrize(
    "options", [["--rows", "0"], ["--rows", "a"], ["--lengths", "1,-2"], ["--peers", "nobody"]]
)
def test_wrong_options_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An option that makes no sense ends with a line that says what is expected."""
    with pytest.raises(SystemExit):
        versus.main(options)
    assert options[0] in capsys.readouterr().err


def test_the_work_is_four_short_prompts() -> None:
    """68 prompt tokens in all and answers of 305 to 1,131; more rows repeat them."""
    texts = peers.make_texts(8, 1024)
    assert 68 == sum(len(text.prompt) for text in texts[:4])
    assert [305, 580, 856, 1131] == [text.length for text in texts[:4]]
    assert texts[:4] == texts[4:]


def test_llcuda_is_a_peer(capsys: pytest.CaptureFixture[str]) -> None:
    """The real engine and the real loop write the lengths that are asked for."""
    document, _ = run(capsys, "--rows", "1,3", "--peers", "llcuda:F16,llcuda-loop:F16")
    for peer in document["peers"]:
        assert "" == peer["reason"]
        assert [20, 20] == [result["tokens"] for result in peer["results"]]
