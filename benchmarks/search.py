"""A search with ASHA beside a full grid, random trials run to their end, and two reports' searches, on drawn bins.

python benchmarks/search.py                # some forty minutes on two cores
python benchmarks/search.py --only asha capstone_b
python benchmarks/search.py --quick
python benchmarks/search.py --json search.json --keep runs/bench-search    # leaves the searches' reports there
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from bintally.cli import readable_errors
from bintally.errors import RunError

if TYPE_CHECKING:
    from tune.trials import TrialView

ROOT: Final = Path(__file__).resolve().parents[1]
Row = Literal["grid", "random", "asha", "capstone_a", "capstone_b"]
ROWS: Final[tuple[Row, ...]] = get_args(Row)
BATCH_SIZES: Final = ("16", "32", "64")
FINAL_SEEDS: Final = 3
CPUS_OF_A_TRIAL: Final = 2
SHARE: Final = 3  # random and asha have one in so many of the grid's epochs
METHOD: Final = (
    "tune/search.py on one bucket of drawn bins over the same bounds of learning rate and the same batch sizes. grid:"
    " every point, to its end. random and asha: a third of the grid's epochs in all; random runs trials to their end,"
    " asha has as many trials as the grid and stops early. capstone_a, capstone_b: reports' searches, as --preset, with"
    " their own bounds, sizes, epochs and objective and the default number of trials, each to its end; an epoch of"
    " capstone_b visits a tenth of the rows. passes: epochs, each as the share of the rows that it visits. best_metric:"
    " validation NLL of the best epoch of any trial, a lucky draw among many. final_nll and final_std: mean and"
    " standard deviation of the lowest NLL when the best point is trained by three seeds for all of its epochs, of all"
    " rows each."
    " busy_share: share of the slots for trials that were held while trials waited; a slot is held from a trial's turn"
    " to its end, the start of its workers included. epoch_share: share of the slots' time, from begin to end, that was"
    " spent in epochs. start_s: mean seconds from a trial's slot to its first epoch. wall_s: from the search's begin to"
    " the last trial's end."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchBenchArgs:
    """What to measure."""

    num_bins: int = 2400
    """Bins in the drawn bucket."""
    image_size: int = 64
    """Pixels."""
    max_epochs: int = 9
    """Epochs of a trial that runs to its end."""
    lr_steps: int = 8
    """Learning rates of the grid."""
    num_cpus: int = 4
    """Logical CPUs: two trials at a time."""
    only: tuple[Row, ...] = ROWS
    """Rows to measure."""
    quick: bool = False
    """Few bins, few epochs: shows that it runs, not how well."""
    json: Path | None = None
    """Write the figures to this file."""
    keep: Path | None = None
    """Folder for the runs, with their reports. Default: one that is removed."""

    @property
    def grid_epochs(self) -> int:
        """Of all points of the grid."""
        return self.lr_steps * len(BATCH_SIZES) * self.max_epochs

    def flags(self, row: Row) -> list[str]:
        """What a row adds to the common flags of its search."""
        if row.startswith("capstone"):
            return ["--preset", row.replace("_", "-"), *(["--num-trials", "2"] if self.quick else [])]
        return ["--max-epochs", str(self.max_epochs), "--batch-sizes", *BATCH_SIZES, *self._ours(row)]

    def _ours(self, row: Row) -> list[str]:
        budget = self.grid_epochs // SHARE
        if row == "grid":
            return ["--sampler", "grid", "--grid-steps", str(self.lr_steps), "--no-asha"]
        if row == "random":
            return ["--num-trials", str(budget // self.max_epochs), "--no-asha"]
        num_trials = self.grid_epochs // self.max_epochs
        budget -= self.num_cpus // CPUS_OF_A_TRIAL - 1  # the other trials end their epochs after it is spent
        return ["--num-trials", str(num_trials), "--max-total-epochs", str(budget)]


def run_search(args: SearchBenchArgs, bucket: Path, run_dir: Path, row: Row) -> dict[str, Any]:
    """One search, as a person would start it; its figures.

    Raises:
        RunError: it failed.
    """
    from tune.record import EVENTS_FILE, TRIALS_FILE, read_events, read_records
    from tune.trials import follow_trials

    command = [sys.executable, str(ROOT / "tune/search.py"), "--recipe", "demo", "--source", f"file://{bucket}"]
    command += ["--image-size", str(args.image_size), "--num-cpus", str(args.num_cpus), "--run-dir", str(run_dir)]
    command += ["--final-seeds", str(FINAL_SEEDS)]
    run_dir.mkdir(parents=True)
    with (run_dir / "search.log").open("w") as log:
        started = time.monotonic()
        code = subprocess.run(
            [*command, *args.flags(row)], stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        raise RunError(f"{row} ended with code {code}: {(run_dir / 'search.log').read_text()[-600:]}")
    results = json.loads((run_dir / "results.json").read_text())
    events = read_events(run_dir / EVENTS_FILE)
    trials = follow_trials(read_records(run_dir / TRIALS_FILE), events)
    wall_s = max(event.at for event in events) - min(event.at for event in events)
    spread = results["final"]["val"]["nll"]
    fraction = json.loads((run_dir / "search.json").read_text())["recipe"]["epoch_fraction"]
    return {
        "epochs": results["epochs_run"],
        "passes": round(fraction * results["epochs_run"], 1),
        "trials": results["num_begun"],
        "best_metric": round(results["best"]["val_nll"], 4),
        "busy_share": None if results["busy_share"] is None else round(results["busy_share"], 3),
        "epoch_share": round(sum(map(epochs_s, trials)) / (results["at_once"] * wall_s), 3),
        "start_s": round(mean(start_s(one) for one in trials if one.epochs), 1),
        "final_nll": round(spread["mean"], 4),
        "final_std": round(spread["std"], 4),
        "wall_s": round(wall_s, 1),
        "command_s": round(time.monotonic() - started, 1),
    }


def epochs_s(trial: "TrialView") -> float:
    """Seconds that a trial spent in epochs."""
    return sum(one.metrics["epoch_s"] for one in trial.epochs)


def start_s(trial: "TrialView") -> float:
    """Seconds from a trial's slot to its first epoch."""
    first = trial.epochs[0]
    return first.ended - first.metrics["epoch_s"] - trial.spans[0][0]


def measure_all(args: SearchBenchArgs, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """All rows, one after the other, each as soon as it is there."""
    from data.progress import say
    from data.synthetic import SyntheticConfig, write_bucket

    bucket = folder / "bucket"
    write_bucket(SyntheticConfig(num_bins=args.num_bins, out=str(bucket), num_workers=2))
    for row in args.only:
        say(f"{row}: logs in {folder / row}")
        yield row, run_search(args, bucket, folder / row, row)


def format_rows(rows: dict[str, dict[str, Any]]) -> str:
    """For people."""
    head = f"{'row':<12}{'trials':>7}{'epochs':>8}{'passes':>8}{'best NLL':>10}{'final NLL':>18}"
    lines = [f"{head}{'busy':>7}{'start s':>9}{'wall s':>8}"]
    for name, row in rows.items():
        busy = "-" if row["busy_share"] is None else f"{row['busy_share']:.0%}"
        lines.append(
            f"{name:<12}{row['trials']:>7}{row['epochs']:>8}{row['passes']:>8.1f}{row['best_metric']:>10.3f}"
            f"{row['final_nll']:>10.3f} ± {row['final_std']:.3f}{busy:>7}{row['start_s']:>9.1f}{row['wall_s']:>8.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print."""
    from dataclasses import replace

    import tyro

    with readable_errors():
        args = tyro.cli(partial(SearchBenchArgs), description=__doc__)
        if args.quick:
            args = replace(args, num_bins=400, image_size=32, max_epochs=3, lr_steps=1)  # capstone_b: batches of 128
        from benchmarks.parts.report import describe_machine

        machine = describe_machine()
        names = ("num_bins", "image_size", "max_epochs", "lr_steps", "num_cpus")
        setting = {name: getattr(args, name) for name in names} | {"batch_sizes": BATCH_SIZES}
        rows: dict[str, dict[str, Any]] = {}
        with tempfile.TemporaryDirectory(prefix="bintally-bench-") as folder:
            for name, row in measure_all(args, (args.keep or Path(folder)).resolve()):
                rows[name] = row
                if args.json:
                    values = {"rows": rows, "setting": setting, "machine": machine, "method": METHOD}
                    args.json.write_text(json.dumps(values, indent=2) + "\n")
        print(format_rows(rows))


if __name__ == "__main__":
    main()
