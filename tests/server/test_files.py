"""/v1/files and /v1/batches, as OpenAI's client sees them."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch, FileObject

from llcuda.server import batch_store, file_store
from tests.support.batches import chat_line
from tests.support.server import Served, demo, is_error, serve_process, served
from tests.support.waiting import PATIENCE, eventually

FINAL = ("completed", "failed", "cancelled")
MANY = 400
FEW = 60


def upload(client: openai.OpenAI, *lines: Any, name: str = "in.jsonl") -> FileObject:
    data = b"\n".join(
        line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
    )
    return client.files.create(file=(name, data), purpose="batch")


def begin(client: openai.OpenAI, file: FileObject, **fields: Any) -> Batch:
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        **fields,
    )


def end_of(client: openai.OpenAI, batch: Batch) -> Batch:
    assert eventually(lambda: client.batches.retrieve(batch.id).status in FINAL)
    return client.batches.retrieve(batch.id)


def lines_of(client: openai.OpenAI, file: str | None) -> list[Any]:
    assert file is not None
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]


def test_files(client: openai.OpenAI) -> None:
    """A file is listed, read and deleted."""
    file = upload(client, chat_line("1"), name="a b\u00e4.jsonl")
    assert ("file", "batch", "processed", "a b\u00e4.jsonl") == (
        file.object, file.purpose, file.status, file.filename
    )  # fmt: skip
    assert file == client.files.retrieve(file.id)
    assert file.bytes == len(client.files.content(file.id).content)
    assert chat_line("1") == json.loads(client.files.content(file.id).text)
    other = upload(client, chat_line("2"))
    listed = [entry.id for entry in client.files.list(limit=1, purpose="batch")]
    assert [other.id, file.id] == listed[:2]
    first = client.files.list(order="asc", after=file.id)
    assert [other.id] == [entry.id for entry in first]
    assert not client.files.list(purpose="other").data
    assert client.files.delete(file.id).deleted
    client.files.delete(other.id)
    with pytest.raises(openai.NotFoundError, match="no such file"):
        client.files.content(file.id)


def test_batch(client: openai.OpenAI, server: Served) -> None:
    """Answers are those of the server; wrong lines and refusals are in the error file."""
    expected = server.post("/v1/chat/completions", **chat_line("1")["body"]).json()
    other = {"custom_id": "other", "url": "/v1/embeddings", "body": {"input": "a"}}
    file = upload(
        client,
        chat_line("1"),
        b"",
        chat_line("2", max_tokens="x"),
        b"{",
        chat_line("1"),
        other,
        chat_line("3"),
    )
    batch = begin(client, file, metadata={"night": "1"})
    assert ("batch", {"night": "1"}) == (batch.object, batch.metadata)
    done = end_of(client, batch)
    assert "completed" == done.status, done
    assert done.request_counts is not None
    assert (6, 2, 4) == (
        done.request_counts.total, done.request_counts.completed, done.request_counts.failed
    )  # fmt: skip
    answers = {
        line["custom_id"]: line["response"] for line in lines_of(client, done.output_file_id)
    }
    assert {"1", "3"} == set(answers)
    assert expected["choices"] == answers["1"]["body"]["choices"]
    errors = lines_of(client, done.error_file_id)
    places = {line["error"] and line["error"]["line"]: line for line in errors}
    assert {None, 4, 5, 6} == set(places)
    refusal = places[None]
    assert ("2", 400) == (refusal["custom_id"], refusal["response"]["status_code"])
    assert "max_tokens" == refusal["response"]["body"]["error"]["param"]
    assert "expected a JSON object" in places[4]["error"]["message"]
    assert "an earlier line has it" in places[5]["error"]["message"]
    assert "the endpoint of the batch is /v1/chat/completions" in places[6]["error"]["message"]
    result = client.files.retrieve(str(done.output_file_id))
    assert ("batch_output", f"{batch.id}_output.jsonl") == (result.purpose, result.filename)
    assert batch.id in [entry.id for entry in client.batches.list(limit=1)]


def test_cancel_keeps_answers(client: openai.OpenAI) -> None:
    """Answers until then are kept; what a batch reads is not deleted, and the next one goes on."""
    file = upload(client, *(chat_line(str(number), max_tokens=30) for number in range(MANY)))
    batch, waiting = begin(client, file), begin(client, file)
    counts = lambda: client.batches.retrieve(batch.id).request_counts  # noqa: E731
    assert eventually(lambda: counts().completed > 2)
    with pytest.raises(openai.ConflictError, match="reads this file"):
        client.files.delete(file.id)
    assert "validating" == client.batches.retrieve(waiting.id).status
    assert client.batches.cancel(waiting.id).status in ("cancelling", "cancelled")
    client.batches.cancel(batch.id)
    done = end_of(client, batch)
    assert "cancelled" == done.status
    assert done.cancelled_at
    kept = len(lines_of(client, done.output_file_id))
    assert kept == counts().completed
    assert 2 < kept < MANY
    assert "cancelled" == end_of(client, waiting).status
    with pytest.raises(openai.ConflictError, match="cannot be cancelled"):
        client.batches.cancel(batch.id)
    assert client.files.delete(file.id).deleted


@pytest.mark.parametrize("lines", [(b"\xff\xfe no", b"[1]"), (b"\n\n",)])
def test_a_file_without_requests(client: openai.OpenAI, lines: tuple[bytes, ...]) -> None:
    """A batch of it fails, and says why."""
    done = end_of(client, begin(client, upload(client, *lines)))
    assert ("failed", None, None) == (done.status, done.output_file_id, done.error_file_id)
    assert done.errors is not None
    problems = [(error.line, error.message or "") for error in done.errors.data or []]
    if len(lines) == 1:
        assert [(None, "the file has no line")] == problems
    else:
        assert [1, 2] == [line for line, _ in problems]
        assert "line 1: expected a JSON object" in problems[0][1]


FILE = {"file": ("in.jsonl", b"{}")}


@pytest.mark.parametrize(
    ("form", "words", "param"),
    [
        ({"files": FILE}, 'missing; give "batch"', "purpose"),
        ({"files": FILE, "data": {"purpose": "fine-tune"}}, 'expected "batch"', "purpose"),
        ({"files": {**FILE, "purpose": ("x", b"batch")}}, "Maximum number", None),
        ({"files": {"other": (None, b"x")}, "data": {"purpose": "batch"}}, "missing", "file"),
        ({"files": {"file": (None, b"{}")}, "data": {"purpose": "batch"}}, "part with a", "file"),
        ({"files": {"file": ("a", b"")}, "data": {"purpose": "batch"}}, "is empty", "file"),
        ({"files": FILE, "data": {"purpose": "b" * 100_000}}, "maximum size", None),
        ({"files": FILE, "data": {str(i): "x" for i in range(20)}}, "Maximum number", None),
        ({"json": {"purpose": "batch"}}, "multipart/form-data", None),
        ({"data": {"purpose": "batch"}}, "multipart/form-data", None),
        ({}, "multipart/form-data", None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "boundary", None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}},
            "multipart", None),
        ({"content": b"--b\r\n\r\nx\r\n--b--", "headers": {
            "content-type": "multipart/form-data; boundary=b"}}, "name", None),
    ],
)  # fmt: skip
def test_wrong_uploads(server: Served, form: dict[str, Any], words: str, param: str | None) -> None:
    """An error names what is wrong of the form, and nothing is kept."""
    before = [*server.service.files.documents]
    error = is_error(server.client.post("/v1/files", **form), 400, param)
    assert words in error["message"]
    assert before == [*server.service.files.documents]


def test_uploads_need_python_multipart(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without it says what to install, and goes on."""
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    answer = server.client.post("/v1/files", files=FILE, data={"purpose": "batch"})
    assert "pip install 'llcuda[server]'" in is_error(answer, 501)["message"]
    assert "close" == answer.headers["connection"]
    assert 200 == server.client.get("/v1/files").status_code


def test_wrong_fields(server: Served) -> None:
    """Ids, queries and bodies that name nothing."""
    client = server.client
    for method, path in (
        ("GET", "/v1/files/no"), ("DELETE", "/v1/files/no"), ("GET", "/v1/files/no/content"),
        ("GET", "/v1/files/..%2f..%2fetc%2fpasswd"), ("GET", "/v1/batches/no"),
        ("POST", "/v1/batches/no/cancel"), ("GET", "/files/no"),
    ):  # fmt: skip
        is_error(client.request(method, path), 404)
    for query in ("limit=0", "limit=x", "order=up", "after=no"):
        for path in ("files", "batches"):
            is_error(client.get(f"/v1/{path}?{query}"), 400, query.partition("=")[0])
    good = {"input_file_id": "no", "endpoint": "/v1/embeddings"}
    for fields, param in (
        ({}, "input_file_id"),
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"endpoint": "file:///etc/passwd"}, "endpoint"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"completion_window": 5}, "completion_window"),
    ):
        is_error(server.post("/v1/batches", **{**good, **fields}), 400, param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """A server with a key, a folder and small limits, and this folder."""
    from llcuda.server import Limits

    folder = tmp_path_factory.mktemp("files")
    limits = Limits(file_bytes=100_000, total_file_bytes=150_000, body_bytes=20_000)
    with served(demo(), keys=["k"], file_folder=folder, limits=limits) as server:
        server.client.headers["authorization"] = "Bearer k"
        yield server, folder


def send(server: Served, data: bytes) -> httpx.Response:
    form: Any = {"file": ("in.jsonl", data)}
    return server.client.post("/v1/files", files=form, data={"purpose": "batch"})


def test_bounds(small: tuple[Served, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large, too many, a full disk: nothing of these files stays."""
    server, folder = small
    assert "100000 bytes" in is_error(send(server, b"x" * 200_000), 413)["message"]
    kept = send(server, b"x" * 99_000).json()
    answer = send(server, b"x" * 99_000)
    assert "storage_full" == is_error(answer, 507)["code"]
    assert "close" == answer.headers["connection"]
    is_error(httpx.post(f"{server.url}/v1/files", content=b"x"), 401)
    assert server.client.delete(f"/v1/files/{kept['id']}").json()["deleted"]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("llcuda.server.file_store.publish", full)
        assert "disk is full" in is_error(send(server, b"{}"), 507)["message"]
    assert [] == [*folder.iterdir()]
    answer = send(server, b"x" * 99_000)
    assert 200 == answer.status_code
    server.client.delete(f"/v1/files/{answer.json()['id']}")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "storage_full", "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "server_error", "log says more"),
    ],
    ids=["full", "forbidden"],
)
def test_results_that_cannot_be_kept(
    small: tuple[Served, Path],
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    code: str,
    words: str,
) -> None:
    """The batch fails, and says whether the disk is full or the log says more."""
    server, _ = small
    file = send(server, json.dumps(chat_line("1")).encode()).json()

    def fails(*_: Any) -> None:
        raise error

    save = file_store.save_document
    monkeypatch.setattr(
        file_store, "save_document", lambda folder, d: fails() if "bytes" in d else save(folder, d)
    )
    fields = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    path = f"/v1/batches/{server.post('/v1/batches', **fields).json()['id']}"
    assert eventually(lambda: server.client.get(path).json()["status"] in FINAL)
    batch = server.client.get(path).json()
    [problem] = batch["errors"]["data"]
    assert ("failed", None, code) == (batch["status"], batch["output_file_id"], problem["code"])
    assert words in problem["message"]
    assert server.client.delete(f"/v1/files/{file['id']}").json()["deleted"]


def test_a_full_disk_does_not_keep_a_batch_running(
    small: tuple[Served, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled although the disk does not take its document; one that is new is refused."""
    server, _ = small
    lines = (json.dumps(chat_line(str(i), max_tokens=30)).encode() for i in range(MANY))
    file = send(server, b"\n".join(lines)).json()
    fields = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    path = f"/v1/batches/{server.post('/v1/batches', **fields).json()['id']}"

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(batch_store, "save_document", fails)
        assert "storage_full" == is_error(server.post("/v1/batches", **fields), 507)["code"]
        assert 200 == server.client.post(f"{path}/cancel").status_code
        assert eventually(lambda: server.client.get(path).json()["status"] in FINAL)
    done = server.client.get(path).json()
    assert "cancelled" == done["status"]
    assert done["request_counts"]["completed"] < MANY
    for name in (file["id"], done["output_file_id"]):
        if name is not None:
            assert server.client.delete(f"/v1/files/{name}").json()["deleted"]


def test_a_folder_is_found_again(small: tuple[Served, Path]) -> None:
    """Keys guard what a batch asks; the next server has its files, and a line may be too large."""
    server, folder = small
    line = json.dumps(chat_line("1")).encode()
    large = json.dumps(chat_line("2", user="x" * 30_000)).encode()
    file = send(server, line + b"\n" + large).json()
    fields = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    batch = server.post("/v1/batches", **fields).json()
    path = f"/v1/batches/{batch['id']}"
    assert eventually(lambda: server.client.get(path).json()["status"] in FINAL)
    done = server.client.get(path).json()
    assert {"total": 2, "completed": 1, "failed": 1} == done["request_counts"]
    content = server.client.get(f"/v1/files/{done['error_file_id']}/content").text
    assert "line 2: too large: at most 20000 bytes" in content
    (folder / "file-x.json").write_text("{")
    with served(demo(), preload=False, file_folder=folder) as other:
        assert done == other.client.get(path).json()
        assert line in other.client.get(f"/v1/files/{file['id']}/content").content
        listed = other.client.get("/v1/files").json()["data"]
        assert {file["id"], done["output_file_id"], done["error_file_id"]} == {
            entry["id"] for entry in listed
        }


def begin_many(server: Served | httpx.Client, max_tokens: int = 6) -> tuple[str, str]:
    """Begin a batch of many lines, two of them wrong, and one; return the paths of both."""
    client = server.client if isinstance(server, Served) else server
    length = {"max_tokens": max_tokens, "ignore_eos": True}
    lines = [json.dumps(chat_line(str(number), **length)) for number in range(FEW)]
    lines[3:3] = ["{", json.dumps(chat_line("1")), json.dumps(chat_line("bad", n="x"))]
    paths = []
    for text in ("\n".join(lines), lines[0]):
        form: Any = {"file": ("in.jsonl", text.encode())}
        file = client.post("/v1/files", files=form, data={"purpose": "batch"}).json()
        fields = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
        paths.append(f"/v1/batches/{client.post('/v1/batches', json=fields).json()['id']}")
    return paths[0], paths[1]


def answers_in(folder: Path) -> dict[Path, bytes]:
    """Return the results that batches have written into a folder."""
    files = [path for path in folder.glob("file-*") if path.suffix != ".json"]
    return {path: data for path in files if (data := path.read_bytes()).startswith(b'{"id": "bat')}


def check_the_rest(folder: Path, before: dict[Path, bytes], paths: tuple[str, str]) -> None:
    """Let the next server go on with batches, and check that no line is there twice or lost."""
    with served(demo(), file_folder=folder) as server:
        status = lambda path: server.client.get(path).json()["status"]  # noqa: E731
        assert eventually(lambda: all(status(path) in FINAL for path in paths))
        done, single = [server.client.get(path).json() for path in paths]
        assert ["completed", "completed"] == [done["status"], single["status"]]
        assert {"total": FEW + 3, "completed": FEW, "failed": 3} == done["request_counts"]
        lines = server.client.get(f"/v1/files/{done['output_file_id']}/content").text.splitlines()
        errors = server.client.get(f"/v1/files/{done['error_file_id']}/content").text.splitlines()
        ids = [json.loads(line)["custom_id"] for line in lines]
        assert sorted(map(str, range(FEW))) == sorted(ids)
        assert ["1", "bad", None] == sorted(
            (json.loads(line)["custom_id"] for line in errors), key=lambda name: name or "z"
        )
        for path, data in before.items():
            whole = data[: data.rfind(b"\n") + 1]
            assert path.read_bytes().startswith(whole)
        listed = {entry["id"] for entry in server.client.get("/v1/files").json()["data"]}
        assert {done["output_file_id"], done["error_file_id"], single["output_file_id"]} <= listed


def test_the_end_of_the_server(tmp_path: Path) -> None:
    """The next server goes on with batches, where this one stopped."""
    with served(demo(), file_folder=tmp_path) as server:
        paths = begin_many(server, 80)
        counts = lambda: server.client.get(paths[0]).json()["request_counts"]  # noqa: E731
        assert eventually(lambda: counts()["completed"] > 4)
        with served(demo(), preload=False, file_folder=tmp_path) as other:  # leaves them alone
            error = is_error(other.client.post(f"{paths[0]}/cancel"), 409)
            assert "batch_elsewhere" == error["code"]
    stopped = json.loads((tmp_path / f"{paths[0].rpartition('/')[2]}.json").read_text())
    assert stopped["status"] in ("validating", "in_progress")
    before = answers_in(tmp_path)
    assert sum(data.count(b"\n") for data in before.values()) < FEW
    assert all(b'"status_code": 200' in line for d in before.values() for line in d.splitlines()
               if b'"response": null' not in line and b'"bad"' not in line)  # fmt: skip
    check_the_rest(tmp_path, before, paths)
    assert not [*tmp_path.glob(".llcuda-*"), *tmp_path.glob("*.lock")]


def test_a_killed_server(tmp_path: Path) -> None:
    """The same after SIGKILL, also with half a line at the end of a file."""
    with serve_process("--file-path", str(tmp_path), "--ctx-size", "512") as (process, url):
        with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
            paths = begin_many(client)
        assert eventually(lambda: sum(d.count(b"\n") for d in answers_in(tmp_path).values()) > 9)
        process.kill()
        process.wait(PATIENCE)
    before = answers_in(tmp_path)
    longest = max(before, key=lambda path: len(before[path]))
    with longest.open("ab") as file:
        file.write(b'{"id": "batch_req_half')
    check_the_rest(tmp_path, before, paths)


def test_a_batch_that_was_ending(tmp_path: Path) -> None:
    """A server that ended within a cancellation, or before a batch was marked as ended."""
    with served(demo(), file_folder=tmp_path) as server:
        paths = begin_many(server)
        assert eventually(lambda: server.client.get(paths[1]).json()["status"] == "completed")
    [name, single] = [path.rpartition("/")[2] for path in paths]
    document = json.loads((tmp_path / f"{single}.json").read_text())
    again = {**document, "status": "finalizing", "output_file_id": None, "completed_at": None}
    (tmp_path / f"{single}.json").write_text(json.dumps(again))
    other = json.loads((tmp_path / f"{name}.json").read_text())
    (tmp_path / f"{name}.json").write_text(json.dumps({**other, "status": "cancelling"}))
    damaged = {**again, "id": "batch_x", "result_file_ids": ["../x", 5], "input_file_id": "gone"}
    (tmp_path / "batch_x.json").write_text(json.dumps(damaged))
    with served(demo(), file_folder=tmp_path) as server:
        get = lambda name: server.client.get(f"/v1/batches/{name}").json()  # noqa: E731
        assert eventually(lambda: all(get(i)["status"] in FINAL for i in (single, name, "batch_x")))
        assert document["output_file_id"] == get(single)["output_file_id"]
        assert document["request_counts"] == get(single)["request_counts"]
        assert "cancelled" == get(name)["status"]
        assert "no such file" in get("batch_x")["errors"]["data"][0]["message"]
