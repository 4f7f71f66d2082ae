"""Look at a bucket before training on it: one HTML page that needs nothing else, its pictures, and all figures as JSON.

    python data/report.py --source file:///absolute/bucket --run-dir runs/report

Leaves in the output folder: report.html, report.json, drops.json, and the figures and sample sheets as PNG.
"""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from bintally.cli import readable_errors
from bintally.source_config import DataConfig
from data.args import SourceArgs, new_run_dir


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportArgs:
    """Look at a bucket before training on it."""

    run_dir: Path | None = None
    """Output folder. Default: a new one under runs/."""
    num_cpus: int | None = None
    """Logical CPUs of a Ray started here. Default: the machine's cores."""
    bucket: tyro.conf.OmitArgPrefixes[SourceArgs] = field(default_factory=SourceArgs)


def main() -> None:
    """Parse, then look."""
    with readable_errors():
        args = tyro.cli(ReportArgs, description=__doc__)
        data = args.bucket.override(DataConfig())
        from data.reporting import write_report  # heavy imports only after the flags are parsed

        write_report(data, new_run_dir(args.run_dir, "report"), args.num_cpus)


if __name__ == "__main__":
    main()
