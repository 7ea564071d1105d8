"""The chat page in headless Chromium, at the width of a desktop and of a phone.

LLCUDA_PAGE_SHOTS=FOLDER (`make page`) keeps pictures of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import (
    CONTROL,
    ENTER,
    ESCAPE,
    RIGHT,
    SHIFT,
    TAB,
    UP,
    Browser,
    browser,
)
from tests.support.chat_page import (
    IN_FETCH,
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
from tests.support.server import Served, demo, served
from tests.support.waiting import eventually

pytestmark = needs_browser

EARLIER, DISMISS, DASH = "\u2039", "\u00d7", "\u2013"
RECORD = f"window.sent = []; {IN_FETCH} sent.push(options.body); return asked(path, options); }}"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        opened.resize(1280, 800)
        yield opened


@pytest.fixture
def page(window: Browser, server: Served) -> Iterator[Browser]:
    """Yield the page, as new; it has nothing to complain of."""
    start(window, server.url)
    yield window
    assert [] == window.console()
    window.run("location.hash = ''")
    assert eventually(server.idle)


@pytest.fixture
def same_page(window: Browser, server: Served) -> Browser:
    """Return the page that another of the tests that only show texts has left, or a new one."""
    if not window.run("return window.isSame"):
        start(window, server.url)
        window.run("window.isSame = true")
    return window


def refuse(page: Browser, status: int, headers: dict[str, str] | None = None) -> None:
    """Have the server refuse chats."""
    page.run(
        """window.fetch = async () => new Response(
            JSON.stringify({error: {message: "the queue is full"}}),
            {status: arguments[0], headers: arguments[1]})""",
        status,
        headers or {},
    )


def settings(page: Browser, **values: Any) -> None:
    """Fill in settings, as if typed."""
    script = """for (const [name, value] of Object.entries(arguments[0])) {
        const input = at("settings-form").elements[name];
        if (typeof value === "boolean") input.checked = value;
        else input.value = value;
        input.dispatchEvent(new Event("input", {bubbles: true}));
        input.dispatchEvent(new Event("change"));
    }"""
    js(page, script, values)


# --- answers ---


def test_an_answer(page: Browser) -> None:
    """It is shown as the server streamed it, with tokens, time and rate."""
    ask(page, "Tell me a story.")
    assert page.text(".user .text") == "Tell me a story."
    question, answer = contents(page)
    assert len(answer.split()) > 5
    assert page.text(".assistant .text").strip() == answer.strip()
    note = page.text(".assistant .note")
    assert re.fullmatch(r"first token after \d+\.\d\d s · \d+ tokens · [\d.]+ tokens/s", note)
    assert page.text("#title") == question
    assert page.run("return document.title") == f"{question} {DASH} llcuda"


def test_a_reload_loses_nothing(page: Browser) -> None:
    """Messages, their notes, the open conversation and what is not sent yet are kept."""
    ask(page, "Tell me a story.")
    before = page.text("#log")
    page.press("A draft")
    assert waits(page, "return (await chat.draft()).text === 'A draft'")
    reload(page)
    assert page.text("#log") == before
    assert page.run("return document.getElementById('message').value") == "A draft"


def test_a_reload_right_after_sending(page: Browser) -> None:
    """The question is kept, also when the browser has stored nothing yet."""
    js(
        page,
        """window.fetch = () => new Promise(() => {});
        IDBObjectStore.prototype.put = function() { throw new Error("too late"); };
        at("message").value = "Kept?";
        at("send").click();""",
    )
    reload(page)
    assert waits(page, "return all('#conversations .open').length === 1")
    click(page, "Kept?", "#conversations")
    assert waits(page, "return shown().length === 2")
    assert contents(page) == ["Kept?", ""]
    assert page.run("return document.getElementById('message').value") == ""


def test_drafts_belong_to_their_conversation(page: Browser) -> None:
    """What is written goes nowhere else, after a reload too; a slow store changes nothing."""
    settings(page, max_tokens=5)
    ask(page, "Hello")
    page.press("For the first")
    page.click("#new")
    assert waits(page, "return !shown().length && at('message').value === ''")
    page.press("For a new one")
    reload(page)
    assert waits(page, "return at('message').value === 'For a new one'")
    click(page, "Hello", "#conversations")
    assert waits(page, "return at('message').value === 'For the first'")
    script = """
        const get = IDBObjectStore.prototype.get;
        IDBObjectStore.prototype.get = function(key) {
            at("message").value = "typed meanwhile";
            return get.call(this, key);
        };
        chat.dispatchEvent(new CustomEvent("open"));
        await new Promise(done => setTimeout(done, 50));
        IDBObjectStore.prototype.get = get;
        return at("message").value;
    """
    assert js(page, script) == "typed meanwhile"


def test_a_restart_of_the_browser_loses_nothing(server: Served, tmp_path: Path) -> None:
    """Conversations are on the disk when the answer has ended."""
    with browser(tmp_path) as first:
        start(first, server.url)
        ask(first, "Hello")
        before = contents(first)
    with browser(tmp_path) as second:
        second.open(f"{server.url}/")
        assert waits(second, "return all('#conversations .open').length")
        click(second, "Hello", "#conversations")
        assert waits(second, "return shown().length")
        assert contents(second) == before


def test_a_reload_in_the_middle_of_an_answer(page: Browser) -> None:
    """What has arrived is kept with its tokens, and can be continued or retried."""
    endless(page)
    js(
        page,
        "addEventListener('pagehide', () => sessionStorage.setItem('seen', shown()[1].content))",
    )
    # from within the page: the answer would fill the context while the test asks for its length
    early = "if (shown()[1]?.content.length > 200) { clearInterval(timer); location.reload(); }"
    js(page, f"window.isOld = true; const timer = setInterval(() => {{ {early} }}, 5)")
    page.press("Hello" + ENTER)
    assert eventually(lambda: not page.run("return window.isOld"))
    assert waits(page, "return at('model').options.length")
    seen = page.run("return sessionStorage.getItem('seen')")
    assert len(seen) > 200
    assert contents(page)[1] == seen
    assert "was cut off" in page.text(".assistant .error")
    written = "return (await chat.tokensOf(shown()[1])).map(token => token.text).join('')"
    assert js(page, written).strip() == seen.strip()
    click(page, "Retry")
    ended(page)
    assert "2/2" in page.text(".assistant .buttons")
    click(page, EARLIER)
    assert waits(page, "return document.querySelector('.assistant .error').innerText")
    before = contents(page)[1]
    click(page, "Continue")
    ended(page)
    assert len(contents(page)) == 2
    assert contents(page)[1].startswith(before)
    assert len(contents(page)[1]) > len(before) + 5
    assert js(page, written).strip() == contents(page)[1].strip()
    reload(page)
    assert js(page, written).strip() == contents(page)[1].strip()


def test_stop(page: Browser, server: Served) -> None:
    """Escape and the button end an answer; what there is stays, and the server computes no more."""
    endless(page)
    for place, stop in ((1, lambda: page.press(ESCAPE)), (3, lambda: page.click("#stop"))):
        page.press("Hello" + ENTER)
        assert waits(page, "return shown()[arguments[0]]?.content.length > 50", place)
        busy = "return all('article').at(-1).ariaBusy"
        assert js(page, busy) == "true"
        stop()
        ended(page)
        assert waits(page, "return all('.note').at(-1).innerText.endsWith('stopped')")
        assert eventually(server.idle)
        assert len(contents(page)[place]) > 50
        assert js(page, busy) is None


def test_another_conversation_while_one_answers(page: Browser) -> None:
    """The answer goes on; its conversation shows it when it is opened again."""
    endless(page)
    page.press("First" + ENTER)
    assert waits(page, "return shown()[1]?.content")
    address = page.run("return location.hash")
    page.click("#new")
    assert waits(page, "return !shown().length")
    assert waits(page, "return at('conversations').innerText.includes('answering')")
    page.run("location.hash = arguments[0]", address)
    assert waits(page, "return shown()[1]?.content && chat.running")
    page.press(ESCAPE)
    ended(page)


def test_screen_readers_are_told(page: Browser) -> None:
    """The answer is said politely, once, when it is whole."""
    ask(page, "Hello")
    assert page.run("return document.getElementById('said').ariaLive") == "polite"
    spoken = js(page, "return at('said').textContent")
    assert spoken == js(page, "return document.querySelector('.assistant .text').textContent")


# --- branches ---


def test_branches(page: Browser) -> None:
    """Each message can be written anew; the earlier versions stay beside it."""
    settings(page, seed=1, temperature=1)
    ask(page, "Hello")
    ask(page, "And then?")
    first = contents(page)
    settings(page, seed=2)
    js(page, "all('.assistant')[0].querySelector('[data-name=Regenerate]').click()")
    assert waits(page, "return shown().length === 2 && !chat.running")
    assert contents(page)[0] == first[0]
    assert "2/2" in page.text(".assistant .buttons")
    click(page, EARLIER, ".assistant:nth-child(2)")
    assert waits(page, "return shown().length === 4")
    assert contents(page) == first
    js(page, "all('.user')[0].querySelector('[data-name=Edit]').click()")
    assert page.run("return document.activeElement.value") == "Hello"
    page.press(" again" + ENTER)
    assert waits(page, "return shown().length === 2 && !chat.running")
    assert contents(page)[0] == "Hello again"
    reload(page)
    assert contents(page)[0] == "Hello again"
    click(page, EARLIER, ".user:first-child")
    assert waits(page, "return shown().length === 4")
    assert contents(page) == first


def test_a_cancelled_edit_changes_nothing(page: Browser) -> None:
    """Arrow up in an empty field edits the last message, Escape leaves it as it is."""
    ask(page, "Hello")
    page.press(UP)
    page.press(" x" + ESCAPE)
    assert js(page, "return all('.edit').length") == 0
    assert page.text(".user .text") == "Hello"
    assert len(contents(page)) == 2


# --- what is sent ---


def test_settings_are_sent(page: Browser) -> None:
    """What is filled in is part of the request, what is not is the server's choice."""
    page.run(RECORD)
    ask(page, "Hello")
    given = json.loads(page.run("return sent.at(-1)"))
    assert sorted(given) == [
        "logprobs", "messages", "model", "stream", "stream_options", "top_logprobs",
    ]  # fmt: skip
    js(page, "at('system').value = 'Be brief.'; await at('system').oninput()")
    settings(page, max_tokens=3, temperature=0.5, seed=7, logprobs=False)
    ask(page, "More")
    given = json.loads(page.run("return sent.at(-1)"))
    assert (given["max_tokens"], given["temperature"], given["seed"]) == (3, 0.5, 7)
    assert given["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [message["role"] for message in given["messages"][1:]] == ["user", "assistant", "user"]
    assert "logprobs" not in given
    note = js(page, "return all('.note').at(-1).innerText")
    assert "· 3 tokens ·" in note
    assert "ended at its limit" in note
    page.click("#new")
    assert waits(page, "return !shown().length")
    assert js(page, "return [chat.conversation.system, at('system').value]") == ["", ""]


def test_wrong_settings_are_not_sent(page: Browser) -> None:
    """The field that is wrong is shown, the message stays."""
    settings(page, top_p=2)
    page.press("Hello" + ENTER)
    assert waits(page, "return at('settings').open")
    assert page.run("return document.activeElement.name") == "top_p"
    assert js(page, "return [shown().length, at('message').value]") == [0, "Hello"]


DROP = """
    const data = new DataTransfer();
    for (const [name, bytes] of arguments[0])
        data.items.add(new File([new Uint8Array(bytes)], name));
    document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
"""


def test_text_files(page: Browser) -> None:
    """They go before the message, between fences that are longer than any in them."""
    page.run(RECORD)
    page.run(DROP, [["a.md", list(b"```\nx\n```\n")], ["\u202e<b>.txt", list("ä".encode())]])
    assert waits(page, "return all('#files li').length === 2")
    assert waits(page, "return (await chat.draft()).files.length === 2")
    reload(page)
    assert waits(page, "return all('#files li').length === 2")
    js(page, "all('#files button')[1].click()")
    page.run(RECORD)
    ask(page, "What is this?")
    (message,) = json.loads(page.run("return sent.at(-1)"))["messages"]
    assert message["content"] == "File a.md:\n````\n```\nx\n```\n````\n\nWhat is this?"
    assert "a.md (10 letters)" in page.text(".user")
    assert js(page, "return all('#files li').length") == 0


def test_files_that_cannot_be_attached(page: Browser) -> None:
    """They are named with the reason; the others are attached."""
    for name, content, problem in (
        ("a.png", "[137, 80, 78, 71, 0]", "not a text file"),
        ("a.bin", "[65, 0]", "not a text file"),
        ("a.txt", "Array(2 ** 20 + 1).fill(65)", "larger than 1 MiB"),
    ):
        page.run(DROP.replace("arguments[0]", f"[['{name}', {content}], ['ok.txt', [65]]]"))
        assert waits(page, "return at('problem').textContent.startsWith(arguments[0])", name)
        assert problem in page.text("#problem")
    assert js(page, "return all('#files li').map(one => one.firstChild.data)") == ["ok.txt"] * 3
    page.run(DROP.replace("arguments[0]", "Array(20).fill(['n.txt', [65]])"))
    assert waits(page, "return at('problem').textContent.startsWith('n.txt')")
    assert "at most 20 files" in page.text("#problem")
    assert js(page, "return all('#files li').length") == 20


# --- tokens ---


def test_probabilities(page: Browser) -> None:
    """Each token shows its alternatives under the mouse and by keyboard, after a reload too."""
    settings(page, temperature=1, top_logprobs=3, seed=1)
    ask(page, "Hello")
    reload(page)
    click(page, "Tokens")
    assert waits(page, "return all('.token').length > 3")
    assert page.text(".tokens").strip() == contents(page)[1].strip()
    page.hover(".assistant .token")
    token = page.text(".assistant .token").strip()
    assert page.text("#tip .chosen th").strip() == json.dumps(token)[1:-1]
    assert 3 <= js(page, "return at('tip').querySelectorAll('tr').length") <= 4
    page.press(RIGHT)
    assert js(page, "return document.activeElement === all('.token')[1]")
    assert not js(page, "return at('tip').hidden")
    assert re.search(r": [\d.]+ %", js(page, "return at('said').textContent"))
    page.press(ESCAPE)
    assert js(page, "return document.activeElement.textContent") == "Tokens"
    assert js(page, "return at('tip').hidden && !all('.token').length")
    assert page.text(".assistant .text").strip() == contents(page)[1].strip()


def test_letters_of_several_tokens(page: Browser) -> None:
    """Tokens that are a letter only together are shown together."""
    script = """
        const {Run} = await import("/page/answer.js");
        const text = "Zoë 🦊";
        const bytes = [...new TextEncoder().encode(text)];
        const cuts = [0, 2, 3, 4, 5, bytes.length];
        const content = cuts.slice(1).map((end, i) =>
            ({token: "x", logprob: -1, bytes: bytes.slice(cuts[i], end), top_logprobs: []}));
        const events = [{choices: [{delta: {content: text}, logprobs: {content}}]}, {choices: []}];
        window.fetch = async () => new Response(
            events.map(event => `: ping\\n\\ndata: ${JSON.stringify(event)}\\n\\n`).join("") +
            "data: [DONE]\\n\\n");
        const message = {content: "", reasoning: "", calls: []};
        const run = new Run(message, {logprobs: true}, () => {});
        await run.go();
        return [message.state, run.tokens.map(one => [one.text, one.entries.length])];
    """
    assert js(page, script) == ["done", [["Zo", 1], ["ë", 2], [" ", 1], ["🦊", 1]]]


def test_tool_calls(page: Browser) -> None:
    """They are shown with their arguments as they come in parts."""
    page.run(
        """
        const parts = [{index: 0, id: "a", function: {name: "get_weather", arguments: ""}},
            {index: 0, function: {arguments: '{"city": "Pa'}},
            {index: 0, function: {arguments: 'ris"}'}},
            {index: 1, id: "b", function: {name: "<b>", arguments: "not JSON"}}];
        const events = parts.map(part => ({choices: [{delta: {tool_calls: [part]}}]}));
        events.push({choices: [{delta: {}, finish_reason: "tool_calls"}]});
        const stream = events.map(event => `data: ${JSON.stringify(event)}\\n\\n`).join("");
        window.fetch = async () => new Response(stream + "data: [DONE]\\n\\n");
        """
    )
    ask(page, "Weather?")
    summaries = js(page, "return all('.call summary').map(one => one.textContent)")
    assert summaries == ["Tool call: get_weather", "Tool call: <b>"]
    codes = js(page, "return all('.call code').map(one => one.textContent)")
    assert codes == ['{\n  "city": "Paris"\n}', "not JSON"]
    assert page.text(".assistant .note").endswith("calls tools")


THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n<think>\n{# </think> ends it #}"
)


def test_reasoning_is_folded(window: Browser) -> None:
    """It is shown on demand, and is no part of what the next question follows."""
    with served(demo(template=THINKING)) as thinking:
        start(window, thinking.url)
        ask(window, "Hello")
        assert js(window, "const one = all('.reasoning')[0]; return [one.hidden, one.open]") == [
            False,
            False,
        ]
        assert len(js(window, "return all('.reasoning div')[0].textContent")) > 5
        assert contents(window)[1] == ""
        assert "tokens" in window.text(".assistant .note")
        window.run(RECORD)
        ask(window, "Again")
        messages = json.loads(window.run("return sent.at(-1)"))["messages"]
        assert messages == [{"role": "user", "content": "Again"}]
        window.open("about:blank")


# --- what a model writes ---

HOSTILE = [
    "<script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 1'>",
    "[x](javascript:window.hurt=1) [x](JaVaScRiPt&colon;window.hurt=1) <javascript:window.hurt=1>",
    "[x](data:text/html,x) [x](file:///etc/passwd) [x](//example.org) [x](/metrics)",
    "![x](https://example.org/x.png) ![x](data:image/svg+xml,<svg onload=1>)",
    "```<script>\n</code></pre><script>window.hurt = 1</script>\n```",
    "```html\n<script>window.hurt = 1</script><img src=x onerror=1>\n```",
    "| <b>a</b> | b |\n|---|---|\n| <svg onload=window.hurt=1> | [a](data:text/html,x) |",
    "- <iframe srcdoc='<script>parent.hurt=1</script>'>",
    "> <style>body{display:none}</style>",
    "[a](https://example.org/\"onclick=\"window.hurt=1) [a](https://a.org 'x\" onclick=\"hurt=1')",
    "**" * 3000 + "[" * 3000 + "`" * 3000 + "> " * 2000 + "- " * 2000,
    "\n".join("  " * i + "- x" for i in range(300)) + "\n" + ">" * 5000 + "x" + "*a **b " * 3000,
    "$" + "{" * 1500 + "$ $$" + "\\frac" * 300 + "$$ " + "$a \\(b \\[c " * 5000,
    r"$\href{javascript:window.hurt=1}{x}$ $\htmlStyle{display:none}{x}$ $\includegraphics{x}$"
    r" $\def\a{\a\a}\a$ $\rule{1000em}{1000em}$ $\htmlId{message}{x}$",
    "\x00\ud7ff\u202e<\u200bscript>\x1b[31mred\x1b]8;;https://example.org\x07link",
    "<form action=https://example.org><input name=key autofocus></form><base href=//example.org>",
    "<a id=message name=chat>x</a><math><mtext><style><img src=x onerror=hurt=1>",
    "&lt;script&gt; &#60;script&#62; \\<script\\>",
    "*word* " * 30_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_a_model_writes_is_harmless(same_page: Browser, text: str) -> None:
    """Nothing of it becomes an element that does or loads something, and none takes long."""
    script = """
        const [text] = arguments;
        const common = {conversation: chat.conversation.id, created: 1, content: text};
        chat.messages = new Map([
            ["q", {...common, id: "q", parent: null, role: "user", files: [{name: text, text}]}],
            ["a", {...common, id: "a", parent: "q", role: "assistant", reasoning: text, files: [],
                calls: [{name: text, arguments: text}], state: "done", note: text, model: text,
                error: {kind: "refused", text}}]]);
        chat.conversation.title = text;
        chat.dispatchEvent(new CustomEvent("open"));
        await new Promise(requestAnimationFrame);
        const found = [...at("log").querySelectorAll("*")];
        const ours = found.filter(e => !e.closest(".katex"));
        return [
            typeof window.hurt,
            found.filter(e => arguments[1].includes(e.localName)).length,
            ours.filter(e => /^(svg|math)$/i.test(e.tagName)).length,
            found.filter(e => e.getAttribute("href") && !/^https?:/.test(e.href)).length,
            found.flatMap(e => [...e.attributes]).filter(a => /^(on|src)/.test(a.name)).length,
            ours.flatMap(e => [...e.attributes])
                .filter(a => /^(style|id|name)$/.test(a.name)).length,
        ];
    """
    forbidden = ["script", "img", "iframe", "style", "object", "base", "input", "form", "b"]
    assert js(same_page, script, text, forbidden) == ["undefined", 0, 0, 0, 0, 0]


SHOWN = """
    const {Markdown} = await import("/page/markdown.js");
    const target = document.createElement("div");
    const markdown = new Markdown(target);
    for (const text of arguments[0]) markdown.show(text);
    const plain = node => {
        if (node.nodeType === 3) return node.data;
        if (node.matches("span.formula")) return node.matches(".display") ? "FORMULA" : "formula";
        const inner = [...node.childNodes].map(plain).join("");
        const tag = node.localName;
        if (tag === "button") return "";
        if (/^(div|span|thead|tbody)$/.test(tag)) return inner;
        const start = node.hasAttribute("start") ? ` start="${node.start}"` : "";
        const href = node.href ? ` href="${node.href}"` : "";
        return `<${tag}${start}${href}>${inner}${/^(br|hr)$/.test(tag) ? "" : `</${tag}>`}`;
    };
    return plain(target).replace(/>\\n+/g, ">").replace(/\\n+</g, "<");
"""
MARKDOWN = [
    ("**a** *b* `c` ~~d~~", "<p><strong>a</strong> <em>b</em> <code>c</code> <s>d</s></p>"),
    ("# A\n## B\ntext", "<h4>A</h4><h5>B</h5><p>text</p>"),
    ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("https://a.org/x.", '<p><a href="https://a.org/x">https://a.org/x</a>.</p>'),
    ("![alt](https://b.org/x.png)", '<p><a href="https://b.org/x.png">alt</a></p>'),
    (
        "|a|b|\n|-|-:|\n|`1`|2|",
        "<table><tr><th>a</th><th>b</th></tr><tr><td><code>1</code></td><td>2</td></tr></table>",
    ),
    ("```py\nif a:\n    b\n```\nc", "py<pre><code>if a:\n    b</code></pre><p>c</p>"),
    ("```\n**a**", "<pre><code>**a**</code></pre>"),
    ("a\x1b[0m\r\nb", "<p>a␛[0m\nb</p>"),
    ("```\na\u202eb\n```", "<pre><code>a[U+202E]b</code></pre>"),
    ("a $x^2$ b \\(y\\) c", "<p>a formula b formula c</p>"),
    ("$$\na\n\n= b\n$$\nc", "FORMULA<p>c</p>"),
    ("a\n\\[\n- b\n\\]", "<p>a</p>FORMULA"),
    ("it is $$x$$ here", "<p>it is FORMULA here</p>"),
    ("$5 and $6, a \\$ b and $ c $", "<p>$5 and $6, a $ b and $ c $</p>"),
    ("`$x$` \\\\(a\\\\)", "<p><code>$x$</code> \\(a\\)</p>"),
    ("$\\unknown$", "<p><code>\\unknown</code></p>"),
]


@needs_libraries
@pytest.mark.parametrize(("text", "expected"), MARKDOWN)
def test_markdown(same_page: Browser, text: str, expected: str) -> None:
    """It is shown as what it means; letter by letter it comes to the same as at once."""
    assert js(same_page, SHOWN, [text]) == expected
    assert js(same_page, SHOWN, [text[:end] for end in range(1, len(text) + 1)]) == expected


@needs_libraries
def test_code_and_formulas(page: Browser) -> None:
    """Code is coloured and formulas are set, accents too, under the page's policy."""
    script = """
        const {Markdown} = await import("/page/markdown.js");
        new Markdown(at("log")).show(arguments[0]);
        await document.fonts.ready;
        return [all(".hljs-keyword").map(one => one.textContent), all(".katex math").length,
            at("log").querySelector(".overlay, .katex-overlay svg, svg").style.width !== "",
            document.fonts.check("16px KaTeX_Main")];
    """
    text = "```python\ndef f(): return 1\n```\n$\\vec{x}$ and $\\pmb{y}$"
    assert js(page, script, text) == [["def", "return"], 2, True, True]


def test_without_libraries(page: Browser) -> None:
    """A page that was built without them shows answers as text."""
    page.chrome("Network.enable")
    page.chrome("Network.setBlockedURLs", urls=["*/page/lib/*"])
    try:
        reload(page)
        shown = js(page, SHOWN, ["**a** <b>"])
    finally:
        page.chrome("Network.setBlockedURLs", urls=[])
    assert shown == "**a** <b>"
    page.console()  # Chromium names what was blocked


# --- errors ---


def test_errors_are_shown_where_they_happened(page: Browser) -> None:
    """The server's sentence stands under the question, and the conversation goes on."""
    js(page, "at('message').value = 'word '.repeat(2000); at('send').click()")
    ended(page)
    assert "tokens" in page.text(".assistant .error")
    assert "failed" in page.text(".assistant .note")
    ask(page, "Hello")
    assert len(contents(page)) == 4
    assert len(contents(page)[3]) > 5
    page.console()  # Chromium names the status 400


def test_a_busy_server(page: Browser) -> None:
    """The error says when to retry; Retry answers in the same place."""
    page.run("window.asked = window.fetch")
    refuse(page, 429, {"retry-after": "7"})
    ask(page, "Hello")
    assert page.text(".assistant .error") == "the queue is full. Retry in 7 s."
    for status, text in ((503, "the queue is full. Retry later."), (500, "the queue is full")):
        refuse(page, status)
        click(page, "Retry")
        assert waits(page, "return all('.error')[0].textContent === arguments[0]", text)
        ended(page)
    page.run("window.fetch = asked")
    click(page, "Retry")
    assert waits(page, "return shown()[1].content.length > 5")
    ended(page)
    assert js(page, "return all('.assistant').length") == 1
    assert page.text(".assistant .error") == ""
    assert "2/2" not in page.text(".assistant .buttons")


def test_a_stream_that_breaks_off(page: Browser) -> None:
    """What has arrived stays, with what is wrong."""
    for answer, text in (
        ("data: {not JSON\n\n", "JSON"),
        ("<html>a proxy</html>", "connection ended"),
        ('data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        ('data: {"choices": [{"delta": {"content": "half"}}]}\n\n', "connection ended"),
    ):
        page.run("window.fetch = async () => new Response(arguments[0])", answer)
        ask(page, "Hello")
        assert text in js(page, "return all('.assistant .error').at(-1).textContent")
        assert contents(page)[-1] == ("half" if "half" in answer else "")
        assert js(page, "return all('[data-name=Retry]').length") == len(contents(page)) / 2


def test_a_server_that_is_gone(window: Browser) -> None:
    """The page says what to do; nothing is lost."""
    with served(demo()) as leaving:
        start(window, leaving.url)
        ask(window, "Hello")
        before = contents(window)
    ask(window, "Are you there?")
    assert "cannot be reached. Start it again" in js(
        window, "return all('.error').at(-2).innerText"
    )
    assert contents(window)[:2] == before
    assert js(window, "return all('[data-name=Retry]').length") == 1
    window.console()
    window.open("about:blank")


def test_key(window: Browser) -> None:
    """A server that wants a key gets it; without one the field for it is opened."""
    with served(demo(), keys=["sesame"]) as locked:
        window.open(f"{locked.url}/")
        assert waits(window, "return document.activeElement.name === 'key'")
        assert "API key" in js(window, "return at('problem').textContent")
        window.press(ESCAPE)
        ask(window, "Hello")
        assert "API key" in window.text(".assistant .error")
        click(window, "Enter key")
        assert window.run("return document.activeElement.name") == "key"
        window.press("sesame" + TAB)
        assert waits(window, "return at('model').options.length && at('problem').hidden")
        window.press(ESCAPE)
        click(window, "Retry")
        assert waits(window, "return shown()[1].content.length > 5")
        ended(window)
        assert "sesame" not in window.run("return JSON.stringify({...localStorage})")
        assert "sesame" not in json.dumps(js(window, "return await chat.rows()"))
        window.open("about:blank")
    window.console()


def test_a_browser_that_keeps_nothing(page: Browser) -> None:
    """The page works, and says that conversations last until the tab is closed."""
    source = "Object.defineProperty(window, 'indexedDB', {get() { throw new Error('refused'); }});"
    source += (
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused'); }});"
    )
    script = page.chrome("Page.addScriptToEvaluateOnNewDocument", source=source)
    try:
        reload(page)
        assert "keeps no conversations (refused)" in page.text("#problem")
        ask(page, "Hello")
        assert len(contents(page)[1]) > 5
        assert waits(page, "return all('#conversations .open').length === 1")
        page.click("#new")
        assert waits(page, "return !shown().length")
        click(page, "Hello", "#conversations")
        assert waits(page, "return shown().length === 2")
    finally:
        page.chrome("Page.removeScriptToEvaluateOnNewDocument", **script)
        page.open("about:blank")


def test_a_full_disk(page: Browser) -> None:
    """What cannot be stored is said; the answer is still shown."""
    page.run(
        """const put = IDBObjectStore.prototype.put;
        IDBObjectStore.prototype.put = function(row) {
            if (row.role) throw new DOMException("no space", "QuotaExceededError");
            return put.call(this, row);
        }"""
    )
    ask(page, "Hello")
    assert len(contents(page)[1]) > 5
    assert "cannot store this conversation (no space)" in page.text("#problem")


# --- the list ---


def conversations(page: Browser) -> list[str]:
    """Return the titles in the list."""
    titles: list[str] = js(page, "return all('#conversations .name').map(one => one.textContent)")
    return titles


def lists(page: Browser, *titles: str) -> bool:
    """Wait until the list has these titles."""
    return eventually(lambda: conversations(page) == list(titles))


def test_the_list(page: Browser) -> None:
    """Conversations are searched, renamed, deleted and brought back."""
    settings(page, max_tokens=5)
    for text in ("Owls and foxes", "A turnip"):
        page.click("#new")
        assert waits(page, "return !shown().length")
        ask(page, text)
    assert lists(page, "A turnip", "Owls and foxes")
    page.press("k", CONTROL)
    page.press("FOX")
    assert lists(page, "Owls and foxes")
    page.press("zzz")
    assert lists(page)
    assert waits(page, "return at('none').textContent === 'Nothing found'")
    js(page, "at('search').value = ''; at('search').oninput()")
    assert lists(page, "A turnip", "Owls and foxes")
    page.click("#conversations li:nth-child(2) button:last-child")
    page.click("#menu [name=rename]")
    page.press("Birds" + ENTER)
    assert lists(page, "A turnip", "Birds")
    page.click("#more")
    page.click("#menu [name=delete]")
    assert lists(page, "Birds")
    assert waits(page, "return at('title').textContent === 'New chat'")
    click(page, "Undo", "#toasts")
    assert lists(page, "A turnip", "Birds")
    assert waits(page, "return shown().length === 2")
    page.click("#more")
    page.click("#menu [name=delete]")
    assert lists(page, "Birds")
    click(page, DISMISS, "#toasts")
    reload(page)
    assert lists(page, "Birds")
    rows = js(page, "return await chat.rows()")
    assert {row["conversation"] for row in rows["messages"]} == {rows["conversations"][0]["id"]}


def test_another_tab(page: Browser) -> None:
    """What one tab changes, the other shows."""
    ask(page, "Hello")
    here, (tab,) = page.run("return location.href"), page.tabs()
    page.switch(page.new_tab())
    try:
        page.open(here)
        assert waits(page, "return shown().length === 2")
        ask(page, "And then?")
        page.switch(tab)
        assert waits(page, "return shown().length === 4")
    finally:
        page.switch(next(name for name in page.tabs() if name != tab))
        page.close_tab()
        page.switch(tab)


def test_export_and_import(page: Browser) -> None:
    """An export holds all branches and tokens; an import adds them under new ids."""
    settings(page, max_tokens=5)
    ask(page, "Hello")
    click(page, "Regenerate")
    assert waits(page, "return shown()[1].parent && chat.messages.size === 3 && !chat.running")
    ended(page)
    script = """
        const {toJson, fromJson, toMarkdown} = await import("/page/transfer.js");
        const rows = await chat.rows();
        const json = toJson(rows);
        await chat.add(fromJson(json));
        const after = await chat.rows();
        const {conversation} = (await chat.list(""))
            .find(one => one.conversation.id !== chat.conversation.id);
        return [rows, after, toMarkdown(conversation, (await chat.rows(conversation)).messages)];
    """
    rows, after, markdown = js(page, script)
    for name, least in (("conversations", 1), ("messages", 3), ("tokens", 2)):
        assert len(rows[name]) >= least
        assert len(after[name]) == 2 * len(rows[name])
    assert len({row["id"] for row in after["messages"]}) == 6
    assert markdown.startswith("# Hello\n\n## You\n\nHello\n\n## demo\n\n")
    assert lists(page, "Hello", "Hello")


WRONG_FILES: list[tuple[str, str]] = [
    ("", "not JSON"),
    ("{", "not JSON"),
    ("[]", "not an export"),
    ("null", "not an export"),
    ('{"format": "llcuda-conversations", "version": 2}', "newer llcuda"),
    ('{"format": "llcuda-conversations", "version": 1}', "conversations: not a list"),
]
WRONG_CHANGES: list[tuple[str, str]] = [  # f: the file, q: its question, a: its answer
    ("f.conversations[0].title = 5", "conversations[0].title: missing or of another kind"),
    ("f.conversations[0] = null", "conversations[0]: not an object"),
    ("delete q.content", "].content: missing or of another kind"),
    ("q.role = 'system'", "].role: missing or of another kind"),
    ("q.files = [{name: 1}]", "].files: missing or of another kind"),
    ("a.calls = 'x'", "].calls: missing or of another kind"),
    ("a.state = 'x'", "].state: missing or of another kind"),
    ("q.parent = a.id", "are a circle"),
    ("q.parent = q.id", "are a circle"),
    ("q.parent = 'none'", "its parent or its conversation is not in the file"),
    ("a.conversation = 'none'", "its parent or its conversation is not in the file"),
    ("f.messages.push(q)", "an id occurs twice"),
    ("f.tokens[0].message = 'none'", "the message is not in the file"),
    ("f.tokens[0].tokens[0].entries = [['a', 'b', []]]", "tokens[0].tokens: missing or of another"),
]


def test_imports_that_are_refused(page: Browser) -> None:
    """A file that is wrong is named with the reason, and nothing of it is imported."""
    settings(page, max_tokens=5)
    ask(page, "Hello")
    script = """
        const {toJson} = await import("/page/transfer.js");
        return toJson(await chat.rows());
    """
    text = js(page, script)
    changes = [f"(f, q, a) => {{ {code}; }}" for code, _ in WRONG_CHANGES]
    script = """
        const {fromJson} = await import("/page/transfer.js");
        const problem = text => {
            try { fromJson(text); } catch (error) { return error.message; }
            return "imported";
        };
        const [text, files] = arguments;
        const changed = [%s].map(change => {
            const f = JSON.parse(text);
            const first = role => f.messages.find(one => one.role === role);
            change(f, first("user"), first("assistant"));
            return JSON.stringify(f);
        });
        return [text, ...files, ...changed].map(problem);
    """
    files = [file for file, _ in WRONG_FILES]
    problems = js(page, script % ", ".join(changes), text, files)
    expected = ["imported", *(problem for _, problem in [*WRONG_FILES, *WRONG_CHANGES])]
    assert [pair for pair in zip(expected, problems, strict=True) if pair[0] not in pair[1]] == []
    script = """
        const data = new DataTransfer();
        data.items.add(new File(["{"], "a.json"));
        at("import").files = data.files;
        at("import").dispatchEvent(new Event("change"));
    """
    js(page, script)
    assert waits(page, "return at('problem').textContent")
    assert page.text("#problem").startswith("a.json was not imported: not JSON; choose a file")
    assert lists(page, "Hello")


# --- keyboard, roles, looks ---


def test_tab_reaches_everything(page: Browser) -> None:
    """In the order in which it is seen."""
    seen = []
    for _ in range(11):
        page.press(TAB)
        seen.append(page.run("const on = document.activeElement; return on.id || on.localName"))
    seen.remove("body")  # the browser's own buttons
    assert seen == [
        "send", "skip", "new", "search", "open-settings", "model", "summary", "attach", "message",
        "send",
    ]  # fmt: skip


def test_keys(page: Browser) -> None:
    """Ctrl K searches, Ctrl Shift O begins a conversation, Escape closes the settings."""
    ask(page, "Hello")
    page.press("k", CONTROL)
    assert page.run("return document.activeElement.id") == "search"
    page.press("o", CONTROL + SHIFT)
    assert waits(page, "return !shown().length && document.activeElement.id === 'message'")
    page.click("#open-settings")
    page.press(ESCAPE)
    assert not js(page, "return at('settings').open")


def test_roles_and_names(page: Browser) -> None:
    """Landmarks are there, and whatever can be operated has a name."""
    ask(page, "Hello")
    page.run(DROP, [["a.txt", [65]]])
    page.chrome("Accessibility.enable")
    nodes = page.chrome("Accessibility.getFullAXTree")["nodes"]
    roles = {
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    }
    assert {("navigation", "Conversations"), ("main", "Hello"), ("form", "New message")} <= roles
    assert ("banner", "") in roles
    operable = {"button", "textbox", "searchbox", "combobox", "link", "checkbox"}
    assert [role for role, name in roles if role in operable and not name] == []


RICH = r"""# A heading

Some **bold**, *italic*, `code` and [a link](https://example.org). Inline $e^{i\pi}+1=0$.

$$\int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}$$

```python
def fib(n: int) -> int:
    return n if n < 2 else fib(n - 1) + fib(n - 2)  # a line that is wider than a phone's window
```

| name | value |
|------|------:|
| a | 1 |

"""


ANSWER = """
    const common = {conversation: chat.conversation.id, created: 1, files: [], calls: []};
    chat.messages = new Map([
        ["q", {...common, id: "q", parent: null, role: "user",
            content: "Show me everything. " + "x".repeat(200)}],
        ["a", {...common, id: "a", parent: "q", role: "assistant", reasoning: "I think.",
            state: "stopped", model: "demo", content: arguments[0],
            note: "first token after 0.10 s · 12 tokens · stopped",
            calls: [{name: "get_weather", arguments: '{"city": "Paris"}'}],
            error: {kind: "gone", text: "The server cannot be reached."}}]]);
    chat.dispatchEvent(new CustomEvent("open"));
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(page: Browser, scheme: str, tmp_path: Path) -> None:
    """Light or dark as the reader prefers, and nothing wider than the window."""
    page.scheme(scheme)
    wide = "long" * 100 + "\n\n|a|b|\n|-|-|\n|" + "x" * 300 + "|y|\n\n$$" + "x+" * 200 + "y$$"
    js(page, ANSWER, RICH + wide)
    folder = Path(os.environ.get("LLCUDA_PAGE_SHOTS", tmp_path))
    try:
        for width in (1280, 375, 320):
            page.resize(width, 900)
            picture = f"{width}-{scheme}.png"
            page.screenshot(folder / f"end-{picture}")
            page.run("document.querySelector('main').scrollTop = 0")
            page.screenshot(folder / f"start-{picture}")
            assert page.run("return document.documentElement.scrollWidth") <= width
            assert js(
                page, "const [main] = all('main'); return main.scrollWidth <= main.clientWidth"
            )
            js(page, "at('open-settings').click()")
            page.screenshot(folder / f"settings-{picture}")
            assert js(page, "return at('settings').scrollWidth <= at('settings').clientWidth")
            page.press(ESCAPE)
        page.click("#open-side")
        assert page.run("return document.activeElement.id") == "new"
        page.screenshot(folder / f"list-{picture}")
        page.press(ESCAPE)
        assert page.run("return document.activeElement.id") == "open-side"
    finally:
        page.resize(1280, 800)
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == (scheme == "light")


def test_theme(page: Browser) -> None:
    """A chosen theme holds against the system's, after a reload too."""
    page.scheme("light")
    settings(page, theme="dark")
    ground = "return getComputedStyle(document.body).backgroundColor"
    dark = page.run(ground)
    reload(page)
    assert page.run(ground) == dark
    settings(page, theme="light")
    assert page.run(ground) != dark
