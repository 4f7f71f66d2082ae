"""The results as Markdown: what was measured, on what, and beside it what others report, marked where it is unlike."""

import math
from statistics import mean, stdev
from typing import Any, Final

from benchmarks.parts.abid_folder import SPLITS, Mix

METHOD: Final = (
    "Mean ± sample standard deviation over the seeds, which change weights and order, not the split. The interval is"
    " that of the first seed, by a bootstrap over blocks of 64 neighbouring ids. `argmax` answers the most probable"
    " count, `mean` the rounded mean of the distribution. Val is the split that chose the epoch. `size of the file`"
    " sees no pixel: it answers what most of the 25 training photos hold whose width, height and bytes are nearest."
)
NEAR_NOTHING: Final = (
    "no better than the most frequent count or the size of the file: at this size and length it has learnt nothing of"
    " what lies in the bins, and says nothing about the recipe as published"
)

Run = dict[str, Any]
_COLUMNS: Final = (
    ("accuracy", "accuracy", 100, 1),
    ("rmse", "RMSE, argmax", 1, 3),
    ("rmse_mean", "RMSE, mean", 1, 3),
    ("within_one", "within one", 100, 1),
    ("nll", "NLL", 1, 3),
    ("quadratic_kappa", "kappa", 1, 3),
    ("val_accuracy", "val accuracy", 100, 1),
)


def spread(values: list[float], *, scale: float = 1, digits: int = 3) -> str:
    """Mean and sample standard deviation; of one value, itself."""
    scaled = [scale * value for value in values]
    deviation = f" ± {stdev(scaled):.{digits}f}" if len(scaled) > 1 else ""
    return f"{mean(scaled):.{digits}f}{deviation}"


def majority_figures(mix: Mix) -> dict[str, float]:
    """Of always answering the most frequent count of these photos."""
    total, answer = sum(mix.values()), max(mix, key=lambda count: mix[count])
    squares = sum(number * (count - answer) ** 2 for count, number in mix.items())
    near = sum(number for count, number in mix.items() if abs(count - answer) <= 1)
    return {
        "answer": answer,
        "accuracy": mix[answer] / total,
        "rmse": math.sqrt(squares / total),
        "within_one": near / total,
    }


def machines_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every machine that a run began on; twins are one, whatever their load."""
    machines: list[dict[str, Any]] = []
    for run in (run for row in rows for run in row["runs"]):
        machine = {name: value for name, value in run["machine"].items() if name != "load_at_start"}
        if machine not in machines:
            machines.append(machine)
    return machines


def format_results(results: dict[str, Any]) -> str:
    """The page, from what results.json holds."""
    parts = (
        ["# Results on real photos", "", *_intro(results), ""],
        ["## Measured", "", *_measured(results), ""],
        ["## By source and by count", "", *_details(results), ""],
        ["## Settings and time", "", *_settings(results["rows"]), ""],
        ["## Photos", "", *_mixes(results["mix"]), ""],
        ["## What others report", "", *_published(results["published"])],
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def _intro(results: dict[str, Any]) -> list[str]:
    described = (", ".join(f"{name} {value}" for name, value in one.items()) for one in machines_of(results["rows"]))
    lines = [
        f"Made by `{results['command']}`. {results['photos']}",
        *(line for one in described for line in ("", f"Machine: {one}.")),
    ]
    if results["quick"]:
        lines += ["", "**A quick look that shows that everything runs: the figures mean nothing.**"]
    return lines


def _measured(results: dict[str, Any]) -> list[str]:
    rows = results["rows"]
    lines = _header("row", "seeds", "accuracy, 95 %", *(title for _, title, _, _ in _COLUMNS))
    for row in rows:
        if row["runs"]:
            seeds = " ".join(str(run["seed"]) for run in row["runs"])
            low, high = (f"{100 * end:.1f}" for end in row["runs"][0]["interval"])
            cells = [
                spread([run[key] for run in row["runs"]], scale=scale, digits=digits) + (" %" if scale == 100 else "")
                for key, _, scale, digits in _COLUMNS
            ]
            lines.append(_line(row["name"], seeds, f"{low} to {high} %", *cells))
    for name, figures in _controls(results).items():
        rmse = f"{figures['rmse']:.3f}"
        within = _percent(figures["within_one"])
        lines.append(_line(name, "", "", _percent(figures["accuracy"]), rmse, rmse, within, "", "", ""))
    notes = [f"- {row['name']}: skipped, {row['skipped']}." for row in rows if row["skipped"]]
    notes += [f"- {row['name']}, {failure}" for row in rows for failure in row["failed"]]
    notes += [f"- {row['name']}: {NEAR_NOTHING}." for row in rows if row["runs"] and _near_nothing(row, results)]
    return [*lines, "", METHOD, *(["", *notes] if notes else [])]


def _controls(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What is answered without a look at the photos, by name."""
    majority = majority_figures(results["mix"]["test"])
    return {
        f"always {majority['answer']:.0f}, the most frequent": majority,
        "size of the file": results["file_size"],
    }


def _near_nothing(row: dict[str, Any], results: dict[str, Any]) -> bool:
    accuracy: float = mean(run["accuracy"] for run in row["runs"])
    return accuracy <= max(figures["accuracy"] for figures in _controls(results).values())


def _details(results: dict[str, Any]) -> list[str]:
    """Accuracy on the photos of each source and of each count."""
    sources, counts = sorted(results["sources"]["test"]), sorted(results["file_size"]["by_count"])
    lines = _header("row", *sources, *(f"count {count}" for count in counts))
    numbers = [results["sources"]["test"][one] for one in sources]
    numbers += [results["mix"]["test"][int(one)] for one in counts]
    lines.append(_line("test photos", *(f"{number:,}" for number in numbers)))
    for row in results["rows"]:
        if runs := row["runs"]:
            found = [[run["by_source"][one] for run in runs] for one in sources]
            found += [[run["by_count"][one] for run in runs] for one in counts]
            lines.append(_line(row["name"], *(f"{spread(one, scale=100, digits=1)} %" for one in found)))
    control = results["file_size"]
    shares = [control["by_source"][one] for one in sources] + [control["by_count"][one] for one in counts]
    lines.append(_line("size of the file", *map(_percent, shares)))
    return [*lines, "", "Accuracy. `pairs` are photos as they lie in the bucket, with its mix of counts."]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _settings(rows: list[dict[str, Any]]) -> list[str]:
    lines = _header("row", "recipe", "changed", "training, min", "scoring, min", "best epochs")
    for row in rows:
        runs: list[Run] = row["runs"]
        minutes = [
            spread([run[key] for run in runs], scale=1 / 60, digits=1) if runs else ""
            for key in ("train_s", "evaluate_s")
        ]
        epochs = " ".join(str(run["best_epoch"]) for run in runs)
        lines.append(
            _line(row["name"], row["recipe"], " ".join(f"`{one}`" for one in row["settings"]), *minutes, epochs)
        )
    return [*lines, "", "Wall time per run, with the start of Ray."]


def _mixes(mixes: dict[str, Mix]) -> list[str]:
    counts = sorted({count for mix in mixes.values() for count in mix})
    lines = _header("split", "photos", *(f"count {count}" for count in counts))
    for split in SPLITS:
        total = sum(mixes[split].values())
        shares = [f"{mixes[split].get(count, 0):,} ({mixes[split].get(count, 0) / total:.1%})" for count in counts]
        lines.append(_line(split, f"{total:,}", *shares))
    return lines


def _published(published: dict[str, Any]) -> list[str]:
    lines = _header("who", "method", "scored on", "trained on", "counts", "accuracy", "RMSE", "comparable")
    for row in published["rows"]:
        accuracy = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
        rmse = "" if row["rmse"] is None else f"{row['rmse']:g}"
        comparable = "yes" if row["comparable"] else "no"
        lines.append(
            _line(row["who"], row["method"], row["split"], row["data"], row["classes"], accuracy, rmse, comparable)
        )
    why = [f"This run is unlike the official evaluation: {'; '.join(published['differs'])}."] * bool(
        published["differs"]
    )
    return [*lines, "", *why]


def _header(*titles: str) -> list[str]:
    return [_line(*titles), _line(*["---"] * len(titles))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
