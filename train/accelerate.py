"""Make graphs that count faster on CPUs, check them, and store them in the checkpoint for the server.

    python train/accelerate.py --checkpoint runs/x/checkpoint --source file:///absolute/bucket

The network is written for ONNX Runtime in float32 and in 8 bits, calibrated on training photos. What answers as PyTorch
does on val photos is kept; the fastest of it is what the server counts by. Takes minutes; run it where the server runs.
"""

from dataclasses import dataclass, field

import tyro

from bintally.cli import readable_errors
from bintally.config import Recipe
from bintally.errors import ConfigError
from bintally.source_config import DataConfig
from data.args import ReadArgs, SourceArgs


@dataclass(frozen=True, kw_only=True, slots=True)
class AccelerateArgs:
    """Make graphs that count faster on CPUs, check them, and store them in the checkpoint for the server."""

    checkpoint: str
    """Checkpoint: a folder with model.safetensors, config.json, metrics.json, or s3://bucket/prefix."""
    num_cpus: int | None = None
    """Logical CPUs of a Ray started here. Default: the machine's cores."""
    bucket: tyro.conf.OmitArgPrefixes[SourceArgs] = field(default_factory=SourceArgs)
    read: tyro.conf.OmitArgPrefixes[ReadArgs] = field(default_factory=ReadArgs)

    def resolve(self, trained: Recipe) -> DataConfig:
        """The bins to calibrate and check on, of a checkpoint that was trained by this recipe.

        Raises:
            ConfigError: a value is out of range, max_count is above what the model can answer, or the photos would not
                be those that the server shows it.
        """
        data = self.bucket.apply(trained).data
        if data.max_count > trained.data.max_count:
            raise ConfigError(f"max_count {data.max_count} is more than the model counts to, {trained.data.max_count}")
        if data.pixels != trained.data.pixels:
            raise ConfigError(
                "image_size, resize and fast_decode must be those of the checkpoint, as the server's photos are"
            )
        return data


def main() -> None:
    """Parse, then make, check and store."""
    with readable_errors():
        args = tyro.cli(AccelerateArgs, description=__doc__)
        read = args.read.resolve()
        from bintally.checkpoint import load_checkpoint  # heavy imports only after the flags are parsed
        from data.s3_folder import local_copy
        from train.runtimes import AcceleratePlan, accelerate

        with local_copy(args.checkpoint, "checkpoint") as checkpoint_dir:
            checkpoint = load_checkpoint(checkpoint_dir)
            accelerate(
                AcceleratePlan(
                    checkpoint_dir=checkpoint_dir.resolve(),
                    checkpoint=checkpoint,
                    data=args.resolve(checkpoint.recipe),
                    read=read,
                    num_cpus=args.num_cpus,
                )
            )


if __name__ == "__main__":
    main()
