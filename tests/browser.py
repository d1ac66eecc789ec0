"""Chromium without a window, spoken to over its DevTools protocol's pipe.

It needs nothing but the browser: no driver, no port, no package.
"""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
FLAGS += ("--no-first-run", "--disable-extensions", "--disable-background-networking")
FLAGS += ("--remote-debugging-pipe", "--hide-scrollbars")
# The browser reads its descriptor 3 and writes its 4.
START = (
    "import os, sys\n"
    "r, w = map(int, sys.argv[1:3])\n"
    "r, w = os.dup(r), os.dup(w)\n"
    "while min(r, w) < 5:\n    r, w = os.dup(r), os.dup(w)\n"
    "os.dup2(r, 3), os.dup2(w, 4)\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)
PATIENCE = 60  # seconds


class Tab:
    """A page in the browser, and everything that went wrong in it: `complaints`."""

    def __init__(self, send: int, receive: int):
        self.send, self.receive = send, receive
        self.count, self.rest, self.session = 0, b"", None
        self.complaints: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params) -> dict[str, Any]:
        """The browser's answer to one command."""
        self.count += 1
        order = {"id": self.count, "method": method, "params": params}
        if self.session:
            order["sessionId"] = self.session
        os.write(self.send, json.dumps(order).encode() + b"\0")
        while True:
            message = self._message()
            self._listen(message)
            if message.get("id") == self.count:
                assert "error" not in message, message["error"]
                return message["result"]

    def open(self, path: pathlib.Path) -> None:
        """Shows a file, until everything in it is loaded."""
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def value(self, expression: str) -> Any:
        """What JavaScript says."""
        said = self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits until JavaScript says true."""
        end = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.02)

    def press(self, key: str, code: int) -> None:
        """Presses a key where the focus is."""
        for kind in ("rawKeyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def look(self, width: int, scheme: str = "light") -> None:
        """Makes the window so wide, as a phone if it is narrow, in light or dark."""
        phone = width < 600
        size = dict(width=width, height=900, deviceScaleFactor=1, mobile=phone)
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])

    def photograph(self, path: pathlib.Path) -> None:
        """`path` holds a PNG of the whole page."""
        said = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(said["data"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.receive], [], [], PATIENCE)
            assert ready, "the browser says nothing"
            part = os.read(self.receive, 1 << 20)
            assert part, "the browser ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def _listen(self, message: dict[str, Any]) -> None:
        name, what = message.get("method"), message.get("params", {})
        outside = name == "Network.requestWillBeSent" and not what["request"]["url"].startswith(
            ("file:", "data:", "about:")
        )
        kinds = {"error", "warning", "assert"}
        said = name == "Runtime.consoleAPICalled" and what["type"] in kinds
        logged = name == "Log.entryAdded" and what["entry"]["level"] in kinds
        broken = name in ("Runtime.exceptionThrown", "Network.loadingFailed")
        if outside or said or logged or broken:
            self.complaints.append(f"{name}: {json.dumps(what)[:600]}")


@contextlib.contextmanager
def opened(folder: pathlib.Path):
    """A Tab of a browser that keeps its files in `folder` and ends with the block."""
    (its_input, send), (receive, its_output) = os.pipe(), os.pipe()
    command = [sys.executable, "-c", START, str(its_input), str(its_output)]
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}"],
            pass_fds=(its_input, its_output),
            stdout=log,
            stderr=log,
        )
    os.close(its_input)
    os.close(its_output)
    try:
        yield Tab(send, receive)
    finally:
        os.close(send)  # it ends when nobody speaks to it any more
        os.close(receive)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
