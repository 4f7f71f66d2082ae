"""What a search writes when its last trial has ended."""

import json
from pathlib import Path

from bintally.recipes import smoke
from data.args import ReadArgs, ResourceArgs
from tune.conclude import RESULTS_FILE, write_outcome
from tune.config import BudgetConfig, SearchConfig
from tune.record import EVENTS_FILE, TRIALS_FILE, EpochRecord, TrialEvent, What, append_record
from tune.space import LR, Interval, SearchSpace


def test_a_search_of_few_trials_has_as_many_slots_as_trials(tmp_path: Path) -> None:
    config = SearchConfig(
        recipe=smoke(),
        space=SearchSpace(dimensions={LR: Interval(low=1e-4, high=1e-1, log=True)}),
        budget=BudgetConfig(trials=2),
        resources=ResourceArgs(),
        read=ReadArgs(),
    )
    told: list[tuple[What, float, str]] = [
        ("session", 0, ""),
        ("started", 2, "a_00000"),
        ("started", 4, "a_00001"),
        ("ended", 8, "a_00000"),
        ("ended", 9, "a_00001"),
    ]
    for what, at, trial_id in told:
        append_record(tmp_path / EVENTS_FILE, TrialEvent(what=what, at=at, trial_id=trial_id, point={LR: 1e-3}))
    metrics = {"val_nll": 1.0, "val_accuracy": 0.5, "val_within_one": 0.9, "val_rmse": 1.0, "val_mae": 0.7}
    best = EpochRecord(
        trial_id="a_00000", point={LR: 1e-3}, epoch=1, checkpoint_path="/runs/a", metrics=metrics, ended=7
    )
    append_record(tmp_path / TRIALS_FILE, best)

    write_outcome(config, best, tmp_path, 8, final=None)
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert results["at_once"] == 2
    assert results["busy_share"] == (0 * 2 + 1 * 2) / (2 * 4)  # until the second one began
    assert "<b>25%</b> of the 2 slots" in (tmp_path / "report.html").read_text()
