"""Inference that stops in the middle: what was written is kept, and nothing is counted twice or lost."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from bintally.checkpoint import Checkpoint
from bintally.config import DataConfig
from bintally.errors import ClusterTooSmallError, TooManyFaultsError
from bintally.model import build_model
from bintally.recipes import smoke
from data.args import ReadArgs
from train import evaluate_infer
from train.evaluate_infer import InferSpec, infer
from train.evaluate_many import count_split
from train.evaluate_parts import PredictionParts

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

IDS = [f"{number:05d}" for number in range(1_200)]  # one in 50 has no record
READ = ReadArgs(max_dropped="5%")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part after each block of rows that comes."""
    monkeypatch.setattr(evaluate_infer, "PART_ROWS", 1)


@pytest.fixture(scope="module")
def spec(tiny_bucket: Path) -> InferSpec:
    torch.manual_seed(0)
    recipe = smoke()
    model = build_model(recipe.model, num_classes=6).eval()
    checkpoint = Checkpoint(model=model, recipe=recipe, metrics={}, version="0123456789ab")
    data = DataConfig(source=f"file://{tiny_bucket}", image_size=32)
    return InferSpec(checkpoint=checkpoint, data=data, split="all", tta=True)


class Stopped(Exception):  # noqa: N818  # it stands for Ctrl-C
    """The command ends here."""


def infer_into(folder: Path, spec: InferSpec, *, stop_after: int | None = None) -> pa.Table:
    """Infer; with `stop_after`, fail when one more part is to be written than that."""
    with PredictionParts.open(folder, spec.identity()) as parts:
        if stop_after is None:
            return infer(IDS, spec, READ, parts)

        class Stopping(PredictionParts):
            def add(self, rows: pa.Table) -> None:
                if len(list(self.folder.glob("part-*"))) == stop_after:
                    raise Stopped
                super().add(rows)

        return infer(IDS, spec, READ, Stopping(folder))


def written(folder: Path, spec: InferSpec) -> pa.Table:
    with PredictionParts.open(folder, spec.identity()) as parts:
        return parts.read()


def test_a_stopped_inference_goes_on(spec: InferSpec, tmp_path: Path) -> None:
    whole = infer_into(tmp_path / "whole", spec)
    assert whole["id"].to_pylist() == IDS
    lost = dict(zip(whole["id"].to_pylist(), whole["reason"].to_pylist(), strict=True))
    assert {bin_id for bin_id, reason in lost.items() if reason} == set(IDS[::50])
    assert len(list((tmp_path / "whole").glob("part-*"))) > 2

    with pytest.raises(Stopped):
        infer_into(tmp_path / "stopped", spec, stop_after=1)
    first = written(tmp_path / "stopped", spec)
    # What is written is complete up to its last bin: dropped ones before it have their rows, too.
    assert sorted(first["id"].to_pylist()) == IDS[: len(first)]
    assert 0 < len(first) < len(IDS)

    again = infer_into(tmp_path / "stopped", spec)
    both = written(tmp_path / "stopped", spec)["id"].to_pylist()
    assert sorted(both) == IDS
    for column in ("id", "count", "reason", "width", "brightness", "sharpness"):
        assert again[column].to_pylist() == whole[column].to_pylist()
    for column in ("probabilities", "flipped"):  # batches of other sizes may round otherwise
        ours, theirs = (
            torch.tensor(table[column].drop_null().to_pylist(), dtype=torch.float64) for table in (again, whole)
        )
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_bin_that_could_not_be_fetched_is_tried_again(
    spec: InferSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_infer, "TRANSIENT", "missing_label")
    rows = infer_into(tmp_path, spec)
    assert rows["id"].to_pylist() == IDS  # told, with its reason ...
    assert rows["reason"].drop_null().to_pylist() == ["missing_label"] * 24
    assert len(written(tmp_path, spec)) == len(IDS) - 24  # ... but not settled
    assert infer_into(tmp_path, spec)["reason"].to_pylist() == rows["reason"].to_pylist()


def test_what_is_lost_may_not_exceed_the_limit_over_all_runs(spec: InferSpec, tmp_path: Path) -> None:
    infer_into(tmp_path, spec)
    with (
        PredictionParts.open(tmp_path, spec.identity()) as parts,
        pytest.raises(TooManyFaultsError, match="24 ids are lost"),
    ):
        infer(IDS, spec, ReadArgs(max_dropped="1%"), parts)


def test_gpus_are_not_asked_for_where_there_will_be_none(spec: InferSpec, tmp_path: Path) -> None:
    with (
        PredictionParts.open(tmp_path, spec.identity()) as parts,
        pytest.raises(ClusterTooSmallError, match="the cluster has no GPU"),
    ):
        infer(IDS, replace(spec, use_gpu=True), READ, parts)
    checkpoint = replace(spec.checkpoint, recipe=replace(spec.checkpoint.recipe, data=spec.data))
    with pytest.raises(ClusterTooSmallError, match="the cluster has no GPU"):
        count_split(IDS, [checkpoint], READ, "all", use_gpu=True)
