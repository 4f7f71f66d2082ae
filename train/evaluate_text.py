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
