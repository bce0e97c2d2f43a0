"""Captures of many hosts: the index of a capture file."""
