"""Ask a BinTally server.

    python serve/client.py count photo.jpg other.jpg
    python serve/client.py verify photo.jpg --expected-quantity 3
    python serve/client.py audit records.csv --out queue.csv

The variables BINTALLY_URL and BINTALLY_TOKEN say where the server is and what opens it.
"""

import csv
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, TextIO

import tyro

from bintally.cli import readable_errors
from bintally.errors import ConfigError
from serve.audit_schema import AuditBin, AuditProgress, AuditSummary
from serve.client import Client, ServerRefusal
from serve.schema import CountAnswer

QUEUE: Final = (
    *("rank", "key", "bin_id", "expected_quantity", "count", "low", "high", "expected_value", "verdict", "p_match"),
    *("reason", "flags", "problem", "detail"),
)
PLAIN_PROGRESS_S: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerArgs:
    """Where the server is."""

    url: str = field(default_factory=lambda: os.environ.get("BINTALLY_URL", "http://127.0.0.1:8000"))
    """Of the server. Default: BINTALLY_URL, or a server on this machine."""
    token_file: Path | None = None
    """File with a bearer token. Default: the token in BINTALLY_TOKEN, if any."""
    model: str | None = None
    """Name of another model than the first."""
    timeout_s: float = 30.0
    """Silence after which a request has failed."""

    def connect(self) -> Client:
        """A client.

        Raises:
            ConfigError: the URL or the token is none, or the token cannot be read.
        """
        token = os.environ.get("BINTALLY_TOKEN")
        if self.token_file is not None:
            token = _read(self.token_file).decode(errors="replace").strip()
        return Client(self.url, token, timeout_s=self.timeout_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """Count the items in photos; a line for each."""

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")]
    """JPEG or PNG files."""
    server: tyro.conf.OmitArgPrefixes[ServerArgs] = field(default_factory=ServerArgs)

    def run(self) -> int:
        """Count; the exit code is 2 if a photo could not be counted."""
        num_failed = 0
        with self.server.connect() as client:
            for path in self.photos:
                photo = _read(path)
                try:
                    print(f"{path}: {_describe(client.count(photo, model=self.server.model))}")
                except ServerRefusal as refusal:
                    num_failed += 1
                    print(f"{path}: {refusal}", file=sys.stderr)
        return 2 if num_failed else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verify:
    """Tell whether a photo agrees with its record."""

    photo: tyro.conf.Positional[Path]
    """A JPEG or PNG file."""
    expected_quantity: int
    """What the record says."""
    bin_id: str | None = None
    """Stands in the server's log."""
    server: tyro.conf.OmitArgPrefixes[ServerArgs] = field(default_factory=ServerArgs)

    def run(self) -> int:
        """Verify."""
        with self.server.connect() as client:
            answer = client.verify(
                _read(self.photo), self.expected_quantity, bin_id=self.bin_id, model=self.server.model
            )
        print(f"{self.photo}: {answer.verdict}. {answer.explanation} It shows {_describe(answer.counted)}.")
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """Audit a table of records against the photos in the server's bucket."""

    records: tyro.conf.Positional[Path]
    """A CSV with expected_quantity and key or bin_id."""
    out: Path | None = None
    """Takes the recount queue as a CSV. Default: the terminal."""
    prefix: str | None = None
    """A folder of the bucket whose photos are held against the records, both ways."""
    server: tyro.conf.OmitArgPrefixes[ServerArgs] = field(default_factory=ServerArgs)

    def run(self) -> int:
        """Audit."""
        table = _read(self.records)
        with self.server.connect() as client, _written_whole(self.out) as file:
            queue = csv.writer(file, lineterminator="\n")
            progress = _Progress()
            for line in client.audit(table, prefix=self.prefix, model=self.server.model):
                if isinstance(line, AuditProgress):
                    progress.show(line)
                elif isinstance(line, AuditBin):
                    queue.writerows([QUEUE, _row_of(line)] if line.rank == 1 else [_row_of(line)])
                else:
                    progress.end(line)
        return 0


def main() -> None:
    """Parse, then ask."""
    with readable_errors():
        count = Annotated[Count, tyro.conf.subcommand("count")]
        verify = Annotated[Verify, tyro.conf.subcommand("verify")]
        audit = Annotated[Audit, tyro.conf.subcommand("audit")]
        sys.exit(tyro.cli(count | verify | audit, description=__doc__).run())


class _Progress:
    """Progress on stderr: one line that changes on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._next_s = 0.0

    def show(self, line: AuditProgress) -> None:
        text = f"{line.num_done:,} of {line.num_records:,} photos"
        if self._is_terminal:
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + PLAIN_PROGRESS_S
            print(text, file=sys.stderr, flush=True)

    def end(self, line: AuditSummary) -> None:
        told = [f"{number:,} {what}" for what, number in (line.verdicts | line.problems).items() if number]
        start = "\r" if self._is_terminal else ""
        print(f"{start}{line.num_records:,} records: {', '.join(told)}; {line.elapsed_s:.1f} s", file=sys.stderr)


@contextmanager
def _written_whole(path: Path | None) -> Iterator[TextIO]:
    """A file to write, which has its name only once it is whole; without a path, standard output."""
    if path is None:
        yield sys.stdout
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def _row_of(line: AuditBin) -> list[str | int | float | None]:
    """A line of the queue, in the order of QUEUE."""
    low, high = (line.range.low, line.range.high) if line.range else (None, None)
    problem, detail = (line.problem.code, line.problem.detail) if line.problem else (None, None)
    return [
        *(line.rank, line.key, line.bin_id, line.expected_quantity, line.count, low, high, line.expected_value),
        *(line.verdict, line.p_match, line.reason, " ".join(line.flags), problem, detail),
    ]


def _describe(answer: CountAnswer) -> str:
    probability = answer.probabilities[str(answer.count)]
    within = f", 90 % range {answer.range.low} to {answer.range.high}" if answer.range else ""
    flags = f"; the photo is {', '.join(answer.photo.flags)}" if answer.photo.flags else ""
    return f"{answer.count} items (probability {probability:.0%}{within}{flags})"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
