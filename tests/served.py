"""A gateway in a process of its own, on the tests' database and on a port of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextmanager
def served(database_url: str, **settings: str) -> Iterator[str]:
    """Serve, and give the origin; in development mode, and to callers who may ask as often as they like."""
    environment = os.environ | {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATABASE_UNSAFE": "true",
        "GATEWAY_PORT": "0",
        "GATEWAY_RATE_READS_PER_MINUTE": "0",
        "GATEWAY_RATE_WRITES_PER_MINUTE": "0",
        **settings,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1].split("/v1/")[0]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
