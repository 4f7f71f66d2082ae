"""Who is admitted, which model answers, what is told of it: the application in one process, without a network."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.errors import CheckpointError, ConfigError
from bintally.model import build_model
from bintally.recipes import smoke
from serve.local import build_local
from serve.predictor import Counted
from serve.service import CounterService, Job
from serve.settings import Settings, read_tokens, settings_from_dict, split_location
from serve.telemetry import JsonLines

Running = tuple[httpx.AsyncClient, CounterService]

JPEG = {"content-type": "image/jpeg"}


def photo() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (120, 110, 100)).save(file, "JPEG")
    return file.getvalue()


def write_checkpoint(path: Path, seed: int) -> Path:
    recipe = smoke()
    torch.manual_seed(seed)
    save_checkpoint(path, build_model(recipe.model, num_classes=recipe.data.num_classes), recipe, {})
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: str(write_checkpoint(folder / name, seed)) for seed, name in enumerate(("first", "second"))}


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """A client of the application with these settings."""
    app, service = build_local(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://bins") as client,
    ):
        yield client, service


async def count(client: httpx.AsyncClient, path: str = "/v1/count", **headers: str) -> httpx.Response:
    return await client.post(
        path, content=photo(), headers=JPEG | {key.replace("_", "-"): v for key, v in headers.items()}
    )


def slow(service: CounterService, gate: asyncio.Event) -> "asyncio.Queue[str]":
    """Let the engine wait for a gate; what happens there."""
    seen: asyncio.Queue[str] = asyncio.Queue()
    engine = service.engine
    assert engine is not None

    async def wait(job: Job) -> Counted:
        seen.put_nowait("begun")
        try:
            await gate.wait()
        except asyncio.CancelledError:
            seen.put_nowait("cancelled")
            raise
        return await engine(job)

    service.engine = wait
    return seen


# --- Admission ------------------------------------------------------------------------------------------------------


def test_a_full_server_refuses_at_once_and_recovers(checkpoints: dict[str, str]) -> None:
    async def story() -> None:
        async with running(Settings(checkpoint=checkpoints["first"], max_in_flight=3)) as (client, service):
            gate = asyncio.Event()
            seen = slow(service, gate)
            waiting = [asyncio.create_task(count(client)) for _ in range(3)]
            for _ in range(3):
                await seen.get()
            refused = await count(client)
            gate.set()
            answered = [reply.status_code for reply in await asyncio.gather(*waiting)]
            after = await count(client)
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert [*answered, after.status_code] == [200, 200, 200, 200]

    asyncio.run(story())


@pytest.mark.parametrize(("limit_s", "asked"), [(0.1, {}), (30.0, {"X_Request_Timeout_Seconds": "0.1"})])
def test_a_deadline_cancels_the_work(checkpoints: dict[str, str], limit_s: float, asked: dict[str, str]) -> None:
    async def story() -> None:
        settings = Settings(checkpoint=checkpoints["first"], request_timeout_s=limit_s)
        async with running(settings) as (client, service):
            seen = slow(service, asyncio.Event())
            late = await count(client, **asked)
            assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
            assert [seen.get_nowait(), seen.get_nowait()] == ["begun", "cancelled"]

    asyncio.run(story())


def test_a_client_that_leaves_is_not_worked_for(checkpoints: dict[str, str]) -> None:
    async def story() -> None:
        app, service = build_local(Settings(checkpoint=checkpoints["first"]))
        async with app.router.lifespan_context(app):
            seen = slow(service, asyncio.Event())
            gone = asyncio.Event()
            messages = [{"type": "http.request", "body": photo(), "more_body": False}]

            async def receive() -> dict[str, Any]:
                if messages:
                    return messages.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(_: Any) -> None:  # noqa: ANN401  # ASGI's message
                raise AssertionError("nobody is there to be answered")

            scope = {"type": "http", "method": "POST", "path": "/v1/count", "raw_path": b"/v1/count"}
            scope |= {"headers": [(b"content-type", b"image/jpeg")], "query_string": b"", "http_version": "1.1"}
            scope |= {"scheme": "http", "server": ("bins", 80), "client": ("here", 1), "root_path": ""}
            scope |= {"asgi": {"version": "3.0"}}
            request = asyncio.create_task(app(scope, receive, send))
            assert await seen.get() == "begun"
            gone.set()
            await asyncio.wait_for(request, 5)
            assert seen.get_nowait() == "cancelled"
            assert b"bintally_photos_in_flight 0.0" in service.instruments.text()
            assert b'status="499"' in service.instruments.text()

    asyncio.run(story())


# --- Models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "expected"), [(0.0, {"default"}), (1.0, {"second"}), (0.5, {"default", "second"})])
def test_the_canary_answers_its_share(checkpoints: dict[str, str], share: float, expected: set[str]) -> None:
    async def story() -> None:
        models = {"second": checkpoints["second"]}
        settings = Settings(checkpoint=checkpoints["first"], models=models, canary="second", canary_share=share)
        async with running(settings) as (client, _):
            answers = [(await count(client, X_Request_ID=f"r{number}")).json() for number in range(24)]
            again = [(await count(client, X_Request_ID=f"r{number}")).json() for number in range(24)]
            named = (await count(client, "/v1/count?model=default")).json()
        names = [answer["model"]["name"] for answer in answers]
        assert set(names) == expected
        assert names == [answer["model"]["name"] for answer in again]
        assert named["model"]["name"] == "default"

    asyncio.run(story())


def test_the_shadow_only_counts_for_the_metrics(checkpoints: dict[str, str]) -> None:
    async def story() -> None:
        settings = Settings(checkpoint=checkpoints["first"], models={"second": checkpoints["second"]}, shadow="second")
        async with running(settings) as (client, service):
            answers = [(await count(client)).json()["model"]["name"] for _ in range(3)]
            await asyncio.gather(*service.background)
            figures = service.instruments.text().decode().splitlines()
        compared = [float(line.split()[-1]) for line in figures if line.startswith("bintally_shadow_total{")]
        assert (answers, sum(compared)) == (["default"] * 3, 3)

    asyncio.run(story())


def test_models_are_swapped_without_a_failed_request(checkpoints: dict[str, str]) -> None:
    async def story() -> None:
        first, second = (Settings(checkpoint=checkpoints[name]) for name in ("first", "second"))
        versions = [load_checkpoint(Path(checkpoints[name])).version for name in ("first", "second")]
        async with running(first) as (client, service):
            replies: list[httpx.Response] = []

            async def ask_on() -> None:
                while True:
                    replies.append(await count(client))

            asking = asyncio.create_task(ask_on())
            await asyncio.sleep(0.1)
            await service.reload(second)
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(CheckpointError, match="no checkpoint"):
                await service.reload(Settings(checkpoint="/nowhere"))
            assert (await count(client)).json()["model"]["version"] == versions[1]
        assert {reply.status_code for reply in replies} == {200}
        told = [reply.json()["model"]["version"] for reply in replies]
        assert told == sorted(told, key=versions.index)
        assert set(told) == set(versions)

    asyncio.run(story())


def test_a_version_is_checked(checkpoints: dict[str, str]) -> None:
    version = load_checkpoint(Path(checkpoints["first"])).version
    build_local(Settings(checkpoint=f"{checkpoints['first']}@{version}"))
    with pytest.raises(CheckpointError, match=f"has the weights {version[:6]}, not 000000"):
        build_local(Settings(checkpoint=f"{checkpoints['first']}@000000"))


# --- Who may ask ----------------------------------------------------------------------------------------------------


def test_tokens(checkpoints: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("old-token\nnew-token\n")

    async def story() -> None:
        settings = Settings(checkpoint=checkpoints["first"], token_file=str(tmp_path / "tokens"))
        async with running(settings) as (client, service):
            wrong = ("", "Bearer", "Bearer x", "Basic old-token", "Bearer old-token2", "bearer\told-token")
            for header in wrong:
                reply = await count(client, Authorization=header)
                assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized"), header
                assert reply.headers["www-authenticate"] == "Bearer"
            for token in ("old-token", "new-token"):
                assert (await count(client, Authorization=f"Bearer {token}")).status_code == 200
            open_paths = ["/healthz", "/readyz", "/openapi.json"]
            assert [(await client.get(path)).status_code for path in open_paths] == [200] * 3
            for path in ("/metrics", "/v1/model", "/v1/models", "//v1/model", "/v1/../v1/model", "/page/../v1/model"):
                assert (await client.get(path)).status_code in (401, 404), path
            (tmp_path / "tokens").write_text("new-token\n")
            await service.reload(settings)
            assert (await count(client, Authorization="Bearer old-token")).status_code == 401

    asyncio.run(story())


def test_other_origins_only_if_they_are_named(checkpoints: dict[str, str]) -> None:
    async def story(settings: Settings) -> str | None:
        async with running(settings) as (client, _):
            reply = await count(client, Origin="https://audit.example")
            asked = await client.options(
                "/v1/count", headers={"origin": "https://audit.example", "access-control-request-method": "POST"}
            )
            assert asked.headers.get("access-control-allow-origin") == reply.headers.get("access-control-allow-origin")
            return reply.headers.get("access-control-allow-origin")

    settings = Settings(checkpoint=checkpoints["first"])
    assert asyncio.run(story(settings)) is None
    assert asyncio.run(story(replace(settings, cors_origins=("https://audit.example",)))) == "https://audit.example"
    assert asyncio.run(story(replace(settings, cors_origins=("https://other.example",)))) is None


# --- What is told ---------------------------------------------------------------------------------------------------


def test_the_log_tells_of_a_request_without_its_photo(
    checkpoints: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with running(Settings(checkpoint=checkpoints["first"])) as (client, _):
            await client.post("/v1/verify?expected_quantity=2&bin_id=B7", content=photo(), headers=JPEG)
            await client.post("/v1/count", content=b"SECRET", headers=JPEG)

    with caplog.at_level(logging.INFO, "bintally.access"):
        asyncio.run(story())
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "bintally.access"]
    assert [(line["route"], line["status"]) for line in lines] == [("/v1/verify", 200), ("/v1/count", 415)]
    assert (lines[0]["bin_id"], lines[0]["model"], lines[1]["code"]) == ("B7", "default", "not_an_image")
    assert "SECRET" not in json.dumps(lines)


def test_a_bug_is_a_500_that_tells_nothing(checkpoints: dict[str, str]) -> None:
    async def story() -> None:
        async with running(Settings(checkpoint=checkpoints["first"])) as (client, service):

            async def fail(_: Job) -> Counted:
                raise ZeroDivisionError("secret detail")

            service.engine = fail
            reply = await count(client)
        assert (reply.status_code, reply.json()["code"]) == (500, "internal_error")
        assert "secret" not in reply.text

    asyncio.run(story())


# --- Settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "checkpoint"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": "many"}, "max_in_flight"),
        ({"batch_wait_s": -1}, "batch_wait_s"),
        ({"canary": "x"}, "canary must be one of models"),
        ({"models": {"A b": "/x"}}, "'A b' is no name"),
        ({"models": {"default": "/x"}}, "default"),
        ({"canary_share": 2}, "canary_share"),
        ({"checkpoint": "/x@latest"}, "version"),
        ({"port": 80}, "port"),
    ],
)
def test_settings_name_what_to_change(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_from_dict(({"checkpoint": "/x"} if values else {}) | values)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/a/b", ("/a/b", None)),
        ("/a@b/c", ("/a@b/c", None)),
        ("s3://b/p@0123abcdef01", ("s3://b/p", "0123abcdef01")),
    ],
)
def test_locations(location: str, expected: tuple[str, str | None]) -> None:
    assert split_location(location) == expected


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_a_token_file_without_tokens(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="token_file"):
        read_tokens(str(path))


def test_no_probe_is_counted_while_photos_are(checkpoints: dict[str, str]) -> None:
    async def run() -> list[int]:
        async with running(Settings(checkpoint=checkpoints["first"], models={"other": checkpoints["second"]})) as (
            client,
            service,
        ):
            jobs: list[Job] = []
            engine = service.engine
            assert engine is not None

            async def note(job: Job) -> Counted:
                jobs.append(job)
                return await engine(job)

            service.engine = note
            sizes = []
            for path in ("/v1/count?model=other", "/readyz", "/readyz"):
                assert (await (count(client, path) if "count" in path else client.get(path))).status_code == 200
                sizes.append(len(jobs))
            await service.reload(service.settings)  # what answered before says nothing of what is loaded now
            await count(client)
            assert (await client.get("/readyz")).status_code == 200
            return [*sizes, len(jobs)]

    assert asyncio.run(run()) == [1, 2, 2, 3]
