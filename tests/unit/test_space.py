"""A search space: what a text describes, and which recipes its points make."""

import math
from pathlib import Path

import pytest

from bintally.errors import ConfigError
from bintally.recipes import smoke
from tune.objective import Objective, parse_objective
from tune.space import (
    BATCH_SIZE,
    LR,
    Choice,
    Interval,
    SearchSpace,
    parse_dimension,
    parse_space,
    recipe_at,
    value_at,
)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("log:1e-4:1e-1", Interval(low=1e-4, high=1e-1, log=True)),
        ("uniform:-1:2.5", Interval(low=-1, high=2.5)),
        ("int:2:6", Interval(low=2, high=6, whole=True)),
        ("logint:16:256", Interval(low=16, high=256, log=True, whole=True)),
        ("16,32", Choice(values=(16, 32))),
        ("resnet34,small_cnn", Choice(values=("resnet34", "small_cnn"))),
        ("true,false,null,0.5", Choice(values=(True, False, None, 0.5))),
        ("sgd", Choice(values=("sgd",))),
    ],
)
def test_a_dimension_of_a_text(text: str, dimension: Choice | Interval) -> None:
    assert parse_dimension(text) == dimension


def test_weights_are_where_the_trials_find_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.pth").touch()
    monkeypatch.chdir(tmp_path)
    (weights,) = parse_space(["model.weights=null,own.pth,IMAGENET1K_V1"]).values()
    assert weights == Choice(values=(None, f"{tmp_path}/own.pth", "IMAGENET1K_V1"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("log:1", "log:LOW:HIGH"),
        ("log:a:b", "log:LOW:HIGH"),
        ("log:0:1", "above 0"),
        ("log:1:0.1", "lower one first"),
        ("uniform:nan:1", "finite"),
        ("uniform:0:inf", "finite"),
        ("int:1.5:3", "whole bounds"),
        ("3,3", "twice"),
    ],
)
def test_a_text_that_is_no_dimension(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        parse_dimension(text)


def test_a_share_of_an_interval() -> None:
    assert Interval(low=1e-4, high=1e-2, log=True).at(0.5) == pytest.approx(1e-3)
    assert Interval(low=0, high=4).at(0.25) == 1
    whole = Interval(low=1, high=4, whole=True)
    assert [whole.at(share) for share in (0, 0.24, 0.26, 0.76, 1)] == [1, 1, 2, 4, 4]
    assert all(isinstance(whole.at(share), int) for share in (0, 0.5, 1))


def test_the_grid_of_an_interval_has_both_bounds() -> None:
    assert Interval(low=1e-3, high=1e-1, log=True).grid(3) == pytest.approx((1e-3, 1e-2, 1e-1))
    assert Interval(low=1, high=2, whole=True).grid(5) == (1, 2)
    assert Interval(low=0, high=4).grid(1) == (2,)


def test_the_grid_of_a_space_has_every_pair_once() -> None:
    space = SearchSpace(dimensions={LR: Interval(low=1e-3, high=1e-1, log=True), BATCH_SIZE: Choice(values=(16, 32))})
    pairs = [(point[LR], point[BATCH_SIZE]) for point in space.grid(4)]
    assert len(pairs) == len(set(pairs)) == 8
    assert {size for _, size in pairs} == {16, 32}


def test_a_recipe_at_a_point() -> None:
    point = {LR: 0.25, "model.backbone": "resnet18", "optim.clip_norm": None, "balanced": True}
    recipe = recipe_at(smoke(), point)
    assert (recipe.optim.lr, recipe.model.backbone, recipe.optim.clip_norm, recipe.balanced) == (
        0.25,
        "resnet18",
        None,
        True,
    )
    assert {field: value_at(recipe, field) for field in point} == point
    assert recipe.optim.global_batch_size == smoke().optim.global_batch_size


@pytest.mark.parametrize("field", ["lr", "optim.rate", "optim", "optim.lr.value"])
def test_a_point_with_a_field_that_no_recipe_has(field: str) -> None:
    with pytest.raises(ConfigError):
        recipe_at(smoke(), {field: 1})


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("nll", Objective(metric="val_nll", mode="min")),
        ("val_nll", Objective(metric="val_nll", mode="min")),
        ("accuracy", Objective(metric="val_accuracy", mode="max")),
        ("rmse", Objective(metric="val_rmse", mode="min")),
        ("train_loss", Objective(metric="train_loss", mode="min")),
        ("epoch_s:min", Objective(metric="epoch_s", mode="min")),
        ("val_accuracy:min", Objective(metric="val_accuracy", mode="min")),
    ],
)
def test_an_objective_of_a_text(text: str, objective: Objective) -> None:
    assert parse_objective(text) == objective


@pytest.mark.parametrize("text", ["", "speed", "nll:up", ":min:max"])
def test_a_text_that_is_no_objective(text: str) -> None:
    with pytest.raises(ConfigError, match="objective must be one of"):
        parse_objective(text)


def test_lower_is_better_whichever_way_the_figure_goes() -> None:
    worse, better = {"val_accuracy": 0.4}, {"val_accuracy": 0.6}
    accuracy = Objective(metric="val_accuracy", mode="max")
    assert accuracy.loss(better) < accuracy.loss(worse)
    assert math.copysign(1, Objective(metric="val_accuracy").loss(better)) == 1
