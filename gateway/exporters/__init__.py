"""Exporters of encounters and patients to files."""
