"""The chat page with a real model in Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llcuda.server.models import ModelSpec
from tests.real.conftest import QWEN, file
from tests.support.browser import ESCAPE, Browser, browser
from tests.support.chat_page import (
    ask,
    click,
    contents,
    ended,
    endless,
    js,
    needs_browser,
    needs_libraries,
    reload,
    start,
    waits,
)  # fmt: skip
from tests.support.server import served

pytestmark = [needs_browser, needs_libraries]

GREEDY = """
    const {write} = await import("/page/local.js");
    write("settings", {temperature: "0", max_tokens: arguments[0], logprobs: true});
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of a server with Qwen2.5-Coder 0.5B, which answers greedily with 60 tokens."""
    qwen = ModelSpec("qwen", str(file(QWEN)), parameters={"ctx_size": 2048})
    with served(qwen) as server, browser(tmp_path_factory.mktemp("chromium")) as window:
        window.resize(1280, 900)
        start(window, server.url)
        js(window, GREEDY, "60")
        reload(window)
        yield window
        assert [] == window.console()


def test_code_is_coloured_and_its_tokens_are_kept(page: Browser) -> None:
    """An answer in Markdown, its probabilities after a reload."""
    ask(page, "Write a Python function is_prime(n). Only code.")
    (_, answer) = contents(page)
    assert answer.startswith("```python\ndef is_prime(n):")
    assert "def" in js(page, "return all('.hljs-keyword').map(one => one.textContent)")
    assert page.text(".assistant .note").endswith("ended at its limit")
    reload(page)
    assert waits(page, "return shown().length === 2")
    click(page, "Tokens")
    assert waits(page, "return all('.token').length")
    assert js(page, "return all('.token').map(one => one.textContent).join('')") == answer
    page.press(ESCAPE)


def test_a_reload_in_the_middle_of_an_answer(page: Browser) -> None:
    """What had arrived is there, and another answer stands beside it."""
    js(page, "at('new').click(); at('message').focus()")
    assert waits(page, "return !shown().length")
    endless(page)
    js(page, "at('message').value = 'Write a Python function is_prime(n).'; at('send').click()")
    assert waits(page, "return shown()[1]?.content.length > 60")
    before = contents(page)[1]
    reload(page)
    assert waits(page, "return shown().length === 2")
    assert contents(page)[1].startswith(before)
    click(page, "Retry")
    ended(page)
    assert "2/2" in page.text(".assistant .buttons")
    assert contents(page)[1][:60] == before[:60]


def test_a_text_file_is_read(page: Browser) -> None:
    """The answer is in the file, and as the system prompt wants it."""
    js(page, "at('new').click()")
    assert waits(page, "return !shown().length")
    js(page, "at('system').value = 'Answer in one short sentence.'; await at('system').oninput()")
    script = """
        const data = new DataTransfer();
        data.items.add(new File(["milk 2\\nbread 1\\neggs 12\\n"], "shopping.txt"));
        document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
    """
    js(page, script)
    assert waits(page, "return all('#files li').length")
    ask(page, "How many eggs are on the list?")
    assert "12" in contents(page)[1]
