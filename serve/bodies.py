"""Bodies of requests and their limits: the bytes of a photo, a form, or JSON with base64."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serve.problems import Refusal

PHOTO_TYPES: Final = ("image/jpeg", "image/png", "application/octet-stream")
FORM: Final = "multipart/form-data"
JSON: Final = "application/json"
MAX_EXPECTED: Final = 100_000  # a bin holds no more; a larger number is a slip of the pen
MAX_PHOTOS: Final = 64
MAX_BUFFERED_BYTES: Final = 256_000_000  # of all bodies that are arriving or wait
AT_ONCE_BYTES: Final = 262_144  # parsed in about a millisecond, which no other request notices

ExpectedQuantity = Annotated[int, Field(ge=0, le=MAX_EXPECTED, strict=True)]
BinId = Annotated[str, Field(min_length=1, max_length=128)]
Model = TypeVar("Model", bound=BaseModel)
Parsed = TypeVar("Parsed")


class PhotoJson(BaseModel):
    """A photo as JSON."""

    model_config = ConfigDict(extra="forbid")

    image: str
    """The bytes of a JPEG or PNG in base64."""


class RecordJson(PhotoJson):
    """A photo and what the record says of its bin."""

    expected_quantity: ExpectedQuantity
    bin_id: BinId | None = None


class PhotosJson(BaseModel):
    """Several photos."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[str], Field(min_length=1, max_length=MAX_PHOTOS)]
    """Each the bytes of a JPEG or PNG in base64."""


def photo_body(json_model: type[BaseModel], *, several: bool = False) -> dict[str, Any]:
    """OpenAPI of a body that holds photos in any of the three ways."""
    binary = {"type": "string", "format": "binary"}
    fields: dict[str, Any] = {"photo": {"type": "array", "items": binary} if several else binary}
    fields |= {
        name: schema
        for name, schema in json_model.model_json_schema()["properties"].items()
        if name not in ("image", "images")
    }
    required = ["photo"] + [name for name in fields if name == "expected_quantity"]
    content: dict[str, Any] = {} if several else {kind: {"schema": binary} for kind in PHOTO_TYPES}
    content[FORM] = {"schema": {"type": "object", "properties": fields, "required": required}}
    content[JSON] = {"schema": json_model.model_json_schema()}
    text = "JPEG or PNG, told apart by the bytes: a content type of image/* is a hint."
    return {"requestBody": {"required": True, "description": text, "content": content}}


@dataclass(slots=True)
class BodyReader:
    """Reads bodies within the limits of the server."""

    timeout_s: float
    buffered_bytes: int = field(default=0, init=False)
    """Of all bodies that this process holds."""

    @asynccontextmanager
    async def read(self, request: Request, *, max_bytes: int) -> AsyncIterator[bytes]:
        """The body, which counts as held from its first chunk to the end of the block.

        Never more than one chunk past the limit is read, nor longer than the time allows.

        Raises:
            Refusal: it is too large, too slow, empty, compressed or broken off, or all bodies together are too large.
        """
        if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refusal("unsupported_media_type", "send the body without content encoding")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > max_bytes:
            raise _too_large(max_bytes)
        body = bytearray()
        try:
            await self._receive(request, body, max_bytes)
            yield bytes(body)
        finally:
            self.buffered_bytes -= len(body)

    async def _receive(self, request: Request, body: bytearray, max_bytes: int) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    self.buffered_bytes += len(chunk)
                    if len(body) > max_bytes:
                        raise _too_large(max_bytes)
                    if self.buffered_bytes > MAX_BUFFERED_BYTES:
                        raise Refusal("overloaded", "too many large bodies at once; try again")
        except TimeoutError:
            raise Refusal("body_timeout", f"the body did not arrive within {self.timeout_s:g} s") from None
        except ClientDisconnect:
            raise Refusal("incomplete_body", "the body broke off") from None
        if not body:
            raise Refusal("empty_body", "the body is empty")


def _too_large(max_bytes: int) -> Refusal:
    return Refusal("body_too_large", f"the body may hold {max_bytes} bytes at most")


def media_type_of(headers: Headers, *allowed: str) -> str:
    """The media type of a request.

    Raises:
        Refusal: it is none of the allowed ones.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in allowed:
        raise Refusal("unsupported_media_type", f"send {', '.join(allowed)}; not {media_type or 'nothing'}")
    return media_type


async def parse_form(headers: Headers, body: bytes, *, max_photos: int) -> FormData:
    """The fields of a form; between the parts of a large one other requests have their turn.

    Raises:
        Refusal: it is none, or holds too many files or fields.
    """

    async def stream() -> AsyncIterator[bytes]:
        for begin in range(0, len(body), AT_ONCE_BYTES):
            if begin:
                await asyncio.sleep(0)
            yield body[begin : begin + AT_ONCE_BYTES]

    parser = MultiPartParser(headers, stream(), max_files=max_photos, max_fields=8, max_part_size=4096)  # type: ignore[arg-type]
    parser.spool_max_size = 0  # no photo is written to disk, which may be full or read-only
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise Refusal("invalid_form", f"the form cannot be read: {getattr(error, 'message', error)}") from None


async def photos_of_form(form: FormData) -> list[tuple[str, bytes]]:
    """Name and bytes of each file of the field `photo`.

    Raises:
        Refusal: there is none.
    """
    files = [part for part in form.getlist("photo") if isinstance(part, UploadFile)]
    if not files:
        raise Refusal("invalid_form", "the form has no file in its field photo")
    return [(file.filename or "", await file.read()) for file in files]


async def parse_aside(parse: Callable[[bytes], Parsed], body: bytes) -> Parsed:
    """What a function makes of a body; of a large one in a thread, so that other requests are answered meanwhile."""
    return await asyncio.to_thread(parse, body) if len(body) > AT_ONCE_BYTES else parse(body)


def parse_json(model: type[Model], body: bytes) -> Model:
    """A body of JSON.

    Raises:
        Refusal: it is no JSON, or not of this shape; the message names the field.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        code = "invalid_json" if first["type"] == "json_invalid" else "invalid_request"
        where = ".".join(map(str, first["loc"]))
        raise Refusal(code, f"{where}: {first['msg']}" if where else first["msg"]) from None


def parse_record(form: FormData, photo: bytes) -> tuple[bytes, int, str | None]:
    """The photo, expected quantity and bin id of a form.

    Raises:
        Refusal: a field is missing or wrong.
    """
    text = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    quantity = parse_quantity(text.get("expected_quantity", ""))
    bin_id = text.get("bin_id")
    if bin_id is not None and not 1 <= len(bin_id) <= 128:
        raise Refusal("invalid_request", "bin_id: 1 to 128 characters")
    return photo, quantity, bin_id


def parse_quantity(text: str) -> int:
    """An expected quantity that came as text.

    Raises:
        Refusal: it is none.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) > MAX_EXPECTED:
        raise Refusal("invalid_request", f"expected_quantity: a whole number in 0..{MAX_EXPECTED}, not {text!r:.20}")
    return int(text)


def decode_base64(image: str) -> bytes:
    """The bytes of a photo in JSON.

    Raises:
        Refusal: it is no base64, or empty.
    """
    try:
        data = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(
            "invalid_request", "image: no base64; send the bytes of the photo in base64, no data: URL"
        ) from None
    if not data:
        raise Refusal("empty_body", "image: send a photo")
    return data
