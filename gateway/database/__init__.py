"""PostgreSQL: connections, sessions, batching of statements, migrations and roles."""
