"""What SageMaker sends and gets back, without a server: bytes to photos, photos to counts, counts to bytes.

Every host answers by them: our container, AWS's Ray Serve image, and the four functions of AWS's PyTorch image.

    image/jpeg, image/png, application/x-image, application/octet-stream    a photo
    application/json         {"image": BASE64, "expected_quantity": 3, "bin_id": "A7"}, or {"instances": [such, ...]}
    application/jsonlines    such an object in each line, and a line of the answer for each

A photo alone that cannot be counted is an error of the request; among several, a `problem` in its place.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from pydantic import BaseModel, Field
from starlette.datastructures import Headers

from bintally.errors import ImageError
from serve import bodies
from serve.bodies import JSON, BinId, ExpectedQuantity, PhotoJson
from serve.predictor import Predictor
from serve.problems import Refusal, problem_of, refusal_of
from serve.schema import count_of, model_name, verdict_of
from serve.settings import DEFAULT_MODEL

CHECKPOINT_DIR: Final = "checkpoint"
"""Of a packed model: the checkpoint."""
JSON_LINES: Final = "application/jsonlines"
PHOTO_TYPES: Final = (*bodies.PHOTO_TYPES, "application/x-image")
ATTRIBUTES: Final = "x-amzn-sagemaker-custom-attributes"

_QUANTITY: Final = re.compile(r"(?:^|[,;\s])expected_quantity=([^,;\s]*)")


class PhotoItem(PhotoJson):
    """A photo as JSON, with what the record says of its bin where that is known."""

    expected_quantity: ExpectedQuantity | None = None
    bin_id: BinId | None = None
    """Comes back in the answer."""


class Instances(BaseModel):
    """The body of several photos; each is checked by itself, so that a wrong one harms no other."""

    instances: Annotated[list[Any], Field(min_length=1)] | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A photo to count."""

    photo: bytes
    expected_quantity: int | None = None
    bin_id: str | None = None


@dataclass(frozen=True, slots=True)
class Invocation:
    """What a request asks for."""

    media_type: str
    items: tuple[Item | Refusal, ...]
    """Photos, and why others are none."""
    is_one: bool
    """The request is one photo, not a list that happens to have one."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What comes of an invocation."""

    invocation: Invocation
    rows: tuple[dict[str, Any], ...]
    """An answer or a `problem` for each of its items, JSON-ready."""


def load_model(model_dir: Path) -> Predictor:
    """The model of an unpacked tarball, which has counted a photo.

    Raises:
        CheckpointError: it is missing or damaged, or gives no probabilities.
    """
    torch.set_num_threads(1)  # requests are the unit of scale; spinning OpenMP threads starve each other
    predictor = Predictor.load(model_dir / CHECKPOINT_DIR)
    runtime = predictor.runtime
    print(f"model {predictor.version} counts by {runtime.name}: {runtime.reason}", file=sys.stderr, flush=True)
    return predictor


def media_type_of(content_type: str) -> str:
    """The media type of a request.

    Raises:
        Refusal: there is no photo in such a thing.
    """
    return bodies.media_type_of(Headers({"content-type": content_type}), *PHOTO_TYPES, JSON, JSON_LINES)


def answer_type_of(media_type: str, accept: str) -> str:
    """The media type of the answer to a request of this one.

    Lines are answered by lines, also where JSON is asked for: AWS's images say so for clients that say nothing.

    Raises:
        Refusal: the client accepts neither JSON nor lines of it.
    """
    accepted = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    for ours in (JSON, JSON_LINES):
        if accepted & {ours, "*/*", "application/*", ""}:
            return JSON_LINES if media_type == JSON_LINES else ours
    raise Refusal("not_acceptable", f"answers are {JSON} or {JSON_LINES}; accept one of them, not {accept:.100}")


def read(body: bytes, media_type: str, attributes: str = "") -> Invocation:
    """What a request asks for.

    Args:
        body: of the request.
        media_type: as `media_type_of` gives it.
        attributes: SageMaker's custom attributes; `expected_quantity=3` among them holds for photos that name none.

    Raises:
        Refusal: the body, the one photo in it or an attribute is wrong.
    """
    if not body.strip():
        raise Refusal("empty_body", "the body is empty")
    found = _QUANTITY.search(attributes)
    expected = None if found is None else bodies.parse_quantity(found[1])
    if media_type == JSON_LINES:
        lines = [line for line in body.splitlines() if line.strip()]
        return Invocation(media_type, tuple(_item_or_refusal(line, expected) for line in lines), is_one=False)
    if media_type != JSON:
        return Invocation(media_type, (Item(body, expected),), is_one=True)
    instances = bodies.parse_json(Instances, body).instances
    if instances is None:
        return Invocation(media_type, (_item_of(body, expected),), is_one=True)
    texts = [json.dumps(one).encode() for one in instances]
    return Invocation(media_type, tuple(_item_or_refusal(text, expected) for text in texts), is_one=False)


def _item_of(text: bytes, expected: int | None) -> Item:
    item = bodies.parse_json(PhotoItem, text)
    quantity = expected if item.expected_quantity is None else item.expected_quantity
    return Item(bodies.decode_base64(item.image), quantity, item.bin_id)


def _item_or_refusal(text: bytes, expected: int | None) -> Item | Refusal:
    try:
        return _item_of(text, expected)
    except Refusal as refusal:
        return refusal


def count(predictor: Predictor, invocation: Invocation) -> Counts:
    """Count the photos, one by one: the same photo has the same answer to the last digit, whatever came with it.

    Raises:
        ImageError: the one photo of the request cannot be used.
        CheckpointError: the model answers NaN.
    """
    count_one = _count if invocation.is_one else _count_or_problem
    return Counts(invocation, tuple(count_one(predictor, item) for item in invocation.items))


def _count(predictor: Predictor, item: Item | Refusal) -> dict[str, Any]:
    if isinstance(item, Refusal):
        raise item
    photo, quality = predictor.decode(item.photo)
    (counted,) = predictor.count([photo])
    row = count_of(counted, quality, model_name(DEFAULT_MODEL, predictor)).model_dump()
    if item.bin_id is not None:
        row["bin_id"] = item.bin_id
    if item.expected_quantity is not None:
        verdict = predictor.verify(counted, item.expected_quantity)
        row |= verdict_of(verdict, predictor, item.expected_quantity, item.bin_id).model_dump()
    return row


def _count_or_problem(predictor: Predictor, item: Item | Refusal) -> dict[str, Any]:
    try:
        return _count(predictor, item)
    except (Refusal, ImageError) as error:
        return {"problem": problem_body(refusal_of(error))}


def problem_body(refusal: Refusal) -> dict[str, Any]:
    """A refusal as JSON. The id of the request is SageMaker's, in its own header."""
    return problem_of(refusal, "").model_dump(exclude={"request_id"})


def write(counts: Counts, answer_type: str) -> bytes:
    """The body of the answer, of a media type that `answer_type_of` gave."""
    if answer_type == JSON_LINES:
        return b"".join(dump(row) + b"\n" for row in counts.rows)
    return dump(counts.rows[0] if counts.invocation.is_one else {"predictions": counts.rows})


def dump(value: object) -> bytes:
    """A JSON value as it goes out."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
