"""Fixtures that several unit tests share: photos, a small bucket on disk, and an S3 server of a few lines."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from train.loop import LoopConfig

Answer = tuple[int, bytes]
Said = tuple[int, dict[str, str], bytes]


def smooth_pixels(seed: int = 0, size: tuple[int, int] = (80, 64)) -> Image.Image:
    """A photo-like picture of (width, height): smooth colours, since noise tells resizers apart for no good reason."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def bin_record(count: int) -> bytes:
    """The least record that a bin of so many items can have."""
    items = {"B000000001": {"asin": "B000000001", "quantity": count}} if count else {}
    return json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": count}).encode()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The networks of these tests are so small that threads wait for one another most of the time."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """`photo(format, mode=, seed=, size=, **save_options)`: the bytes of an encoded picture."""

    def make(
        format_name: str = "JPEG",
        *,
        mode: str = "RGB",
        seed: int = 0,
        size: tuple[int, int] = (80, 64),
        **options: object,
    ) -> bytes:
        file = io.BytesIO()
        smooth_pixels(seed, size).convert(mode).save(file, format_name, **options)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def loop_config() -> Callable[..., "LoopConfig"]:
    """`loop_config(**fields)`: what a training loop is told; what is not given is of a small training."""
    from bintally.recipes import smoke
    from data.feed import FeedSpec
    from train.figures import BEST_NLL
    from train.loop import LoopConfig  # with Ray, which most unit tests do without

    feed = FeedSpec(global_batch_size=16, sampling=None, clock=None, stored=None)
    plain = LoopConfig(
        recipe=smoke(),
        num_ids=64,
        train=feed,
        val=feed,
        class_rows=None,
        checkpoint_s=60.0,
        on_health="warn",
        stalled_s=7.0,
        keep=BEST_NLL,
        launched=0.0,
        name="train",
        news=None,
    )

    def make(**fields: Any) -> LoopConfig:  # noqa: ANN401  # whatever the fields are
        return replace(plain, **fields)

    return make


@pytest.fixture
def bucket_dir(tmp_path: Path, photo: Callable[..., bytes]) -> Callable[..., Path]:
    """`bucket_dir({id: count}, broken={key: bytes or None})`: a folder in the layout of ABID; None removes the key."""

    def make(counts: dict[str, int], *, broken: dict[str, bytes | None] | None = None) -> Path:
        folder = tmp_path / "bucket"
        objects: dict[str, bytes | None] = {}
        for seed, (bin_id, count) in enumerate(counts.items()):
            objects[f"bin-images/{bin_id}.jpg"] = photo(seed=seed)
            objects[f"metadata/{bin_id}.json"] = bin_record(count)
        for key, data in (objects | (broken or {})).items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            if data is not None:
                path.write_bytes(data)
        return folder

    return make


@pytest.fixture
def write_lists(tmp_path: Path) -> Callable[[dict[str, int], dict[str, int]], str]:
    """`write_lists({id: count}, {id: count})`: a folder with the challenge's training and validation list."""

    def write(train: dict[str, int], val: dict[str, int]) -> str:
        folder = tmp_path / "lists"
        folder.mkdir()
        for name, counts in (("train", train), ("val", val)):
            rows = [[int(bin_id) - 1, count] for bin_id, count in counts.items()]
            (folder / f"counting_{name}.json").write_text(json.dumps(rows))
        return str(folder)

    return write


@pytest.fixture
def s3_server() -> Iterator[Callable[[Callable[[str], Answer]], str]]:
    """`s3_server(answer)`: the endpoint of a server that gives `answer(path)`, a status and a body, to each GET."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[str], Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # the name is http.server's
                status, body = answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
                self.send_header("ETag", '"0"')
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # clients connect 64 at a time; a full queue costs them a second

            def handle_error(self, *_: object) -> None:
                """Stay silent about clients that went away."""

        server = Server(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[str, list[float]]]]:
    """`scripted(*answers)`: a server that gives one (status, headers, body) after the other, the last one for ever; its
    URL and the times at which it was asked.
    """
    servers: list[ThreadingHTTPServer] = []

    def start(*answers: Said, port: int = 0) -> tuple[str, list[float]]:
        asked: list[float] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name is http.server's
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked.append(time.monotonic())
                status, headers, body = answers[min(len(asked), len(answers)) - 1]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST  # noqa: N815  # http.server's, too

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
