"""Around every request: its id, the token, one line in the log, and an end to work whose client has gone."""

import asyncio
import hmac
import re
import time
import uuid
from contextlib import suppress
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import Refusal, answer
from serve.service import CounterService
from serve.telemetry import log_request, server_log

REQUEST_ID: Final = "x-request-id"
OPEN: Final = ("/", "/healthz", "/readyz", "/openapi.json", "/page/")
"""Paths that need no token; those that end with / and are longer open all below them."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_GONE: Final = 499  # what the field logs when there was nobody left to answer


class Watched:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, service: CounterService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = Headers(scope=scope)
        asked = headers.get(REQUEST_ID, "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = _CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        async def refuse(code: str, message: str) -> None:
            state["code"] = code
            await answer(Refusal(code, message), request_id)(scope, receive, send_with_id)

        try:
            if self._may_pass(scope, headers):
                await run_while_connected(self._app, scope, receive, send_with_id)
            else:
                await refuse("unauthorized", "send a token: Authorization: Bearer ...")
        except Exception:  # noqa: BLE001  # the last place that can answer
            server_log.exception("a bug met request %s", request_id, extra={"fields": {"request_id": request_id}})
            if status == _CLIENT_GONE:  # no answer has begun
                await refuse("internal_error", "the server failed; its log tells more by the request id")
        finally:
            self._tell(scope, state, status, time.perf_counter() - begun)

    def _may_pass(self, scope: Scope, headers: Headers) -> bool:
        tokens = self._service.tokens
        if not tokens or is_open(scope["path"]) or scope["method"] == "OPTIONS":
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        secret = given.strip().encode()
        matches = [hmac.compare_digest(secret, token) for token in tokens]  # of all, so that time tells nothing
        return scheme.lower() == "bearer" and any(matches)

    def _tell(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        instruments = self._service.instruments
        instruments.requests.labels(scope["method"], route, str(status)).inc()
        instruments.request_seconds.labels(route).observe(seconds)
        if "code" in state:
            instruments.refused.labels(state["code"]).inc()
        fields = {"request_id": state["request_id"], "method": scope["method"], "route": route, "status": status}
        fields["ms"] = round(seconds * 1000, 1)
        fields |= {name: state[name] for name in ("code", "model", "version", "count", "bin_id") if name in state}
        log_request(fields)


def is_open(path: str) -> bool:
    """Whether a path needs no token."""
    return path in OPEN or any(path.startswith(one) for one in OPEN if one.endswith("/") and one != "/")


async def run_while_connected(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the application, and cancel it when the client goes after its body has come."""
    body_is_read, gone = asyncio.Event(), asyncio.Event()

    async def receive_body() -> Message:
        if body_is_read.is_set():
            await gone.wait()
            return {"type": "http.disconnect"}
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            body_is_read.set()
        return message

    async def watch() -> None:
        await body_is_read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    work = asyncio.ensure_future(app(scope, receive_body, send))
    watcher = asyncio.ensure_future(watch())
    try:
        await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        with suppress(asyncio.CancelledError):
            await work
    finally:
        watcher.cancel()
        work.cancel()
