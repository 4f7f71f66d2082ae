"""Deployments that are stopped or killed, and what is left then; and what is not ours to delete."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
ROLE = "arn:aws:iam::123456789012:role/bintally"
Run = Callable[..., tuple[int, str, str]]
There = Callable[[], dict[str, list[str]]]
FakeSageMaker = Any  # of fake_sagemaker.py
NOTHING: dict[str, list[str]] = {"endpoints": [], "configs": [], "models": [], "bundles": []}
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/bintally:1"


def kill_this(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("operation", ["CreateModel", "CreateEndpoint"])
def test_a_deployment_that_is_stopped_is_undone(
    number: signal.Signals,
    code: int,
    operation: str,
    sagemaker: FakeSageMaker,
    deploy: Run,
    bundles: dict[str, Path],
    there: There,
) -> None:
    sagemaker.on[operation] = kill_this(number)
    ended, out, err = deploy(bundles["good"])
    assert (ended, err.count("\n")) == (code, 1)
    assert "stopped, and is undone" in out
    assert there() == NOTHING


def test_an_update_that_is_stopped_goes_back(
    sagemaker: FakeSageMaker, deploy: Run, bundles: dict[str, Path], there: There
) -> None:
    assert deploy(bundles["good"])[0] == 0
    before = there()
    sagemaker.on["UpdateEndpoint"] = kill_this(signal.SIGINT)
    assert deploy(bundles["other"])[0] == 130
    assert there() == before
    assert "nothing to do" in deploy(bundles["good"])[1]


def test_a_second_signal_leaves_the_rest_and_names_it(
    sagemaker: FakeSageMaker, deploy: Run, run: Run, name: str, bundles: dict[str, Path], there: There
) -> None:
    sagemaker.on["CreateEndpoint"] = kill_this(signal.SIGINT)
    sagemaker.on["DeleteEndpointConfig"] = kill_this(signal.SIGINT)
    code, _, err = deploy(bundles["good"])
    (config,), (model,), (bundle,) = (there()[kind] or ["-"] for kind in ("configs", "models", "bundles"))
    assert code == 130
    assert f"model {model}, s3://{name}/{bundle}. The same command goes on" in err
    assert f"delete --name {name}" in err
    assert config == "-" or f"endpoint_config {config}" in err
    assert run("delete")[0] == 0
    assert there() == NOTHING


def test_ctrl_c_while_a_failure_is_undone_names_what_is_left(
    sagemaker: FakeSageMaker, deploy: Run, bundles: dict[str, Path], there: There
) -> None:
    sagemaker.faults["CreateEndpoint"] = ("ResourceLimitExceeded", "none left")
    sagemaker.on["DeleteModel"] = kill_this(signal.SIGINT)
    code, _, err = deploy(bundles["good"])
    (bundle,) = there()["bundles"]
    assert code == 130
    assert "left as it is: model " in err
    assert bundle in err


def test_what_a_killed_deployment_left_is_deleted(
    sagemaker: FakeSageMaker, run: Run, bucket: str, name: str, bundles: dict[str, Path], there: There
) -> None:
    """SIGKILL, at the dearest moment."""
    command = [sys.executable, str(ROOT / "serve/export.py"), "deploy", "--bundle", str(bundles["good"])]
    process = subprocess.Popen([*command, "--bucket", bucket, "--role", ROLE, "--name", name])
    sagemaker.on["CreateEndpoint"] = process.kill
    assert process.wait(120) == -signal.SIGKILL
    left = there()
    assert [len(left[kind]) for kind in ("configs", "models", "bundles")] == [1, 1, 1]
    assert run("delete")[0] == 0
    assert there() == NOTHING


def test_bundles_that_no_model_leads_to_are_deleted_and_those_of_others_are_not(
    sagemaker: FakeSageMaker, run: Run, bucket: str, name: str, there: There
) -> None:
    kept = [f"bintally/{name}-2/0/model.tar.gz", f"bintally/{name}/job/output/model.tar.gz", "bintally/0/model.tar.gz"]
    for key in (f"bintally/{name}/0/model.tar.gz", *kept):
        sagemaker.client("s3").put_object(Bucket=bucket, Key=key, Body=b"")
    assert run("delete", "--bucket", bucket)[0] == 0
    assert sorted(there()["bundles"]) == sorted(kept)


@pytest.mark.parametrize("command", ["delete", "deploy"])
def test_an_endpoint_of_others_is_let_alone(
    command: str, sagemaker: FakeSageMaker, deploy: Run, run: Run, name: str, bundles: dict[str, Path], there: There
) -> None:
    client = sagemaker.client("sagemaker")
    make_behind(client, f"{name}-theirs")
    client.create_endpoint(EndpointName=name, EndpointConfigName=f"{name}-theirs")
    before = there()
    code, _, err = deploy(bundles["good"]) if command == "deploy" else run("delete")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{name}-theirs, which BinTally has not made" in err
    assert there() == before


def test_what_an_execution_of_the_state_machine_makes_is_its_own_until_it_serves(
    sagemaker: FakeSageMaker, deploy: Run, run: Run, name: str, bundles: dict[str, Path], there: There
) -> None:
    client, former, running = sagemaker.client("sagemaker"), f"{name}-sm{0:012}", f"{name}-sm{1:012}"
    for one in (former, running):
        make_behind(client, one)
    client.create_endpoint(EndpointName=name, EndpointConfigName=former)
    assert deploy(bundles["good"])[0] == 0
    found = there()
    assert former not in found["configs"] + found["models"]
    assert running in found["configs"]
    assert running in found["models"]
    assert run("delete")[0] == 0
    assert there() == NOTHING


def make_behind(client: Any, name: str) -> None:  # noqa: ANN401  # boto3 makes its types at run time
    """A model and a configuration of this name."""
    client.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": IMAGE})
    variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.m5.xlarge"}
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant | {"InitialInstanceCount": 1}])
