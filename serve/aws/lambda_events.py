"""What an event of AWS tells of new objects on S3, by whatever way it comes."""

import json
import reprlib
import urllib.parse
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Created:
    """A new object on S3."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class Unknown:
    """What is no event that we know, and must not be lost."""

    told: str
    """The beginning of it."""

    def __str__(self) -> str:
        return self.told


def is_event(event: dict[str, Any]) -> bool:
    """Whether AWS sent this of itself, and not whoever invokes the function directly."""
    return isinstance(event.get("Records"), list) or "detail-type" in event


def read_objects(event: object) -> list[Created | Unknown]:
    """New objects that an event tells of; none if it tells of something else, as of a deletion.

    It may be S3's own, SNS's or EventBridge's, or a message of SQS with one of them.
    """
    match event:
        case {"Event": "s3:TestEvent"}:  # S3 sends it when notifications are set up
            return []
        case {"Records": [*records]}:
            return [found for one in records for found in read_objects(one)]
        case {"eventSource": "aws:sqs", "body": str(text)}:
            return read_objects(_parsed(text))
        case {"Sns": {"Message": str(text)}} | {"Type": "Notification", "Message": str(text)}:
            return read_objects(_parsed(text))
        case {"eventName": str(what), "s3": {"bucket": {"name": str(bucket)}, "object": {"key": str(quoted)}}}:
            return [Created(bucket, urllib.parse.unquote_plus(quoted))] if what.startswith("ObjectCreated:") else []
        case {
            "source": "aws.s3",
            "detail-type": str(what),
            "detail": {"bucket": {"name": str(bucket)}, "object": {"key": str(key)}},
        }:
            # The key as it is: EventBridge does not quote it.
            return [Created(bucket, key)] if what == "Object Created" else []
    return [Unknown(reprlib.repr(event))]


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
