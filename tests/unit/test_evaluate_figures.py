"""Figures, slices and the page of made-up predictions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bintally.calibration import Calibration
from bintally.errors import ConfigError
from bintally.source_config import DataConfig
from bintally.verify import VerifyThresholds, tamper, verify_figures
from data.report_photos import ShownPhoto, shrink_photo
from train.bootstrap import Bootstrap
from train.evaluate_calibrate import doubts_of
from train.evaluate_figures import Scored, coverage_by_split, figures_of_all
from train.evaluate_page import Mistake, render_page
from train.evaluate_parts import SCHEMA
from train.evaluate_report import sample_rows, worst_rows
from train.evaluate_slices import read_reviewed, slice_figures
from train.evaluate_text import format_summary
from train.plots import plot_confusion
from train.published import compare_published

CALIBRATION = Calibration(
    temperature=2.0,
    thresholds={"0.9": 0.6},
    model_version="0123456789ab",
    source="s3://aft-vbi-pds",
    split="val",
    split_by="grouped",
    num_images=87,
    verify=VerifyThresholds(mismatch=0.05, match=0.4),
)
QUICK = Bootstrap(num_resamples=20)


def make_scored(num: int = 60, *, tta: bool = True) -> Scored:
    random = np.random.default_rng(0)
    return Scored(
        ids=[f"{number:05d}" for number in range(1, num + 1)],
        counts=random.integers(0, 6, num),
        probabilities=random.dirichlet(np.ones(6), num).astype(np.float32),
        flipped=random.dirichlet(np.ones(6), num).astype(np.float32) if tta else None,
        brightness=np.arange(num, dtype=np.float32),
        sharpness=np.arange(num, dtype=np.float32)[::-1],
        num_pixels=np.arange(num) * 100,
    )


def test_dropped_bins_are_no_photos() -> None:
    good = {"id": "00002", "count": 3, "probabilities": [0.25, 0.75], "width": 4, "height": 5, "brightness": 7.0}
    dropped = {"id": "00001", "reason": "missing_image"}
    scored = Scored.of(pa.Table.from_pylist([dropped, good | {"flipped": [0.5, 0.5]}], schema=SCHEMA), 2)
    assert (scored.ids, scored.counts.tolist(), scored.num_pixels.tolist()) == (["00002"], [3], [20])
    assert scored.probabilities.tolist() == [[0.25, 0.75]]
    assert scored.averaged is not None
    assert scored.averaged.tolist() == [[0.375, 0.625]]
    assert Scored.of(pa.Table.from_pylist([good], schema=SCHEMA), 2).flipped is None


def test_the_answers_at_the_top_are_those_of_the_server() -> None:
    scored = make_scored()
    figures = figures_of_all(scored, CALIBRATION, QUICK)
    counted = scored.probabilities.argmax(axis=1)
    assert figures["accuracy"] == (counted == scored.counts).mean() == figures["decoders"]["argmax"]["accuracy"]
    assert figures["num_images"] == np.sum(figures["confusion"]) == 60
    assert figures["confusion"][1][2] == ((scored.counts == 1) & (counted == 2)).sum()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_the_mirrored_photo_is_averaged() -> None:
    scored = make_scored()
    assert scored.flipped is not None
    both = (scored.probabilities + scored.flipped) / 2
    wanted = -np.log(both[np.arange(60), scored.counts]).mean()
    assert figures_of_all(scored, None, QUICK)["tta"]["nll"] == pytest.approx(wanted, rel=1e-5)
    assert figures_of_all(make_scored(tta=False), None, QUICK)["tta"] is None


def test_keeping_all_photos_is_the_accuracy() -> None:
    figures = figures_of_all(make_scored(), None, QUICK)
    risk = figures["risk_coverage"]
    assert risk["accuracy_at"]["1.0"] == pytest.approx(figures["accuracy"])
    assert risk["curve"][-1] == [1.0, pytest.approx(1 - figures["accuracy"])]


def test_accuracy_is_told_for_the_photos_that_are_kept() -> None:
    sure_and_right = np.full((10, 2), [0.1, 0.9])
    sure_and_right[6:] = [0.45, 0.55]
    scored = replace(make_scored(10), probabilities=sure_and_right, flipped=None, counts=np.array([1] * 6 + [0] * 4))
    risk = figures_of_all(scored, None, QUICK)["risk_coverage"]
    assert (risk["accuracy_at"]["0.5"], risk["accuracy_at"]["1.0"]) == (1.0, pytest.approx(0.6))
    assert risk["coverage_at_90"] == 0.6


def test_ranges_are_checked_on_the_photos_scored() -> None:
    scored = make_scored()
    found = figures_of_all(scored, CALIBRATION, QUICK)["calibration"]
    low, high = CALIBRATION.ranges(CALIBRATION.apply(scored.probabilities), "0.9")
    assert found["ranges"]["0.9"]["coverage"] == ((low <= scored.counts) & (scored.counts <= high)).mean()
    assert found["ranges"]["0.9"]["mean_width"] == (high - low + 1).mean()
    assert found["fitted_on"] == {
        "source": "s3://aft-vbi-pds",
        "split": "val",
        "split_by": "grouped",
        "num_images": 87,
    }


def test_coverage_is_told_for_each_split() -> None:
    scored = make_scored()
    ids = {"train": scored.ids[:40], "val": scored.ids[40:], "test": ["00099"], "all": [*scored.ids, "00099"]}
    found = coverage_by_split(scored, CALIBRATION, ids)
    assert [(split, row["num_images"]) for split, row in found.items()] == [("train", 40), ("val", 20)]
    low, high = CALIBRATION.ranges(CALIBRATION.apply(scored.probabilities), "0.9")
    held = (low <= scored.counts) & (scored.counts <= high)
    assert found["train"]["coverage"] == {"0.9": held[:40].mean()}
    assert found["val"]["coverage"] == {"0.9": held[40:].mean()}


@pytest.mark.parametrize(
    ("data", "split", "num_doubts"),
    [
        (DataConfig(), "test", 0),
        (DataConfig(), "val", 1),
        (DataConfig(), "all", 1),
        (DataConfig(split_by="hash"), "test", 1),
        (DataConfig(source="file:///bins"), "test", 1),
    ],
)
def test_figures_after_calibration_come_with_doubts(data: DataConfig, split: str, num_doubts: int) -> None:
    assert len(doubts_of(CALIBRATION, data, split)) == num_doubts


# Wrong records


def test_figures_of_wrong_records_are_means_over_draws() -> None:
    scored = make_scored(200)
    found = figures_of_all(scored, CALIBRATION, QUICK)["audit"]
    assert list(found["tampered"]) == ["0.02", "0.05"]
    five = found["tampered"]["0.05"]
    assert (five["num_images"], five["num_wrong"]) == (200, 10)
    calibrated = CALIBRATION.apply(scored.probabilities)
    ranges = CALIBRATION.ranges(calibrated, "0.9")
    records = [tamper(scored.counts, 0.05, seed, max_count=5) for seed in range(found["num_seeds"])]
    draws = [verify_figures(calibrated, one, scored.counts, CALIBRATION.verify, ranges) for one in records]
    assert five["auroc"] == pytest.approx(np.mean([one["auroc"] for one in draws]))
    assert five["sd"]["recall"]["0.1"] == pytest.approx(np.std([one["recall"]["0.1"] for one in draws], ddof=1))
    assert five["decisions"]["misses"] == pytest.approx(np.mean([one["decisions"]["misses"] for one in draws]))
    assert five["curve"][10][1] == pytest.approx(five["recall"]["0.1"])


@pytest.mark.parametrize("calibration", [None, replace(CALIBRATION, verify=None)], ids=["none", "of before"])
def test_without_thresholds_there_is_a_queue_and_no_verdict(calibration: Calibration | None) -> None:
    found = figures_of_all(make_scored(), calibration, QUICK)["audit"]
    assert found["thresholds"] is None
    assert found["tampered"]["0.05"]["decisions"] is None
    assert 0 < found["tampered"]["0.05"]["auroc"] < 1


@pytest.mark.parametrize("num", [1, 7])
def test_of_few_photos_no_record_is_made_wrong(num: int) -> None:
    rows = figures_of_all(make_scored(num), CALIBRATION, QUICK)["audit"]["tampered"].values()
    assert [(row["num_wrong"], row["auroc"]) for row in rows] == [(0, None)] * 2


# Slices


def test_thirds_hold_a_third_each_in_the_order_of_their_names() -> None:
    scored = make_scored()
    rows = slice_figures(scored, None)
    assert [row["num_images"] for row in rows] == [20] * 9
    darkest, most_blurred, smallest = rows[0], rows[3], rows[6]
    first, last = slice(0, 20), slice(40, 60)
    for row, part in ((darkest, first), (most_blurred, last), (smallest, first)):
        assert row["accuracy"] == pytest.approx((scored.counted[part] == scored.counts[part]).mean())
        assert row["mean_expected"] == pytest.approx(scored.counts[part].mean())


def test_photos_that_are_all_alike_have_one_slice() -> None:
    scored = replace(make_scored(), brightness=np.full(60, 9.0, np.float32))
    assert [row["num_images"] for row in slice_figures(scored, None) if row["by"] == "brightness"] == [60]


def write_reviews(folder: Path, **lists: object) -> Path:
    known = {"checked": [1, 3], "semi_invalid": [70], "invalid": [2]} | lists
    for name, content in known.items():
        (folder / f"reviewed_{name}.json").write_text(json.dumps(content))
    return folder


def test_reviews_are_of_file_numbers(tmp_path: Path) -> None:
    rows = slice_figures(make_scored(), read_reviewed(write_reviews(tmp_path)))
    assert [(row["slice"], row["num_images"]) for row in rows[9:]] == [("countable", 2), ("not countable", 1)]


@pytest.mark.parametrize("content", [{"a": 1}, ["00001"], [True]])
def test_a_review_that_is_no_list_of_numbers_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ConfigError, match=r"reviewed.*reviewed_invalid"):
        read_reviewed(write_reviews(tmp_path, invalid=content))


def test_a_missing_review_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reviewed"):
        read_reviewed(tmp_path)


# What is shown


def test_the_worst_mistakes_come_first_and_nothing_that_is_right() -> None:
    scored = make_scored()
    rows = worst_rows(scored)
    given = scored.probabilities[rows, scored.counts[rows]]
    assert (np.diff(given) >= 0).all()
    assert (scored.counted[rows] != scored.counts[rows]).all()
    wrong = np.flatnonzero(scored.counted != scored.counts)
    assert given[0] == scored.probabilities[wrong, scored.counts[wrong]].min()


@pytest.mark.parametrize("num_images", [1, 40, 41, 1000])
def test_the_sample_goes_over_all_photos(num_images: int) -> None:
    rows = sample_rows(num_images)
    assert rows[0] == 0
    assert min(num_images, 20) <= len(rows) <= 40
    assert num_images - rows[-1] <= -(-num_images // 40)


Page = Callable[..., str]


@pytest.fixture
def page(tmp_path: Path, photo: Callable[..., bytes]) -> Page:
    """`page(calibration=, data=, split=, worst=, source=)`: the page of made-up predictions."""

    def make(
        *,
        calibration: Calibration | None = None,
        data: DataConfig | None = None,
        split: str = "test",
        **more: Any,  # noqa: ANN401
    ) -> str:
        data = data or DataConfig()
        scored = make_scored(more.get("num", 60), tta=more.get("tta", True))
        summary = figures_of_all(scored, calibration, QUICK) | {
            "slices": slice_figures(scored, None),
            "published": compare_published(data, split, more.get("num_images", 60)),
            "split": split,
            "split_by": data.split_by,
            "source": more.get("source", data.source),
            "labels": "records",
            "max_count": 5,
            "num_ids": 64,
            "model_version": "0123456789ab",
            "recipe": "smoke",
            "backbone": "small_cnn",
            "image_size": 32,
        }
        if calibration is not None:
            summary["calibration"]["doubts"] = doubts_of(calibration, data, split)
            splits = more.get("splits", {split: scored.ids})
            summary["calibration"]["by_split"] = coverage_by_split(
                scored, calibration, {"train": [], "val": [], "test": []} | splits
            )
        chart = tmp_path / "chart.png"
        plot_confusion(np.eye(2, dtype=int), chart, title="")
        shown = shrink_photo(photo())
        assert isinstance(shown, ShownPhoto)
        mistake = Mistake(
            bin_id="00007<b>",
            expected=5,
            counted=1,
            probability_expected=0.0001,
            probability_counted=0.9,
            photo=more.get("photo", shown),
        )
        return render_page(
            summary,
            dict.fromkeys(("confusion", "risk_coverage", "reliability", "recall"), chart),
            more.get("worst", [mistake]),
        )

    return make


def test_the_page_needs_nothing_else(page: Page) -> None:
    html = page(calibration=CALIBRATION)
    assert html.count('<img src="data:image/') == html.count("<img ") == 5
    assert 'src="http' not in html
    assert "<link" not in html
    assert "<script" not in html
    assert html.count("<section") == html.count("</section>") == 9
    assert all(
        f'id="{anchor}"' in html for anchor in ("short", "published", "answers", "risk", "audit", "slices", "worst")
    )


def test_the_page_compares_nothing_unlike(page: Page) -> None:
    assert "None of these can be compared with this run" in page()
    assert ">yes</td>" not in page()
    official = page(data=DataConfig(split_by="official", labels="/lists"), num_images=36_032)
    assert "can be compared with" not in official
    assert official.count(">yes</td>") == 2


def test_the_page_says_where_figures_mislead(page: Page) -> None:
    assert "trained on photos that are scored here" in page(split="all")
    assert "split by hash leaks" in page(data=DataConfig(split_by="hash"))
    assert "official split leaks" in page(data=DataConfig(split_by="official", labels="/lists"))
    assert "Be careful" in page(calibration=CALIBRATION, split="val")
    assert "Be careful" not in page(calibration=CALIBRATION)


def test_the_page_tells_verdicts_and_splits(page: Page) -> None:
    html = page(calibration=CALIBRATION)
    assert "is below 5.0%" in html
    assert "above 40.0%" in html
    assert 'aria-label="Verdicts"' in html
    assert 'aria-label="Ranges by split"' not in html
    halves = {"train": [f"{number:05d}" for number in range(30)], "test": [f"{number:05d}" for number in range(30, 61)]}
    assert 'aria-label="Ranges by split"' in page(calibration=CALIBRATION, split="all", splits=halves)
    assert "fits them" in page(calibration=replace(CALIBRATION, verify=None))
    assert "Too few photos" in page(num=7)


def test_the_page_says_what_was_not_done(page: Page) -> None:
    assert "--calibrate" in page()
    assert "--calibrate" not in page(calibration=CALIBRATION)
    assert "--no-tta" in page(tta=False)
    assert "Not one photo was counted wrong" in page(worst=[])
    assert "no readable photo" in page(photo=None)


def test_names_from_outside_are_no_markup(page: Page) -> None:
    html = page(source="file:///<script>alert(1)</script>")
    assert "<script>" not in html
    assert "00007<b>" not in html
    assert "00007&lt;b&gt;" in html


@pytest.mark.parametrize(
    ("data", "num_images", "line"),
    [
        (DataConfig(), 60, "55.7%, rmse 0.930 (no comparison: it is split by grouped, not by the official lists)"),
        (DataConfig(split_by="official", labels="/lists"), 36_032, "55.7%, rmse 0.930 (of the same photos)"),
    ],
)
def test_the_terminal_says_whether_the_baseline_is_one(data: DataConfig, num_images: int, line: str) -> None:
    figures = figures_of_all(make_scored(), CALIBRATION, QUICK)
    summary = figures | {"split": "test", "source": "x", "published": compare_published(data, "test", num_images)}
    lines = format_summary(summary)
    assert line in lines
    assert f"accuracy        {figures['accuracy']:6.1%}" in lines
    assert f"calibrated {figures['calibration']['nll']:.3f} nats" in lines
    assert f"{figures['calibration']['ranges']['0.9']['coverage']:.1%} of 90%" in lines
    assert f"auroc {figures['audit']['tampered']['0.05']['auroc']:.3f}" in lines
