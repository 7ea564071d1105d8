"""What notebooks and IPython's terminal show of results and of running requests.

All texts of models are escaped: nothing in them is markup. Notebooks do not look for TeX in <pre>
and <code>.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from llcuda.progress import in_notebook

MAX_ROWS = 256  # of a table of tokens
UPDATE_SECONDS = 0.1  # between two updates of a text that is being written
_STYLE = "white-space: pre-wrap; font-family: inherit"


class TokenScore(Protocol):
    """A token with its log-probability, as far as the table shows it."""

    @property
    def text(self) -> str:
        """The text of the token."""

    @property
    def logprob(self) -> float:
        """Its log-probability."""

    @property
    def top(self) -> Sequence[tuple[int, float]]:
        """The most probable tokens with theirs."""

    @property
    def top_texts(self) -> Sequence[str]:
        """The texts of these."""


class Result(Protocol):
    """A result that shows itself."""

    def _repr_html_(self) -> str: ...


def text_block(text: str) -> str:
    """Return a text as HTML, with its spaces and line breaks.

    HTML drops a line break after <pre>, hence the one here.
    """
    return f'<pre style="{_STYLE}">\n{html.escape(text)}</pre>'


def small(text: str) -> str:
    """Return a line below a text."""
    return f"<small>{html.escape(text)}</small>"


def folded(title: str, inside: str) -> str:
    """Return HTML that a click on its title shows."""
    return f"<details><summary>{html.escape(title)}</summary>{inside}</details>"


def code(text: str) -> str:
    """Return a text as code in a line."""
    return f"<code>{html.escape(text)}</code>"


def token_table(scores: Sequence[TokenScore]) -> str:
    """Return a table of tokens: text, probability, and the most probable alternatives."""
    rows = []
    for score in scores[:MAX_ROWS]:
        share = math.exp(score.logprob)
        color = f"background: hsl({120 * share:.0f}, 70%, 85%); color: black"
        others = " ".join(
            f"{code(repr(text))}&nbsp;{math.exp(logprob):.1%}"
            for text, (_, logprob) in zip(score.top_texts, score.top, strict=False)
        )
        rows.append(
            f'<tr><td style="text-align: left">{code(repr(score.text))}</td>'
            f'<td style="{color}">{share:.1%}</td>'
            f'<td style="text-align: left">{others}</td></tr>'
        )
    head = "<tr><th>token</th><th>probability</th><th>most probable</th></tr>"
    more = len(scores) - len(rows)
    below = small(f"{more} more tokens are not shown") if more > 0 else ""
    return folded("Token probabilities", f"<table>{head}{''.join(rows)}</table>{below}")


def show_stream(
    pieces: Iterable[str], result: Callable[[], Result], cancel: Callable[[], None]
) -> None:
    """Show a text while it is written: below a notebook's cell, or in IPython's terminal.

    The notebook's interrupt ends the text and keeps what there is.

    Args:
        pieces: The pieces of the text.
        result: Returns the result when the text has ended.
        cancel: Ends the text.

    Raises:
        Exception: The exception of a request that failed.
    """
    if not in_notebook():
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            cancel()
        print(flush=True)
        return
    from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

    text, shown_at = "", time.monotonic()
    handle = display({"text/html": text_block("")}, raw=True, display_id=True)
    try:
        for piece in pieces:
            text += piece
            if time.monotonic() - shown_at >= UPDATE_SECONDS:
                handle.update({"text/html": text_block(text)}, raw=True)
                shown_at = time.monotonic()
    except KeyboardInterrupt:
        cancel()
    final: Any = result()
    handle.update({"text/html": final._repr_html_(), "text/plain": repr(final)}, raw=True)
