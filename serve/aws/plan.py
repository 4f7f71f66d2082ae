"""What a deployment is to be: a value, from which the requests to SageMaker and their names follow."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from bintally.errors import ConfigError
from serve.aws.images import check_counts_on

Kind = Literal["realtime", "serverless"]

MAX_BODY_BYTES: Final[dict[Kind, int]] = {"realtime": 6 * 2**20, "serverless": 4 * 2**20}
"""What SageMaker lets through to a model."""
BUNDLES: Final = "bintally/"
"""Folder of all bundles in their bucket, in one for each endpoint: what it deletes, no other has."""
VARIANT: Final = "AllTraffic"
# The Ray image takes up to 90 s with a model of ours; SageMaker's own limit for a start is an hour.
START_TIMEOUT_S: Final = 600
DOWNLOAD_TIMEOUT_S: Final = 600
MEMORY_MB: Final = range(1024, 6144 + 1, 1024)
DEFAULT_MEMORY_MB: Final = 3072  # more takes a higher quota first
MAX_CONCURRENCY: Final = range(1, 200 + 1)
DEFAULT_CONCURRENCY: Final = 5

_NAME: Final = re.compile(r"[a-z0-9](-?[a-z0-9]){0,39}")  # ARNs are in lower case; some 16 characters are added
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ROLE: Final = re.compile(r"arn:(aws[a-z-]*):iam::(\d{12}):role/[\w+=,.@/-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeployPlan:
    """One endpoint with one model behind it."""

    name: str
    """Of the endpoint; model and configuration have names that begin with it."""
    kind: Kind
    sha256: str
    """Of the bundle."""
    version: str
    """Of the model in it, by which the endpoint's answers are checked."""
    bucket: str
    """Takes the bundle."""
    role: str
    """ARN of the role that the containers run as."""
    image: str
    """URI of the container image in ECR."""
    instance_type: str
    """Of a real-time endpoint."""
    num_instances: int
    """Of a real-time endpoint."""
    memory_mb: int
    """Of a serverless endpoint."""
    max_concurrency: int
    """Requests at a time of a serverless endpoint."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_bucket(self.bucket)
        split_role(self.role)
        if self.num_instances < 1:
            raise ConfigError(f"num_instances must be at least 1, not {self.num_instances}")
        check_capacity(self.instance_type, self.memory_mb, self.max_concurrency)

    @property
    def key(self) -> str:
        """Of the bundle in the bucket."""
        return f"{bundles_of(self.name)}{self.sha256}/model.tar.gz"

    @property
    def model(self) -> dict[str, Any]:
        """The request that creates the model."""
        container = {
            "Image": self.image,
            "ModelDataUrl": f"s3://{self.bucket}/{self.key}",
            "Environment": environment_of(self.kind),
        }
        request = {"ExecutionRoleArn": self.role, "PrimaryContainer": container}
        return {"ModelName": named_after(self.name, request), **request}

    @property
    def config(self) -> dict[str, Any]:
        """The request that creates the endpoint configuration."""
        capacity = capacity_of(self.kind, self.instance_type, self.num_instances, self.memory_mb, self.max_concurrency)
        variant = {"VariantName": VARIANT, "ModelName": self.model["ModelName"], **capacity}
        request = {"ProductionVariants": [variant]}
        return {"EndpointConfigName": named_after(self.name, request), **request}


def environment_of(kind: Kind) -> dict[str, str]:
    """Variables of the containers behind an endpoint."""
    from serve.aws.bundle import RAY_IMAGE_ENVIRONMENT  # heavy; what has a hash to deploy has imported it
    from serve.container.app import MAX_BODY_VARIABLE

    return {MAX_BODY_VARIABLE: str(MAX_BODY_BYTES[kind]), **RAY_IMAGE_ENVIRONMENT}


def check_capacity(instance_type: str, memory_mb: int, max_concurrency: int) -> None:
    """Refuse what an endpoint cannot have.

    Raises:
        ConfigError: a value is wrong; the message names the field.
    """
    check_counts_on(instance_type)
    if memory_mb not in MEMORY_MB:
        raise ConfigError(f"memory_mb must be one of {', '.join(map(str, MEMORY_MB))}, not {memory_mb}")
    if max_concurrency not in MAX_CONCURRENCY:
        raise ConfigError(f"max_concurrency must lie in 1..200, not {max_concurrency}")


def capacity_of(
    kind: Kind, instance_type: str, num_instances: int, memory_mb: int, max_concurrency: int
) -> dict[str, Any]:
    """What a production variant says of its machines, and how long they may take to start."""
    if kind == "serverless":
        return {"ServerlessConfig": {"MemorySizeInMB": memory_mb, "MaxConcurrency": max_concurrency}}
    return {
        "InstanceType": instance_type,
        "InitialInstanceCount": num_instances,
        "ModelDataDownloadTimeoutInSeconds": DOWNLOAD_TIMEOUT_S,
        "ContainerStartupHealthCheckTimeoutInSeconds": START_TIMEOUT_S,
    }


def bundles_of(name: str) -> str:
    """Folder of an endpoint's bundles in their bucket."""
    return f"{BUNDLES}{name}/"


def check_name(name: str, field: str = "name") -> None:
    """Refuse what cannot be the name of an endpoint.

    Raises:
        ConfigError: it cannot; the message names the field.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{field} must be up to 40 of a-z, 0-9 and single hyphens between them, not {name!r}")


def check_bucket(bucket: str) -> None:
    """Refuse what cannot be the name of a bucket.

    Raises:
        ConfigError: it cannot.
    """
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"bucket must be the name of a bucket, without s3:// and folders, not {bucket!r}")


def split_role(role: str) -> tuple[str, str]:
    """Partition and account of a role.

    Raises:
        ConfigError: it is no ARN of a role.
    """
    found = _ROLE.fullmatch(role)
    if found is None:
        raise ConfigError(f"role must be an ARN, as arn:aws:iam::123456789012:role/bintally, not {role!r}")
    return found[1], found[2]


def split_uri(field: str, uri: str) -> tuple[str, str]:
    """Bucket and prefix of a folder in S3; the prefix ends with a slash, unless it is empty.

    Raises:
        ConfigError: it is no address in S3; the message names the field.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{field} must be s3://bucket/folder/, not {uri!r}")
    return bucket, prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def named_after(name: str, request: dict[str, Any]) -> str:
    """A name that says what it names: another request has another one."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:12]}"
