"""An AWS to execute the state machine in: moto, and what it lacks.

Added here are UpdateEndpoint, the model.tar.gz that a training job leaves, the code of a Lambda function, which runs in
this process, and real models behind the endpoint.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import moto
import pytest
from moto.awslambda_simple.models import LambdaSimpleBackend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.responses import ActionResult
from moto.sagemaker.models import ValidationError, sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse

from serve.aws import lambda_pipeline, states
from serve.aws.lambda_pipeline import client_of
from serve.aws.states_args import StateMachineArgs

NAME = "bins"
FIRST = f"{NAME}-{0:012}"  # as `deploy` names a model and its configuration
ROLE = "arn:aws:iam::123456789012:role/bintally"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/bintally:1"


@dataclass(frozen=True, slots=True)
class Model:
    """A packed model."""

    version: str
    tarball: Path
    url: str
    """Of our container with it."""


@dataclass
class Cloud:
    """An AWS of moto, and what it lacks."""

    models: dict[str, Model]
    """By name."""
    trained: Model | str = ""
    """What the next training job leaves; text: why it fails."""
    comes_up: bool = True
    """Whether SageMaker can start the endpoints that are made."""
    hosted: dict[str, str] = field(default_factory=dict)
    """URLs of containers by the place of their model.tar.gz."""

    def put(self, model: Model, key: str) -> str:
        """Upload a model.tar.gz; its place."""
        client_of("s3").upload_file(str(model.tarball), NAME, key)
        self.hosted[f"s3://{NAME}/{key}"] = model.url
        return f"s3://{NAME}/{key}"

    def deploy(self, model: Model) -> None:
        """An endpoint as `export.py deploy` leaves it."""
        client = client_of("sagemaker")
        container = {"Image": IMAGE, "ModelDataUrl": self.put(model, "bintally/first/model.tar.gz")}
        client.create_model(ModelName=FIRST, ExecutionRoleArn=ROLE, PrimaryContainer=container)
        variant = {"VariantName": "AllTraffic", "ModelName": FIRST, "InstanceType": "ml.m5.xlarge"}
        client.create_endpoint_config(
            EndpointConfigName=FIRST, ProductionVariants=[variant | {"InitialInstanceCount": 1}]
        )
        client.create_endpoint(EndpointName=NAME, EndpointConfigName=FIRST)

    def run(self, **values: object) -> dict[str, Any]:
        """Execute the state machine to its end."""
        function, topic = made_function(), made_topic()
        args = StateMachineArgs(
            bucket=NAME,
            endpoint=NAME,
            role=ROLE,
            function=function,
            topic=topic,
            training_image=IMAGE,
            image=IMAGE,
            source="s3://bins",
            recipe="smoke",
            engine="moto",
            **values,  # type: ignore[arg-type]
        )
        client = client_of("stepfunctions")
        machine = client.create_state_machine(
            name="pipeline", definition=json.dumps(states.definition(args)), roleArn=ROLE
        )
        begun = client.start_execution(stateMachineArn=machine["stateMachineArn"])
        for _ in range(600):
            told: dict[str, Any] = client.describe_execution(executionArn=begun["executionArn"])
            if told["status"] != "RUNNING":
                return told
            time.sleep(0.05)
        raise AssertionError("the execution did not end")

    def set_status(self, status: str) -> None:
        """Let the endpoint be in a state that moto's never are in."""
        sagemaker_backends[DEFAULT_ACCOUNT_ID]["us-east-1"].endpoints[NAME].endpoint_status = status

    def serves(self) -> str | None:
        """The configuration of the endpoint, if there is one."""
        client = client_of("sagemaker")
        found = [one["EndpointName"] for one in client.list_endpoints()["Endpoints"]]
        return client.describe_endpoint(EndpointName=NAME)["EndpointConfigName"] if found else None

    def left(self) -> tuple[list[str], list[str]]:
        """Names of models and configurations."""
        client = client_of("sagemaker")
        models = [one["ModelName"] for one in client.list_models()["Models"]]
        configs = [one["EndpointConfigName"] for one in client.list_endpoint_configs()["EndpointConfigs"]]
        return models, configs

    def told(self) -> list[dict[str, str]]:
        """Notifications, as they reach a subscriber."""
        sqs = client_of("sqs")
        url = sqs.get_queue_url(QueueName="told")["QueueUrl"]
        messages = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
        return [json.loads(one["Body"]) for one in messages]


def made_function() -> str:
    """ARN of a function whose code `cloud` has moto run."""
    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    role = client_of("iam").create_role(RoleName="lambda", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    made = client_of("lambda").create_function(
        FunctionName="pipeline",
        Runtime="python3.13",
        Role=role,
        Handler="serve.aws.lambda_pipeline.handler",
        Code={"ZipFile": b"none"},
    )
    return str(made["FunctionArn"])


def made_topic() -> str:
    """ARN of a topic with a queue behind it."""
    sns, sqs = client_of("sns"), client_of("sqs")
    topic = str(sns.create_topic(Name="told")["TopicArn"])
    url = sqs.create_queue(QueueName="told")["QueueUrl"]
    queue = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue)
    return topic


def invoke(_: object, name: str, __: object, body: str, ___: object, headers: dict[str, str]) -> bytes:
    """Run the function's code, and tell of an error as Lambda's runtime does."""
    assert name.endswith("pipeline")
    try:
        return json.dumps(lambda_pipeline.handler(json.loads(body), None)).encode()
    except Exception as error:  # noqa: BLE001  # whatever the function raises
        headers["x-amz-function-error"] = "Unhandled"
        return json.dumps({"errorType": type(error).__name__, "errorMessage": str(error)}).encode()


def update_endpoint(response: SageMakerResponse) -> ActionResult:
    """UpdateEndpoint, which moto has not; like its CreateEndpoint it is done at once."""
    asked = json.loads(response.body)
    backend = response.sagemaker_backend
    if asked["EndpointName"] not in backend.endpoints:
        raise ValidationError(message=f"Could not find endpoint {asked['EndpointName']}")
    backend.describe_endpoint_config(asked["EndpointConfigName"])
    backend.endpoints[asked["EndpointName"]].endpoint_config_name = asked["EndpointConfigName"]
    return ActionResult({"EndpointArn": backend.endpoints[asked["EndpointName"]].arn})


class Placed(dict[str, object]):
    """Endpoints of the shim: whatever model SageMaker says is behind a name."""

    def __init__(self, cloud: Cloud, endpoint: Callable[[str], object]) -> None:
        super().__init__()
        self._cloud, self._endpoint = cloud, endpoint

    def get(self, name: str, _: object = None) -> object:
        client = client_of("sagemaker")
        config = client.describe_endpoint(EndpointName=name)["EndpointConfigName"]
        variants = client.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
        model = client.describe_model(ModelName=variants[0]["ModelName"])
        return self._endpoint(self._cloud.hosted[model["PrimaryContainer"]["ModelDataUrl"]])


@contextmanager
def running_cloud(models: dict[str, Model]) -> Iterator[Cloud]:
    """One with an empty bucket, until the end of the block."""
    cloud = Cloud(models)
    create = SageMakerResponse.create_training_job

    def create_training_job(response: SageMakerResponse) -> ActionResult:
        if isinstance(cloud.trained, str):
            raise ValidationError(message=cloud.trained)
        answer: ActionResult = create(response)
        name = json.loads(response.body)["TrainingJobName"]
        cloud.put(cloud.trained, f"bintally/training/{name}/output/model.tar.gz")
        return answer

    make = SageMakerResponse.create_endpoint

    def create_endpoint(response: SageMakerResponse) -> ActionResult:
        answer: ActionResult = make(response)
        if not cloud.comes_up:
            cloud.set_status("Failed")
        return answer

    config = {
        "core": {"passthrough": {"urls": [r"http://127\.0\.0\.1.*"]}},
        "lambda": {"use_docker": False},
        "stepfunctions": {"execute_state_machine": True},
    }
    client_of.cache_clear()
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws(config=config):
        patch.setattr(SageMakerResponse, "update_endpoint", update_endpoint, raising=False)
        patch.setattr(SageMakerResponse, "create_training_job", create_training_job)
        patch.setattr(SageMakerResponse, "create_endpoint", create_endpoint)
        patch.setattr(LambdaSimpleBackend, "invoke", invoke)
        client_of("s3").create_bucket(Bucket=NAME)
        yield cloud
    client_of.cache_clear()  # moto's account ends with it
