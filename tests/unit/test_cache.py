"""The cache of fetched bins: what is put comes back, what is damaged never does, and it never fails its user."""

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bintally.errors import ConfigError
from data.cache import LAYOUT, Cache, CacheConfig, open_cache
from data.shard_folder import ShardFile, choose_evictions, locked
from data.shard_index import newest_index
from data.shards import CachedBin

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "s3://bins us-east-1"
PLENTY = 1 << 30


def cache_in(folder: Path, *, source: str = SOURCE, limit: int = PLENTY, keep_s: float = 0, min_free: int = 0) -> Cache:
    """A cache as a process that starts now would have it."""
    config = CacheConfig(folder=str(folder), limit_bytes=limit, keep_s=keep_s)
    return Cache(config=config, source=source, min_free_bytes=min_free)


def bins_of(*numbers: int, num_bytes: int = 5000) -> dict[str, CachedBin]:
    """Bins whose bytes follow from their id."""
    bins: dict[str, CachedBin] = {}
    for number in numbers:
        photo = random.Random(number).randbytes(num_bytes)  # noqa: S311  # test data
        bins[f"{number:05d}"] = (b'{"bin": %d}' % number, photo)
    return bins


def shards_in(folder: Path) -> list[Path]:
    return sorted((folder / LAYOUT / "shards").glob("*.shard"), key=lambda path: path.stat().st_mtime)


def bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:  # evicted while we look
            continue
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def set_age(path: Path, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(path, (then, then))


# What is put comes back


def test_bins_come_back_byte_for_byte_in_another_process(tmp_path: Path) -> None:
    bins = bins_of(*range(50)) | {"1": (b"", b""), "00051": (b"{}", None)}
    cache_in(tmp_path).put_many(bins)
    assert cache_in(tmp_path).get_many([*bins, "99999"]) == bins


def test_an_empty_cache_has_nothing_and_writes_nothing(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "new")
    cache.tidy()
    assert cache.get_many(["00001"]) == {}
    cache.put_many({})
    assert not (tmp_path / "new").exists()


def test_buckets_never_mix(tmp_path: Path) -> None:
    ours, theirs = cache_in(tmp_path), cache_in(tmp_path, source="s3://bins eu-west-1")
    ours.put_many(bins_of(1))
    assert theirs.get_many(["00001"]) == {}
    theirs.put_many({"00001": (b"other", b"photo")})
    assert ours.get_many(["00001"]) == bins_of(1)
    assert theirs.get_many(["00001"]) == {"00001": (b"other", b"photo")}


def test_what_is_cached_is_not_stored_twice(tmp_path: Path) -> None:
    cache_in(tmp_path).put_many(bins_of(1, 2))
    cache_in(tmp_path).put_many(bins_of(1, 2))
    assert len(shards_in(tmp_path)) == 1
    before = bytes_in(tmp_path)
    cache_in(tmp_path).put_many(bins_of(2, 3))
    assert bytes_in(tmp_path) - before < 2 * 5000


def test_a_photo_completes_a_bare_record_and_never_the_other_way(tmp_path: Path) -> None:
    whole = bins_of(1)
    bare: dict[str, CachedBin] = {"00001": (whole["00001"][0], None)}
    cache = cache_in(tmp_path)
    for put, expected in ((bare, bare), (whole, whole), (bare, whole)):
        cache.put_many(put)
        assert cache.get_many(["00001"]) == expected


def test_one_cache_per_process_and_bucket(tmp_path: Path) -> None:
    config = CacheConfig(folder=str(tmp_path), limit_bytes=1000)
    assert open_cache(config, "a") is open_cache(config, "a")
    assert open_cache(config, "a") is not open_cache(config, "b")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"folder": "here", "limit_bytes": 1}, "cache must"),
        ({"folder": "/cache", "limit_bytes": 0}, "cache_gb must"),
        ({"folder": "/cache", "limit_bytes": 1, "keep_s": -1}, "keep_s of the cache"),
    ],
)
def test_a_wrong_config_names_its_field(flags: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        CacheConfig(**flags)  # type: ignore[arg-type]  # wrong on purpose


# What is damaged never does


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_a_damaged_shard_is_a_miss_and_a_put_heals_it(tmp_path: Path, damage: str) -> None:
    cache = cache_in(tmp_path)
    bins = bins_of(1, 2, 3)
    cache.put_many(bins)
    [shard] = shards_in(tmp_path)
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[7000] ^= 1  # lies in the photo of the second
        shard.write_bytes(content)
    elif damage == "truncate":
        shard.write_bytes(content[:7000])
    elif damage == "empty":
        shard.write_bytes(b"")
    else:
        shard.unlink()
    found = cache.get_many(list(bins))
    assert found == {bin_id: bins[bin_id] for bin_id in found}
    assert "00002" not in found
    cache.put_many(bins)
    assert cache.get_many(list(bins)) == bins


def test_any_flipped_byte_gives_the_right_bytes_or_none(tmp_path: Path) -> None:
    bins = bins_of(*range(5), num_bytes=200)
    rng = random.Random(0)  # noqa: S311  # no secret
    for _ in range(60):
        cache = cache_in(tmp_path)
        cache.put_many(bins)
        path = rng.choice([*shards_in(tmp_path), newest_index(cache.folder)])
        assert path is not None
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        found = cache.get_many(list(bins))
        assert found.items() <= bins.items()
        cache.put_many(bins_of(*range(6), num_bytes=200))


@pytest.mark.parametrize("garbage", [b"", b"garbage" * 1000], ids=["empty", "garbage"])
def test_a_lost_index_is_made_again_from_the_shards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    bins = bins_of(*range(20))
    cache_in(tmp_path).put_many(bins)
    cache_in(tmp_path, source="other").put_many(bins_of(7))
    index = newest_index(tmp_path / LAYOUT)
    assert index is not None
    index.write_bytes(garbage)
    cache = cache_in(tmp_path)
    assert cache.get_many(list(bins)) == {}
    cache.get_many(list(bins))
    assert len(caplog.records) == 1
    cache.put_many(bins_of(20))
    assert cache.get_many([*bins, "00020"]) == bins | bins_of(20)
    assert cache_in(tmp_path, source="other").get_many(["00007"]) == bins_of(7)
    assert len(shards_in(tmp_path)) == 3
    assert not index.exists()


def test_an_index_with_wrong_places_gives_nothing_wrong(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put_many(bins_of(1, 2))
    index = newest_index(cache.folder)
    assert index is not None
    for change in ("start = start + 1", "record_bytes = 1 << 60", "start = 'x'", "start = NULL", "shard = NULL"):
        with closing(sqlite3.connect(index)) as connection, connection:
            connection.execute(f"UPDATE entries SET {change}")  # noqa: S608  # the changes stand above
        assert cache.get_many(["00001", "00002"]).items() <= bins_of(1, 2).items()
        cache.put_many(bins_of(1, 2))
        assert cache.get_many(["00001", "00002"]) == bins_of(1, 2)


# How much is kept


def test_the_least_recently_used_shards_go_first(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, limit=400_000)
    for age_s, number in ((300, 1), (200, 2), (100, 3)):
        cache.put_many(bins_of(number, num_bytes=80_000))
        set_age(shards_in(tmp_path)[-1], age_s)
    assert cache.get_many(["00001"])  # makes it the latest
    cache.put_many(bins_of(4, num_bytes=80_000))
    assert set(cache.get_many([f"{number:05d}" for number in range(1, 5)])) == {"00001", "00003", "00004"}
    assert bytes_in(tmp_path) <= 400_000


def test_what_is_larger_than_the_limit_is_not_kept_and_evicts_nothing(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, limit=200_000)
    cache.put_many(bins_of(1))
    cache.put_many(bins_of(2, num_bytes=200_000))
    assert set(cache.get_many(["00001", "00002"])) == {"00001"}


def test_shards_in_use_stay_if_asked_for(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, limit=200_000, keep_s=60)
    cache.put_many(bins_of(1, num_bytes=70_000))
    cache.put_many(bins_of(2, num_bytes=70_000))
    assert set(cache.get_many(["00001", "00002"])) == {"00001"}
    set_age(shards_in(tmp_path)[0], 61)
    cache.put_many(bins_of(2, num_bytes=70_000))
    assert set(cache.get_many(["00001", "00002"])) == {"00002"}


def test_a_lowered_limit_holds_from_the_start(tmp_path: Path) -> None:
    for number in range(10):
        cache_in(tmp_path).put_many(bins_of(number, num_bytes=50_000))
    open_cache(CacheConfig(folder=str(tmp_path), limit_bytes=300_000, keep_s=1000), SOURCE)
    assert 0 < len(shards_in(tmp_path)) < 5
    assert bytes_in(tmp_path) <= 300_000


def test_evictions_are_as_few_as_possible_and_bound_the_number_of_files() -> None:
    files = {number: ShardFile(num_bytes=10, used_s=-number) for number in range(10)}
    assert choose_evictions(files, 100) == []
    assert choose_evictions(files, 85) == [9, 8]
    assert choose_evictions(files, 85, keep_after_s=-8.5) is None
    assert choose_evictions(files, 100, max_shards=9) == [9]
    assert choose_evictions(files, -1) is None


# It never fails its user


def test_a_nearly_full_disk_is_left_alone_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_in(tmp_path, min_free=1 << 60)
    cache.put_many(bins_of(1))
    cache.put_many(bins_of(2))
    assert cache.get_many(["00001", "00002"]) == {}
    assert len(caplog.records) == 1
    assert "disk" in caplog.text


def test_a_folder_that_cannot_be_made_is_no_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = cache_in(tmp_path / "file")
    cache.tidy()
    cache.put_many(bins_of(1))
    assert cache.get_many(["00001"]) == {}
    assert 1 <= len(caplog.records) <= 2


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that other users may enter, as pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_read_only_folder_can_still_be_read(open_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_in(open_dir)
    cache.put_many(bins_of(1))
    set_age(shards_in(open_dir)[0], 1000)
    for path in [open_dir, *open_dir.rglob("*")]:
        path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # permissions mean nothing to root
    try:
        cache.put_many(bins_of(2))
        found = cache.get_many(["00001", "00002"])
    finally:
        os.seteuid(user)
        for path in [open_dir, *open_dir.rglob("*")]:
            path.chmod(0o755)
    assert found == bins_of(1)
    assert len(caplog.records) == 1


def test_a_stuck_writer_is_not_waited_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("data.cache.LOCK_WAIT_S", 0.05)
    cache = cache_in(tmp_path)
    cache.put_many(bins_of(1))
    with locked(cache.folder / "lock", 0):
        assert set(cache.get_many(["00001"])) == {"00001"}  # readers take no lock
        cache.tidy()
        cache.put_many(bins_of(2))
        start_s = time.monotonic()
        cache.put_many(bins_of(3))
        assert time.monotonic() - start_s < 0.05
    assert len(caplog.records) == 1


# Many processes at once

WORKER = """
    import random, sys, time
    from pathlib import Path
    from data.cache import Cache, CacheConfig
    folder, seed, limit, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    cache = Cache(config=CacheConfig(folder=folder, limit_bytes=limit), source="s", min_free_bytes=0)
    rng = random.Random(seed)
    def bin_of(number):
        return b"%d" % number, random.Random(number).randbytes(2000 + number * 7)
    end, hits, rounds = time.monotonic() + seconds, 0, 0
    print("ready", flush=True)
    while time.monotonic() < end or rounds < 6:  # a busy machine does few in that time
        numbers = rng.sample(range(400), 20)
        found = cache.get_many([str(number) for number in numbers])
        for bin_id, got in found.items():
            assert got == bin_of(int(bin_id)), bin_id
        cache.put_many({str(n): bin_of(n) for n in numbers if str(n) not in found})
        hits, rounds = hits + len(found), rounds + 1
    print(hits, flush=True)
"""


def start_worker(folder: Path, seed: int, *, limit: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(folder), str(seed), str(limit), str(seconds)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_concurrent_processes_get_right_bytes_and_stay_within_the_limit(tmp_path: Path) -> None:
    limit = 700_000  # of 1.4 MB, so that eviction never rests
    workers = [start_worker(tmp_path, seed, limit=limit, seconds=1.5) for seed in range(4)]
    peak = 0
    while any(worker.poll() is None for worker in workers):
        peak = max(peak, bytes_in(tmp_path))
        time.sleep(0.002)
    for worker in workers:
        output, errors = worker.communicate()
        assert worker.returncode == 0, errors
        assert not errors  # nothing was logged either
        assert int(output.split()[1]) > 0
    assert limit / 3 < peak <= limit


def test_kill_9_at_any_moment_leaves_a_whole_cache(tmp_path: Path) -> None:
    limit = 700_000
    rng = random.Random(0)  # noqa: S311  # no secret
    for seed in range(3):
        workers = [start_worker(tmp_path, 10 * seed + one, limit=limit, seconds=60) for one in range(3)]
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        for worker in workers:
            time.sleep(rng.uniform(0.05, 0.2))
            worker.send_signal(signal.SIGKILL)
            _, errors = worker.communicate()
            assert not errors
    (tmp_path / LAYOUT / "shards" / "0000000000000001.tmp").write_bytes(b"half a shard")
    with start_worker(tmp_path, 99, limit=limit, seconds=0.3) as worker:
        _, errors = worker.communicate()
    assert worker.returncode == 0
    assert not errors
    assert not list(tmp_path.rglob("*.tmp"))
    assert bytes_in(tmp_path) <= limit


def test_a_shard_that_its_killed_writer_never_indexed_is_taken_in(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put_many(bins_of(1))
    index = newest_index(cache.folder)
    assert index is not None
    before = index.read_bytes()
    cache.put_many(bins_of(2))
    index.write_bytes(before)  # as if the kill had come between the shard and its rows
    assert set(cache.get_many(["00001", "00002"])) == {"00001"}
    cache.put_many(bins_of(3))
    assert cache.get_many(["00001", "00002", "00003"]) == bins_of(1, 2, 3)
