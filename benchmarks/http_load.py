"""The load that serve.py puts on a server at 127.0.0.1: timed streams, and mixed requests.

The clients are plain asyncio over sockets, so that they take little of the machine's time.
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
from typing import Any

PROMPT = "Once upon a time, there was a brave fox named Lily who lived in the forest."


@dataclass
class Timed:
    """The times that clients measured.

    Attributes:
        tokens: Tokens of all streams.
        seconds: Seconds from the first request to the last token.
        first: Seconds to the first token, of each stream.
        each: Seconds of a further token, of each stream.
    """

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)

    def add(self, tokens: int, marks: tuple[float, float, float]) -> None:
        """Add a stream by the times of its request, its first and its last token."""
        asked, began, ended = marks
        self.tokens += tokens
        self.first.append(began - asked)
        self.each.append((ended - began) / (tokens - 1))


def prompt(client: int, turn: int) -> str:
    """Return a prompt whose beginning no other has."""
    return f"{client}-{turn}. {PROMPT}"


def request(port: int, path: str, body: Any) -> bytes:
    """Return the bytes of a POST request; a body of bytes is not changed."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data


async def stream(port: int, body: dict[str, Any]) -> tuple[float, float, float]:
    """Read a stream; return the times of its request, its first and its last token."""
    asked = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(port, "/v1/completions", body))
    began = ended = 0.0
    while line := await reader.readline():
        if line.startswith((b'data: {"error"', b"HTTP/1.1 4", b"HTTP/1.1 5")):
            raise RuntimeError(line.decode())
        if line.startswith(b"data: {"):
            ended = time.perf_counter()
            began = began or ended
        elif line.startswith(b"data: [DONE]"):
            break
    writer.close()
    return asked, began, ended


async def over_http(
    port: int, clients: int, turns: int, tokens: int, extra: dict[str, Any]
) -> Timed:
    """Have each client read `turns` streams, one after the other."""
    timed = Timed()

    async def client(number: int) -> None:
        for turn in range(turns):
            body = {"prompt": prompt(number, turn), "max_tokens": tokens, "stream": True, **extra}
            timed.add(tokens, await stream(port, body))

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    timed.seconds = time.perf_counter() - started
    return timed


async def soak(port: int, process: int, minutes: float, seed: int = 1) -> dict[str, Any]:
    """Send mixed requests, also bad ones and from clients that disconnect.

    Args:
        port: The port of the server.
        process: The server's process ID.
        minutes: The length of the run.
        seed: The seed of the mixture.

    Returns:
        The number of answers by kind and status, and by minute the server's memory (MiB) and open
        files.
    """
    chance = random.Random(seed)
    answers: Counter[str] = Counter()
    end = time.monotonic() + minutes * 60

    async def client() -> None:
        while time.monotonic() < end:
            kind, path, body = mixed(chance)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request(port, path, body))
                if kind == "leaves":
                    await asyncio.wait_for(reader.read(100), chance.random() * 0.2)
                    writer.transport.abort()
                    continue
                answer = await reader.read()
                failed = " failed" if b'data: {"error"' in answer else ""
                answers[f"{kind} {answer[9:12].decode()}{failed}"] += 1
            except TimeoutError:
                writer.transport.abort()
            finally:
                if kind == "leaves":
                    answers["left"] += 1
                writer.close()

    async def watch() -> list[tuple[float, int]]:
        readings = []
        while time.monotonic() < end:
            readings.append(resources(process))
            await asyncio.sleep(min(60, minutes * 60 / 5))
        return readings

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(client() for _ in range(12)))
    return {"answers": dict(sorted(answers.items())), "held": await watching}


def mixed(chance: random.Random) -> tuple[str, str, Any]:
    """Return a random request: its kind, its path and its body."""
    words = ("fox", "boat", "forest", "king", "sea", "apple", "night", "song")
    text = " ".join(chance.choices(words, k=chance.choice((3, 8, 40, 120))))
    short = {"max_tokens": chance.randint(1, 60), "temperature": chance.choice((0, 0.7, 1.2))}
    messages = [{"role": "user", "content": text}]
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}},
              "required": ["name"], "additionalProperties": False}  # fmt: skip
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    chat, texts = "/v1/chat/completions", "/v1/completions"
    kinds: list[tuple[str, str, Any]] = [
        ("whole", texts, {"prompt": text, **short}),
        ("stream", texts, {"prompt": text, "stream": True, "n": 2, "logprobs": 2, **short}),
        ("stops", texts, {"prompt": text, "stop": [".", " a"], "stream": True, **short}),
        ("chat", chat, {"messages": messages, **short}),
        ("chat stream", chat, {"messages": messages, "stream": True, **short}),
        ("schema", chat, {"messages": messages, "response_format": response_format, **short}),
        ("embedding", "/v1/embeddings", {"input": [text, text[::-1]]}),
        ("responses", "/v1/responses", {"input": text, "max_output_tokens": 20, "stream": True}),
        ("tokens", "/tokenize", {"content": text}),
        ("wrong", texts, {"prompt": text, "temperature": -1}),
        ("unknown", texts, {"prompt": text, "model": "none"}),
        ("broken", chat, b'{"messages": [' + text.encode()),
        ("leaves", texts, {"prompt": text, "max_tokens": 4000, "ignore_eos": True,
                           "overflow": "shift", "stream": chance.random() < 0.7}),
        ("leaves", chat, {"messages": messages, "max_tokens": 4000, "stream": True}),
    ]  # fmt: skip
    return chance.choice(kinds)


def resources(process: int) -> tuple[float, int]:
    """Return a process's resident memory in MiB and the number of its open files."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20, len(list(Path(f"/proc/{process}/fd").iterdir()))
