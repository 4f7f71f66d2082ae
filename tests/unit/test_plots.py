"""Pictures: they are drawn for good and for odd results, and show what they are for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from train.plots import (
    FAINT,
    LINE,
    RIGHT,
    SECOND,
    WRONG,
    plot_confusion,
    plot_recall,
    plot_reliability,
    plot_risk_coverage,
    plot_sheet,
)
from tune.objective import Objective
from tune.plots import plot_curves
from tune.record import EpochRecord


def pixels(path: Path) -> np.ndarray:
    """The picture, which must be a PNG with something in it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        drawn = np.asarray(image.convert("RGB")).astype(int)
    height, width, _ = drawn.shape
    assert 400 <= width <= 2400
    assert 200 <= height <= 2400
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20
    return drawn


def num_like(drawn: np.ndarray, colour: str) -> int:
    """How many pixels have about this colour."""
    return int((np.abs(drawn - ImageColor.getrgb(colour)).max(axis=2) <= 24).sum())


def trial(trial_id: str, nlls: list[float]) -> list[EpochRecord]:
    return [
        EpochRecord(
            trial_id=trial_id,
            point={"optim.lr": 1e-3, "optim.global_batch_size": 32},
            epoch=number,
            checkpoint_path="",
            metrics={"val_nll": nll, "val_accuracy": 0.5},
            ended=0.0,
        )
        for number, nll in enumerate(nlls, start=1)
    ]


@pytest.mark.parametrize(
    "trials",
    [
        [[1.7]],
        [[1.7, 1.2, 0.9], [1.8], [1.6, 1.5]],
        [[1.7, 1e30], [1e30], [1.6, 1.5]],
        [[1e30], [1e30, 1e30]],
        [[1.7 + number / 10] for number in range(24)],
    ],
    ids=["one point", "stopped early", "diverged", "all diverged", "24 trials"],
)
def test_curves_are_drawn(tmp_path: Path, trials: list[list[float]]) -> None:
    records = [record for number, nlls in enumerate(trials) for record in trial(str(number), nlls)]
    plot_curves(records, tmp_path / "curves.png", objective=Objective(), max_epochs=3)
    pixels(tmp_path / "curves.png")


def test_a_diverged_trial_does_not_flatten_the_others(tmp_path: Path) -> None:
    good = trial("good", [2.0, 1.0, 0.2])
    plot_curves(good + trial("bad", [1e30, 1e30, 1e30]), tmp_path / "curves.png", objective=Objective(), max_epochs=3)
    black = (pixels(tmp_path / "curves.png") < 40).all(axis=2)
    frame = np.flatnonzero(black.sum(axis=0) > 300)  # the sides of both axes, from left to right
    inside = black[:, frame[0] + 5 : frame[frame > frame[0] + 100][0] - 5]
    # The line of the best trial runs down over most of the height; text, frame and grid do not.
    assert np.count_nonzero(inside.any(axis=1)) > 250


def test_records_may_come_in_any_order(tmp_path: Path) -> None:
    records = trial("a", [2.0, 1.0, 0.5]) + trial("b", [1.9, 1.8, 1.7])
    plot_curves(records, tmp_path / "a.png", objective=Objective(), max_epochs=3)
    plot_curves([records[i] for i in (2, 0, 1, 4, 5, 3)], tmp_path / "b.png", objective=Objective(), max_epochs=3)
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


@pytest.mark.parametrize("num_classes", [2, 6])
def test_a_confusion_matrix_is_drawn(tmp_path: Path, num_classes: int) -> None:
    confusion = np.random.default_rng(0).integers(0, 12_345, (num_classes, num_classes))
    confusion[1] = 0  # a count that never occurs
    plot_confusion(confusion, tmp_path / "confusion.png", title="test split, 1,234 images: accuracy 50.0%")
    pixels(tmp_path / "confusion.png")


def test_the_diagonal_of_a_perfect_matrix_is_dark(tmp_path: Path) -> None:
    dark = "#08306b"  # the darkest of matplotlib's Blues
    plot_confusion(np.eye(4, dtype=int) * 10, tmp_path / "good.png", title="all right")
    plot_confusion(np.ones((4, 4), dtype=int), tmp_path / "even.png", title="all the same")
    assert num_like(pixels(tmp_path / "good.png"), dark) > 10 * num_like(pixels(tmp_path / "even.png"), dark)


@pytest.mark.parametrize("num_photos", [1, 8, 9])
def test_a_sheet_is_drawn(tmp_path: Path, num_photos: int) -> None:
    photos = list(np.random.default_rng(0).integers(0, 256, (num_photos, 32, 32, 3), dtype=np.uint8))
    plot_sheet(photos, [(1, 2, 0.5)] * num_photos, tmp_path / "sheet.png", title="test split")
    drawn = pixels(tmp_path / "sheet.png")
    assert drawn.shape[0] == pytest.approx(120 * (1.9 * -(-num_photos // 8) + 0.4), abs=2)


@pytest.mark.parametrize(("answer", "colour", "absent"), [((2, 2, 0.9), RIGHT, WRONG), ((2, 3, 0.9), WRONG, RIGHT)])
def test_wrong_answers_stand_out(tmp_path: Path, answer: tuple[int, int, float], colour: str, absent: str) -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    plot_sheet([grey] * 4, [answer] * 4, tmp_path / "sheet.png", title="test split")
    drawn = pixels(tmp_path / "sheet.png")
    assert num_like(drawn, colour) > 50
    assert num_like(drawn, absent) == 0


@pytest.mark.parametrize("curve", [[(1.0, 0.25)], [(0.5, 0.0), (1.0, 0.5)], [(k / 50, k / 100) for k in range(1, 51)]])
def test_a_risk_curve_is_drawn(tmp_path: Path, curve: list[tuple[float, float]]) -> None:
    plot_risk_coverage(curve, tmp_path / "risk.png", title="AURC 0.250")
    pixels(tmp_path / "risk.png")


def test_calibrated_confidence_is_drawn_beside_the_raw_one(tmp_path: Path) -> None:
    bins = [(0.3, 0.25, 10), (0.9, 0.5, 90)]
    plot_reliability({"as counted": bins}, tmp_path / "raw.png", title="reliability")
    assert num_like(pixels(tmp_path / "raw.png"), SECOND) == 0
    plot_reliability({"as counted": bins, "calibrated": [(0.4, 0.4, 100)]}, tmp_path / "both.png", title="reliability")
    drawn = pixels(tmp_path / "both.png")
    assert min(num_like(drawn, LINE), num_like(drawn, SECOND)) > 50


def test_notes_stand_above_their_photos(tmp_path: Path) -> None:
    grey = np.full((16, 32, 3), 128, np.uint8)
    inks = []
    for notes in ((), ("00523: p(2) = 0.1%", "00524: p(2) = 0.1%")):
        plot_sheet([grey] * 2, [(2, 3, 0.9)] * 2, tmp_path / "sheet.png", title="worst", notes=notes)
        inks.append(num_like(pixels(tmp_path / "sheet.png"), WRONG))
    assert inks[1] > 1.3 * inks[0]


@pytest.mark.parametrize("num_curves", [0, 1, 2])
def test_recall_has_a_line_per_share_beside_chance(tmp_path: Path, num_curves: int) -> None:
    """None at all where the photos were too few to make one record wrong."""
    curves = {f"curve {number}": [(0.0, 0.0), (0.2, 0.5 + number / 10), (1.0, 1.0)] for number in range(num_curves)}
    plot_recall(curves, (0.05, 0.2), tmp_path / "recall.png", title="")
    drawn = pixels(tmp_path / "recall.png")
    assert [num_like(drawn, colour) > 200 for colour in (LINE, SECOND)] == [num_curves > 0, num_curves > 1]
    assert num_like(drawn, FAINT) > 200
