"""The results on real photos: the links, the rows, what is run again, and the table, on a made-up ABID folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.parts.abid_folder import class_mix, counts_by_split, link_bucket, source_mix
from benchmarks.parts.pretraining import checkpoint_dir, pretrain
from benchmarks.parts.result_controls import file_size_figures, outcome_figures
from benchmarks.parts.result_rows import ROWS, Row, choose_rows
from benchmarks.parts.result_runs import RunPlan, do_run, open_record
from benchmarks.parts.result_table import format_results, machines_of, majority_figures, spread
from benchmarks.results import ResultsArgs
from bintally.config import Recipe, with_settings
from bintally.errors import ConfigError, RunError
from bintally.recipes import get_recipe
from bintally.source_config import DataConfig
from train.fit import FitArgs
from train.published import compare_published

ROOT = Path(__file__).parents[2]
MACHINE = {"cpu": "a CPU", "cores": 2, "gpu": "none"}
# One id per block of 64: by the rule, blocks 0, 2 and 4 train, 1 is val, 3 is test.
COUNTS = {"00001": 1, "00065": 2, "00129": 3, "00193": 1, "00257": 0}


@pytest.fixture
def abid_dir(tmp_path: Path) -> Path:
    """Pairs, of which one holds seven items and one is un-padded; extra photos, of which one is a pair, too."""
    pairs = ("00001", "00065", "00129", "00194", "523")
    extra = ("00129", "00193", "00257")
    for folder, ids in (("bucket/bin-images", pairs), ("extra/images", extra)):
        (tmp_path / "abid" / folder).mkdir(parents=True)
        for bin_id in ids:
            (tmp_path / "abid" / folder / f"{bin_id}.jpg").write_bytes(f"{folder} {bin_id}".encode())
    (tmp_path / "abid/lists").mkdir()
    listed = [[int(bin_id) - 1, count] for bin_id, count in COUNTS.items()]
    (tmp_path / "abid/lists/counting_train.json").write_text(json.dumps(listed[:3]))
    (tmp_path / "abid/lists/counting_val.json").write_text(json.dumps(listed[3:]))
    return tmp_path / "abid"


def plan_of(row: Row, abid_dir: Path, tmp_path: Path, **changed: Any) -> RunPlan:  # noqa: ANN401  # any field
    values: dict[str, Any] = {
        "row": row,
        "seed": 1,
        "run_dir": tmp_path / "out" / f"{row.name}-seed1",
        "bucket": link_bucket(abid_dir, tmp_path / "out/bucket"),
        "settings": row.settings_on(use_gpu=False, quick=False),
        "use_gpu": False,
        "weights": None,
        "max_images": None,
    }
    return RunPlan(**(values | changed))


def row_named(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def test_photos_are_linked_and_a_pair_wins(abid_dir: Path, tmp_path: Path) -> None:
    bucket = link_bucket(abid_dir, tmp_path / "out/bucket")
    links = {path.stem: path for path in (bucket.folder / "bin-images").iterdir()}
    assert sorted(links) == ["00001", "00065", "00129", "00193", "00194", "00257"]
    assert all(link.is_symlink() for link in links.values())
    assert links["00129"].read_bytes() == b"bucket/bin-images 00129"
    assert links["00193"].read_bytes() == b"extra/images 00193"
    assert (bucket.num_pairs, bucket.num_extra) == (4, 2)


def test_links_are_made_anew_and_nothing_else_is_touched(abid_dir: Path, tmp_path: Path) -> None:
    photos = link_bucket(abid_dir, tmp_path / "bucket").folder / "bin-images"
    (photos / "mine.txt").write_text("not a link")
    (abid_dir / "extra/images/00257.jpg").unlink()
    link_bucket(abid_dir, tmp_path / "bucket")
    names = {path.name for path in photos.iterdir()}
    assert "00257.jpg" not in names
    assert "mine.txt" in names
    assert (abid_dir / "bucket/bin-images/00001.jpg").is_file()


@pytest.mark.parametrize("part", ["bucket/bin-images", "extra/images", "lists"])
def test_a_folder_without_a_part_is_refused_by_its_name(abid_dir: Path, tmp_path: Path, part: str) -> None:
    (abid_dir / part).rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"has no {part}"):
        link_bucket(abid_dir, tmp_path / "bucket")


def test_the_mix_holds_what_is_listed_by_the_grouped_split(abid_dir: Path, tmp_path: Path) -> None:
    bucket = link_bucket(abid_dir, tmp_path / "bucket")
    assert class_mix(counts_by_split(bucket.data())) == {"train": {0: 1, 1: 1, 3: 1}, "val": {2: 1}, "test": {1: 1}}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("use_gpu", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_every_row_is_a_recipe_with_settings_that_it_takes(row: Row, use_gpu: bool, quick: bool) -> None:
    recipe: Recipe = with_settings(get_recipe(row.recipe), row.settings_on(use_gpu=use_gpu, quick=quick))
    assert not quick or (recipe.data.image_size, recipe.max_epochs) == (32, 1)
    assert bool(recipe.model.weights) == (row.pretrained is not None)
    assert row.pretrained in (None, recipe.model.backbone)


def test_on_a_gpu_the_named_recipes_stay_as_they_are() -> None:
    for name in ("report_resnet50", "baseline_resnet34"):
        assert row_named(name).settings_on(use_gpu=True, quick=False) == ()


def test_the_small_recipe_is_the_row_that_it_quotes() -> None:
    row = row_named("small_cnn")
    measured = with_settings(get_recipe(row.recipe), row.settings_on(use_gpu=False, quick=False))
    assert get_recipe("small") == with_settings(measured, ["name=small"])


def test_a_setting_given_twice_counts_once_as_the_last() -> None:
    row = Row(name="x", recipe="small", settings=("max_epochs=9",), cpu=("max_epochs=5",))
    assert row.settings_on(use_gpu=False, quick=False) == ("max_epochs=5",)
    assert row.settings_on(use_gpu=True, quick=False) == ("max_epochs=9",)


def test_rows_are_chosen_by_name_or_by_machine() -> None:
    def names(*asked: str, use_gpu: bool = False, quick: bool = False) -> list[str]:
        return [row.name for row in choose_rows(asked, use_gpu=use_gpu, quick=quick)]

    assert names() == [
        "report_resnet50",
        "report_resnet50_random",
        "baseline_resnet34",
        "small_cnn",
        "small_cnn_gently",
        "small_cnn_after_synthetic",
    ]
    assert names(use_gpu=True) == [row.name for row in ROWS]
    assert names(quick=True) == ["small_cnn"]
    assert names("small", "baseline_resnet34") == ["baseline_resnet34", "small"]
    with pytest.raises(ConfigError, match="smal are unknown; choose of report_resnet50, "):
        names("smal")


def test_only_pretrained_rows_are_skipped_and_only_without_weights() -> None:
    skipped = {row.name: row.why_skipped(None) for row in ROWS if row.why_skipped(None)}
    assert skipped == {
        "report_resnet50": "needs pretrained weights: give a file of torchvision's resnet50 by --weights"
    }
    assert all(row.why_skipped(Path("resnet50.pth")) is None for row in ROWS)


def test_the_training_command_is_one_that_train_fit_takes(abid_dir: Path, tmp_path: Path) -> None:
    import tyro

    weights = tmp_path / "resnet50.pth"
    weights.write_bytes(b"")
    plan = plan_of(row_named("report_resnet50"), abid_dir, tmp_path, weights=weights, max_images=7, use_gpu=True)
    args = tyro.cli(FitArgs, args=plan.train_command()[2:])
    recipe = args.resolve()
    assert recipe.data.source == f"file://{tmp_path}/out/bucket"
    assert recipe.data.labels == str(abid_dir / "lists")
    assert (recipe.data.split_by, recipe.data.max_images, recipe.data.image_size) == ("grouped", 7, 96)
    assert (recipe.seed, recipe.max_epochs, recipe.model.weights) == (1, 2, str(weights))
    assert args.resources.use_gpu
    assert args.run_dir == str(plan.run_dir)


def test_rows_after_synthetic_begin_with_the_weights_of_the_drawn_bins(abid_dir: Path, tmp_path: Path) -> None:
    args = ResultsArgs(rows=("small_cnn", "small_cnn_after_synthetic"), seeds=(0, 1))
    plans = args.plans(link_bucket(abid_dir, tmp_path / "bucket"), tmp_path)
    weights = {row.name: {plan.weights for plan in planned} for row, planned in plans.items()}
    assert weights == {"small_cnn": {None}, "small_cnn_after_synthetic": {checkpoint_dir(tmp_path / "pretraining")}}
    command = next(planned[0].train_command() for row, planned in plans.items() if row.after_synthetic)
    assert command[command.index("--weights") + 1] == str(checkpoint_dir(tmp_path / "pretraining"))


def test_bins_whose_drawing_was_killed_are_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = True

    def run_command(command: list[str], log_path: Path) -> None:
        """Stands for the commands, the first of which is killed in the middle."""
        if "--num-bins" not in command:
            assert {path.name for path in (tmp_path / "bins").iterdir()} == {"whole"}
            assert f"file://{tmp_path / 'bins'}" in command
            return
        out = Path(command[command.index("--out") + 1])
        out.mkdir()
        (out / ("half" if killed else "whole")).touch()
        if killed:
            raise RunError(log_path.name)

    monkeypatch.setattr("benchmarks.parts.pretraining.run_logged", run_command)
    with pytest.raises(RunError, match=r"draw\.log"):
        pretrain(tmp_path, quick=True, use_gpu=False)
    killed = False
    pretrain(tmp_path, quick=True, use_gpu=False)


def test_a_pretraining_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    checkpoint_dir(tmp_path).mkdir(parents=True)
    (checkpoint_dir(tmp_path) / "model.safetensors").touch()
    pretrain(tmp_path, quick=True, use_gpu=False)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def write_done(plan: RunPlan) -> None:
    """What a run that is done leaves."""
    record = open_record(plan, MACHINE) | {"trained": True, "train_s": 60.0, "evaluate_s": 30.0}
    decoders = {"argmax": {"rmse": 1.5}, "mean": {"rmse": 1.25}}
    test = {"num_images": 9, "accuracy": 0.4, "within_one": 0.7, "nll": 1.3, "decoders": decoders}
    test |= {"quadratic_kappa": 0.25, "intervals": {"accuracy": [0.3, 0.5]}}
    files = {
        "run.json": record,
        "test/metrics.json": test,
        "checkpoint/metrics.json": {"val_accuracy": 0.5, "val_nll": 1.2, "epoch": 3},
    }
    for name, values in files.items():
        (plan.run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (plan.run_dir / name).write_text(json.dumps(values))
    (plan.run_dir / "test/predictions.csv").write_text("id,expected,counted\n00001,1,1\n00065,2,1\n00193,1,2\n")


def test_a_run_that_is_done_is_read_and_not_run_again(abid_dir: Path, tmp_path: Path) -> None:
    plan = plan_of(row_named("small"), abid_dir, tmp_path)
    write_done(plan)
    run = do_run(plan, {"cpu": "another"})
    assert (run["rmse"], run["rmse_mean"], run["val_accuracy"], run["machine"]) == (1.5, 1.25, 0.5, MACHINE)
    assert not list(plan.run_dir.glob("*.log"))


@pytest.mark.parametrize(
    ("changed", "name"), [({"settings": ("max_epochs=1",)}, "settings"), ({"use_gpu": True}, "device")]
)
def test_a_folder_with_a_run_of_other_settings_is_refused(
    abid_dir: Path, tmp_path: Path, changed: dict[str, Any], name: str
) -> None:
    write_done(plan_of(row_named("small"), abid_dir, tmp_path))
    with pytest.raises(ConfigError, match=f"another {name}"):
        do_run(plan_of(row_named("small"), abid_dir, tmp_path, **changed), MACHINE)


def test_a_run_that_fails_names_its_log_and_is_not_done(abid_dir: Path, tmp_path: Path) -> None:
    plan = plan_of(row_named("small"), abid_dir, tmp_path, settings=("max_epochs=0",))
    with pytest.raises(RunError, match=r"fit.py ended with code 2[^$]*small-seed1/train.log:\n.*max_epochs"):
        do_run(plan, MACHINE)
    record = open_record(plan, {})
    assert record["train_s"] > 0
    assert not record["trained"]


def test_figures_of_answers_by_source_and_by_count(abid_dir: Path, tmp_path: Path) -> None:
    photos_dir = link_bucket(abid_dir, tmp_path / "bucket").photos_dir
    assert outcome_figures(photos_dir, ["00001", "00065", "00193", "00257"], [1, 2, 1, 0], [1, 4, 1, 1]) == {
        "accuracy": 0.5,
        "within_one": 0.75,
        "rmse": pytest.approx((5 / 4) ** 0.5),
        "by_source": {"extra": 0.5, "pairs": 0.5},
        "by_count": {"0": 0.0, "1": 1.0, "2": 0.0},
    }
    assert source_mix(["00001", "00193", "00257"], photos_dir) == {"extra": 2, "pairs": 1}


def test_the_size_of_a_file_tells_what_its_likes_hold(abid_dir: Path, tmp_path: Path) -> None:
    extra = abid_dir / "extra/images"
    sizes = {f"{number:05d}": (40 + number % 7, 200 if number % 2 else 40) for number in range(2000, 2070)}
    for bin_id, size in sizes.items():
        Image.new("RGB", size).save(extra / f"{bin_id}.jpg")
    photos_dir = link_bucket(abid_dir, tmp_path / "bucket").photos_dir
    counts = {bin_id: 4 if height == 200 else 2 for bin_id, (_, height) in sizes.items()}
    test = {bin_id: counts.pop(bin_id) for bin_id in ("02010", "02011", "02012")}
    assert file_size_figures({"train": counts, "test": test}, photos_dir)["accuracy"] == 1.0


def test_mean_and_spread() -> None:
    assert spread([1.0, 2.0, 3.0], digits=1) == "2.0 ± 1.0"
    assert spread([0.4], scale=100, digits=1) == "40.0"


def test_majority_is_always_the_most_frequent_count() -> None:
    figures = majority_figures({1: 5, 2: 3, 4: 2})
    assert figures == {"answer": 1, "accuracy": 0.5, "rmse": pytest.approx((21 / 10) ** 0.5), "within_one": 0.8}


def results_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    failed, skipped = ["seed 2 failed: why"], "needs weights"
    return {
        "command": "python benchmarks/results.py",
        "quick": False,
        "photos": "Some photos.",
        "rows": [
            {"name": "small", "recipe": "small", "settings": ["a=1"], "runs": runs, "skipped": None, "failed": failed},
            {"name": "report", "recipe": "r", "settings": [], "runs": [], "skipped": skipped, "failed": []},
        ],
        "file_size": {
            "accuracy": 0.35,
            "within_one": 0.5,
            "rmse": 2.0,
            "by_source": {"extra": 0.25, "pairs": 0.4},
            "by_count": {"1": 0.3, "2": 0.6},
        },
        "mix": {"train": {0: 1, 1: 2}, "val": {1: 1}, "test": {1: 3, 2: 1}},
        "sources": {"test": {"extra": 3, "pairs": 1}},
        "published": compare_published(DataConfig(), "test", 4),
    }


def test_the_page_has_each_row_its_failures_and_what_is_unlike(abid_dir: Path, tmp_path: Path) -> None:
    plan = plan_of(row_named("small"), abid_dir, tmp_path)
    write_done(plan)
    run = do_run(plan, MACHINE)
    page = format_results(results_of([run, run | {"seed": 2, "accuracy": 0.5, "best_epoch": 4}]))
    measured = "45.0 ± 7.1 % | 1.500 ± 0.000 | 1.250 ± 0.000 | 70.0 ± 0.0 % | 1.300 ± 0.000 | 0.250 ± 0.000"
    assert f"| small | 1 2 | 30.0 to 50.0 % | {measured} | 50.0 ± 0.0 % |" in page
    assert "| always 1, the most frequent |  |  | 75.0 % | 0.500 | 0.500 | 100.0 % |  |  |  |" in page
    assert "| size of the file |  |  | 35.0 % | 2.000 | 2.000 | 50.0 % |  |  |  |" in page
    assert "- small: no better than the most frequent count or the size of the file" in page
    assert "| test photos | 3 | 1 | 3 | 1 |" in page
    assert "| small | 0.0 ± 0.0 % | 50.0 ± 0.0 % | 50.0 ± 0.0 % | 0.0 ± 0.0 % |" in page
    assert "| size of the file | 25.0 % | 40.0 % | 30.0 % | 60.0 % |" in page
    assert "- report: skipped, needs weights." in page
    assert "- small, seed 2 failed: why" in page
    assert "| small | small | `a=1` | 1.0 ± 0.0 | 0.5 ± 0.0 | 3 4 |" in page
    assert "| train | 3 | 1 (33.3%) | 2 (66.7%) | 0 (0.0%) |" in page
    assert page.count("| no |") == len(compare_published(DataConfig(), "test", 4)["rows"])
    assert "it is split by grouped, not by the official lists; it scores 4 photos" in page
    for table in page.split("\n\n"):
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_twin_machines_are_one_whatever_their_load() -> None:
    runs = [{"machine": MACHINE | {"load_at_start": load}} for load in (0.1, 9.0)]
    assert machines_of([{"runs": runs}]) == [MACHINE]


def test_without_photos_it_says_so_and_is_no_failure(tmp_path: Path) -> None:
    if (ROOT.parent / "shared/abid").exists():
        pytest.skip("this checkout has the photos beside it")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks/results.py"), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["needs the ABID folder, and there is none at ../shared/abid: give --abid DIR"]
    assert list(tmp_path.iterdir()) == []
