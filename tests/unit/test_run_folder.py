"""What a run folder is asked before a training goes on in it, and how the training in it is said to have ended."""

import json
from pathlib import Path
from typing import Any

import pytest

from bintally.config import read_recipe, with_settings
from bintally.errors import ConfigError, RunError
from bintally.recipes import smoke
from data.args import ReadArgs, ResourceArgs
from train.run import _check_health, fit
from train.run_folder import METRICS_FILE, RECIPE_FILE, check_recipe, describe_run


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.head=corn", "model.head 'softmax', not 'corn'"),
        ("optim.ema_decay=0.9", "optim.ema_decay None, not 0.9"),
        ("optim.lr=0.5", "optim.lr 0.001, not 0.5"),
        ("seed=3", "seed 0, not 3"),
        ("data.max_images=9", "data.max_images None, not 9"),
    ],
)
def test_a_training_is_not_gone_on_with_by_another_recipe(setting: str, told: str, tmp_path: Path) -> None:
    nowhere = with_settings(smoke(), [f"data.source=file://{tmp_path}/nowhere"])
    describe_run(tmp_path, nowhere)
    begun = (tmp_path / RECIPE_FILE).read_bytes()
    with pytest.raises(ConfigError) as caught:
        fit(with_settings(nowhere, [setting]), ReadArgs(), ResourceArgs(), tmp_path)
    assert str(caught.value) == f"run_dir {tmp_path} holds a training with {told}: give that, or another run_dir"
    assert (tmp_path / RECIPE_FILE).read_bytes() == begun


def test_a_training_may_become_longer_and_take_fewer_photos_at_once(tmp_path: Path) -> None:
    check_recipe(tmp_path, smoke(), "here")
    describe_run(tmp_path, smoke())
    settings = ["max_epochs=9", "patience=2", "compute.micro_batch_size=4", "compute.fit_memory=true"]
    longer = with_settings(smoke(), settings)
    check_recipe(tmp_path, longer, "here")
    describe_run(tmp_path, longer)
    assert read_recipe(tmp_path / RECIPE_FILE) == longer


def epoch_of(number: int, *severities: str) -> dict[str, Any]:
    finding = {"rule": "stuck", "saw": "it is stuck", "epoch": 1, "step": None, "advice": "push", "value": 1.0}
    findings = [finding | {"severity": severity, "threshold": 2.0} for severity in severities]
    return {"epoch": number, "findings": findings}


@pytest.mark.parametrize(("number", "severity", "stopped"), [(1, "stop", True), (2, "stop", False), (1, "warn", False)])
def test_a_training_is_said_to_be_stopped_only_if_that_cut_it_short(
    number: int, severity: str, stopped: bool, tmp_path: Path
) -> None:
    recipe = with_settings(smoke(), ["max_epochs=2"])
    (tmp_path / METRICS_FILE).write_text(json.dumps(epoch_of(number, severity)) + "\n")
    if not stopped:
        _check_health(tmp_path, recipe, "here")
        return
    with pytest.raises(RunError, match=r"stopped after epoch 1 by --on-health stop: stuck \(it is stuck\)"):
        _check_health(tmp_path, recipe, "here")
