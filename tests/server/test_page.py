"""The chat page as text: its files, its policy, its colours. test_page_browser.py runs it."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest

from llcuda.files import data_file
from llcuda.server.api_page import api_page
from llcuda.server.page import TYPES, page_files
from tests.support.server import Served, demo, is_error, served

FOLDER = data_file("page")
HTML = (FOLDER / "index.html").read_text(encoding="utf-8")
STYLE = (FOLDER / "style.css").read_text(encoding="utf-8")
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.js")}


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
            assert (attributes.get(name) or "#").startswith(("#", "data:,", "page/"))
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert tag != "style"
    assert not re.findall(r"<script[^>]*>[^<]", HTML)
    assert not re.search(r"@import|url\(", STYLE)
    addresses = [found for text in SCRIPTS.values() for found in re.findall(r"\w+://\S+", text)]
    assert addresses == []


@pytest.mark.parametrize(
    "word", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
)
def test_page_makes_no_markup_of_text(word: str) -> None:
    """Text becomes text nodes or goes through DOMPurify."""
    assert not [name for name, text in SCRIPTS.items() if word in text]


def test_modules_import_what_exists() -> None:
    """Each import names a file of the page and something that it exports."""
    for name, text in SCRIPTS.items():
        for names, module in re.findall(r"import \{([^}]*)\} from \"\./([^\"]*)\"", text):
            for word in re.findall(r"\w+", names):
                assert re.search(
                    rf"export (async )?(function\*?|const|class) {word}\b"
                    rf"|export async function\* {word}\b",
                    SCRIPTS[module],
                ), (name, module, word)


def test_every_field_has_a_name(elements: Elements) -> None:
    """Inputs, lists and text fields lie in a label or say their name."""
    for (tag, attributes), labelled in zip(elements.found, elements.labelled, strict=True):
        if tag in ("input", "select", "textarea"):
            assert labelled or attributes.get("aria-label"), attributes
    assert ("html", {"lang": "en"}) in elements.found


def colours(dark: bool) -> dict[str, tuple[int, ...]]:
    """Return the colours of one scheme, each of three parts from 0 to 255."""
    pairs = re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\)", STYLE)
    return {name: tuple(bytes.fromhex(pair[dark])) for name, *pair in pairs}


def luminance(colour: tuple[int, ...]) -> float:
    """Return the relative luminance as WCAG 2 defines it."""
    parts = [part / 255 for part in colour]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(dark: bool) -> None:
    """Texts stand out from what they lie on by 4.5 to 1, WCAG's level AA, light and dark."""
    values = colours(dark)
    shades = [f"shade{number}" for number in range(1, 5)]
    pairs = [("ink", on) for on in ("page", "side", "card", "own", "code", *shades)]
    pairs += [("soft", on) for on in ("page", "side", "card", "code", "own")]
    pairs += [(name, "code") for name in ("keyword", "string", "number", "name", "comment")]
    pairs += [("accent", "page"), ("accent", "card"), ("bad", "page"), ("on-accent", "accent")]
    for first, second in pairs:
        low, high = sorted((luminance(values[first]), luminance(values[second])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (first, second)


def test_page_is_sent_with_a_strict_policy(server: Served) -> None:
    """The browser may run the page's scripts, use its style and ask this server; nothing else."""
    answer = server.client.get("/")
    assert (answer.status_code, answer.text) == (200, HTML)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    for name in ("script-src", "style-src", "connect-src", "font-src"):
        assert policy[name] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert not re.search("unsafe|https?:|blob:|[*]", answer.headers["content-security-policy"])


def test_files_are_sent_with_their_types(server: Served) -> None:
    """Each file has its type, and is not sent again while it stays the same."""
    files = page_files()
    assert {"index.html", "style.css", "app.js", "theme.js"} <= files.keys()
    for name, path in files.items():
        answer = server.client.get(f"/page/{name}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes())
        assert answer.headers["content-type"] == TYPES[path.suffix]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
    tag = server.client.get("/page/app.js").headers["etag"]
    again = server.client.get("/page/app.js", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")
    other = server.client.get("/page/app.js", headers={"if-none-match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "name",
    ["none.js", "", "../registry.toml", "%2e%2e/registry.toml", "..%2fdemo.gguf", "lib/../app.js",
     "lib", "lib/markdown-it.LICENSE", "app.js/", "a" * 3000, "%00", "app.js%00.css"],
)  # fmt: skip
def test_no_other_file_is_sent(server: Served, name: str) -> None:
    """Only the page's own files have an address."""
    request = server.connect(f"GET /page/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    with request:
        head = request.recv(65536).decode()
    assert head.startswith("HTTP/1.1 404 ")
    assert "no such path" in head


def test_files_need_no_key() -> None:
    """The page is shown before the key is entered; what it asks needs the key."""
    with served(demo(), keys=["sesame"]) as locked:
        assert locked.client.get("/").status_code == 200
        assert locked.client.get("/page/app.js").status_code == 200
        is_error(locked.client.get("/page"), 401)
        is_error(locked.client.get("/v1/models"), 401)


def test_the_page_of_the_api(server: Served) -> None:
    """/docs names each path and field of the document, runs no script and asks no other host."""
    answer = server.client.get("/docs")
    assert "text/html; charset=utf-8" == answer.headers["content-type"]
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert "style=" not in answer.text
    assert "//" not in answer.text.replace("<!doctype", "")
    document = server.client.get("/openapi.json").json()
    for path in document["paths"]:
        assert f"</b> {html.escape(path)}</h2>" in answer.text
    for field in document["components"]["schemas"]["ChatBody"]["properties"]:
        assert f"<code>{field}</code>" in answer.text
    assert server.client.get("/page/docs.css").headers["content-type"].startswith("text/css")


def test_the_page_of_a_strange_document() -> None:
    """Text is text, and a type that the page does not know is any value."""
    field = {"description": "<script>", "type": ["a"], "minimum": 1, "maximum": 5}
    operation = {"description": "<b>", "parameters": [{"name": "a", "in": "query"}]}
    document = {
        "info": {"title": "<i>", "version": "1"},
        "paths": {"/<a>": {"get": operation, "post": {"requestBody": {"content": {
            "application/json": {"schema": {"properties": {"x": field}}}}}}}},
    }  # fmt: skip
    page = api_page(document)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "any value from 1 to 5" in page
    assert "any value, in the query" in page
