"""Rate limits of clients and of addresses."""
