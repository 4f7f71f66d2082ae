"""An AWS Lambda before a BinTally endpoint: photos in, counts out.

It takes the events of API Gateway (REST and HTTP APIs, function URLs), of S3, directly or through SNS, EventBridge and
SQS, and direct invocations with {"image": base64} or {"bucket": ..., "key": ...}. docs/sagemaker.md has examples and
makes the zip, which needs nothing but what Lambda's Python has: boto3. Environment:

    BINTALLY_ENDPOINT    name of the SageMaker endpoint (required)
    BINTALLY_PREFIX      where answers of S3 events lie in the photo's bucket: counts/, or empty for beside the photo
    BINTALLY_MAX_BYTES   largest request of the endpoint: 6291456, or 4194304 for a serverless one
"""

import base64
import json
import os
import time
import traceback
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from serve.aws.lambda_counter import JSON, PHOTO, Answer, Asked, Counter, RefusedError
from serve.aws.lambda_events import Created, Unknown, is_event, read_objects


class UnansweredError(Exception):
    """Photos of an S3 event got no answer for now; Lambda hands the event in again."""


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Lambda calls this.

    Raises:
        UnansweredError: photos of an S3 event that did not come through SQS are to be tried again.
    """
    counter, request_id = start_counter(), str(getattr(context, "aws_request_id", "none"))
    event = event if isinstance(event, dict) else {}  # whoever invokes it directly sends what they like
    if is_event(event):
        return _answer_event(counter, event, request_id)
    if "requestContext" not in event:
        answer = _answered(lambda: counter.count(_read_direct(counter, event)), request_id, form="direct")
        return {"statusCode": answer.status, "retriable": answer.retriable, "body": answer.value}
    answer = _answered(lambda: counter.count(_read_http(counter, event)), request_id, form="http")
    headers = {"content-type": answer.kind, "x-request-id": request_id}
    headers |= {"retry-after": "1"} if answer.retriable else {}
    return {"statusCode": answer.status, "headers": headers, "body": answer.text, "isBase64Encoded": False}


def _answered(ask: Callable[[], Answer], request_id: str, **place: object) -> Answer:
    """The answer of `ask`, or the problem that it met; one line of the log."""
    begun, trace = time.monotonic(), {}
    try:
        answer = ask()
    except RefusedError as refusal:
        answer = refusal.answer(request_id)
    except Exception:  # noqa: BLE001  # a bug: the log shows it, the client only that there was one
        trace = {"trace": traceback.format_exc()}
        answer = RefusedError(500, "internal_error", "the function failed; its log tells more").answer(request_id)
    level = "INFO" if answer.status < 400 else "WARN" if answer.status < 500 else "ERROR"
    told = {"status": answer.status, "code": answer.code, "retriable": answer.retriable}
    took = {"duration_ms": round((time.monotonic() - begun) * 1000, 1)}
    print(json.dumps({"level": level, "message": "photo", "request_id": request_id, **place, **told, **took, **trace}))
    return answer


def _read_http(counter: Counter, event: dict[str, Any]) -> Asked:
    """The request of a client of API Gateway: a body for the model as it is, or JSON that names a photo on S3."""
    headers = {key.lower(): value for key, value in (event.get("headers") or {}).items()}
    kind, body = headers.get("content-type") or PHOTO, (event.get("body") or "").encode()
    quantity = (event.get("queryStringParameters") or {}).get("expected_quantity")
    if event.get("isBase64Encoded"):
        body = _decode(body)
    elif body and kind.startswith("image/"):
        raise RefusedError(500, "misconfigured", f"the API hands {kind} on as text: add it to its binaryMediaTypes")
    asked = _object(body) if kind.partition(";")[0].strip() == JSON else {}
    if "key" in asked:
        return _read_direct(counter, {"expected_quantity": quantity, **asked})
    return Asked(body=body, kind=kind, accept=headers.get("accept") or JSON, quantity=quantity)


def _decode(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise RefusedError(400, "invalid_request", "the event says that its body is base64, and it is not") from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}  # the model says what is wrong
    return value if isinstance(value, dict) else {}


def _read_direct(counter: Counter, event: dict[str, Any]) -> Asked:
    """What an invocation with no service between asks for."""
    if "image" in event:
        return Asked(body=json.dumps(event).encode(), kind=JSON)
    if "bucket" not in event or "key" not in event:
        raise RefusedError(400, "invalid_request", 'send {"image": base64} or {"bucket": ..., "key": ...}')
    quantity = event.get("expected_quantity")
    return counter.fetch(event["bucket"], event["key"], None if quantity is None else str(quantity))


def _answer_event(counter: Counter, event: dict[str, Any], request_id: str) -> dict[str, Any]:
    """Count new photos; messages of SQS come again alone whose photos got no answer for now.

    Raises:
        UnansweredError: likewise, of an event that did not come through SQS.
    """
    match event.get("Records"):
        case [{"eventSource": "aws:sqs"}, *_] as messages:
            failed = [one["messageId"] for one in messages if _unanswered(counter, one, request_id)]
            return {"batchItemFailures": [{"itemIdentifier": name} for name in failed]}
    if missing := _unanswered(counter, event, request_id):
        raise UnansweredError(f"{len(missing)} photos got no answer: {', '.join(missing)}"[:1000])
    return {}


def _unanswered(counter: Counter, event: object, request_id: str) -> list[str]:
    """Count and write; which photos have no answer yet."""
    missing = []
    for found in read_objects(event):
        if isinstance(found, Created) and not _is_photo(found.key, counter.settings.prefix):
            continue
        ask = partial(_answer_object, counter, found, request_id)
        answer = _answered(ask, request_id, form="s3", photo=str(found))
        missing += [f"{found} ({answer.code})"] if _is_to_come_again(answer) else []
    return missing


def _is_to_come_again(answer: Answer | RefusedError) -> bool:
    """Whether the photo has no answer of its own; a role that may not read it is mended, and the photo is not lost."""
    return answer.status >= 500 or answer.retriable or answer.code == "not_allowed"


def _is_photo(key: str, prefix: str) -> bool:
    """Whether to count a new object; our own answers would come back for ever."""
    return not (key.endswith(("/", ".json")) or (prefix and key.startswith(prefix)))


def _answer_object(counter: Counter, found: Created | Unknown, request_id: str) -> Answer:
    """Count a photo of S3, and write the answer, or a problem that is the photo's own and that no later try changes."""
    if isinstance(found, Unknown):
        raise RefusedError(500, "unknown_event", "this is no event of S3")
    try:
        answer = counter.count(counter.fetch(found.bucket, found.key))
    except RefusedError as refusal:
        if _is_to_come_again(refusal):
            raise
        answer = refusal.answer(request_id)
    told = {"bucket": found.bucket, "key": found.key, "status": answer.status, "answer": answer.value}
    counter.store(found.bucket, f"{counter.settings.prefix}{found.key}.json", told)
    return answer


@cache
def start_counter() -> Counter:
    """The counter of this instance of the function.

    Raises:
        SettingsError: the environment is wrong.
    """
    return Counter.start(os.environ)


if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
    start_counter()  # a wrong setting ends the cold start, not the first photo
