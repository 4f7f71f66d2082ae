"""What IAM documents are made of, and what they are for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from serve.aws.images import ACCOUNTS
from serve.aws.plan import BUNDLES, check_bucket, check_name, split_role, split_uri
from serve.aws.transform import records_beside

Document = dict[str, Any]

PULL: Final = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
"""What fetching an image takes, besides a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What the roles are for."""

    name: str
    """Of the endpoint, and of the Lambda function before it."""
    bucket: str
    """Takes bundles."""
    role: str
    """ARN of the role that containers run as."""
    region: str
    photos: str
    """s3://bucket/folder/ that a batch transform reads, and the Lambda function."""
    answers: str
    """s3://bucket/folder/ that a batch transform writes."""
    repository: str
    """Of this account in ECR, with our own image."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_bucket(self.bucket)
        split_role(self.role)
        records_beside(self.photos)
        split_uri("answers", self.answers)

    def objects(self, uri: str) -> str:
        """ARN of all objects in a folder."""
        bucket, prefix = split_uri("photos", uri)
        return f"arn:{self._partition}:s3:::{bucket}/{prefix}*"

    def listing(self, sid: str, uri: str) -> Document:
        """Permission to list a folder."""
        bucket, prefix = split_uri("photos", uri)
        condition = {"StringLike": {"s3:prefix": f"{prefix}*"}}
        return allow(sid, ["s3:ListBucket"], f"arn:{self._partition}:s3:::{bucket}", condition)

    def arn(self, service: str, resource: str) -> str:
        """ARN of something in this account and region."""
        return f"arn:{self._partition}:{service}:{self.region}:{split_role(self.role)[1]}:{resource}"

    @property
    def bundles(self) -> str:
        """Folder of the bundles."""
        return f"s3://{self.bucket}/{BUNDLES}"

    @property
    def repositories(self) -> list[str]:
        """ARNs of the image repositories: AWS's, and this account's own."""
        own = self.arn("ecr", f"repository/{self.repository}")
        account = ACCOUNTS.get(self.region)
        return [own] if account is None else [f"arn:{self._partition}:ecr:{self.region}:{account}:repository/ray", own]

    @property
    def _partition(self) -> str:
        return split_role(self.role)[0]

    def logs(self, sid: str, *groups: str) -> Document:
        """Permission to write logs of these groups."""
        names = [self.arn("logs", f"log-group:{group}{suffix}") for group in groups for suffix in ("", ":*")]
        return allow(
            sid, ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"], names
        )


def trust(service: str, **condition: Document) -> Document:
    """Who may take a role."""
    who = {"Sid": "Assume", "Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    return document([who | condition])


def allow(
    sid: str, actions: Sequence[str], resource: str | list[str], condition: dict[str, Any] | None = None
) -> Document:
    """One statement: who has it may do this with that."""
    allowed = {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": resource}
    return allowed if condition is None else allowed | {"Condition": condition}


def document(statements: list[Document]) -> Document:
    """A policy of statements."""
    return {"Version": "2012-10-17", "Statement": statements}
