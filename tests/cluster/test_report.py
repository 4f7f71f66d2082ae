"""The report command on whole buckets: its numbers against a count of the folder that shares no code with it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "data/report.py"), "--num-cpus", "2", *flags]


def truth_of(bucket: Path) -> dict[str, tuple[int, set[str]]]:
    """{padded id: (count, products)} of the bins with a readable record and a whole JPEG, by its last two bytes."""
    truth = {}
    for photo in (bucket / "bin-images").glob("?????*.jpg"):
        data = photo.read_bytes()
        try:
            record = json.loads((bucket / "metadata" / f"{photo.stem}.json").read_text())
            items = record["BIN_FCSKU_DATA"]
            count = int(record["EXPECTED_QUANTITY"])
        except (OSError, ValueError, KeyError):
            continue
        whole = data[:3] == b"\xff\xd8\xff" and data[-2:] == b"\xff\xd9"
        if whole and count == sum(item["quantity"] for item in items.values()):
            truth[photo.stem] = count, {item["asin"] for item in items.values()}
    return truth


@pytest.mark.usefixtures("shared_ray")
def test_the_numbers_are_those_of_the_folder(bucket: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "report"
    done = subprocess.run(
        command("--source", f"file://{bucket}", "--run-dir", str(run_dir)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bins/s" in done.stdout
    found: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    truth = truth_of(bucket)
    counts = Counter(count for count, _ in truth.values())
    assert found["counts"]["bins_by_count"] == {str(count): counts[count] for count in sorted(counts)}
    assert found["num_ids"] == len(list((bucket / "bin-images").glob("?????*.jpg")))
    assert found["num_good"] == len(truth) == found["num_ids"] - found["num_faults"]
    assert found["products"]["num_products"] == len(set().union(*(asins for _, asins in truth.values())))
    pairs = [(truth[a], truth[b]) for a in truth if (b := f"{int(a) + 1:05d}") in truth]
    sharing = [abs(one[0] - other[0]) for one, other in pairs if one[1] & other[1]]
    neighbours = found["neighbours"]
    assert (neighbours["num_neighbours"], neighbours["num_sharing"]) == (len(pairs), len(sharing))
    assert neighbours["num_differ_by_one"] == sharing.count(1)
    by_split = Counter[str]()
    for mix in found["mix_by_split"].values():
        by_split.update(mix)
    assert {int(count): number for count, number in by_split.items()} == counts
    assert json.loads((run_dir / "drops.json").read_text()) == found["drops"]
    page = (run_dir / "report.html").read_text()
    assert f"{len(truth):,} bins" in page
    assert page.count("<img ") >= 8 + len(found["samples"])
    assert {"counts.png", "sizes.png", "splits.png", "sheet-1.png"} <= {path.name for path in run_dir.glob("*.png")}


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize(
    ("broken", "says"), [("empty", "no bin-images/*.jpg"), ("rubbish", "not_an_image"), ("absent", "no folder")]
)
def test_a_bucket_without_a_usable_bin_is_one_line(
    broken: str, says: str, in_process: Callable[..., Any], tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    if broken != "absent":
        for name in ("bin-images", "metadata"):
            (bucket / name).mkdir(parents=True)
    if broken == "rubbish":
        (bucket / "bin-images/00001.jpg").write_bytes(b"<html>")
        (bucket / "metadata/00001.json").write_text('{"EXPECTED_QUANTITY": 0, "BIN_FCSKU_DATA": {}}')
    done = in_process("data/report.py", "--source", f"file://{bucket}", "--run-dir", tmp_path / "report")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert says in done.err
    assert list((tmp_path / "report").glob("*")) == []


def test_ctrl_c_ends_it(synthetic_bucket: Path, tmp_path: Path) -> None:
    flags = command("--source", f"file://{synthetic_bucket}", "--run-dir", str(tmp_path / "report"))
    process = subprocess.Popen(flags, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any("measuring" in line for line in process.stdout)
    time.sleep(1.0)  # somewhere in the start of Ray
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.rstrip().endswith("interrupted")
