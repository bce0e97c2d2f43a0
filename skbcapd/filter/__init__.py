"""Packet filters: libpcap's compiler, and its programs as C text for bpf/."""
