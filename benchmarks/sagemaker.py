"""A packed model where SageMaker would run it: size, cold start, memory, time per photo.

    python benchmarks/sagemaker.py                     # a minute
    python benchmarks/sagemaker.py --quick
    python benchmarks/sagemaker.py --slim-python slim/bin/python --json sagemaker.json

Our image holds less than this environment; one like it, for --slim-python, is made by
    uv venv slim && uv pip install --python slim --torch-backend cpu -r serve/container/requirements.txt
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from typing import Any, Final

from bintally.cli import readable_errors
from bintally.errors import RunError

ROOT: Final = Path(__file__).resolve().parents[1]
START_S: Final = 180.0
METHOD: Final = (
    "A resnet18 of random weights with 6 classes and its graphs, packed by serve/export.py and unpacked, is asked by"
    " one client for the count of one drawn JPEG of 520x640 and 58 kB; it counts in 8 bits by ONNX Runtime."
    " packages_mb: Python packages that the row needs, installed, torch included. tarball_mb: model.tar.gz. start_s:"
    " from the command to the first /ping of 200; first_s: to the first answer. warm_ms: median of the answers after"
    " it. rss_mb: memory of all its processes, shared pages counted once (Pss), after the last answer. Of all but the"
    " sizes, the median of the rounds, in which the rows take turns. ray_image: `serve run config.yaml` as AWS's Ray"
    " Serve image does, by this environment's Ray, without AWS's adapter and the 15 s that its entry point sleeps; the"
    " model is loaded twice, first to see whether it can be. container: python -m serve.container. in_process: the"
    " four functions of code/inference.py in a bare loop. container and in_process run by --slim-python."
)

IN_PROCESS: Final = """
import json, sys, time
import inference
body = open(sys.argv[2], "rb").read()
model = inference.model_fn(sys.argv[1])
def ask():
    asked = inference.input_fn(body, "image/jpeg")
    return inference.output_fn(inference.predict_fn(asked, model), "application/json")
print("ready", flush=True)
ask()
print("first", flush=True)
times = []
for _ in range(int(sys.argv[3])):
    begun = time.perf_counter()
    ask()
    times.append(time.perf_counter() - begun)
print(json.dumps(times), flush=True)
sys.stdin.read()
"""

RAY_IMAGE: Final = """
import sys
from data.session import ray_session
from ray import serve
from ray.serve.scripts import cli
with ray_session():
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    cli(["run", sys.argv[1] + "/config.yaml"])
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SageMakerArgs:
    """What to measure."""

    rounds: int | None = None
    """Starts of each row. Default: 3, or 1 with --quick."""
    photos: int | None = None
    """Answers after the first. Default: 100, or 5 with --quick."""
    slim_python: Path = Path(sys.executable)
    """Interpreter of an environment with serve/container/requirements.txt alone."""
    quick: bool = False
    """Little of everything: shows that it runs, not how fast."""
    json: Path | None = None
    """Write the figures to this file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What all rows are given."""

    model: Path
    """The unpacked tarball."""
    photo: Path
    num_photos: int
    slim_python: Path

    def environment(self, *more: Path) -> dict[str, str]:
        """Of a process that finds the tarball's code before ours."""
        path = ":".join(map(str, (self.model, self.model / "code", *more)))
        return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""}


@contextmanager
def process_of(command: list[str], work: Work, *more: Path) -> Iterator["subprocess.Popen[str]"]:
    """A row's process meanwhile; at the end nothing of it is left."""
    from benchmarks.parts.serve_run import end

    with (work.model.parent / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=work.model.parent,
            env=work.environment(*more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield process
    finally:
        end(process)  # type: ignore[arg-type]


def run_server(command: list[str], port: int, path: str, work: Work, *more: Path) -> dict[str, float]:
    """The figures of one start of a server that takes photos at a path.

    Raises:
        RunError: it does not answer.
    """
    from benchmarks.parts.usage import resident_mb

    begun = time.monotonic()
    with process_of(command, work, *more) as process:
        while ask(port, "GET", "/ping") != 200:
            if process.poll() is not None or time.monotonic() - begun > START_S:
                raise RunError(f"it did not start: {(work.model.parent / 'log').read_text()[-500:]}")
            time.sleep(0.05)
        ready = time.monotonic()
        body = work.photo.read_bytes()
        times = []
        for number in range(1 + work.num_photos):
            started = time.perf_counter()
            if (status := ask(port, "POST", path, body)) != 200:
                raise RunError(f"it answers {status}")
            times.append(time.perf_counter() - started)
            if number == 0:
                first = time.monotonic()
        return {
            "start_s": ready - begun,
            "first_s": first - begun,
            "warm_ms": 1000 * median(times[-work.num_photos :]),
            "rss_mb": resident_mb(process.pid),
        }


def ask(port: int, method: str, path: str, body: bytes | None = None) -> int:
    """The status; 0 if nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


def run_ray_image(work: Work) -> dict[str, float]:
    """The figures of one start as AWS's image does it."""
    from bintally.ports import free_port

    port = free_port()
    command = [sys.executable, "-c", RAY_IMAGE, str(work.model), str(port)]
    return run_server(command, port, "/", work, ROOT)


def run_container(work: Work) -> dict[str, float]:
    """The figures of one start of our image's entry point."""
    from bintally.ports import free_port

    port = free_port()
    command = [str(work.slim_python), "-m", "serve.container", "--model-dir", str(work.model), "--port", str(port)]
    return run_server(command, port, "/invocations", work)


def run_in_process(work: Work) -> dict[str, float]:
    """The figures of the four functions by themselves."""
    from benchmarks.parts.usage import resident_mb

    begun = time.monotonic()
    command = [str(work.slim_python), "-c", IN_PROCESS, str(work.model), str(work.photo), str(work.num_photos)]
    with process_of(command, work) as process:
        assert process.stdout is not None
        times = []
        for word in ("ready", "first"):
            if process.stdout.readline().strip() != word:
                raise RunError(f"it did not start: {(work.model.parent / 'log').read_text()[-500:]}")
            times.append(time.monotonic() - begun)
        warm_ms = 1000 * median(json.loads(process.stdout.readline()))
        return {"start_s": times[0], "first_s": times[1], "warm_ms": warm_ms, "rss_mb": resident_mb(process.pid)}


ROWS: Final = {"ray_image": run_ray_image, "container": run_container, "in_process": run_in_process}


def packages_mb(name: str, slim_python: Path) -> float:
    """Size of the packages of a row."""
    wanted = (ROOT / "serve/container/requirements.txt").read_text().split()
    wanted += ["ray[serve]"] if name == "ray_image" else []
    python = sys.executable if name == "ray_image" else str(slim_python)
    done = subprocess.run(
        [python, str(ROOT / "benchmarks/parts/package_size.py"), *wanted], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def measure_all(args: SageMakerArgs, folder: Path) -> dict[str, dict[str, Any]]:
    """All rows, which take turns."""
    from benchmarks.parts.served_model import make_checkpoint, make_photo
    from data.progress import say

    photo = make_photo(None)
    (folder / "photo.jpg").write_bytes(photo)
    make_checkpoint(folder / "checkpoint", photo, with_graphs=True)
    # By the command: benchmarks/serve.py hides the package from whatever runs in this folder.
    export = [sys.executable, str(ROOT / "serve/export.py"), "--checkpoint", str(folder / "checkpoint")]
    subprocess.run([*export, "--out", str(folder / "model.tar.gz")], check=True)
    tarball = folder / "model.tar.gz"
    with tarfile.open(tarball) as tar:
        tar.extractall(folder / "model", filter="data")
    work = Work(
        model=folder / "model",
        photo=folder / "photo.jpg",
        num_photos=args.photos or (5 if args.quick else 100),
        slim_python=args.slim_python.absolute(),
    )
    starts: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    for number in range(args.rounds or (1 if args.quick else 3)):
        for name, run in ROWS.items():
            say(f"round {number + 1}: {name}")
            starts[name].append(run(work))
    rows = {}
    for name, found in starts.items():
        sizes = {"packages_mb": packages_mb(name, work.slim_python), "tarball_mb": tarball.stat().st_size / 1e6}
        figures = sizes | {key: median(one[key] for one in found) for key in found[0]}
        rows[name] = {key: round(value, 1) for key, value in figures.items()}
    return rows


def format_rows(rows: dict[str, dict[str, Any]]) -> str:
    """The table of docs/sagemaker.md."""
    columns = list(next(iter(rows.values())))
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(f"{figures[key]:g}" for key in columns)] for name, figures in rows.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Parse the command line, measure, print."""
    import tyro

    with readable_errors():
        args = tyro.cli(partial(SageMakerArgs), description=__doc__)
        from benchmarks.parts.report import describe_machine

        machine = describe_machine()
        with tempfile.TemporaryDirectory(prefix="bintally-bench-") as folder:
            rows = measure_all(args, Path(folder))
        print(format_rows(rows))
        if args.json:
            values = {"rows": rows, "machine": machine, "method": METHOD}
            args.json.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
