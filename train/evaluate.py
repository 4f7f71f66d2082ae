"""Score a checkpoint on one split of a bucket, or on all of it.

    python train/evaluate.py --checkpoint runs/x/checkpoint --source file:///absolute/bucket --split test --calibrate

Leaves in the output folder: report.html, metrics.json, predictions.csv, drops.json, the figures and photo sheets as
PNG, and predictions/ as Parquet. The same command with the same --run-dir goes on where a stopped one was.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro

from bintally.cli import readable_errors
from bintally.config import Recipe
from bintally.errors import ConfigError
from bintally.source_config import DataConfig
from data.args import ReadArgs, SourceArgs
from data.split import Split
from train.mirror import open_run


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateArgs:
    """Score a checkpoint on one split of a bucket, or on all of it."""

    checkpoint: str
    """Checkpoint: a folder with model.safetensors, config.json, metrics.json, or s3://bucket/prefix."""
    split: Split | Literal["all"] = "test"
    """Which split to score; all is the whole bucket, also what was trained on."""
    calibrate: bool = False
    """Fit temperature and ranges on the val split first, and store them in the checkpoint (calibration.json)."""
    tta: bool = True
    """Count the mirrored photos, too: twice the arithmetic, for the figures of test-time augmentation."""
    reviewed: Path | None = None
    """Folder of reviewed_{checked,semi_invalid,invalid}.json, for figures by what people said of the photos."""
    run_dir: str | None = None
    """Output folder, or s3://bucket/prefix. Default: a new one under runs/. A stopped command goes on there."""
    use_gpu: bool = False
    """Count on the cluster's GPUs, an actor on each."""
    num_cpus: int | None = None
    """Logical CPUs of a Ray started here. Default: the machine's cores."""
    bucket: tyro.conf.OmitArgPrefixes[SourceArgs] = field(default_factory=SourceArgs)
    read: tyro.conf.OmitArgPrefixes[ReadArgs] = field(default_factory=ReadArgs)

    def resolve(self, trained: Recipe) -> DataConfig:
        """The bins to score, of a checkpoint that was trained by this recipe.

        Raises:
            ConfigError: a value is out of range, or max_count above what the model can answer.
        """
        data = self.bucket.apply(trained).data
        if data.max_count > trained.data.max_count:
            raise ConfigError(f"max_count {data.max_count} is more than the model counts to, {trained.data.max_count}")
        return data


def main() -> None:
    """Parse, then score."""
    with readable_errors():
        args = tyro.cli(EvaluateArgs, description=__doc__)
        read = args.read.resolve()
        from bintally.checkpoint import load_checkpoint  # heavy imports only after the flags are parsed
        from data.s3_folder import local_copy
        from train.evaluate_slices import read_reviewed
        from train.scoring import EvaluatePlan, evaluate

        with local_copy(args.checkpoint, "checkpoint") as checkpoint_dir:
            checkpoint = load_checkpoint(checkpoint_dir)
            plan = EvaluatePlan(
                checkpoint_dir=checkpoint_dir.resolve(),
                checkpoint=checkpoint,
                data=args.resolve(checkpoint.recipe),
                split=args.split,
                run_dir=Path(),  # made last, so that a refused command leaves none
                read=read,
                tta=args.tta,
                use_gpu=args.use_gpu,
                num_cpus=args.num_cpus,
                calibrate=args.calibrate,
                reviewed=read_reviewed(args.reviewed) if args.reviewed else None,
            )
            with open_run(args.run_dir, "evaluate") as run:
                evaluate(replace(plan, run_dir=run.folder, place=run.place))


if __name__ == "__main__":
    main()
