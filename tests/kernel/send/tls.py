"""Speaks HTTP over TLS: `python -m tests.kernel.send.tls VERSION --port N --path PATH --pair DIRECTORY --keys FILE`.

A client and a server on the loopback interface, in one process. The client writes its key log.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import subprocess
import threading
from pathlib import Path

ADDRESS = "127.0.0.1"
GUARD_S = 600  # a guard only: the test that started us gives up long before


def pair(directory: Path) -> tuple[Path, Path]:
    """The certificate of the server and its key; made by openssl."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    if not certificate.exists():
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
        subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


def serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Answer one request."""
    connection, _ = listener.accept()
    with context.wrap_socket(connection, server_side=True) as secured:
        secured.recv(1 << 16)
        secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def main() -> None:
    """One request and its answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("version", choices=[version.name for version in ssl.TLSVersion])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--pair", type=Path, required=True)
    parser.add_argument("--keys", required=True)
    args = parser.parse_args()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*pair(args.pair))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.minimum_version = client.maximum_version = ssl.TLSVersion[args.version]
    client.keylog_filename = args.keys
    with socket.create_server((ADDRESS, args.port)) as listener:
        listener.settimeout(GUARD_S)
        thread = threading.Thread(target=serve, args=(listener, server))
        thread.start()
        with client.wrap_socket(socket.create_connection((ADDRESS, args.port), GUARD_S)) as secured:
            secured.sendall(f"GET {args.path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            answer = b""
            while not answer.endswith(b"ok"):
                answer += secured.recv(1 << 16)
        thread.join()


if __name__ == "__main__":
    main()
