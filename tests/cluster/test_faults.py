"""A source that misbehaves and workers that are killed: every good row arrives once, in the same batches."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from ray.exceptions import RayError

from benchmarks.parts.faults import Faults
from benchmarks.parts.usage import family
from benchmarks.s3_server import s3_server as serve_folder
from bintally.errors import TooManyFaultsError
from bintally.source_config import DataConfig
from data.blocks import FetchSpec
from data.drops import DropLedger
from data.order import Sampling
from data.pipeline import BLOCK_IDS, IdTable
from data.session import ray_session, unwrap

pytestmark = [pytest.mark.cluster, pytest.mark.faults]

MakeReader = Callable[..., Any]
RowsOf = Callable[[Any], dict[str, int]]

MB = 1_000_000
NUM_BINS = 300
NUM_EACH = 3  # bins with each permanent fault
IMAGE_SIZE = 160
FAULTS = Faults(
    slow_down_rate=0.1, reset_rate=0.05, stall_rate=0.002, stall_s=5.0, short_rate=0.05, wrong_length_rate=0.05
)
# The photos of an epoch are 20 MB as files and 20 MB decoded. A worker is fully grown when it has run both kinds of
# tasks, so after two epochs or so; from then on, three more may add less than one of them holds.
MAX_GROWTH_BYTES = 20 * MB


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """A fresh one: its workers are measured."""
    with ray_session(num_cpus=4):
        yield


def noisy_photo(seed: int) -> bytes:
    """Noise does not compress: so photos are large enough for a leak of them to be seen."""
    pixels = np.random.default_rng(seed).integers(0, 256, (240, 320, 3), np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=90)


def record(count: int, *, promised: int | None = None) -> bytes:
    items = {"B0": {"quantity": count}} if count else {}
    return json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": count if promised is None else promised}).encode()


def claiming(photo: bytes, width: int, height: int) -> bytes:
    """The photo under a header with other dimensions."""
    start = photo.index(b"\xff\xc0") + 5
    return photo[:start] + height.to_bytes(2) + width.to_bytes(2) + photo[start + 4 :]


def broken_objects(photo: bytes) -> dict[str, tuple[str, bytes | None]]:
    """Folder and content of what is wrong, by reason."""
    return {
        "missing_image": ("bin-images", None),
        "missing_label": ("metadata", None),
        "label_not_json": ("metadata", b"{'EXPECTED_QUANTITY': 1,"),
        "quantity_mismatch": ("metadata", record(2, promised=3)),
        "count_above_max": ("metadata", record(6)),
        "absurd_dimensions": ("bin-images", claiming(photo, 20_000, 20_000)),
        "truncated_image": ("bin-images", photo[: len(photo) // 2]),
        "not_an_image": ("bin-images", b"<html><body>Service unavailable</body></html>"),
    }


@pytest.fixture(scope="module")
def broken_bucket(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int], dict[str, str]]:
    """A bucket, the counts of its good bins, and the reasons of the others."""
    folder = tmp_path_factory.mktemp("broken")
    for name in ("bin-images", "metadata"):
        (folder / name).mkdir()
    good: dict[str, int] = {}
    for number in range(NUM_BINS):
        bin_id = f"{number:05d}"
        good[bin_id] = number % 6
        (folder / f"bin-images/{bin_id}.jpg").write_bytes(noisy_photo(number))
        (folder / f"metadata/{bin_id}.json").write_bytes(record(number % 6))
    reasons: dict[str, str] = {}
    for number, (reason, (name, content)) in enumerate(broken_objects(noisy_photo(0)).items()):
        for bin_id in (f"{number + 10 * place:05d}" for place in range(1, NUM_EACH + 1)):
            path = folder / name / f"{bin_id}.{'jpg' if name == 'bin-images' else 'json'}"
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            reasons[bin_id] = reason
            del good[bin_id]
    return folder, good, reasons


def spec_of(endpoint: str, image_size: int = 32, max_faults: int | None = None) -> FetchSpec:
    data = DataConfig(source="s3://bins", endpoint_url=endpoint, image_size=image_size)
    return FetchSpec(data=data, ledger=DropLedger.start(max_faults=max_faults))


# The processes of this test's Ray


def title_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def ray_workers() -> dict[int, str]:
    """Process ids and titles of the Ray workers below this process: of nobody else's."""
    titles = {pid: title_of(pid) for pid in family(os.getpid())}
    return {pid: title for pid, title in titles.items() if title.startswith("ray::")}


def largest_worker_bytes() -> int:
    """Memory of its own of the worker that has most; the object store is not in it."""
    sizes = [0]
    for pid in ray_workers():
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        sizes += [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
    return max(sizes)


class Killer(threading.Thread):
    """Kills one worker that runs a task of a given name, so many seconds after it was first seen."""

    def __init__(self, task: str, *, after_s: float) -> None:
        super().__init__(daemon=True)
        self._task, self._after_s = task, after_s
        self.killed: int | None = None

    def run(self) -> None:
        """Called by start()."""
        give_up_at_s = time.monotonic() + 60
        while self.killed is None and time.monotonic() < give_up_at_s:
            busy = [pid for pid, title in ray_workers().items() if self._task in title]
            if busy:
                time.sleep(self._after_s)
            for pid in busy[:1]:
                if self._task in title_of(pid):
                    os.kill(pid, signal.SIGKILL)
                    self.killed = pid
            time.sleep(0.005)


# A misbehaving server


def test_every_good_row_arrives_once_through_all_faults_in_bounded_memory(
    broken_bucket: tuple[Path, dict[str, int], dict[str, str]], streamed: MakeReader, rows_of: RowsOf
) -> None:
    folder, good, reasons = broken_bucket
    with serve_folder(folder, faults=FAULTS) as (endpoint, _):
        spec = spec_of(endpoint, IMAGE_SIZE)
        reader = streamed(IdTable.put(sorted(good | reasons)), spec, Sampling(seed=1), workers=2)
        sizes: list[int] = []
        for number in (1, 2, 3, 4, 5):
            assert rows_of(reader.epoch(number)) == good
            assert spec.ledger.table() == Counter(reasons.values())
            sizes.append(largest_worker_bytes())
    # Pools of connections fill up in the first epochs; over 25 epochs the last ten add 1 MB.
    assert 0 < sizes[4] < sizes[2] + MAX_GROWTH_BYTES, sizes


def test_a_misbehaving_server_changes_no_batch(tiny_bucket: Path, streamed: MakeReader) -> None:
    ids = sorted(path.stem for path in (tiny_bucket / "bin-images").iterdir())[:200]
    epochs = []
    for faults in (None, Faults(slow_down_rate=0.1, reset_rate=0.1, short_rate=0.1, wrong_length_rate=0.1)):
        with serve_folder(tiny_bucket, faults=faults) as (endpoint, _):
            epochs.append(streamed(IdTable.put(ids), spec_of(endpoint), Sampling(seed=2), workers=4).epoch(1))
    assert epochs[0] == epochs[1]


def test_too_many_faults_stop_the_stream_and_name_the_flag(
    broken_bucket: tuple[Path, dict[str, int], dict[str, str]], streamed: MakeReader
) -> None:
    folder, good, reasons = broken_bucket
    num_faults = sum(reason != "count_above_max" for reason in reasons.values())
    with serve_folder(folder) as (endpoint, _):
        spec = spec_of(endpoint, max_faults=num_faults - 1)
        with pytest.raises(RayError) as caught:
            streamed(IdTable.put(sorted(good | reasons)), spec, Sampling(seed=1), workers=2).epoch(1)
    error = unwrap(caught.value)
    assert isinstance(error, TooManyFaultsError)
    assert f"--max-dropped allows {num_faults - 1}" in str(error)


# Killed workers


@pytest.mark.parametrize(
    ("task", "latency_ms", "after_s"),
    [("fetch_chunk", 200, 1.5), ("decode_batches", 0, 0.0)],  # the latency makes one fetch take 3 s or more
)
def test_a_killed_worker_changes_nothing_in_what_is_delivered(
    task: str, latency_ms: int, after_s: float, tiny_bucket: Path, streamed: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.pipeline.MAX_CHUNKS", 1)  # so that the task has given some blocks away when it dies
    ids = sorted(path.stem for path in (tiny_bucket / "bin-images").iterdir())
    assert len(ids) > 2 * BLOCK_IDS
    with serve_folder(tiny_bucket, latency_ms=latency_ms) as (endpoint, _):
        reader = streamed(IdTable.put(ids), spec_of(endpoint, 128), Sampling(seed=3), workers=2)
        undisturbed = reader.epoch(1)
        killer = Killer(task, after_s=after_s)
        killer.start()
        disturbed = reader.epoch(1)
        killer.join(timeout=1)
    assert killer.killed is not None, "nothing was killed"
    assert killer.killed not in ray_workers()
    assert disturbed == undisturbed
