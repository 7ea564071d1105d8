"""Headless Chromium by the W3C WebDriver protocol, spoken with httpx: no further package."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.waiting import eventually

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
ENTER, ESCAPE, RIGHT, TAB, UP = "\ue007", "\ue00c", "\ue014", "\ue004", "\ue013"
CONTROL, SHIFT = "\ue009", "\ue008"


class Browser:
    """One window."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client = client
        self._session = session

    def ask(self, path: str, **body: Any) -> Any:
        """Send a command of the protocol."""
        answer = self._client.post(f"/session/{self._session}/{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()["value"]

    def tabs(self) -> list[str]:
        """Return the names of all tabs."""
        names: list[str] = self._client.get(f"/session/{self._session}/window/handles").json()[
            "value"
        ]
        return names

    def new_tab(self) -> str:
        """Open a tab and return its name."""
        return str(self.ask("window/new", type="tab")["handle"])

    def switch(self, name: str) -> None:
        """Go on in another tab."""
        self.ask("window", handle=name)

    def close_tab(self) -> None:
        """Close the tab; `switch` must follow."""
        self._client.delete(f"/session/{self._session}/window")

    def open(self, url: str) -> None:
        """Load a page and wait for it."""
        self.ask("url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns; it sees `arguments`."""
        return self.ask("execute/sync", script=script, args=list(arguments))

    def text(self, selector: str) -> str:
        """Return the text that one element shows."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def waits(self, script: str, *arguments: Any) -> bool:
        """Wait until a script returns something."""
        return eventually(lambda: bool(self.run(script, *arguments)))

    def press(self, keys: str, held: str = "") -> None:
        """Type into what has the focus, while other keys are held down."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        before = [{"type": "keyDown", "value": key} for key in held]
        after = [{"type": "keyUp", "value": key} for key in held]
        keyboard = {"type": "key", "id": "keyboard", "actions": [*before, *actions, *after]}
        self.ask("actions", actions=[keyboard])

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        self._point(
            selector, [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        )

    def hover(self, selector: str) -> None:
        """Move the mouse over an element."""
        self._point(selector, [])

    def _point(self, selector: str, then: list[dict[str, Any]]) -> None:
        element = self.ask("element", using="css selector", value=selector)
        move = {"type": "pointerMove", "duration": 0, "origin": element, "x": 0, "y": 0}
        mouse = {"type": "pointer", "id": "mouse", "actions": [move, *then]}
        self.ask("actions", actions=[mouse])

    def resize(self, width: int, height: int) -> None:
        """Give the page this size, in pixels."""
        self.chrome(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            mobile=False,
            deviceScaleFactor=1,
        )

    def scheme(self, name: str) -> None:
        """Prefer "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.chrome("Emulation.setEmulatedMedia", features=features)

    def chrome(self, command: str, **parameters: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self.ask("goog/cdp/execute", cmd=command, params=parameters)

    def screenshot(self, path: Path) -> None:
        """Write a picture of what is seen."""
        answer = self._client.get(f"/session/{self._session}/screenshot").json()
        path.write_bytes(base64.b64decode(answer["value"]))

    def console(self) -> list[str]:
        """Return the page's errors since the last call: what failed, and what was forbidden."""
        entries = self.ask("se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start Chromium for as long as the block runs; its files lie in `folder`."""
    options = {
        "binary": CHROMIUM,
        "args": [
            "--headless=new",
            "--no-sandbox",  # it needs rights that a container lacks; the page is our own
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder}",
        ],
    }
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    environment = {**os.environ, "HOME": str(folder)}
    with subprocess.Popen(
        [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True, env=environment
    ) as driver:
        assert driver.stdout
        try:
            port = next(
                match[1]
                for line in driver.stdout
                if (match := re.search(r"successfully on port (\d+)", line))
            )
            silence = threading.Thread(target=driver.stdout.read)
            silence.start()
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False
            ) as client:
                answer = client.post("/session", json={"capabilities": {"alwaysMatch": wanted}})
                assert answer.is_success, answer.text
                session = answer.json()["value"]["sessionId"]
                try:
                    yield Browser(client, session)
                finally:
                    client.delete(f"/session/{session}")
        finally:
            driver.terminate()
            driver.wait(120)
            silence.join()
