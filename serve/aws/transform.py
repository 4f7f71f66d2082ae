"""Batch transform: a model of an endpoint counts every photo under a prefix, without the endpoint.

A job has its name from what it is to do, so that the same command finds it again: it waits for one that runs, takes
what one has answered that is done, and starts another after one that failed or that is older than a photo.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any, Final

from bintally.errors import AwsNotFoundError, ConfigError
from serve.aws.belongings import models_behind
from serve.aws.calls import Aws
from serve.aws.images import check_counts_on
from serve.aws.plan import named_after, split_uri

RUNNING: Final = ("InProgress", "Stopping")
TELL_EVERY_S: Final = 60.0  # counting the answers takes a request for each 1,000
MAX_CONCURRENT: Final = 8  # photos in an instance
MAX_PAYLOAD_MB: Final = 12  # times the photos in an instance it may reach 100; a larger one fails the whole job
ANSWER_TIMEOUT_S: Final = 60
NUM_RETRIES: Final = 3

_JOB_NAME: Final = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """One that is to be counted."""

    key: str
    num_bytes: int
    changed: datetime
    """When it was uploaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformPlan:
    """What is to be counted, and where the answers go."""

    name: str
    """Of the endpoint; names of jobs begin with it."""
    model: str
    """Its name in SageMaker."""
    input: str
    """s3://bucket/folder/ of photos."""
    output: str
    """s3://bucket/folder/; the answers of a job lie in one of its name there."""
    instance_type: str
    num_instances: int
    job_name: str | None
    """None makes one up from the other fields."""

    def __post_init__(self) -> None:
        split_uri("input", self.input)
        split_uri("output", self.output)
        if self.job_name is not None and not _JOB_NAME.fullmatch(self.job_name):
            raise ConfigError(f"job_name must be up to 63 letters, digits and hyphens, not {self.job_name!r}")
        check_counts_on(self.instance_type)
        if self.num_instances < 1:
            raise ConfigError(f"num_instances must be at least 1, not {self.num_instances}")

    def request(self, job: str) -> dict[str, Any]:
        """The request that starts a job of this name."""
        from serve.container.app import MAX_BODY_VARIABLE, PROBLEMS_VARIABLE  # heavy

        (source, photos), (target, answers) = split_uri("input", self.input), split_uri("output", self.output)
        data = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{source}/{photos}"}}
        return {
            "TransformJobName": job,
            "ModelName": self.model,
            "BatchStrategy": "SingleRecord",
            "MaxConcurrentTransforms": MAX_CONCURRENT,
            "Environment": {PROBLEMS_VARIABLE: "true", MAX_BODY_VARIABLE: str(MAX_PAYLOAD_MB * 2**20)},
            "MaxPayloadInMB": MAX_PAYLOAD_MB,
            "ModelClientConfig": {
                "InvocationsTimeoutInSeconds": ANSWER_TIMEOUT_S,
                "InvocationsMaxRetries": NUM_RETRIES,
            },
            "TransformInput": {"DataSource": data, "ContentType": "application/x-image", "SplitType": "None"},
            "TransformOutput": {"S3OutputPath": f"s3://{target}/{answers}{job}/", "Accept": "application/json"},
            "TransformResources": {"InstanceType": self.instance_type, "InstanceCount": self.num_instances},
        }

    @property
    def first_job(self) -> str:
        """Name of the first job that does this; later ones have a number behind it."""
        return self.job_name or named_after(self.name, self.request(""))


def model_of(aws: Aws, name: str) -> str:
    """The model behind an endpoint.

    Raises:
        AwsNotFoundError: there is no such endpoint, or nothing behind it.
        AwsError: AWS refuses, or cannot be reached.
    """
    config = aws.call("sagemaker", "describe_endpoint", EndpointName=name)["EndpointConfigName"]
    models = models_behind(aws, config)
    if not models:
        raise AwsNotFoundError(f"endpoint {name} has no configuration {config} any more; deploy it anew")
    return models[0]


def find_or_start(aws: Aws, plan: TransformPlan, photos: Sequence[Photo], *, again: bool = False) -> str:
    """The newest job that does this, unless it has failed or knows not all photos; else a new one; its name.

    Args:
        aws: where.
        plan: what to do.
        photos: all that are to be counted.
        again: start a new one in any case.

    Raises:
        ConfigError: `job_name` names a job that does something else.
        AwsError: AWS refuses, or cannot be reached.
    """
    jobs = list(_jobs_of(aws, plan))
    name = plan.first_job if not jobs else f"{plan.first_job}-{len(jobs) + 1}"
    if jobs and not again:
        job, newest = jobs[-1], str(jobs[-1]["TransformJobName"])
        is_fixed = plan.job_name is not None or job["TransformJobStatus"] in RUNNING
        is_stale = any(photo.changed > job["CreationTime"] for photo in photos)
        if is_fixed or (job["TransformJobStatus"] == "Completed" and not is_stale):
            _check_same(job, plan.request(newest))
            aws.say(f"going on with transform job {newest}")
            if is_stale:
                aws.say(f"photos were uploaded since {newest} was started; --again counts them")
            return newest
    aws.call("sagemaker", "create_transform_job", **plan.request(name))
    aws.say(f"started transform job {name}, which Ctrl-C leaves running; the same command goes on with it")
    return name


def _jobs_of(aws: Aws, plan: TransformPlan) -> Iterator[dict[str, Any]]:
    """Those that do this, oldest first; of a plan that names one, that one."""
    for number in count(1):
        name = plan.first_job if number == 1 else f"{plan.first_job}-{number}"
        try:
            yield aws.call("sagemaker", "describe_transform_job", TransformJobName=name)
        except AwsNotFoundError:
            return
        if plan.job_name:
            return


def _check_same(job: dict[str, Any], request: dict[str, Any]) -> None:
    def place(one: dict[str, Any]) -> str:
        uri: str = one["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
        return f"{one['ModelName']} on {uri} to {one['TransformOutput']['S3OutputPath']}"

    if place(job) != place(request):
        raise ConfigError(f"job_name {job['TransformJobName']} is taken by {place(job)}, not {place(request)}")


def wait_for_job(aws: Aws, name: str, num_photos: int) -> str | None:
    """Wait for a job, and tell meanwhile how far it is.

    Returns:
        Why it has not counted everything; None if it has.

    Raises:
        AwsError: AWS refuses, or cannot be reached.
    """
    next_s = 0.0
    while True:
        job = aws.call("sagemaker", "describe_transform_job", TransformJobName=name)
        status = job["TransformJobStatus"]
        if status not in RUNNING:
            break
        if time.monotonic() >= next_s:
            num_done = len(list_keys(aws, job["TransformOutput"]["S3OutputPath"]))
            since = job.get("TransformStartTime", job["CreationTime"]).astimezone()
            aws.say(f"transform job {name}: {status} since {since:%H:%M:%S}, {num_done:,} of {num_photos:,} photos")
            next_s = time.monotonic() + TELL_EVERY_S
        time.sleep(aws.poll_s)
    if status == "Completed":
        return None
    reason = job.get("FailureReason", "SageMaker gives no reason").rstrip(".")
    log = f"the containers' log is CloudWatch's group /aws/sagemaker/TransformJobs, streams {name}/"
    return f"transform job {name}: {status}: {reason}; {log}"


def list_photos(aws: Aws, uri: str) -> list[Photo]:
    """All photos in a folder, by key.

    Raises:
        ConfigError: one is larger than a job takes.
        AwsError: AWS refuses, or cannot be reached.
    """
    photos = [
        Photo(key=one["Key"], num_bytes=one["Size"], changed=one["LastModified"]) for one in _list_objects(aws, uri)
    ]
    large = [photo.key for photo in photos if photo.num_bytes > MAX_PAYLOAD_MB * 2**20]
    if large:
        raise ConfigError(
            f"input: {len(large):,} photos are larger than {MAX_PAYLOAD_MB} MiB, by each of which SageMaker would"
            f" fail the whole job; shrink or move them: {', '.join(large[:3])}"
        )
    return photos


def list_keys(aws: Aws, uri: str) -> list[str]:
    """The keys of all objects in a folder, sorted.

    Raises:
        AwsError: AWS refuses, or cannot be reached.
    """
    return [one["Key"] for one in _list_objects(aws, uri)]


def _list_objects(aws: Aws, uri: str) -> list[dict[str, Any]]:
    bucket, prefix = split_uri("input", uri)
    pages = aws.pages("s3", "list_objects_v2", Bucket=bucket, Prefix=prefix)
    return [one for page in pages for one in page.get("Contents", ()) if not one["Key"].endswith("/")]


def records_beside(photos: str) -> str:
    """The folder of the records, where photos and records lie as in ABID.

    Raises:
        ConfigError: the folder of the photos has another name.
    """
    if not photos.rstrip("/").endswith("/bin-images"):
        raise ConfigError(f"{photos} is no folder bin-images, beside which the records lie in metadata; name records")
    return f"{photos.rstrip('/').removesuffix('bin-images')}metadata/"
