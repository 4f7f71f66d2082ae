"""A training step of this project beside a bare PyTorch loop with the same model, in one process.

python benchmarks/train_step.py                # four minutes on two cores
python benchmarks/train_step.py --quick
python benchmarks/train_step.py --device cuda --backbone resnet50 --image-size 224 --batch-size 128 --json step.json
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from bintally.cli import readable_errors
from bintally.errors import ConfigError

ROWS: Final = ("bare_loop", "bintally", "no_monitor")
WARM_STEPS: Final = 10
METHOD: Final = (
    "Images per second of optimiser steps on batches that lie in memory; rounds of all rows take turns, the"
    " median round counts. bare_loop: the same network, augmentation, AdamW, clipping and schedule, written plainly."
    " bintally: train/step.py with the health monitor as in a training. no_monitor: the same without it. peak_mb: what"
    " a process of its own held at most in ten steps, torch and all. tracking_cpu_ms: what a tracker costs the driver"
    " per epoch of 40 figures."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepArgs:
    """What to measure."""

    backbone: str = "resnet18"
    """As of a recipe."""
    image_size: int = 96
    """Pixels."""
    batch_size: int = 32
    """Photos per step."""
    num_steps: int = 50
    """Steps per round; every 50th is one in which the monitor samples."""
    num_rounds: int = 4
    """Rounds of each row."""
    device: str = "cpu"
    """cpu or cuda."""
    precision: str = "fp32"
    """fp32 or bf16."""
    quick: bool = False
    """Few steps: shows that it runs, not how fast."""
    json: Path | None = None
    """Write the figures to this file."""


def measure(args: StepArgs) -> dict[str, dict[str, float]]:
    """Images per second of each row, its ratio to the bare loop, and its memory."""
    from statistics import median

    import torch

    from benchmarks.parts.steps import LoopSetting, make_loop, peak_memory_mb

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda needs an NVIDIA GPU with its driver; there is none here")
    num_steps, num_rounds = (10, 2) if args.quick else (args.num_steps, args.num_rounds)
    setting = LoopSetting(**{one.name: getattr(args, one.name) for one in fields(LoopSetting)})
    peaks: dict[str, float] = {}
    for name in ROWS:
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            peaks[name] = alone.submit(peak_memory_mb, name, setting, WARM_STEPS).result()
    loops = {name: make_loop(name, setting) for name in ROWS}
    for loop in loops.values():
        loop(WARM_STEPS)  # warms up caches and passes the monitor's first steps, all of which it samples
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(num_rounds):
        # Another one begins each round.
        names = [*loops][number % len(loops) :] + [*loops][: number % len(loops)]
        for name in names:
            rates[name].append(_rate(loops[name], num_steps, args.batch_size))
    bare = median(rates["bare_loop"])
    return {
        name: {
            "images_per_s": round(median(values), 2),
            "over_bare_loop": round(median(values) / bare, 4),
            "worst_round": round(min(values), 2),
            "best_round": round(max(values), 2),
            "peak_mb": round(peaks[name]),
        }
        for name, values in rates.items()
    }


def _rate(loop: Callable[[int], None], num_steps: int, batch_size: int) -> float:
    started = time.perf_counter()
    loop(num_steps)
    return num_steps * batch_size / (time.perf_counter() - started)


def main() -> None:
    """Parse the command line, measure, print."""
    import tyro

    with readable_errors():
        args = tyro.cli(partial(StepArgs), description=__doc__)
        from benchmarks.parts.report import describe_machine

        machine = describe_machine()
        rows = measure(args)
        for name, row in rows.items():
            share = f"{row['over_bare_loop']:>9.3f} of the bare loop"
            print(f"{name:<12}{row['images_per_s']:>10.1f} images/s{share}{row['peak_mb']:>8} MB")
        from benchmarks.parts.steps import tracking_cpu_ms

        tracking = tracking_cpu_ms(3 if args.quick else 50)
        print("tracking, CPU per epoch: " + ", ".join(f"{name} {spent} ms" for name, spent in tracking.items()))
        if args.json:
            setting: dict[str, Any] = {
                name: getattr(args, name)
                for name in ("backbone", "image_size", "batch_size", "num_steps", "num_rounds", "device", "precision")
            }
            values = {
                "rows": rows,
                "tracking_cpu_ms": tracking,
                "setting": setting,
                "machine": machine,
                "method": METHOD,
            }
            args.json.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
