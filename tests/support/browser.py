"""A headless Chromium, controlled by the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page."""

    def __init__(self, profile: Path, url: str, width: int = 1100, height: int = 800, mobile: bool = False) -> None:
        assert CHROMIUM
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        script = (
            f'exec "$0" --headless=new --no-sandbox --disable-gpu --user-data-dir="{profile}" --remote-debugging-pipe '
            f"about:blank 3<&{commands} 4>&{answers} 2>/dev/null"
        )
        self._process = subprocess.Popen(["bash", "-c", script, CHROMIUM], pass_fds=(commands, answers))
        os.close(commands)
        os.close(answers)
        self._rest, self._number, self._session = b"", 0, None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=url)
        self.until("location.protocol === 'http:'")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._to)
        os.close(self._from)

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code: str, seconds: float = 30) -> Any:
        """Wait until a JavaScript expression is truthy; its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"document.readyState === 'complete' && ({code})")):
            assert time.monotonic() < end, f"never true: {code}; the page says: {self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def type(self, selector: str, text: str) -> None:
        self.run(
            f"(e => {{ e.focus(); e.value = {json.dumps(text)}; e.dispatchEvent(new Event('input')); }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def choose(self, selector: str, value: str) -> None:
        self.run(
            f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('change')); }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        call = {"id": self._number, "method": method, "params": parameters}
        os.write(self._to, json.dumps(call | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                received = os.read(self._from, 1 << 16)
                assert received, "the browser has ended"
                self._rest += received
            message, self._rest = self._rest.split(b"\0", 1)
            answer = json.loads(message)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
