"""Capture files read back: packets added up, files split by process."""
