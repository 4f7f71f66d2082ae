"""What the front lets pass, and what a replica learns of it."""

import re
import socket
import ssl
from collections.abc import Callable
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

StartReplica = Callable[..., HTTPServer]
Front = Any  # of conftest.py
StartFront = Callable[..., Front]


def test_a_request_reaches_the_one_replica_that_listens(replica: StartReplica, front: StartFront) -> None:
    replica(2)  # the other ports count as up until their first check
    running = front()
    for _ in range(10):
        reply = running.ask("/v1/count?model=a", bytes(300_000))
        assert (reply.status, reply.json["bytes"]) == (200, 300_000)


def test_the_replica_learns_who_asks_whatever_the_client_says(usual: Front) -> None:
    headers = usual.ask(X_Request_ID="mine-1", X_Forwarded_For="6.6.6.6", X_Forwarded_Proto="https").json["headers"]
    assert headers["x-request-id"] == "mine-1"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"


def test_headers_that_ray_would_heed_pass_it_by(usual: Front) -> None:
    given = {"X_Request_Timeout_Seconds": "0.5", "X_Request_Disconnect_Disabled": "?1"}
    headers = usual.ask(**given).json["headers"]
    assert headers["x-bintally-timeout-seconds"] == "0.5"
    assert not {"x-request-timeout-seconds", "x-request-disconnect-disabled"} & headers.keys()


def test_a_server_without_ray_gets_them_as_they_are(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    headers = front(engine="local").ask(X_Request_Timeout_Seconds="0.5").json["headers"]
    assert headers["x-request-timeout-seconds"] == "0.5"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65])
def test_a_request_without_a_usable_id_gets_one(usual: Front, given: str) -> None:
    ids = {usual.ask(X_Request_ID=given).json["headers"]["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f-]{36}", one) for one in ids)


def test_tls_is_1_2_or_later(replica: StartReplica, front: StartFront, certificate: Path) -> None:
    replica(0)
    running = front(tls_cert=certificate)

    def connect(most: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=str(certificate))
        context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, most
        context.set_ciphers("ALL:@SECLEVEL=0")  # else the client itself refuses the old version
        client: socket.socket = running.connect()
        with client, context.wrap_socket(client, server_hostname="localhost") as wrapped:
            wrapped.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert b'"x-forwarded-proto": "https"' in b"".join(iter(lambda: wrapped.recv(65_536), b""))
            return wrapped.version()

    assert connect(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert connect(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.warns(DeprecationWarning, match="TLSv1_1"), pytest.raises(ssl.SSLError):
        connect(ssl.TLSVersion.TLSv1_1)


def test_http_2_is_not_spoken(front: StartFront, certificate: Path) -> None:
    """A refusal of a body that still comes would reset its stream, and nobody would learn why."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    client: socket.socket = front(tls_cert=certificate).connect()
    with client, context.wrap_socket(client, server_hostname="localhost") as wrapped:
        assert wrapped.selected_alpn_protocol() == "http/1.1"
