"""The chapters of the evaluation's page with tables and figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.report_html import bullets, chart, paragraph, section, table, text

Charts = Mapping[str, Path]
Summary = dict[str, Any]


def published_section(summary: Summary) -> str:
    """This run above what others report, and why it may not be compared."""
    published = summary["published"]
    ours = (
        "This run",
        f"{summary['split']} split by {summary['split_by']}, {summary['num_images']:,} photos",
        f"0-{summary['max_count']}",
        f"{summary['accuracy']:.1%}",
        f"{summary['rmse']:.3f}",
        "",
    )
    rows = [
        (
            row["who"] + (f": {row['method']}" if row["method"] else ""),
            f"{row['split']}; trained on {row['data']}" + (f"; {row['note']}" if row["note"] else ""),
            row["classes"],
            f"{row['accuracy']:.1%}",
            "-" if row["rmse"] is None else f"{row['rmse']:.3f}",
            "yes" if row["comparable"] else "no",
        )
        for row in published["rows"]
    ]
    head = ("result", "split and data", "counts", "accuracy", "RMSE", "comparable")
    listing = table(head, [ours, *rows], label="Published results", numeric=(3, 4))
    if not published["differs"]:
        intro = "This run scores the whole official validation list, so that rows marked <b>yes</b> can be compared."
        return section("published", "Published results", paragraph(intro), listing)
    why = text("; ".join(published["differs"]))
    intro = f"<b>None of these can be compared with this run</b>, which differs from the official evaluation: {why}."
    return section("published", "Published results", paragraph(intro), listing)


def count_section(summary: Summary, charts: Charts) -> str:
    """Accuracy and RMSE per count beside the baseline's, and the confusion matrix."""
    intervals = summary["intervals"]["per_count"]
    baseline = summary["published"]["rows"][0]["rmse_per_count"]
    rows = [
        (
            count,
            f"{row['num_images']:,}",
            f"{row['accuracy']:.1%}",
            f"{intervals[count]['accuracy'][0]:.1%} to {intervals[count]['accuracy'][1]:.1%}",
            f"{row['rmse']:.3f}",
            f"{intervals[count]['rmse'][0]:.3f} to {intervals[count]['rmse'][1]:.3f}",
            f"{baseline[int(count)]:.3f}" if int(count) < len(baseline) else "-",
        )
        for count, row in summary["per_count"].items()
    ]
    head = ("expected", "photos", "accuracy", "95 %", "RMSE", "95 %", "RMSE of the ABID baseline")
    listing = table(head, rows, label="Figures per count", numeric=range(1, len(head)))
    compared = "" if not summary["published"]["differs"] else " The baseline's RMSE is of other photos."
    alt = "Confusion matrix of expected and counted"
    caption = f"<b>Expected counts down, counted across.</b> {_common_mistake(summary['confusion'])}{compared}"
    figure = f'<div class="lone">{chart(charts["confusion"], alt=alt, caption=caption)}</div>'
    return section("counts", "Figures per count", figure, listing)


def _common_mistake(confusion: list[list[int]]) -> str:
    cells = {
        (expected, counted): number
        for expected, row in enumerate(confusion)
        for counted, number in enumerate(row)
        if expected != counted
    }
    (expected, counted), number = max(cells.items(), key=lambda one: one[1])
    if not number:
        return "There is no mistake."
    return f"Most frequent mistake: {counted} for {expected}, {number:,} times."


def answer_section(summary: Summary) -> str:
    """The decoders, with and without the mirrored photo."""
    names = {
        "argmax": "most probable count (what the server answers)",
        "mean": "mean of the distribution, rounded",
        "median": "median of the distribution",
    }
    sources = {"": summary["decoders"]} | ({" + mirrored photo": summary["tta"]["decoders"]} if summary["tta"] else {})
    rows = [
        (
            names[decoder] + suffix,
            f"{row['accuracy']:.1%}",
            f"{row['within_one']:.1%}",
            f"{row['rmse']:.3f}",
            f"{row['mae']:.3f}",
            f"{row['quadratic_kappa']:.3f}",
        )
        for suffix, decoders in sources.items()
        for decoder, row in decoders.items()
    ]
    intro = (
        "One distribution can be answered in several ways: the most probable count is best for accuracy, the mean for"
        " RMSE, the median for MAE, if the probabilities are right."
    )
    mirrored = (
        f" Averaged with the mirrored photo, NLL is {summary['tta']['nll']:.3f} instead of {summary['nll']:.3f} nats."
        if summary["tta"]
        else " The mirrored photos were not counted (<code>--no-tta</code>)."
    )
    head = ("answer", "accuracy", "within one", "RMSE", "MAE", "kappa")
    listing = table(head, rows, label="Ways to answer", numeric=range(1, len(head)))
    return section("answers", "Ways to answer", paragraph(intro + mirrored), listing)


def risk_section(summary: Summary, charts: Charts) -> str:
    """What is gained by leaving the least confident photos to people."""
    risk = summary["risk_coverage"]
    rows = [(f"{float(share):.0%}", f"{accuracy:.1%}") for share, accuracy in risk["accuracy_at"].items()]
    listing = table(("photos that are kept", "accuracy among them"), rows, label="Selective accuracy", numeric=(1,))
    goal = (
        f"<b>{risk['coverage_at_90']:.0%}</b> of the photos can be counted with an accuracy of 90 %."
        if risk["coverage_at_90"]
        else "However few photos are kept, the accuracy does not reach 90 %."
    )
    caption = f"{goal} The area under the curve (AURC) is {risk['aurc']:.3f}; lower is better.{listing}"
    alt = "Share of mistakes by share of photos kept"
    figure = f'<div class="lone">{chart(charts["risk_coverage"], alt=alt, caption=caption)}</div>'
    return section("risk", "Risk and coverage", figure)


def calibration_section(summary: Summary, charts: Charts) -> str:
    """Whether a probability of 80 % means 80 %, and the ranges that hold the expected count."""
    calibration = summary["calibration"]
    alt = "Accuracy by confidence"
    if calibration is None:
        caption = (
            f"<b>ECE {summary['ece']:.1%}</b>: the mean distance of confidence and accuracy. The checkpoint has no"
            " calibration; <code>--calibrate</code> fits one on the val split and stores it."
        )
        figure = f'<div class="lone">{chart(charts["reliability"], alt=alt, caption=caption)}</div>'
        return section("calibration", "Calibration", figure)
    fitted = calibration["fitted_on"]
    verdict = "too sure" if calibration["temperature"] > 1 else "not sure enough"
    caption = (
        f"<b>ECE {summary['ece']:.1%} before, {calibration['ece']:.1%} after; NLL {summary['nll']:.3f} before,"
        f" {calibration['nll']:.3f} after.</b> Temperature {calibration['temperature']:.2f} (the model was {verdict}),"
        f" fitted on {fitted['num_images']:,} photos of the {text(fitted['split'])} split by"
        f" {text(fitted['split_by'])} (training picks its epoch on that split, too)."
    )
    rows = [
        (
            f"{float(target):.0%}",
            f"{row['coverage']:.1%}",
            f"{row['mean_width']:.2f}",
            f"{row['share_single']:.1%}",
            ", ".join(f"{count}: {share:.0%}" for count, share in row["coverage_per_count"].items()),
        )
        for target, row in calibration["ranges"].items()
    ]
    head = ("promised", "held", "counts in a range, mean", "of one count", "held, by expected count")
    intro = "Ranges of neighbouring counts (split conformal prediction), on the photos scored here:"
    coverages = [
        (split, f"{row['num_images']:,}", *(f"{held:.1%}" for held in row["coverage"].values()))
        for split, row in calibration["by_split"].items()
    ]
    split_head = ("split", "photos", *(f"{float(target):.0%} promised" for target in calibration["ranges"]))
    doubts = [f"Be careful: {text(doubt)}." for doubt in calibration["doubts"]]
    return section(
        "calibration",
        "Calibration",
        f'<div class="lone">{chart(charts["reliability"], alt=alt, caption=caption)}</div>',
        paragraph(intro),
        table(head, rows, label="Prediction ranges", numeric=(1, 2, 3)),
        table(split_head, coverages, label="Ranges by split", numeric=range(1, len(split_head)))
        if len(coverages) > 1
        else "",
        bullets(doubts) if doubts else "",
    )


def slice_section(summary: Summary) -> str:
    """Figures of parts of the photos."""
    rows = [
        (
            row["by"],
            row["slice"],
            f"{row['num_images']:,}",
            f"{row['accuracy']:.1%}",
            f"{row['within_one']:.1%}",
            f"{row['rmse']:.3f}",
            f"{row['mean_expected']:.2f}",
        )
        for row in summary["slices"]
    ]
    intro = (
        "Brightness (mean) and sharpness (variance of the Laplacian) are measured on the photo as the model sees it,"
        " size is that of the file. A slice with fuller bins is harder for that alone: see the last column."
    )
    head = ("by", "slice", "photos", "accuracy", "within one", "RMSE", "items, mean")
    listing = table(head, rows, label="Slices", numeric=range(2, len(head)))
    return section("slices", "Slices", paragraph(intro), listing)
