"""The real server, as a process on a free port of this machine, for as long as a test needs it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 120.0


class Server:
    """A process that serves; `url` is where, `told()` what it has written to stderr so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log, self.url = process, log, ""

    def told(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def resident_bytes(self) -> int:
        """Main memory that the process holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])

    def end(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextmanager
def serving(*arguments: str, model: str = "starter") -> Iterator[Server]:
    """`hyena serve MODEL --port 0 --threads 1` with more arguments, once it answers; killed if it outlives this."""
    command = [sys.executable, "-m", "hyenadna.cli.main", "serve", model, "--port", "0", "--threads", "1", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        with log.open("wb") as told:
            process = subprocess.Popen(command, stderr=told, env=os.environ | {"OMP_NUM_THREADS": "1"})
        server = Server(process, log)
        try:
            end = time.monotonic() + _START_SECONDS
            while not (found := re.search(r"^serving .* at (http://\S+)$", server.told(), re.M)):
                assert process.poll() is None and time.monotonic() < end, server.told()
                time.sleep(0.05)
            server.url = found[1]
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
