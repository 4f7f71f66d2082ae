"""The load tool and the benchmark of servers: what they count, and what they make of it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load import LoadArgs, format_figures, measure
from benchmarks.parts.http_load import FAILED, Answers, make_request, percentile_ms
from benchmarks.parts.serve_rows import LOOPS, ROWS, SERVERS, Place, limit_of
from benchmarks.parts.serve_run import loop_figures
from benchmarks.parts.serve_table import best_of, format_aims, format_rows, judge_aims
from benchmarks.serve import ServeArgs
from bintally.errors import ConfigError, RunError

PHOTO = b"\xff\xd8 a photo \xff\xd9"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(PHOTO)
    return path


@pytest.fixture
def args(photo: Path) -> LoadArgs:
    return LoadArgs(url="http://127.0.0.1:1/count", photo=photo, seconds=0.3, warm_up_s=0.05, timeout_s=0.5)


def answer(status: int, *, close: bool = False) -> bytes:
    header = "Connection: close\r\n" if close else ""
    return f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n{header}\r\nok".encode()


def load(args: LoadArgs, replies: Iterator[bytes | None]) -> tuple[dict, list[bytes], int]:
    """Load for a server that gives these replies in turn; its figures, the requests, and how many connections."""
    requests: list[bytes] = []
    num_connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                requests.append(head + await reader.readexactly(length))
                reply = next(replies)
                if reply is None:
                    break
                await asyncio.sleep(0.001)
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> dict:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return await measure(replace(args, url=f"http://127.0.0.1:{port}/count?model=a"))

    return asyncio.run(run()), requests, num_connections


def repeat(*replies: bytes | None) -> Iterator[bytes | None]:
    while True:
        yield from replies


def test_clients_keep_their_connections_and_send_the_photo(args: LoadArgs) -> None:

    figures, requests, num_connections = load(replace(args, concurrency=(2,), wait_s=1), repeat(answer(200)))
    assert num_connections == 1 + 2  # one waited for the first answer
    assert requests[0].startswith(b"POST /count?model=a HTTP/1.1\r\n")
    assert requests[0].endswith(b"\r\n\r\n" + PHOTO)
    one = figures["c2"]
    assert one["answers"] == pytest.approx(one["rps"] * 0.3, rel=0.5)
    assert 0 < one["p50_ms"] <= one["p99_ms"]
    assert one["errors"] == {}
    assert one["load_cpu_ms"] > 0
    assert "answers/s" in format_figures(figures)


def test_what_is_no_answer_is_counted_by_its_kind(args: LoadArgs) -> None:

    replies = repeat(answer(200), answer(503, close=True), None, b"no HTTP\r\n\r\n")
    figures, _, _ = load(replace(args, concurrency=(1,)), replies)
    one = figures["c1"]
    assert set(one["errors"]) == {"503", "failed"}
    assert one["errors"]["failed"] >= one["errors"]["503"] > 0
    assert one["answers"] > 0


def test_nobody_there_ends_all_the_same(args: LoadArgs) -> None:

    figures = asyncio.run(measure(replace(args, concurrency=(2,))))
    assert figures["c2"]["answers"] == 0
    assert figures["c2"]["p99_ms"] is None
    assert 0 < figures["c2"]["errors"]["failed"] <= 20  # it does not spin
    with pytest.raises(RunError, match="no answer within"):
        asyncio.run(measure(replace(args, wait_s=0.1)))


def test_a_measurement_is_bounded_in_number(args: LoadArgs) -> None:

    figures, requests, _ = load(replace(args, concurrency=(1,), seconds=20, max_requests=5), repeat(answer(200)))
    assert figures["c1"]["answers"] >= 5
    assert len(requests) < 500


def test_a_rate_tells_accepted_refused_and_failed(args: LoadArgs) -> None:

    replies = repeat(answer(200), answer(200), answer(503), None)
    figures, requests, _ = load(replace(args, rate=200, seconds=0.5), replies)
    one = figures["rate"]
    assert one["sent"] == len(requests) == 100
    assert (one["accepted"], one["refused"], one["failed"]) == (50, 25, 25)
    assert one["unsent"] == 0
    assert "refused (503) 25" in format_figures(figures)


def test_a_rate_keeps_to_its_connections(args: LoadArgs) -> None:

    figures, requests, num_connections = load(
        replace(args, rate=1000, seconds=0.2, max_connections=3), repeat(answer(200))
    )
    one = figures["rate"]
    assert one["sent"] + one["unsent"] == 200
    assert one["sent"] == len(requests)
    assert num_connections <= 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://10.0.0.1/count"},
        {"url": "http://example.test/count"},
        {"url": "https://127.0.0.1/count"},
        {"photo": Path("/absent.jpg")},
        {"seconds": 0},
        {"seconds": 4000},
        {"concurrency": (0,)},
        {"concurrency": ()},
        {"rate": 0},
    ],
)
def test_a_load_out_of_bounds_is_refused(args: LoadArgs, wrong: dict) -> None:

    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(args, **wrong)
    assert LoadArgs(url="http://10.0.0.1/count", photo=args.photo, allow_remote=True).allow_remote


def test_a_form_holds_the_photo() -> None:
    request = make_request("http://[::1]:80", PHOTO, form="photos", headers=("Authorization: Bearer x",))
    head, body = request.split(b"\r\n\r\n", 1)
    assert head.startswith(b"POST / HTTP/1.1\r\nHost: [::1]:80\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert head.endswith(b"Authorization: Bearer x")
    assert b'name="photos"; filename="photo.jpg"' in body
    assert PHOTO in body


def test_percentiles_are_values_that_were_measured() -> None:
    seconds = [number / 1000 for number in range(100, 0, -1)]
    assert [percentile_ms(seconds, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile_ms([0.25], 99) == 250
    assert percentile_ms([], 50) is None


def test_latencies_are_those_of_answers_alone() -> None:
    answers = Answers()
    for status in (200, 204, 503, FAILED):
        answers.add(status, 0.1)
    assert len(answers.latencies_s) == 2
    assert answers.errors == {"failed": 1, "503": 1}
    answers.clear()
    assert answers.statuses.total() == 0


def figures(rps: float, cpu_ms: float, p99_ms: float = 30.0, **others: object) -> dict:
    return {"rps": rps, "p50_ms": 20.0, "p99_ms": p99_ms, "cpu_ms": cpu_ms, **others}


def test_the_best_of_rounds() -> None:
    first = {"c1": figures(10, 50, errors={"503": 2}, others_cores=0.1), "rss_mb": 300, "start_s": 4.0}
    second = {"c1": figures(12, 55, errors={"503": 1}, others_cores=0.4), "rss_mb": 310, "start_s": 3.0}
    best = best_of([first, {"failed": "gone"}, second])
    assert best["c1"] == figures(12, 50, errors={"503": 3}, others_cores=0.4)
    assert (best["rss_mb"], best["start_s"], best["failed_rounds"]) == (310, 3.0, 1)
    assert best_of([{"missing": "x"}, {"missing": "x"}]) == {"missing": "x"}
    assert loop_figures({"rps": 40.0, "batch_ms": 200.0, "cpu_ms": 25.0}, 8)["p50_ms"] == 200


def rows() -> dict:
    return {
        "loop": {"c1": figures(20, 48), "c32": figures(25, 40)},
        "bintally": {"c1": figures(18, 49), "c32": figures(23, 41.4, 39), "rss_mb": 900, "start_s": 12.0},
        "bintally_local": {"c1": figures(19, 49), "c32": figures(22, 42, 41), "rss_mb": 500, "start_s": 3.0},
        "fastapi": {"c1": figures(18.5, 48), "c32": figures(15, 52), "rss_mb": 480, "start_s": 3.0},
        "litserve": {"missing": "litserve is not installed; see --extra"},
        "loop_int8": {"c1": figures(80, 12), "c32": figures(90, 11)},
        "bintally_int8": {"c1": figures(70, 13), "c32": figures(85, 12.4), "rss_mb": 900, "start_s": 12.0},
    }


def test_aims_are_met_missed_or_not_measured() -> None:
    aims = {name: aim["met"] for name, aim in judge_aims(rows(), (1, 32)).items()}
    assert {name for name, met in aims.items() if met is None} == {
        "bintally_local: in 8 bits 3 x the answers per second"
    }
    assert {name for name, met in aims.items() if met is False} == {
        "bintally: more answers per second than every other server",
        "bintally_local: 0.9 of the limit's answers per second, 8 clients and more",
        "bintally_local: 1.5 ms CPU more than the limit at most, 8 clients and more",
        "bintally_local: p99 at most 2 x p50, 32 clients",
    }
    lines = format_aims(judge_aims(rows(), (1, 32))).splitlines()
    assert sorted({line.split("  ")[0] for line in lines}) == ["MISSED", "met", "not measured"]


def test_tables_have_a_line_per_row_and_ratios_to_the_limit() -> None:
    tables = format_rows(rows(), (1, 32)).split("\n\n")
    assert len(tables) == 3
    assert "litserve is not installed" in tables[0]
    line = next(line for line in tables[1].splitlines() if line.startswith("bintally_int8"))
    assert line.split()[1:3] == ["85.0", "0.94"]
    assert line.split()[5:7] == ["12.40", "0.89"]
    assert "bintally_local" in tables[2]
    assert "loop" not in tables[2]


def test_rows_are_what_the_issue_names(tmp_path: Path) -> None:
    assert {"loop", "bintally", "ray_fastapi", "litserve", "bentoml", "fastapi"} < set(ROWS)
    assert set(ROWS) == set(SERVERS) | set(LOOPS)
    place = Place(checkpoint=tmp_path, port=8000, extra=None)
    for name, server in SERVERS.items():
        command = server.full_command(place, 1)
        assert command[:3] == ["taskset", "-c", "1"]
        assert "8000" in command
        assert limit_of(name) in LOOPS
    assert SERVERS["fastapi"].missing(None) is None
    assert SERVERS["litserve"].missing(None) == "litserve is not installed; see --extra"
    (tmp_path / "litserve").mkdir()
    assert SERVERS["litserve"].missing(tmp_path) is None


def test_arguments_of_the_benchmark() -> None:
    assert ServeArgs().setting()["concurrency"] == (1, 8, 32, 128)
    assert ServeArgs(quick=True).setting()["rounds"] == 1
    assert ServeArgs(quick=True, rounds=3, rows=("loop",)).setting()["rows"] == ("loop",)
    for wrong in ({"rows": ("gunicorn",)}, {"concurrency": (0,)}, {"rounds": 0}, {"extra": Path("/absent")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ServeArgs(**wrong)
