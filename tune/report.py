"""The page of a search: what was found, how every trial went, which dimensions mattered and what it cost."""

import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from data.report_html import Html, bullets, chart, link, paragraph, section, table, text, tiles
from tune.config import SearchConfig
from tune.importance import MIN_TRIALS
from tune.live import describe_state, format_left
from tune.record import TrialEvent
from tune.report_plots import draw_search
from tune.space import describe_point
from tune.trials import TrialView, best_trial_id

REPORT_FILE: Final = "report.html"
_WIDE: Final = (
    "#trials table { min-width: 50rem; } #space table, #short table { min-width: 34rem; }"  # on a phone they scroll
)
_NOT_YET: Final = "Its own checkpoint is kept until the final trainings have ended."
_CHAPTERS: Final = {
    "short": "In short",
    "curves": "Curves",
    "space": "The space",
    "trials": "All trials",
    "costs": "Costs",
}


def write_report(
    config: SearchConfig,
    trials: Sequence[TrialView],
    events: Sequence[TrialEvent],
    results: Mapping[str, Any],
    run_dir: Path,
) -> None:
    """Write the page into the run folder; it needs nothing but itself, and links to what lies beside it.

    Args:
        config: the search.
        trials: in the order in which they began.
        events: their begins and ends.
        results: as in results.json.
        run_dir: of the search.
    """
    with tempfile.TemporaryDirectory() as temp:
        charts = draw_search(config, trials, events, results["at_once"], Path(temp))
        page = render_report(config, trials, results, charts, run_dir)
    (run_dir / REPORT_FILE).write_text(page)


def render_report(
    config: SearchConfig,
    trials: Sequence[TrialView],
    results: Mapping[str, Any],
    charts: Mapping[str, Path],
    run_dir: Path,
) -> str:
    """The page as text; charts are those of `draw_search`."""
    chapters = [
        short_section(config, results),
        curve_section(charts, config, results),
        space_section(charts, results),
        trial_section(config, trials, run_dir),
        cost_section(charts, results),
    ]
    links = "".join(f'<li><a href="#{anchor}">{name}</a></li>' for anchor, name in _CHAPTERS.items())
    made = f"{datetime.now().astimezone():%d %B %Y, %H:%M}"
    style = files("data").joinpath("report.css").read_text()
    recipe = config.recipe
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Search: {text(run_dir.name)}</title><style>{style}{_WIDE}</style></head><body>"
        f'<header><h1>What the search found</h1><p class="where"><code>{text(run_dir.name)}</code>: recipe'
        f" {text(recipe.name)} on <code>{text(recipe.data.source)}</code>, {results['num_begun']} of"
        f" {results['num_trials']} trials begun, up to {config.max_epochs} epochs each, {made}</p>"
        f'<nav aria-label="Chapters"><ul>{links}</ul></nav></header>'
        f"<main>{''.join(chapters)}</main><footer><p>Made by <code>tune/search.py</code>. All figures:"
        " <code>results.json</code>; every epoch: <code>trials.jsonl</code>; begins and ends:"
        " <code>events.jsonl</code>, all beside this page.</p></footer></body></html>\n"
    )


def short_section(config: SearchConfig, results: Mapping[str, Any]) -> str:
    """The best point, what it scores, and what became of it."""
    best, final = results["best"], results["final"]
    shown = final["kept_metrics"] if final else best
    figures = {
        "kept: accuracy (validation)": f"{shown['val_accuracy']:.1%}",
        "RMSE, items": f"{shown['val_rmse']:.2f}",
        "NLL, nats": f"{shown['val_nll']:.3f}",
        "epochs not run": _share(results["costs"]["epochs_saved"], results["epochs_without_early_stopping"]),
    }
    objective = config.objective
    facts = [
        (
            f"Best trial: <b>{text(describe_point(best['point']))}</b>, epoch {best['epoch']}, by"
            f" {'lowest' if objective.mode == 'min' else 'highest'} {text(_words(objective.metric))}"
            f" ({best[objective.metric]:.4g}). Being the best of {results['num_begun']} on the photos that chose it,"
            " this figure flatters."
        ),
        *(final_facts(final) if final else [_NOT_YET if config.final_seeds else "There was no final training."]),
    ]
    return section("short", "In short", tiles(figures), bullets(facts), seed_table(final) if final else "")


def final_facts(final: Mapping[str, Any]) -> list[str]:
    """What the final trainings say, as HTML."""
    facts = [f"{text(final['why'][0].upper() + final['why'][1:])}."]
    if final["test"]:
        number = final["test"]["accuracy"]["n"]
        facts.append(
            "On the <b>test split</b>, which chose nothing: accuracy"
            f" <b>{_spread(final['test'], 'accuracy', '.1%')}</b>,"
            f" RMSE {_spread(final['test'], 'rmse', '.3f')}, NLL {_spread(final['test'], 'nll', '.3f')}, "
            + ("of one seed." if number == 1 else f"mean ± standard deviation of {number} seeds.")
        )
    else:
        facts.append("The test split was not counted (yet): it is empty, or could not be read.")
    return facts


def seed_table(final: Mapping[str, Any]) -> str:
    """The final trainings, one row each."""
    rows = []
    for seed, one in final["seeds"].items():
        test = one["test"] or {}
        cells = [f"{test[name]:{style}}" if test else "-" for name, style in (("accuracy", ".1%"), ("rmse", ".3f"))]
        mark = "kept" if final["kept"] == f"seed{seed}" else ""
        rows.append((seed, one["epoch"], f"{one['val_accuracy']:.1%}", f"{one['val_nll']:.3f}", *cells, mark))
    head = ("seed", "best epoch", "val accuracy", "val NLL", "test accuracy", "test RMSE", "")
    return "<h3>The best point trained again</h3>" + table(
        head, rows, label="Final trainings by seed", numeric=range(1, 6)
    )


def curve_section(charts: Mapping[str, Path], config: SearchConfig, results: Mapping[str, Any]) -> str:
    """Every curve, with early stops."""
    stopped = f"{results['num_stopped_early']} of {results['num_begun']} trials were stopped early"
    metric = text(_words(config.objective.metric))
    pictures = [
        chart(
            charts["objective"],
            alt=f"{_words(config.objective.metric)} over the epochs of every trial; {stopped}",
            caption=f"<b>{metric}</b>, which the search optimises; {stopped} (x). Outliers lie outside.",
        ),
        chart(
            charts["accuracy"],
            alt="Validation accuracy over the epochs of every trial",
            caption=f"<b>Validation accuracy</b> of the same trials; the best one has"
            f" {results['best']['val_accuracy']:.1%} in its best epoch.",
        ),
    ]
    return section("curves", "Curves", f'<div class="figures">{"".join(pictures)}</div>')


def space_section(charts: Mapping[str, Path], results: Mapping[str, Any]) -> str:
    """Where in the space the good trials lie, and which dimensions mattered."""
    found = results["importance"]
    rows = [
        (name, "-" if one["share"] is None else f"{one['share']:.0%}", one["finding"])
        for name, one in found["dimensions"].items()
    ]
    caution = (
        f" <b>With {found['num_trials']} trials this means little</b>: below {MIN_TRIALS}, chance alone gives such"
        " shares."
        if found["num_trials"] < MIN_TRIALS
        else ""
    )
    how = (
        f"Trials are ranked by their best score up to epoch {found['epoch']}, the last that all of them reached, so"
        " that none is ahead for having run longer; one that diverged ranks last. The share is how much of the variance"
        " of those ranks a dimension explains by itself: for numbers the squared rank correlation (Spearman), blind to"
        " an optimum in the middle; for choices the variance between groups, corrected for chance (epsilon squared)."
        " What dimensions do together is not in it."
    )
    picture = chart(
        charts["space"],
        alt="Parallel coordinates: a line per trial through its values, ending at the rank of its score",
        caption="A line per trial through its values to its score, placed by rank, the best on top; darker is better,"
        " the best is thick, and dotted ones have no score.",
    )
    return section(
        "space",
        "The space",
        f'<div class="lone">{picture}</div>',
        "<h3>What mattered</h3>",
        table(("dimension", "share", "which values"), rows, label="Importance of the dimensions", numeric=(1,)),
        paragraph(how + caution),
    )


def trial_section(config: SearchConfig, trials: Sequence[TrialView], run_dir: Path) -> str:
    """Every trial, in the order in which they began."""
    objective = config.objective
    best_id = best_trial_id(trials, objective)
    rows = []
    for trial in trials:
        best = trial.best(objective)
        rows.append(
            (
                f"{trial.number} (best)" if trial.trial_id == best_id else trial.number,
                describe_point(trial.point),
                trial.last_epoch,
                "-" if best is None else f"{best.metrics[objective.metric]:.4g}",
                "-" if best is None else f"{best.metrics['val_accuracy']:.1%}",
                format_left(trial.running_s),
                describe_state(trial),
                _links(trial, run_dir),
            )
        )
    metric = _words(objective.metric).removeprefix("validation ")
    head = ("trial", "point", "epochs", f"best {metric}", "accuracy", "time", "state", "files")
    note = paragraph("Scores are of the validation split; the time is that in which the trial held its workers.")
    return section("trials", "All trials", table(head, rows, label="All trials", numeric=(2, 3, 4, 5)), note)


def _links(trial: TrialView, run_dir: Path) -> Html:
    folder = run_dir / "trials" / f"train-{trial.trial_id}"
    if not folder.is_dir():
        return Html("-")
    found = [link(f"{folder.relative_to(run_dir)}/", "folder")]
    profile = next(iter(sorted(folder.rglob("profile.html"))), None)
    if profile is not None:
        found.append(link(str(profile.relative_to(run_dir)), "profile"))
    return Html(", ".join(found))


def cost_section(charts: Mapping[str, Path], results: Mapping[str, Any]) -> str:
    """Epochs, worker hours and money, used and saved, and how busy the slots were."""
    costs, busy = results["costs"], results["busy_share"]
    whole_hours = costs["hours"] + costs["hours_saved"]
    rows = [
        ("epochs", f"{results['epochs_run']:,}", f"{costs['epochs_saved']:,}"),
        (
            costs["unit"],
            f"{costs['hours']:.3g}",
            f"{costs['hours_saved']:.3g} ({_share(costs['hours_saved'], whole_hours)})",
        ),
    ]
    spent = costs["cost"]
    if results["final"]:
        final = results["final"]["costs"]
        rows.append((f"{costs['unit']} of the final trainings", f"{final['hours']:.3g}", "-"))
        spent = None if spent is None else spent + final["cost"]
    if spent is not None:
        rows.append((f"money, at {costs['price_per_hour']:g} an hour", f"{spent:.4g}", f"{costs['cost_saved']:.4g}"))
    how = (
        "Used: the time in which trials held their workers, times the workers of each. Saved: the epochs that trials"
        " which were stopped early did not run, at the mean time of their own epochs, against running them to the end;"
        " trials that failed, diverged or were out of budget saved nothing."
    )
    caption = (
        "No trial ever waited for a slot."
        if busy is None
        else f"While trials were waiting, <b>{busy:.0%}</b> of the {results['at_once']} slots were held: from a trial's"
        " turn to its end, the start of its workers included."
    )
    picture = chart(charts["running"], alt="Number of running trials over time", caption=caption)
    return section(
        "costs",
        "Costs",
        table(("", "used", "saved"), rows, label="What the search cost and saved", numeric=(1, 2)),
        paragraph(how),
        f'<div class="lone">{picture}</div>',
    )


def _spread(spread: Mapping[str, Any], name: str, style: str) -> str:
    one = spread[name]
    return f"{one['mean']:{style}}" + ("" if one["std"] is None else f" ± {one['std']:{style}}")


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _words(metric: str) -> str:
    return metric.replace("val_", "validation ").replace("_", " ").replace("nll", "NLL").replace("rmse", "RMSE")
