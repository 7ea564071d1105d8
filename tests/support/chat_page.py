"""The chat page in a browser: what a person does there, and what its modules know."""

from __future__ import annotations

from typing import Any

import pytest

from llcuda.server.page import page_files
from tests.support.browser import CHROMIUM, DRIVER, ENTER, Browser
from tests.support.waiting import ENDLESS, eventually

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium: apt install chromium chromium-driver"
)
needs_libraries = pytest.mark.skipif(
    "lib/katex.mjs" not in page_files(),
    reason="needs the page's libraries, which a build fetches (build/page.py)",
)

IN_FETCH = "const asked = window.fetch; window.fetch = (path, options = {}) => {"
PRELUDE = """
    const {chat} = await import("/page/app.js");
    const at = id => document.getElementById(id);
    const all = selector => [...document.querySelectorAll(selector)];
    const shown = () => chat.path.map(place => place.message);
"""


def js(page: Browser, script: str, *arguments: Any) -> Any:
    """Return what a script returns, which sees the page's modules and `arguments`."""
    return page.run(f"return (async function() {{{PRELUDE}{script}}})(...arguments)", *arguments)


def waits(page: Browser, script: str, *arguments: Any) -> bool:
    """Wait until a script returns something."""
    return eventually(lambda: bool(js(page, script, *arguments)))


def start(window: Browser, url: str) -> None:
    """Open the page of a server as if for the first time."""
    window.open("about:blank")  # the page stores what is not sent yet when it is left
    window.chrome("Storage.clearDataForOrigin", origin=url, storageTypes="all")
    window.console()
    window.open(f"{url}/")
    assert waits(window, "return at('model').options.length")


def ask(page: Browser, text: str) -> None:
    """Send a message by keyboard and wait for the end of the answer."""
    before = js(page, "at('message').focus(); return chat.messages.size")
    page.press(text + ENTER)
    assert waits(page, "return chat.messages.size > arguments[0]", before)
    ended(page)


def ended(page: Browser) -> None:
    """Wait until no answer is being written and none is being stored."""
    assert waits(
        page, "return shown().length && !chat.running && shown().at(-1).state !== 'running'"
    )


def endless(page: Browser) -> None:
    """Have answers go on until they are stopped."""
    script = """options = {...options, body: options.body &&
        JSON.stringify({...JSON.parse(options.body), ...more})}; return asked(path, options); };"""
    page.run(f"const more = arguments[0]; {IN_FETCH}{script}", ENDLESS)


def reload(page: Browser) -> None:
    """Load the page again, with the same address."""
    page.run("window.isOld = true; location.reload()")
    assert eventually(lambda: not page.run("return window.isOld"))
    assert waits(page, "return at('model').options.length")


def click(page: Browser, text: str, within: str = "") -> None:
    """Click the last button with this text."""
    found = "all(arguments[1] + ' button').filter(one => one.textContent === arguments[0])"
    js(page, f"{found}.at(-1).click()", text, within)


def contents(page: Browser) -> list[str]:
    """Return the texts of the messages that are shown."""
    texts: list[str] = js(page, "return shown().map(message => message.content)")
    return texts
