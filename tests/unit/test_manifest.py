"""The manifest of a bucket: what it says of each bin, and that nothing is lost or fetched twice when it is stopped."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bintally.errors import AccessDeniedError, ConfigError, SourceNotFoundError, SourceUnreachableError
from bintally.source_config import DataConfig
from data.ids import choose_ids
from data.manifest import BEGUN_WITH, ManifestArgs, write_manifest
from data.manifest_fetch import Progress, label_row
from data.manifest_parts import Parts

ROOT = Path(__file__).parents[2]
Answer = tuple[int, bytes]
StartRecords = Callable[..., tuple["Records", ManifestArgs]]
StartServer = Callable[[Callable[[str], Answer]], str]
RECORD = b'{"BIN_FCSKU_DATA": {"B0": {"asin": "B0", "quantity": 2, "name": "Cup"}}, "EXPECTED_QUANTITY": 2}'


def args_of(folder: Path, out: Path, **options: object) -> ManifestArgs:
    return ManifestArgs(out=out, source=f"file://{folder}", **options)  # type: ignore[arg-type]


def rows_of(path: Path) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in pq.read_table(path).to_pylist()}


class Records:
    """A server of the same record for each id, which counts what is asked for and can hold its answers back."""

    def __init__(self, failing: frozenset[str] = frozenset(), stop_after: int | None = None) -> None:
        self.asked: Counter[str] = Counter()
        self.failing = failing
        self.stop_after = stop_after
        self.go_on = threading.Event()

    def __call__(self, path: str) -> Answer:
        bin_id = Path(path).stem
        self.asked[bin_id] += 1
        if self.stop_after is not None and self.asked.total() > self.stop_after:
            self.go_on.wait(60)
        return (400, b"<Error/>") if bin_id in self.failing else (200, RECORD)


# What it says


def test_a_row_per_bin_with_what_its_record_says(bucket_dir: Callable[..., Path], tmp_path: Path) -> None:
    items = {
        "X1": {"asin": "B01", "quantity": 2, "name": "Cup", "normalizedName": "Cup, blue"},
        "X2": {"quantity": 1, "name": None},
    }
    folder = bucket_dir(
        {"00001": 0, "00002": 3, "00003": 1, "00004": 1, "7": 2},
        broken={
            "metadata/00002.json": json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": 3}).encode(),
            "metadata/00003.json": b"<html>",
        },
    )
    (folder / "metadata/00004.json").unlink()
    write_manifest(args_of(folder, tmp_path / "m.parquet"))
    rows = rows_of(tmp_path / "m.parquet")
    assert list(rows) == ["00001", "00002", "00003", "00004"]
    assert (rows["00001"]["count"], rows["00001"]["num_products"], rows["00001"]["asins"]) == (0, 0, [])
    assert rows["00002"] == {
        "id": "00002",
        "count": 3,
        "num_products": 2,
        "asins": ["B01", "X2"],
        "quantities": [2, 1],
        "names": ["Cup, blue", None],
        "reason": None,
        "detail": None,
        "record_bytes": (folder / "metadata/00002.json").stat().st_size,
    }
    assert (rows["00003"]["reason"], rows["00003"]["count"], rows["00003"]["record_bytes"]) == (
        "label_not_json",
        None,
        6,
    )
    assert (rows["00004"]["reason"], rows["00004"]["record_bytes"]) == ("missing_label", None)
    assert {path.name for path in tmp_path.iterdir()} == {"bucket", "m.parquet"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 2}', "quantity_mismatch"),
        (b"{}", "no_quantity"),
        (b'{"BIN_FCSKU_DATA": {"B": {"quantity": 3000000000}}, "EXPECTED_QUANTITY": 3000000000}', "bad_quantity"),
        (b'{"BIN_FCSKU_DATA": {"B\\ud800": {}}, "EXPECTED_QUANTITY": 2}', "bad_record"),
    ],
)
def test_a_bad_record_has_a_reason_that_can_be_stored(tmp_path: Path, record: bytes, reason: str) -> None:
    row = label_row("00001", record)
    assert row["reason"] == reason
    with Parts.open(tmp_path / "m.parquet", {}) as parts:
        parts.add([row])
        assert parts.merge(["00001"], {}) == {reason: 1}
    assert rows_of(tmp_path / "m.parquet")["00001"]["reason"] == reason


def test_half_a_surrogate_in_a_name_is_replaced(tmp_path: Path) -> None:
    items = '{"B": {"quantity": 1, "name": "caf\\ud800"}}'
    row = label_row("00001", f'{{"BIN_FCSKU_DATA": {items}, "EXPECTED_QUANTITY": 1}}'.encode())
    with Parts.open(tmp_path / "m.parquet", {}) as parts:
        parts.add([row])
        parts.merge(["00001"], {})
    assert rows_of(tmp_path / "m.parquet")["00001"]["names"] == ["caf?"]


def test_it_serves_as_a_list_of_ids(bucket_dir: Callable[..., Path], tmp_path: Path) -> None:
    folder = bucket_dir({"00001": 0, "00002": 3, "7": 2})
    write_manifest(args_of(folder, tmp_path / "m.parquet", unpadded=True))
    ids = f"file:{tmp_path / 'm.parquet'}"
    assert choose_ids(DataConfig(source=f"file://{folder}", ids=ids, unpadded=True)) == ["00001", "00002", "7"]


def test_many_parts_and_blocks_merge_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.manifest_parts.MERGE_ROWS", 7)
    ids = [f"{number:05d}" for number in range(100)]
    with Parts.open(tmp_path / "m.parquet", {}) as parts:
        for start in range(10):
            parts.add([label_row(bin_id, RECORD) for bin_id in ids[start::10] if bin_id != "00050"])
        parts.add([label_row("00100", RECORD)])  # of a bin that the bucket has lost since
        assert parts.merge(ids, {"00050": "no answer"}) == {"fetch_failed": 1}
    table = pq.read_table(tmp_path / "m.parquet")
    assert table["id"].to_pylist() == ids
    assert table["count"].null_count == 1


# Going on


@pytest.fixture
def records(s3_server: StartServer) -> Iterator[StartRecords]:
    started: list[Records] = []

    def start(out: Path, num_ids: int, failing: frozenset[str] = frozenset(), **options: object):  # type: ignore[no-untyped-def]  # noqa: ANN202
        answers = Records(failing)
        started.append(answers)
        url = s3_server(answers)
        source = {"source": "s3://bins", "endpoint_url": url, "ids": f"range:1-{num_ids}"}
        return answers, ManifestArgs(out=out, **(source | options))  # type: ignore[arg-type]

    yield start
    for answers in started:
        answers.go_on.set()


@contextmanager
def running(args: ManifestArgs) -> Iterator[subprocess.Popen[str]]:
    """The command itself, in a process of its own."""
    flags = ["--source", args.source, "--endpoint-url", str(args.endpoint_url), "--ids", args.ids, "--part-rows", "20"]
    command = [sys.executable, str(ROOT / "data/manifest.py"), "--out", str(args.out), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def stored_ids(folder: Path) -> set[str]:
    return {bin_id for path in folder.glob("*.parquet") for bin_id in rows_of(path)}


def test_after_a_kill_nothing_is_fetched_twice(records: StartRecords, tmp_path: Path) -> None:
    answers, args = records(tmp_path / "m.parquet", 300)
    answers.stop_after = 150
    folder = tmp_path / "m.parquet.parts"
    with running(args) as process:
        wait_until(lambda: len(stored_ids(folder)) >= 140)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not args.out.exists()
    kept = stored_ids(folder)
    (folder / "000099.parquet.tmp").write_bytes(b"half a part")  # a kill in the middle of a part leaves such a file
    answers.go_on.set()
    answers.stop_after = None
    write_manifest(args)
    assert all(answers.asked[bin_id] == 1 for bin_id in kept)
    assert answers.asked.total() <= 300 + 64 + 20  # what was under way, and rows not yet in a part
    assert list(rows_of(args.out)) == [f"{number:05d}" for number in range(1, 301)]
    assert all(row["count"] == 2 for row in rows_of(args.out).values())
    assert not folder.exists()


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_keeps_all_that_came_and_says_how_to_go_on(
    records: StartRecords, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    answers, args = records(tmp_path / "m.parquet", 300)
    answers.stop_after = 150
    with running(args) as process:
        wait_until(lambda: answers.asked.total() >= 150 + 64)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == f"{word}\n"
    assert f"to go on: python {ROOT / 'data/manifest.py'} --out {args.out}" in out
    assert len(stored_ids(tmp_path / "m.parquet.parts")) == 150


def test_what_could_not_be_fetched_is_tried_again(records: StartRecords, tmp_path: Path) -> None:
    answers, args = records(tmp_path / "m.parquet", 200, frozenset({"00007"}))
    write_manifest(args)
    assert rows_of(args.out)["00007"]["reason"] == "fetch_failed"
    assert "400" in str(rows_of(args.out)["00007"]["detail"])
    answers.failing = frozenset()
    write_manifest(args)
    assert rows_of(args.out)["00007"]["count"] == 2
    assert answers.asked.pop("00007") == 2
    assert set(answers.asked.values()) == {1}
    assert not (tmp_path / "m.parquet.parts").exists()


def test_too_many_failures_leave_no_manifest(records: StartRecords, tmp_path: Path) -> None:
    answers, args = records(tmp_path / "m.parquet", 100, frozenset({"00007", "00008"}))
    with pytest.raises(SourceUnreachableError, match=r"2 records could not be fetched; the first: .*400"):
        write_manifest(args)
    assert not args.out.exists()
    answers.failing = frozenset()
    write_manifest(args)
    assert len(rows_of(args.out)) == 100
    assert answers.asked.total() == 102


def test_a_source_that_is_gone_is_not_asked_for_everything(records: StartRecords, tmp_path: Path) -> None:
    answers, args = records(tmp_path / "m.parquet", 2000, frozenset(f"{number:05d}" for number in range(2001)))
    with pytest.raises(SourceUnreachableError):
        write_manifest(args)
    assert answers.asked.total() < 400
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_may_not_be_read_ends_it(s3_server: StartServer, tmp_path: Path) -> None:
    url = s3_server(lambda _: (403, b"<Error><Code>AccessDenied</Code></Error>"))
    args = ManifestArgs(out=tmp_path / "m.parquet", source="s3://bins", endpoint_url=url, ids="range:1-100")
    with pytest.raises(AccessDeniedError):
        write_manifest(args)
    assert list(tmp_path.iterdir()) == []


# What is refused


def test_a_manifest_is_not_overwritten(bucket_dir: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already"):
        write_manifest(args_of(bucket_dir({"00001": 1}), tmp_path / "m.parquet"))
    assert (tmp_path / "m.parquet").read_bytes() == b"precious"
    assert not (tmp_path / "m.parquet.parts").exists()


def test_an_empty_folder_of_parts_does_not_make_it_less_precious(
    bucket_dir: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "m.parquet").write_bytes(b"precious")
    (tmp_path / "m.parquet.parts").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        write_manifest(args_of(bucket_dir({"00001": 1}), tmp_path / "m.parquet"))


def test_a_kill_after_the_last_row_costs_nothing(records: StartRecords, tmp_path: Path) -> None:
    """The target is there, and the parts are, too."""
    answers, args = records(tmp_path / "m.parquet", 50)
    with Parts.open(args.out, {name: getattr(args, name) for name in BEGUN_WITH}) as parts:
        parts.add([label_row(f"{number:05d}", RECORD) for number in range(1, 51)])
    args.out.write_bytes(b"whole, or half of it")
    (tmp_path / "m.parquet.parts.old").mkdir()  # a kill in the middle of deleting
    write_manifest(args)
    assert len(rows_of(args.out)) == 50
    assert answers.asked.total() == 0
    assert list(tmp_path.iterdir()) == [args.out]


@pytest.mark.parametrize("change", [{"source": "file:///elsewhere"}, {"ids": "range:1-9"}, {"unpadded": True}])
def test_parts_of_other_bins_are_refused(
    bucket_dir: Callable[..., Path], tmp_path: Path, change: dict[str, object]
) -> None:
    folder = bucket_dir({"00001": 1})
    begun = {"source": f"file://{folder}", "endpoint_url": None, "ids": "all", "unpadded": False, "max_images": None}
    with Parts.open(tmp_path / "m.parquet", begun | change) as parts:
        parts.add([label_row("00001", RECORD)])
    with pytest.raises(ConfigError, match=rf"m.parquet.parts was begun with {next(iter(change))} "):
        write_manifest(args_of(folder, tmp_path / "m.parquet"))
    assert len(stored_ids(tmp_path / "m.parquet.parts")) == 1


def test_a_typo_in_the_source_blocks_nothing(bucket_dir: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        write_manifest(args_of(tmp_path / "typo", tmp_path / "m.parquet"))
    assert list(tmp_path.iterdir()) == []
    write_manifest(args_of(bucket_dir({"00001": 1}), tmp_path / "m.parquet"))
    assert list(rows_of(tmp_path / "m.parquet")) == ["00001"]


def test_two_commands_do_not_write_one_manifest(bucket_dir: Callable[..., Path], tmp_path: Path) -> None:
    folder = bucket_dir({"00001": 1})
    (tmp_path / "m.parquet.parts").mkdir()
    with (tmp_path / "m.parquet.parts/lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is being written by another command"):
            write_manifest(args_of(folder, tmp_path / "m.parquet"))
    write_manifest(args_of(folder, tmp_path / "m.parquet"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(bucket_dir: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="out cannot be written"):
        write_manifest(args_of(bucket_dir({"00001": 1}), tmp_path / "locked/m.parquet"))


def test_a_file_is_no_folder_for_it(bucket_dir: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="out cannot be written"):
        write_manifest(args_of(bucket_dir({"00001": 1}), tmp_path / "file/m.parquet"))


# Progress


def test_progress_tells_rate_and_time_left() -> None:
    now_s = iter([110.0])
    progress = Progress(num_ids=1000, num_before=500, now_s=lambda: next(now_s), start_s=100.0)
    assert progress.describe(190, 10) == "  690/1,500 records, 20/s, 0:00:40 left, 10 failed"


def test_progress_before_anything_came() -> None:
    progress = Progress(num_ids=1000, num_before=0, now_s=lambda: 110.0, start_s=100.0)
    assert progress.describe(0, 0) == "  0/1,000 records, 0/s, nothing came yet"
