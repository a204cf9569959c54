"""Authentication of a bearer token as a `Caller`."""
