"""The figures of an evaluation as lines for the terminal."""

from typing import Any


def format_summary(summary: dict[str, Any]) -> str:
    """The figures for people, beside the trivial answers."""
    intervals = summary["intervals"]

    def between(name: str, style: str) -> str:
        low, high = intervals[name]
        return f"  (95 %: {low:{style}} to {high:{style}})"

    lines = [
        f"{summary['split']} split, {summary['num_images']:,} images of {summary['source']}",
        f"  accuracy        {summary['accuracy']:6.1%}{between('accuracy', '.1%')}",
        f"  majority class  {summary['majority_accuracy']:6.1%}, random {summary['random_accuracy']:.1%}",
        f"  ABID baseline   {_baseline(summary['published'])}",
        f"  within one      {summary['within_one']:6.1%}{between('within_one', '.1%')}",
        f"  rmse, mae       {summary['rmse']:6.2f} {summary['mae']:.2f} items{between('rmse', '.2f')}",
        f"  nll, ece        {summary['nll']:6.3f} nats, {summary['ece']:.1%}" + _after(summary["calibration"]),
        f"  quadratic kappa {summary['quadratic_kappa']:6.3f}{between('quadratic_kappa', '.3f')}",
        *_ranges(summary["calibration"]),
        *(_audit(share, row) for share, row in summary["audit"]["tampered"].items() if row["num_wrong"]),
        "  count  images  accuracy  rmse",
    ]
    lines += [
        f"  {count:>5}  {row['num_images']:6,}  {row['accuracy']:8.1%}  {row['rmse']:.2f}"
        for count, row in summary["per_count"].items()
    ]
    return "\n".join(lines)


def _baseline(published: dict[str, Any]) -> str:
    """The reference that everybody looks for, or why it is none here."""
    row = published["rows"][0]
    verdict = f"no comparison: {published['differs'][0]}" if published["differs"] else "of the same photos"
    return f"{row['accuracy']:6.1%}, rmse {row['rmse']:.3f} ({verdict})"


def _after(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return "; not calibrated"
    return f"; calibrated {calibration['nll']:.3f} nats, {calibration['ece']:.1%}"


def _ranges(calibration: dict[str, Any] | None) -> list[str]:
    """Promised and held coverage."""
    if calibration is None:
        return []
    held = ", ".join(f"{row['coverage']:.1%} of {float(target):.0%}" for target, row in calibration["ranges"].items())
    return [f"  ranges hold     {held} promised"]


def _audit(share: str, row: dict[str, Any]) -> str:
    """How early wrong records are found, and how many right ones are called wrong."""
    found = ", ".join(f"{recall:.0%} at {float(budget):.0%}" for budget, recall in row["recall"].items())
    line = f"  {f'{float(share):.0%} wrong':<16}auroc {row['auroc']:.3f}; found by counting again: {found}"
    decisions = row["decisions"]
    return line if decisions is None else f"{line}; false alarms {decisions['false_alarms']:.1%}"
