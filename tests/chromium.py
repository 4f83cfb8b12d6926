"""A real Chromium without a window, driven through its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-port=0",
)  # fmt: skip
ANSWER_SECONDS = 60
WAIT_SECONDS = 30.0


def program() -> str | None:
    """Where Chromium is: the one that ``EARMARK_CHROMIUM`` names, else one of the path."""
    return os.environ.get("EARMARK_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. What it logs as errors and what it asks the network for is kept."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._socket, self._session, self._number = socket, session, 0
        self._events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that come meanwhile are kept. Raises RuntimeError where the browser says no."""
        self._number += 1
        command = {"id": self._number, "sessionId": self._session, "method": method, "params": parameters}
        self._socket.send(json.dumps(command))
        while True:
            message = self._receive()
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self._events.append(message)

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=ANSWER_SECONDS))
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(str(message["params"]["request"]["url"])[:200])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"])[:400])
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self.errors.append(str(message["params"]["entry"]["text"]))
            case "Runtime.consoleAPICalled" if message["params"]["type"] in ("error", "assert"):
                self.errors.append(json.dumps(message["params"]["args"])[:400])
        return message

    def look(self, width: int, height: int = 900, *, dark: bool = False, medium: str = "", grey: bool = False) -> None:
        """The window as wide as a desktop's or a telephone's, light or dark, on the screen or on paper."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=medium, features=[scheme])
        self.call("Emulation.setEmulatedVisionDeficiency", type="achromatopsia" if grey else "none")

    def open(self, path: Path) -> None:
        """Load a file and wait until all of it is there."""
        self.visit(path.resolve().as_uri())

    def visit(self, url: str) -> None:
        """Load a page and wait until all of it is there. Errors and requests are counted from here."""
        self.requests.clear()
        self.errors.clear()
        self._events.clear()
        self.call("Page.navigate", url=url)
        while not any(message.get("method") == "Page.loadEventFired" for message in self._events):
            self._events.append(self._receive())

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page. Raises RuntimeError where it throws."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def until(self, condition: str, seconds: float = WAIT_SECONDS) -> Any:
        """The value of an expression once it is true.

        Raises:
            AssertionError: it is not within ``seconds``; the message has the page's text and errors.
        """
        found = self.evaluate(
            f"""(async () => {{ const end = performance.now() + {1000 * seconds};
            for (;;) {{ const found = {condition}; if (found || performance.now() > end) return found || null;
            await new Promise(done => setTimeout(done, 20)); }} }})()"""
        )
        shown = "" if found else self.evaluate("document.body.innerText")
        assert found, f"not within {seconds} s: {condition}\n{shown[:1000]}\n{self.errors}"
        return found

    def click(self, selector: str) -> None:
        """Click the first element that the selector finds, as a person's act."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int = 0) -> None:
        """A key by the name that events give it; ``code`` where the browser itself acts on it."""
        text = {"Enter": "\r"}.get(key, "")
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def give_file(self, selector: str, path: Path) -> None:
        """Choose a file in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve())])

    def before_pages(self, script: str) -> None:
        """Run a script in every page to come before its own."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def picture(self, clip: Mapping[str, float] | None = None) -> bytes:
        """The whole page, or a part of it, as PNG."""
        where = {} if clip is None else {"clip": {**clip, "scale": 1}}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, **where)["data"]
        return base64.b64decode(data)

    def pdf(self) -> bytes:
        """The page on A4."""
        return base64.b64decode(
            self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)["data"]
        )


@contextlib.contextmanager
def browser(executable: str, *options: str) -> Iterator[Page]:
    """A browser with one empty tab; it ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [executable, *OPTIONS, *options, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        drained = threading.Thread(target=process.stderr.read, daemon=True)  # a full pipe would stop the browser
        try:
            address, said = "", ""
            for line in process.stderr:
                said += line
                if found := re.search(r"DevTools listening on (ws://\S+)", line):
                    address = found[1]
                    break
            if not address:
                raise RuntimeError(f"{executable} did not start: {said[-2000:]}")
            drained.start()
            with connect(address, max_size=None, proxy=None) as socket:
                yield Page(socket, _attached(socket))
        finally:
            process.terminate()
            process.wait(20)
            if drained.ident is not None:
                drained.join(20)
            process.stderr.close()


def _attached(socket: ClientConnection) -> str:
    def call(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(socket.recv(timeout=ANSWER_SECONDS))).get("id") != number:
            pass
        result: dict[str, Any] = message["result"]
        return result

    target = call(1_000_001, "Target.createTarget", url="about:blank")["targetId"]
    return str(call(1_000_002, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
