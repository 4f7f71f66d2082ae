"""The run behind the report: list, measure in Ray, find, draw, write."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from PIL import Image

from bintally.source_config import DataConfig
from data.bucket import open_bucket
from data.drops import format_table
from data.facts import collect_facts
from data.findings import Findings
from data.ingest import list_splits
from data.progress import say
from data.report_page import render_page
from data.report_photos import ShownPhoto, load_photos, load_product_names
from data.report_plots import draw_all, draw_sheet
from data.session import ray_session
from data.split import Split
from data.summary import Bins

PROGRESS_S: Final = 5.0


def write_report(data: DataConfig, run_dir: Path, num_cpus: int | None) -> Findings:
    """Look at every bin and write the page.

    Raises:
        SourceError: the bucket cannot be read, or not one bin can be used.
    """
    splits = list_splits(data, needed=())
    facts = measure(splits, data, num_cpus)
    findings = Findings.of(facts, splits, data)
    say(format_table(findings.drops, findings.num_ids))
    say("drawing the figures")
    charts = draw_all(findings, Bins.of(facts), run_dir)
    bucket = open_bucket(data)
    photos = load_photos(bucket, findings.shown_ids())
    names = load_product_names(bucket, {asin: bin_id for asin, _, bin_id in findings.products.top})
    draw_sheets(findings, photos, run_dir)
    (run_dir / "report.json").write_text(json.dumps(findings.to_json(), indent=2) + "\n")
    (run_dir / "drops.json").write_text(json.dumps(findings.drops, indent=2) + "\n")
    page = run_dir / "report.html"
    page.write_text(render_page(findings, charts, photos, names), encoding="utf-8")
    say(f"{findings.headline()}")
    say(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    return findings


def measure(splits: dict[Split, list[str]], data: DataConfig, num_cpus: int | None) -> pa.Table:
    """The facts of all bins of all splits, on a Ray that ends here."""
    ids = sorted((bin_id for members in splits.values() for bin_id in members), key=lambda one: (len(one), one))
    say(f"measuring {len(ids):,} bins")
    with ray_session(num_cpus):
        return collect_facts(ids, data, progress_of(len(ids)))


def progress_of(total: int) -> Callable[[int], None]:
    """Says how far it is and how fast it goes, at first, every few seconds and at the end.

    The rate is that since the first block, which waits until workers have started.
    """
    first: tuple[float, int] | None = None
    last = 0.0

    def show(done: int) -> None:
        nonlocal first, last
        now = time.monotonic()
        if first is not None and now - last < PROGRESS_S and done < total:
            return
        first, last = first or (now, done), now
        say(f"  {done:,} of {total:,} bins{_pace(now - first[0], done - first[1], total - done)}")

    return show


def _pace(seconds: float, done: int, left: int) -> str:
    if not done or seconds <= 0:
        return ""
    rate = done / seconds
    return f", {rate:,.0f} bins/s" + (f", {left / rate:,.0f} s left" if left else "")


def draw_sheets(findings: Findings, photos: dict[str, ShownPhoto], run_dir: Path) -> None:
    """One PNG of samples per count that has any."""
    for count, ids in findings.samples.items():
        shown = [bin_id for bin_id in ids if bin_id in photos]
        if shown:
            pixels = [np.asarray(Image.open(io.BytesIO(photos[bin_id].jpeg))) for bin_id in shown]
            path = run_dir / f"sheet-{count.replace(' ', '-')}.png"
            draw_sheet(pixels, shown, path, title=f"bins whose record says {count}")
