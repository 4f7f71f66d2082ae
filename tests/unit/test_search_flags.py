"""The flags of a search: dimensions, presets, objective and budgets."""

import math
import sys
from pathlib import Path

import pytest
import tyro

from bintally.config import with_settings
from bintally.errors import ConfigError
from bintally.recipes import report_resnet50, smoke
from train.figures import DIVERGED, FIGURES, worst_figures
from tune.config import AshaConfig, BudgetConfig, SearchConfig
from tune.objective import Objective
from tune.presets import PRESETS, get_preset
from tune.search import SearchArgs, main
from tune.space import BATCH_SIZE, LR, Choice, Dimension, Interval, value_at


def resolved(line: str) -> SearchConfig:
    return tyro.cli(SearchArgs, args=line.split()).resolve()


def dimensions(line: str) -> dict[str, Dimension]:
    return resolved(f"--recipe smoke {line}").space.dimensions


def test_any_field_joins_the_learning_rate_and_the_batch_size() -> None:
    both = "--space model.backbone=resnet18,small_cnn optim.weight_decay=log:1e-5:1e-2"
    apart = "--space model.backbone=resnet18,small_cnn --space optim.weight_decay=log:1e-5:1e-2"
    assert dimensions(both) == dimensions(apart)
    assert dimensions(both) == {
        **dimensions(""),
        "model.backbone": Choice(values=("resnet18", "small_cnn")),
        "optim.weight_decay": Interval(low=1e-5, high=1e-2, log=True),
    }


def test_a_dimension_takes_the_place_of_a_default_one() -> None:
    space = dimensions("--space optim.lr=0.1,0.2 optim.global_batch_size=logint:8:32")
    assert space == {LR: Choice(values=(0.1, 0.2)), BATCH_SIZE: Interval(low=8, high=32, log=True, whole=True)}


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("--space optim.lr=0.25", LR, 0.25),
        ("--batch-sizes 8", BATCH_SIZE, 8),
        ("--space optim.global_batch_size=8", BATCH_SIZE, 8),
        ("--space data.image_size=64", "data.image_size", 64),
        ("--space optim.clip_norm=null", "optim.clip_norm", None),
    ],
)
def test_a_single_value_is_no_dimension_but_fixed_for_all_trials(flags: str, field: str, value: object) -> None:
    config = resolved(f"--recipe smoke {flags}")
    assert field not in config.space.dimensions
    assert value_at(config.recipe, field) == value
    assert config.space.dimensions


def test_every_other_flag_reaches_the_search() -> None:
    config = resolved(
        "--recipe smoke --objective val_rmse:max --max-epochs 9 --epoch-fraction 0.5 --sampler tpe --num-trials 5"
        " --time-budget-s 60 --max-total-epochs 20 --grace-epochs 2 --reduction-factor 2 --brackets 2 --no-asha"
        " --grid-steps 7 --micro-batch-on-oom --final-seeds 4"
    )
    assert config.objective == Objective(metric="val_rmse", mode="max")
    assert config.budget == BudgetConfig(trials=5, epochs=20, time_s=60)
    assert config.asha == AshaConfig(grace_epochs=2, reduction_factor=2, brackets=2, enabled=False)
    assert (config.recipe.max_epochs, config.recipe.epoch_fraction) == (9, 0.5)
    assert config.recipe.compute.fit_memory
    assert (config.sampler, config.grid_steps, config.final_seeds) == ("tpe", 7, 4)


def test_no_final_keeps_the_trial_of_the_winner() -> None:
    assert (resolved("").final_seeds, resolved("--no-final").final_seeds) == (3, 0)


def test_the_longest_trial_of_the_space_is_as_long_as_asha_looks() -> None:
    config = resolved("--recipe smoke --space max_epochs=int:2:18")
    assert (config.max_epochs, config.grace_epochs) == (18, 3)
    assert resolved("--recipe smoke --space max_epochs=3,7,5").max_epochs == 7
    assert resolved("--recipe smoke").max_epochs == 2


def test_the_size_of_a_grid_replaces_the_number_of_trials() -> None:
    assert resolved("--recipe smoke --sampler grid --grid-steps 3 --batch-sizes 8 16").budget.trials == 6
    assert (
        resolved("--recipe smoke --space optim.lr=0.1,0.2 --batch-sizes 8 16").budget.trials == 4
    )  # there are no more


def test_a_search_of_fewer_points_than_trials_says_so_when_it_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its source is missing, so that it ends before anything begins."""
    flags = ["--recipe", "smoke", "--source", "file:///nowhere", "--run-dir", str(tmp_path)]
    cut = "the space has 2 points, so there are as many trials"
    for more, told in (
        (["--lr", "1e-3", "1e-2"], False),
        (["--sampler", "grid", "--grid-steps", "2", "--batch-sizes", "8"], True),
        (["--resume"], False),
    ):
        monkeypatch.setattr(sys, "argv", ["search.py", *flags, *more])
        with pytest.raises(SystemExit):
            main()
        output = "".join(capsys.readouterr())
        assert (cut in output) == told
        assert "there is no folder /nowhere" in output  # also the second time: the first command's search is replaced


def test_a_sampler_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # how Python notes that a module is absent
    for sampler in ("tpe", "bohb"):
        with pytest.raises(ValueError, match=f"sampler {sampler} needs Optuna.*uv pip install 'optuna>=5'"):
            resolved(f"--recipe smoke --sampler {sampler}")
    assert resolved("--recipe smoke").sampler == "random"


# presets


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_search_on_the_reports_recipe(name: str) -> None:
    config = resolved(f"--preset {name}")
    preset = get_preset(name)
    assert config.recipe == with_settings(report_resnet50(), preset.settings)
    assert config.space.dimensions == preset.space
    assert config.objective == preset.objective
    assert config.budget == BudgetConfig(trials=16)


def test_what_the_presets_search() -> None:
    a, b, c, d = (resolved(f"--preset {name}") for name in PRESETS)
    assert a.space.dimensions == {
        LR: Interval(low=0.001, high=0.1, log=True),
        BATCH_SIZE: Choice(values=(16, 32, 64)),
        "max_epochs": Interval(low=2, high=6, whole=True),
    }
    assert (b.recipe.max_epochs, b.recipe.epoch_fraction) == (5, 0.1)
    assert b.objective == Objective(metric="val_accuracy", mode="max")
    assert c.space.dimensions[LR] == Interval(low=0.005, high=0.01, log=True)
    assert (d.recipe.balanced, d.recipe.optim.optimizer, d.space) == (True, "sgd", b.space)


@pytest.mark.parametrize(
    ("flags", "enabled"), [("", True), ("--asha", True), ("--no-asha", False)], ids=["default", "asha", "no asha"]
)
def test_a_preset_runs_trials_to_their_end_as_its_report_did_unless_asked_otherwise(flags: str, enabled: bool) -> None:
    assert resolved(f"--recipe smoke {flags}").asha.enabled == enabled
    for name in PRESETS:
        assert resolved(f"--preset {name} {flags}").asha.enabled == (flags == "--asha")


def test_early_stopping_cannot_be_asked_for_and_refused() -> None:
    with pytest.raises(ConfigError, match="--asha and --no-asha"):
        resolved("--recipe smoke --asha --no-asha")


def test_flags_override_a_preset() -> None:
    config = resolved(
        "--preset capstone-a --max-epochs 3 --lr 0.01 0.02 --space optim.weight_decay=0,0.1 --objective rmse"
    )
    assert config.space.dimensions == {
        LR: Interval(low=0.01, high=0.02, log=True),
        BATCH_SIZE: Choice(values=(16, 32, 64)),
        "optim.weight_decay": Choice(values=(0, 0.1)),
    }
    assert (config.recipe.max_epochs, config.objective.metric) == (3, "val_rmse")
    other = resolved("--preset capstone-b --recipe smoke --epoch-fraction 0.5")
    assert other.recipe == with_settings(smoke(), ["max_epochs=5", "epoch_fraction=0.5"])


def test_help_lists_the_presets_and_the_ways_to_choose_points(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(SearchArgs, args=["--help"])
    text = capsys.readouterr().out
    for word in (*PRESETS, "random", "grid", "tpe", "bohb", "log:LOW:HIGH", "--asha", "--no-asha", "--no-final"):
        assert word in text


def test_a_diverged_epoch_is_the_worst_in_every_figure_and_either_way() -> None:
    for metric in FIGURES:
        for objective in (Objective(metric=metric), Objective(metric=metric, mode="max")):
            assert objective.loss(worst_figures()) == DIVERGED
    best = {"val_nll": math.nan, "val_accuracy": 1.0}
    assert Objective(metric="val_accuracy", mode="max").loss(best) == DIVERGED
    assert Objective(metric="val_accuracy", mode="max").loss({"val_nll": 1.0, "val_accuracy": math.nan}) == DIVERGED
