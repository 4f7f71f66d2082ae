"""The record of a search: what a kill may cost, and which epoch is the best."""

from dataclasses import replace
from pathlib import Path

import pytest

from tune.objective import Objective
from tune.record import EpochRecord, append_record, best_record, read_records


def epoch(trial_id: str = "a", number: int = 1, *, val_nll: float = 1.0, lr: float = 1e-3) -> EpochRecord:
    return EpochRecord(
        trial_id=trial_id,
        point={"optim.lr": lr, "optim.global_batch_size": 32},
        epoch=number,
        checkpoint_path=f"/runs/{trial_id}/{number}",
        metrics={"val_nll": val_nll, "val_accuracy": 0.5},
        ended=0.0,
    )


def write(path: Path, *records: EpochRecord) -> Path:
    for record in records:
        append_record(path, record)
    return path


def test_records_come_back_in_order_and_exactly(tmp_path: Path) -> None:
    records = [epoch("a", 1, val_nll=0.1 + 0.2), epoch("b", 1, lr=1 / 3), epoch("a", 2, val_nll=1e30)]
    assert read_records(write(tmp_path / "trials.jsonl", *records)) == records


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert read_records(tmp_path / "absent.jsonl") == []


def test_each_epoch_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    for number in (1, 2, 3):
        write(path, epoch(number=number))
        assert len(path.read_text().splitlines()) == number


@pytest.mark.parametrize("num_bytes", [1, 20, 60])
def test_a_line_that_was_half_written_is_dropped(tmp_path: Path, num_bytes: int) -> None:
    path = write(tmp_path / "trials.jsonl", epoch(number=1), epoch(number=2))
    path.write_bytes(path.read_bytes()[: -1 - num_bytes])  # the newline and more
    assert read_records(path) == [epoch(number=1)]


def test_a_search_that_goes_on_after_half_a_line_loses_no_epoch(tmp_path: Path) -> None:
    path = write(tmp_path / "trials.jsonl", epoch(number=1), epoch(number=2))
    path.write_bytes(path.read_bytes()[:-20])
    write(path, epoch(number=2, val_nll=0.7), epoch(number=3))
    assert read_records(path) == [epoch(number=1), epoch(number=2, val_nll=0.7), epoch(number=3)]


def test_an_epoch_that_was_run_again_counts_once_and_the_later_one_stays(tmp_path: Path) -> None:
    again = epoch("a", 2, val_nll=0.7)
    path = write(tmp_path / "trials.jsonl", epoch("a", 1), epoch("a", 2), epoch("b", 2), again, epoch("a", 3))
    records = read_records(path)
    assert len(records) == 4
    assert again in records
    assert epoch("a", 2) not in records
    assert epoch("b", 2) in records


def test_the_best_is_the_lowest_nll_of_any_epoch() -> None:
    best = epoch("b", 2, val_nll=0.4)
    others = [epoch("a", 1, val_nll=0.9), epoch("b", 1, val_nll=0.6), epoch("b", 3, val_nll=0.8)]
    assert best_record([*others, best], Objective()) is best
    assert best_record([best, *others], Objective()) is best


def test_a_higher_accuracy_does_not_outweigh_the_nll() -> None:
    best = epoch("a", val_nll=0.4)
    accurate = replace(epoch("b", val_nll=0.5), metrics={"val_nll": 0.5, "val_accuracy": 0.99})
    assert best_record([accurate, best], Objective()) is best
    assert best_record([accurate, best], Objective(metric="val_accuracy", mode="max")) is accurate


def test_of_equals_the_later_is_the_best_since_train_keeps_its_checkpoint() -> None:
    first, second = epoch("a", 1), epoch("a", 2)
    assert best_record([first, second], Objective()) is second
    assert best_record([second, first], Objective()) is second


def test_a_diverged_epoch_is_never_the_best() -> None:
    good = epoch("b", val_nll=3.0)
    assert best_record([epoch("a", val_nll=1e30), good], Objective()) is good
