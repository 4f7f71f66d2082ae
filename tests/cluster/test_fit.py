"""`train.run.fit` as the command runs it: what went wrong is told, and how it ended."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from bintally.checkpoint import load_checkpoint
from bintally.config import ModelConfig, OptimConfig, Recipe
from bintally.errors import RunError
from bintally.source_config import DataConfig
from data.args import ReadArgs, ResourceArgs
from train.run import fit

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("shared_ray")]

TOLERANT = ReadArgs(max_dropped="100%")


@pytest.fixture
def recipe(tiny_bucket: Path) -> Recipe:
    return Recipe(
        name="tiny",
        data=DataConfig(source=f"file://{tiny_bucket}", image_size=32, max_images=200, split_by="hash"),
        model=ModelConfig(backbone="small_cnn"),
        optim=OptimConfig(lr=3e-3, global_batch_size=8),
        max_epochs=9,
    )


def test_a_training_that_learns_nothing_is_stopped_with_the_reason(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = replace(recipe, optim=replace(recipe.optim, lr=1e-12), max_epochs=30)
    with pytest.raises(RunError, match=r"stopped after epoch \d+ by --on-health stop: update_ratio") as caught:
        fit(frozen, TOLERANT, ResourceArgs(on_health="stop"), tmp_path)
    assert "\n" not in str(caught.value)
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) < 30
    findings = json.loads((tmp_path / "health.json").read_text())["findings"]
    grave = next(one for one in findings if one["severity"] == "stop")
    told = capsys.readouterr().out
    assert f"health: {grave['saw']}" in told
    assert told.index(f"epoch {len(epochs)}/30") < told.index(f"health: {grave['saw']}")
    assert load_checkpoint(tmp_path / "checkpoint").recipe == frozen
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not Ray Train's, of a training that ended
