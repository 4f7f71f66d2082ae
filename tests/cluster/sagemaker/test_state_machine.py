"""The state machine, executed by moto's Step Functions, with real Lambda code and real models behind the endpoint."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bintally.checkpoint import load_checkpoint, save_checkpoint
from serve.aws.lambda_pipeline import (
    EndpointBusyError,
    PipelineError,
    clean_up,
    client_of,
    gate,
    read_artifact,
    roll_back,
)

NAME = "bins"  # of the endpoint in cloud.py
FIRST = f"{NAME}-{0:012}"  # what `cloud.deploy` makes
Cloud = Any  # of cloud.py
Model = Any  # of cloud.py


@pytest.fixture(scope="module")
def models(
    served_checkpoint: Path,
    pack_model: Callable[[Path], Path],
    unpack: Callable[[Path, Path], Path],
    cloud_module: ModuleType,
    host_model: Callable[[Path], Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Model]]:
    """Models with other weights, figures and bins, each in our container; `dead` is in one that does not answer."""
    kinds: dict[str, dict[str, Any]] = {
        "old": {"val_accuracy": 0.5},
        "better": {"val_accuracy": 0.6},
        "other_bins": {"val_accuracy": 0.9, "source": "s3://elsewhere"},
        "unmeasured": {},
        "fewer": {"val_accuracy": 0.9, "val_num_images": 50, "val_ids": "a"},
        "more": {"val_accuracy": 0.6, "val_num_images": 900, "val_ids": "b"},
    }
    made = {}
    with ExitStack() as stack:
        for number, (name, figures) in enumerate(kinds.items()):
            folder = tmp_path_factory.mktemp(name)
            checkpoint = load_checkpoint(served_checkpoint)
            with torch.no_grad():
                next(checkpoint.model.parameters()).add_(number / 1000)
            save_checkpoint(folder / "checkpoint", checkpoint.model, checkpoint.recipe, figures)
            if source := figures.pop("source", None):
                config = folder / "checkpoint/config.json"
                told = json.loads(config.read_text())
                told["recipe"]["data"]["source"] = source
                config.write_text(json.dumps(told))
            version = load_checkpoint(folder / "checkpoint").version
            tarball = pack_model(folder / "checkpoint")
            url = "http://127.0.0.1:9"
            if name in ("old", "better"):
                url = stack.enter_context(host_model(unpack(tarball, folder / "model")))
            made[name] = cloud_module.Model(version, tarball, url)
        made["dead"] = cloud_module.Model(made["better"].version, made["better"].tarball, "http://127.0.0.1:9")
        made["swapped"] = cloud_module.Model(made["better"].version, made["better"].tarball, made["old"].url)
        yield made


@pytest.fixture
def cloud(
    models: dict[str, Model],
    cloud_module: ModuleType,
    run_shim: Callable[..., Any],
    endpoint: Callable[[str], object],
) -> Iterator[Cloud]:
    """An AWS with these models' containers behind its endpoints."""
    with cloud_module.running_cloud(models) as made, run_shim(cloud_module.Placed(made, endpoint)):
        yield made


def test_the_first_model_makes_the_endpoint(cloud: Cloud) -> None:
    cloud.trained = cloud.models["better"]
    ended = cloud.run()
    assert ended["status"] == "SUCCEEDED", ended
    (name,) = cloud.left()[0]
    assert cloud.serves() == name
    assert name.startswith(f"{NAME}-")
    (notice,) = cloud.told()
    assert notice["Subject"] == "BinTally: a new model is deployed"
    assert "there is no endpoint bins yet; val_accuracy is 0.6000" in notice["Message"]
    assert json.loads(ended["output"])["gate"]["version"] == cloud.models["better"].version


def test_a_better_model_takes_the_place_of_the_old_one(cloud: Cloud) -> None:
    cloud.deploy(cloud.models["old"])
    cloud.trained = cloud.models["better"]
    ended = cloud.run()
    assert ended["status"] == "SUCCEEDED", ended
    name = cloud.serves()
    assert name.startswith(f"{NAME}-sm")  # no name that `deploy` gives, and deletes
    assert cloud.left() == ([name], [name])
    (notice,) = cloud.told()
    assert "val_accuracy is 0.6000" in notice["Message"]
    assert "0.5000" in notice["Message"]


@pytest.mark.parametrize(
    ("deployed", "trained", "values", "why"),
    [
        ("better", "old", {}, "val_accuracy is 0.5000"),
        ("better", "better", {}, "val_accuracy is 0.6000"),
        ("old", "better", {"min_gain": 0.2}, "val_accuracy is 0.6000"),
        ("old", "other_bins", {}, "of other bins: source differ"),
        ("more", "fewer", {}, "of other bins: val_num_images, val_ids differ"),
    ],
)
def test_the_endpoint_keeps_its_model_unless_the_new_one_is_better(
    cloud: Cloud, deployed: str, trained: str, values: dict[str, object], why: str
) -> None:
    cloud.deploy(cloud.models[deployed])
    cloud.trained = cloud.models[trained]
    assert cloud.run(**values)["status"] == "SUCCEEDED"
    assert cloud.serves() == FIRST
    assert cloud.left() == ([FIRST], [FIRST])
    (notice,) = cloud.told()
    assert notice["Subject"] == "BinTally: the endpoint keeps its model"
    assert why in notice["Message"]


@pytest.mark.parametrize(
    ("trained", "error", "cause", "has_endpoint"),
    [
        ("dead", "NotReadyError", "does not count", True),
        ("dead", "NotReadyError", "does not count", False),
        ("swapped", "PipelineError", "counts by model", True),
        ("unmeasured", "PipelineError", "has no val_accuracy", True),
        ("no spot instance was to be had", "", "no spot instance was to be had", False),
    ],
)
def test_whatever_fails_leaves_the_endpoint_as_it_was(
    cloud: Cloud, trained: str, error: str, cause: str, has_endpoint: bool
) -> None:
    if has_endpoint:
        cloud.deploy(cloud.models["old"])
    cloud.trained = cloud.models.get(trained, trained)
    ended = cloud.run()
    assert ended["status"] == "FAILED", ended
    assert ended["error"] == "NotDeployed"
    assert ended["cause"].startswith(error)
    assert cause in ended["cause"]
    before = [FIRST] if has_endpoint else []
    assert cloud.left() == (before, before)
    assert cloud.serves() == (FIRST if has_endpoint else None)
    (notice,) = cloud.told()
    assert notice["Subject"] == "BinTally: the new model is not deployed"
    assert cause in notice["Message"]


def test_an_endpoint_that_does_not_come_up_is_taken_away(cloud: Cloud) -> None:
    cloud.trained, cloud.comes_up = cloud.models["better"], False
    ended = cloud.run()
    assert (ended["status"], ended["error"]) == ("FAILED", "NotDeployed")
    assert ended["cause"].startswith("EndpointFailed: the endpoint did not take the new model")
    assert (cloud.serves(), cloud.left()) == (None, ([], []))


def test_an_endpoint_that_somebody_changes_is_waited_for(cloud: Cloud) -> None:
    cloud.deploy(cloud.models["old"])
    url = cloud.put(cloud.models["better"], "new/model.tar.gz")
    for status in ("Creating", "Updating", "RollingBack"):
        cloud.set_status(status)
        with pytest.raises(EndpointBusyError, match=f"endpoint {NAME} is {status}"):
            gate(url, NAME, "val_accuracy", 0)
        with pytest.raises(EndpointBusyError):
            roll_back(NAME, "bins-1", {"gate": {"exists": True, "config": FIRST}})
    cloud.set_status("Failed")
    with pytest.raises(PipelineError, match="delete it"):
        gate(url, NAME, "val_accuracy", 0)


def test_the_way_back_can_be_gone_twice_and_touches_nothing_of_others(cloud: Cloud) -> None:
    cloud.deploy(cloud.models["old"])
    for state in ({}, {"gate": {"exists": True, "config": FIRST}}):
        for _ in range(2):
            assert roll_back(NAME, "bins-1", state) == {"removed": "bins-1"}
    assert (cloud.serves(), cloud.left()) == (FIRST, ([FIRST], [FIRST]))


def test_cleaning_up_keeps_what_serves_and_what_others_made(cloud: Cloud) -> None:
    cloud.deploy(cloud.models["old"])
    for name, config in (("bins-sm1", ""), ("bins-sm1", "theirs"), (FIRST, FIRST)):
        assert clean_up(NAME, name, config) == {"removed": []}
    assert cloud.left() == ([FIRST], [FIRST])


def test_what_is_no_model_of_ours_is_named(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "empty.tar.gz").write_bytes(b"not a tarball")
    client_of("s3").upload_file(str(tmp_path / "empty.tar.gz"), NAME, "other.tar.gz")
    for key in ("other.tar.gz", "missing.tar.gz"):
        with pytest.raises(PipelineError, match=f"s3://{NAME}/{key} is no model of BinTally that can be read"):
            read_artifact(f"s3://{NAME}/{key}")
