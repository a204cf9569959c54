"""Encounters: record, read, change. Start reading at `record.py`."""
