"""The chat page at /: one file, whose script and style are allowed by their hashes only."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.responses import Response

from llcuda.files import data_file


def page_response() -> Response:
    """Return the page, with headers that forbid all other code and all other hosts."""
    text = data_file("page.html").read_text(encoding="utf-8")
    return Response(text, media_type="text/html", headers=_headers(text))


def _headers(text: str) -> dict[str, str]:
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(text, "script"),
        "style-src": _hashes(text, "style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _hashes(text: str, tag: str) -> str:
    """Return the sources of a policy that allow the content of these elements, and nothing else."""
    parts = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
