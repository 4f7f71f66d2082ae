"""The benchmark of the photo path: every row decodes, and the figures add up."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.decode import DecodeArgs, format_rows, write_json
from benchmarks.parts.decoders import draw_photos, measure_decoders, read_photos
from benchmarks.parts.report import describe_machine
from bintally.errors import ConfigError

ROWS = ["floor", "unchecked", "exact", "fast", "letterbox", "letterbox_fast", "pillow"]


def test_every_row_has_its_figures() -> None:
    photos = draw_photos(4)
    assert len(set(photos)) == 4
    rows = measure_decoders(photos, 96, num_rounds=1)
    assert list(rows) == ROWS
    assert rows["floor"]["over_floor"] == rows["pillow"]["over_pillow"] == 1
    for row in rows.values():
        assert row["ms"] > 0
        assert row["photos_per_s"] == pytest.approx(1000 / row["ms"], rel=0.01)
    for name in ("fast", "letterbox_fast"):
        assert rows[name]["halved"] == 1  # every drawn photo is more than twice as large
        assert rows[name]["psnr_db"][0] > 25
    table = format_rows(rows).splitlines()
    assert [re.split(" +", line)[0] for line in table] == ["row", *ROWS]
    assert "100% at half size" in table[4]


def test_results_tell_what_was_measured_where(tmp_path: Path) -> None:
    args = DecodeArgs(image_size=64, json=tmp_path / "decode.json")
    write_json({"floor": {"ms": 1.0}}, describe_machine(), [b"four", b"sixsix"], args)
    results = json.loads((tmp_path / "decode.json").read_text())
    assert {"rows", "num_images", "mean_kb", "photos", "image_size", "machine", "method"} == set(results)
    assert results["num_images"] == 2
    assert "load_at_start" in results["machine"]


def test_photos_too_small_to_be_halved_are_exact() -> None:
    rows = measure_decoders(draw_photos(2), 640, num_rounds=1)
    assert rows["fast"]["halved"] == 0
    assert "half size" not in format_rows(rows)


def test_photos_of_a_folder_are_evenly_picked(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number]))
    assert read_photos(tmp_path, 5) == [bytes([number]) for number in (0, 2, 4, 6, 8)]
    assert len(read_photos(tmp_path, 100)) == 10


def test_how_many_photos() -> None:
    assert [DecodeArgs().num_photos, DecodeArgs(quick=True).num_photos] == [300, 40]
    assert DecodeArgs(quick=True, num_images=7).num_photos == 7
    for wrong in ({"num_images": 0}, {"image_size": 15}, {"photos": Path("/absent")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            DecodeArgs(**wrong)
