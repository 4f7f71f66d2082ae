"""Ports of the loopback that are free."""

import os
import socket

from bintally.errors import RunError


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports(count: int) -> int:
    """The first of so many ports of the loopback in a row that nobody listens at now.

    Raises:
        RunError: there are none.
    """
    # Below the range that the system gives to outgoing connections; each process begins somewhere else.
    for first in range(20_000 + os.getpid() * 64 % 10_000, 32_000 - count, count):
        probes = [socket.socket() for _ in range(count)]
        try:
            for place, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + place))
        except OSError:
            continue
        else:
            return first
        finally:
            for probe in probes:
                probe.close()
    raise RunError(f"there are no {count} free ports in a row below 32000")
