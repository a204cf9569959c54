"""The application logic behind REST and GraphQL: plain async functions without HTTP or GraphQL types."""
