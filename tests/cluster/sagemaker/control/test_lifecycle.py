"""Endpoints made, changed, undone and deleted: the commands against moto, with models that really serve."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.aws.invoke import draw_photo

ROLE = "arn:aws:iam::123456789012:role/bintally"
Run = Callable[..., tuple[int, str, str]]
There = Callable[[], dict[str, list[str]]]
FakeSageMaker = Any  # of fake_sagemaker.py
Shim = Any  # of shim.py
NOTHING: dict[str, list[str]] = {"endpoints": [], "configs": [], "models": [], "bundles": []}


def test_an_endpoint_from_its_first_day_to_its_last(
    sagemaker: FakeSageMaker, deploy: Run, run: Run, name: str, bundles: dict[str, Path], tmp_path: Path, there: There
) -> None:
    code, out, err = deploy(bundles["good"])
    assert (code, err) == (0, "")
    assert re.search(r"counts: \d items in a drawn photo", out)
    first = there()
    digest = hashlib.sha256(bundles["good"].read_bytes()).hexdigest()
    assert first["bundles"] == [f"bintally/{name}/{digest}/model.tar.gz"]
    assert [len(first[kind]) for kind in ("endpoints", "configs", "models")] == [1, 1, 1]

    sagemaker.requests.clear()
    code, out, _ = deploy(bundles["good"])
    assert (code, "nothing to do" in out) == (0, True)
    assert set(sagemaker.requests) == {
        *("DescribeEndpoint", "DescribeEndpointConfig", "ListEndpointConfigs", "ListModels")
    }

    photo = tmp_path / "photo.jpg"
    photo.write_bytes(draw_photo())
    code, out, _ = run("invoke", photo, "--expected-quantity", "3")
    answer = json.loads(out.removeprefix(f"{photo}: "))
    assert code == 0
    assert (answer["expected_quantity"], answer["verdict"] in ("match", "mismatch", "review")) == (3, True)

    code, out, _ = deploy(bundles["other"])
    assert code == 0
    second = there()
    assert "UpdateEndpoint" in sagemaker.requests
    assert [len(second[kind]) for kind in ("endpoints", "configs", "models")] == [1, 1, 1]
    assert (second["configs"] != first["configs"], second["models"] != first["models"]) == (True, True)
    _, out, _ = run("invoke", photo)
    assert json.loads(out.removeprefix(f"{photo}: "))["model"]["version"] != answer["model"]["version"]

    assert run("delete")[0] == 0
    assert there() == NOTHING
    code, out, _ = run("delete")
    assert (code, f"nothing is there by the name {name}" in out) == (0, True)


def test_a_checkpoint_is_packed_on_the_way(
    sagemaker: FakeSageMaker, run: Run, bucket: str, served_checkpoint: Path, bundles: dict[str, Path], there: There
) -> None:
    flags = ["--checkpoint", served_checkpoint, "--bucket", bucket, "--role", ROLE, "--smoke-s", "0"]
    assert run("deploy", *flags)[0] == 0
    digest = hashlib.sha256(bundles["good"].read_bytes()).hexdigest()
    assert [Path(key).parent.name for key in there()["bundles"]] == [digest]


def test_serverless(
    sagemaker: FakeSageMaker, deploy: Run, run: Run, bundles: dict[str, Path], tmp_path: Path, there: There
) -> None:
    flags = [
        "--kind",
        "serverless",
        "--memory-mb",
        "2048",
        "--image",
        "123456789012.dkr.ecr.us-east-1.example/bintally",
    ]
    assert deploy(bundles["good"], *flags)[0] == 0
    client = sagemaker.client("sagemaker")
    (config,) = there()["configs"]
    (variant,) = client.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 5}
    large = tmp_path / "large.jpg"
    large.write_bytes(draw_photo() + bytes(4 * 2**20))
    code, _, err = run("invoke", large)
    assert (code, err.count("\n"), "oversize" in err) == (2, 1, True)


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ({"CreateModel": ("ValidationException", "Could not assume role arn:aws:iam::1:role/x.")}, "trust policy"),
        ({"CreateModel": ("AccessDeniedException", "User is not authorized")}, "policies"),
        ({"CreateEndpointConfig": ("ResourceLimitExceeded", "serverless memory")}, "Service Quotas"),
        ({"CreateEndpoint": ("ResourceLimitExceeded", "0 ml.m5.xlarge for endpoint usage")}, "instance_type"),
    ],
)
def test_what_a_failed_step_made_is_undone(
    fault: dict[str, tuple[str, str]],
    names: str,
    sagemaker: FakeSageMaker,
    deploy: Run,
    bundles: dict[str, Path],
    there: There,
) -> None:
    sagemaker.faults |= fault
    code, _, err = deploy(bundles["good"])
    assert (code, err.count("\n")) == (2, 1)
    assert names in err
    assert there() == NOTHING


def test_what_could_not_be_undone_is_named(
    sagemaker: FakeSageMaker, deploy: Run, name: str, bundles: dict[str, Path], there: There
) -> None:
    sagemaker.faults |= {"CreateEndpoint": ("ResourceLimitExceeded", "none left"), "DeleteModel": ("Denied", "no")}
    code, _, err = deploy(bundles["good"])
    found = there()
    assert (code, found["endpoints"], found["configs"]) == (2, [], [])
    (model,), (bundle,) = found["models"], found["bundles"]  # which the model needs
    assert err.endswith(f"could not be undone: model {model}, s3://{name}/{bundle}\n")


def test_a_model_that_does_not_start_is_undone_with_its_reason(
    sagemaker: FakeSageMaker, deploy: Run, name: str, bundles: dict[str, Path], there: There
) -> None:
    code, _, err = deploy(bundles["broken"])
    assert (code, err.count("\n")) == (2, 1)
    assert "did not pass the ping health check" in err
    assert f"/aws/sagemaker/Endpoints/{name}" in err
    assert there() == NOTHING


def test_an_endpoint_that_does_not_count_is_undone(
    sagemaker: FakeSageMaker, deploy: Run, bundles: dict[str, Path], there: There
) -> None:
    code, _, err = deploy(bundles["stale"])
    assert (code, "answers, not 000000000000" in err) == (2, True)
    assert there() == NOTHING


@pytest.mark.parametrize("bundle", ["broken", "stale"])
def test_a_failed_update_goes_back_to_the_former_model(
    bundle: str, sagemaker: FakeSageMaker, deploy: Run, run: Run, bundles: dict[str, Path], tmp_path: Path, there: There
) -> None:
    assert deploy(bundles["good"])[0] == 0
    before = there()
    assert deploy(bundles[bundle])[0] == 2
    assert there() == before
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(draw_photo())
    assert run("invoke", photo)[0] == 0
    _, out, _ = deploy(bundles["good"])
    assert "nothing to do" in out
