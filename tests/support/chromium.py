"""A page in Chromium without a display, driven by the DevTools protocol through two pipes.

In: an HTML file, keys, expressions. Out: values, what the console said, each request, a PDF. Nothing is downloaded: the
browser has a profile of its own, and is killed at the end.

Source: the domains Input, Page, Runtime, Network and Emulation of the Chrome DevTools protocol.
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

_DEADLINE_S = 600.0  # that of a test
_CODES = {"Backspace": 8, "Tab": 9, "Enter": 13}
_TEXTS = {"Enter": "\r"}
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)


class Page:
    """An open page."""

    def __init__(self, orders: int, answers: int) -> None:
        self.console: list[str] = []
        """Errors and messages of the page."""
        self.requests: list[str] = []
        """Addresses that it has asked for."""
        self._orders, self._answers = orders, answers
        self._rest, self._number, self._session, self._loads = b"", 0, "", 0
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setFocusEmulationEnabled", enabled=True)

    def open(self, file: Path, *, is_dark: bool = False) -> None:
        """Open a file, and wait until its scripts have run."""
        self.media(is_dark=is_dark)
        before = self._loads
        self._call("Page.navigate", url=file.as_uri())
        while self._loads == before:
            self._note_next()

    def media(self, kind: str = "", *, is_dark: bool = False) -> None:
        """Show it on a screen or on paper (`print`), light or dark."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=kind, features=[feature])

    def value(self, expression: str) -> Any:
        """The value of an expression, also of a promise."""
        done = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        code = _CODES.get(key, ord(key[0].upper()))
        text = _TEXTS.get(key, key if len(key) == 1 else "")
        words = {"key": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, **words)

    def pdf(self) -> bytes:
        """What it is on paper."""
        return base64.b64decode(self._call("Page.printToPDF")["data"])

    def _call(self, method: str, **parameters: object) -> Any:
        self._number += 1
        order = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            order["sessionId"] = self._session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        while (answer := self._note_next()).get("id") != self._number:
            pass
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _note_next(self) -> Any:
        """The next message; keeps what an event says."""
        message = self._next()
        event, found = message.get("method"), message.get("params", {})
        if event == "Runtime.exceptionThrown":
            self.console.append(str(found["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.console.append(str(found["args"]))
        elif event == "Log.entryAdded":
            self.console.append(found["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif event == "Page.loadEventFired":
            self._loads += 1
        return message

    def _next(self) -> Any:
        """The next message; each ends with a zero byte."""
        deadline = time.monotonic() + _DEADLINE_S
        while b"\0" not in self._rest:
            assert time.monotonic() < deadline, f"Chromium has said nothing for {_DEADLINE_S} s"
            if select.select([self._answers], [], [], 1)[0]:
                more = os.read(self._answers, 1 << 20)
                assert more, "Chromium has ended"
                self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def page(profile: Path) -> Iterator[Page]:
    """A browser with one page.

    Args:
        profile: a directory for its files.
    """
    with ExitStack() as stack:
        (theirs_in, orders), (answers, theirs_out) = os.pipe(), os.pipe()
        for each in (orders, answers):
            stack.callback(os.close, each)
        # It reads from descriptor 3, and writes to 4.
        shell = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
        command = [
            "bash",
            "-c",
            shell,
            "bash",
            "chromium",
            *_ARGUMENTS[:-1],
            f"--user-data-dir={profile}",
            _ARGUMENTS[-1],
        ]
        process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        os.close(theirs_in)
        os.close(theirs_out)
        yield Page(orders, answers)
