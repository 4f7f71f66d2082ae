"""The client as a command: a line per photo, a queue as CSV, errors of one line."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
StartServer = Callable[..., str]
PROGRESS = b'{"kind": "progress", "num_done": 0, "num_records": 1, "elapsed_s": 0}\n'


def run(*flags: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("BINTALLY_")} | variables
    command = [sys.executable, str(ROOT / "serve/client.py"), *flags]
    env["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_counts_verifies_and_audits(
    local_server: StartServer, bucket_dir: Callable[..., Path], tmp_path: Path
) -> None:
    folder = bucket_dir({"00001": 1, "00002": 2})
    url = local_server(audit_source=f"file://{folder}")
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    (tmp_path / "records.csv").write_text("bin_id,expected_quantity\n00001,1\n00002,2\n00009,3\n")
    image = str(folder / "bin-images/00001.jpg")

    counted = run("count", image, "bad.jpg", "--url", url, cwd=tmp_path)
    verified = run("verify", image, "--expected-quantity", "9", cwd=tmp_path, BINTALLY_URL=url)
    audited = run("audit", "records.csv", "--out", "queue.csv", cwd=tmp_path, BINTALLY_URL=url)

    assert counted.returncode == 2
    assert counted.stdout.startswith(f"{image}: ")
    assert "90 % range" in counted.stdout
    assert counted.stderr.startswith("bad.jpg: not_an_image")
    assert verified.returncode == 0
    assert verified.stdout.startswith(f"{image}: review. ")
    assert audited.returncode == 0
    assert audited.stdout == ""
    assert "3 records: " in audited.stderr
    assert "1 no_photo" in audited.stderr
    with (tmp_path / "queue.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert (rows[2]["bin_id"], rows[2]["problem"]) == ("00009", "no_photo")
    assert {path.name for path in tmp_path.iterdir()} == {"bucket", "bad.jpg", "records.csv", "queue.csv"}


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("count", "absent.jpg"), "absent.jpg cannot be read"),
        (("count", "x.jpg", "--url", "nowhere"), "url must be http"),
        (("count", "x.jpg", "--token-file", "absent"), "absent cannot be read"),
        (("count", "x.jpg", "--token-file", "photo.jpg"), "one line of ASCII"),
        (("audit", "x.jpg", "--out", "absent/queue.csv"), "absent/queue.csv cannot be written"),
    ],
)
def test_a_command_that_cannot_be_done_is_one_line(flags: tuple[str, ...], names: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert names in done.stderr


def test_a_queue_that_breaks_off_leaves_no_file(
    scripted: Callable[..., tuple[str, list[float]]], tmp_path: Path
) -> None:
    url, _ = scripted((200, {}, PROGRESS))
    (tmp_path / "records.csv").write_text("bin_id,expected_quantity\n1,1\n")
    done = run("audit", "records.csv", "--out", "queue.csv", "--url", url, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: the audit broke off" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["records.csv"]
