"""boto3 as people use it; apart from the other rows, so that Ray's workers need not import torch for it."""

import json
from functools import cache
from pathlib import PurePath
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config

from benchmarks.parts.job import BUCKET
from bintally.batch import COUNT, IMAGE


@cache
def s3_client(endpoint: str) -> Any:  # noqa: ANN401  # boto3 makes its types at run time
    """One anonymous client per process."""
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(signature_version=UNSIGNED))


def get_object(endpoint: str, key: str) -> bytes:
    """The bytes of one object."""
    body: bytes = s3_client(endpoint).get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return body


def get_count(endpoint: str, bin_id: str) -> int:
    """The label of one bin."""
    return int(json.loads(get_object(endpoint, f"metadata/{bin_id}.json"))["EXPECTED_QUANTITY"])


def add_count(row: dict[str, Any], endpoint: str) -> dict[str, Any]:
    """For `Dataset.map`: the label to the photo that lay at row["path"]."""
    return {IMAGE: row["image"], COUNT: get_count(endpoint, PurePath(row["path"]).stem)}
