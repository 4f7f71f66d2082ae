"""The leak report: which images it counts, its files and its table."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bintally.errors import ConfigError, NoUsableRowsError, SourceNotFoundError
from bintally.source_config import DataConfig
from data.leak_page import render_page
from data.leak_report import BY_RUNS, LeakReport, format_report, measure_leaks, read_records, write_report
from data.siblings import Leak

WriteLists = Callable[[dict[str, int], dict[str, int]], str]
ABID = Path(__file__).resolve().parents[3] / "shared" / "abid"


def write_bins(folder: Path, products: dict[str, str | bytes]) -> DataConfig:
    """A bucket of bins with products of one letter each; bytes stand for a record as they are. No photo is read."""
    for name in ("bin-images", "metadata"):
        (folder / "bucket" / name).mkdir(parents=True)
    for bin_id, content in products.items():
        (folder / "bucket" / "bin-images" / f"{bin_id}.jpg").touch()
        items = {letter: {"asin": letter, "quantity": 1} for letter in map(str, content)}
        values = {"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": len(items)}
        record = content if isinstance(content, bytes) else json.dumps(values).encode()
        (folder / "bucket" / "metadata" / f"{bin_id}.json").write_bytes(record)
    return DataConfig(source=f"file://{folder / 'bucket'}")


def neighbours(num_bins: int) -> dict[str, str | bytes]:
    """Bins in pairs of siblings: 00002 and 00003, 00004 and 00005, ..., which cross every edge of a block."""
    return {f"{number:05d}": chr(ord("A") + number // 2 % 26) for number in range(1, num_bins + 1)}


def test_every_split_is_measured_and_whole_runs_leak_nothing(tmp_path: Path) -> None:
    report = measure_leaks(write_bins(tmp_path, neighbours(256)))
    assert list(report.splits) == ["hash", "grouped", BY_RUNS]
    assert (report.num_ids, report.num_images, report.faults) == (256, 256, {})
    grouped = report.splits["grouped"]
    assert grouped.num_train == 128
    assert grouped.val == Leak(num_images=64, num_siblings=2, num_sure=2)  # 00065 and 00128
    assert grouped.test == Leak(num_images=64, num_siblings=1, num_sure=1)  # 00193
    assert report.splits["hash"].test.num_siblings > 20
    runs = report.splits[BY_RUNS]
    assert (runs.val.num_siblings, runs.test.num_siblings) == (0, 0)


def test_bins_above_max_count_and_broken_records_are_not_counted(tmp_path: Path) -> None:
    products = neighbours(64) | {"00065": "ABCDEF", "00066": "A", "00067": b"<html>", "00068": b"{}"}
    report = measure_leaks(write_bins(tmp_path, products))
    assert (report.num_ids, report.num_images) == (68, 65)
    assert report.faults == {"label_not_json": 1, "no_quantity": 1}
    assert report.splits["grouped"].val.num_images == 1


def test_with_labels_the_listed_count_decides_and_official_is_measured(tmp_path: Path, write_lists: WriteLists) -> None:
    data = write_bins(tmp_path, {"00001": "A", "00002": "A", "00003": "ABCDEFG", "00004": b"{}", "00005": "Z"})
    labels = write_lists({"00001": 1, "00003": 5, "00004": 2}, {"00002": 1})
    report = measure_leaks(DataConfig(source=data.source, labels=labels))
    assert list(report.splits) == ["hash", "official", "grouped", BY_RUNS]
    assert report.num_images == 4  # 00005 is on no list; the count of 00003 and 00004 is the list's
    assert report.splits["official"].num_train == 3
    assert report.splits["official"].test == Leak(num_images=1, num_siblings=1, num_sure=1)


def test_unpadded_ids_stay_out(tmp_path: Path) -> None:
    assert measure_leaks(write_bins(tmp_path, {"00001": "A", "1": "A"})).num_ids == 1


def test_a_bucket_without_a_usable_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoUsableRowsError, match="no_quantity"):
        measure_leaks(write_bins(tmp_path, {"00001": b"{}", "00002": b"{}"}))


def test_a_wrong_source_and_wrong_lists_are_told(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="absent"):
        measure_leaks(DataConfig(source=f"file://{tmp_path}/absent"))
    with pytest.raises(ConfigError, match="labels"):
        measure_leaks(DataConfig(source=f"file://{tmp_path}", labels=f"{tmp_path}/absent"))


def test_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_records(write_bins(tmp_path, neighbours(20)), list(neighbours(20)), progress_s=0)
    assert re.search(r"10 of 20 records, [\d,]+/s, 0 s left", capsys.readouterr().out)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> LeakReport:
    return measure_leaks(write_bins(tmp_path_factory.mktemp("leaks"), neighbours(256) | {"00256": b"{}"}))


def test_the_json_holds_every_figure(report: LeakReport, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    values = json.loads((tmp_path / "leaks.json").read_text())
    assert values["faults"] == {"no_quantity": 1}
    assert values["splits"]["grouped"]["val"] == {"num_images": 64, "num_siblings": 2, "num_sure": 2}
    assert values["splits"]["hash"]["num_train"] == report.splits["hash"].num_train


def test_the_table_has_a_line_per_split(report: LeakReport) -> None:
    table = format_report(report)
    assert "255 of 256 ids used, counts 0-5; records without use: 1 no_quantity" in table
    assert re.search(r"^  grouped +128 +2 \(2\) of 64, 3\.1% +1 \(1\) of 63, 1\.6%$", table, flags=re.MULTILINE)


def test_an_empty_split_has_no_share(tmp_path: Path) -> None:
    assert re.search(
        r"grouped +3 +0 \(0\) of 0, - +0", format_report(measure_leaks(write_bins(tmp_path, neighbours(3))))
    )


def test_the_page_stands_alone_and_shows_every_split(report: LeakReport, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    page = (tmp_path / "leaks.html").read_text()
    assert page.startswith("<!doctype html>")
    assert re.search(r"(src|href|url\(|@import)", page) is None
    for name in report.splits:
        assert page.count(f'<th scope="row">{name}</th>') == 2
    assert "width: 3.12%" in page


def test_the_page_escapes_what_it_is_given() -> None:
    values = {
        "source": "file:///<b>",
        "max_count": 5,
        "num_ids": 1,
        "num_images": 1,
        "faults": {"<i>": 1},
        "splits": {},
    }
    page = render_page(values)
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;" in page


@pytest.mark.skipif(not ABID.is_dir(), reason="the real ABID pairs are not on this machine")
def test_the_real_pairs_leak_as_measured() -> None:
    report = measure_leaks(DataConfig(source=f"file://{ABID}/bucket", labels=f"{ABID}/lists"))
    assert (report.num_ids, report.num_images, report.faults) == (799, 500, {})
    found = {name: (one.val, one.test) for name, one in report.splits.items()}
    leak = {
        name: tuple((one.num_images, one.num_siblings, one.num_sure) for one in both) for name, both in found.items()
    }
    assert leak == {
        "hash": ((80, 29, 28), (94, 40, 38)),
        "official": ((83, 1, 1), (51, 27, 25)),
        "grouped": ((87, 2, 2), (77, 0, 0)),
        BY_RUNS: ((85, 0, 0), (78, 0, 0)),
    }
