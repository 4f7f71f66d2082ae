"""The application of SageMaker's hosts when something fails after it has started."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from bintally.errors import CheckpointError, ConfigError
from serve.container.app import MAX_WAITING, Host, build_app, max_body_bytes
from serve.predictor import Predictor, probe_photo
from serve.problems import Refusal


def ask(model: Path) -> tuple[httpx.Response, httpx.Response]:
    """What /ping and a photo are answered."""

    async def both() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(build_app(model), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            headers = {"Content-Type": "image/jpeg"}
            return await client.get("/ping"), await client.post("/invocations", content=probe_photo(), headers=headers)

    return asyncio.run(both())


def failing_after(start: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model count so many photos, and then fail."""
    count, calls = Predictor.count, iter(range(100))

    def fail(predictor: Predictor, photos: Any) -> Any:  # noqa: ANN401  # whatever it is
        if next(calls) >= start:
            raise error
        return count(predictor, photos)

    monkeypatch.setattr(Predictor, "count", fail)


def test_ping_tells_of_a_model_that_counts_no_more(packed_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [reply.status_code for reply in ask(packed_model)] == [200, 200]
    failing_after(1, CheckpointError("the model answers NaN"), monkeypatch)
    replies = ask(packed_model)
    assert [reply.status_code for reply in replies] == [503, 503]
    assert {reply.json()["code"] for reply in replies} == {"model_unhealthy"}


def test_of_a_bug_clients_are_told_nothing_but_that(packed_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_after(2, RuntimeError("of no concern to clients"), monkeypatch)
    ping, reply = ask(packed_model)
    assert (ping.status_code, reply.status_code, reply.json()["code"]) == (200, 500, "internal_error")
    assert "concern" not in reply.text
    assert "Traceback" not in reply.text


class Stuck:
    """In the place of a Predictor: holds every photo until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def decode(self, _: bytes) -> tuple[Any, Any]:
        self.go.wait()
        raise Refusal("not_an_image", "none")


def test_too_many_requests_are_told_to_come_back() -> None:
    stuck = Stuck()
    host = Host(stuck)  # type: ignore[arg-type]

    async def crowd() -> list[str]:
        asked = [asyncio.ensure_future(host.answer(b"x", "image/jpeg", "", "")) for _ in range(MAX_WAITING + 1)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        stuck.go.set()
        await asyncio.wait(asked)
        assert done == {asked[-1]}
        return [str(one.exception().code) for one in asked]  # type: ignore[union-attr]

    assert asyncio.run(crowd()) == ["not_an_image"] * MAX_WAITING + ["overloaded"]


@pytest.mark.parametrize("text", ["", "6 MB", "0", "-1"])
def test_a_limit_that_is_no_number_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINTALLY_MAX_BODY_BYTES", text)
    with pytest.raises(ConfigError, match="BINTALLY_MAX_BODY_BYTES must be a number of bytes"):
        max_body_bytes()
