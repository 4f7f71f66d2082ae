"""What a recipe refuses of heads, losses, augmentation, optimisation and sizes, and what it says then."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from bintally.config import ModelConfig, Recipe, recipe_from_dict
from bintally.errors import ConfigError
from bintally.recipes import convnext_384, smoke


def changed(**fields: Any) -> Recipe:  # noqa: ANN401  # `optim__lr=1` means lr in optim
    values = json.loads(json.dumps(asdict(smoke())))
    for path, value in fields.items():
        *sections, name = path.split("__")
        target = values
        for section in sections:
            target = target[section]
        target[name] = value
    return recipe_from_dict(values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model__head", "poisson"),
        ("loss__kind", "mse"),
        ("loss__sord_tau", 0),
        ("loss__sord_tau", float("inf")),
        ("loss__focal_gamma", -0.1),
        ("loss__class_weights", 1),
        ("augment__flip", "yes"),
        ("augment__brightness", -0.1),
        ("augment__contrast", 1.1),
        ("augment__colour", float("nan")),
        ("augment__blur", 2),
        ("augment__shrink", 0.51),
        ("optim__optimizer", "lion"),
        ("optim__schedule", "linear"),
        ("optim__step_epochs", 0),
        ("optim__stage_epochs", 0),
        ("optim__step_factor", 0),
        ("optim__step_factor", 1),
        ("optim__trained", "none"),
        ("optim__layer_decay", 0),
        ("optim__layer_decay", 1.1),
        ("optim__clip_norm", 0),
        ("optim__ema_decay", 1),
        ("compute__precision", "fp16"),
        ("compute__micro_batch_size", 0),
        ("patience", 0),
        ("small_first", [[2, 15]]),
        ("small_first", [[2, 33]]),
        ("small_first", [[4, 24], [2, 32]]),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field.rsplit("__", 1)[-1]):
        changed(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss__focal_gamma", 0.0),
        ("augment__shrink", 0.5),
        ("augment__blur", 1.0),
        ("optim__layer_decay", 1.0),
        ("optim__clip_norm", None),
        ("compute__micro_batch_size", 1),
        ("patience", 1),
        ("small_first", [[1, 16], [2, 32]]),
    ],
)
def test_a_value_at_the_edge_is_taken(field: str, value: object) -> None:
    assert changed(**{field: value}) is not None


@pytest.mark.parametrize("head", ["corn", "cumulative_link", "regression"])
@pytest.mark.parametrize(("field", "value"), [("loss__kind", "sord"), ("loss__class_weights", True)])
def test_a_head_with_its_own_likelihood_takes_no_other_loss(head: str, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"loss\.kind and class_weights need model\.head softmax, not {head}"):
        changed(model__head=head, **{field: value})


@pytest.mark.parametrize("backbone", ["vit_b_16", "maxvit_t"])
def test_a_network_built_for_one_size_takes_no_smaller_photos_first(backbone: str) -> None:
    with pytest.raises(ConfigError, match=rf"small_first needs a network .*{backbone} is built for one"):
        changed(model__backbone=backbone, small_first=[[1, 16]])


def test_the_head_is_part_of_the_recipe_file() -> None:
    assert changed(model__head="corn").model == ModelConfig(backbone="small_cnn", head="corn")
    assert recipe_from_dict(json.loads(json.dumps(asdict(convnext_384())))).small_first == ((9, 224), (13, 320))
