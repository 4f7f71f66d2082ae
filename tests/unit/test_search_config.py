"""A search as a value: bounds that make sense, and a file that a resumed search goes on with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bintally.config import Recipe
from bintally.errors import ConfigError
from bintally.recipes import RECIPES, smoke
from data.args import ReadArgs, ResourceArgs
from tune.config import SEARCH_FILE, BudgetConfig, SearchConfig, read_search, write_search
from tune.record import begin_session
from tune.space import BATCH_SIZE, LR, Choice, Dimension, Interval, SearchSpace


def make_config(recipe: Recipe | None = None, *, num_trials: int = 3) -> SearchConfig:
    return SearchConfig(
        recipe=recipe or smoke(),
        space=SearchSpace(
            dimensions={LR: Interval(low=1 / 3 * 1e-3, high=1e-1, log=True), BATCH_SIZE: Choice(values=(8, 16))}
        ),
        budget=BudgetConfig(trials=num_trials),
        resources=ResourceArgs(num_workers=2, use_gpu=True, num_cpus=4),
        read=ReadArgs(max_dropped="2%", stream=True),
    )


@pytest.mark.parametrize("num_trials", [0, -1])
def test_no_trial(num_trials: int) -> None:
    with pytest.raises(ConfigError, match="num_trials must be at least 1"):
        make_config(num_trials=num_trials)


@pytest.mark.parametrize(
    "dimensions",
    [
        {LR: Interval(low=1.0, high=1000.0, log=True)},
        {BATCH_SIZE: Choice(values=(32, 0))},
        {"optim.colour": Choice(values=(1,))},
        {LR: Choice(values=("fast",))},
    ],
    ids=["lr too high", "batch of none", "no such field", "of another type"],
)
def test_points_that_no_recipe_allows(dimensions: dict[str, Dimension]) -> None:
    with pytest.raises(ConfigError):
        replace(make_config(), space=SearchSpace(dimensions=dimensions))


def test_the_corners_are_the_recipe_at_every_bound() -> None:
    config = make_config()
    corners = {(one.optim.lr, one.optim.global_batch_size) for one in config.points()}
    assert corners == {(lr, size) for lr in (1 / 3 * 1e-3, 1e-1) for size in (8, 16)}
    assert all(one.data == smoke().data and one.model == smoke().model for one in config.points())


def wide_space(num_values: int) -> SearchSpace:
    fields = ("seed", "patience", "optim.step_epochs", "optim.stage_epochs", "optim.global_batch_size", "loss.kind")
    values = Choice(values=tuple(range(1, num_values + 1)))
    kinds = {"loss.kind": Choice(values=("cross_entropy", "sord")), "model.head": Choice(values=("softmax", "corn"))}
    return SearchSpace(dimensions={**dict.fromkeys(fields, values), **kinds})


def test_a_space_of_many_fields_is_checked_by_pairs() -> None:
    space = wide_space(5)
    assert space.corners()[0] == {name: one.ends()[0] for name, one in space.dimensions.items()}
    assert len(space.corners()) < 500  # of 12,500
    with pytest.raises(ConfigError, match=r"space at .*kind sord, head corn"):
        replace(make_config(), space=space)
    dimensions = {name: one for name, one in space.dimensions.items() if name != "model.head"}
    assert replace(make_config(), space=SearchSpace(dimensions=dimensions)).points()


def test_too_many_pairs_name_the_field_with_the_most_values() -> None:
    space = wide_space(40)
    dimensions = space.dimensions | {"patience": Choice(values=tuple(range(1, 60)))}
    with pytest.raises(ConfigError, match=r"space patience: 59 values.*list fewer"):
        SearchSpace(dimensions=dimensions).corners()


@pytest.mark.parametrize(("max_epochs", "grace"), [(1, 1), (6, 1), (9, 2), (12, 2), (13, 3)])
def test_no_trial_is_stopped_before_a_sixth_of_its_epochs(max_epochs: int, grace: int) -> None:
    assert make_config(replace(smoke(), max_epochs=max_epochs)).grace_epochs == grace


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES.keys())
def test_a_search_survives_its_file(make: Callable[[], Recipe], tmp_path: Path) -> None:
    config = make_config(replace(make(), seed=42))
    write_search(config, tmp_path)
    assert read_search(tmp_path) == config


def test_a_search_of_which_nothing_has_begun_may_be_corrected(tmp_path: Path) -> None:
    write_search(make_config(), tmp_path)
    write_search(make_config(num_trials=9), tmp_path)
    assert read_search(tmp_path).budget.trials == 9


def test_a_second_search_does_not_overwrite_the_first(tmp_path: Path) -> None:
    write_search(make_config(), tmp_path)
    begin_session(tmp_path)
    with pytest.raises(ConfigError, match=f"run_dir {tmp_path} already holds a search.*--resume"):
        write_search(make_config(num_trials=9), tmp_path)
    assert read_search(tmp_path).budget.trials == 3


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"run_dir {tmp_path} holds no search to resume"):
        read_search(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"colour": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SEARCH_FILE).write_text(text)
    with pytest.raises(ConfigError, match=f"{tmp_path / SEARCH_FILE} is damaged"):
        read_search(tmp_path)


@pytest.mark.parametrize("section", ["", "space", "resources", "recipe", "read"])
def test_an_unknown_field_is_not_overlooked(tmp_path: Path, section: str) -> None:
    write_search(make_config(), tmp_path)
    path = tmp_path / SEARCH_FILE
    values = json.loads(path.read_text())
    (values[section] if section else values)["colour"] = 1
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="is damaged"):
        read_search(tmp_path)


def test_a_run_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_search(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "good", "bad"), [("trials", "3", "0"), ("max_dropped", '"2%"', '"200%"'), ("stream", "true", '"x"')]
)
def test_a_file_edited_out_of_range_is_refused(tmp_path: Path, name: str, good: str, bad: str) -> None:
    write_search(make_config(), tmp_path)
    path = tmp_path / SEARCH_FILE
    text = path.read_text()
    assert f'"{name}": {good}' in text
    path.write_text(text.replace(f'"{name}": {good}', f'"{name}": {bad}'))
    with pytest.raises(ConfigError, match=f"{path} is damaged"):
        read_search(tmp_path)
