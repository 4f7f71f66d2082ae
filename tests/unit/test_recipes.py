"""The named recipes: each says what it is and can be built."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tyro

from bintally.config import Recipe
from bintally.errors import ConfigError
from bintally.model import build_model
from bintally.recipes import RECIPES, get_recipe
from train.augment import draw
from train.fit import FitArgs
from train.optim import lr_share, set_trained
from tune.search import SearchArgs


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_bears_its_own_name(name: str) -> None:
    assert get_recipe(name).name == name


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_tells_its_command(make: Callable[[], Recipe]) -> None:
    assert f"--recipe {make.__name__}" in (make.__doc__ or "")


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_names_a_network_that_exists(make: Callable[[], Recipe]) -> None:
    recipe = make()
    model = build_model(
        recipe.model,
        num_classes=recipe.data.num_classes,
        image_size=recipe.data.image_size,
        load_weights=False,
    )
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES.keys())
def test_the_command_of_a_recipe_is_one_that_parses(make: Callable[[], Recipe], tmp_path: Path) -> None:
    command = next(line.strip() for line in (make.__doc__ or "").splitlines() if "python " in line)
    _python, script, *flags = command.replace("LISTS", str(tmp_path)).split()
    args = {"train/fit.py": FitArgs, "tune/search.py": SearchArgs}[script]
    parsed = tyro.cli(args, args=flags)
    assert parsed.recipe == make.__name__
    parsed.resolve()


def test_the_baselines_rate_is_the_challenges() -> None:
    recipe = get_recipe("baseline_resnet34")
    rates = [recipe.optim.lr * lr_share(float(epoch), epoch + 0.1, recipe.optim, 40) for epoch in range(40)]
    assert rates == pytest.approx([0.1] * 10 + [0.01] * 10 + [0.001] * 10 + [0.0001] * 10)


def test_the_baseline_mirrors_and_does_no_more() -> None:
    draws = draw(get_recipe("baseline_resnet34").augment, 64, torch.Generator().manual_seed(0))
    assert draws.mirrored.any()
    assert bool((draws.gain == 1).all() and (draws.contrast == 1).all() and (draws.scale == 1).all())
    assert not draws.blurred.any()


def test_the_reports_network_trains_its_head_alone() -> None:
    recipe = get_recipe("report_resnet50")
    model = build_model(recipe.model, num_classes=6, load_weights=False)
    set_trained(model, recipe.optim, epoch=recipe.max_epochs)
    assert {name for name, one in model.named_parameters() if one.requires_grad} == {
        "backbone.fc.weight",
        "backbone.fc.bias",
    }


def test_the_modern_recipe_grows_its_photos() -> None:
    recipe = get_recipe("convnext_384")
    sizes = [recipe.size_in(epoch) for epoch in range(1, recipe.max_epochs + 1)]
    assert sizes == [224] * 9 + [320] * 4 + [384] * 2


def test_the_default_bucket_is_abid() -> None:
    assert get_recipe("baseline_resnet34").data.source == "s3://aft-vbi-pds"


def test_an_unknown_recipe_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="baseline_resnet43") as caught:
        get_recipe("baseline_resnet43")
    assert all(name in str(caught.value) for name in RECIPES)
