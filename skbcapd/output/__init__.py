"""Outputs: capture files with rotation and retention, memory, a terminal."""
