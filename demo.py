"""The main job once, from nothing to a served count, on a small synthetic bucket: python demo.py, or make demo.

Runs the commands that a user runs, one after the other, and leaves everything in one folder.
"""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

from bintally.ports import free_port

ROOT = Path(__file__).resolve().parent
START_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoArgs:
    """Generate a bucket, search, evaluate, serve, and count a few bins over HTTP."""

    run_dir: Path = ROOT / "runs" / "demo"
    """Folder for everything that the demo makes."""
    num_bins: int = 2400
    """Synthetic bins to draw."""
    num_trials: int = 6
    """Points of the search space to try."""
    num_requests: int = 12
    """Test photos to POST to the server."""


def main() -> None:
    """Run the demo."""
    args = tyro.cli(DemoArgs, description=__doc__)
    started = time.monotonic()
    run_dir = args.run_dir.resolve()
    bucket = run_dir / "bucket"
    source = f"file://{bucket}"
    checkpoint = run_dir / "search" / "checkpoint"
    for old in ("search", "test"):
        shutil.rmtree(run_dir / old, ignore_errors=True)  # of an earlier demo
    step("1/4 drawing a synthetic bucket in the layout of ABID")
    run("data/synthetic.py", "--num-bins", args.num_bins, "--counts", "uniform", "--difficulty", 0.2,
        "--num-workers", 2, "--out", source)  # fmt: skip
    step("2/4 searching learning rate and batch size")
    run("tune/search.py", "--recipe", "demo", "--source", source, "--num-trials", args.num_trials,
        "--num-cpus", 4, "--lr", 5e-4, 2e-2, "--batch-sizes", 16, 32, 64,
        "--no-final", "--run-dir", run_dir / "search")  # fmt: skip
    step("3/4 scoring the best checkpoint on the test split")
    run("train/evaluate.py", "--checkpoint", checkpoint, "--source", source, "--split", "test",
        "--calibrate", "--num-cpus", 2, "--run-dir", run_dir / "test")  # fmt: skip
    step("4/4 serving it and counting photos over HTTP")
    with serving(checkpoint, run_dir / "serve.log") as url:
        num_right = count_over_http(url, bucket, run_dir / "test" / "predictions.csv", args.num_requests)
    report(run_dir, num_right, args.num_requests, time.monotonic() - started)


def step(title: str) -> None:
    """Announce one step."""
    print(f"\n=== {title}", flush=True)


def run(script: str, *flags: object) -> None:
    """Run one of the project's commands; end the demo with its exit code if it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    print("$ python", script, *flags[:4], "...", flush=True)
    code = subprocess.run(command, check=False).returncode  # noqa: S603
    if code:
        sys.exit(code)


@contextmanager
def serving(checkpoint: Path, log_path: Path) -> Iterator[str]:
    """The server on Ray Serve on a free port of the loopback; its URL once it is healthy."""
    port = free_port()
    flags = ["--checkpoint", str(checkpoint), "--port", str(port)]
    print("$ python serve/start.py", *flags, flush=True)
    with log_path.open("wb") as log:
        command = [sys.executable, str(ROOT / "serve/start.py"), *flags]
        server = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=heed_ctrl_c)  # noqa: S603, PLW1509
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url, server, log_path)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)


def heed_ctrl_c() -> None:
    """Undo what a shell does to commands in the background: they ignore the signal that ends the server."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log_path: Path) -> None:
    """Poll /readyz until it answers."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310  # our own loopback address
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    sys.exit(f"the server did not become healthy; see {log_path}")


def count_over_http(url: str, bucket: Path, predictions: Path, limit: int) -> int:
    """POST test photos and print expected against counted; the number of right answers."""
    with predictions.open() as file:
        scored = list(csv.DictReader(file))
    rows = scored[:: max(1, len(scored) // limit)][:limit]  # far apart, since neighbours are often one bin
    print("\nbin     expected  counted  probability  90 % range  verdict")
    num_right = 0
    for row in rows:
        photo = (bucket / "bin-images" / f"{row['id']}.jpg").read_bytes()
        path = f"/v1/verify?expected_quantity={row['expected']}&bin_id={row['id']}"
        request = urllib.request.Request(url + path, photo, {"Content-Type": "image/jpeg"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310  # our own loopback address
            verdict = json.load(response)
        answer = verdict["counted"]
        right = answer["count"] == int(row["expected"])
        num_right += right
        probability = answer["probabilities"][str(answer["count"])]
        between = f"{answer['range']['low']} to {answer['range']['high']}"
        mark = "" if right else "  <- differs"
        print(
            f"{row['id']:<8}{row['expected']:>8}{answer['count']:>9}{probability:>13.0%}{between:>12}"
            f"  {verdict['verdict']}{mark}"
        )
    return num_right


def report(run_dir: Path, num_right: int, num_requests: int, wall_s: float) -> None:
    """Say what came out and where it lies."""
    metrics = json.loads((run_dir / "test" / "metrics.json").read_text())
    print(f"\n{num_right} of {num_requests} served counts equal the record.")
    print(
        f"Test accuracy {metrics['accuracy']:.1%} on {metrics['num_images']} images"
        f" (majority class {metrics['majority_accuracy']:.1%}, random {metrics['random_accuracy']:.1%})."
    )
    print(f"All of it took {wall_s / 60:.1f} minutes. Everything lies in {run_dir}:")
    for name, what in {
        "search/report.html": "how the search went, trial by trial",
        "search/curves.png": "learning curves of all trials",
        "search/best.json": "the best recipe, for train/fit.py --recipe-file",
        "search/checkpoint": "the best checkpoint, for serve and train/evaluate.py",
        "test/confusion.png": "confusion matrix on the test split",
        "test/sheet.png": "test photos with expected and counted",
        "test/predictions.csv": "every prediction",
    }.items():
        print(f"  {name:<22} {what}")


if __name__ == "__main__":
    main()
