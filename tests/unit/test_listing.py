"""Listing in parallel: the same names as one listing from the first page to the last, whatever they are."""

import random
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import obstore
import pytest
from obstore.store import MemoryStore

from benchmarks.parts.faults import Faults
from benchmarks.s3_server import Folder, answer_request
from benchmarks.s3_server import s3_server as serve_folder
from bintally.errors import AccessDeniedError, SourceUnreachableError
from bintally.source_config import DataConfig
from data.bucket import Bucket, open_bucket

Answer = tuple[int, bytes]
StartServer = Callable[[Callable[[str], Answer]], str]

# Padded, six digits, un-padded, and what is no number at all; more than one page each.
MIXED = [
    *(f"{number:05d}" for number in range(0, 100_000, 37)),
    *(str(number) for number in range(100_000, 535_234, 211)),
    *map(str, range(1, 1201)),
    *(f"img-{number}" for number in range(1100)),
    *("~", "A b", "00001x", "0", "9", "99", "99999999", "x.jpg", "01.a"),
]


def in_memory(names: list[str], folder: str = "bin-images") -> Bucket:
    store = MemoryStore()
    for name in names:
        obstore.put(store, f"{folder}/{name}.jpg", b"")
    return Bucket(store, "memory")


@pytest.fixture(scope="module")
def mixed_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "bin-images").mkdir()
    for name in MIXED:
        (folder / f"bin-images/{name}.jpg").touch()
    return folder


def test_mixed_names_come_once_and_sorted_from_memory() -> None:
    assert in_memory(MIXED).list_ids() == sorted(set(MIXED))


def test_mixed_names_come_once_and_sorted_from_a_folder(mixed_dir: Path) -> None:
    assert open_bucket(DataConfig(source=f"file://{mixed_dir}")).list_ids() == sorted(set(MIXED))


def test_mixed_names_come_once_and_sorted_from_a_server(mixed_dir: Path) -> None:
    with serve_folder(mixed_dir) as (url, _):
        assert open_bucket(DataConfig(source="s3://bins", endpoint_url=url)).list_ids() == sorted(set(MIXED))


def test_a_prefix_goes_before_the_ranges(mixed_dir: Path) -> None:
    with serve_folder(mixed_dir.parent) as (url, _):
        bucket = open_bucket(DataConfig(source=f"s3://bins/{mixed_dir.name}", endpoint_url=url))
        assert bucket.list_ids() == sorted(set(MIXED))


def test_a_server_that_misbehaves_gives_the_same_names(mixed_dir: Path) -> None:
    faults = Faults(
        slow_down_rate=0.1, reset_rate=0.05, short_rate=0.05, wrong_length_rate=0.1, stall_rate=0.03, stall_s=2
    )
    with serve_folder(mixed_dir, faults=faults) as (url, _):
        bucket = open_bucket(DataConfig(endpoint_url=url, source="s3://bins"), max_wait_s=0.1, read_timeout_s=1)
        assert bucket.list_ids() == sorted(set(MIXED))


@pytest.mark.parametrize("seed", range(5))
def test_random_names_are_complete(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311  # test data
    names = {"".join(draw.choices("00123456789:;/ax~+-. "[seed:], k=draw.randint(1, 5))) for _ in range(4000)}
    names = {name for name in names if "/" not in name and ".." not in name and name.strip(". ") == name}
    assert in_memory(sorted(names)).list_ids() == sorted(names)


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 2000])
def test_a_page_may_be_just_full(size: int) -> None:
    names = [f"{number:05d}" for number in range(size)]
    assert in_memory(names).list_ids() == names


def test_folders_below_and_other_files_stay_out() -> None:
    bucket = in_memory(["00001", "below/00002", ""])
    for key in ("bin-images/01", "bin-images/02.png", "bin-images-old/00003.jpg", "00004.jpg", "bin-images"):
        obstore.put(bucket.store, key, b"")
    assert bucket.list_ids() == ["00001"]


def test_a_small_bucket_costs_one_request_and_a_large_one_ranges(s3_server: StartServer, mixed_dir: Path) -> None:
    folder = Folder(mixed_dir, 0)
    queries: list[dict[str, list[str]]] = []

    def answer(path: str) -> Answer:
        queries.append(parse_qs(urlsplit(path).query))
        page = answer_request(folder, "bins", "GET", path, None)
        return int(page.status.split()[0]), page.body

    bucket = open_bucket(DataConfig(source="s3://bins", endpoint_url=s3_server(answer)))
    assert bucket.list_ids() == sorted(set(MIXED))
    starts = {query["start-after"][0] for query in queries if "start-after" in query}
    assert {f"bin-images/{number}" for number in (30, 53, 99)} | {"bin-images/:"} <= starts
    assert len(queries) < 130
    folder.keys[:] = folder.keys[:500]
    queries.clear()
    assert len(bucket.list_ids()) == 500
    assert len(queries) == 1


def test_a_bucket_without_order_is_read_from_one_end_to_the_other(s3_server: StartServer) -> None:
    """As S3's directory buckets; ranges of keys would miss most of it."""
    keys = [f"bin-images/{number:05d}.jpg" for number in range(2500)]
    random.Random(0).shuffle(keys)  # noqa: S311  # test data

    def answer(path: str) -> Answer:
        query = parse_qs(urlsplit(path).query)
        assert "start-after" not in query
        at = int(query.get("continuation-token", ["0"])[0])
        more = at < 2000
        token = f"<NextContinuationToken>{at + 1000}</NextContinuationToken>" if more else ""
        contents = "".join(
            f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys[at : at + 1000]
        )
        flag = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        return 200, f"<ListBucketResult>{flag}{token}{contents}</ListBucketResult>".encode()

    assert len(open_bucket(DataConfig(source="s3://bins", endpoint_url=s3_server(answer))).list_ids()) == 2500


def test_a_range_that_is_refused_ends_the_listing(s3_server: StartServer, mixed_dir: Path) -> None:
    folder = Folder(mixed_dir, 0)

    def answer(path: str) -> Answer:
        if "start-after" in path:
            return 403, b"<Error><Code>AccessDenied</Code></Error>"
        return 200, answer_request(folder, "bins", "GET", path, None).body

    with pytest.raises(AccessDeniedError):
        open_bucket(DataConfig(source="s3://bins", endpoint_url=s3_server(answer))).list_ids()


def test_a_page_that_never_comes_whole_is_given_up(s3_server: StartServer) -> None:
    asked: list[str] = []

    def answer(path: str) -> Answer:
        asked.append(path)
        return 200, b"<ListBucketResult><Contents>"

    with pytest.raises(SourceUnreachableError):
        open_bucket(DataConfig(source="s3://bins", endpoint_url=s3_server(answer))).list_ids()
    assert len(asked) == 5


def test_progress_is_told_once_per_page() -> None:
    seen: list[int] = []
    in_memory([f"{number:05d}" for number in range(3500)]).list_ids(on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[0] == 1000
    assert seen[-1] == 3500
