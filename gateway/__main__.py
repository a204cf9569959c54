"""Entry point of the command `gateway` and of `python -m gateway`."""

import gc

# Imports create no garbage, and collecting takes a sixth of the startup time. The command enables the collector.
gc.disable()

from gateway.cli import main  # noqa: E402 - the collector must be off during the imports

if __name__ == "__main__":
    main()
