"""A headless Chromium for tests, spoken to over a pair of pipes by the DevTools protocol."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_SECONDS = 30.0


class Browser:
    """One browser; its commands are those of https://chromedevtools.github.io/devtools-protocol/."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # out of the way of 3 and 4, where the browser looks for its pipes
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_browser, from_browser)]
        arguments = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run --hide-scrollbars"
        arguments += " --disable-dev-shm-usage --disable-background-networking --disable-extensions"

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [PROGRAM, *arguments.split(), f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_browser, from_browser, *ends):
            os.close(end)
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def command(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command; what the browser tells meanwhile goes to `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _SECONDS
        while True:
            answer = self._next(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(OSError, AssertionError):
            self.command("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no answer from Chromium within {_SECONDS:g} s"
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


class Tab:
    """One page of a browser."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.target = browser.command("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.command("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """As `Browser.command`, of this page."""
        return self.browser.command(method, self.session, **parameters)

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """As large as a window or a phone."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def media(self, **features: str) -> None:
        """Settings of the person: prefers-color-scheme and such, with _ for -."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", features=named)

    def open(self, url: str) -> None:
        """Go there."""
        self.command("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of an expression; a promise's when it is there."""
        found = self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression holds."""
        end = time.monotonic() + _SECONDS
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"still not: {condition}"
            time.sleep(0.02)

    def key(self, key: str, text: str = "", modifiers: int = 0) -> None:
        """Press a key and let it go."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowRight": 39, "ArrowDown": 40, "End": 35, "Home": 36}
        named = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0])), "modifiers": modifiers}
        text = text or {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        self.command("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
        self.command("Input.dispatchKeyEvent", type="keyUp", **named)

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.command("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def complaints(self) -> list[str]:
        """What the page's scripts and the browser complained of: exceptions, and what a policy forbade."""
        self.evaluate("0")
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"]))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["source"] != "network":
                found.append(event["params"]["entry"]["text"])
        return found

    def close(self) -> None:
        """Close it."""
        self.browser.command("Target.closeTarget", targetId=self.target)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser while it is needed."""
    one = Browser(profile)
    try:
        yield one
    finally:
        one.close()
