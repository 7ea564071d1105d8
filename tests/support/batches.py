"""Lines of files that OpenAI's batches read."""

from __future__ import annotations

from typing import Any


def chat_line(custom_id: str, **fields: Any) -> dict[str, Any]:
    """Return the line of a chat.

    Args:
        custom_id: Its id.
        **fields: Further fields of its body.
    """
    messages = [{"role": "user", "content": f"Number {custom_id}"}]
    body = {"messages": messages, "max_tokens": 4, "temperature": 0, **fields}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
