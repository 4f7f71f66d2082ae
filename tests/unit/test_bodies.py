"""Large bodies: parsed to the last byte, without holding up other requests, and never written to disk."""

import asyncio
import base64
import json
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from starlette.datastructures import Headers

from serve.bodies import AT_ONCE_BYTES, parse_aside, parse_form, photos_of_form
from serve.count_routes import photos_of_json
from serve.problems import Refusal

BOUNDARY = "d1f5c0a7"
PHOTOS = [np.random.default_rng(seed).bytes(number) for seed, number in enumerate((3_000_000, 10, 1_000_000))]


async def read_form(photos: list[bytes]) -> list[tuple[str, bytes]]:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'.encode()
    body = b"".join(head + photo + b"\r\n" for photo in photos) + f"--{BOUNDARY}--\r\n".encode()
    headers = Headers({"content-type": f"multipart/form-data; boundary={BOUNDARY}"})
    return await photos_of_form(await parse_form(headers, body, max_photos=len(photos)))


@pytest.fixture
def _no_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))


@pytest.mark.usefixtures("_no_disk")
def test_a_large_form_is_whole_and_lets_others_have_their_turn() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> list[tuple[str, bytes]]:
        task = asyncio.create_task(others())
        try:
            return await read_form(PHOTOS)
        finally:
            task.cancel()

    assert [photo for _, photo in asyncio.run(run())] == PHOTOS
    assert turns >= sum(map(len, PHOTOS)) // AT_ONCE_BYTES


@pytest.mark.parametrize(("num_bytes", "aside"), [(AT_ONCE_BYTES, False), (AT_ONCE_BYTES + 1, True)])
def test_a_large_body_is_parsed_in_a_thread(num_bytes: int, aside: bool) -> None:
    def parse(body: bytes) -> tuple[int, int]:
        return len(body), threading.get_ident()

    length, thread = asyncio.run(parse_aside(parse, bytes(num_bytes)))
    assert (length, thread != threading.get_ident()) == (num_bytes, aside)


def test_large_json_is_whole_and_a_refusal_comes_back_from_the_thread() -> None:
    images = [*(base64.b64encode(photo).decode() for photo in PHOTOS), "***"]
    *photos, refused = asyncio.run(parse_aside(photos_of_json, json.dumps({"images": images}).encode()))
    assert photos == [("", photo) for photo in PHOTOS]
    assert isinstance(refused[1], Refusal)
    with pytest.raises(Refusal, match="images"):
        asyncio.run(parse_aside(photos_of_json, json.dumps({"image": images[0]}).encode()))
