"""What goes over HTTP: bodies and their limits, answers, errors."""

import asyncio
from http import HTTPStatus
from typing import Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bintally.errors import CheckpointError, ImageError

MAX_BODY_BYTES: Final = 10_000_000
PHOTO_TYPES: Final = ("image/jpeg", "image/png", "application/octet-stream")

STATUS_OF: Final = {
    "empty_body": 400,
    "incomplete_body": 400,
    "truncated_image": 400,
    "body_timeout": 408,
    "absurd_dimensions": 413,
    "body_too_large": 413,
    "not_an_image": 415,
    "unsupported_media_type": 415,
    "internal_error": 500,
    "model_unhealthy": 503,
}
"""Status of every code in an error answer; the reasons of ImageError are among the codes."""


class CountAnswer(BaseModel):
    """The count of one photo."""

    count: int
    """The most probable count."""
    probabilities: dict[str, float]
    """Of each count "0".."max_count"; they add up to 1."""
    model_version: str
    """Which weights answered."""


class Health(BaseModel):
    """The model has just answered a probe photo."""

    status: Literal["ok"] = "ok"
    model_version: str


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    """For programs, stable; for example `truncated_image`."""
    message: str
    """For people."""


class ErrorAnswer(BaseModel):
    """The body of every answer that is not 200."""

    error: ErrorDetail


class Refusal(HTTPException):
    """A request that is not answered with a count."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(STATUS_OF[code], message)
        self.code = code


PHOTO_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": f"The bytes of one JPEG or PNG, {MAX_BODY_BYTES // 10**6} MB at most. The bytes themselves tell"
        " which; the content type is a hint.",
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in PHOTO_TYPES},
    }
}


def describe_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of the error answers with these statuses."""
    codes = {status: [code for code, of in STATUS_OF.items() if of == status] for status in statuses}
    answers: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": f"{HTTPStatus(status).phrase}: {', '.join(codes[status])}"}
        for status in statuses
    }
    for status in {500, 503} & set(
        statuses
    ):  # Ray's proxy answers these itself when it is overloaded or a replica dies
        answers[status]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return answers


def check_photo_headers(headers: Headers) -> None:
    """Refuse what is declared as something else than the bytes of a photo.

    Raises:
        Refusal: with code `unsupported_media_type`.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in PHOTO_TYPES:
        raise Refusal("unsupported_media_type", f"send a photo with content type {' or '.join(PHOTO_TYPES)}")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal("unsupported_media_type", "send the photo without content encoding")


async def read_body(request: Request, *, timeout_s: float) -> bytes:
    """Read a body, but never more than one chunk past the limit, nor longer than `timeout_s`.

    Raises:
        Refusal: the body is too large, too slow, empty or broken off.
    """
    too_large = Refusal("body_too_large", f"the body may hold {MAX_BODY_BYTES} bytes at most")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise Refusal("body_timeout", f"the body did not arrive within {timeout_s:g} s") from None
    except ClientDisconnect:
        raise Refusal("incomplete_body", "the body broke off") from None
    if not body:
        raise Refusal("empty_body", "send a photo as the body")
    return bytes(body)


def add_error_handlers(api: FastAPI) -> None:
    """Answer every error as an ErrorAnswer."""
    api.add_exception_handler(HTTPException, _answer_http_error)
    api.add_exception_handler(ImageError, _answer_image_error)
    api.add_exception_handler(CheckpointError, _answer_checkpoint_error)
    api.add_exception_handler(Exception, _answer_bug)


async def _answer_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = error.code if isinstance(error, Refusal) else HTTPStatus(error.status_code).name.lower()
    return _answer(error.status_code, code, error.detail, dict(error.headers or {}))


async def _answer_image_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ImageError)
    return _answer(STATUS_OF[error.reason], error.reason, str(error).removeprefix(f"{error.reason}: "))


async def _answer_checkpoint_error(_: Request, error: Exception) -> JSONResponse:
    return _answer(STATUS_OF["model_unhealthy"], "model_unhealthy", str(error))


async def _answer_bug(_: Request, __: Exception) -> JSONResponse:
    return _answer(500, "internal_error", "the server failed; its log tells more")  # the log has the traceback


def _answer(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    answer = ErrorAnswer(error=ErrorDetail(code=code, message=message))
    return JSONResponse(answer.model_dump(), status, headers)
