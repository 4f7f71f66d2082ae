"""Write the state machine that trains, compares, deploys and tells, for AWS Step Functions.

    python serve/export.py state-machine --bucket B --endpoint bins --role arn:... --function arn:... --topic arn:... \
        --training-image URI --image URI --source s3://bins --recipe baseline_resnet34 --out machine.json

manifest -> training job -> gate (is it better than what the endpoint has?) -> deploy -> smoke test -> notify; whatever
fails leads back to the model of before, tells, and ends as failed. What is not given stays a ${Placeholder}, as
CloudFormation's DefinitionSubstitutions fill it: serve/aws/state_machine.json is written without any flag.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import tyro

from bintally.cli import readable_errors
from bintally.errors import ConfigError
from serve.aws.images import is_gpu
from serve.aws.plan import VARIANT, capacity_of, environment_of
from serve.aws.states_args import PLACEHOLDER, StateMachineArgs

State = dict[str, Any]

MANIFEST_S: Final = 6 * 3600
TRAINING_S: Final = 24 * 3600
WAITING_S: Final = 48 * 3600  # with the time that spot instances are not to be had
THROTTLED: Final = {
    "sagemaker": ["ThrottlingException", "SageMaker.AmazonSageMakerException", "SageMaker.SageMakerException"],
    "lambda": ["Lambda.TooManyRequestsException", "Lambda.ServiceException", "Lambda.SdkClientException"],
    "sns": ["ThrottlingException", "SNS.ThrottledException", "SNS.AmazonSNSException"],
}
"""What AWS calls a request that it had no room for; Step Functions has one name for all errors of SageMaker."""


def definition(args: StateMachineArgs) -> dict[str, Any]:
    """The state machine, in the Amazon States Language."""
    named = f"States.Format('{args.endpoint}-sm{{}}', States.ArrayGetItem(States.StringSplit(States.UUID(), '-'), 4))"
    job, model = {"job.$": "$.ProcessingJobName"}, {"model_url.$": "$.ModelArtifacts.S3ModelArtifacts"}
    states = {
        "Begin": {"Type": "Pass", "Parameters": {"name.$": named}, "Next": "Manifest"},
        **_job("Manifest", "ProcessingJob", _manifest_job(args), args, job, "Train"),
        **_job("Train", "TrainingJob", _training_job(args), args, model, "Gate"),
        **_gate(args),
        **_deploy(args),
        **_smoke(args),
        **_failure(args),
    }
    comment = "Trains a counter of items in bins, and deploys it if it is better."
    return {"Comment": comment, "StartAt": "Begin", "States": states}


def _retry(errors: list[str], interval_s: int, attempts: int, rate: float) -> State:
    return {"ErrorEquals": errors, "IntervalSeconds": interval_s, "MaxAttempts": attempts, "BackoffRate": rate}


def _task(
    resource: str,
    parameters: State,
    then: str,
    *,
    result: str | None = None,
    selector: State | None = None,
    retry: tuple[State, ...] = (),
    caught: tuple[str, str] = ("RollBack", "$.error"),
) -> State:
    """A task that tries again when it is throttled, and whose failures go to the failure branch."""
    service = next(name for name in THROTTLED if name in resource)
    again = [*retry, _retry(THROTTLED[service], 5, 4, 2.0)]
    state, where = caught
    return {
        "Type": "Task",
        "Resource": f"arn:aws:states:::{resource}",
        "Parameters": parameters,
        **({} if selector is None else {"ResultSelector": selector}),
        "ResultPath": result,
        "Retry": again,
        "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": where, "Next": state}],
        "Next": then,
    }


def _job(name: str, kind: str, request: State, args: StateMachineArgs, told: State, then: str) -> dict[str, State]:
    """A job of SageMaker to its end; `.sync` gives what Describe gives, and a failure if the job failed."""
    result = f"$.{name.lower()}"
    if args.engine == "aws":
        return {name: _task(f"sagemaker:create{kind}.sync", request, then, result=result, selector=told)}
    describe, asked = f"aws-sdk:sagemaker:describe{kind}", {f"{kind}Name.$": "$.name"}
    described = _task(describe, asked, then, result=result, selector=told)
    return {name: _task(f"sagemaker:create{kind}", request, f"{name}ed"), f"{name}ed": described}


def _place(args: StateMachineArgs, folder: str) -> str:
    return f"States.Format('s3://{args.bucket}/bintally/{folder}/{{}}', $.name)"


def _manifest_job(args: StateMachineArgs) -> State:
    """Lists and labels the bins, so that it is on record what a model was trained on."""
    out = "/opt/ml/processing/output"
    flags = ["--source", args.source, "--out", f"{out}/manifest.parquet", *args.source_flags.split()]
    cluster = {"InstanceCount": 1, "InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 30}
    stored = {"S3Uri.$": _place(args, "manifests"), "LocalPath": out, "S3UploadMode": "EndOfJob"}
    return {
        "ProcessingJobName.$": "$.name",
        "RoleArn": args.role,
        "AppSpecification": {
            "ImageUri": args.training_image,
            "ContainerEntrypoint": ["python", "data/manifest.py"],
            "ContainerArguments": flags,
        },
        "ProcessingResources": {"ClusterConfig": cluster},
        "ProcessingOutputConfig": {"Outputs": [{"OutputName": "manifest", "S3Output": stored}]},
        "StoppingCondition": {"MaxRuntimeInSeconds": MANIFEST_S},
    }


def _training_job(args: StateMachineArgs) -> State:
    """Trains, and leaves what a model.tar.gz holds in the folder that SageMaker packs as model.tar.gz."""
    manifest = {"S3DataType": "S3Prefix", "S3Uri.$": _place(args, "manifests")}
    variables = {
        "BINTALLY_SOURCE": args.source,
        "BINTALLY_RECIPE": args.recipe,
        "BINTALLY_FLAGS": args.source_flags,
        "BINTALLY_FIT_FLAGS": args.fit_flags,
        "BINTALLY_DEVICE_FLAGS": "--use-gpu" if is_gpu(args.training_instance_type) else "",
    }
    return {
        "TrainingJobName.$": "$.name",
        "RoleArn": args.role,
        "AlgorithmSpecification": {
            "TrainingImage": args.training_image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["bash", "serve/aws/training/run.sh"],
        },
        "Environment": {name: value for name, value in variables.items() if value},
        "InputDataConfig": [{"ChannelName": "manifest", "DataSource": {"S3DataSource": manifest}}],
        "OutputDataConfig": {"S3OutputPath": f"s3://{args.bucket}/bintally/training"},
        "CheckpointConfig": {"S3Uri.$": _place(args, "checkpoints"), "LocalPath": "/opt/ml/checkpoints"},
        "EnableManagedSpotTraining": True,
        "ResourceConfig": {"InstanceCount": 1, "InstanceType": args.training_instance_type, "VolumeSizeInGB": 100},
        "StoppingCondition": {"MaxRuntimeInSeconds": TRAINING_S, "MaxWaitTimeInSeconds": WAITING_S},
    }


def _invoke(args: StateMachineArgs, step: str, given: State) -> State:
    return {"FunctionName": args.function, "Payload": {"step": step, "with": {"endpoint": args.endpoint, **given}}}


def _gate(args: StateMachineArgs) -> dict[str, State]:
    asked = {"model_url.$": "$.train.model_url", "metric": args.metric, "min_gain": args.min_gain}
    told = {f"{name}.$": f"$.Payload.{name}" for name in ("deploy", "reason", "version", "exists", "config")}
    busy = _retry(["EndpointBusyError"], *_patience(args, 60, 30))
    yes = {"Variable": "$.gate.deploy", "BooleanEquals": True, "Next": "CreateModel"}
    invoke = _invoke(args, "gate", asked)
    return {
        "Gate": _task("lambda:invoke", invoke, "Better?", result="$.gate", selector=told, retry=(busy,)),
        "Better?": {"Type": "Choice", "Choices": [yes], "Default": "NotifyKept"},
        "NotifyKept": _notify(args, "the endpoint keeps its model", "$.gate.reason", "Kept"),
        "Kept": {"Type": "Succeed"},
    }


def _deploy(args: StateMachineArgs) -> dict[str, State]:
    environment = environment_of(args.kind)
    container = {"Image": args.image, "ModelDataUrl.$": "$.train.model_url", "Environment": environment}
    exists = {"Variable": "$.gate.exists", "BooleanEquals": True, "Next": "UpdateEndpoint"}
    both = {"EndpointName": args.endpoint, "EndpointConfigName.$": "$.name"}
    here = {"EndpointName": args.endpoint}
    seen = {"status.$": "$.EndpointStatus", "config.$": "$.EndpointConfigName"}
    serves = [
        {"Variable": "$.endpoint.status", "StringEquals": "InService"},
        {"Variable": "$.endpoint.config", "StringEqualsPath": "$.name"},
    ]
    moves = [
        {"Variable": "$.endpoint.status", "StringEquals": status}
        for status in ("Creating", "Updating", "SystemUpdating", "RollingBack")
    ]
    cause = "the endpoint did not take the new model; its FailureReason and its log in CloudWatch tell why"
    model = {"ModelName.$": "$.name", "ExecutionRoleArn": args.role, "PrimaryContainer": container}
    config = {"EndpointConfigName.$": "$.name", "ProductionVariants": [_variant(args)]}
    return {
        "CreateModel": _task("sagemaker:createModel", model, "CreateConfig"),
        "CreateConfig": _task("sagemaker:createEndpointConfig", config, "Exists?"),
        "Exists?": {"Type": "Choice", "Choices": [exists], "Default": "CreateEndpoint"},
        "CreateEndpoint": _task("sagemaker:createEndpoint", both, "Settle"),
        "UpdateEndpoint": _task("sagemaker:updateEndpoint", both, "Settle"),
        "Settle": {"Type": "Wait", "Seconds": 30 if args.engine == "aws" else 0, "Next": "Look"},
        "Look": _task("aws-sdk:sagemaker:describeEndpoint", here, "Serves?", result="$.endpoint", selector=seen),
        "Serves?": {
            "Type": "Choice",
            "Choices": [{"And": serves, "Next": "Smoke"}, {"Or": moves, "Next": "Settle"}],
            "Default": "NotServing",
        },
        "NotServing": {
            "Type": "Pass",
            "Result": {"Error": "EndpointFailed", "Cause": cause},
            "ResultPath": "$.error",
            "Next": "RollBack",
        },
    }


def _variant(args: StateMachineArgs) -> State:
    capacity = capacity_of(args.kind, args.instance_type, 1, args.memory_mb, args.max_concurrency)
    return {"VariantName": VARIANT, "ModelName.$": "$.name", **capacity}


def _smoke(args: StateMachineArgs) -> dict[str, State]:
    asked = _invoke(args, "smoke", {"version.$": "$.gate.version"})
    starting = _retry(["NotReadyError"], *_patience(args, 15, 40))
    told = {"count.$": "$.Payload.count"}
    former = _invoke(args, "clean_up", {"name.$": "$.name", "config.$": "$.gate.config"})
    return {
        "Smoke": _task("lambda:invoke", asked, "CleanUp", result="$.smoke", selector=told, retry=(starting,)),
        "CleanUp": _task("lambda:invoke", former, "NotifyDeployed", caught=("NotifyDeployed", "$.clean_up_error")),
        "NotifyDeployed": _notify(args, "a new model is deployed", "$.gate.reason", "Deployed"),
        "Deployed": {"Type": "Succeed"},
    }


def _failure(args: StateMachineArgs) -> dict[str, State]:
    """Whatever failed: go back, tell, fail. What fails on the way back is told, too."""
    asked = _invoke(args, "roll_back", {"name.$": "$.name", "state.$": "$"})
    busy = _retry(["EndpointBusyError"], *_patience(args, 30, 60))
    lost = ("NotifyFailed", "$.roll_back_error")
    notify = _notify(args, "the new model is not deployed", "States.JsonToString($)", "Failed")
    notify["Catch"][0]["ResultPath"] = "$.notify_error"
    # The error's own name would be States.Runtime at times, which a state may not fail with.
    cause = "States.Format('{}: {}', $.error.Error, $.error.Cause)"
    return {
        "RollBack": _task("lambda:invoke", asked, "NotifyFailed", retry=(busy,), caught=lost),
        "NotifyFailed": notify,
        "Failed": {"Type": "Fail", "Error": "NotDeployed", "CausePath": cause},
    }


def _notify(args: StateMachineArgs, what: str, told: str, then: str) -> State:
    """Tell the topic. A deployed and tested model is not taken back because nobody could be told."""
    subject = f"BinTally: {what}"
    message = f"States.Format('{{}} (endpoint {args.endpoint}, model {{}}): {{}}', '{what}', $.name, {told})"
    parameters = {"TopicArn": args.topic, "Subject": subject, "Message.$": message}
    return _task("sns:publish", parameters, then, caught=("Failed", "$.error"))


def _patience(args: StateMachineArgs, interval_s: int, attempts: int) -> tuple[int, int, float]:
    """How often to ask again, at an even pace; moto's endpoints move at once."""
    return (interval_s, attempts, 1.0) if args.engine == "aws" else (1, 3, 1.0)


def main(argv: list[str]) -> None:
    """Parse, then write the state machine."""
    with readable_errors():
        # A partial: tyro boxes the errors of a class.
        args = tyro.cli(
            partial(StateMachineArgs), args=joined(argv), prog="export.py state-machine", description=__doc__
        )
        text = json.dumps(definition(args), indent=2) + "\n"
        if left := sorted(set(PLACEHOLDER.findall(text))):
            print(f"left to be filled: {', '.join(left)}", file=sys.stderr)
        _write(text, args.out)


def joined(argv: list[str]) -> list[str]:
    """The same words, with flags that are a flag's value behind a `=`: a word of its own would be taken for a flag."""
    words = iter(argv)
    return [f"{word}={next(words, '')}" if word in ("--source-flags", "--fit-flags") else word for word in words]


def _write(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written: {error.strerror}") from None
