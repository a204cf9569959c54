"""Authentication: a bearer token becomes a `Caller`."""
