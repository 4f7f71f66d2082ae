"""What the commands say: the calls of a dry run, what they wait for, and what is wrong, in a line each."""

import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serve.aws.calls import Aws
from serve.aws.control import deploy as deploy_plan
from serve.aws.plan import DeployPlan

ROLE = "arn:aws:iam::123456789012:role/bintally"
Run = Callable[..., tuple[int, str, str]]
There = Callable[[], dict[str, list[str]]]
FakeSageMaker = Any  # of fake_sagemaker.py
Shim = Any  # of shim.py


def test_a_dry_run_prints_the_calls_of_a_real_one_and_makes_none(
    sagemaker: FakeSageMaker, deploy: Run, run: Run, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as offline, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens: a call would fail
        offline.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        for service in ("S3", "SAGEMAKER", "SAGEMAKER_RUNTIME"):
            offline.delenv(f"AWS_ENDPOINT_URL_{service}")
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            offline.delenv(key)
        code, out, err = deploy(bundles["good"], "--dry-run")
    assert (code, err, sagemaker.requests) == (0, "", [])
    calls = re.findall(r"^([a-z0-9-]+)\.(\w+)\((.*)\)$", out, flags=re.MULTILINE)
    told = ["".join(part.title() for part in call.split("_")) for service, call, _ in calls if service == "sagemaker"]
    assert deploy(bundles["good"])[0] == 0
    assert told == sagemaker.requests
    assert [call for service, call, _ in calls if service == "s3"] == ["list_objects_v2", "upload_file"]
    assert ("sagemaker-runtime", "invoke_endpoint") in {(service, call) for service, call, _ in calls}
    assert "ContainerStartupHealthCheckTimeoutInSeconds" in out


def test_a_dry_deletion_prints_its_calls_and_deletes_nothing(
    sagemaker: FakeSageMaker, deploy: Run, run: Run, name: str, bundles: dict[str, Path], there: There
) -> None:
    assert deploy(bundles["good"])[0] == 0
    before = there()
    sagemaker.requests.clear()
    code, out, _ = run("delete", "--dry-run")
    assert (code, sagemaker.requests) == (0, [])
    assert f"sagemaker.delete_endpoint(EndpointName='{name}')" in out
    assert there() == before


def test_a_dry_invocation_prints_its_call_alone(aws: None, run: Run, name: str, bundles: dict[str, Path]) -> None:
    code, out, err = run("invoke", bundles["good"], "--dry-run")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert out.startswith(f"sagemaker-runtime.invoke_endpoint(EndpointName='{name}'")


def test_waiting_says_what_is_under_way_and_since_when(
    sagemaker: FakeSageMaker,
    shim: Shim,
    bucket: str,
    name: str,
    bundles: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from serve.aws.bundle import read_bundle  # heavy

    bundle = read_bundle(bundles["good"])
    plan = DeployPlan(
        name=name,
        kind="realtime",
        sha256=bundle.sha256,
        version=bundle.version,
        bucket=bucket,
        role=ROLE,
        image="image",
        instance_type="ml.m5.xlarge",
        num_instances=1,
        memory_mb=1024,
        max_concurrency=1,
    )
    sagemaker.on["CreateEndpoint"] = lambda: setattr(sagemaker, "changing", 3)
    shim.faults.append(SimpleNamespace(status=429, code="ModelNotReadyException", message="made up"))
    deploy_plan(Aws("us-east-1", poll_s=0.01), plan, bundle.path, smoke_s=30)
    out = capsys.readouterr().out
    assert len(re.findall(rf"^[\d:]{{8}} endpoint {name}: Creating since [\d:]{{8}}$", out, flags=re.MULTILINE)) == 1
    assert out.count("does not count yet") == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--bucket", "s3://b"], "bucket"),
        (["--role", "admin"], "role"),
        (["--instance-type", "m5.xlarge"], "instance_type"),
        (["--instance-type", "ml.c7g.xlarge"], "arm64"),
        (["--instance-type", "ml.g5.xlarge"], "count on CPUs"),
        (["--num-instances", "0"], "num_instances"),
        (["--kind", "serverless"], "image"),
        (["--kind", "serverless", "--image", "x", "--memory-mb", "1000"], "memory_mb"),
        (["--kind", "serverless", "--image", "x", "--max-concurrency", "201"], "max_concurrency"),
        (["--region", "mars-1"], "mars-1"),
        (["--checkpoint", "x"], "either a checkpoint or a bundle"),
        (["--bundle", "absent.tar.gz"], "absent.tar.gz"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(
    flags: list[str], says: str, aws: None, run: Run, bundles: dict[str, Path]
) -> None:
    usual = ["--bundle", bundles["good"], "--bucket", "bucket", "--role", ROLE]
    code, out, err = run("deploy", *usual, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "set AWS_PROFILE, or AWS_ACCESS_KEY_ID"),
        ({"AWS_DEFAULT_REGION": None}, "add --region"),
        ({"AWS_PROFILE": "absent"}, "AWS_PROFILE"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "check the region and the network"),
    ],
)
def test_what_aws_needs_and_has_not_is_one_line(
    variables: dict[str, str | None], says: str, aws: None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for variable, value in variables.items():
        monkeypatch.delenv(variable, raising=False) if value is None else monkeypatch.setenv(variable, value)
    code, out, err = run("delete")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_a_bucket_that_is_not_there_is_named(
    sagemaker: FakeSageMaker, run: Run, name: str, bundles: dict[str, Path]
) -> None:
    code, _, err = run("deploy", "--bundle", bundles["good"], "--bucket", f"no-{name}", "--role", ROLE)
    assert (code, err.count("\n"), "another bucket" in err) == (2, 1, True)
    assert sagemaker.requests == ["DescribeEndpoint"]
