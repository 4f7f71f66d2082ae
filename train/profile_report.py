"""The profile of a training as one HTML page: what the health rules found, and where the time went."""

import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from data.report_html import chart, paragraph, section, table, text, tiles
from train.health import RULES
from train.health_record import EpochHealth, read_epoch
from train.health_rules import Finding
from train.phase_clock import MONITOR, PHASES
from train.profile_plots import draw_profile, format_s, median_step_s

_MEANING: Final = {
    "wait": "waiting for the next batch",
    "copy": "moving it to the device",
    "forward": "network and loss",
    "backward": "gradients",
    "optimizer": "clipping and the step",
    "validation": "scoring the validation split",
    "checkpoint": "writing and reporting it",
    "other": "everything else",
    "monitor": "this measurement itself",
}
_CHAPTERS: Final = {"health": "Health", "phases": "Time per phase", "steps": "Steps", "machine": "Machine"}


def write_profile(epochs: Sequence[Mapping[str, Any]], findings: Sequence[Finding], path: Path) -> None:
    """Write the page; it needs nothing but itself.

    Args:
        epochs: what `Monitor.epoch_summary` gave of one worker, in order; at least one.
        findings: what `train.health.check` says of them.
        path: of the page.
    """
    history = [read_epoch(values) for values in epochs]
    with tempfile.TemporaryDirectory() as temp:
        charts = draw_profile(history, Path(temp))
        path.write_text(render_profile(history, findings, charts, title=path.absolute().parent.name))


def render_profile(
    history: Sequence[EpochHealth], findings: Sequence[Finding], charts: Mapping[str, Path], *, title: str
) -> str:
    """The page as text; charts are those of `draw_profile`."""
    chapters = [
        health_section(history, findings),
        phase_section(history, charts),
        step_section(history, charts),
        machine_section(history, charts),
    ]
    links = "".join(f'<li><a href="#{anchor}">{name}</a></li>' for anchor, name in _CHAPTERS.items())
    made = f"{datetime.now().astimezone():%d %B %Y, %H:%M}"
    style = files("data").joinpath("report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Profile: {text(title)}</title><style>{style}</style></head><body>"
        f'<header><h1>How the training ran</h1><p class="where"><code>{text(title)}</code>, {len(history)} epochs,'
        f" {sum(epoch.steps.num for epoch in history):,} steps, on {text(history[0].device)}, {made}</p>"
        f'<nav aria-label="Chapters"><ul>{links}</ul></nav></header>'
        f"<main>{''.join(chapters)}</main><footer><p>Of one worker. All findings: <code>health.json</code> beside this"
        " page.</p></footer></body></html>\n"
    )


def health_section(history: Sequence[EpochHealth], findings: Sequence[Finding]) -> str:
    """The figures that everybody asks for, and what the rules say."""
    totals, wall_s = phase_totals(history), sum(epoch.wall_s for epoch in history)
    figures = {
        "time": format_s(wall_s),
        "waiting for data": _share(totals.get("wait", 0.0), wall_s),
        "measuring this": _share(totals.get(MONITOR, 0.0), wall_s),
        "rules that fired": f"{len(findings)} of {len(RULES)}",
    }
    if not findings:
        return section("health", "Health", tiles(figures), paragraph("No rule found a fault."))
    rows = [
        (_words(one.rule), one.severity, one.since, f"{one.saw[0].upper()}{one.saw[1:]}.", one.advice)
        for one in findings
    ]
    head = ("rule", "severity", "since", "what it saw", "what to change")
    return section("health", "Health", tiles(figures), table(head, rows, label="Findings of the health rules"))


def phase_section(history: Sequence[EpochHealth], charts: Mapping[str, Path]) -> str:
    """Seconds by phase, of the host and, on a GPU, of the steps that waited for it."""
    totals = phase_totals(history)
    wall_s = sum(totals.values())
    rows = [
        (
            name,
            _MEANING[name],
            format_s(totals[name]),
            format_s(totals[name] / len(history)),
            _share(totals[name], wall_s),
        )
        for name in PHASES
        if name in totals
    ]
    head = ("phase", "what happens", "all epochs", "per epoch", "share")
    computing = sum(totals.get(name, 0.0) for name in ("forward", "backward", "optimizer"))
    largest = max(totals, key=totals.__getitem__)
    caption = (
        f"{_share(computing, wall_s)} of the time went into forward, backward and optimizer;"
        f" the largest part is {largest} with {_share(totals[largest], wall_s)}. A checkpoint counts in the epoch after"
        " its own."
    )
    parts = [
        _figure(charts, "phases", "Seconds per epoch, stacked by phase", caption),
        table(head, rows, label="Time per phase", numeric=(2, 3, 4)),
    ]
    if history[0].device == "cuda":
        parts.append(_device_table(history))
    return section("phases", "Time per phase", *parts)


def _device_table(history: Sequence[EpochHealth]) -> str:
    sampled = phase_totals(history, sampled=True)
    in_steps = {name: seconds for name, seconds in sampled.items() if name != MONITOR}
    rows = [(name, _share(in_steps[name], sum(in_steps.values()))) for name in PHASES if name in in_steps]
    return (
        "<h3>Where the GPU's time goes</h3>"
        + paragraph(
            "The host only queues work for the GPU, so the table above shows where the host waited. In the sampled"
            " steps each phase waited for the GPU; these are their shares."
        )
        + table(("phase", "share of a step"), rows, label="Share of a step by phase, on the GPU", numeric=(1,))
    )


def step_section(history: Sequence[EpochHealth], charts: Mapping[str, Path]) -> str:
    """How long steps take, and which took longest."""
    rows = [
        (
            epoch.epoch,
            f"{epoch.steps.num:,}",
            *map(format_s, (epoch.steps.median_s, epoch.steps.mean_s, epoch.steps.std_s)),
            f"{format_s(epoch.steps.longest[0][1])} (step {epoch.steps.longest[0][0]:,})",
        )
        for epoch in history
        if epoch.steps.longest
    ]
    longest = max(((s, step) for epoch in history for step, s in epoch.steps.longest), default=(0.0, 0))
    caption = (
        f"Half of the steps take {format_s(median_step_s(history))} or less, the longest one {format_s(longest[0])}"
        f" (step {longest[1]:,}). Of all epochs; the monitor's own work is not in it."
    )
    head = ("epoch", "steps", "median", "mean", "standard deviation", "longest")
    return section(
        "steps",
        "Steps",
        _figure(charts, "steps", "Histogram of the time per step", caption),
        table(head, rows, label="Time per step by epoch", numeric=range(1, 6)),
    )


def machine_section(history: Sequence[EpochHealth], charts: Mapping[str, Path]) -> str:
    """What the worker used of the machine."""
    gpu = history[0].device == "cuda"
    caption = (
        "CPU: share of the cores it may use that this worker's process kept busy. Memory: "
        + ("what torch has allocated of the GPU's." if gpu else "what the process holds for itself of the RAM.")
        + (" GPU: share of the time in which it computed." if gpu else "")
    )
    picture = _figure(charts, "usage", "CPU, memory and GPU in use over time", caption)
    missing = gpu and not any(epoch.usage.gpu for epoch in history)
    note = paragraph("The driver's library (libnvidia-ml) does not tell this GPU's use.")
    return section("machine", "Machine", picture, note if missing else "")


def phase_totals(history: Sequence[EpochHealth], *, sampled: bool = False) -> dict[str, float]:
    """Seconds by phase over all epochs, in the order of PHASES."""
    parts = [epoch.sampled_phases if sampled else epoch.phases for epoch in history]
    sums = {name: sum(part.get(name, 0.0) for part in parts) for name in PHASES}
    return {name: seconds for name, seconds in sums.items() if seconds}


def _figure(charts: Mapping[str, Path], name: str, alt: str, caption: str) -> str:
    return f'<div class="lone">{chart(charts[name], alt=alt, caption=text(caption))}</div>'


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _words(name: str) -> str:
    return name.replace("_", " ")
