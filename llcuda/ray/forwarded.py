"""A request on its way from the ingress to a replica, and what the router reads of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llcuda.server.middleware import INSIDE

BLOCK = 128  # characters of a prompt that are hashed together
MAX_BLOCKS = 512
MAX_PARSED = 2**20  # bytes of a body; of a longer one the bytes are hashed as they are
PROMPT = ("tools", "system", "instructions", "messages", "input", "prompt")  # fields of bodies
RECENT = "llcuda_prompts"  # in a replica's routing statistics: model and hashes of late prompts
NAMED = ("previous_response_id", "input_file_id")
ID = re.compile(r"\b(?:resp_|file-|batch_)([0-9a-f]{8})[0-9a-f]{16}\b")
KEPT = ("/v1/files", "/files", "/v1/batches", "/batches")  # what one replica keeps
UNSENT = {b"authorization", b"x-api-key", b"origin", b"transfer-encoding", b"content-length"}


@dataclass(frozen=True)
class BodyFacts:
    """What the ingress reads of a body.

    Attributes:
        model: The name of the model; "" where there is only one.
        prefix: Hashes of the beginnings of the prompt, the shortest first.
        timeout: The seconds that the client gives the request.
        owner: The tag of the replica that keeps what the request names; "" = none.
    """

    model: str = ""
    prefix: tuple[bytes, ...] = ()
    timeout: float | None = None
    owner: str = ""


@dataclass(frozen=True)
class ForwardedRequest:
    """A request for a replica.

    Attributes:
        method: Its method.
        path: Its path, without the prefix of the application's route.
        query: Its query.
        headers: Its headers, without keys.
        client: The client's address and port.
        body: Its whole body.
        seconds: Seconds that it has left; None = no limit.
        end: The time of its end by the clock of the ingress, in seconds since 1970. It counts the
            seconds until a replica takes the request; None = no limit.
        facts: What the router reads.
        avoided: Ids of replicas that could not answer it.
    """

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    client: tuple[str, int] | None
    body: bytes
    seconds: float | None
    end: float | None
    facts: BodyFacts
    avoided: frozenset[str] = frozenset()

    @property
    def is_kept(self) -> bool:
        """Whether it is for the replica that keeps files and batches."""
        return self.path.startswith(KEPT)

    def scope(self) -> dict[str, Any]:
        """Return the ASGI scope for the server in the replica."""
        length = [(b"content-length", str(len(self.body)).encode())] if self.body else []
        return {
            "type": "http",
            INSIDE: True,  # the ingress has checked host, key and limits
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": [*self.headers, *length],
            "client": self.client,
            "server": ("localhost", 80),
        }


def inside_request(path: str, body: bytes) -> ForwardedRequest:
    """Return a request that another process of the cluster makes itself.

    Args:
        path: The path.
        body: A JSON document.
    """
    headers = ((b"content-type", b"application/json"),)
    return ForwardedRequest("POST", path, b"", headers, None, body, None, None, BodyFacts())


def replica_tag(replica_id: str) -> str:
    """Return the tag that the ids of a replica's answers begin with.

    Args:
        replica_id: Ray's id of the replica.
    """
    return hashlib.sha256(replica_id.encode()).hexdigest()[:8]


def owner_of(text: str) -> str:
    """Return the tag of the replica that made the first id in a text; "" where there is none."""
    match = ID.search(text)
    return match[1] if match else ""


def body_facts(body: bytes, names: Mapping[str, str]) -> BodyFacts:
    """Return what the router and the ingress need of a body.

    Args:
        body: The body; one that is no JSON object says nothing.
        names: Each name and alias of a model -> its name. Of a single model any name is right.
    """
    if not body.startswith(b"{"):
        return BodyFacts()
    if len(body) > MAX_PARSED:
        return BodyFacts(prefix=_chain("", body[: BLOCK * MAX_BLOCKS].decode("utf-8", "replace")))
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return BodyFacts()
    model = document.get("model")
    is_named = isinstance(model, str) and len({*names.values()}) > 1
    name = names.get(model, "") if is_named else ""
    text = "".join(
        json.dumps(document[field], separators=(",", ":")) for field in PROMPT if field in document
    )
    timeout = document.get("timeout")
    is_time = isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout > 0
    named = " ".join(str(document[field]) for field in NAMED if field in document)
    seconds = float(timeout) if is_time else None
    return BodyFacts(name, _chain(name, text), seconds, owner_of(named))


def _chain(model: str, text: str) -> tuple[bytes, ...]:
    """Return the hash of each beginning of whole blocks of a text, for a model."""
    keys: list[bytes] = []
    previous = model.encode("utf-8", "replace")
    for start in range(0, min(len(text), BLOCK * MAX_BLOCKS) - BLOCK + 1, BLOCK):
        block = text[start : start + BLOCK].encode("utf-8", "surrogatepass")
        previous = hashlib.blake2b(previous + block, digest_size=8).digest()
        keys.append(previous)
    return tuple(keys)
