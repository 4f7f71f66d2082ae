"""Train and score recipes on real photos, over some seeds: the table of docs/results.md.

    python benchmarks/results.py --abid /path/to/abid                    # two cores: about 40 minutes by estimate
    python benchmarks/results.py --abid /path/to/abid --use-gpu --weights resnet50.pth
    python benchmarks/results.py --abid /path/to/abid --rows small_cnn_corn small_cnn --seeds 0 1

The folder holds ABID's pairs, further photos and the official lists. Leaves in the output folder: results.md,
results.json, bucket/ (links), pretraining/ (drawn bins and a training on them) and a run folder per row and seed.
Started again, it does only what is missing.
"""

import json
import os
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bintally.cli import readable_errors
from bintally.errors import ConfigError, RunError

if TYPE_CHECKING:
    from benchmarks.parts.abid_folder import LinkedBucket
    from benchmarks.parts.result_rows import Row
    from benchmarks.parts.result_runs import RunPlan

SHARED: Final = Path(__file__).resolve().parents[2] / "shared/abid"
QUICK_IMAGES: Final = 400
PRETRAINING: Final = "pretraining"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsArgs:
    """What to train and score."""

    abid: Path | None = None
    """Folder with bucket/, extra/ and lists/. Default: ../shared/abid beside the repository, if there is one."""
    out: Path | None = None
    """Output folder. Default: runs/results; of a quick look, one that is removed."""
    use_gpu: bool = False
    """Train and score on a GPU, at the recipes' own sizes."""
    rows: tuple[str, ...] = ()
    """Names of rows, separated by spaces or commas; see benchmarks/parts/result_rows.py. Default: the machine's."""
    seeds: tuple[int, ...] = ()
    """One run per row and seed. Default: 0 1 2."""
    weights: Path | None = None
    """File of torchvision's ResNet-50 weights, without which report_resnet50 is skipped."""
    quick: bool = False
    """Few photos of 32 px, one epoch, one seed: shows that it runs, not how well."""

    @property
    def row_names(self) -> tuple[str, ...]:
        """The rows, one by one."""
        return tuple(name for text in self.rows for name in text.split(",") if name)

    def abid_dir(self) -> Path | None:
        """Where the photos lie; None if that is not known."""
        return self.abid or (SHARED if SHARED.is_dir() else None)

    def _weights_of(self, row: "Row", out: Path) -> Path | None:
        from benchmarks.parts.pretraining import checkpoint_dir

        if row.after_synthetic:
            return checkpoint_dir(out / PRETRAINING)
        return self.weights.resolve() if row.pretrained and self.weights else None

    def plans(self, bucket: "LinkedBucket", out: Path) -> "dict[Row, list[RunPlan]]":
        """The runs of each row, none for a row that is skipped.

        Raises:
            ConfigError: a row is unknown.
        """
        from benchmarks.parts.result_rows import choose_rows
        from benchmarks.parts.result_runs import RunPlan

        seeds = dict.fromkeys(self.seeds or ((0,) if self.quick else (0, 1, 2)))
        return {
            row: [
                RunPlan(
                    row=row,
                    seed=seed,
                    run_dir=out / f"{row.name}-seed{seed}",
                    bucket=bucket,
                    settings=row.settings_on(use_gpu=self.use_gpu, quick=self.quick),
                    use_gpu=self.use_gpu,
                    weights=self._weights_of(row, out),
                    max_images=QUICK_IMAGES if self.quick else None,
                )
                for seed in ([] if row.why_skipped(self.weights) else seeds)
            ]
            for row in choose_rows(self.row_names, use_gpu=self.use_gpu, quick=self.quick)
        }


def run_all(args: ResultsArgs, abid_dir: Path, out: Path) -> dict[str, Any]:
    """All runs that are not done yet; what results.json holds."""
    from benchmarks.parts.abid_folder import class_mix, counts_by_split, link_bucket, source_mix
    from benchmarks.parts.pretraining import pretrain
    from benchmarks.parts.result_controls import file_size_figures
    from data.progress import say
    from train.published import compare_published

    bucket = link_bucket(abid_dir, out / "bucket")
    plans = args.plans(bucket, out)
    if any(row.after_synthetic for row in plans):
        pretrain(out / PRETRAINING, quick=args.quick, use_gpu=args.use_gpu)
    data = bucket.data(QUICK_IMAGES if args.quick else None)
    counts, machine = counts_by_split(data), _machine(args.use_gpu)
    mix = class_mix(counts)
    say(f"{sum(map(len, plans.values()))} runs in {out}")
    return {
        "command": shlex.join(["python", "benchmarks/results.py", *sys.argv[1:]]),
        "quick": args.quick,
        "photos": bucket.describe(),
        "rows": [_run_row(row, planned, args.weights, machine) for row, planned in plans.items()],
        "file_size": file_size_figures(counts, bucket.photos_dir),
        "mix": mix,
        "sources": {split: source_mix(ids, bucket.photos_dir) for split, ids in counts.items()},
        "published": compare_published(data, "test", sum(mix["test"].values())),
    }


def _run_row(row: "Row", plans: "list[RunPlan]", weights: Path | None, machine: dict[str, Any]) -> dict[str, Any]:
    """The runs of one row; one that fails is told, and the others go on."""
    from benchmarks.parts.result_runs import do_run
    from data.progress import say

    runs, failed = [], []
    skipped = row.why_skipped(weights)
    if skipped:
        say(f"{row.name}: skipped, {skipped}")
    for plan in plans:
        settings = " ".join(plan.settings) or "nothing changed"
        say(f"{plan.run_dir.name}: {row.recipe} with {settings}; logs in {plan.run_dir}")
        started = time.monotonic()
        try:
            run = do_run(plan, machine)
        except RunError as error:
            failed.append(f"seed {plan.seed} failed: {str(error).splitlines()[0]}")
            say(f"failed: {error}")
            continue
        runs.append(run)
        say(
            f"{plan.run_dir.name}: test accuracy {run['accuracy']:.1%}, rmse {run['rmse']:.3f}, nll {run['nll']:.3f};"
            f" took {time.monotonic() - started:.0f} s"
        )
    return {
        "name": row.name,
        "recipe": row.recipe,
        "settings": list(plans[0].settings) if plans else [],
        "runs": runs,
        "skipped": skipped,
        "failed": failed,
    }


def _machine(use_gpu: bool) -> dict[str, Any]:
    import torch

    from benchmarks.parts.report import describe_machine

    if not use_gpu:
        return describe_machine() | {"gpu": "none"}
    if torch.cuda.is_available():
        return describe_machine() | {"gpu": torch.cuda.get_device_name()}
    if "RAY_ADDRESS" in os.environ:
        return describe_machine() | {"gpu": "of the Ray cluster"}
    raise ConfigError("use_gpu: there is no GPU here that PyTorch can use")


def measure(args: ResultsArgs, abid_dir: Path, out: Path) -> None:
    """Run everything, then write the table."""
    from benchmarks.parts.result_table import format_results

    out.mkdir(parents=True, exist_ok=True)
    results = run_all(args, abid_dir, out)
    page = format_results(results)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "results.md").write_text(page)
    print(page)
    if failed := [row["name"] for row in results["rows"] if row["failed"]]:
        raise RunError(f"runs of {', '.join(failed)} failed; their logs are in {out}")


def main() -> None:
    """Parse the command line, run, print."""
    import tyro

    with readable_errors():
        args = tyro.cli(partial(ResultsArgs), description=__doc__)
        abid_dir = args.abid_dir()
        if abid_dir is None:
            print("needs the ABID folder, and there is none at ../shared/abid: give --abid DIR")
            return
        if args.weights and not args.weights.is_file():
            raise ConfigError(f"weights: there is no file {args.weights}")
        if args.quick and args.out is None:
            with tempfile.TemporaryDirectory(prefix="bintally-results-") as folder:
                measure(args, abid_dir, Path(folder))
        else:
            measure(args, abid_dir, (args.out or Path("runs/results")).resolve())


if __name__ == "__main__":
    main()
