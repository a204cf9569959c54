"""The audit log of the process: buffer, chain job and verification."""
