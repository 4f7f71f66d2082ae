"""Predictions on disk: whole parts, the same thing only, one writer."""

from pathlib import Path

import pyarrow as pa
import pytest

from bintally.errors import ConfigError
from train.evaluate_parts import SCHEMA, PredictionParts

OF = {"model_version": "0123456789ab", "split": "test", "tta": True}


def rows(*ids: str) -> pa.Table:
    return pa.Table.from_pylist([{"id": one, "count": 1, "probabilities": [0.5, 0.5]} for one in ids], schema=SCHEMA)


def test_parts_come_back_in_another_run(tmp_path: Path) -> None:
    with PredictionParts.open(tmp_path / "predictions", OF) as parts:
        assert parts.read().num_rows == 0
        parts.add(rows("00001", "00002"))
        parts.add(rows("00003"))
    with PredictionParts.open(tmp_path / "predictions", OF) as parts:
        assert parts.read()["id"].to_pylist() == ["00001", "00002", "00003"]
        assert parts.read().schema.equals(SCHEMA)
        parts.add(rows("00004"))
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        "begun.json",
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]


def test_a_half_written_part_is_forgotten(tmp_path: Path) -> None:
    with PredictionParts.open(tmp_path, OF) as parts:
        parts.add(rows("00001"))
    (tmp_path / "part-00001.tmp").write_bytes(b"PAR1")
    with PredictionParts.open(tmp_path, OF) as parts:
        assert parts.read()["id"].to_pylist() == ["00001"]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("name", "value"), [("model_version", "ba9876543210"), ("split", "val"), ("tta", False)])
def test_predictions_of_something_else_are_refused(tmp_path: Path, name: str, value: object) -> None:
    with PredictionParts.open(tmp_path, OF) as parts:
        parts.add(rows("00001"))
    with pytest.raises(ConfigError, match=f"{name} .*run_dir"), PredictionParts.open(tmp_path, OF | {name: value}):
        pass


def test_a_folder_without_predictions_is_of_nothing_yet(tmp_path: Path) -> None:
    with PredictionParts.open(tmp_path, OF):
        pass
    with PredictionParts.open(tmp_path, OF | {"split": "val"}) as parts:
        parts.add(rows("00001"))
    with pytest.raises(ConfigError, match="split 'val', not 'test'"), PredictionParts.open(tmp_path, OF):
        pass


def test_two_commands_cannot_write_at_once(tmp_path: Path) -> None:
    with (
        PredictionParts.open(tmp_path, OF),
        pytest.raises(ConfigError, match="another command"),
        PredictionParts.open(tmp_path, OF),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run_dir"), PredictionParts.open(tmp_path / "file" / "predictions", OF):
        pass
