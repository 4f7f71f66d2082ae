"""The chapter of the evaluation's page on wrong records."""

from collections.abc import Mapping
from typing import Any

from bintally.verify import percent
from data.report_html import chart, paragraph, section, table
from train.evaluate_chapters import Charts, Summary


def audit_section(summary: Summary, charts: Charts) -> str:
    """How early wrong records are found, and how often a verdict is wrong."""
    audit = summary["audit"]
    tampered = {f"{float(share):.0%}": row for share, row in audit["tampered"].items() if row["num_wrong"]}
    if not tampered:
        return section("audit", "Wrong records", paragraph("Too few photos to make 2 % or 5 % of their records wrong."))
    head = ("records wrong", "of these", "AUROC", *(f"found at {float(share):.0%}" for share in _budgets(tampered)))
    rows = [
        (
            share,
            f"{row['num_wrong']} of {row['num_images']:,}",
            _spread(row["auroc"], row["sd"]["auroc"], ".3f"),
            *(_found(row, budget) for budget in row["recall"]),
        )
        for share, row in tampered.items()
    ]
    caption = (
        f"<b>{_finding(tampered)}</b> Records are put in the order of p(match), the calibrated probability of their"
        " expected quantity; the least first."
    )
    intro = (
        f"A share of the records is made wrong on purpose, by one or two items; means and standard deviations of"
        f" {audit['num_seeds']} draws of the wrong ones. Some of the other records are wrong in the bucket itself, and"
        " count as false alarms here. <i>Found at 5 %</i>: of the wrong records, those among the 5 % counted first, and"
        " the share of these 5 % that is wrong; in a random order it would be 5 % of them."
    )
    alt = "Wrong records found by the share of records counted again"
    return section(
        "audit",
        "Wrong records",
        f'<div class="lone">{chart(charts["recall"], alt=alt, caption=caption)}</div>',
        paragraph(intro),
        table(head, rows, label="Wrong records found", numeric=range(1, len(head))),
        *_verdicts(audit["thresholds"], tampered),
    )


def _budgets(tampered: Mapping[str, Any]) -> list[str]:
    return list(next(iter(tampered.values()))["recall"])


def _finding(tampered: Mapping[str, Any]) -> str:
    share, row = next(iter(tampered.items()))
    budget = _budgets(tampered)[-1]
    return (
        f"When {share} of the records are wrong, counting the first {float(budget):.0%} of the queue again finds"
        f" {row['recall'][budget]:.0%} of the wrong ones."
    )


def _found(row: dict[str, Any], budget: str) -> str:
    recall = _spread(row["recall"][budget], row["sd"]["recall"][budget], ".0%")
    return f"{recall}, {row['precision'][budget]:.0%} wrong"


def _spread(mean: float, deviation: float, style: str) -> str:
    return f"{mean:{style}} ± {deviation:{style}}"


def _verdicts(thresholds: dict[str, float] | None, tampered: Mapping[str, Any]) -> list[str]:
    """The table of decisions, or what to do to get one."""
    if thresholds is None:
        return [paragraph("Nothing is decided: the checkpoint has no thresholds; <code>--calibrate</code> fits them.")]
    intro = (
        f"Verdicts: <b>mismatch</b> where p(match) is below {percent(thresholds['mismatch'])}, <b>match</b> above"
        f" {percent(thresholds['match'])} and in the 90 % range, else <b>review</b>. On photos like those of the fit,"
        f" at most {thresholds['false_alarms']:.0%} of the right records should be called mismatches, and at most"
        f" {thresholds['misses']:.0%} of all records that are off by one or two matches."
    )
    names = ("match", "review", "mismatch", "false_alarms", "misses")
    rows = [(share, *(f"{row['decisions'][name]:.1%}" for name in names)) for share, row in tampered.items()]
    head = ("records wrong", "match", "review", "mismatch", "right called mismatch", "wrong called match")
    return [paragraph(intro), table(head, rows, label="Verdicts", numeric=range(1, len(head)))]
