import io
import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from bintally.errors import ConfigError
from data.synthetic import SyntheticConfig, SyntheticSummary, encode_bin, iter_plans, write_bucket
from data.synthetic_draw import render_bin
from data.synthetic_plan import BLOCK_SIZE, FAULTS, NATURAL_COUNTS, BinPlan, Fault, plan_block

ITEM_KEYS = {"asin", "height", "length", "name", "normalizedName", "quantity", "weight", "width"}


def make_config(**changes: object) -> SyntheticConfig:
    return replace(SyntheticConfig(num_bins=40, out="unused"), **changes)  # type: ignore[arg-type]


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plans_with(fault: Fault) -> list[BinPlan]:
    return [p for p in iter_plans(make_config(num_bins=200, broken_rate=0.5)) if p.fault == fault]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SyntheticSummary]:
    folder = tmp_path_factory.mktemp("bucket")
    summary = write_bucket(make_config(num_bins=70, num_unpadded=12, seed=4, out=str(folder)))
    return folder, summary


# Layout and records


def test_keys_are_those_of_abid(bucket: tuple[Path, SyntheticSummary]) -> None:
    ids = [f"{i:05d}" for i in range(1, 71)] + [str(i) for i in range(1, 13)]
    expected = {f"bin-images/{i}.jpg" for i in ids} | {f"metadata/{i}.json" for i in ids}
    assert set(read_tree(bucket[0])) == expected


def test_records_have_the_shape_of_abid(bucket: tuple[Path, SyntheticSummary]) -> None:
    for path in bucket[0].glob("metadata/0*.json"):
        record = json.loads(path.read_text())
        assert set(record) == {"BIN_FCSKU_DATA", "EXPECTED_QUANTITY"}
        for item in record["BIN_FCSKU_DATA"].values():
            assert set(item) == ITEM_KEYS
            assert item["weight"] is None or set(item["weight"]) == {"unit", "value"}
            for side in ("height", "length", "width"):
                assert item[side] is None or (item[side]["unit"] == "IN" and item[side]["value"] > 0)


def test_quantities_sum_to_the_expected_quantity(bucket: tuple[Path, SyntheticSummary]) -> None:
    records = [json.loads(path.read_text()) for path in bucket[0].glob("metadata/*.json")]
    for record in records:
        quantities = [item["quantity"] for item in record["BIN_FCSKU_DATA"].values()]
        assert sum(quantities) == record["EXPECTED_QUANTITY"]
        assert all(quantity > 0 for quantity in quantities)
    assert any(record["EXPECTED_QUANTITY"] == 0 for record in records)


def test_unpadded_records_have_a_key_more_and_items_one_less(bucket: tuple[Path, SyntheticSummary]) -> None:
    for number in range(1, 13):
        record = json.loads((bucket[0] / f"metadata/{number}.json").read_text())
        assert record["image_fname"] == f"{number}.jpg"
        for item in record["BIN_FCSKU_DATA"].values():
            assert set(item) == ITEM_KEYS - {"normalizedName"}


def test_unpadded_pictures_are_other_pictures(bucket: tuple[Path, SyntheticSummary]) -> None:
    for number in range(1, 13):
        padded = (bucket[0] / f"bin-images/{number:05d}.jpg").read_bytes()
        assert (bucket[0] / f"bin-images/{number}.jpg").read_bytes() != padded


def test_measures_and_codes_vary_as_in_abid() -> None:
    products = [i.product for p in iter_plans(make_config(num_bins=600)) for i in p.items]
    assert {p.size_in is None for p in products} == {True, False}
    assert {p.weight_pounds is None for p in products} == {True, False}
    assert {p.fcsku == p.asin for p in products} == {True, False}
    assert {len(p.asin) for p in products} == {10}


def test_ids_pass_five_digits() -> None:
    last = plan_block(make_config(num_bins=100_001), 100_000 // BLOCK_SIZE)
    before = plan_block(make_config(num_bins=100_001), 99_998 // BLOCK_SIZE)
    assert "99999" in [plan.bin_id for plan in before]
    assert [plan.bin_id for plan in last[-1:]] == ["100001"]


# Pictures


def test_pictures_are_baseline_420_jpegs_with_sizes_of_abid(bucket: tuple[Path, SyntheticSummary]) -> None:
    sizes = []
    for path in bucket[0].glob("bin-images/*.jpg"):
        data = path.read_bytes()
        height, width, _, subsampling = simplejpeg.decode_jpeg_header(data)
        assert subsampling == "420"
        with Image.open(io.BytesIO(data)) as image:
            assert "progressive" not in image.info
            image.load()
        assert 315 <= width <= 785
        assert 240 <= height <= 1069
        sizes.append((width, height))
    widths, heights = np.median(sizes, axis=0)
    assert 420 < widths < 520
    assert 290 < heights < 400


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_every_count_can_be_drawn(difficulty: float) -> None:
    mixed = iter_plans(make_config(num_bins=300, counts="uniform", max_count=30))
    plans = {len(p.items): p for p in mixed}
    assert set(plans) == set(range(31))
    for plan in plans.values():
        pixels = render_bin(plan, difficulty=difficulty)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3


def test_a_picture_depends_on_its_plan_alone() -> None:
    first, second = list(iter_plans(make_config(num_bins=2)))
    before = render_bin(first, difficulty=0.7)
    render_bin(second, difficulty=0.7)
    np.testing.assert_array_equal(render_bin(first, difficulty=0.7), before)


def test_another_item_changes_the_picture_where_it_stands() -> None:
    plan = next(p for p in iter_plans(make_config(num_bins=100)) if len(p.items) == 3)
    fewer = replace(plan, items=plan.items[:-1])
    changed = np.any(render_bin(plan, difficulty=0.0) != render_bin(fewer, difficulty=0.0), axis=2)
    assert 0.001 < changed.mean() < 0.5


def test_difficulty_makes_pictures_darker_and_less_sharp() -> None:
    plans = list(iter_plans(make_config(num_bins=30)))
    light, detail = [], []
    for difficulty in (0.0, 0.5, 1.0):
        pictures = [np.asarray(render_bin(p, difficulty=difficulty), dtype=float).mean(axis=2) for p in plans]
        light.append(np.mean([picture.mean() for picture in pictures]))
        detail.append(np.mean([picture.std() for picture in pictures]))
    assert light[0] > light[1] > light[2]
    assert detail[0] > 1.15 * detail[1] > 1.3 * detail[2]


def test_difficulty_hides_items() -> None:
    """Taking an item away changes less of a hard picture, where others and the bands cover it."""
    plans = [p for p in iter_plans(make_config(num_bins=150)) if len(p.items) == 5]
    change = []
    for difficulty in (0.0, 1.0):
        pairs = [(p, replace(p, items=p.items[:-1])) for p in plans]
        shown = [[render_bin(p, difficulty=difficulty).astype(int) for p in pair] for pair in pairs]
        change.append(np.mean([np.abs(one - other).mean() for one, other in shown]))
    assert change[1] < 0.8 * change[0]


# Determinism


def test_the_bucket_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    config = make_config(num_bins=70, num_unpadded=3, broken_rate=0.2, out=str(tmp_path / "one"))
    one = write_bucket(config)
    two = write_bucket(replace(config, num_workers=2, out=(tmp_path / "two").as_uri()))
    assert one == two
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")


def test_a_bin_does_not_depend_on_the_number_of_bins() -> None:
    few, many = (list(iter_plans(make_config(num_bins=n))) for n in (37, 100))
    assert few == many[:37]


def test_seeds_give_other_bins() -> None:
    one, other = (list(iter_plans(make_config(seed=seed))) for seed in (0, 1))
    assert all(a.scene_seed != b.scene_seed for a, b in zip(one, other, strict=True))


def test_writing_again_gives_the_same_bucket(tmp_path: Path) -> None:
    config = make_config(num_bins=6, out=str(tmp_path))
    write_bucket(config)
    before = read_tree(tmp_path)
    write_bucket(config)
    assert read_tree(tmp_path) == before


# Counts and pairs


def test_natural_counts_follow_abid() -> None:
    plans = list(iter_plans(make_config(num_bins=6000, max_count=5)))
    shares = np.bincount([len(p.items) for p in plans], minlength=6) / len(plans)
    expected = np.array(NATURAL_COUNTS[:6]) / sum(NATURAL_COUNTS[:6])
    np.testing.assert_allclose(shares, expected, atol=0.025)


def test_uniform_counts_are_even_whatever_the_pairs() -> None:
    for pairs_rate in (0.0, 0.8):
        plans = list(iter_plans(make_config(num_bins=6000, counts="uniform", pairs_rate=pairs_rate)))
        shares = np.bincount([len(p.items) for p in plans]) / len(plans)
        np.testing.assert_allclose(shares, np.full(6, 1 / 6), atol=0.03)


@pytest.mark.parametrize("rate", [0.0, 0.4, 0.7])
def test_pairs_rate_is_the_share_of_neighbours(rate: float) -> None:
    plans = list(iter_plans(make_config(num_bins=4000, pairs_rate=rate)))
    assert np.mean([p.follows_previous for p in plans]) == pytest.approx(rate, abs=0.03)


def test_pairs_differ_by_one_item_of_the_same_bin() -> None:
    pairs = list(itertools.pairwise(iter_plans(make_config(num_bins=400))))
    for before, after in pairs:
        if after.follows_previous:
            moved = Counter(before.items)
            moved.subtract(after.items)
            assert sorted(map(abs, filter(None, moved.values()))) == [1]
            assert before.scene_seed == after.scene_seed
        else:
            assert before.scene_seed != after.scene_seed
    assert {len(b.items) - len(a.items) for a, b in pairs if b.follows_previous} == {-1, 1}


def test_no_two_items_share_a_place() -> None:
    for plan in iter_plans(make_config(num_bins=400)):
        places = [item.place for item in plan.items]
        assert len(set(places)) == len(places)
        assert all(0 <= place < plan.num_places for place in places)


# Wrong labels and broken objects


def test_records_tell_the_truth_unless_asked() -> None:
    assert not any(p.is_wrong_label or p.fault for p in iter_plans(make_config(num_bins=500)))


def test_wrong_labels_are_consistent_records_of_another_count() -> None:
    plans = list(iter_plans(make_config(num_bins=1000, wrong_label_rate=0.2)))
    wrong = [p for p in plans if p.is_wrong_label]
    assert len(wrong) / len(plans) == pytest.approx(0.2, abs=0.05)
    assert {p.recorded_quantity - len(p.items) for p in wrong} == {-1, 1}
    assert all(quantity > 0 for p in wrong for _, quantity in p.recorded)


def test_faults_leave_the_other_bins_as_they_were() -> None:
    clean = list(iter_plans(make_config(num_bins=100)))
    faulty = list(iter_plans(make_config(num_bins=100, broken_rate=0.5, wrong_label_rate=0.5)))
    for a, b in zip(clean, faulty, strict=True):
        assert (a.items, a.scene_seed, a.shot_seed) == (b.items, b.scene_seed, b.shot_seed)


def test_the_summary_counts_what_is_written(tmp_path: Path) -> None:
    config = make_config(num_bins=100, broken_rate=0.6, wrong_label_rate=0.3, out=str(tmp_path))
    plans = list(iter_plans(config))
    summary = write_bucket(config)
    tree = read_tree(tmp_path)
    assert set(summary.num_by_fault) == set(FAULTS)
    assert summary.num_by_fault == Counter(p.fault for p in plans if p.fault)
    assert summary.num_by_count == Counter(len(p.items) for p in plans)
    assert summary.num_bins == 100
    assert summary.num_images == len([key for key in tree if key.endswith(".jpg")])
    assert summary.num_images == 100 - summary.num_by_fault["missing_image"]
    assert summary.num_metadata == 100 - summary.num_by_fault["missing_metadata"]
    assert summary.num_bytes == sum(map(len, tree.values()))
    assert summary.num_pairs == sum(p.follows_previous for p in plans)
    assert summary.num_wrong_labels == sum(p.is_wrong_label for p in plans)
    assert "100 bins" in summary.describe()


def test_a_truncated_image_has_a_header_and_no_end() -> None:
    image, record = encode_bin(plans_with("truncated_image")[0], difficulty=0.3)
    assert image is not None
    assert record is not None
    simplejpeg.decode_jpeg_header(image)
    with Image.open(io.BytesIO(image)) as opened, pytest.raises(OSError, match="truncated"):
        opened.load()


def test_what_is_not_an_image_cannot_be_opened() -> None:
    image, _ = encode_bin(plans_with("not_an_image")[0], difficulty=0.3)
    assert image is not None
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(image))


def test_missing_objects_are_none() -> None:
    assert encode_bin(plans_with("missing_image")[0], difficulty=0.3)[0] is None
    assert encode_bin(plans_with("missing_metadata")[0], difficulty=0.3)[1] is None


def test_broken_records() -> None:
    _, not_json = encode_bin(plans_with("metadata_not_json")[0], difficulty=0.3)
    _, no_quantity = encode_bin(plans_with("no_quantity")[0], difficulty=0.3)
    assert not_json is not None
    assert no_quantity is not None
    with pytest.raises(json.JSONDecodeError):
        json.loads(not_json)
    assert set(json.loads(no_quantity)) == {"BIN_FCSKU_DATA"}


def test_missing_objects_of_an_earlier_bucket_are_removed(tmp_path: Path) -> None:
    write_bucket(make_config(num_bins=20, out=str(tmp_path)))
    summary = write_bucket(make_config(num_bins=20, broken_rate=1.0, out=str(tmp_path)))
    assert len(list(tmp_path.glob("bin-images/*"))) == summary.num_images < 20
    assert len(list(tmp_path.glob("metadata/*"))) == summary.num_metadata < 20


# Progress, errors and the command


def test_progress_starts_at_nothing_and_ends_at_all(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    config = make_config(num_bins=33, num_unpadded=2, out=str(tmp_path))
    write_bucket(config, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 35), (32, 35), (33, 35), (35, 35)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_bins", 0),
        ("num_bins", -3),
        ("num_bins", 1_000_000),
        ("difficulty", -0.1),
        ("difficulty", 1.1),
        ("difficulty", float("nan")),
        ("pairs_rate", 2.0),
        ("wrong_label_rate", -1.0),
        ("broken_rate", 1.5),
        ("num_unpadded", 10_000),
        ("num_workers", 0),
        ("max_count", 0),
        ("max_count", 31),
        ("seed", -1),
        ("counts", "odd"),
        ("out", " "),
    ],
)
def test_bad_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} "):
        make_config(**{field: value})


@pytest.mark.parametrize("out", ["{file}/below", "nowhere://bucket"])
def test_a_place_that_cannot_be_written_is_refused(out: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"^out "):
        write_bucket(make_config(out=out.format(file=file)))


def test_a_relative_path_is_taken_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bucket(make_config(num_bins=1, out="some where"))
    assert sorted(read_tree(tmp_path / "some where")) == ["bin-images/00001.jpg", "metadata/00001.json"]


SCRIPT = Path(__file__).parents[2] / "data" / "synthetic.py"


def run_command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)


def test_the_command_writes_a_bucket_and_says_so(tmp_path: Path) -> None:
    done = run_command("--num-bins", "3", "--out", tmp_path.as_uri(), "--counts", "uniform")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path.as_uri()}: 3 bins: 3 images, 3 records")
    assert done.stderr.splitlines()[0] == "drawing bins: 0/3"
    assert len(read_tree(tmp_path)) == 6


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    refused = run_command("--num-bins", "0", "--out", str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == ["error: num_bins must be between 1 and 999999, got 0"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_interrupt_stops_the_command_with_whole_objects(num_workers: int, tmp_path: Path) -> None:
    options = ("--num-bins", "50000", "--num-workers", str(num_workers), "--out", str(tmp_path))
    with subprocess.Popen([sys.executable, str(SCRIPT), *options], stderr=subprocess.PIPE, text=True) as process:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and len(list(tmp_path.glob("metadata/*.json"))) < 5:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted"
    for path in tmp_path.glob("bin-images/*.jpg"):
        with Image.open(path) as image:
            image.load()
