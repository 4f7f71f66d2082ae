"""The choice at the end of a search: on validation alone, and told honestly."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.config import with_settings
from bintally.model import build_model
from bintally.recipes import smoke
from data.args import ReadArgs, ResourceArgs
from tune.callbacks import TrackTrials, last_line
from tune.conclude import budget_spent
from tune.config import BudgetConfig, SearchConfig
from tune.final import (
    Candidate,
    best_kept,
    choose,
    describe_spread,
    keep_with_card,
    seeds_of,
    spread_of,
    summarise_final,
    tell_choice,
)
from tune.final_folder import are_of, begin_final, in_full, state_of
from tune.record import EpochRecord, TrialEvent
from tune.space import LR, Interval, SearchSpace

CONFIG = SearchConfig(
    recipe=smoke(),
    space=SearchSpace(dimensions={LR: Interval(low=1e-4, high=1e-1, log=True)}),
    budget=BudgetConfig(trials=5, epochs=8, time_s=100),
    resources=ResourceArgs(),
    read=ReadArgs(),
)


def record(nll: float, *, epoch: int = 1, path: str = "/runs/x") -> EpochRecord:
    metrics = {"val_nll": nll, "val_accuracy": 1 - nll / 2, "val_rmse": nll}
    return EpochRecord(trial_id="a", point={}, epoch=epoch, checkpoint_path=path, metrics=metrics, ended=0.0)


def candidate(name: str, nll: float, seed: int = 0) -> Candidate:
    return Candidate(
        name=name, recipe=replace(smoke(), seed=seed), record=record(nll), checkpoint_dir=Path("/runs") / name
    )


FOUND = candidate("search", 0.8)


def test_the_seeds_are_the_recipes_own_and_the_next() -> None:
    assert seeds_of(replace(smoke(), seed=7), 3) == [7, 8, 9]


def test_the_best_seed_on_validation_is_kept_whatever_the_test_split_says() -> None:
    seeds = [candidate("seed0", 0.7), candidate("seed1", 0.6, 1)]
    chosen = choose(seeds, FOUND, CONFIG)
    assert chosen is seeds[1]
    told = tell_choice(chosen, seeds, FOUND, CONFIG)
    assert told.startswith("kept: seed1, the best of 2 on validation")
    test = {
        "seed0": {"accuracy": 0.9, "rmse": 0.1, "nll": 0.1},
        "seed1": {"accuracy": 0.5, "rmse": 0.9, "nll": 0.9},
    }
    summary = summarise_final(seeds, chosen, test, told)
    assert summary["kept"] == "seed1"
    assert summary["kept_test"] == test["seed1"]
    assert summary["test"]["accuracy"]["mean"] == pytest.approx(0.7)
    assert summary["test"]["accuracy"]["std"] == pytest.approx(0.4 / 2**0.5)


def test_a_search_that_was_better_is_kept_and_called_flattering() -> None:
    seeds = [candidate("seed0", 0.9)]
    chosen = choose(seeds, FOUND, CONFIG)
    assert chosen is FOUND
    told = tell_choice(chosen, seeds, FOUND, CONFIG)
    assert "no final training was better on validation (best 0.9)" in told
    assert "flatters" in told


def test_of_equals_the_retrained_one_is_kept() -> None:
    seeds = [candidate("seed0", 0.8)]
    assert choose(seeds, FOUND, CONFIG) is seeds[0]


def test_the_final_trainings_of_another_winner_are_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (with_settings(smoke(), [f"optim.lr={rate}"]) for rate in (0.1, 0.2))
    assert not are_of(first, tmp_path)
    folder = begin_final(first, tmp_path)
    state = state_of(folder)
    (folder / "test.json").write_text("{}")
    assert begin_final(first, tmp_path) == folder
    assert (folder / "test.json").exists()
    for number, winner in enumerate((second, first), start=1):
        assert begin_final(winner, tmp_path) == folder
        assert are_of(winner, tmp_path)
        assert {path.name for path in folder.iterdir()} == {"recipe.json"}
        assert f"kept as final-{number}/" in capsys.readouterr().out
    assert (tmp_path / "final-1" / "test.json").exists()
    assert state_of(folder) == state != state_of(tmp_path / "final-2")


def test_the_winner_is_trained_on_all_rows_in_each_epoch() -> None:
    found = replace(smoke(), epoch_fraction=0.1, max_epochs=5)
    assert in_full(found) == replace(found, epoch_fraction=1.0)


def test_a_checkpoint_is_kept_once_and_another_takes_its_place(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    whole = {**dict.fromkeys(("val_within_one", "val_mae", "val_num_images", "train_loss"), 1.0), **record(0.7).metrics}
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_checkpoint(source, build_model(smoke().model, num_classes=6, image_size=32), smoke(), {})
        keep_with_card(source, target, smoke(), replace(record(0.7), metrics=whole))
        assert load_checkpoint(target).version == load_checkpoint(source).version
        (target / "calibration.json").write_text("{}")
        keep_with_card(source, target, smoke(), replace(record(0.7), metrics=whole))
        assert (target / "calibration.json").exists()
        (target / "calibration.json").unlink()


def test_without_any_final_training_the_search_stays() -> None:
    assert "no final training left a checkpoint" in tell_choice(choose([], FOUND, CONFIG), [], FOUND, CONFIG)
    assert summarise_final([], FOUND, None, "why")["test"] is None


def test_one_seed_has_no_spread() -> None:
    spread = spread_of([{"accuracy": 0.5, "rmse": 1.0, "nll": 0.7}])
    assert spread is not None
    assert spread["accuracy"] == {"mean": 0.5, "std": None, "n": 1}
    assert describe_spread(spread) == "accuracy 50.0%, rmse 1.000, nll 0.700 (one seed)"


def test_only_a_checkpoint_that_is_still_there_can_be_kept(tmp_path: Path) -> None:
    there = record(0.7, epoch=2, path=str(tmp_path))
    gone = record(0.5, epoch=1, path=str(tmp_path / "gone"))
    assert best_kept([gone, there, record(0.1, path="")], CONFIG) is there
    assert best_kept([gone], CONFIG) is None


@pytest.mark.parametrize(
    ("num_epochs", "seconds", "spent"), [(8, 10.0, True), (7, 10.0, False), (1, 100.0, True)], ids=str
)
def test_a_search_without_anything_left_to_spend_is_not_interrupted(
    num_epochs: int, seconds: float, spent: bool
) -> None:
    records = [record(0.5, epoch=number) for number in range(num_epochs)]
    events = [TrialEvent(what="session", at=50.0), TrialEvent(what="ended", at=50.0 + seconds, trial_id="a")]
    assert bool(budget_spent(CONFIG, records, events)) is spent


def test_trackers_are_left_out_when_tune_stores_its_callbacks(tmp_path: Path) -> None:
    track = TrackTrials(["tensorboard"], tmp_path, smoke())
    track._open["a"] = (lambda: None, [])  # type: ignore[assignment]  # noqa: SLF001  # cannot be pickled
    assert pickle.loads(pickle.dumps(track))._open == {}  # noqa: S301, SLF001


def test_the_last_line_of_an_error_is_its_reason() -> None:
    assert last_line(ValueError("Traceback\n  somewhere\nOutOfMemory: no\n")) == "OutOfMemory: no"
    assert last_line(None) == "no reason was given"
