"""What the state machine is told: a value, and the flags of the command that writes it."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bintally.errors import ConfigError
from bintally.recipes import get_recipe
from serve.aws.images import check_instance_type
from serve.aws.plan import (
    DEFAULT_CONCURRENCY,
    DEFAULT_MEMORY_MB,
    Kind,
    check_bucket,
    check_capacity,
    check_name,
    split_role,
)

FORMS: Final = {
    "function": (r"arn:aws[a-z-]*:lambda:[a-z0-9-]+:\d{12}:function:.+", "the ARN of a Lambda function"),
    "topic": (r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:.+", "the ARN of an SNS topic"),
    "training_image": (r"[a-z0-9.-]+\.[a-z]+/\S+", "the URI of an image in ECR"),
    "image": (r"[a-z0-9.-]+\.[a-z]+/\S+", "the URI of an image in ECR"),
    "source": (r"s3://\S+", "s3://bucket[/prefix]"),
}
"""What a value has to look like, for programs and for people."""
PLACEHOLDER: Final = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StateMachineArgs:
    """What the state machine runs, and where."""

    bucket: str = "${Bucket}"
    """Takes manifests, checkpoints and models, below bintally/."""
    endpoint: str = "${Endpoint}"
    """Name of the endpoint; it need not exist."""
    role: str = "${Role}"
    """ARN of the role that SageMaker's jobs and containers run as."""
    function: str = "${Function}"
    """ARN of the Lambda with serve.aws.lambda_pipeline.handler."""
    topic: str = "${Topic}"
    """ARN of the SNS topic that is told how it ended."""
    training_image: str = "${TrainingImage}"
    """URI in ECR of the image of serve/aws/training/Dockerfile."""
    image: str = "${Image}"
    """URI in ECR of the image that serves, as for `export.py deploy`."""
    source: str = "${Source}"
    """Bucket of bins, as for train/fit.py."""
    source_flags: str = ""
    """More flags that data/manifest.py, train/fit.py and train/evaluate.py have, as "--signed --region eu-west-1"."""
    fit_flags: str = ""
    """More flags of train/fit.py alone, as "--num-workers 4 --split-by hash"."""
    recipe: str = "${Recipe}"
    """Named recipe of bintally/recipes.py."""
    metric: Literal["val_accuracy", "val_within_one", "val_nll", "val_rmse", "val_mae"] = "val_accuracy"
    """What has to be better than that of the endpoint's model."""
    min_gain: float = 0.0
    """By how much, in the metric's unit."""
    kind: Kind = "realtime"
    """Of the endpoint."""
    instance_type: str = "ml.m5.xlarge"
    """Of a real-time endpoint; without GPUs."""
    memory_mb: int = DEFAULT_MEMORY_MB
    """Of a serverless endpoint: 1024 to 6144, in steps of 1024. More than 3072 takes a higher quota first."""
    max_concurrency: int = DEFAULT_CONCURRENCY
    """Requests at a time of a serverless endpoint."""
    training_instance_type: str = "ml.g5.xlarge"
    """Of the training job, on spot capacity. One with GPUs trains on them."""
    engine: Literal["aws", "moto"] = "aws"
    """moto: the same for moto's Step Functions, which knows no .sync and need not wait."""
    out: Path | None = None
    """File to write. Default: print."""

    def __post_init__(self) -> None:
        for name, (form, told) in FORMS.items():
            value = getattr(self, name)
            if not PLACEHOLDER.fullmatch(value) and not re.fullmatch(form, value):
                raise ConfigError(f"{name} must be {told}, not {value!r}")
        checks = {"bucket": check_bucket, "endpoint": _check_endpoint, "role": split_role, "recipe": get_recipe}
        for name, check in checks.items():
            if not PLACEHOLDER.fullmatch(getattr(self, name)):
                check(getattr(self, name))
        if not 0 <= self.min_gain < math.inf:
            raise ConfigError(f"min_gain must be a number of at least 0, not {self.min_gain}")
        check_instance_type("training_instance_type", self.training_instance_type)
        check_capacity(self.instance_type, self.memory_mb, self.max_concurrency)


def _check_endpoint(name: str) -> None:
    check_name(name, "endpoint")
