"""Which bins a config asks for."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bintally.errors import ConfigError, SourceNotFoundError
from bintally.source_config import DataConfig
from data.args import SourceArgs
from data.ids import choose_ids
from data.ingest import list_splits

NOWHERE = "file:///nowhere/at/all"  # what needs no listing does not look


def given(ids: str, **options: bool | int) -> list[str]:
    return choose_ids(DataConfig(source=NOWHERE, ids=ids, **options))  # type: ignore[arg-type]


@pytest.fixture
def mixed(bucket_dir: Callable[..., Path]) -> DataConfig:
    folder = bucket_dir({"00523": 1, "523": 2, "00001": 0, "100000": 3})
    return DataConfig(source=f"file://{folder}")


# all


def test_all_is_the_padded_ids_of_the_bucket(mixed: DataConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_ids(mixed) == ["00001", "00523", "100000"]
    assert "3 ids (1 un-padded ones left out)" in capsys.readouterr().out


def test_unpadded_ids_come_when_asked_for(mixed: DataConfig, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataConfig(source=mixed.source, unpadded=True)
    assert choose_ids(data) == ["00001", "00523", "100000", "523"]
    assert "left out" not in capsys.readouterr().out


def test_a_bucket_without_padded_keys_keeps_its_keys(bucket_dir: Callable[..., Path]) -> None:
    folder = bucket_dir({"b-2": 1, "b-1": 2})
    assert choose_ids(DataConfig(source=f"file://{folder}")) == ["b-1", "b-2"]


def test_all_needs_the_bucket() -> None:
    with pytest.raises(SourceNotFoundError, match="nowhere"):
        given("all")


# range


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ("range:1-3", ["00001", "00002", "00003"]),
        ("range:00007-7", ["00007"]),
        ("range:99999-100001", ["100000", "100001", "99999"]),
    ],
)
def test_a_range_is_padded_sorted_and_not_listed(ids: str, expected: list[str]) -> None:
    assert given(ids) == expected


@pytest.mark.parametrize(("ids", "message"), [("range:9-1", "empty"), ("range:1-99999999999", "more than 10,000,000")])
def test_a_range_that_makes_no_sense(ids: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{ids}.* {message}"):
        given(ids)


def test_a_range_can_be_sampled() -> None:
    few, more = given("range:1-1000", max_images=10), given("range:1-1000", max_images=20)
    assert len(few) == 10
    assert set(few) < set(more)
    assert few == sorted(few)


# list


def test_a_list_is_taken_literally_once_and_sorted() -> None:
    assert given("list:00009, 00001,00009,535234") == ["00001", "00009", "535234"]


def test_unpadded_ids_of_a_list_stay_out_and_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert given("list:00523,523,7") == ["00523"]
    assert "1 ids (2 un-padded ones left out)" in capsys.readouterr().out
    assert given("list:00523,523", unpadded=True) == ["00523", "523"]


def test_a_list_of_unpadded_ids_alone_says_what_to_change() -> None:
    with pytest.raises(ConfigError, match="un-padded ids alone, as '523': --unpadded"):
        given("list:523,524")


@pytest.mark.parametrize("bad", ["../00001", "a/b", "..", "00001\x00", "00\x1b[1m", "a\tb"])
def test_an_id_names_nothing_outside_its_folder(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"no slash, no \.\. and no control"):
        given(f"list:00001,{bad}", unpadded=True)


def test_a_list_of_nothing() -> None:
    with pytest.raises(ConfigError, match="gives no id"):
        given("list: ")


# file


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return f"file:{path}"


@pytest.mark.parametrize(
    "content",
    [
        b"00002\n00001\n",
        b"\xef\xbb\xbf00001\r\n\r\n  00002  \r\n",
        b"# my bins\n00001 # the first\n\n\t# and\n00002\n00001",
    ],
)
def test_a_file_has_a_line_per_id(tmp_path: Path, content: bytes) -> None:
    assert given(write(tmp_path / "ids.txt", content)) == ["00001", "00002"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ids.txt", b"\n# nothing\n", "gives no id"),
        ("ids.txt", b"\xff\xfe0\x00", "cannot be read"),
        ("ids.txt", b"00001\n../x\n", "no slash"),
        ("ids.txt", b"00001\x0b\x1c00002\n", "control character"),
        ("ids.parquet", b"no parquet", "no readable id column"),
    ],
)
def test_a_file_that_gives_no_ids(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        given(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["absent.txt", "absent.parquet", "."])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        given(f"file:{tmp_path / name}")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_manifest_gives_its_id_column(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(
        pa.table({"id": pa.array(["00002", "00001", None], kind), "count": [1, 2, 3]}), tmp_path / "m.parquet"
    )
    assert given(f"file:{tmp_path / 'm.parquet'}") == ["00001", "00002"]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [("id", [1, 2], "int64, not strings"), ("name", ["00001"], "no readable id column")],
)
def test_a_parquet_file_with_other_columns(tmp_path: Path, column: str, values: list[object], message: str) -> None:
    pq.write_table(pa.table({column: values}), tmp_path / "m.parquet")
    with pytest.raises(ConfigError, match=message):
        given(f"file:{tmp_path / 'm.parquet'}")


def test_a_relative_file_is_found_from_the_folder_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "ids.txt", b"00001\n")
    monkeypatch.chdir(tmp_path)
    data = SourceArgs(source=NOWHERE, ids="file:ids.txt").override(DataConfig())
    assert choose_ids(data) == ["00001"]


# On to the splits


def test_the_splits_hold_the_chosen_ids() -> None:
    splits = list_splits(DataConfig(source=NOWHERE, ids="range:1-100", split_by="hash"))
    assert sorted(bin_id for members in splits.values() for bin_id in members) == given("range:1-100")
