"""Run a private PostgreSQL until killed, for the tests that kill a whole gateway."""

import signal
import sys
from pathlib import Path

from gateway.embedded_postgres.cluster import PrivatePostgres

server = PrivatePostgres(Path(sys.argv[1]))
server.start()
print(server.url(), flush=True)
signal.pause()
