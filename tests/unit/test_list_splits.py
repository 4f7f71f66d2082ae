"""From a config to ids by split: what is listed, how it is told, and which empty split is refused."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from bintally.errors import ConfigError, SourceNotFoundError
from bintally.source_config import DataConfig
from data.ingest import list_splits

WriteLists = Callable[[dict[str, int], dict[str, int]], str]


@pytest.fixture
def source(tmp_path: Path) -> Callable[[Iterable[str]], str]:
    """`source(ids)`: a bucket of photos without content; nothing but their names is read."""

    def make(ids: Iterable[str]) -> str:
        (tmp_path / "bucket" / "bin-images").mkdir(parents=True)
        for bin_id in ids:
            (tmp_path / "bucket" / "bin-images" / f"{bin_id}.jpg").touch()
        return f"file://{tmp_path}/bucket"

    return make


def padded(num_ids: int) -> list[str]:
    return [f"{number:05d}" for number in range(1, num_ids + 1)]


def test_a_small_bucket_has_all_splits_and_they_are_told(
    source: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    splits = list_splits(DataConfig(source=source([*padded(240), "1", "2"])))
    assert {split: len(members) for split, members in splits.items()} == {"train": 128, "val": 64, "test": 48}
    told = capsys.readouterr().out
    assert "240 ids (2 un-padded ones left out)" in told
    assert "split by grouped: train 128, val 64, test 48" in told


def test_ids_that_are_on_no_list_are_told(
    source: Callable[..., str], write_lists: WriteLists, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_lists(dict.fromkeys(padded(100), 1), {"00110": 2})
    splits = list_splits(DataConfig(source=source(padded(120)), labels=labels, split_by="official"))
    assert (len(splits["train"]), len(splits["val"]), splits["test"]) == (64, 36, ["00110"])
    assert "train 64, val 36, test 1, 19 not on the official lists" in capsys.readouterr().out


def test_an_empty_split_is_refused_and_says_what_to_change(source: Callable[..., str]) -> None:
    data = DataConfig(source=source(padded(64)))
    with pytest.raises(ConfigError, match=r"the val split is empty \(train 64, val 0, test 0\).*split_by") as caught:
        list_splits(data)
    assert "max_images" in str(caught.value)
    with pytest.raises(ConfigError, match="the test split is empty"):
        list_splits(data, needed=("test",))


def test_a_bucket_that_no_list_knows_is_refused(source: Callable[..., str], write_lists: WriteLists) -> None:
    data = DataConfig(source=source(padded(10)), labels=write_lists({"00099": 1}, {}))
    with pytest.raises(ConfigError, match=r"the train split is empty .*10 not on the official lists"):
        list_splits(data)


def test_only_a_needed_split_is_asked_for(source: Callable[..., str]) -> None:
    assert list_splits(DataConfig(source=source(padded(64))), needed=("train",))["train"] == padded(64)


def test_wrong_lists_are_told_before_the_bucket_is_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels"):
        list_splits(DataConfig(source=f"file://{tmp_path}/absent", labels=f"{tmp_path}/lists"))
    with pytest.raises(SourceNotFoundError):
        list_splits(DataConfig(source=f"file://{tmp_path}/absent"))
