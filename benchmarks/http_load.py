"""The timed streams that serve.py reads from a server at 127.0.0.1.

The clients are plain asyncio over sockets, so that they take little of the machine's time.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
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
