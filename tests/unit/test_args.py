"""Flags over recipes: what is given counts, what is not stays, and nothing is replaced in silence."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
import tyro

from bintally.config import ModelConfig, Recipe, write_recipe
from bintally.errors import ConfigError
from bintally.recipes import RECIPES, baseline_resnet34, smoke
from data.args import ModelArgs, ReadArgs, ResourceArgs, SourceArgs, new_run_dir
from train.evaluate import EvaluateArgs
from train.fit import FitArgs
from tune.config import AshaConfig, BudgetConfig, write_search
from tune.objective import Objective
from tune.search import SearchArgs
from tune.space import BATCH_SIZE, LR, Choice, Interval


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    write_recipe(replace(smoke(), seed=42, max_epochs=9), tmp_path / "best.json")
    return tmp_path / "best.json"


# Where the bins lie


def test_no_flag_changes_nothing() -> None:
    assert SourceArgs().apply(smoke()) == smoke()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "file:///tmp/bucket"),
        ("endpoint_url", "http://127.0.0.1:9000"),
        ("region", "eu-west-1"),
        ("max_count", 9),
        ("max_images", 100),
        ("signed", True),
        ("ids", "range:1-1000"),
        ("ids", "list:00001,523"),
        ("ids", "all"),
        ("unpadded", True),
        ("split_by", "hash"),
        ("image_size", 96),
        ("resize", "letterbox"),
        ("fast_decode", True),
    ],
)
def test_a_flag_changes_its_own_field_alone(name: str, value: object) -> None:
    changed = SourceArgs(**{name: value}).apply(smoke())  # type: ignore[arg-type]
    assert changed == replace(smoke(), data=replace(smoke().data, **{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"), [("source", ""), ("endpoint_url", ""), ("max_count", 0), ("max_images", 0), ("max_count", -1)]
)
def test_zero_and_nothing_are_not_mistaken_for_a_flag_left_out(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        SourceArgs(**{name: value}).apply(smoke())  # type: ignore[arg-type]


def test_a_switch_left_out_leaves_what_the_recipe_switched_on() -> None:
    switched_on = replace(smoke(), data=replace(smoke().data, signed=True, unpadded=True, fast_decode=True))
    assert SourceArgs().apply(switched_on) == switched_on
    assert SourceArgs(max_count=3).apply(switched_on).data == replace(switched_on.data, max_count=3)


@pytest.mark.parametrize("ids", ["file:some/ids.txt", "file:./some/ids.txt", "file:some/../some/ids.txt"])
def test_the_path_of_a_file_of_ids_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert SourceArgs(ids=ids).override(smoke().data).ids == f"file:{tmp_path}/some/ids.txt"


@pytest.mark.parametrize("ids", ["file:/some/ids.txt", "file:///some/ids.txt"])
def test_an_absolute_file_of_ids_stays(ids: str) -> None:
    assert SourceArgs(ids=ids).override(smoke().data).ids == "file:/some/ids.txt"


def test_the_folder_of_the_lists_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert SourceArgs(labels=Path("lists")).override(smoke().data).labels == f"{tmp_path}/lists"
    assert SourceArgs(labels=Path("/lists")).override(smoke().data).labels == "/lists"


def test_the_official_split_needs_the_lists() -> None:
    with pytest.raises(ConfigError, match="split_by official needs labels"):
        SourceArgs(split_by="official").override(smoke().data)
    data = SourceArgs(split_by="official", labels=Path("/lists")).override(smoke().data)
    assert (data.split_by, data.labels) == ("official", "/lists")


@pytest.mark.parametrize("ids", ["", "some", "range:1", "range:1-", "range:a-b", "list:", "list:1,,2", "00001"])
def test_ids_that_are_no_choice(ids: str) -> None:
    with pytest.raises(ConfigError, match="ids must be all, range:1-9"):
        SourceArgs(ids=ids).override(smoke().data)


# How the bucket is read


@pytest.mark.parametrize(
    ("max_dropped", "num_ids", "max_faults"),
    [
        ("1%", 100, 1),
        ("1%", 99, 0),
        ("1%", 535_234, 5_352),
        ("0.01", 100, 1),
        ("1e-2", 100, 1),
        ("0.5%", 1_000, 5),
        ("29%", 100, 29),
        ("0.29", 100, 29),
        (" 7 % ", 100, 7),
        ("100%", 123, 123),
        ("1", 123, 123),
        ("0", 123, 0),
        ("0%", 123, 0),
        ("1%", 0, 0),
    ],
)
def test_max_dropped_is_a_share_of_the_ids(max_dropped: str, num_ids: int, max_faults: int) -> None:
    assert ReadArgs(max_dropped=max_dropped).max_faults(num_ids) == max_faults


def test_one_percent_may_be_lost_by_default() -> None:
    assert ReadArgs().max_faults(1_000) == 10


@pytest.mark.parametrize(
    "max_dropped", ["", "%", "many", "1%%", "1%x", "%1", "101%", "1.01", "-1%", "-0.1", "nan", "nan%", "inf", "1,5%"]
)
def test_max_dropped_that_is_no_share_is_refused_at_once(max_dropped: str) -> None:
    with pytest.raises(ConfigError, match=r"max_dropped must be a share as 1% or 0\.01"):
        ReadArgs(max_dropped=max_dropped).resolve()


@pytest.mark.parametrize("name", ["checkpoint_s", "stalled_s"])
@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, -math.inf])
def test_times_that_are_never_or_always_over_are_refused(name: str, seconds: float) -> None:
    resources = ResourceArgs(**{name: seconds})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"{name} must be more than 0"):
        resources.resolve()
    with pytest.raises(ConfigError, match=f"{name} must be more than 0"):
        SearchArgs(resources=resources).resolve()


def test_checkpoints_at_the_ends_of_epochs_alone_are_a_choice() -> None:
    assert ResourceArgs(checkpoint_s=math.inf).resolve().checkpoint_s == math.inf


# train/fit.py


def test_fit_trains_the_baseline_on_abid_by_default() -> None:
    assert FitArgs().resolve() == baseline_resnet34()


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES.keys())
def test_fit_takes_a_named_recipe_as_it_is(make: Callable[[], Recipe]) -> None:
    assert FitArgs(recipe=make.__name__).resolve() == make()


def test_fit_takes_the_recipe_of_a_search(recipe_file: Path) -> None:
    assert FitArgs(recipe_file=str(recipe_file)).resolve() == replace(smoke(), seed=42, max_epochs=9)


def test_flags_of_fit_override_the_recipe(recipe_file: Path) -> None:
    args = FitArgs(
        recipe_file=str(recipe_file),
        lr=0.25,
        batch_size=7,
        max_epochs=3,
        seed=0,
        bucket=SourceArgs(source="file:///tmp/bucket", max_count=3),
    )
    recipe = args.resolve()
    assert (recipe.optim.lr, recipe.optim.global_batch_size, recipe.max_epochs, recipe.seed) == (0.25, 7, 3, 0)
    assert (recipe.data.source, recipe.data.max_count) == ("file:///tmp/bucket", 3)
    assert recipe.optim.weight_decay == smoke().optim.weight_decay
    assert recipe.model == smoke().model


def test_fit_takes_how_an_epoch_visits_the_rows() -> None:
    recipe = FitArgs(recipe="smoke", epoch_fraction=0.1, balanced=True).resolve()
    assert recipe == replace(smoke(), epoch_fraction=0.1, balanced=True)


def test_fit_keeps_how_the_recipe_visits_the_rows(tmp_path: Path) -> None:
    recipe = replace(smoke(), epoch_fraction=0.25, balanced=True)
    write_recipe(recipe, tmp_path / "best.json")
    assert FitArgs(recipe_file=str(tmp_path / "best.json")).resolve() == recipe
    assert FitArgs(recipe_file=str(tmp_path / "best.json"), epoch_fraction=1.0).resolve() == replace(
        recipe, epoch_fraction=1.0
    )


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (FitArgs(epoch_fraction=0.0), "epoch_fraction"),
        (FitArgs(epoch_fraction=1.1), "epoch_fraction"),
        (FitArgs(recipe="smoek"), "smoek"),
        (FitArgs(recipe_file="/nowhere/best.json"), "/nowhere/best.json"),
        (FitArgs(lr=0.0), "lr"),
        (FitArgs(lr=-1.0), "lr"),
        (FitArgs(batch_size=-1), "batch_size"),
        (FitArgs(max_epochs=-1), "max_epochs"),
        (FitArgs(bucket=SourceArgs(max_count=0)), "max_count"),
        (FitArgs(batch_size=0), "batch_size"),
        (FitArgs(max_epochs=0), "max_epochs"),
    ],
)
def test_fit_refuses_what_cannot_be_trained(args: FitArgs, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        args.resolve()


@pytest.mark.parametrize("command", [FitArgs, SearchArgs])
def test_flags_are_spelled_as_the_manual_has_them(command: type[FitArgs | SearchArgs]) -> None:
    line = (
        "--source file:///b --signed --ids range:1-9 --unpadded --labels /lists --split-by official --max-count 4"
        " --max-images 9 --image-size 96 --resize letterbox --fast-decode --epoch-fraction 0.1 --balanced"
        " --max-dropped 2% --stream"
    )
    args = tyro.cli(command, args=line.split())
    assert args == command(
        epoch_fraction=0.1,
        balanced=True,
        bucket=SourceArgs(
            source="file:///b",
            signed=True,
            ids="range:1-9",
            unpadded=True,
            labels=Path("/lists"),
            split_by="official",
            max_count=4,
            max_images=9,
            image_size=96,
            resize="letterbox",
            fast_decode=True,
        ),
        read=ReadArgs(max_dropped="2%", stream=True),
    )


# tune/search.py


def test_search_starts_from_the_baseline_on_abid_by_default() -> None:
    config = SearchArgs().resolve()
    assert config.recipe == baseline_resnet34()
    assert (config.budget, config.resources) == (BudgetConfig(trials=16), ResourceArgs())
    assert config.space.dimensions == {
        LR: Interval(low=0.1 / 30, high=0.1 * 3, log=True),
        BATCH_SIZE: Choice(values=(32, 64, 128)),
    }
    assert (config.sampler, config.objective, config.asha) == ("random", Objective(), AshaConfig())


def test_flags_of_search_override_the_recipe() -> None:
    args = SearchArgs(
        recipe="smoke",
        num_trials=3,
        max_epochs=5,
        lr=(1e-3, 1e-1),
        batch_sizes=(8, 16),
        seed=7,
        bucket=SourceArgs(source="file:///tmp/bucket"),
        resources=ResourceArgs(num_workers=2, use_gpu=True),
    )
    config = args.resolve()
    data = replace(smoke().data, source="file:///tmp/bucket")
    assert config.recipe == replace(smoke(), data=data, max_epochs=5, seed=7)
    assert config.budget.trials == 3
    assert config.space.dimensions == {
        LR: Interval(low=1e-3, high=1e-1, log=True),
        BATCH_SIZE: Choice(values=(8, 16)),
    }
    assert config.resources == ResourceArgs(num_workers=2, use_gpu=True)


def test_search_takes_how_an_epoch_visits_the_rows_and_how_the_bucket_is_read() -> None:
    read = ReadArgs(max_dropped="2%", stream=True)
    config = SearchArgs(recipe="smoke", epoch_fraction=0.1, balanced=True, read=read).resolve()
    assert config.recipe == replace(smoke(), epoch_fraction=0.1, balanced=True)
    assert config.read == read


def test_seed_zero_overrides_the_seed_of_a_recipe(recipe_file: Path) -> None:
    assert FitArgs(recipe_file=str(recipe_file), seed=0).resolve().seed == 0


def test_a_resumed_search_goes_on_as_it_was_started(tmp_path: Path) -> None:
    config = SearchArgs(recipe="smoke", seed=42, num_trials=3, batch_sizes=(8,)).resolve()
    write_search(config, tmp_path)
    assert SearchArgs(recipe="demo", run_dir=str(tmp_path), resume=True, seed=1, num_trials=9).resolve() == config


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (SearchArgs(resume=True), "--run-dir"),
        (SearchArgs(resume=True, run_dir="/nowhere"), "run_dir /nowhere holds no search"),
        (SearchArgs(recipe="smoek"), "smoek"),
        (SearchArgs(max_epochs=-1), "max_epochs"),
        (SearchArgs(epoch_fraction=0.0), "epoch_fraction"),
        (SearchArgs(bucket=SourceArgs(max_images=0)), "max_images"),
        (SearchArgs(num_trials=0), "num_trials"),
        (SearchArgs(lr=(1e-2, 1e-4)), "lr"),
        (SearchArgs(batch_sizes=()), "batch_sizes"),
        (SearchArgs(max_epochs=0), "max_epochs"),
        (SearchArgs(space=(("optim.colour=1,2",),)), "optim.colour"),
        (SearchArgs(space=(("optim.lr",),)), "space must be FIELD=DIMENSION"),
        (SearchArgs(space=(("=1,2",),)), "space must be FIELD=DIMENSION"),
        (SearchArgs(space=(("optim.lr=log:1:x",),)), "space optim.lr: a range is log:LOW:HIGH"),
        (SearchArgs(space=(("seed=1,2",), ("seed=3,4",))), "space names seed twice"),
        (SearchArgs(space=(("optim.lr=1,2",),), lr=(0.1, 0.2)), "--lr"),
        (SearchArgs(space=(("max_epochs=1,2",),), max_epochs=3), "--max-epochs"),
        (SearchArgs(space=(("optim.lr=1000",),)), "space: optim.*optim.lr must lie"),
        (SearchArgs(space=(("optim.lr=1,1000",),)), "space at .*optim.lr must lie"),
        (SearchArgs(space=(("optim.lr=0.1", "optim.global_batch_size=8"),)), "space is empty"),
        (SearchArgs(space=(("data.image_size=64,128",),)), "space cannot vary data.image_size"),
        (SearchArgs(space=(("model.head=softmax,corn", "loss.kind=sord,focal"),)), "space at .*model.head softmax"),
        (SearchArgs(sampler="grid", grid_steps=0), "grid_steps"),
        (SearchArgs(sampler="grid", grid_steps=9_999), "the grid has 29,997 points"),
        (SearchArgs(objective="speed"), "objective must be one of nll, accuracy"),
        (SearchArgs(max_total_epochs=0), "max_total_epochs"),
        (SearchArgs(time_budget_s=0.0), "time_budget_s"),
        (SearchArgs(grace_epochs=0), "grace_epochs"),
        (SearchArgs(recipe="smoke", grace_epochs=3), "grace_epochs 3 is more than max_epochs 2"),
        (SearchArgs(reduction_factor=1.0), "reduction_factor"),
        (SearchArgs(recipe="smoke", brackets=2), "brackets must be at most 1, not 2"),
        (SearchArgs(final_seeds=-1), "final_seeds"),
    ],
)
def test_search_refuses_what_cannot_be_searched(args: SearchArgs, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        args.resolve()


# train/evaluate.py


def test_evaluate_reads_what_the_checkpoint_was_trained_on_unless_told_otherwise() -> None:
    args = EvaluateArgs(checkpoint="x")
    assert args.resolve(smoke()) == smoke().data
    elsewhere = replace(args, bucket=SourceArgs(source="file:///tmp/bucket", max_count=3))
    assert elsewhere.resolve(smoke()) == replace(smoke().data, source="file:///tmp/bucket", max_count=3)


@pytest.mark.parametrize("max_count", [0, 6])
def test_evaluate_refuses_counts_that_the_model_cannot_give(max_count: int) -> None:
    with pytest.raises(ConfigError, match="max_count"):
        EvaluateArgs(checkpoint="x", bucket=SourceArgs(max_count=max_count)).resolve(smoke())


# The folder of a run


def test_the_folder_of_a_run_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_run_dir(Path("some/where"), "fit") == tmp_path / "some" / "where"
    assert (tmp_path / "some" / "where").is_dir()


def test_a_run_without_a_folder_gets_one_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = new_run_dir(None, "search")
    assert run_dir.parent == tmp_path / "runs"
    assert run_dir.name.startswith("search-20")
    assert run_dir.is_dir()


def test_a_folder_that_exists_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    assert new_run_dir(tmp_path, "fit") == tmp_path
    assert (tmp_path / "recipe.json").read_text() == "{}"


class Noon(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Noon":
        return cls(2026, 1, 1, 12, tzinfo=tz)


def test_runs_of_the_same_second_share_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data.args.datetime", Noon)
    names = [new_run_dir(None, verb).name for verb in ("fit", "fit", "fit", "search")]
    fits = [f"fit-20260101-120000{end}" for end in ("", "-2", "-3")]
    assert names == [*fits, "search-20260101-120000"]


def test_a_file_in_the_place_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="run_dir"):
        new_run_dir(None, "fit")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run_dir"):
        new_run_dir(tmp_path / "file" / "run", "fit")


@pytest.mark.parametrize(
    ("args", "backbone", "weights"),
    [
        (ModelArgs(), "resnet34", "IMAGENET1K_V1"),
        (ModelArgs(weights="own.safetensors"), "resnet34", "own.safetensors"),
        (ModelArgs(backbone="resnet18"), "resnet18", None),
        (ModelArgs(backbone="resnet18", weights="IMAGENET1K_V1"), "resnet18", "IMAGENET1K_V1"),
    ],
)
def test_model_flags_override_the_recipe(args: ModelArgs, backbone: str, weights: str | None) -> None:
    recipe = replace(smoke(), model=ModelConfig(backbone="resnet34", weights="IMAGENET1K_V1"))
    assert args.apply(recipe).model == ModelConfig(backbone=backbone, weights=weights)


def test_model_flags_leave_the_head_of_the_recipe() -> None:
    recipe = replace(smoke(), model=ModelConfig(backbone="resnet18", head="corn"))
    assert ModelArgs().apply(recipe) == recipe
    assert ModelArgs(backbone="resnet34").apply(recipe).model == ModelConfig(backbone="resnet34", head="corn")


def test_weights_that_are_set_are_where_workers_find_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.chdir(tmp_path)
    for args in (FitArgs(set=("model.weights=checkpoint",)), FitArgs(model=ModelArgs(weights="checkpoint"))):
        assert args.resolve().model.weights == f"{tmp_path}/checkpoint"
    assert FitArgs(set=("model.weights=IMAGENET1K_V1",)).resolve().model.weights == "IMAGENET1K_V1"
