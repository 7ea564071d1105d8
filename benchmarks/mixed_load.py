"""The load of `serve.py --soak`: random requests to every API of a server at 127.0.0.1.

Some requests are wrong, some clients disconnect, some send fields that the server does not know.
The server has two models: "served" generates, "rank" ranks.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from http_load import request

CLIENTS = 12
UNKNOWN = 0.1  # part of the requests that have a field which the server does not know
LEAVES = 0.15  # part of the requests whose client disconnects
SEQUENCES = 6  # of 60 requests that are the first of several
BUSY = ("slot_in_use",)  # codes of a 503 that a client of a shared slot must expect
SLOT_FILES = 4
MAX_PROBLEMS = 20
BATCH_SECONDS = 600.0
TOOL_KINDS = (
    "chat auto",
    "chat required",
    "messages tools",
    "messages tools stream",
    "ollama tools",
)
WORDS = ("fox", "boat", "forest", "king", "sea", "apple", "night", "song")
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}},
          "required": ["name"], "additionalProperties": False}  # fmt: skip
TOOL = {"name": "get_weather", "description": "Tell the weather in a city."}
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}


class Answer(NamedTuple):
    """An answer. ignored: what its header says was ignored."""

    status: int
    ignored: str
    body: bytes

    def json(self) -> Any:
        """Return the document of a whole answer."""
        return json.loads(self.body)


class Single(NamedTuple):
    """A request.

    Attributes:
        kind: Its name in the results; the answer to a "wrong" one is an error of the client.
        path: Its path.
        body: Its document, bytes that are sent as they are, or None for GET.
        end: What the answer must have, without spaces behind colons.
        stays: Whether its client never disconnects before the answer.
    """

    kind: str
    path: str
    body: Any = None
    end: bytes = b""
    stays: bool = False


@dataclass
class Results:
    """What the clients saw.

    Attributes:
        answers: The number of answers by kind and status.
        problems: The first answers that were not as they should be.
        problem_count: How many there were.
        left: Clients that disconnected.
    """

    answers: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    left: int = 0

    def add_problem(self, text: str) -> None:
        """Count a problem, and keep the first ones."""
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text[:400])


async def send(port: int, data: bytes, leaves_after: float | None = None) -> Answer | None:
    """Send a request.

    Args:
        port: The port of the server.
        data: The bytes of the request.
        leaves_after: Seconds after which the client disconnects; None = it stays.

    Returns:
        The answer; None if the client disconnected before it.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        try:
            async with asyncio.timeout(leaves_after):
                answer = await reader.read()
        except TimeoutError:
            writer.transport.abort()
            return None
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    return Answer(int(lines[0][9:12]), headers.get("x-llcuda-ignored", ""), body)


def get(port: int, path: str, method: str = "GET") -> bytes:
    """Return the bytes of a request without a body."""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
    )


def form(port: int, data: bytes) -> bytes:
    """Return the bytes of the upload of a file of requests."""
    mark = "c5d0a7e1f2"
    parts = (
        f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{mark}\r\n'
    )
    parts += 'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    body = parts.encode() + data + f"\r\n--{mark}--\r\n".encode()
    head = f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: multipart/form-data; boundary={mark}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


class Client:
    """Sends random requests, one after the other.

    Args:
        port: The port of the server.
        dice: Chooses them.
        results: Gets what the answers were.
        left_out: Kinds of requests that are not sent.
    """

    def __init__(
        self, port: int, dice: random.Random, results: Results, left_out: frozenset[str]
    ) -> None:
        self._port = port
        self._dice = dice
        self._results = results
        self._left_out = left_out

    async def visit(self) -> None:
        """Send one request, or several that belong together."""
        if self._dice.randrange(60) < SEQUENCES:
            several = (self._responses, self._batch, self._slot)
            await self._dice.choice(several)()
            return
        text = " ".join(self._dice.choices(WORDS, k=self._dice.choice((3, 8, 40, 120))))
        kinds = self._dice.choice(KINDS)(self._dice, text)
        kinds = [single for single in kinds if single.kind not in self._left_out]
        await self._ask(self._dice.choice(kinds))

    async def _ask(self, single: Single) -> Answer | None:
        kind, path, body, end, stays = single
        unknown = isinstance(body, dict) and self._dice.random() < UNKNOWN and "wrong" not in kind
        if isinstance(body, dict):
            body = {"model": "served", **body, **({"zzz": 1} if unknown else {})}
        data = get(self._port, path) if body is None else request(self._port, path, body)
        seconds = self._patience(stays or "wrong" in kind)
        if kind.startswith("endless"):
            seconds = self._dice.random()
        elif seconds is not None and self._dice.random() < 0.3:
            data = data[: self._dice.randrange(1, len(data))]  # a part of a request
        answer = await self._send(kind, data, seconds)
        if answer is None:
            return None
        is_right = 400 <= answer.status < 500 if "wrong" in kind else answer.status == 200
        if not is_right or end not in answer.body.replace(b'": ', b'":'):
            if not _is_busy(answer):
                self._results.add_problem(f"{kind}: {answer.status} {answer.body[-300:]!r}")
        elif unknown and "zzz" not in answer.ignored:
            self._results.add_problem(f"{kind}: ignored is {answer.ignored!r}")
        return answer

    def _patience(self, stays: bool) -> float | None:
        """Return the seconds after which a client disconnects, None for one that stays."""
        leaves = not stays and self._dice.random() < LEAVES
        return self._dice.choice((0.0, 0.01, 0.1, 0.5, 2.0)) if leaves else None

    async def _send(self, kind: str, data: bytes, seconds: float | None) -> Answer | None:
        answer = await send(self._port, data, seconds)
        if answer is None:
            self._results.left += 1
        else:
            code = " busy" if _is_busy(answer) else ""
            self._results.answers[f"{kind} {answer.status}{code}"] += 1
        return answer

    async def _expect(self, kind: str, data: bytes, *statuses: int, leaves: bool = True) -> Any:
        """Return the document of an answer; None if the client left, or if it is an error."""
        answer = await self._send(kind, data, self._patience(not leaves))
        if answer is None:
            return None
        if answer.status not in (statuses or (200,)):
            self._results.add_problem(f"{kind}: {answer.status} {answer.body[-300:]!r}")
        return answer.json() if answer.status == 200 else None

    async def _responses(self) -> None:
        """Continue a response that is kept, read it and delete it."""
        path, text = "/v1/responses", " ".join(self._dice.choices(WORDS, k=5))
        body = {"model": "served", "input": text, "max_output_tokens": 16}
        first = await self._expect("responses", request(self._port, path, body))
        if first is None:
            return
        name = first["id"]
        body |= {"previous_response_id": name, "stream": True}
        await self._ask(Single("responses go on", path, body, b"event: response."))
        await self._expect("responses read", get(self._port, f"{path}/{name}"))
        await self._expect("responses input", get(self._port, f"{path}/{name}/input_items"))
        await self._expect("responses delete", get(self._port, f"{path}/{name}", "DELETE"))

    async def _batch(self) -> None:
        """Upload a file, have it answered or cancel that, and delete what there is."""
        url = self._dice.choice(("/v1/chat/completions", "/v1/completions", "/v1/embeddings"))
        lines = [self._line(url, number) for number in range(self._dice.randint(1, 4))]
        if self._dice.random() < 0.3:
            lines.insert(1, '{"custom_id": "wrong"')
        upload = await self._expect("upload", form(self._port, "\n".join(lines).encode()))
        if upload is None:
            return
        body = {"input_file_id": upload["id"], "endpoint": url, "completion_window": "24h"}
        batch = await self._expect("batch", request(self._port, "/v1/batches", body), leaves=False)
        if batch is None:
            return
        path = f"/v1/batches/{batch['id']}"
        if self._dice.random() < 0.2:  # 409: it has ended already
            cancel = request(self._port, f"{path}/cancel", {})
            await self._expect("batch cancel", cancel, 200, 409, leaves=False)
        end = time.monotonic() + BATCH_SECONDS
        while batch["status"] not in ("completed", "cancelled", "failed"):
            await asyncio.sleep(0.5)
            batch = await self._expect("batch read", get(self._port, path), leaves=False)
            if batch is None or time.monotonic() > end:
                self._results.add_problem(f"batch: no end: {batch}")
                return
        if batch["status"] == "failed":
            self._results.add_problem(f"batch: {batch}")
        for name in (batch["output_file_id"], batch["error_file_id"], upload["id"]):
            if name is not None:
                path = f"/v1/files/{name}"
                content = await self._send("file", get(self._port, f"{path}/content"), None)
                if content is None or not content.body:
                    self._results.add_problem(f"file: {content}")
                delete = get(self._port, path, "DELETE")  # 409: another batch reads it
                await self._expect("file delete", delete, leaves=False)

    def _line(self, url: str, number: int) -> str:
        text = " ".join(self._dice.choices(WORDS, k=5))
        bodies: dict[str, dict[str, Any]] = {
            "/v1/chat/completions": {"messages": _messages(text), "max_tokens": 8},
            "/v1/completions": {"prompt": text, "max_tokens": 8},
            "/v1/embeddings": {"input": text},
        }
        body = {"model": "served", **bodies[url]}
        return json.dumps({"custom_id": str(number), "method": "POST", "url": url, "body": body})

    async def _slot(self) -> None:
        """Fill a slot, save it to one of some files, restore it and erase it."""
        slot, name = self._dice.randrange(4), f"slot-{self._dice.randrange(SLOT_FILES)}"
        text = " ".join(self._dice.choices(WORDS, k=40))
        body = {"prompt": text, "n_predict": 4, "id_slot": slot}
        if await self._ask(Single("slot fill", "/completion", body, b'"content"')) is None:
            return
        for action in ("save", "restore", "erase"):
            path = f"/slots/{slot}?action={action}&model=served"
            answer = await self._ask(Single(f"slot {action}", path, {"filename": name}))
            if answer is None or answer.status != 200:
                return


def _is_busy(answer: Answer) -> bool:
    return answer.status == 503 and any(code.encode() in answer.body for code in BUSY)


def _messages(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _short(dice: random.Random, name: str = "max_tokens") -> dict[str, Any]:
    return {name: dice.randint(1, 24), "temperature": dice.choice((0, 0.7, 1.2))}


def _openai(dice: random.Random, text: str) -> list[Single]:
    path, short, done = "/v1/completions", _short(dice), b"data: [DONE]"
    return [
        Single("text", path, {"prompt": text, **short}, b'"usage"'),
        Single(
            "text stream",
            path,
            {"prompt": text, "stream": True, "n": 2, "logprobs": 2, **short},
            done,
        ),
        Single("stops", path, {"prompt": text, "stop": [".", " a"], "stream": True, **short}, done),
        Single("echo", path, {"prompt": [text, [1, 2, 3]], "echo": True, **short}, b'"usage"'),
        Single("suffix", path, {"prompt": text, "suffix": text, **short}, b'"usage"'),
        Single("without /v1", "/completions", {"prompt": text, **short}, b'"content"'),
    ]


def _openai_chats(dice: random.Random, text: str) -> list[Single]:
    path, done = "/v1/chat/completions", b"data: [DONE]"
    common = {"messages": _messages(text), **_short(dice)}
    tools = [{"type": "function", "function": {**TOOL, "parameters": CITY}}]
    called = {**common, "tools": tools, "max_tokens": 40}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    return [
        Single("chat", path, common, b'"usage"'),
        Single(
            "chat stream",
            path,
            {**common, "stream": True, "logprobs": True, "top_logprobs": 2},
            done,
        ),
        Single("chat schema", path, {**common, "response_format": schema}, b'"usage"'),
        Single("chat regex", path, {**common, "guided_regex": "(yes|no)+"}, b'"usage"'),
        Single("chat auto", path, {**called, "tool_choice": "auto", "stream": True}, done),
        Single("chat required", path, {**called, "tool_choice": "required"}, b'"usage"'),
    ]


def _vectors(dice: random.Random, text: str) -> list[Single]:
    few, pair = text[:40], [text[:20], text[:30]]
    rank: dict[str, Any] = {"model": "rank", "query": few}
    return [
        Single("embedding", "/v1/embeddings", {"input": [text, text[::-1]]}, b'"usage"'),
        Single(
            "embedding base64",
            "/v1/embeddings",
            {"input": [text, [1, 2]], "encoding_format": "base64"},
            b'"usage"',
        ),
        Single("rerank", "/v1/rerank", {**rank, "documents": pair}, b'"results"'),
        Single(
            "rerank Cohere",
            "/v2/rerank",
            {**rank, "documents": [{"text": few}], "top_n": 1},
            b'"results"',
        ),
        Single("rerank TEI", "/rerank", {**rank, "texts": pair, "return_text": True}, b'"score"'),
        Single("classify", "/v1/classify", {"model": "rank", "input": pair}, b'"probs"'),
        Single("score", "/v1/score", {"model": "rank", "text_1": few, "text_2": pair}, b'"score"'),
        Single("score of vectors", "/score", {"text_1": pair, "text_2": pair}, b'"score"'),
    ]


def _llama_server(dice: random.Random, text: str) -> list[Single]:
    path, stop = "/completion", b'"stop":true'
    common = {"prompt": text, **_short(dice, "n_predict")}
    return [
        Single("completion", path, {**common, "n_probs": 3}, stop),
        Single(
            "completion probs", path, {**common, "n_probs": 3, "post_sampling_probs": True}, stop
        ),
        Single(
            "completion grammar",
            path,
            {**common, "grammar": 'root ::= "yes" | "no"', "stream": True},
            stop,
        ),
        Single("completion schema", path, {**common, "json_schema": SCHEMA}, stop),
        Single(
            "completion texts",
            path,
            {**common, "prompt": [text, [1, 2, "a"]], "return_tokens": True},
            stop,
        ),
        Single(
            "infill", "/infill", {"input_prefix": text, "input_suffix": text, "n_predict": 8}, stop
        ),
        Single("template", "/apply-template", {"messages": _messages(text)}, b'"prompt"'),
        Single("tokenize", "/tokenize", {"content": text, "with_pieces": True}, b'"tokens"'),
        Single("detokenize", "/detokenize", {"tokens": [1, 2, 3]}, b'"content"'),
        Single(
            "input tokens",
            "/v1/chat/completions/input_tokens",
            {"messages": _messages(text)},
            b'"input_tokens"',
        ),
    ]


def _anthropic(dice: random.Random, text: str) -> list[Single]:
    path = "/v1/messages"
    common = {"messages": _messages(text), "system": "Be brief.", "max_tokens": dice.randint(1, 24)}
    tools = {
        "tools": [{**TOOL, "input_schema": CITY}],
        "tool_choice": {"type": "any"},
        "max_tokens": 40,
    }
    return [
        Single("messages", path, common, b'"stop_reason"'),
        Single("messages stream", path, {**common, "stream": True}, b"event: message_stop"),
        Single("messages tools", path, {**common, **tools}, b'"stop_reason"'),
        Single(
            "messages tools stream",
            path,
            {**common, **tools, "stream": True},
            b"event: message_stop",
        ),
        Single(
            "count tokens", f"{path}/count_tokens", {"messages": _messages(text)}, b'"input_tokens"'
        ),
    ]


def _ollama(dice: random.Random, text: str) -> list[Single]:
    options, done = {"options": _short(dice, "num_predict")}, b'"done":true'
    tools = [{"type": "function", "function": {**TOOL, "parameters": CITY}}]
    whole: dict[str, Any] = {"stream": False, **options}
    return [
        Single("ollama chat", "/api/chat", {"messages": _messages(text), **options}, done),
        Single(
            "ollama tools",
            "/api/chat",
            {"messages": _messages(text), "tools": tools, **whole},
            done,
        ),
        Single(
            "ollama format",
            "/api/chat",
            {"messages": _messages(text), "format": SCHEMA, **whole},
            done,
        ),
        Single("ollama generate", "/api/generate", {"prompt": text, **options}, done),
        Single("ollama raw", "/api/generate", {"prompt": text, "raw": True, **whole}, done),
        Single("ollama embed", "/api/embed", {"input": [text, "a"]}, b'"embeddings"'),
        Single("ollama show", "/api/show", {}, b'"model_info"'),
    ]


def _wrong(dice: random.Random, text: str) -> list[Single]:
    broken = b'{"messages": [' + text.encode()
    return [
        Single("wrong value", "/v1/completions", {"prompt": text, "temperature": -1}),
        Single("wrong model", "/v1/completions", {"prompt": text, "model": "none"}),
        Single("wrong JSON", "/v1/chat/completions", broken),
        Single("wrong length", "/v1/completions", {"prompt": "fox " * 3000}, b"context length"),
        Single("wrong schema", "/completion", {"prompt": text, "json_schema": {"type": "thing"}}),
        Single("wrong grammar", "/completion", {"prompt": text, "grammar": "root ::= ("}),
        Single("wrong role", "/v1/messages", {"messages": [{"role": "king", "content": text}]}),
        Single("wrong options", "/api/chat", {"messages": _messages(text), "options": 5}),
        Single("wrong response", "/v1/responses", {"input": text, "previous_response_id": "a"}),
        Single("wrong file", "/v1/batches", {"input_file_id": "a", "endpoint": "/v1/completions"}),
        Single("wrong rerank", "/v1/rerank", {"query": text, "documents": []}),
        Single("wrong slot", "/slots/99?action=erase&model=served", {}),
        Single("wrong path", "/v1/none", {}),
    ]


def _reads(dice: random.Random, text: str) -> list[Single]:
    return [
        Single("props", "/props?model=served", None, b'"total_slots"'),
        Single("slots", "/slots?model=served", None, b'"id"'),
        Single("adapters", "/lora-adapters?model=served", None, b"[]"),
        Single("models", "/v1/models", None, b'"served"'),
        Single("batches", "/v1/batches?limit=3", None, b'"data"'),
        Single("files", "/v1/files", None, b'"data"'),
        Single("ollama tags", "/api/tags", None, b'"models"'),
        Single("ollama ps", "/api/ps", None, b'"models"'),
        Single("page", "/", None, b"<html"),
    ]


def _endless(dice: random.Random, text: str) -> list[Single]:
    """Return requests whose answers have no end; their clients disconnect."""
    endless = {"max_tokens": 4000, "ignore_eos": True, "overflow": "shift"}
    body = {"messages": _messages(text), "max_tokens": 4000}
    return [
        Single("endless text", "/v1/completions", {"prompt": text, **endless}),
        Single("endless stream", "/v1/completions", {"prompt": text, "stream": True, **endless}),
        Single("endless chat", "/v1/chat/completions", {**body, **endless, "stream": True}),
        Single("endless messages", "/v1/messages", {**body, "stream": True, "overflow": "shift"}),
        Single("endless ollama", "/api/chat", {"messages": _messages(text)}),
        Single(
            "endless native", "/completion", {"prompt": text, "stream": True, "ignore_eos": True}
        ),
    ]


KINDS = (
    _openai,
    _openai_chats,
    _vectors,
    _llama_server,
    _anthropic,
    _ollama,
    _wrong,
    _reads,
    _endless,
)


@dataclass
class Held:
    """What a process holds: MiB of resident memory, open files, threads."""

    memory: float
    files: int
    threads: int

    @classmethod
    def of(cls, process: int) -> Held:
        """Return what a process holds now."""
        folder = Path(f"/proc/{process}")
        pages = int((folder / "statm").read_text().split()[1])
        memory = pages * resource.getpagesize() / 2**20
        threads = len(list((folder / "task").iterdir()))
        return cls(memory, len(list((folder / "fd").iterdir())), threads)


async def unanswerable(port: int) -> frozenset[str]:
    """Return the kinds of requests that a model is not made for, as its first answers show."""
    gap = {"input_prefix": "a", "input_suffix": "b", "n_predict": 1}
    tools = {"messages": _messages("a"), "tools": [{**TOOL, "input_schema": CITY}], "max_tokens": 1}
    probes: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "/infill": (gap, ("infill", "suffix")),
        "/v1/messages": (tools, TOOL_KINDS),
    }
    kinds: set[str] = set()
    for path, (body, names) in probes.items():
        answer = await send(port, request(port, path, {"model": "served", **body}))
        kinds |= set(names if answer is None or answer.status != 200 else ())
    return frozenset(kinds)


async def fill_buffers(port: int) -> None:
    """Send the largest requests, so that the memory for them is in use before it is measured."""
    text = " ".join(random.Random(0).choices(WORDS, k=600))
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": text, "echo": True, "logprobs": 5, "max_tokens": 1},
        "/v1/embeddings": {"input": [text] * 4},
    }
    for path, body in bodies.items():
        await send(port, request(port, path, {"model": "served", **body}))


async def put_load(
    port: int, process: int, minutes: float, *, seed: int, left_out: frozenset[str]
) -> tuple[Results, list[Held]]:
    """Send mixed requests.

    Args:
        port: The port of the server.
        process: The server's process ID.
        minutes: The length of the run.
        seed: The seed of the mixture.
        left_out: Kinds of requests that are not sent.

    Returns:
        What the clients saw, and by minute what the server held.
    """
    results, end = Results(), time.monotonic() + minutes * 60
    dice = random.Random(seed)

    async def visit(client: Client) -> None:
        while time.monotonic() < end:
            await client.visit()

    async def watch() -> list[Held]:
        readings = []
        while time.monotonic() < end:
            readings.append(Held.of(process))
            await asyncio.sleep(min(60, minutes * 60 / 8))
        return readings

    watching = asyncio.ensure_future(watch())
    clients = [Client(port, dice, results, left_out) for _ in range(CLIENTS)]
    await asyncio.gather(*(visit(client) for client in clients))
    return results, await watching
