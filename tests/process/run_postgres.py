"""Own a private PostgreSQL until killed, for the tests in which a whole gateway dies."""

import signal
import sys
from pathlib import Path

from gateway.embedded_postgres.cluster import PrivatePostgres

server = PrivatePostgres(Path(sys.argv[1]))
server.start()
print(server.url(), flush=True)
signal.pause()
