"""The client against a real server without Ray, and against servers that are full, broken or none at all."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from bintally.errors import ConfigError
from serve.audit_schema import AuditBin, AuditProgress, AuditSummary
from serve.client import Client, ServerRefusal, ServerUnreachableError

ROOT = Path(__file__).parents[2]
StartServer = Callable[..., str]
PROGRESS = b'{"kind": "progress", "num_done": 0, "num_records": 1, "elapsed_s": 0}\n'
READY = b'{"status": "ok", "model": {"name": "default", "version": "0", "runtime": "eager"}}'
FULL = json.dumps(
    {"type": "x", "title": "x", "status": 503, "detail": "full", "code": "overloaded", "request_id": "1"}
).encode()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Against a real server


def test_photos_are_counted_as_over_plain_http(
    local_server: StartServer, photo: Callable[..., bytes], tmp_path: Path
) -> None:
    url = local_server()
    path = tmp_path / "bin.jpg"
    path.write_bytes(photo())
    plain = httpx.post(f"{url}/v1/count", content=photo(), headers={"content-type": "image/jpeg"}).json()
    with Client(url) as client:
        of_bytes, of_path = client.count(photo()), client.count(path, model="default")
        batch = client.count_batch([path, b"no photo"])
    assert of_bytes.probabilities == of_path.probabilities == plain["probabilities"]
    assert of_bytes.model.model_dump() == plain["model"]
    assert (batch.num_counted, batch.num_failed) == (1, 1)
    assert batch.items[0].name == "bin.jpg"
    assert batch.items[1].problem is not None
    assert batch.items[1].problem.code == "not_an_image"


def test_a_record_is_verified(local_server: StartServer, photo: Callable[..., bytes]) -> None:
    with Client(local_server()) as client:
        answer = client.verify(photo(), 3, bin_id="A 7")
        unknown = client.verify(photo(), 99)
    assert (answer.expected_quantity, answer.bin_id) == (3, "A 7")
    assert answer.p_match == pytest.approx(answer.counted.probabilities["3"])
    assert (unknown.verdict, unknown.reason) == ("review", "above_max_count")


def test_the_server_tells_of_itself(local_server: StartServer) -> None:
    with Client(local_server()) as client:
        assert client.ready().model.name == "default"
        assert client.model().version == client.model("default").version == client.ready().model.version
        assert client.model().max_count == 5


@pytest.mark.parametrize("as_csv", [False, True])
def test_an_audit_is_progress_then_the_queue_then_a_summary(
    local_server: StartServer, bucket_dir: Callable[..., Path], as_csv: bool
) -> None:
    folder = bucket_dir({"00001": 1, "00002": 2, "00003": 3})
    records = [{"bin_id": "00001", "expected_quantity": 1}, {"bin_id": "00009", "expected_quantity": 2}]
    table = b"bin_id,expected_quantity\n00001,1\n00009,2\n"
    with Client(local_server(audit_source=f"file://{folder}")) as client:
        lines = list(client.audit(table if as_csv else records, prefix="bin-images"))
    bins = [line for line in lines if isinstance(line, AuditBin)]
    assert isinstance(lines[0], AuditProgress)
    assert isinstance(lines[-1], AuditSummary)
    assert [one.key[-9:-4] for one in bins] == ["00001", "00009", "00002", "00003"]
    assert [one.problem and one.problem.code for one in bins] == [None, "no_photo", "no_record", "no_record"]


def test_what_the_server_refuses_is_raised_with_its_problem(local_server: StartServer) -> None:
    with Client(local_server()) as client:
        with pytest.raises(ServerRefusal, match=r"not_an_image: .*request ") as refusal:
            client.count(b"no photo")
        assert (refusal.value.problem.status, refusal.value.problem.code) == (415, "not_an_image")
        with pytest.raises(ServerRefusal, match="unknown_model"):
            client.count(b"no photo", model="other")
        with pytest.raises(ServerRefusal, match="audit_is_off"):
            next(client.audit([{"bin_id": "1", "expected_quantity": 1}]))


def test_a_token_opens_the_server(local_server: StartServer, photo: Callable[..., bytes], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("open sesame\n")
    url = local_server(token_file=str(tokens))
    with Client(url) as client, pytest.raises(ServerRefusal, match="unauthorized"):
        client.count(photo())
    with Client(url, "open sesame") as client:
        assert client.count(photo()).photo.width == 80


# Against servers that are full, broken or none at all


def test_a_full_server_is_asked_again_when_it_says(scripted: Callable[..., tuple[str, list[float]]]) -> None:
    url, asked = scripted((503, {"Retry-After": "1"}, FULL), (503, {}, FULL), (200, {}, READY))
    with Client(url) as client:
        assert client.ready().model.version == "0"
    first, second = (after - before for before, after in pairwise(asked))
    assert first >= 1.0
    assert 0.5 <= second < 1.0


def test_a_server_that_stays_full_is_given_up(scripted: Callable[..., tuple[str, list[float]]]) -> None:
    url, asked = scripted((503, {}, FULL))
    with Client(url, max_tries=3) as client, pytest.raises(ServerRefusal, match="overloaded: full"):
        client.ready()
    assert len(asked) == 3


def test_a_lost_replica_is_asked_again(scripted: Callable[..., tuple[str, list[float]]]) -> None:
    url, asked = scripted((502, {"Retry-After": "0"}, b""), (200, {}, READY))
    with Client(url) as client:
        assert client.ready().status == "ok"
    assert len(asked) == 2


@pytest.mark.parametrize("status", [404, 502])
def test_what_is_wrong_is_not_asked_again(scripted: Callable[..., tuple[str, list[float]]], status: int) -> None:
    url, asked = scripted((status, {}, b"<html>no such page</html>"))
    with Client(url) as client, pytest.raises(ServerRefusal, match=rf"foreign_answer: .*/readyz answered {status}"):
        client.ready()
    assert len(asked) == 1


def test_an_answer_of_something_else_is_said_to_be_one(scripted: Callable[..., tuple[str, list[float]]]) -> None:
    url, _ = scripted((200, {}, b"<html>welcome</html>"))
    with Client(url) as client, pytest.raises(ServerUnreachableError, match="not that of a BinTally server"):
        client.ready()


def test_a_server_that_comes_back_is_found(scripted: Callable[..., tuple[str, list[float]]]) -> None:
    port = closed_port()
    later = threading.Timer(0.4, scripted, args=((200, {}, READY),), kwargs={"port": port})
    later.start()
    with Client(f"http://127.0.0.1:{port}") as client:
        assert client.ready().status == "ok"
    later.join()


def test_no_server_is_said_to_be_none() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    with Client(url, max_tries=2) as client, pytest.raises(ServerUnreachableError, match=url):
        client.ready()


@pytest.mark.parametrize("rest", [b"", b'{"kind": "bin"'])
def test_an_audit_that_breaks_off_has_no_end(scripted: Callable[..., tuple[str, list[float]]], rest: bytes) -> None:
    """The connection closes in good order, so that only the missing summary tells."""
    url, asked = scripted((200, {"Content-Type": "application/x-ndjson"}, PROGRESS + rest))
    with Client(url) as client:
        lines = client.audit([{"bin_id": "1", "expected_quantity": 1}])
        assert isinstance(next(lines), AuditProgress)
        with pytest.raises(ServerUnreachableError):
            next(lines)
    assert len(asked) == 1


def test_a_bin_id_may_hold_what_others_take_for_the_end_of_a_line(
    local_server: StartServer, bucket_dir: Callable[..., Path]
) -> None:
    bin_id = "A\u2028\x85B"
    with Client(local_server(audit_source=f"file://{bucket_dir({'00001': 1})}")) as client:
        lines = list(client.audit([{"bin_id": bin_id, "expected_quantity": 1}]))
    assert [line.bin_id for line in lines if isinstance(line, AuditBin)] == [bin_id]


def test_an_audit_that_fails_on_the_way_is_raised(scripted: Callable[..., tuple[str, list[float]]]) -> None:
    url, _ = scripted((200, {}, PROGRESS + b'{"kind": "error", "problem": ' + FULL + b"}\n"))
    with Client(url) as client, pytest.raises(ServerRefusal, match="overloaded: full"):
        list(client.audit([{"bin_id": "1", "expected_quantity": 1}]))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:port", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="url must be http"):
        Client(url)


@pytest.mark.parametrize("token", ["two\nlines", "größe"])
def test_a_token_that_cannot_be_sent_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="one line of ASCII"):
        Client("http://127.0.0.1:8000", token)


def test_the_import_is_light() -> None:
    code = "import sys, serve.client; print(sorted({'torch', 'fastapi', 'numpy', 'ray', 'obstore'} & set(sys.modules)))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
