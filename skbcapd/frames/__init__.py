"""Frames: their headers."""
