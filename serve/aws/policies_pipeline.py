"""IAM documents of the state machine: of itself, of its function, and of the jobs that it starts."""

from typing import Final

from serve.aws.iam import PULL, Document, Place, allow, document, trust
from serve.aws.transform import records_beside

JOBS: Final = {"processing-job": "ProcessingJob", "training-job": "TrainingJob"}
RULES: Final = "rule/StepFunctionsGetEventsForSageMaker*"
"""Step Functions makes one for each kind of job, by which `.sync` hears of its end."""
TRAINING_REPOSITORY: Final = "bintally-training"


def pipeline_policies(place: Place) -> dict[str, Document]:
    """All documents by name.

    The function and the topic are called as the endpoint, with `-pipeline` behind; `training_role` is what the role of
    the containers needs besides `execution_role`.
    """
    return {
        "state_machine_trust": trust("states.amazonaws.com"),
        "state_machine": document(_state_machine(place)),
        "pipeline_lambda": document(_function(place)),
        "training_role": document(_training(place)),
    }


def _state_machine(place: Place) -> list[Document]:
    """What serve/aws/state_machine.json calls."""
    endpoint, config = place.arn("sagemaker", f"endpoint/{place.name}"), _named(place, "endpoint-config")
    to_sagemaker = {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
    jobs = [
        allow(
            f"Run{kind}s", [f"sagemaker:{verb}{kind}" for verb in ("Create", "Describe", "Stop")], _named(place, name)
        )
        for name, kind in JOBS.items()
    ]
    return [
        *jobs,
        allow("TagJobs", ["sagemaker:AddTags"], [_named(place, name) for name in JOBS]),  # .sync marks what it started
        allow("HearOfEnds", ["events:DescribeRule", "events:PutRule", "events:PutTargets"], place.arn("events", RULES)),
        allow("PassTheRole", ["iam:PassRole"], place.role, to_sagemaker),
        allow("MakeModel", ["sagemaker:CreateModel"], _named(place, "model")),
        allow("MakeConfig", ["sagemaker:CreateEndpointConfig"], config),
        allow("MakeEndpoint", ["sagemaker:CreateEndpoint", "sagemaker:UpdateEndpoint"], [endpoint, config]),
        allow("LookAtEndpoint", ["sagemaker:DescribeEndpoint"], endpoint),
        allow("AskTheFunction", ["lambda:InvokeFunction"], place.arn("lambda", f"function:{place.name}-pipeline")),
        allow("Tell", ["sns:Publish"], place.arn("sns", f"{place.name}-pipeline")),
    ]


def _function(place: Place) -> list[Document]:
    """What serve/aws/lambda_pipeline.py calls: the gate, the smoke test, the way back."""
    endpoint, config = place.arn("sagemaker", f"endpoint/{place.name}"), _named(place, "endpoint-config")
    return [
        allow("ReadBundles", ["s3:GetObject"], place.objects(place.bundles)),
        allow("Models", ["sagemaker:DeleteModel", "sagemaker:DescribeModel"], _named(place, "model")),
        allow("Configs", ["sagemaker:DeleteEndpointConfig", "sagemaker:DescribeEndpointConfig"], config),
        allow(
            "Endpoint",
            ["sagemaker:DeleteEndpoint", "sagemaker:DescribeEndpoint", "sagemaker:InvokeEndpoint"],
            endpoint,
        ),
        allow("GoBack", ["sagemaker:UpdateEndpoint"], [endpoint, config]),
        place.logs("WriteLogs", f"/aws/lambda/{place.name}-pipeline"),
    ]


def _training(place: Place) -> list[Document]:
    """What the jobs need: the bucket's photos and records, a place for results, their image, logs."""
    records = records_beside(place.photos)
    return [
        allow("ReadSource", ["s3:GetObject"], [place.objects(place.photos), place.objects(records)]),
        place.listing("ListPhotos", place.photos),
        place.listing("ListRecords", records),
        allow("WriteResults", ["s3:GetObject", "s3:PutObject"], place.objects(place.bundles)),
        place.listing("ListResults", place.bundles),
        allow("PullImage", PULL, place.arn("ecr", f"repository/{TRAINING_REPOSITORY}")),
        place.logs("WriteLogs", "/aws/sagemaker/ProcessingJobs", "/aws/sagemaker/TrainingJobs"),
    ]


def _named(place: Place, kind: str) -> str:
    return place.arn("sagemaker", f"{kind}/{place.name}-*")
