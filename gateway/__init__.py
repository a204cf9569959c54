"""The process: what exists once per running server. Imports every room; no room imports it."""
