"""Processes, sockets, containers and network namespaces, from /proc and sock_diag."""
