"""Imports of patients and encounters from CSV and JSON Lines."""
