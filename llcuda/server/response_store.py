"""The responses of /v1/responses that later requests may continue, in memory and within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llcuda.params import wrong_value
from llcuda.server.errors import ApiError

MAX_RESPONSES = 1024
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class StoredResponse:
    """A response and its conversation.

    Attributes:
        document: The response.
        input: The items of its request.
        items: The items of the conversation: those of earlier responses, input and output.
        size: Bytes of its own items.
    """

    document: dict[str, Any]
    input: Sequence[dict[str, Any]]
    items: Sequence[dict[str, Any]]
    size: int


class ResponseStore:
    """Keeps responses by their ids; the oldest is forgotten first.

    Args:
        max_responses: Most responses that are kept.
        max_bytes: Most bytes of their own items.
    """

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._bytes = 0
        self._responses: dict[str, StoredResponse] = {}
        self._items: dict[str, dict[str, Any]] = {}  # of the outputs, by their ids

    def add(self, response: StoredResponse) -> None:
        """Keep a response."""
        self._responses[response.document["id"]] = response
        self._items |= {item["id"]: item for item in response.document["output"]}
        self._bytes += response.size
        while len(self._responses) > self._max_responses or self._bytes > self._max_bytes:
            self._remove(next(iter(self._responses)))

    def get(self, name: str, param: str | None = None) -> StoredResponse:
        """Return a response.

        Args:
            name: Its id.
            param: The field that names it; None = the path does.

        Raises:
            ApiError: It is not kept.
        """
        if name not in self._responses:
            rule = "no such response; the server keeps the latest in memory, unless store is false"
            error = wrong_value(param or "response_id", name[:100], rule)
            status, code = (404, None) if param is None else (400, "previous_response_not_found")
            raise ApiError(status, str(error), param=param, code=code)
        return self._responses[name]

    def item(self, where: str, name: str) -> dict[str, Any]:
        """Return an item of an output.

        Args:
            where: The place of the reference, for an error.
            name: The id of the item.

        Raises:
            ArgumentError: It is not kept.
        """
        if name not in self._items:
            rule = "no such item; send the item itself"
            raise wrong_value(f"{where}.id", name[:100], rule)
        return self._items[name]

    def delete(self, name: str) -> None:
        """Forget a response. Raises ApiError if it is not kept."""
        self.get(name)
        self._remove(name)

    def _remove(self, name: str) -> None:
        response = self._responses.pop(name)
        self._bytes -= response.size
        for item in response.document["output"]:
            self._items.pop(item["id"], None)
