"""The training part of an epoch through Ray beside the same steps on batches that lie in memory.

python benchmarks/train_e2e.py                # some five minutes on two cores
python benchmarks/train_e2e.py --quick
python benchmarks/train_e2e.py --json train_e2e.json
"""

import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from bintally.cli import readable_errors

METHOD: Final = (
    "Images per second of the training part of an epoch, median of the epochs behind the first; one thread for torch"
    " in all rows, as Ray gives a worker with one CPU. memory_loop: train/step.py on one batch in memory, in a process"
    " of its own. stored: train/fit.py with its rows in Ray's object store. streamed: the same with --stream, so that"
    " photos are read from a folder and decoded on the other core meanwhile."
)
ROWS: Final = ("memory_loop", "stored", "streamed")


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochArgs:
    """What to measure."""

    backbone: str = "resnet18"
    """As of a recipe."""
    image_size: int = 96
    """Pixels."""
    batch_size: int = 32
    """Photos per step."""
    num_images: int = 2000
    """Bins in the drawn bucket, of which some 850 train."""
    num_epochs: int = 3
    """Epochs of each row."""
    quick: bool = False
    """Few photos: shows that it runs, not how fast."""
    json: Path | None = None
    """Write the figures to this file."""


def measure_memory_loop(args: EpochArgs, num_steps: int) -> float:
    """Images per second of steps on a batch in memory."""
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_time_steps, (args, num_steps))


def _time_steps(args: EpochArgs, num_steps: int) -> float:
    import time

    import torch

    from benchmarks.parts.steps import LoopSetting, make_loop

    torch.set_num_threads(1)
    setting = LoopSetting(
        backbone=args.backbone,
        image_size=args.image_size,
        batch_size=args.batch_size,
        device="cpu",
        precision="fp32",
    )
    take = make_loop("bintally", setting)
    take(5)
    rates = []
    for _ in range(args.num_epochs - 1):
        started = time.perf_counter()
        take(num_steps)
        rates.append(num_steps * args.batch_size / (time.perf_counter() - started))
    return median(rates)


def measure_training(args: EpochArgs, bucket: Path, run_dir: Path, *, stream: bool) -> dict[str, float]:
    """Images per second of a real training, and the share of its steps that waited for data."""
    from bintally.config import with_settings
    from bintally.recipes import demo
    from data.args import ReadArgs, ResourceArgs
    from train.run import fit
    from train.run_folder import METRICS_FILE, read_epochs

    run_dir.mkdir()
    settings = {
        "data.source": f"file://{bucket}",
        "data.image_size": args.image_size,
        "data.max_count": 8,
        "allow_empty_counts": "true",  # few bins, and some counts are rare
        "model.backbone": args.backbone,
        "optim.global_batch_size": args.batch_size,
        "max_epochs": args.num_epochs,
    }
    recipe = with_settings(demo(), [f"{name}={value}" for name, value in settings.items()])
    fit(recipe, ReadArgs(stream=stream), ResourceArgs(num_cpus=2), run_dir)
    epochs = read_epochs(run_dir / METRICS_FILE)[1:]
    phases = [epoch["health"]["phases"] for epoch in epochs]
    steps_s = sum(
        sum(phase.get(name, 0) for name in ("wait", "copy", "forward", "backward", "optimizer")) for phase in phases
    )
    return {
        "images_per_s": round(median(epoch["images_per_s"] for epoch in epochs), 2),
        "wait_share": round(sum(phase.get("wait", 0) for phase in phases) / steps_s, 4),
    }


def measure_all(args: EpochArgs, folder: Path) -> dict[str, dict[str, float]]:
    """All rows."""
    from data.synthetic import SyntheticConfig, write_bucket

    num_images = 300 if args.quick else args.num_images
    bucket = folder / "bucket"
    write_bucket(SyntheticConfig(num_bins=num_images, out=str(bucket), num_workers=2))
    rows: dict[str, dict[str, float]] = {"memory_loop": {"images_per_s": 0.0, "wait_share": 0.0}}
    for name in ROWS[1:]:
        rows[name] = measure_training(args, bucket, folder / name, stream=name == "streamed")
    num_steps = 5 if args.quick else 25
    rows["memory_loop"]["images_per_s"] = round(measure_memory_loop(args, num_steps), 2)
    base = rows["memory_loop"]["images_per_s"]
    return {name: row | {"over_memory_loop": round(row["images_per_s"] / base, 4)} for name, row in rows.items()}


def main() -> None:
    """Parse the command line, measure, print."""
    import tyro

    with readable_errors():
        args = tyro.cli(partial(EpochArgs), description=__doc__)
        from benchmarks.parts.report import describe_machine

        machine = describe_machine()
        with tempfile.TemporaryDirectory(prefix="bintally-bench-") as folder:
            rows = measure_all(args, Path(folder))
        for name, row in rows.items():
            print(
                f"{name:<12}{row['images_per_s']:>10.1f} images/s{row['over_memory_loop']:>8.3f} of the memory loop,"
                f" {row['wait_share']:.1%} waiting for data"
            )
        if args.json:
            names = ("backbone", "image_size", "batch_size", "num_images", "num_epochs")
            setting: dict[str, Any] = {name: getattr(args, name) for name in names}
            values = {"rows": rows, "setting": setting, "machine": machine, "method": METHOD}
            args.json.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
