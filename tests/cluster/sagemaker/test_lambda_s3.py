"""The Lambda of counts by S3 events, and as a function: its log, its environment, its zip."""

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto.core import set_initial_no_auth_action_count

from serve.aws.lambda_counter import Settings, SettingsError
from serve.aws.lambda_handler import UnansweredError, handler

ROOT = Path(__file__).parents[3]
Shim = Any  # of shim.py
Settle = Callable[..., None]
BUCKET = "bins"  # of conftest.py
S3 = Any  # a client of boto3
Answer = dict[str, Any]
CONTEXT = SimpleNamespace(aws_request_id="4711")  # what Lambda hands in beside the event


# --- S3 ---------------------------------------------------------------------------------------------------------------


def created(*keys: str, what: str = "ObjectCreated:Put") -> dict[str, Any]:
    """S3 tells of new objects, with their keys as in a URL."""
    objects = [{"key": urllib.parse.quote_plus(key, safe="/"), "size": 1, "eTag": "d41d"} for key in keys]
    return {
        "Records": [
            {"eventSource": "aws:s3", "eventName": what, "s3": {"bucket": {"name": BUCKET}, "object": one}}
            for one in objects
        ]
    }


def queued(*bodies: str) -> dict[str, Any]:
    """SQS hands messages in."""
    records = [{"messageId": f"m{n}", "eventSource": "aws:sqs", "body": body} for n, body in enumerate(bodies)]
    return {"Records": records}


def stored(s3: S3, key: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    return value


def keys(s3: S3) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def test_a_new_photo_has_its_count_written_beside_it(live: Shim, s3: S3, photo: bytes, expected: Answer) -> None:
    s3.put_object(Bucket=BUCKET, Key="in/a+b ü.jpg", Body=photo)
    assert handler(created("in/a+b ü.jpg"), CONTEXT) == {}
    told = stored(s3, "counts/in/a+b ü.jpg.json")
    assert told == {"bucket": BUCKET, "key": "in/a+b ü.jpg", "status": 200, "answer": expected}


def test_its_own_answers_are_never_counted(live: Shim, s3: S3, photo: bytes, settle: Settle) -> None:
    s3.put_object(Bucket=BUCKET, Key="a.jpg", Body=photo)
    for prefix in ("counts/", ""):
        settle(BINTALLY_PREFIX=prefix)
        handler(created("a.jpg"), CONTEXT)
        before = keys(s3)
        for key in [one for one in before if one != "a.jpg"]:
            handler(created(key), CONTEXT)
        assert keys(s3) == before
    assert keys(s3) == ["a.jpg", "a.jpg.json", "counts/a.jpg.json"]
    handler(created("folder/", "counts/thumb.jpg"), CONTEXT)
    handler(created("a.jpg", what="ObjectRemoved:Delete"), CONTEXT)
    assert len(live.requests) == 2


def test_a_photo_that_cannot_be_counted_has_that_written(live: Shim, s3: S3) -> None:
    s3.put_object(Bucket=BUCKET, Key="notes.jpg", Body=b"no photo")
    handler(created("notes.jpg"), CONTEXT)
    told = stored(s3, "counts/notes.jpg.json")
    assert (told["status"], told["answer"]["code"]) == (415, "not_an_image")


def test_lambda_hands_an_event_in_again_whose_photo_got_no_answer_for_now(
    live: Shim, s3: S3, photo: bytes, make_fault: Callable[..., object]
) -> None:
    for key in ("a.jpg", "b.jpg"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=photo)
    live.faults[:] = [make_fault(503, "ServiceUnavailable")]
    with pytest.raises(UnansweredError, match=r"1 photos got no answer: s3://bins/a.jpg \(endpoint_failed\)"):
        handler(created("a.jpg", "b.jpg"), CONTEXT)
    assert keys(s3) == ["a.jpg", "b.jpg", "counts/b.jpg.json"]
    handler(created("a.jpg", "b.jpg"), CONTEXT)
    assert "counts/a.jpg.json" in keys(s3)


def test_of_a_queue_only_the_messages_without_an_answer_come_again(
    live: Shim, s3: S3, photo: bytes, make_fault: Callable[..., object]
) -> None:
    for key in ("a.jpg", "b.jpg"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=photo)
    test_message = json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": BUCKET})
    messages = [json.dumps(created("a.jpg")), test_message, "no JSON", json.dumps(created("b.jpg"))]
    live.faults[:] = [make_fault(503, "ServiceUnavailable")]
    answer = handler(queued(*messages), CONTEXT)
    assert answer == {"batchItemFailures": [{"itemIdentifier": "m0"}, {"itemIdentifier": "m2"}]}
    assert keys(s3) == ["a.jpg", "b.jpg", "counts/b.jpg.json"]


# --- Other ways -------------------------------------------------------------------------------------------------------


def by_sns(event: dict[str, Any]) -> dict[str, Any]:
    """What SNS wraps around a message for a queue."""
    return {"Type": "Notification", "TopicArn": "arn:aws:sns:us-east-1:1:told", "Message": json.dumps(event)}


def by_eventbridge(key: str, what: str = "Object Created") -> dict[str, Any]:
    """EventBridge tells of an object, with its key as it is."""
    detail = {"version": "0", "bucket": {"name": BUCKET}, "object": {"key": key, "size": 1}, "reason": "PutObject"}
    return {"version": "0", "source": "aws.s3", "detail-type": what, "detail": detail}


@pytest.mark.parametrize("way", ["sns-sqs", "eventbridge-sqs", "sns", "eventbridge", "eventbridge-sns-sqs"])
def test_a_new_photo_is_counted_whatever_way_its_event_comes(live: Shim, s3: S3, photo: bytes, way: str) -> None:
    key = "in/a+b %20ü.jpg"
    s3.put_object(Bucket=BUCKET, Key=key, Body=photo)
    event = {
        "sns-sqs": queued(json.dumps(by_sns(created(key)))),
        "eventbridge-sqs": queued(json.dumps(by_eventbridge(key))),
        "sns": {"Records": [{"EventSource": "aws:sns", "Sns": by_sns(created(key))}]},
        "eventbridge": by_eventbridge(key),
        "eventbridge-sns-sqs": queued(json.dumps(by_sns(by_eventbridge(key)))),
    }[way]
    assert handler(event, CONTEXT) == ({"batchItemFailures": []} if way.endswith("sqs") else {})
    assert stored(s3, f"counts/{key}.json")["status"] == 200
    assert handler(by_eventbridge(key, "Object Deleted"), CONTEXT) == {}


@pytest.mark.parametrize(
    "body",
    [
        *("no JSON", "null", "[]", "7", "{}", '{"Records": null}', '{"Records": [1]}', "[" * 100_000),
        *(json.dumps(by_sns({"hello": 1})), json.dumps(by_eventbridge("a") | {"detail": {}})),
        json.dumps(by_eventbridge("a") | {"source": "aws.ec2"}),
    ],
)
def test_a_message_that_tells_of_no_object_is_not_taken_for_done(live: Shim, body: str) -> None:
    assert handler(queued(body), CONTEXT) == {"batchItemFailures": [{"itemIdentifier": "m0"}]}


@pytest.mark.parametrize("event", [{"Records": [1]}, {"Records": [{}]}, {"detail-type": "Object Created"}])
def test_an_event_that_tells_of_no_object_fails(live: Shim, event: dict[str, Any]) -> None:
    with pytest.raises(UnansweredError, match="unknown_event"):
        handler(event, CONTEXT)


def test_a_photo_that_the_role_may_not_read_is_kept_until_it_may(
    live: Shim, s3: S3, photo: bytes, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may write answers: a problem written in place of a count would end the message."""
    s3.put_object(Bucket=BUCKET, Key="a.jpg", Body=photo)
    allowed = {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "*"}

    @set_initial_no_auth_action_count(3)
    def ask() -> dict[str, Any]:
        iam = boto3.client("iam")
        iam.create_user(UserName="function")
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="function", PolicyName="writes", PolicyDocument=policy)
        made = iam.create_access_key(UserName="function")["AccessKey"]
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the other one's keys
        settle(AWS_ACCESS_KEY_ID=made["AccessKeyId"], AWS_SECRET_ACCESS_KEY=made["SecretAccessKey"])
        return handler(queued(json.dumps(created("a.jpg"))), CONTEXT)

    assert ask() == {"batchItemFailures": [{"itemIdentifier": "m0"}]}
    assert keys(s3) == ["a.jpg"]


# --- The function itself ----------------------------------------------------------------------------------------------


def test_each_photo_is_one_line_of_json_in_the_log(
    live: Shim, s3: S3, photo: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.put_object(Bucket=BUCKET, Key="a.jpg", Body=photo)
    handler(created("a.jpg"), CONTEXT)
    handler({"image": "bm8gcGhvdG8="}, CONTEXT)
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["photo"] == f"s3://{BUCKET}/a.jpg"
    assert (first["level"], first["status"], first["request_id"]) == ("INFO", 200, "4711")
    assert (second["level"], second["status"], second["code"]) == ("WARN", 415, "not_an_image")
    assert second["duration_ms"] > 0


def test_a_bug_is_in_the_log_and_not_in_the_answer(live: Shim, capsys: pytest.CaptureFixture[str]) -> None:
    reply = handler({"requestContext": {}, "headers": {"content-type": 7}, "body": "x"}, CONTEXT)
    assert (reply["statusCode"], json.loads(reply["body"])["code"]) == (500, "internal_error")
    assert "Traceback" not in reply["body"]
    line = json.loads(capsys.readouterr().out)
    assert line["level"] == "ERROR"
    assert "Traceback" in line["trace"]


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "BINTALLY_ENDPOINT is not set"),
        ({"BINTALLY_ENDPOINT": "a", "BINTALLY_PREFIX": "counts"}, "BINTALLY_PREFIX must be empty or end with a slash"),
        ({"BINTALLY_ENDPOINT": "a", "BINTALLY_MAX_BYTES": "6 MB"}, "BINTALLY_MAX_BYTES must be a number of bytes"),
    ],
)
def test_a_wrong_environment_names_the_variable(variables: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        Settings.read(variables)


@pytest.mark.parametrize("variables", [{}, {"BINTALLY_ENDPOINT": "live"}])
def test_the_zip_needs_nothing_but_boto3_and_fails_early(tmp_path: Path, variables: dict[str, str]) -> None:
    """As Lambda starts it: from the zip of docs/sagemaker.md, with an environment of its own."""
    path = tmp_path / "function.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in [ROOT / "serve/__init__.py", *sorted((ROOT / "serve/aws").glob("lambda_*.py"))]:
            archive.write(file, file.relative_to(ROOT))
        archive.write(ROOT / "serve/aws/__init__.py", "serve/aws/__init__.py")
    code = "import sys, serve.aws.lambda_handler as h, serve.aws.lambda_pipeline; print(h.__file__, *sys.modules)"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(path), "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env | {"AWS_LAMBDA_FUNCTION_NAME": "bins"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if not variables:
        assert done.returncode == 1
        assert "BINTALLY_ENDPOINT is not set" in done.stderr.splitlines()[-1]
        return
    place, *modules = done.stdout.split()
    assert place.startswith(str(path))
    assert {"torch", "pydantic", "bintally", "tyro", "numpy"}.isdisjoint(modules)
