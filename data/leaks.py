"""Say how many val and test images show a bin that training has seen, for every way to split.

    python data/leaks.py --source file:///absolute/bucket --labels /absolute/lists

Reads the records, no photo. Siblings are looked for among the chosen ids: --max-images hides those with a gap between
them. Leaves in the output folder: leaks.json and leaks.html.
"""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from bintally.cli import readable_errors
from bintally.source_config import DataConfig
from data.args import SourceArgs, new_run_dir


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaksArgs:
    """Say how many val and test images show a bin that training has seen, for every way to split."""

    run_dir: Path | None = None
    """Output folder. Default: a new one under runs/."""
    bucket: tyro.conf.OmitArgPrefixes[SourceArgs] = field(default_factory=SourceArgs)


def main() -> None:
    """Parse, then measure."""
    with readable_errors():
        args = tyro.cli(LeaksArgs, description=__doc__)
        data = args.bucket.override(DataConfig())
        from data.leak_report import format_report, measure_leaks, write_report  # heavy imports only after parsing
        from data.progress import say

        run_dir = new_run_dir(args.run_dir, "leaks")
        report = measure_leaks(data)
        write_report(report, run_dir)
        say(format_report(report))
        say(f"table and page: {run_dir}")


if __name__ == "__main__":
    main()
