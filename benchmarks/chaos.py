"""Faults done on purpose to a search and a server on a cluster: what each costs, and whether it is survived.

    python benchmarks/chaos.py                                  # all of them, some twenty minutes on two cores
    python benchmarks/chaos.py --only head worker_node --seed 3
    python benchmarks/chaos.py --quick --json chaos.json --out runs/chaos
    python benchmarks/chaos.py --only spot_notice --json chaos.json --out runs/chaos     # a row more, in the same files

Leaves in the output folder, after each fault anew: report.html, chaos.json, and a folder per fault with the logs of
its commands. Rows that --json has already stay there, but for those of the same faults. Exit code 2 if a fault was not
survived. The disk that fills up is skipped without root, which mounts it.
"""

import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bintally.cli import readable_errors
from bintally.errors import ConfigError, RunError

if TYPE_CHECKING:
    from benchmarks.parts.chaos_row import ChaosSetup, FaultRow

PARTS: Final = Path(__file__).parent / "parts"
METHOD: Final = (
    "Each fault strikes a run of its own on a cluster of a head without CPUs and worker nodes of two, all on one"
    " machine. The seed decides when it comes and what it hits. Search: ASHA over the smoke recipe on drawn bins, two"
    " workers per trial; struck within an epoch, behind a checkpoint. survived: the search ends with the same best"
    " trial, the same trials and epochs and, to one in a million, the same training loss (a mean over all rows of the"
    " epoch), validation loss and number of validation rows per epoch as the same search without the fault, at most one"
    " epoch was reported again, and no process, actor or placement group is left. lost: ids that no worker saw."
    " repeated_epochs: those that were reported again. outage_s: from the fault to the next epoch or checkpoint within"
    " one, the fault's own duration included. Server: two replicas and four clients, which send a request again when"
    " serve/client.py does, after its waits: if it was cut off, not accepted, or told to come again, at most six times"
    " within 16 s. What is in flight in an ingress that ends cannot be answered by anybody, so lost are the requests"
    " that never got a count; how many were sent again is told. outage_s: the longest time without a count, by these"
    " and by one more client that asks every 0.1 s. survived: no request was lost, no outage was above 10 s, all"
    " processes came back, and none is left at the end."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChaosArgs:
    """Which faults."""

    only: tuple[str, ...] = ()
    """Names of faults, such as train_worker head. Default: all."""
    seed: int = 0
    """Decides the moment of each fault and what it hits, and the searches themselves."""
    quick: bool = False
    """Smaller searches, shorter outages: shows that it runs."""
    json: Path | None = None
    """Write the figures to this file, too, beside the rows that it has."""
    out: Path | None = None
    """Output folder. Default: a new one under runs/; of a quick look, one that is removed."""


def choose_faults(names: tuple[str, ...]) -> "dict[str, Callable[[ChaosSetup], FaultRow]]":
    """The faults of these names, or all: the ROWS of every benchmarks/parts/chaos_*.py.

    Raises:
        ConfigError: there is none of such a name.
    """
    rows: dict[str, Callable[[ChaosSetup], FaultRow]] = {}
    for path in sorted(PARTS.glob("chaos_*.py")):
        rows |= getattr(import_module(f"benchmarks.parts.{path.stem}"), "ROWS", {})
    if unknown := [name for name in names if name not in rows]:
        raise ConfigError(f"only: there is no fault {', '.join(unknown)}; choose among {', '.join(rows)}")
    return {name: rows[name] for name in names or rows}


def do_fault(name: str, run: "Callable[[ChaosSetup], FaultRow]", args: ChaosArgs, out: Path) -> dict[str, Any]:
    """The figures of one fault; `failed` with the reason if what it struck did not come to its end, or `skipped`.

    Raises:
        ConfigError: its folder is there already.
    """
    from benchmarks.parts.chaos_row import ChaosSetup, NotHereError
    from data.progress import say

    work_dir = out / name
    if work_dir.exists():
        raise ConfigError(f"out: {work_dir} holds an earlier run of this fault; choose another folder")
    work_dir.mkdir()
    say(f"{name}: logs in {work_dir}")
    began, started = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}", time.monotonic()
    load = round(os.getloadavg()[0], 1)  # others' work makes outages longer
    row: dict[str, Any]
    try:
        row = asdict(run(ChaosSetup(seed=args.seed, work_dir=work_dir, quick=args.quick)))
        say(f"{name}: {'survived' if row['recovered'] else 'NOT SURVIVED'}; {row['told']}")
    except RunError as error:
        row = {"failed": " ".join(str(error).split())}
        say(f"{name}: FAILED: {error}")
    except NotHereError as error:
        row = {"skipped": str(error)}
        say(f"{name}: skipped, {error}")
    except Exception as error:  # noqa: BLE001  # also what a fault of ours raises is a row, or hours of others' are lost
        (work_dir / "traceback.txt").write_text(traceback.format_exc())
        row = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        say(f"{name}: FAILED: {row['failed']}; {work_dir}/traceback.txt says where")
    about = {"seed": args.seed, "quick": args.quick, "load_at_start": load, "began": began}
    return row | about | {"took_s": round(time.monotonic() - started, 1)}


def read_rows(path: Path | None) -> dict[str, dict[str, Any]]:
    """The rows of a file that --json wrote; none if there is no file.

    Raises:
        ConfigError: it is of something else.
    """
    if path is None or not path.exists():
        return {}
    try:
        rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["rows"]
        is_ours = all("quick" in row for row in rows.values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        is_ours = False
    if not is_ours:
        raise ConfigError(f"json: {path} holds no rows of a chaos run to add to; name another file")
    return rows


def do_faults(
    faults: "Mapping[str, Callable[[ChaosSetup], FaultRow]]", args: ChaosArgs, out: Path
) -> dict[str, dict[str, Any]]:
    """The figures of all faults, one after the other, beside those that --json has; written after each.

    Raises:
        ConfigError: --json is of something else.
    """
    from benchmarks.parts.chaos_report import render_page
    from benchmarks.parts.report import describe_machine

    machine = describe_machine()
    del machine["load_at_start"]  # each row has its own
    about = {"machine": machine, "method": METHOD}
    rows = {name: row for name, row in read_rows(args.json).items() if name not in faults}
    for name, run in faults.items():
        rows[name] = do_fault(name, run, args, out)
        figures = json.dumps({"rows": rows, **about}, indent=2) + "\n"
        for path in (out / "chaos.json", *([args.json] if args.json else [])):
            path.write_text(figures)
        (out / "report.html").write_text(render_page(rows, about))
    return rows


@contextmanager
def output_folder(args: ChaosArgs) -> Iterator[Path]:
    """Where everything goes."""
    from data.args import new_run_dir

    if args.quick and args.out is None:
        with tempfile.TemporaryDirectory(prefix="bintally-chaos-") as folder:
            yield Path(folder)
    else:
        yield new_run_dir(args.out, "chaos")


def tell(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table.

    Raises:
        RunError: a fault was not survived.
    """
    from benchmarks.parts.chaos_report import format_rows, not_survived

    print(format_rows(rows))
    if bad := not_survived(rows):
        raise RunError(f"not survived: {', '.join(bad)}")


def main() -> None:
    """Parse the command line, strike, print."""
    import tyro

    with readable_errors():
        args = tyro.cli(partial(ChaosArgs), description=__doc__)
        faults = choose_faults(args.only)
        with output_folder(args) as out:
            rows = do_faults(faults, args, out)
            if not args.quick or args.out:
                print(f"report: {out / 'report.html'}")
        tell({name: rows[name] for name in faults})


if __name__ == "__main__":
    main()
