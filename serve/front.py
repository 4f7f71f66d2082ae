"""HAProxy in front of the replicas: TLS, limits, slow senders, errors as problem+json. Nothing of it needs Ray.

    python serve/front.py --port 8443 --tls-cert server.pem --rate-limit 50
    python serve/front.py --print > haproxy.cfg

serve/start.py runs it by itself. Run it alone on further nodes of a cluster, or write its configuration for an HAProxy
(2.8 or later) of your own.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, Literal

import tyro

from bintally.cli import readable_errors
from bintally.errors import ConfigError
from serve.front_problems import MAX_HEADER_BYTES, PROBLEMS, RETRIED

TIMEOUT: Final = "x-request-timeout-seconds"
CARRIED_TIMEOUT: Final = "x-bintally-timeout-seconds"
"""So the header above is called on its way through Ray, which would heed it; serve/app.py renames it."""
LOG_FD: Final = 9
"""Where HAProxy writes its log, if serve/front_process.py runs it."""
LOOK_AT_REPLICAS_S: Final = 0.5
_ONE_PHOTO: Final = ("/v1/count", "/v1/verify")


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontConfig:
    """Where the front listens, where its replicas are, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine."""
    port: int = 8000
    replica_host: str = "127.0.0.1"
    first_replica_port: int = 30_000
    """The replicas listen on some of the ports from here on, as RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT says."""
    num_replica_ports: int = 16
    """So many ports are tried; with replicas that end and start again, twice as many as replicas or more."""
    engine: Literal["ray", "local"] = "ray"
    """What the replicas are: Ray Serve's, or processes of serve/start.py --engine local."""
    tls_cert: Path | None = None
    """PEM file with certificate chain and key; with it the port speaks HTTPS, TLS 1.2 or later."""
    rate_limit: int | None = None
    """Requests per second of one client address, above which it is told to wait (429)."""
    max_body_bytes: int = 14_000_000
    """Of one photo; base64 takes four bytes for three. The server itself looks closer."""
    max_batch_bytes: int = 140_000_000
    """Of any other body."""
    buffered_bytes: int = 262_144
    """A replica hears of a request when its body, or so much of it, is here; slow senders hold that memory each."""
    arrive_s: int = 10
    """Headers, and again the buffered part of the body, must have arrived after so many seconds."""
    answer_s: int = 30
    """A replica may be silent for so long."""
    queue_s: int = 5
    """A request waits so long for a replica with room."""
    keep_alive_s: int = 60
    """An idle connection of a client is kept for so long."""
    max_connections: int = 2_000
    """Of clients; others wait in the system's backlog."""
    max_per_replica: int = 1_000
    """Requests that one replica holds at once, at most, with bodies of which the rest still comes. It refuses earlier
    what it has no room for, and takes no more than that (serve.app.MAX_ONGOING_REQUESTS)."""
    num_threads: int = 1
    """One thread moves thousands of photos per second."""

    def __post_init__(self) -> None:
        limits = ("max_body_bytes", "max_batch_bytes", "arrive_s", "answer_s", "queue_s", "max_connections")
        for name in ("port", "first_replica_port", "num_replica_ports", *limits):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if max(self.port, self.first_replica_port + self.num_replica_ports - 1) > 65_535:
            raise ConfigError("port and first_replica_port + num_replica_ports must stay below 65536")
        if self.rate_limit is not None and self.rate_limit <= 0:
            raise ConfigError(f"rate_limit must be above 0, not {self.rate_limit}; leave it out for none")
        if self.buffered_bytes < 2 * MAX_HEADER_BYTES:
            raise ConfigError(f"buffered_bytes must be {2 * MAX_HEADER_BYTES} or more, not {self.buffered_bytes}")
        for text in (self.host, self.replica_host, str(self.tls_cert or "x")):
            if not text or any(character.isspace() or character in "\"'\\#" for character in text):
                raise ConfigError(f"{text!r} cannot stand in HAProxy's configuration; it has spaces, quotes, \\ or #")

    @property
    def replica_ports(self) -> range:
        """All ports on which a replica may listen."""
        return range(self.first_replica_port, self.first_replica_port + self.num_replica_ports)

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"{'https' if self.tls_cert else 'http'}://{_bracketed(self.host)}:{self.port}"


def config_text(config: FrontConfig, admin_socket: Path | None = None) -> str:
    """HAProxy's configuration file.

    Args:
        config: what it should do.
        admin_socket: unix socket by which a new process takes over the listening ports of an old one, for an HAProxy
            that serve/front_process.py runs; None for any other.
    """
    return "\n".join([*_global(config, admin_socket), *_defaults(config), *_frontend(config), *_backend(config), ""])


def _global(config: FrontConfig, admin_socket: Path | None) -> list[str]:
    socket = [f"    stats socket {admin_socket} mode 600 level admin expose-fd listeners"] if admin_socket else []
    log = f"fd@{LOG_FD}" if admin_socket else "stderr"
    return [
        "# Written by serve/front.py.",
        "global",
        f"    log {log} format raw local0",
        f"    maxconn {config.max_connections}",
        f"    nbthread {config.num_threads}",
        f"    tune.bufsize {config.buffered_bytes}",
        "    ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets",
        # Headers are limited by their bytes, with an answer of ours; too many of them would get a line of HTML.
        f"    tune.http.maxhdr {MAX_HEADER_BYTES // 4}",
        *socket,
    ]


def _defaults(config: FrontConfig) -> list[str]:
    errors = [
        f"    http-error status {status} {_problem(status)}"
        for status in PROBLEMS
        if status != HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE  # HAProxy has no default for it
    ]
    return [
        "defaults",
        "    mode http",
        "    option dontlognull  # nor connections without a request",
        "    option dontlog-normal  # the replicas log what they answer; here only what went wrong",
        f"    log-format '{_log_line()}'",
        "    timeout connect 2s",
        "    timeout check 5s  # a busy replica answers late, and is well",
        f"    timeout client {config.answer_s}s",
        f"    timeout server {config.answer_s}s",
        f"    timeout queue {config.queue_s}s",
        f"    timeout http-request {config.arrive_s}s",
        f"    timeout http-keep-alive {config.keep_alive_s}s",
        # Only what no replica has seen goes to another one: a photo that ends a replica must not end them all. Just
        # after the start all ports count as up, so there are as many tries as ports.
        f"    retries {config.num_replica_ports}",
        "    option redispatch 1",
        "    retry-on conn-failure",
        "    option abortonclose  # whose client has gone is cancelled",
        *errors,
    ]


def _frontend(config: FrontConfig) -> list[str]:
    # No h2: its streams are reset when they are refused before their body has come, and the client never learns why.
    tls = f" ssl crt {config.tls_cert} alpn http/1.1" if config.tls_cert else ""
    return [
        "frontend clients",
        f"    bind {_bracketed(config.host)}:{config.port}{tls}",
        f"    maxconn {config.max_connections}",
        "    log global  # and none of the backend, which would tell of each port without a replica",
        "    http-request set-var(txn.id) uuid()",
        "    acl has_id req.hdr(x-request-id) -m reg ^[A-Za-z0-9._-]{1,64}$",
        "    http-request set-var(txn.id) req.hdr(x-request-id) if has_id",
        "    http-request set-header X-Request-ID %[var(txn.id)]",
        "    http-request set-header X-Forwarded-For %[src]  # whatever a client says of itself",
        "    http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]",
        *_for_ray(config),
        "    http-request deny deny_status 404 if { path,url_dec -m beg /-/ }  # Ray Serve's own pages",
        f"    http-request return status 431 {_problem(431)} if {{ req.hdrs,length gt {MAX_HEADER_BYTES} }}",
        "    # Before the body is read; then the body is waited for here, where that costs a replica nothing.",
        f"    acl one_photo path {' '.join(_ONE_PHOTO)}",
        f"    acl large_photo req.hdr(content-length) -m int gt {config.max_body_bytes}",
        f"    acl large_batch req.hdr(content-length) -m int gt {config.max_batch_bytes}",
        "    http-request deny deny_status 413 if one_photo large_photo",
        "    http-request deny deny_status 413 if !one_photo large_batch",
        f"    http-request wait-for-body time {config.arrive_s}s if METH_POST",
        *_rate_limit(config),  # now, since a client that still sends its body may never read the answer
        "    http-response set-header X-Request-ID %[var(txn.id)]  # Ray adds a second one",
        f"    http-response set-header Retry-After 1 if {{ status {HTTPStatus.SERVICE_UNAVAILABLE} }}",
        "    default_backend replicas",
    ]


def _for_ray(config: FrontConfig) -> list[str]:
    """Ray Serve heeds some headers by itself: it would answer 408 in plain text, or never cancel."""
    if config.engine != "ray":
        return []
    return [
        f"    http-request set-header {CARRIED_TIMEOUT} %[req.hdr({TIMEOUT})] if {{ req.hdr({TIMEOUT}) -m found }}",
        f"    http-request del-header {TIMEOUT}",
        "    http-request del-header X-Request-Disconnect-Disabled",
    ]


def _rate_limit(config: FrontConfig) -> list[str]:
    if config.rate_limit is None:
        return []
    return [
        "    stick-table type ipv6 size 100k expire 10s store gpc0_rate(1s)",
        "    acl probe path /healthz /readyz",
        "    http-request track-sc0 src unless probe",
        f"    http-request deny deny_status 429 if !probe {{ sc_gpc0_rate(0) ge {config.rate_limit} }}",
        "    http-request sc-inc-gpc0(0) unless probe  # refused ones do not count, so that some pass all the time",
    ]


def _backend(config: FrontConfig) -> list[str]:
    servers = [f"    server replica-{port} {_bracketed(config.replica_host)}:{port}" for port in config.replica_ports]
    health_path = "/-/healthz" if config.engine == "ray" else "/healthz"  # Ray's is 503 once a replica is to end
    period = f"{LOOK_AT_REPLICAS_S * 1000:.0f}ms"
    return [
        "backend replicas",
        "    balance leastconn",
        # When a replica ends on a kept connection, HAProxy tells the client nothing but closes, as if between requests.
        "    option http-server-close",
        "    option httpchk",
        f"    http-check send meth GET uri {health_path} ver HTTP/1.1 hdr Host front",
        "    http-check expect status 200",
        f"    default-server check inter {period} fastinter 250ms downinter {period} fall 2 rise 1",
        f"    default-server maxconn {config.max_per_replica} observe layer4 error-limit 1 on-error mark-down",
        *servers,
    ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _problem(status: int) -> str:
    """The answer of a status, as HAProxy's `return` and `http-error` take it; fields as of serve.problems.Problem."""
    code, detail = PROBLEMS[status]
    body = json.dumps(
        {
            "type": f"urn:bintally:problem:{code}",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "code": code,
            "request_id": "%[var(txn.id)]",
        }
    )
    retry = " hdr Retry-After 1" if status in RETRIED else ""
    return f"content-type application/problem+json lf-string '{body}' hdr X-Request-ID %[var(txn.id)]{retry}"


def _log_line() -> str:
    """A line of JSON, with the fields of the server's own log."""
    fields = {"level": "warning", "logger": "bintally.front", "message": "%{+E}HM %ST", "request_id": "%[var(txn.id)]"}
    line = json.dumps(fields | {"server": "%s", "state": "%ts"})
    return line[:-1] + ', "status": %ST, "ms": %Ta}'


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontArgs:
    """Run HAProxy in front of replicas, and start it again when it dies."""

    print: bool = False
    """Only print HAProxy's configuration."""
    front: tyro.conf.OmitArgPrefixes[FrontConfig]


def main() -> None:
    """Parse, then print or run."""
    with readable_errors():
        args = tyro.cli(FrontArgs, description=__doc__)
        if args.print:
            print(config_text(args.front), end="")
            return
        from serve.front_process import run_until_stopped

        run_until_stopped(args.front)


if __name__ == "__main__":
    main()
