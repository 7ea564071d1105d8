"""Ray Data: many rows through a pool of actors, in order, through deaths and a second run."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llcuda

ray = pytest.importorskip("ray")

from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy  # noqa: E402
from ray.data.checkpoint import CheckpointConfig  # noqa: E402

from tests.support.cluster import NAME, on_cluster  # noqa: E402
from tests.support.documents import DOCS, blocks  # noqa: E402
from tests.support.waiting import eventually  # noqa: E402

ROWS, BLOCK, BAD = 2000, 50, 777
SETTINGS: dict[str, Any] = {
    "max_tokens": 2,
    "ignore_eos": True,
    "temperature": 0,
    "on_error": "return",
    "n_parallel": 4,
    "ctx_size": 64,
    "threads": 1,
    "batch_invariant": True,
}


@pytest.fixture(autouse=True)
def ordered(port: int) -> Iterator[DataContext]:
    """Let blocks keep their order, and draw no bars."""
    context = DataContext.get_current()
    before = context.copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    yield context
    DataContext._set_current(before)


def prompts(count: int = ROWS) -> Any:
    """Return a table of prompts; one of them is too long."""
    rows = [{"number": n, "prompt": f"{n} and "} for n in range(count)]
    if count > BAD:
        rows[BAD]["prompt"] = "a " * 99
    return ray.data.from_items(rows, override_num_blocks=count // BLOCK)


def written(checkpoint: Path) -> list[Path]:
    """Return a file for each block whose rows are written."""
    return [path for path in checkpoint.rglob("*.parquet") if ".pending" not in path.suffixes]


def computed(data: Any, kind: type = llcuda.BatchProcessor, **more: Any) -> Any:
    """Return the table with what two actors compute."""
    return data.map_batches(
        kind,
        fn_constructor_args=("demo",),
        fn_constructor_kwargs={**SETTINGS, **more},
        compute=ActorPoolStrategy(size=2),
        batch_size=BLOCK,
        num_cpus=0.5,
    )


def test_many_rows_through_the_death_of_an_actor(tmp_path: Path) -> None:
    """2,000 rows in order, one of them bad, although a process is killed at its work."""
    mark = tmp_path / "killed"

    class Killed(llcuda.BatchProcessor):
        """Ends its process once, with a batch that is computed and not handed on."""

        def __call__(self, batch: Any) -> Any:
            table = super().__call__(batch)
            if ROWS // 2 in batch["number"] and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return table

    rows = computed(prompts(), Killed).take_all()
    assert mark.exists()
    assert [*range(ROWS)] == [row["number"] for row in rows]
    bad = rows.pop(BAD)
    assert bad["error"].startswith("ContextLengthError: prompt 27: prompt: has")
    assert ({""}, {2}) == (
        {row["error"] for row in rows},
        {row["tokens_generated"] for row in rows},
    )
    some = [rows[n] for n in (0, 776, 777, 1000, 1998)]
    own = llcuda.BatchProcessor("demo", **SETTINGS)
    expected = own({"prompt": [row["prompt"] for row in some]})["text"].tolist()
    own.close()
    assert expected == [row["text"] for row in some]


def test_a_run_that_goes_on_where_it_stopped(tmp_path: Path, ordered: DataContext) -> None:
    """A run ends in the middle; the next one computes what was not written, and all is there once.

    The run ends when all blocks but two are written, one for each actor.
    """
    log, stop, checkpoint = tmp_path / "log", tmp_path / "stop", tmp_path / "checkpoint"
    source, out = str(tmp_path / "source"), str(tmp_path / "out")
    blocks = 8

    class Stopped(llcuda.BatchProcessor):
        """Notes what it has computed, and fails at a block as long as a file is there."""

        def __call__(self, batch: Any) -> Any:
            if BLOCK in batch["number"] and stop.exists():
                assert eventually(lambda: len(written(checkpoint)) >= blocks - 2)
                raise RuntimeError("the run ends here")
            table = super().__call__(batch)
            with log.open("a") as file:
                file.write("".join(f"{number}\n" for number in batch["number"]))
            return table

    def run() -> None:
        table = ray.data.read_parquet(source).repartition(target_num_rows_per_block=BLOCK)
        computed(table, Stopped).write_parquet(out)

    ordered.execution_options.preserve_order = False  # or the others wait for the one that fails
    prompts(blocks * BLOCK).write_parquet(source)
    ordered.checkpoint_config = CheckpointConfig(
        id_column="number", checkpoint_path=str(checkpoint), delete_checkpoint_on_success=False
    )
    stop.touch()
    with pytest.raises(Exception, match="the run ends here"):
        run()
    assert blocks - 2 <= len(written(checkpoint)) < blocks
    stop.unlink()
    run()
    times = Counter(int(line) for line in log.read_text().splitlines())
    assert blocks * BLOCK == len(times)
    assert sum(times.values()) <= (blocks + 2) * BLOCK
    ordered.checkpoint_config = None
    rows = ray.data.read_parquet(out).take_all()
    assert [*range(blocks * BLOCK)] == sorted(row["number"] for row in rows)


def test_other_tasks_and_tasks_of_ray() -> None:
    """Conversations as Arrow gives them back, vectors as tensors, and no pool of actors."""
    talks = [
        {"messages": [{"role": "user", "content": "Hello"}]},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "A"},
            ]
        },
    ]
    settings = {"threads": 1, "ctx_size": 64}
    chat = llcuda.BatchProcessor("demo", "chat", max_tokens=3, temperature=0, **settings)
    one = ray.data.from_items(talks).map_batches(chat, compute=TaskPoolStrategy(size=1))
    rows = one.take_all()
    assert [3, 3] == [row["tokens_generated"] for row in rows]
    embed = llcuda.BatchProcessor("demo", "embed", pooling="mean", on_error="return", **settings)
    table = ray.data.from_items([{"text": "a"}, {"text": "a " * 99}])
    good, bad = table.map_batches(embed, compute=TaskPoolStrategy(size=1)).take_all()
    own = embed({"text": ["a"]})["embedding"][0]
    embed.close()
    assert own.shape == good["embedding"].shape == bad["embedding"].shape
    assert abs(own - good["embedding"]).max() < 1e-5
    assert "ContextLengthError" in bad["error"]


def test_an_error_of_a_row_reaches_the_driver() -> None:
    """With its kind and its message."""
    data = computed(prompts().limit(BAD + 1), on_error="raise")
    with pytest.raises(Exception, match="prompt 27: prompt: has") as caught:
        data.take_all()
    assert isinstance(caught.value, llcuda.ContextLengthError | ray.exceptions.RayTaskError)


def test_rows_through_the_server(port: int) -> None:
    """ray.data.llm sends rows to the replicas that answer HTTP too; a bad row is told."""
    from ray.data.llm import ServeDeploymentProcessorConfig, build_processor

    messages = [{"role": "user", "content": "Hello"}]
    rows = [
        {"messages": [{**messages[0], "role": role}], "max_tokens": n}
        for n, role in ((3, "user"), (2, "nobody"), (4, "user"))
    ]
    with on_cluster(port) as server:
        processor = build_processor(
            ServeDeploymentProcessorConfig(
                deployment_name="Replica",
                app_name=NAME,
                batch_size=3,
                should_continue_on_error=True,
            ),
            preprocess=lambda row: {"method": "chat", "request_kwargs": {**row, "temperature": 0}},
            postprocess=lambda row: {
                "text": row["choices"][0]["message"]["content"],
                "tokens": row["usage"]["completion_tokens"],
            },
        )
        answered = processor(ray.data.from_items(rows)).take_all()
        asked = {"messages": messages, "max_tokens": 4, "temperature": 0}
        expected = server.post("/v1/chat/completions", **asked).json()["choices"][0]["message"]
    good = [row for row in answered if not row["__inference_error__"]]
    assert [3, 4] == sorted(row["tokens"] for row in good)
    assert expected["content"] in [row["text"] for row in good]
    [bad] = [row["__inference_error__"] for row in answered if row["__inference_error__"]]
    assert "messages[0].role=" in bad


def test_the_guide(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each block runs as printed, in this order, and shows something."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(DOCS / "scale-out.md", "py"):
        block.run()
        assert capsys.readouterr().out.strip()
