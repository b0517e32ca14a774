"""The service in its own process."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys


class Server:
    """``recbole-onebp serve`` in its own process, on a free port."""

    def __init__(self, *arguments, bundle="bundle", **environment):
        code = "import sys; from recbole_onebp.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "serve", bundle, "--port=0", *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            # A shell starts what it runs in the background with Ctrl-C ignored, and so these tests, perhaps.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        atexit.register(self.process.kill)  # if the test fails
        self.first_line = self.process.stdout.readline()
        assert self.first_line, self.process.stderr.read()
        self.url = self.first_line.split()[-1]

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self.process.stderr.close()
