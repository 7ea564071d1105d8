"""The chat page: as text, and in headless Chromium where that is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llcuda.files import data_file
from tests.support.browser import CHROMIUM, DRIVER, ENTER, ESCAPE, RIGHT, TAB, Browser, browser
from tests.support.server import Served, demo, served
from tests.support.waiting import ENDLESS, eventually

HTML = data_file("page.html").read_text(encoding="utf-8")
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium-driver")


class Elements(HTMLParser):
    """Lists the elements with their attributes, and which fields lie in a label."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.labelled: list[bool] = []
        self._labels = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self._labels += tag == "label"
        self.found.append((tag, dict(attrs)))
        self.labelled.append(self._labels > 0)

    def handle_endtag(self, tag: str) -> None:
        """Leave a label."""
        self._labels -= tag == "label"


@pytest.fixture(scope="module")
def elements() -> Elements:
    parser = Elements()
    parser.feed(HTML)
    return parser


def test_page_names_no_other_host(elements: Elements) -> None:
    """Nothing is fetched but from the server itself, and no element runs code of an attribute."""
    for tag, attributes in elements.found:
        for name in ("src", "href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert re.findall(r"fetch\(\"([^\"]*)\"", HTML) == ["v1/chat/completions", "v1/models"]
    assert not re.search(r"@import|url\(", HTML)


@pytest.mark.parametrize(
    "word", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
)
def test_page_makes_no_markup_of_text(word: str) -> None:
    """Text becomes text nodes: what would read it as HTML or as code is not used."""
    assert word not in HTML


def test_every_field_has_a_label(elements: Elements) -> None:
    """Inputs, lists and text fields lie in a label, or one is for them."""
    named = {attributes.get("for") for tag, attributes in elements.found if tag == "label"}
    for (tag, attributes), labelled in zip(elements.found, elements.labelled, strict=True):
        if tag in ("input", "select", "textarea"):
            assert labelled or attributes.get("id") in named, attributes
    assert ("html", {"lang": "en"}) in elements.found


def colours(block: str) -> dict[str, tuple[int, ...]]:
    """Return the colours of a style, each of three parts from 0 to 255."""
    values = {}
    for name, digits in re.findall(r"--([\w-]+): #(\w+)", block):
        whole = digits if len(digits) == 6 else "".join(digit * 2 for digit in digits)
        values[name] = tuple(bytes.fromhex(whole))
    return values


def luminance(colour: tuple[int, ...]) -> float:
    """Return the relative luminance as WCAG 2 defines it."""
    parts = [part / 255 for part in colour]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(dark: bool) -> None:
    """Texts stand out from what they lie on by 4.5 to 1, WCAG's level AA, light and dark."""
    light, _, rest = HTML.partition("@media (prefers-color-scheme: dark)")
    values = colours(rest if dark else light)
    pairs = [("ink", on) for on in ("page", "card", "own", "code", "token")]
    pairs += [("soft", "page"), ("soft", "code"), ("accent", "page"), ("bad", "page")]
    for first, second in [*pairs, ("on-accent", "accent")]:
        low, high = sorted((luminance(values[first]), luminance(values[second])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (first, second)


def test_page_is_sent_with_a_strict_policy(server: Served) -> None:
    """The browser may run this script, use this style and ask this server; nothing else."""
    answer = server.client.get("/")
    assert (answer.status_code, answer.text) == (200, HTML)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy[name])


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def page(window: Browser, server: Served) -> Iterator[Browser]:
    """Yield the page, as new; it has nothing to complain of."""
    window.open(f"{server.url}/")
    window.run("localStorage.clear(); sessionStorage.clear()")
    window.console()
    window.open(f"{server.url}/")
    assert window.waits("return at('model').options.length")
    yield window
    assert [] == window.console()
    assert eventually(server.idle)


def ask(page: Browser, text: str) -> None:
    """Send a message by keyboard and wait for the end of the answer."""
    page.run("at('message').focus()")
    page.press(text + ENTER)
    ended(page)


def ended(page: Browser) -> None:
    """Wait until no answer is being written."""
    assert page.waits("return !running && messages.length")


def settings(page: Browser, **values: Any) -> None:
    """Fill in settings, as if typed."""
    script = """for (const [name, value] of Object.entries(arguments[0])) {
        const input = form.elements[name];
        if (typeof value === "boolean") input.checked = value;
        else input.value = value;
        input.dispatchEvent(new Event("input", {bubbles: true}));
        input.dispatchEvent(new Event("change"));
    }"""
    page.run(script, values)


def endless(page: Browser) -> None:
    """Have answers go on until they are stopped."""
    page.run("const made = body; body = () => ({...made(), ...arguments[0]})", ENDLESS)


@needs_chromium
def test_an_answer(page: Browser) -> None:
    """It is shown as the server streamed it, with tokens, time and rate; history is kept."""
    ask(page, "Tell me a story.")
    assert page.text(".user .text") == "Tell me a story."
    content = page.run("return messages[1].content")
    assert len(content.split()) > 5
    assert page.run("return document.querySelector('.assistant .text').textContent") == content
    note = page.text(".assistant .foot")
    assert re.match(r"first token after \d+\.\d\d s · \d+ tokens · [\d.]+ tokens/s", note)
    page.run("location.reload()")
    assert page.waits("return document.readyState === 'complete' && messages.length === 2")
    assert page.run("return document.querySelector('.assistant .text').textContent") == content


@needs_chromium
def test_screen_readers_are_told(page: Browser) -> None:
    """The answer is said politely, once, when it is whole; while it is written it is busy."""
    endless(page)
    page.press("Hello" + ENTER)
    assert page.waits("return messages[1]?.content")
    assert page.run("return document.querySelector('.assistant').ariaBusy") == "true"
    page.press(ESCAPE)
    ended(page)
    assert page.run("return document.querySelector('.assistant').ariaBusy") is None
    assert page.run("return at('said').ariaLive") == "polite"
    spoken = page.run("return at('said').textContent")
    assert spoken == page.run("return document.querySelector('.assistant .text').textContent")


@needs_chromium
@pytest.mark.parametrize("by_key", [True, False])
def test_stop(page: Browser, server: Served, by_key: bool) -> None:
    """Escape and the button end an answer; what there is stays, and the server computes no more."""
    endless(page)
    page.press("Hello" + ENTER)
    assert page.waits("return messages[1]?.content.length > 50")
    assert page.waits("return document.querySelector('.assistant .foot').innerText.includes('/s')")
    if by_key:
        page.press(ESCAPE)
    else:
        page.click("#stop")
    ended(page)
    assert page.text(".assistant .foot").splitlines()[0].endswith("stopped")
    assert eventually(server.idle)
    assert len(page.run("return messages[1].content")) > 50


@needs_chromium
def test_regenerate_and_edit(page: Browser) -> None:
    """Another answer takes the last one's place; an edited question goes back into its field."""
    settings(page, seed=1, temperature=0)
    ask(page, "Hello")
    first = page.run("return messages")
    page.click(".assistant:last-child .foot button")
    ended(page)
    assert [m["content"] for m in page.run("return messages")] == [m["content"] for m in first]
    ask(page, "And then?")
    assert page.run("return answers.size") == 4
    page.click(".user:nth-last-child(2) .foot button")
    assert page.run("return [messages.length, answers.size, at('message').value]") == [
        2,
        2,
        "And then?",
    ]


@needs_chromium
def test_settings_are_sent(page: Browser) -> None:
    """What is filled in is part of the request, what is not is the server's choice."""
    assert page.run("return Object.keys(body()).sort()") == [
        "logprobs",
        "messages",
        "model",
        "stream",
        "stream_options",
        "top_logprobs",
    ]
    settings(page, max_tokens=3, temperature=0.5, seed=7, system="Be brief.", logprobs=False)
    ask(page, "Hello")
    given = page.run("return body()")
    assert (given["max_tokens"], given["temperature"], given["seed"]) == (3, 0.5, 7)
    assert given["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "logprobs" not in given
    assert "· 3 tokens ·" in page.text(".assistant .foot")
    assert "ended at its limit" in page.text(".assistant .foot")
    assert page.run("return document.querySelector('.token')") is None


@needs_chromium
def test_probabilities(page: Browser) -> None:
    """They are shown for the token under the mouse, and by keyboard token by token."""
    settings(page, temperature=1, top_logprobs=3)
    ask(page, "Hello")
    assert page.run("return at('tip').hidden")
    page.hover(".assistant .token")
    token = page.text(".assistant .token").strip()
    assert page.text("#tip .chosen th").strip() == token
    assert 3 <= page.run("return at('tip').querySelectorAll('tr').length") <= 4
    page.hover("h1")
    assert page.run("return at('tip').hidden")
    page.run("[...answers.values()].at(-1).walk.focus()")
    page.press(ENTER)
    page.press(RIGHT)
    second = "return document.activeElement === document.querySelectorAll('.token')[1]"
    assert page.run(second)
    assert not page.run("return at('tip').hidden")
    assert re.search(r": [\d.]+ %", page.run("return at('said').textContent"))
    page.press(ESCAPE)
    assert page.run("return document.activeElement.textContent") == "Probabilities"


@needs_chromium
def test_tokens_are_found_in_the_text(page: Browser) -> None:
    """Parts of letters share a slice; marks that are not shown have none; what is cut fits too."""
    script = """
        const page = new Page(document.createElement("div")), aligner = new Aligner(page);
        const text = "Zoë **ran** 🦊.";
        const bytes = [...new TextEncoder().encode(text)];
        const cuts = [0, 3, 5, 8, 11, 15, 16, bytes.length];
        const entries = cuts.slice(1).map((end, i) => ({bytes: bytes.slice(cuts[i], end)}));
        entries.unshift({bytes: [60, 124, 62]});
        for (const [i, entry] of entries.entries()) {
            aligner.add([entry]);
            aligner.place(i < 3 ? "" : text);
        }
        page.show(text, true);
        return [page.target.textContent, page.tokens.map(t => text.slice(t.a, t.b)).join("|")];
    """
    assert page.run(script) == ["Zoë ran 🦊.", "Zo|ë |**r|an*|* |🦊."]


HOSTILE = [
    "<script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 1'>",
    "[x](javascript:window.hurt=1)",
    "![x](https://example.org/x.png)",
    "```<script>\n</code></pre><script>window.hurt = 1</script>\n```",
    "| <b>a</b> | b |\n|---|---|\n| <svg onload=window.hurt=1> | [a](data:text/html,x) |",
    "- <iframe srcdoc='<script>parent.hurt=1</script>'>",
    "> <style>body{display:none}</style>",
    "[a](https://example.org/\"onclick=\"window.hurt=1)",
    "**" * 3000 + "[" * 3000 + "`" * 3000 + "> " * 2000 + "- " * 2000,
    "\x00\ud7ff\u202e<\u200bscript>",
]  # fmt: skip


@needs_chromium
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_a_model_writes_is_text(page: Browser, text: str) -> None:
    """Nothing of it becomes an element that does or loads something."""
    script = """
        drawMessage({role: "assistant", content: arguments[0], reasoning: arguments[0]});
        drawMessage({role: "user", content: arguments[0]});
        const found = [...at("log").querySelectorAll("*")];
        return [
            typeof window.hurt,
            found.filter(e => /^(script|img|iframe|svg|style|object|b)$/i.test(e.tagName)).length,
            found.filter(e => e.href && !/^https?:/.test(e.href)).length,
            found.flatMap(e => [...e.attributes])
                .filter(a => /^(on|style|src)/.test(a.name)).length,
        ];
    """
    assert page.run(script, text) == ["undefined", 0, 0, 0]


MARKDOWN = [
    ("**a** *b* `c` ~~d~~", "<p><strong>a</strong> <em>b</em> <code>c</code> <del>d</del></p>"),
    ("a_b_c 2 * 3 * 4 **", "<p>a_b_c 2 * 3 * 4 **</p>"),
    (r"\*a\* `\*`", r"<p>*a* <code>\*</code></p>"),
    ("# A\n## B\ntext", "<h3>A</h3><h4>B</h4><p>text</p>"),
    ("a\n\nb\nc", "<p>a</p><p>b\nc</p>"),
    ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    ("3. a\n\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("> a\n> **b**", "<blockquote>a<br><strong>b</strong><br></blockquote>"),
    ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
    ("https://a.org/x.", '<p><a href="https://a.org/x">https://a.org/x</a>.</p>'),
    ("[**a**](https://b.org)", '<p><a href="https://b.org/"><strong>a</strong></a></p>'),
    (
        "|a|b|\n|-|-|\n|`1`|2|",
        "<table><tr><th>a</th><th>b</th></tr><tr><td><code>1</code></td><td>2</td></tr></table>",
    ),
    ("```py\nif a:\n\n    b\n```\nc", "py<pre><code>if a:\n\n    b\n</code></pre><p>c</p>"),
    ("```\n**a**", "<pre><code>**a**\n</code></pre>"),
    ("~~~\n```\n~~~", "<pre><code>```\n</code></pre>"),
]
SHOWN = """
    const page = new Page(document.createElement("div"));
    for (const text of arguments[0]) page.show(text, false);
    const plain = node => {
        if (node.nodeType === 3) return node.data;
        const inner = [...node.childNodes].map(plain).join("");
        const tag = node.localName;
        if (tag === "button") return "";
        if (/^(div|span)$/.test(tag)) return inner;
        const start = node.hasAttribute("start") ? ` start="${node.start}"` : "";
        const href = node.href ? ` href="${node.href}"` : "";
        return `<${tag}${start}${href}>${inner}${/^(br|hr)$/.test(tag) ? "" : `</${tag}>`}`;
    };
    return [...page.target.childNodes].map(plain).join("");
"""


@needs_chromium
@pytest.mark.parametrize(("text", "expected"), MARKDOWN)
def test_markdown(page: Browser, text: str, expected: str) -> None:
    """It is shown as what it means; letter by letter it comes to the same as at once."""
    assert page.run(SHOWN, [text]) == expected
    assert page.run(SHOWN, [text[:end] for end in range(1, len(text) + 1)]) == expected


@needs_chromium
def test_errors_are_shown_where_they_happened(page: Browser) -> None:
    """The server's sentence stands under the question, and the conversation goes on."""
    page.run("at('message').value = 'word '.repeat(2000); at('send').click()")
    ended(page)
    assert "tokens" in page.text(".assistant .error")
    assert "failed" in page.text(".assistant .foot")
    ask(page, "Hello")
    assert page.run("return messages.length") == 4
    assert page.run("return messages[3].content.length") > 5
    page.console()  # Chromium names the status 400


@needs_chromium
def test_wrong_settings_are_not_sent(page: Browser) -> None:
    """The field that is wrong is shown, the message stays."""
    settings(page, top_p=2)
    page.press("Hello" + ENTER)
    assert page.run("return [messages.length, at('settings').hidden]") == [0, False]
    assert page.run("return at('message').value") == "Hello"
    assert page.run("return document.activeElement.name") == "top_p"


@needs_chromium
def test_tab_reaches_everything(page: Browser) -> None:
    """In the order in which it is seen: link, model, settings, new chat, message, send."""
    seen = []
    for _ in range(7):
        page.press(TAB)
        seen.append(page.run("const on = document.activeElement; return on.id || on.localName"))
    seen.remove("body")  # the browser's own buttons
    assert seen == ["send", "a", "model", "toggle", "new", "message"]


@needs_chromium
def test_key(window: Browser) -> None:
    """A server that wants a key gets it; without one the field for it is opened."""
    with served(demo(), keys=["sesame"]) as locked:
        window.open(f"{locked.url}/")
        assert window.waits("return document.activeElement === form.elements.key")
        assert "API key" in window.text("#error")
        window.press("sesame" + TAB)
        assert window.waits("return at('model').options.length && at('error').hidden")
        ask(window, "Hello")
        assert window.run("return messages[1].content.length") > 5
        assert "sesame" not in window.run("return JSON.stringify({...localStorage})")
        window.open("about:blank")
    window.console()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_looks(page: Browser, scheme: str, width: int, tmp_path: Path) -> None:
    """Light or dark as the reader prefers, and nothing wider than the window."""
    page.resize(width, 700)
    page.scheme(scheme)
    text = "long" * 100 + "\n\n|a|b|\n|-|-|\n|" + "x" * 300 + "|y|\n\n```\n" + "z" * 300 + "\n```"
    page.run("drawMessage({role: 'assistant', content: arguments[0]}); openSettings(true)", text)
    assert page.run("return document.documentElement.scrollWidth") <= width
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == (scheme == "light")
    assert page.run("return view.scrollWidth <= view.clientWidth")


THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n<think>\n{# </think> ends it #}"
)


@needs_chromium
def test_reasoning_is_folded(window: Browser) -> None:
    """It is shown on demand, and is no part of what the next question follows."""
    with served(demo(template=THINKING)) as thinking:
        window.open(f"{thinking.url}/")
        ask(window, "Hello")
        shown = "const all = document.querySelector('details'); return [all.hidden, all.open]"
        assert window.run(shown) == [False, False]
        assert len(window.run("return document.querySelector('details div').textContent")) > 5
        assert window.run("return messages[1].content") == ""
        assert "tokens" in window.text(".assistant .foot")
        assert window.run("return JSON.stringify(body().messages)") == "[]"
        window.open("about:blank")
