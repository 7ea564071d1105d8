"""benchmarks/arrivals.py: requests that arrive by chance, at peers in processes of their own."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import arrivals
import peers
import versus
from peers import traffic

FAKE = """
import asyncio, os
import peers

def missing():
    return ""

class Server(peers.Server):
    version = "1.2"

    def __init__(self, setup):
        self.how = setup.variant
        self.free = asyncio.Semaphore(setup.rows)
        assert setup.context == 256

    async def stream(self, text, seed):
        async with self.free:
            for count in range(1, text.length + (self.how != "short")):
                await asyncio.sleep(0.002 if self.how == "slow" else 0.001)
                yield count

    def close(self):
        with open(os.environ["FAKE_CLOSED"], "a") as file:
            file.write("closed ")
"""
NO_SERVER = """
def missing():
    return ""
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A peer that only waits, and one that has no server; the file says how often it was closed."""
    (tmp_path / "fake_server.py").write_text(FAKE)
    (tmp_path / "no_server.py").write_text(NO_SERVER)
    for name, module in {"fake": "fake_server", "none": "no_server", "vllm": "fake_server"}.items():
        monkeypatch.setitem(versus.PEERS, name, module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("FAKE_CLOSED", str(tmp_path / "closed"))
    return tmp_path / "closed"


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], str]:
    """Return the JSON line and what stands above it."""
    sizes = ["--requests", "30", "--prompts", "4-16", "--answers", "2-8", "--rows", "3"]
    arrivals.main(["--shape", "tiny", *sizes, *options])
    *shown, line = capsys.readouterr().out.splitlines()
    return json.loads(line), "\n".join(shown)


def test_loads_are_shares_of_the_rate_of_vllm(
    fake: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It is measured first, wherever it stands, and its saturated rate is a load of 1 for all."""
    path = tmp_path / "found.json"
    document, shown = run(
        capsys, "--peers", "fake,vllm:slow", "--loads", "0.5,0.9", "--json", str(path)
    )
    assert json.loads(path.read_text()) == document
    slow, fast = document["peers"]
    assert ["vllm:slow", "fake"] == [slow["peer"], fast["peer"]]
    assert document["rate"] == slow["results"][0]["rate"] < fast["results"][0]["rate"]
    for peer in (slow, fast):
        assert [None, 0.5, 0.9] == [line["load"] for line in peer["results"]]
        rates = [line["rate"] for line in peer["results"][1:]]
        assert pytest.approx(rates) == [0.5 * document["rate"], 0.9 * document["rate"]]
    assert "all at once" in shown
    assert "closed closed " == fake.read_text()


@pytest.mark.usefixtures("fake")
def test_another_reference_and_a_given_rate(capsys: pytest.CaptureFixture[str]) -> None:
    document, _ = run(capsys, "--peers", "vllm,fake:slow", "--reference", "fake:slow")
    assert "fake:slow" == document["peers"][0]["peer"]
    document, _ = run(capsys, "--peers", "fake", "--rate", "90", "--loads", "0.5")
    assert 45 == document["peers"][0]["results"][1]["rate"]


@pytest.mark.usefixtures("fake")
def test_a_peer_that_cannot_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """An answer of another length ends a peer, and one without a server is not started."""
    document, shown = run(capsys, "--peers", "fake:short,none")
    assert "it takes no requests while it computes" == document["absent"]["none"]
    [peer] = document["peers"]
    assert peer["reason"].startswith("failed: RuntimeError: wrote ")
    assert f"fake:short: {peer['reason']}" in shown


def test_llcuda_is_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    """The real engine answers with the lengths that are asked for, with seeds too."""
    document, shown = run(capsys, "--peers", "llcuda:F16", "--loads", "0.8", "--seeded")
    [peer] = document["peers"]
    assert "" == peer["reason"]
    assert document["seeded"]
    requests = traffic.make_requests(30, 1024, (4, 16), (2, 8))
    for line in peer["results"]:
        assert sum(text.length for text in requests) == line["tokens"]
        assert line["figures"]["decode_steps"] > 0
    assert "llcuda:F16" in shown


@pytest.mark.parametrize(
    "options",
    [["--rows", "0"], ["--requests", "3"], ["--loads", "0,1"], ["--loads", "a"], ["--rate", "-1"],
     ["--prompts", "9"], ["--answers", "9-2"], ["--peers", "nobody"], ["--reference", "vllm:x"]],
)  # fmt: skip
def test_wrong_options_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An option that makes no sense ends with a line that says what is expected."""
    with pytest.raises(SystemExit):
        arrivals.main(options)
    assert options[0] in capsys.readouterr().err


def test_the_traffic() -> None:
    """The ranges, the medians and the rate that were asked for; the same at each call."""
    requests = traffic.make_requests(400, 1024)
    assert requests == traffic.make_requests(400, 1024)
    for sizes, (low, high) in (
        ([len(text.prompt) for text in requests], traffic.PROMPT_RANGE),
        ([text.length for text in requests], traffic.ANSWER_RANGE),
    ):
        assert low <= min(sizes) <= max(sizes) <= high
        assert 0.8 < statistics.median(sizes) / (low * high) ** 0.5 < 1.25
    times = traffic.poisson_times(400, 8.0)
    assert times == sorted(times)
    assert 0.85 < times[-1] / (400 / 8) < 1.15


def test_what_times_come_to() -> None:
    """Percentiles without the first and the last tenth, and the rate in the middle of a run."""
    traces = [traffic.Trace(i, [(i + 0.5, 1), (i + 0.75, 2), (i + 1.5, 5)]) for i in range(19)]
    traces.append(traffic.Trace(19, [(49, 1), (50, 2)]))
    found = traffic.summary(traces)
    assert (19 * 5 + 2, 50.0) == (found["tokens"], found["seconds"])
    assert [500, 500, 500] == found["first_ms"]
    assert [250, 250, 250] == found["token_ms"]
    assert [250, 750, 750] == found["gap_ms"]
    assert 1 == traffic.saturated_rate(traces)
    assert (1, 2, 4) == tuple(traffic.percentile([4, 2, 1], p) for p in (1, 50, 100))


def test_a_time_counts_from_when_the_request_was_due() -> None:
    """A server that keeps the event loop from sending does not hide the wait."""

    class Busy(peers.Server):
        def __init__(self) -> None:
            pass

        async def stream(self, text: peers.Text, seed: int | None) -> AsyncIterator[int]:
            deadline = asyncio.get_running_loop().time() + 0.05
            while asyncio.get_running_loop().time() < deadline:
                pass
            yield text.length

    texts = [peers.Text([1], 2)] * 4
    traces = asyncio.run(traffic.send(Busy(), texts, [0.0] * 4, seeded=True))
    assert max(trace.first for trace in traces) > 3 * min(trace.first for trace in traces)
