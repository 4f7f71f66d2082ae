"""Errors over HTTP: problem+json (RFC 9457) with a stable code and the id of the request."""

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from bintally.errors import CheckpointError, ImageError, SourceError
from serve.schema import Problem

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1

STATUS_OF: Final = {
    "empty_body": 400,
    "incomplete_body": 400,
    "truncated_image": 400,
    "invalid_json": 400,
    "invalid_form": 400,
    "unauthorized": 401,
    "unknown_model": 404,
    "audit_is_off": 404,
    "no_photo": 404,
    "no_record": 404,
    "not_acceptable": 406,
    "body_timeout": 408,
    "absurd_dimensions": 413,
    "body_too_large": 413,
    "not_an_image": 415,
    "unsupported_media_type": 415,
    "invalid_request": 422,
    "internal_error": 500,
    "source_unreachable": 502,
    "overloaded": 503,
    "model_unhealthy": 503,
    "deadline_exceeded": 504,
}
"""Status of every code in an error answer; the reasons of ImageError are among the codes."""


_HEADERS: Final[dict[int, dict[str, str]]] = {
    401: {"WWW-Authenticate": "Bearer"},
    503: {"Retry-After": str(RETRY_AFTER_S)},
}


class Refusal(HTTPException):
    """A request, or a photo of a batch, that gets no count."""

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        status = status or STATUS_OF[code]
        super().__init__(status, message, dict(_HEADERS.get(status, {})))
        self.code = code


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an error; of a bug, nothing but that there was one."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ImageError):
        return Refusal(error.reason, str(error).removeprefix(f"{error.reason}: "))
    if isinstance(error, SourceError):
        return Refusal("source_unreachable", str(error))
    if isinstance(error, CheckpointError):
        return Refusal("model_unhealthy", str(error))
    return Refusal("internal_error", "the server failed; its log tells more by the request id")


def problem_of(refusal: Refusal, request_id: str) -> Problem:
    """A refusal as a body."""
    return Problem(
        type=f"urn:bintally:problem:{refusal.code}",
        title=HTTPStatus(refusal.status_code).phrase,
        status=refusal.status_code,
        detail=refusal.detail,
        code=refusal.code,
        request_id=request_id,
    )


def describe_problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of the error answers with these codes."""
    by_status: dict[int, list[str]] = {}
    for code in sorted(codes, key=lambda one: STATUS_OF[one]):
        by_status.setdefault(STATUS_OF[code], []).append(code)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": f"{HTTPStatus(status).phrase}: {', '.join(of)}", "content": content}
        for status, of in by_status.items()
    }


def add_problem_handlers(api: FastAPI) -> None:
    """Answer every error as a Problem."""
    for kind in (ImageError, SourceError, CheckpointError, Refusal):
        api.add_exception_handler(kind, _answer_error)
    api.add_exception_handler(RequestValidationError, _answer_invalid)
    api.add_exception_handler(HTTPException, _answer_http_error)


def answer(refusal: Refusal, request_id: str) -> JSONResponse:
    """A refusal as a response."""
    body = problem_of(refusal, request_id).model_dump()
    return JSONResponse(body, refusal.status_code, dict(refusal.headers or {}), MEDIA_TYPE)


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    refusal = refusal_of(error)
    request.state.code = refusal.code
    return answer(refusal, request.state.request_id)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    return await _answer_error(request, Refusal("invalid_request", f"{where}: {first['msg']}"))


async def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """Unknown routes and methods, which the framework refuses."""
    assert isinstance(error, HTTPException)
    refusal = Refusal(HTTPStatus(error.status_code).name.lower(), error.detail, error.status_code)
    refusal.headers = error.headers
    return await _answer_error(request, refusal)
