"""Folders in S3: what is taken from there and left there, and what is told of those that cannot be used."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from bintally.errors import ConfigError
from bintally.recipes import smoke
from data.args import is_remote, new_run_dir
from data.s3_folder import S3Folder, exists, local_copy
from train.fit import FitArgs

RUN = "s3://runs/some/run"


def files_of(uri: str) -> dict[str, bytes]:
    folder = S3Folder.open(uri, "run_dir")
    return {name: folder.read(name) or b"" for name in folder.names()}


def test_what_was_put_is_there_until_it_is_deleted(s3_runs: str, tmp_path: Path) -> None:
    folder = S3Folder.open(f"{s3_runs}/put", "run_dir")
    folder.check_writable()
    assert folder.names() == []
    (tmp_path / "large").write_bytes(os.urandom(11_000_000))  # in several parts
    folder.put("deep/large", tmp_path / "large")
    folder.put("note.txt", b"a")
    folder.put("note.txt", b"b")
    folder.put("gone", tmp_path / "absent")
    assert files_of(f"{s3_runs}/put") == {"deep/large": (tmp_path / "large").read_bytes(), "note.txt": b"b"}
    folder.delete(["deep/large"])
    assert folder.names() == ["note.txt"]
    assert folder.read("deep/large") is None


def test_what_train_keeps_in_its_folders_stays_there(s3_runs: str, tmp_path: Path) -> None:
    folder = S3Folder.open(f"{s3_runs}/trains", "run_dir")
    ours = {"trials/train-1/metrics.jsonl", "checkpoint/config.json"}
    trains = {"trials/train-1/checkpoint_2026/resume.pt", "trials/train-1/checkpoint_manager_snapshot.json"}
    for name in ours | trains | {"trials/train-1/.validate_storage_marker"}:
        folder.put(name, b"x")
    folder.put("trials/train-1/", b"")  # pyarrow's sign of a folder
    assert set(folder.fetch(tmp_path)) == ours
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == ours
    assert exists(f"{s3_runs}/trains/trials/train-1/checkpoint_2026")
    assert not exists(f"{s3_runs}/trains/trials/train-1/checkpoint_2027")


def test_what_is_changed_in_a_copy_is_written_back(s3_runs: str, tmp_path: Path) -> None:
    folder = S3Folder.open(f"{s3_runs}/copied", "checkpoint")
    for name in ("config.json", "model.safetensors"):
        folder.put(name, name.encode())
    with local_copy(f"{s3_runs}/copied", "checkpoint") as copy:
        assert (copy / "model.safetensors").read_bytes() == b"model.safetensors"
        (copy / "calibration.json").write_text("new")
        (copy / "config.json").write_text("changed")
    assert not copy.exists()
    expected = {"config.json": b"changed", "model.safetensors": b"model.safetensors", "calibration.json": b"new"}
    assert files_of(f"{s3_runs}/copied") == expected
    with local_copy(str(tmp_path), "checkpoint") as folder_itself:
        assert folder_itself == tmp_path


def test_a_recipe_from_s3(s3_runs: str) -> None:
    folder = S3Folder.open(f"{s3_runs}/search", "run_dir")
    folder.put("best.json", json.dumps(asdict(smoke())).encode())
    assert FitArgs(recipe_file=f"{s3_runs}/search/best.json").resolve() == smoke()
    folder.put("best.json", b"{")
    with pytest.raises(ConfigError, match=f"^{s3_runs}/search/best.json is not JSON"):
        FitArgs(recipe_file=f"{s3_runs}/search/best.json").resolve()
    with pytest.raises(ConfigError, match=f"recipe_file: there is nothing at {s3_runs}/none.json"):
        FitArgs(recipe_file=f"{s3_runs}/none.json").resolve()


@pytest.mark.parametrize("place", ["s3:/runs/x", "s3://runs", "s3://runs/", "s3://runs//x", "file:///x", "gs://a/b"])
def test_an_address_that_is_none_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match="run_dir must be a folder or s3://bucket/prefix, not '"):
        is_remote(place, "run_dir")
    with pytest.raises(ConfigError, match="run_dir must be a folder for this command, not '"):
        new_run_dir(Path(place), "report")


@pytest.mark.parametrize("place", ["runs/x", "/runs/x", "../s3/x", "a b", "x:y"])
def test_a_folder_is_one(place: str) -> None:
    assert not is_remote(place, "run_dir")


def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def without_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")


def with_wrong_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:1")


@pytest.mark.parametrize(
    ("spoil", "uri", "told"),
    [
        (
            lambda _: None,
            "s3://no-such-bucket/x",
            r"run_dir s3://no-such-bucket/x at http://.*: there is no such bucket$",
        ),
        (without_credentials, RUN, f"run_dir {RUN} needs AWS credentials, and boto3 finds none"),
        (without_server, RUN, f"run_dir {RUN} at http://127.0.0.1:1: .*error sending request"),
        (with_wrong_server, RUN, "AWS_ENDPOINT_URL: endpoint_url must be http"),
    ],
)
def test_what_cannot_be_written_is_told_in_a_line(
    spoil: Callable[[pytest.MonkeyPatch], None], uri: str, told: str, s3_runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    with pytest.raises(ConfigError, match=told) as caught:
        S3Folder.open(uri, "run_dir").check_writable()
    assert "\n" not in str(caught.value)


class Forbidding(BaseHTTPRequestHandler):
    """S3 for somebody who may do nothing."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_bucket_that_may_not_be_written_is_told(s3_runs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ConfigError, match=f"^run_dir {s3_runs} at http.*: these AWS credentials may not do that: "):
            S3Folder.open(s3_runs, "run_dir").check_writable()
        server.shutdown()
