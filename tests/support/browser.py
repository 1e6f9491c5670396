"""A headless Chromium spoken to over a pipe (the DevTools protocol): visits, console messages, scripts, screenshots."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """Console errors and warnings, exceptions and refusals of a page; addresses it asked for, but `data:`."""

    complaints: list[str]
    requests: list[str]


class Browser:
    """One tab of a browser without a network, in a profile of its own."""

    def __init__(self, profile: Path, timeout: float = 120) -> None:
        self.timeout, self._number, self._rest, self.events = timeout, 0, b"", []
        pipes = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for pair in (os.pipe(), os.pipe()) for end in pair]
        read, self._write, self._read, write = pipes
        # Chromium reads from file 3 and writes to file 4.
        command = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write} 2>/dev/null', "bash", CHROMIUM, *FLAGS]
        self.process = subprocess.Popen([*command, f"--user-data-dir={profile}", "about:blank"], pass_fds=(read, write))
        os.close(read)
        os.close(write)

    def __enter__(self) -> "Browser":
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **params: object) -> dict:
        """A command to the tab, and its result."""
        return self._call(method, self.session, **params)

    def _call(self, method: str, session: str = "", **params: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self.timeout
        while True:
            answer = self._next(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self, end: float) -> dict:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser is gone"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def visit(self, address: str, width: int, height: int, dark: bool = False) -> Visit:
        """Opens a page in a window of this size and waits until it is loaded."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.events = []
        self.call("Page.navigate", url=address)
        end = time.monotonic() + self.timeout
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next(end))
        self.evaluate("1")  # whatever the page's script said has come by then
        complaints = [json.dumps(e["params"])[:500] for e in self.events if _complains(e)]
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return Visit(complaints, [url[:200] for url in asked if not url.startswith("data:") and url != address])

    def evaluate(self, script: str) -> object:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


def _complains(event: dict) -> bool:
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.consoleAPICalled":
        return params["type"] in ("error", "warning", "assert")
    if method == "Log.entryAdded":
        return params["entry"]["level"] in ("error", "warning")
    return method == "Runtime.exceptionThrown"
