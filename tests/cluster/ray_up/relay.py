"""Connects stdin and stdout, which are one socket, with a port of this node's loopback."""

import socket
import sys
import threading


def pump(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source ends, then say so to the target."""
    while data := source.recv(1 << 16):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


client, server = socket.socket(fileno=0), socket.create_connection(("127.0.0.1", int(sys.argv[1])))
answering = threading.Thread(target=pump, args=(server, client))
answering.start()
pump(client, server)
answering.join()
