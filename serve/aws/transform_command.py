"""The command that lets a model count a whole prefix, and scores it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from bintally.errors import AwsError, ConfigError
from serve.aws.endpoint_args import EndpointArgs
from serve.aws.plan import split_uri

if TYPE_CHECKING:
    from serve.aws.calls import Aws
    from serve.aws.transform import TransformPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Transform:
    """Let an endpoint's model count all photos under a prefix, and score its answers by the records."""

    input: str
    """s3://bucket/folder/ of photos."""
    output: str
    """s3://bucket/folder/; the answers lie in a folder of the job's name there."""
    records: str | None = None
    """s3://bucket/folder/ of the records. Default: the folder metadata beside bin-images."""
    instance_type: str = "ml.m5.xlarge"
    num_instances: int = 1
    job_name: str | None = None
    """Of the transform job. Default: one of what it does, so that the same command goes on with it."""
    partial: bool = False
    """Score what the job of this name has answered, though it failed or was stopped."""
    metrics: Path = Path("metrics.json")
    """Takes the figures."""
    again: bool = False
    """Start a new job, though one has done the same, and no photo was uploaded since."""
    dry_run: bool = False
    """Print every call up to the job and make none."""
    endpoint: tyro.conf.OmitArgPrefixes[EndpointArgs] = field(default_factory=EndpointArgs)

    def run(self) -> None:
        """Start or find the job, wait, score."""
        if self.partial and self.job_name is None:
            raise ConfigError("partial needs job_name: without, another job is started")
        if self.again and self.job_name is not None:
            raise ConfigError("again makes up a name of its own: leave out job_name")
        behind = f"{self.endpoint.name}-<hash>"
        aws = self.endpoint.connect(
            dry_run=self.dry_run,
            describe_endpoint={"EndpointConfigName": behind},
            describe_endpoint_config={"ProductionVariants": [{"ModelName": behind}]},
        )
        from serve.aws.transform import find_or_start, list_photos, records_beside, wait_for_job

        split_uri("input", self.input)
        records = self.records or records_beside(self.input)
        split_uri("records", records)
        plan = self.plan(aws)
        photos = list_photos(aws, self.input)
        if not photos and not aws.is_dry:
            raise ConfigError(f"input: there is nothing under {self.input}")
        job = find_or_start(aws, plan, photos, again=self.again)
        if aws.is_dry:
            return
        failure = wait_for_job(aws, job, len(photos))
        if failure and not self.partial:
            raise AwsError(f"{failure}; --job-name {job} --partial scores what it has answered")
        self.score(aws, [photo.key for photo in photos], plan.request(job)["TransformOutput"]["S3OutputPath"], records)

    def plan(self, aws: "Aws") -> "TransformPlan":
        """What is to be counted, by the model that is behind the endpoint.

        Raises:
            ConfigError: a value is wrong.
            AwsError: there is no such endpoint, or AWS cannot be asked.
        """
        from serve.aws.transform import TransformPlan, model_of

        return TransformPlan(
            name=self.endpoint.name,
            model=model_of(aws, self.endpoint.name),
            input=self.input,
            output=self.output,
            instance_type=self.instance_type,
            num_instances=self.num_instances,
            job_name=self.job_name,
        )

    def score(self, aws: "Aws", photos: list[str], answers: str, records: str) -> None:
        """Write and print the figures of a job."""
        from serve.aws.evaluation import Places, evaluate, format_figures

        figures = evaluate(aws, Places(photos=self.input, answers=answers, records=records), photos)
        print(format_figures(figures))
        try:
            self.metrics.write_text(json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"metrics: {self.metrics} cannot be written: {error.strerror}") from None
        print(f"metrics: {self.metrics}; answers: {answers}")
