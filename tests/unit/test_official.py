"""The official lists: ids from indices, and what is refused."""

import json
import time
from pathlib import Path

import pytest

from bintally.errors import ConfigError
from data.official import TRAIN_LIST, VAL_LIST, listed_counts, read_lists

REAL_LISTS = Path(__file__).resolve().parents[3] / "shared" / "abid" / "lists"


def write_lists(folder: Path, train: object, val: object) -> str:
    (folder / TRAIN_LIST).write_text(json.dumps(train))
    (folder / VAL_LIST).write_text(json.dumps(val))
    return str(folder)


def test_an_index_is_one_less_than_the_number_of_its_id(tmp_path: Path) -> None:
    lists = read_lists(write_lists(tmp_path, [[0, 3], [99_998, 0], [99_999, 5]], [[522, 2]]))
    assert lists.counts == {"00001": 3, "99999": 0, "100000": 5, "00523": 2}
    assert lists.val_ids == {"00523"}


def test_counts_of_given_ids_keep_their_order_and_leave_the_unlisted_out(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, [[0, 3], [1, 0]], [[2, 5]])
    counts = listed_counts(["00003", "523", "00002", "00004"], folder)
    assert list(counts.items()) == [("00003", 5), ("00002", 0)]


def test_a_folder_is_read_once_per_process(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, [[0, 3]], [])
    first = read_lists(folder)
    (tmp_path / TRAIN_LIST).unlink()
    assert read_lists(folder) is first


def test_a_folder_that_failed_is_read_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_lists(str(tmp_path))
    assert read_lists(write_lists(tmp_path, [[0, 3]], [])).counts == {"00001": 3}


@pytest.mark.parametrize("missing", [TRAIN_LIST, VAL_LIST])
def test_a_missing_list_is_named(missing: str, tmp_path: Path) -> None:
    folder = write_lists(tmp_path, [[0, 3]], [[1, 3]])
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match=f"labels: there is no {missing} in {tmp_path}"):
        read_lists(folder)


def test_a_missing_folder_and_a_folder_in_place_of_a_list_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labels.*absent"):
        read_lists(str(tmp_path / "absent"))
    (tmp_path / TRAIN_LIST).mkdir()
    with pytest.raises(ConfigError, match=f"labels.*{TRAIN_LIST} cannot be read"):
        read_lists(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "[[0, 3],", "index,count\n0,3\n", "[" * 100_000], ids=["empty", "cut", "csv", "["]
)
def test_a_list_that_is_not_json_is_refused(text: str, tmp_path: Path) -> None:
    folder = write_lists(tmp_path, [[0, 3]], [])
    (tmp_path / VAL_LIST).write_text(text)
    with pytest.raises(ConfigError, match=f"labels: .*{VAL_LIST} is not JSON"):
        read_lists(folder)


@pytest.mark.parametrize(
    "row", [3, None, "12", {"index": 1}, [1], [1, 2, 3], [1, None], [1, 2.0], ["1", 2], [-1, 2], [1, -2], [True, 2]]
)
def test_a_row_that_is_no_pair_is_shown_with_its_number(row: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labels: row 1 of .* is .*, not \[index, count\]"):
        read_lists(write_lists(tmp_path, [[0, 3], row], []))


@pytest.mark.parametrize("values", [{}, {"0": 3}, None, 3, "[[0, 3]]"])
def test_a_file_that_is_no_list_is_refused(values: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a list of \[index, count\]"):
        read_lists(write_lists(tmp_path, values, []))


def test_a_bin_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{TRAIN_LIST} has 1 rows for bins that it listed before"):
        read_lists(write_lists(tmp_path, [[0, 3], [0, 4]], []))


def test_a_bin_on_both_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels: 00008 is in"):
        read_lists(write_lists(tmp_path, [[0, 3], [7, 3]], [[7, 3]]))


@pytest.mark.skipif(not REAL_LISTS.is_dir(), reason="the real ABID lists are not on this machine")
def test_the_real_lists_are_read_whole_and_fast() -> None:
    start_s = time.process_time()
    lists = read_lists(str(REAL_LISTS))
    assert time.process_time() - start_s < 5  # 0.5 s; the limit is for slow machines
    assert (len(lists.counts), len(lists.val_ids)) == (324_735 + 36_032, 36_032)
    assert set(lists.counts.values()) == set(range(6))
    assert (min(lists.counts), max(lists.counts, key=int)) == ("00004", "535234")
