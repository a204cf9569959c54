"""The command `gateway`, as `python -m gateway` too."""

import gc

# Nothing that is imported is garbage, and looking for some takes a tenth of a start. `main` goes on with it.
gc.disable()

from gateway.cli import main  # noqa: E402 - the imports are what it is off for

if __name__ == "__main__":
    main()
