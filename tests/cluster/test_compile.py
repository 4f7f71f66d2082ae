"""A compiled training is the same training, and its weights are those of the plain network."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from ray.train import UserCallback

from bintally.checkpoint import load_checkpoint
from bintally.config import ComputeConfig, ModelConfig, OptimConfig, Recipe
from bintally.source_config import DataConfig
from data.args import ReadArgs, ResourceArgs
from data.drops import DropLedger
from data.ingest import list_splits, load_training_rows
from train.trainer import build_trainer

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.usefixtures("local_ray")]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler; there is no g++ here")
def test_a_compiled_training_is_the_same_and_its_weights_fit_the_plain_network(
    tiny_bucket: Path, tmp_path: Path
) -> None:
    plain = Recipe(
        name="tiny",
        data=DataConfig(source=f"file://{tiny_bucket}", image_size=32, max_images=200, split_by="hash"),
        model=ModelConfig(backbone="small_cnn"),
        optim=OptimConfig(lr=3e-3, global_batch_size=16),
        max_epochs=1,
    )
    compiled = replace(plain, compute=ComputeConfig(compile=True))
    rows = load_training_rows(list_splits(plain.data), plain, DropLedger.start(), ReadArgs(max_dropped="100%"))
    figures, weights = [], []
    for name, recipe in (("plain", plain), ("compiled", compiled)):
        result = build_trainer(
            recipe, rows, ResourceArgs(), name=name, storage_path=tmp_path, callback=UserCallback()
        ).fit()
        assert result.metrics is not None
        assert result.checkpoint is not None
        figures.append([result.metrics[figure] for figure in ("train_loss", "val_nll")])
        weights.append(load_checkpoint(Path(result.checkpoint.path)).model.state_dict())
    assert figures[1] == pytest.approx(figures[0], rel=1e-2)  # fused arithmetic rounds otherwise
    assert list(weights[1]) == list(weights[0])
    assert not all(weights[0][name].equal(weights[1][name]) for name in weights[0])  # it was compiled, indeed
