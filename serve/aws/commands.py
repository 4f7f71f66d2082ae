"""A checkpoint as a SageMaker endpoint.

    python serve/export.py deploy --checkpoint runs/x/checkpoint --bucket B --role arn:aws:iam::123456789012:role/R
    python serve/export.py invoke --name bintally photo.jpg --expected-quantity 3
    python serve/export.py transform --input s3://B/bin-images/ --output s3://B/counts/
    python serve/export.py delete --name bintally
    python serve/export.py policies --bucket B --role arn:aws:iam::123456789012:role/R

Credentials are those that boto3 finds. --dry-run prints every call with its arguments and makes none.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro

from bintally.cli import readable_errors
from bintally.errors import ConfigError
from serve.aws.endpoint_args import EndpointArgs
from serve.aws.plan import DEFAULT_CONCURRENCY, DEFAULT_MEMORY_MB, DeployPlan, Kind, bundles_of, check_bucket
from serve.aws.transform_command import Transform


@dataclass(frozen=True, kw_only=True, slots=True)
class Deploy:
    """Make an endpoint, or give it another model, and see it count before saying so."""

    bucket: str
    """Takes the bundle, in a folder bintally/; in the endpoint's region."""
    role: str
    """ARN of the role that the containers run as; `policies` prints what it needs."""
    checkpoint: Path | None = None
    """Checkpoint folder, which is packed."""
    bundle: Path | None = None
    """Or what was packed before: a model.tar.gz."""
    kind: Kind = "realtime"
    """realtime: instances that are paid by the hour. serverless: paid by the request; needs an image of your own."""
    instance_type: str = "ml.m5.xlarge"
    """Of a real-time endpoint."""
    num_instances: int = 1
    """Of a real-time endpoint."""
    memory_mb: int = DEFAULT_MEMORY_MB
    """Of a serverless endpoint: 1024 to 6144, in steps of 1024. More than 3072 takes a higher quota first."""
    max_concurrency: int = DEFAULT_CONCURRENCY
    """Requests at a time of a serverless endpoint."""
    image: str | None = None
    """Container image in ECR. Default for realtime: AWS's Ray Serve image."""
    smoke_s: float = 300.0
    """How long the endpoint may fail to count after SageMaker calls it InService."""
    dry_run: bool = False
    """Print every call and make none."""
    endpoint: tyro.conf.OmitArgPrefixes[EndpointArgs] = field(default_factory=EndpointArgs)

    def run(self) -> None:
        """Pack, upload, create or update, wait, let it count."""
        if (self.checkpoint is None) == (self.bundle is None):
            raise ConfigError("name either a checkpoint or a bundle")
        aws = self.endpoint.connect(dry_run=self.dry_run)
        plan = self.plan(aws.region)
        from serve.aws.bundle import pack, read_bundle
        from serve.aws.control import deploy

        with TemporaryDirectory(prefix="bintally-bundle-") as folder:
            if self.checkpoint is not None:
                bundle = pack(self.checkpoint, Path(folder) / "model.tar.gz")
            else:
                assert self.bundle is not None
                bundle = read_bundle(self.bundle)
            plan = replace(plan, sha256=bundle.sha256, version=bundle.version)
            deploy(aws, plan, bundle.path, smoke_s=self.smoke_s)

    def plan(self, region: str) -> DeployPlan:
        """What is to serve, but the bundle.

        Raises:
            ConfigError: a value is wrong.
        """
        return DeployPlan(
            name=self.endpoint.name,
            kind=self.kind,
            sha256="",
            version="",
            bucket=self.bucket,
            role=self.role,
            image=self.image or self.default_image(region),
            instance_type=self.instance_type,
            num_instances=self.num_instances,
            memory_mb=self.memory_mb,
            max_concurrency=self.max_concurrency,
        )

    def default_image(self, region: str) -> str:
        """AWS's own image.

        Raises:
            ConfigError: AWS has none that fits.
        """
        from serve.aws.images import ray_image

        if self.kind == "serverless":
            raise ConfigError("image is needed with kind serverless: the URI in ECR of serve/container's image")
        return ray_image(region, self.instance_type)


@dataclass(frozen=True, kw_only=True, slots=True)
class Invoke:
    """Let an endpoint count photos; a line for each."""

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")]
    """JPEG or PNG files."""
    expected_quantity: int | None = None
    """What the record of the bin says; the answer has a verdict then."""
    dry_run: bool = False
    """Print every call and make none."""
    endpoint: tyro.conf.OmitArgPrefixes[EndpointArgs] = field(default_factory=EndpointArgs)

    def run(self) -> None:
        """Ask."""
        aws = self.endpoint.connect(dry_run=self.dry_run)
        from serve.aws.invoke import ask

        for path in self.photos:
            try:
                photo = path.read_bytes()
            except OSError as error:
                raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
            answer = ask(aws, self.endpoint.name, photo, self.expected_quantity)
            if not aws.is_dry:
                print(f"{path}: {json.dumps(answer)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Delete:
    """Delete an endpoint, its configurations, models and bundles."""

    bucket: str | None = None
    """Where to look for bundles that killed deployments left. Default: where those of the endpoint's models lie."""
    dry_run: bool = False
    """Print every call and make none."""
    endpoint: tyro.conf.OmitArgPrefixes[EndpointArgs] = field(default_factory=EndpointArgs)

    def run(self) -> None:
        """Delete."""
        if self.bucket is not None:
            check_bucket(self.bucket)
        behind, bucket = f"{self.endpoint.name}-<hash>", self.bucket or "<bucket>"
        aws = self.endpoint.connect(
            dry_run=self.dry_run,
            describe_endpoint={"EndpointStatus": "InService", "EndpointConfigName": behind},
            describe_endpoint_config={"ProductionVariants": [{"ModelName": behind}]},
            describe_model={"PrimaryContainer": {"ModelDataUrl": f"s3://{bucket}/..."}},
            list_objects_v2={"Contents": [{"Key": f"{bundles_of(self.endpoint.name)}<sha256>/model.tar.gz"}]},
        )
        from serve.aws.control import delete

        delete(aws, self.endpoint.name, self.bucket)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policies:
    """Print the IAM documents of the roles, as one JSON object; asks nothing of AWS."""

    bucket: str
    """Takes bundles."""
    role: str
    """ARN of the role that the containers run as; it need not exist yet."""
    photos: str | None = None
    """s3://bucket/.../bin-images/, beside metadata/. Default: in the same bucket."""
    answers: str | None = None
    """s3://bucket/folder/ for answers of batch transforms. Default: counts/ in the same bucket."""
    repository: str = "bintally-sagemaker"
    """Of this account in ECR, with our own image."""
    endpoint: tyro.conf.OmitArgPrefixes[EndpointArgs] = field(default_factory=EndpointArgs)

    def run(self) -> None:
        """Print."""
        from serve.aws.calls import choose_region
        from serve.aws.iam import Place
        from serve.aws.policies import policies_of

        place = Place(
            name=self.endpoint.name,
            bucket=self.bucket,
            role=self.role,
            region=choose_region(self.endpoint.region),
            photos=self.photos or f"s3://{self.bucket}/bin-images/",
            answers=self.answers or f"s3://{self.bucket}/counts/",
            repository=self.repository,
        )
        print(json.dumps(policies_of(place), indent=2))


def main(argv: list[str]) -> None:
    """Parse, then do it."""
    with readable_errors():
        deploy = Annotated[Deploy, tyro.conf.subcommand("deploy")]
        invoke = Annotated[Invoke, tyro.conf.subcommand("invoke")]
        transform = Annotated[Transform, tyro.conf.subcommand("transform")]
        delete = Annotated[Delete, tyro.conf.subcommand("delete")]
        policies = Annotated[Policies, tyro.conf.subcommand("policies")]
        sys.exit(tyro.cli(deploy | invoke | transform | delete | policies, args=argv, description=__doc__).run())
