"""Who a packet belongs to: processes, sockets and network namespaces, as /proc and sock_diag tell of them."""
