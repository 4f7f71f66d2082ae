"""Recipes as JSON: what goes out comes back, and what is wrong is named."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import pytest

from bintally.config import ModelConfig, OptimConfig, Recipe, read_recipe, recipe_from_dict, write_recipe
from bintally.errors import BinTallyError, ConfigError
from bintally.recipes import RECIPES, smoke
from bintally.source_config import DataConfig


def changed(field: str, value: object) -> dict[str, Any]:
    """The smoke recipe as JSON gives it, with one field set; `optim.lr` means lr in optim."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(smoke())))
    *sections, name = field.split(".")
    target = values
    for section in sections:
        target = target[section]
    target[name] = value
    return values


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_survives_its_file(make: Callable[[], Recipe], tmp_path: Path) -> None:
    recipe = make()
    write_recipe(recipe, tmp_path / "best.json")
    assert read_recipe(tmp_path / "best.json") == recipe


def test_no_field_is_lost_on_the_way(tmp_path: Path) -> None:
    recipe = Recipe(
        name="odd",
        data=DataConfig(
            source="s3://other/some/prefix",
            endpoint_url="http://127.0.0.1:9000",
            region="eu-west-1",
            max_count=9,
            image_size=48,
            max_images=77,
            signed=True,
            ids="range:1-99",
            unpadded=True,
            labels="/some/lists",
            split_by="official",
            resize="letterbox",
            fast_decode=True,
        ),
        model=ModelConfig(backbone="resnet18", weights="IMAGENET1K_V1"),
        optim=OptimConfig(lr=0.0123456789012345, global_batch_size=3, weight_decay=0.5, warmup_fraction=0.25),
        max_epochs=7,
        epoch_fraction=0.1,
        balanced=True,
        seed=12345,
    )
    write_recipe(recipe, tmp_path / "recipe.json")
    assert read_recipe(tmp_path / "recipe.json") == recipe


def test_fields_with_a_default_may_be_left_out() -> None:
    values = changed("seed", 0)
    del values["seed"], values["epoch_fraction"], values["balanced"]
    del values["data"]["max_count"], values["data"]["resize"], values["optim"]["weight_decay"]
    assert recipe_from_dict(values) == smoke()


@pytest.mark.parametrize("field", ["max_epochs", "optim.lr", "model.backbone", "data"])
def test_a_required_field_that_is_missing_is_named(field: str) -> None:
    values = changed("seed", 0)
    *sections, name = field.split(".")
    section = values[sections[0]] if sections else values
    if field == "data":
        section.pop(name)
    else:
        del section[name]
    with pytest.raises(ConfigError, match=f"best.json: {field}"):
        recipe_from_dict(values, origin="best.json")


@pytest.mark.parametrize("field", ["colour", "data.colour", "model.colour", "optim.colour"])
def test_an_unknown_field_is_refused_and_named(field: str) -> None:
    with pytest.raises(ConfigError, match=f"best.json: {field}"):
        recipe_from_dict(changed(field, 1), origin="best.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_epochs", "2"),
        ("max_epochs", 2.5),
        ("epoch_fraction", "0.1"),
        ("epoch_fraction", None),
        ("balanced", 1),
        ("balanced", "yes"),
        ("data.signed", 1),
        ("data.unpadded", "true"),
        ("data.fast_decode", None),
        ("data.ids", 7),
        ("data.labels", 7),
        ("data.resize", "stretch"),
        ("data.split_by", "random"),
        ("seed", None),
        ("data.max_count", "5"),
        ("data.max_count", True),
        ("data.max_images", 1.5),
        ("data.source", 7),
        ("model.backbone", None),
        ("model.weights", 1),
        ("optim.lr", "1e-3"),
        ("optim.global_batch_size", [16]),
        ("data", "s3://aft-vbi-pds"),
        ("optim", None),
    ],
)
def test_a_wrong_type_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"best.json: {field}"):
        recipe_from_dict(changed(field, value), origin="best.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_epochs", 0),
        ("epoch_fraction", 0),
        ("epoch_fraction", -0.1),
        ("epoch_fraction", 1.0001),
        ("epoch_fraction", float("nan")),
        ("data.ids", ""),
        ("data.ids", "range:9"),
        ("data.ids", "file:relative"),
        ("data.ids", "list:1,,2"),
        ("data.labels", "relative/lists"),
        ("data.split_by", "official"),
        ("data.max_count", 0),
        ("data.image_size", 15),
        ("data.image_size", 2049),
        ("data.max_images", 0),
        ("data.source", "gs://bucket"),
        ("data.source", "file://relative/folder"),
        ("data.source", "/plain/folder"),
        ("data.source", ""),
        ("data.endpoint_url", "127.0.0.1:9000"),
        ("data.endpoint_url", "ftp://host"),
        ("data.endpoint_url", ""),
        ("optim.lr", 0),
        ("optim.lr", -1e-3),
        ("optim.lr", 100),
        ("optim.lr", float("nan")),
        ("optim.global_batch_size", 0),
        ("optim.warmup_fraction", 1),
        ("optim.warmup_fraction", -0.1),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_from_dict(changed(field, value), origin="best.json")
    assert str(caught.value).startswith("best.json: ")
    assert field.rsplit(".", 1)[-1] in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optim.weight_decay", -1.0),
        ("optim.weight_decay", float("inf")),
        ("optim.weight_decay", float("nan")),
        ("seed", -1),
        ("seed", 2**32),
        ("data.source", "s3://"),
        ("data.source", "s3:///prefix"),
        ("data.source", "s3://my bucket"),
        ("data.source", "s3://bucket?x"),
        ("data.source", "s3://bucket/../x"),
        ("data.source", "s3://bucket/a\tb"),
        ("data.endpoint_url", "http://"),
        ("data.endpoint_url", "http://:9000"),
        ("data.endpoint_url", "http://127.0.0.1:99999"),
        ("data.endpoint_url", "http://127.0.0.1000"),
        ("data.endpoint_url", "http://127.0.0.1:port"),
        ("data.endpoint_url", "http://[::1"),
        ("data.endpoint_url", "http://[::1]x"),
        ("data.endpoint_url", "http://[:::1]"),
        ("data.endpoint_url", "http://minio example"),
        ("data.endpoint_url", "http://minio\n"),
        ("data.endpoint_url", "http://minio?x"),
    ],
)
def test_a_value_that_can_never_work_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError):
        recipe_from_dict(changed(field, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch_fraction", 1),
        ("epoch_fraction", 1e-9),
        ("balanced", True),
        ("data.ids", "range:1-1"),
        ("data.ids", "file:/absolute/ids.txt"),
        ("data.ids", "list:00001"),
        ("data.labels", "/absolute/lists"),
        ("data.image_size", 16),
        ("data.image_size", 2048),
        ("data.max_count", 1),
        ("data.max_images", 1),
        ("data.source", "file:///tmp/bucket"),
        ("data.source", "file:///tmp/a bucket#1"),
        ("data.source", "s3://bucket"),
        ("data.source", "s3://bucket/"),
        ("data.source", "s3://old_Bucket.1/a prefix/..x/"),
        ("data.endpoint_url", "https://minio.example:9000"),
        ("data.endpoint_url", "http://my_minio9/"),
        ("data.endpoint_url", "http://[::1]:65535/s3"),
        ("optim.lr", 1),
        ("optim.weight_decay", 0),
        ("seed", 2**32 - 1),
        ("optim.warmup_fraction", 0),
    ],
)
def test_a_value_at_the_edge_is_taken(field: str, value: object) -> None:
    values = asdict(recipe_from_dict(changed(field, value)))
    for name in field.split("."):
        values = values[name]
    assert values == value


def test_all_faults_are_told_at_once() -> None:
    values = changed("max_epochs", "many")
    values["data"]["image_size"] = 1
    with pytest.raises(ConfigError, match=r"image_size.*max_epochs"):
        recipe_from_dict(values)


def test_a_bad_value_in_code_is_an_error_of_ours_and_a_value_error() -> None:
    with pytest.raises(ConfigError, match="max_count") as caught:
        DataConfig(max_count=0)
    assert isinstance(caught.value, BinTallyError)
    assert isinstance(caught.value, ValueError)


def test_a_missing_recipe_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "absent.json")):
        read_recipe(tmp_path / "absent.json")


@pytest.mark.parametrize("text", ["", "{", "name: smoke", '{"name": "smoke",}'])
def test_a_recipe_file_that_is_not_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "best.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{path} is not JSON"):
        read_recipe(path)


@pytest.mark.parametrize("text", ["[]", "null", '"smoke"', "{}"])
def test_json_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "best.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        read_recipe(path)


def test_a_folder_instead_of_a_recipe_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_recipe(tmp_path)


def test_a_binary_instead_of_a_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=str(path)):
        read_recipe(path)


@pytest.mark.parametrize("depth", [500, 100_000])
def test_a_recipe_file_nested_too_deeply(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "best.json"
    path.write_text('{"data": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(ConfigError, match=str(path)):
        read_recipe(path)


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        smoke().max_epochs = 3  # type: ignore[misc]  # that is the point


def test_classes_are_the_counts_from_zero() -> None:
    assert DataConfig(max_count=5).num_classes == 6
