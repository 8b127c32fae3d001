"""A server that sends each client its source address, for deploy/demo.sh."""

from __future__ import annotations

import socket
import sys


def serve(address: str, port: int) -> None:
    with socket.create_server((address, port)) as server:
        while True:
            connection, peer = server.accept()
            with connection:
                connection.sendall(f"{peer[0]}\n".encode())


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
