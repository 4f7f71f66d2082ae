"""What is no usable request: the right 4xx, cheaply, and nobody else suffers."""

import io
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve.problems import STATUS_OF

pytestmark = pytest.mark.cluster

MakePhoto = Callable[..., bytes]
Server = Any  # of conftest.py
MAX_BODY_BYTES = 10_000_000

COUNTED = "counted"


def save(image: Image.Image, format_name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def noise(width: int = 80, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    fields = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + fields + struct.pack(">I", zlib.crc32(fields))


def claim_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The same JPEG with another size in its header."""
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


def repeat_last_scan(times: int, image: Image.Image) -> bytes:
    """A progressive JPEG that goes on and on."""
    jpeg = save(image, "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * times + jpeg[-2:]


def flip_bits(jpeg: bytes, number: int) -> bytes:
    """Damage in the entropy-coded data."""
    random, data = np.random.default_rng(number), bytearray(jpeg)
    begin = jpeg.index(b"\xff\xda") + 14
    for place in random.integers(begin, len(jpeg) - 2, number):
        data[place] ^= 1 << int(random.integers(8))
    return bytes(data)


JPEG = save(noise(), "JPEG")
PNG = save(noise(), "PNG")
EXIF = Image.Exif()
EXIF[0x0112] = 6

CATALOGUE = {
    "empty": (b"", "empty_body"),
    "text": (b"no photo at all", "not_an_image"),
    "html": (b"<!doctype html><title>x</title>" + JPEG, "not_an_image"),
    "zeros": (bytes(100_000), "not_an_image"),
    "magic alone": (JPEG[:3], "not_an_image"),
    "header alone": (JPEG[:200], {"not_an_image", "truncated_image"}),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated_image"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated_image"),
    "last bytes cut": (JPEG[:-2], {"truncated_image", COUNTED}),
    "few flipped bits": (flip_bits(JPEG, 3), {"truncated_image", "not_an_image", COUNTED}),
    "many flipped bits": (flip_bits(JPEG, 300), {"truncated_image", "not_an_image", COUNTED}),
    "JPEG that claims 13,000 x 13,000": (claim_size(JPEG, 13_000, 13_000), "absurd_dimensions"),
    "JPEG that claims 65,500 x 65,500": (claim_size(JPEG, 65_500, 65_500), "absurd_dimensions"),
    "JPEG that claims 0 x 0": (claim_size(JPEG, 0, 0), {"absurd_dimensions", "not_an_image"}),
    "PNG that claims 30,000 x 30,000": (png_header(30_000, 30_000), {"absurd_dimensions", "not_an_image"}),
    "1-bit PNG of 13,000 x 13,000": (save(Image.new("1", (13_000, 13_000)), "PNG"), "absurd_dimensions"),
    "300 scans": (repeat_last_scan(300, noise()), "absurd_dimensions"),
    "90 scans of 25 MP": (repeat_last_scan(80, Image.new("L", (5_000, 5_000))), "absurd_dimensions"),
    "1 x 1": (save(noise(1, 1), "PNG"), "absurd_dimensions"),
    "20,000 x 8": (save(Image.new("RGB", (20_000, 8)), "JPEG"), "absurd_dimensions"),
    "GIF": (save(noise(), "GIF"), "not_an_image"),
    "animated WebP": (save(noise(), "WEBP", save_all=True, append_images=[noise()]), "not_an_image"),
    "TIFF": (save(noise(), "TIFF"), "not_an_image"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n", "not_an_image"),
    "animated PNG": (save(noise(), "PNG", save_all=True, append_images=[noise().rotate(90)]), COUNTED),
    "CMYK": (save(noise().convert("CMYK"), "JPEG"), COUNTED),
    "grey": (save(noise().convert("L"), "JPEG"), COUNTED),
    "16 bits": (save(Image.fromarray(np.zeros((64, 80), np.uint16)), "PNG"), COUNTED),
    "alpha": (save(noise().convert("RGBA"), "PNG"), COUNTED),
    "EXIF that turns": (save(noise(), "JPEG", exif=EXIF), COUNTED),
    "JPEG with a ZIP behind": (JPEG + b"PK\x03\x04" + bytes(500), COUNTED),
    "5 MB of comments": (JPEG[:2] + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 76 + JPEG[2:], COUNTED),
}


@pytest.mark.parametrize("name", CATALOGUE)
def test_catalogue(server: Server, name: str) -> None:
    body, expected = CATALOGUE[name]
    reply = server.post(body)
    got = COUNTED if reply.status == 200 else reply.code
    assert got in (expected if isinstance(expected, set) else {expected})
    if got != COUNTED:
        assert reply.status == STATUS_OF[got]


def test_exif_orientation_is_ignored_as_in_training(server: Server) -> None:
    turned = server.post(CATALOGUE["EXIF that turns"][0]).json
    assert turned["probabilities"] == server.post(JPEG).json["probabilities"]


# --- Bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (JPEG, "text/plain", "unsupported_media_type"),
        (JPEG, "", "unsupported_media_type"),
        (JPEG, "application/x-www-form-urlencoded", "unsupported_media_type"),
        (JPEG, "image/gif", "unsupported_media_type"),
        (bytes(MAX_BODY_BYTES), "image/jpeg", "not_an_image"),
        (bytes(MAX_BODY_BYTES + 1), "image/jpeg", "body_too_large"),
        (b"{", "application/json", "invalid_json"),
        (b"[]", "application/json", "invalid_request"),
        (b"{}", "application/json", "invalid_request"),
        (b'{"image": 3}', "application/json", "invalid_request"),
        (b'{"image": "***"}', "application/json", "invalid_request"),
        (b'{"image": ""}', "application/json", "empty_body"),
        (b'{"image": "AAAA"}', "application/json", "not_an_image"),
        (b'{"image": "AAAA", "url": "http://127.0.0.1/"}', "application/json", "invalid_request"),
        (b"[" * 100_000, "application/json", "invalid_json"),
        (b"\xff\xfe{}", "application/json", "invalid_json"),
        (JPEG, "multipart/form-data", "invalid_form"),
        (JPEG, "multipart/form-data; boundary=x", "invalid_form"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", "invalid_form"),
        (b'--x\r\nContent-Disposition: form-data; name="photo"\r\n\r\ntext\r\n--x--\r\n',
         "multipart/form-data; boundary=x", "invalid_form"),
    ],
    ids=lambda one: one if isinstance(one, str) else f"{len(one)} bytes",
)  # fmt: skip
def test_bad_body(server: Server, body: bytes, kind: str, code: str) -> None:
    reply = server.post(body, kind)
    assert (reply.status, reply.code) == (STATUS_OF[code], code)


@pytest.mark.parametrize("quantity", ["-1", "1000000000", "three", "3.5", "", "1e3", "٣", "99999999999999999999"])
def test_a_quantity_that_is_none(server: Server, quantity: str) -> None:
    replies = [server.post_form("/v1/verify", JPEG, expected_quantity=quantity)]
    if quantity.isascii():
        replies.append(server.post(JPEG, path=f"/v1/verify?expected_quantity={quantity}"))
    values = (quantity, float(quantity) if quantity in ("-1", "3.5") else None)
    replies += [server.post_json("/v1/verify", image=JPEG, expected_quantity=value) for value in values]
    assert [(reply.status, reply.code) for reply in replies] == [(422, "invalid_request")] * len(replies)


def test_a_photo_without_its_quantity(server: Server) -> None:
    assert server.post(JPEG, path="/v1/verify").code == "invalid_request"


def test_too_many_photos_at_once(server: Server) -> None:
    assert server.post_form("/v1/count:batch", *[JPEG] * 65).code == "invalid_form"
    assert server.post_json("/v1/count:batch", images=[JPEG] * 65).code == "invalid_request"
    assert server.post_json("/v1/count:batch", images=[]).code == "invalid_request"


def test_a_chunked_body_past_the_limit(server: Server) -> None:
    reply = server.post(iter([bytes(1_000_000)] * 11))
    assert (reply.status, reply.code) == (413, "body_too_large")


def test_50_megabytes_are_refused_before_they_are_read(server: Server) -> None:
    with server.connect() as client:
        head = b"POST /v1/count HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 50000000\r\n\r\n"
        client.sendall(head)
        assert b" 413 " in client.makefile("rb").readline()


def test_a_compressed_body(server: Server) -> None:
    assert server.post(JPEG, Content_Encoding="gzip").code == "unsupported_media_type"


@pytest.mark.parametrize("timeout_s", ["0", "-1", "soon", "nan"])
def test_a_timeout_that_is_none(server: Server, timeout_s: str) -> None:
    assert server.post(JPEG, X_Request_Timeout_Seconds=timeout_s).code == "invalid_request"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/count", 404, "not_found"),
        ("POST", "/v1/count/", 404, "not_found"),
        ("GET", "/v1/count", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/page/../serve/settings.py", 404, "not_found"),
    ],
)
def test_unknown_routes_and_methods(server: Server, method: str, path: str, status: int, code: str) -> None:
    reply = server.ask(method, path)
    assert (reply.status, reply.code) == (status, code)


# --- Connections ----------------------------------------------------------------------------------------------------

HEAD = b"POST /v1/count HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"


def test_a_body_that_does_not_arrive(server: Server, settings: dict[str, Any]) -> None:
    with server.connect() as client:
        begun = time.monotonic()
        client.sendall(HEAD % 99 + b"\xff")
        status_line = client.makefile("rb").readline()
        waited_s = time.monotonic() - begun
    assert b" 408 " in status_line
    assert waited_s >= settings["body_timeout_s"]


def test_clients_that_leave_harm_no_other(server: Server) -> None:
    for sent in (HEAD % 99 + b"\xff", HEAD % len(JPEG) + JPEG, HEAD[:20]):
        with server.connect() as client:
            client.sendall(sent)
    with server.connect() as client:
        client.sendall(HEAD % 99 + b"\xff")
        client.shutdown(1)
    assert server.post(JPEG).status == 200


def test_100_slow_senders_harm_no_other(server: Server) -> None:
    clients = [server.connect() for _ in range(100)]
    try:
        for client in clients:
            client.sendall(HEAD % 5000 + b"\xff\xd8")
        with ThreadPoolExecutor(4) as pool:
            statuses = [reply.status for reply in pool.map(server.post, [JPEG] * 40)]
    finally:
        for client in clients:
            client.close()
    assert statuses == [200] * 40


# --- What it costs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server(
    served_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, run_local: Callable[..., Any]
) -> Iterator[Server]:
    with run_local({"checkpoint": str(served_checkpoint)}, tmp_path_factory.mktemp("cost")) as running:
        yield running


def cpu_s(pid: int) -> float:
    """Of all threads, in nanoseconds' grain; a busy machine adds little to it."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


REFUSED = [
    name
    for name, (_, expected) in CATALOGUE.items()
    if COUNTED not in ({expected} if isinstance(expected, str) else expected)
]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_cheap(own_server: Server, name: str) -> None:
    body, _ = CATALOGUE[name]
    own_server.post(body)
    spent = []
    for _ in range(3):
        before = cpu_s(own_server.pid)
        assert own_server.post(body).status >= 400
        spent.append(cpu_s(own_server.pid) - before)
    assert min(spent) < 0.05


def test_bad_photos_leave_nothing_behind(own_server: Server) -> None:
    """10,000 were sent by hand (docs/log.md); these are enough to see a leak of a kilobyte."""
    bad = [body for body, expected in CATALOGUE.values() if expected != COUNTED and len(body) < 100_000]

    def send_all(times: int) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(own_server.post, bad * times))

    send_all(5)
    before = rss_mb(own_server.pid)
    send_all(40)
    assert rss_mb(own_server.pid) - before < 20
    figures = own_server.get("/metrics").body.decode()
    assert "bintally_photos_in_flight 0.0" in figures
    assert json.loads(own_server.post(JPEG).body)["count"] >= 0
