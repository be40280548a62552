"""A headless Chromium, spoken to by its own protocol, for the test of the site."""

import json
import shutil
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Visit:
    """What happened while a page was looked at.

    Attributes:
        requests: every address that it asked for.
        errors: what went to the console as an error, and exceptions that nobody caught.
        found: what the script said, by width of the window.
    """

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    found: dict[int, Any] = field(default_factory=dict)


class Browser:
    """Use as a context; ``folder`` is for its profile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = Visit()
        self.number = 0

    def __enter__(self) -> "Browser":
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        options += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={self.folder}"]
        assert PROGRAM is not None
        self.process = subprocess.Popen([PROGRAM, *options, "about:blank"], stderr=subprocess.DEVNULL)
        port = self.folder / "DevToolsActivePort"
        for _ in range(600):
            if port.is_file() and len(lines := port.read_text().splitlines()) == 2:
                break
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
            target = next(one for one in json.load(answer) if one["type"] == "page")
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=300)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(60)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command; what happens meanwhile is noted in ``seen``."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while (message := self._next()).get("id") != self.number:
            pass
        assert "error" not in message, (method, message)
        return message["result"]

    def _next(self) -> dict[str, Any]:
        message = json.loads(self.socket.recv())
        what, said = message.get("method"), message.get("params", {})
        if what == "Network.requestWillBeSent":
            self.seen.requests.append(said["request"]["url"])
        elif what == "Runtime.exceptionThrown":
            self.seen.errors.append(said["exceptionDetails"].get("exception", {}).get("description", str(said)))
        elif what == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.seen.errors.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif what == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.seen.errors.append(
                str([argument.get("value", argument.get("description")) for argument in said["args"]])
            )
        return message

    def resize(self, width: int, height: int = 900) -> None:
        """Width and height of the window, in CSS pixels."""
        size: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def visit(self, address: str, ready: str, script: str, widths: tuple[int, ...]) -> Visit:
        """Load a page, wait for ``ready``, and ask ``script`` at every width."""
        self.call("Page.navigate", url="about:blank")
        self.seen = Visit()
        self.resize(widths[0])
        self.call("Page.navigate", url=address)
        while self._next().get("method") != "Page.loadEventFired":
            pass
        self.evaluate(ready)
        for width in widths:
            self.resize(width)
            self.seen.found[width] = self.evaluate(script)
        return self.seen
