"""Routes that count photos: one, several, and one beside its record."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import FastAPI, Header, Query, Request, Response
from pydantic import BaseModel

from serve import bodies
from serve.bodies import FORM, JSON, MAX_EXPECTED, MAX_PHOTOS, PHOTO_TYPES, photo_body
from serve.problems import Refusal, describe_problems, problem_of, refusal_of
from serve.schema import BatchAnswer, BatchItem, CountAnswer, VerifyAnswer, count_answer, verify_answer
from serve.service import Answer, CounterService

JSON_OVERHEAD: Final = 1.4  # base64 takes four bytes for three, and the other fields a little
BATCH_LIMIT: Final = 10  # times the limit of one photo

BODY_PROBLEMS: Final = (
    *("empty_body", "incomplete_body", "invalid_form", "invalid_json", "unauthorized", "unknown_model", "body_timeout"),
    *("body_too_large", "unsupported_media_type", "invalid_request", "internal_error", "overloaded", "model_unhealthy"),
    "deadline_exceeded",
)
PHOTO_PROBLEMS: Final = (*BODY_PROBLEMS, "truncated_image", "absurd_dimensions", "not_an_image")

ModelQuery = Annotated[str | None, Query(description="Name of a model; GET /v1/models lists them.")]
TimeoutHeader = Annotated[
    float | None,
    Header(alias="X-Request-Timeout-Seconds", gt=0, description="Answer within so many seconds; 504 if not."),
]
ExpectedQuery = Annotated[
    int | None, Query(ge=0, le=MAX_EXPECTED, description="What the record says; needed beside a bare photo.")
]
BinQuery = Annotated[str | None, Query(min_length=1, max_length=128, description="Comes back in answer and log.")]


@dataclass(frozen=True, slots=True)
class Record:
    """A photo and what the record says of its bin."""

    photo: bytes
    expected_quantity: int
    bin_id: str | None


def add_count_routes(api: FastAPI, service: CounterService) -> None:
    """POST /v1/count, /v1/count:batch and /v1/verify."""

    @api.post(
        "/v1/count",
        response_model=CountAnswer,
        openapi_extra=photo_body(bodies.PhotoJson),
        responses=describe_problems(*PHOTO_PROBLEMS),
        tags=["count"],
    )
    async def count(request: Request, model: ModelQuery = None, timeout_s: TimeoutHeader = None) -> Response:
        """Count the items in a photo of a bin."""
        service.check_room()
        async with read_photo_body(request, service) as (body, kind), service.deadline(timeout_s):
            photo = await photo_of(request, body, kind)
            answer = await service.count(photo, model, request.state.request_id)
        note(request, answer)
        return send(count_answer(answer, request.state.request_id))

    @api.post(
        "/v1/verify",
        response_model=VerifyAnswer,
        openapi_extra=photo_body(bodies.RecordJson),
        responses=describe_problems(*PHOTO_PROBLEMS),
        tags=["audit"],
    )
    async def verify(
        request: Request,
        expected_quantity: ExpectedQuery = None,
        bin_id: BinQuery = None,
        model: ModelQuery = None,
        timeout_s: TimeoutHeader = None,
    ) -> Response:
        """Tell whether a photo agrees with the expected quantity of its record."""
        service.check_room()
        async with read_photo_body(request, service) as (body, kind), service.deadline(timeout_s):
            record = await record_of(request, body, kind, expected_quantity, bin_id)
            answer = await service.count(record.photo, model, request.state.request_id)
        verdict = service.verify(answer, record.expected_quantity)
        note(request, answer, bin_id=record.bin_id)
        return send(verify_answer(answer, verdict, record.expected_quantity, record.bin_id, request.state.request_id))

    @api.post(
        "/v1/count:batch",
        response_model=BatchAnswer,
        openapi_extra=photo_body(bodies.PhotosJson, several=True),
        responses=describe_problems(*BODY_PROBLEMS),
        tags=["count"],
    )
    async def count_batch(request: Request, model: ModelQuery = None, timeout_s: TimeoutHeader = None) -> Response:
        """Count several photos; one that cannot be counted has a problem of its own."""
        service.check_room()
        kind = bodies.media_type_of(request.headers, FORM, JSON)
        limit = int(service.settings.max_body_bytes * BATCH_LIMIT * (JSON_OVERHEAD if kind == JSON else 1))
        request_id = request.state.request_id
        service.choose(model, request_id)
        async with service.bodies.read(request, max_bytes=limit) as body, service.deadline(timeout_s):
            photos = await photos_of(request, body, kind, service.settings.max_body_bytes)
            answers = await count_all(service, photos, model, request_id)
        items = [item_of(place, name, answer, request_id) for place, (name, answer) in enumerate(answers)]
        num_counted = sum(item.counted is not None for item in items)
        return send(
            BatchAnswer(
                num_counted=num_counted, num_failed=len(items) - num_counted, items=items, request_id=request_id
            )
        )


@asynccontextmanager
async def read_photo_body(request: Request, service: CounterService) -> AsyncIterator[tuple[bytes, str]]:
    """A body with one photo, and its media type, meanwhile.

    Raises:
        Refusal: it cannot be one.
    """
    kind = bodies.media_type_of(request.headers, *PHOTO_TYPES, FORM, JSON)
    limit = service.settings.max_body_bytes
    allowed = limit if kind in PHOTO_TYPES else int(limit * JSON_OVERHEAD)
    async with service.bodies.read(request, max_bytes=allowed) as body:
        yield body, kind


async def photo_of(request: Request, body: bytes, kind: str) -> bytes:
    """The photo of a body.

    Raises:
        Refusal: the form or the JSON is wrong.
    """
    if kind == JSON:
        return await bodies.parse_aside(photo_of_json, body)
    if kind == FORM:
        form = await bodies.parse_form(request.headers, body, max_photos=1)
        return (await bodies.photos_of_form(form))[0][1]
    return body


async def record_of(
    request: Request, body: bytes, kind: str, expected_quantity: int | None, bin_id: str | None
) -> Record:
    """The photo of a body with its record, which stands beside it in a form or JSON, or in the query.

    Raises:
        Refusal: something is missing or wrong.
    """
    if kind == JSON:
        return await bodies.parse_aside(record_of_json, body)
    if kind == FORM:
        form = await bodies.parse_form(request.headers, body, max_photos=1)
        return Record(*bodies.parse_record(form, (await bodies.photos_of_form(form))[0][1]))
    if expected_quantity is None:
        raise Refusal("invalid_request", "expected_quantity: name it in the query, as /v1/verify?expected_quantity=3")
    return Record(body, expected_quantity, bin_id)


async def photos_of(request: Request, body: bytes, kind: str, max_bytes: int) -> list[tuple[str, bytes | Refusal]]:
    """Name and bytes of each photo of a body, or why it is refused.

    Raises:
        Refusal: the form or the JSON is wrong.
    """
    if kind == JSON:
        named = await bodies.parse_aside(photos_of_json, body)
    else:
        form = await bodies.parse_form(request.headers, body, max_photos=MAX_PHOTOS)
        named = [
            (name, data or Refusal("empty_body", "the file is empty"))
            for name, data in await bodies.photos_of_form(form)
        ]
    too_large = Refusal("body_too_large", f"a photo may hold {max_bytes} bytes at most")
    return [(name, too_large if isinstance(data, bytes) and len(data) > max_bytes else data) for name, data in named]


def photo_of_json(body: bytes) -> bytes:
    """The photo of a body.

    Raises:
        Refusal: the JSON is wrong.
    """
    return bodies.decode_base64(bodies.parse_json(bodies.PhotoJson, body).image)


def record_of_json(body: bytes) -> Record:
    """The photo of a body with its record.

    Raises:
        Refusal: the JSON is wrong.
    """
    values = bodies.parse_json(bodies.RecordJson, body)
    return Record(bodies.decode_base64(values.image), values.expected_quantity, values.bin_id)


def photos_of_json(body: bytes) -> list[tuple[str, bytes | Refusal]]:
    """The bytes of each photo of a body, none of which has a name, or why it is refused.

    Raises:
        Refusal: the JSON is wrong.
    """
    return [("", decoded_or_refusal(image)) for image in bodies.parse_json(bodies.PhotosJson, body).images]


def decoded_or_refusal(image: str) -> bytes | Refusal:
    """The bytes of a photo in base64, or why there are none."""
    try:
        return bodies.decode_base64(image)
    except Refusal as refusal:
        return refusal


async def count_all(
    service: CounterService, photos: list[tuple[str, bytes | Refusal]], model: str | None, request_id: str
) -> list[tuple[str, Answer | Refusal]]:
    """Count photos, a batch of the engine at a time, so that one request does not fill the server."""
    room = asyncio.Semaphore(service.settings.max_batch_size)

    async def count(data: bytes | Refusal) -> Answer | Refusal:
        try:
            if isinstance(data, Refusal):
                raise data
            async with room:
                return await service.count(data, model, request_id)
        except Exception as error:  # noqa: BLE001  # whatever it is, the other photos keep their counts
            refusal = refusal_of(error)
            service.instruments.refused.labels(refusal.code).inc()
            return refusal

    answers = await asyncio.gather(*(count(data) for _, data in photos))
    return [(name, answer) for (name, _), answer in zip(photos, answers, strict=True)]


def item_of(index: int, name: str, answer: Answer | Refusal, request_id: str) -> BatchItem:
    """One photo of several, as it goes out."""
    if isinstance(answer, Refusal):
        return BatchItem(index=index, name=name, counted=None, problem=problem_of(answer, request_id))
    return BatchItem(index=index, name=name, counted=count_answer(answer, request_id), problem=None)


def note(request: Request, answer: Answer, bin_id: str | None = None) -> None:
    """What the line in the log says besides."""
    state = request.state
    state.model, state.version, state.count = answer.model, answer.predictor.version, answer.counted.count
    if bin_id is not None:
        state.bin_id = bin_id


def send(answer: BaseModel) -> Response:
    """An answer as it is, without the framework's validating it a second time."""
    return Response(answer.model_dump_json(), media_type=JSON)
