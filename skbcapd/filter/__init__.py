"""Packet filters: compiled by libpcap, and translated to C for bpf/."""
