"""HTTP and WebSocket protocols under uvicorn."""
