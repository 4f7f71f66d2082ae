"""The route that audits: a record table goes in, a recount queue comes back as lines of JSON."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Final

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Message, Send

from bintally.errors import BinTallyError
from serve.audit import Audit, Auditor
from serve.audit_schema import AuditError, AuditLine
from serve.audit_table import CSV, MAX_TABLE_BYTES, Folder, parse_table, table_body
from serve.bodies import JSON, media_type_of
from serve.count_routes import ModelQuery
from serve.problems import describe_problems, problem_of, refusal_of
from serve.service import CounterService
from serve.telemetry import server_log

TAKE_WITHIN_S: Final = 60.0  # a client that reads no further would hold its audit's place for ever
LINES_PER_CHUNK: Final = 100  # some milliseconds of work, after which other requests have their turn

PROBLEMS: Final = (
    *("audit_is_off", "unknown_model", "unauthorized", "empty_body", "incomplete_body", "invalid_json", "body_timeout"),
    *("body_too_large", "unsupported_media_type", "invalid_request", "internal_error", "source_unreachable"),
    "overloaded",
)

PrefixQuery = Annotated[
    Folder | None,
    Query(description="A folder whose photos are held against the records, both ways; JSON may hold it instead."),
]


class LineOfJson(JSONResponse):
    """Stands for `Lines` in OpenAPI, which has no word for a stream: it describes one line."""

    media_type = "application/x-ndjson"


class Lines(StreamingResponse):
    """Lines of JSON as they come. Whatever ends the response closes their generator, and so the work behind it."""

    media_type = LineOfJson.media_type

    async def stream_response(self, send: Send) -> None:
        """Send all lines, as long as the client takes them."""
        assert isinstance(self.body_iterator, AsyncGenerator)

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(TAKE_WITHIN_S):
                await send(message)

        try:
            async with aclosing(self.body_iterator):
                await super().stream_response(send_in_time)
        except TimeoutError:
            server_log.warning("a client took no line for %g s; the rest was not sent", TAKE_WITHIN_S)


def add_audit_routes(api: FastAPI, service: CounterService) -> None:
    """POST /v1/audit."""
    auditor = Auditor(service)

    @api.post(
        "/v1/audit",
        response_model=AuditLine,
        response_class=LineOfJson,
        response_description="One JSON object per line.",
        openapi_extra=table_body(),
        responses=describe_problems(*PROBLEMS),
        tags=["audit"],
    )
    async def audit(request: Request, prefix: PrefixQuery = None, model: ModelQuery = None) -> Response:
        """Count the photos of a record table, and rank the bins for a recount.

        The answer has a JSON object per line: `progress` while photos are counted, then a `bin` for each bin, rank 1
        first, then one `summary`. A last line `error` ends an audit that failed on the way.
        """
        auditor.check_room()
        kind = media_type_of(request.headers, JSON, CSV)
        async with service.bodies.read(request, max_bytes=MAX_TABLE_BYTES) as body:
            table = await asyncio.to_thread(parse_table, body, kind, prefix)
        begun = await auditor.begin(table, model, request.state.request_id)
        request.state.model, request.state.version = begun.name, begun.predictor.version  # for the log
        return Lines(encode(begun))


async def encode(audit: Audit) -> AsyncGenerator[bytes]:
    """The lines of an audit as bytes, several of them together where they come at once."""
    async with aclosing(tell_errors(audit)) as lines:
        chunk: list[str] = []
        async for line in lines:
            chunk.append(line.model_dump_json())
            if line.kind != "bin" or len(chunk) >= LINES_PER_CHUNK:
                yield ("\n".join(chunk) + "\n").encode()
                chunk.clear()
                await asyncio.sleep(0)


async def tell_errors(audit: Audit) -> AsyncGenerator[AuditLine]:
    """The lines of an audit; what it fails of is its last one, since the status of the answer is sent already."""
    async with aclosing(audit.lines()) as lines:
        try:
            async for line in lines:
                yield line
        except Exception as error:  # noqa: BLE001  # a bug, too, is told
            known = isinstance(error, BinTallyError)
            server_log.error("audit %s failed: %s", audit.request_id, error, exc_info=None if known else error)
            yield AuditError(problem=problem_of(refusal_of(error), audit.request_id))
