"""The named recipes: each says what it is and can be built."""

from collections.abc import Callable

import pytest

from bintally.config import Recipe
from bintally.errors import ConfigError
from bintally.model import build_model
from bintally.recipes import RECIPES, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_bears_its_own_name(name: str) -> None:
    assert get_recipe(name).name == name


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_tells_its_command(make: Callable[[], Recipe]) -> None:
    assert f"--recipe {make.__name__}" in (make.__doc__ or "")


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_names_a_network_that_exists(make: Callable[[], Recipe]) -> None:
    recipe = make()
    model = build_model(recipe.model, num_classes=recipe.data.num_classes, load_weights=False)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


def test_the_default_bucket_is_abid() -> None:
    assert get_recipe("baseline_resnet34").data.source == "s3://aft-vbi-pds"


def test_an_unknown_recipe_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="baseline_resnet43") as caught:
        get_recipe("baseline_resnet43")
    assert all(name in str(caught.value) for name in RECIPES)
