"""Frames: their headers, and packets as lines of text."""
