"""Score a checkpoint on one split of a bucket.

    python train/evaluate.py --checkpoint runs/x/checkpoint --source file:///absolute/bucket --split test

Leaves in the output folder: metrics.json, predictions.csv, drops.json, confusion.png and sheet.png.
"""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from bintally.cli import readable_errors
from bintally.config import DataConfig, Recipe
from bintally.errors import ConfigError
from data.args import ReadArgs, SourceArgs, new_run_dir
from data.split import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateArgs:
    """Score a checkpoint on one split of a bucket."""

    checkpoint: Path
    """Checkpoint folder: model.safetensors, config.json, metrics.json."""
    split: Split = "test"
    """Which split to score."""
    run_dir: Path | None = None
    """Output folder. Default: a new one under runs/."""
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
        from train.scoring import evaluate

        checkpoint = load_checkpoint(args.checkpoint)
        data = args.resolve(checkpoint.recipe)
        run_dir = new_run_dir(args.run_dir, "evaluate")
        evaluate(checkpoint, data, args.split, read, run_dir, args.num_cpus)


if __name__ == "__main__":
    main()
