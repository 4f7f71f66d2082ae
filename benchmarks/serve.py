"""This project's server beside a bare loop and beside other servers: answers per second, latency, CPU, memory.

python benchmarks/serve.py                    # some fifteen minutes on two cores
python benchmarks/serve.py --quick
python benchmarks/serve.py --abid ../shared/abid --extra extra --json serve.json

LitServe and BentoML are no dependencies of this project. benchmarks/serve_extra.txt installs them beside it:
    .venv/bin/uv pip install --target extra --no-deps --python .venv/bin/python -r benchmarks/serve_extra.txt
"""

import json
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bintally.cli import readable_errors
from bintally.errors import ConfigError

METHOD: Final = (
    "One JPEG of 520x640 and 58 kB by POST, decoded, resized to 224 px and counted by a resnet18 of random weights with"
    " 6 classes, in PyTorch (eager, one thread) or, in rows with int8, in 8 bits by ONNX Runtime; every row decodes and"
    " counts by the same two functions. Each server has one worker or replica, batches up to 8 where its docs tell how,"
    " and all its processes on one core; benchmarks/load.py asks from another, with keep-alive, each client again as"
    " soon as it is answered, after a warm-up of an answer per client. Rounds of all rows take turns, servers start"
    " anew in each; the best of each figure over the rounds counts. cpu_ms: user and system time of all processes of"
    " the server per answer 2xx, idle work included. rss_mb: memory of the same, shared pages counted once (Pss), after"
    " the last measurement, the most of the rounds. start_s: from the command to the first answer. others_cores: cores"
    " busy with anything but server and load; much above 0.2, the figures are not to be trusted. loop: decode and count"
    " in one thread without a server, batches of 1 beside c1 and of 8 beside the others: the limit. bintally: Ray Serve"
    " behind our HAProxy; _local: the engine of one process; _ray_proxy and _ray_haproxy: Ray Serve behind Ray's own"
    " ingress. Ours are started with --max-in-flight 256."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeArgs:
    """What to measure."""

    rows: tuple[str, ...] | None = None
    """Which rows. Default: all, or a few with --quick."""
    concurrency: tuple[int, ...] | None = None
    """Clients at a time. Default: 1 8 32 128, or 1 8 with --quick."""
    seconds: float | None = None
    """Of each measurement. Default: 5, or 1 with --quick."""
    rounds: int | None = None
    """Rounds of all rows. Default: 2, or 1 with --quick."""
    abid: Path | None = None
    """Folder of ABID whose photo is sent. Default: a drawn bin."""
    extra: Path | None = None
    """Folder with LitServe and BentoML; without it their rows say that they are missing."""
    one_core: bool = True
    """Each server on one core, the load on another. Needs taskset and two cores."""
    quick: bool = False
    """Few rows, little time: shows that it runs, not how fast."""
    json: Path | None = None
    """Write the figures to this file."""
    logs: Path | None = None
    """Folder for the servers' logs. Default: one that is removed."""

    def __post_init__(self) -> None:
        from benchmarks.parts.serve_rows import ROWS

        if unknown := set(self.rows or ()) - set(ROWS):
            raise ConfigError(f"rows: there is no {', '.join(sorted(unknown))}; choose of {', '.join(ROWS)}")
        if self.concurrency is not None and (not self.concurrency or min(self.concurrency) < 1):
            raise ConfigError(f"concurrency must be 1 or more, not {self.concurrency}")
        for name in ("seconds", "rounds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be above 0, not {value}")
        if self.extra is not None and not self.extra.is_dir():
            raise ConfigError(f"extra must be a folder, not {self.extra}")

    def setting(self) -> dict[str, Any]:
        """What the figures depend on besides the machine."""
        from benchmarks.parts.serve_rows import QUICK_ROWS, ROWS

        return {
            "rows": self.rows or (QUICK_ROWS if self.quick else ROWS),
            "concurrency": self.concurrency or ((1, 8) if self.quick else (1, 8, 32, 128)),
            "seconds": self.seconds or (1.0 if self.quick else 5.0),
            "rounds": self.rounds or (1 if self.quick else 2),
            "photo": "of ABID" if self.abid else "drawn",
            "one_core": self.one_core,
        }


def measure_all(args: ServeArgs, folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of every row, the best of all rounds."""
    from benchmarks.parts.serve_run import Work, run_row
    from benchmarks.parts.serve_table import best_of
    from benchmarks.parts.served_model import make_checkpoint, make_photo
    from data.progress import say

    setting = args.setting()
    cores = sorted(os.sched_getaffinity(0))
    apart = args.one_core and len(cores) > 1
    work = Work(
        folder=folder,
        concurrency=setting["concurrency"],
        seconds=setting["seconds"],
        extra=args.extra,
        server_core=cores[0] if apart else None,
        load_core=cores[1] if apart else None,
    )
    photo = make_photo(args.abid)
    work.photo.write_bytes(photo)
    make_checkpoint(work.checkpoint, photo, with_graphs=any("int8" in name for name in setting["rows"]))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in setting["rows"]}
    for number in range(setting["rounds"]):
        for name, results in rounds.items():
            say(f"round {number + 1} of {setting['rounds']}: {name}")
            results.append(run_row(name, work))
    return {name: best_of(results) for name, results in rounds.items()}


def main() -> None:
    """Parse the command line, measure, print."""
    import tyro

    with readable_errors():
        args = tyro.cli(partial(ServeArgs), description=__doc__)
        from benchmarks.parts.report import describe_machine
        from benchmarks.parts.serve_table import format_aims, format_rows, judge_aims

        machine = describe_machine()
        with tempfile.TemporaryDirectory(prefix="bintally-bench-") as temporary:
            folder = (args.logs or Path(temporary)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            rows = measure_all(args, folder)
        setting = args.setting()
        aims = judge_aims(rows, setting["concurrency"])
        print(format_rows(rows, setting["concurrency"]), format_aims(aims), sep="\n\n")
        if args.json:
            values = {"rows": rows, "aims": aims, "setting": setting, "machine": machine, "method": METHOD}
            args.json.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
