"""A headless Chromium, driven through its DevTools protocol over a WebSocket: no driver, no further dependency."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

FLAGS = (
    "--headless",
    "--no-sandbox",  # root has none, and the page is ours
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)
CONTROL = 2
"""The modifier of a key event."""

Until = Callable[..., None]


class Page:
    """One tab.

    Attributes:
        complaints: what the browser logged as an error: exceptions, blocked by the policy, not to be loaded.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self._loop, self._socket, self._number, self._session = loop, socket, 0, ""

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), 60))

    async def _call(self, method: str, parameters: dict[str, Any]) -> Any:
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        await self._socket.send_json(asked | ({"sessionId": self._session} if self._session else {}))
        while True:
            told = json.loads((await self._socket.receive()).data)
            self._note(told)
            if told.get("id") == self._number:
                assert "error" not in told, (method, told["error"])
                return told["result"]

    def _note(self, told: dict[str, Any]) -> None:
        about = told.get("params", {})
        if told.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(about["exceptionDetails"].get("exception", {}).get("description")))
        elif told.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif told.get("method") == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.complaints.append(str(about["args"]))

    def attach(self) -> None:
        """Begins to listen to a tab of its own."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    # --- what a person does -----------------------------------------------------------------------------------------

    def open(self, address: str) -> None:
        """Goes to an address, in no state that an earlier one left."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is there, promises awaited."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> None:
        """Waits until an expression holds."""
        deadline = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < deadline, f"{expression} did not hold; the browser said {self.complaints}"
            time.sleep(0.05)

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Presses a key."""
        code = {"Enter": 13, "Tab": 9, " ": 32}[key]
        name = {" ": "Space"}.get(key, key)
        about = {"key": key, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"Enter": "\r", " ": " "}.get(key, "") if not modifiers else ""
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def look(self, file: Path) -> None:
        """Takes a picture of the whole page, for whoever wants to see what a test saw."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken["data"]))

    def prefer(self, **features: str) -> None:
        """As a person who has set this, such as ``color_scheme="dark"``, and nothing else."""
        told = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=told)

    def resize(self, width: int, height: int) -> None:
        """As on a screen of so many points."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )


@contextmanager
def browser(folder: Path, language: str = "en-US") -> Iterator[Page]:
    """A tab of a browser of its own, which keeps its things in ``folder``."""
    assert CHROMIUM
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", f"--lang={language}", f"--accept-lang={language}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    loop = asyncio.new_event_loop()
    try:
        address = loop.run_until_complete(asyncio.wait_for(_address(folder, process), 120))
        session, socket = loop.run_until_complete(_connect(address))
        page = Page(loop, socket)
        page.attach()
        yield page
        loop.run_until_complete(session.close())
    finally:
        process.terminate()
        process.wait(30)
        loop.close()


async def _address(folder: Path, process: "subprocess.Popen[bytes]") -> str:
    """Where it listens, once it says so."""
    told = folder / "DevToolsActivePort"
    while not told.exists() or len(told.read_text().splitlines()) < 2:
        assert process.poll() is None, f"chromium ended with {process.returncode}"
        await asyncio.sleep(0.05)
    port, path = told.read_text().splitlines()
    return f"ws://127.0.0.1:{port}{path}"


async def _connect(address: str) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    return session, await session.ws_connect(address, max_msg_size=0)
