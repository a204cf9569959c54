"""ASGI middleware, the outermost first in `gateway/app.py`."""
