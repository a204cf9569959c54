"""The private PostgreSQL server that is started without `GATEWAY_DATABASE_URL`."""
