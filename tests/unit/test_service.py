"""Who is admitted, which model answers, what is told of it: the application in one process, without a network."""

import asyncio
import io
import json
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
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
from bintally.onnx_graph import Answer, Photos
from bintally.recipes import smoke
from bintally.scores import Probabilities
from serve.local import build_local
from serve.models import load_models
from serve.predictor import Counted
from serve.service import CounterService, Job, count_jobs
from serve.settings import Settings, read_tokens, settings_from_dict, split_location
from serve.telemetry import Instruments, JsonLines

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


def test_bodies_that_still_arrive_count_as_held(checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.bodies.MAX_BUFFERED_BYTES", 5_000)

    async def story() -> None:
        async with running(Settings(checkpoint=checkpoints["first"])) as (client, service):
            gate, begun = asyncio.Event(), asyncio.Event()

            async def slow_body() -> AsyncIterator[bytes]:
                yield bytes(4_000)
                begun.set()
                await gate.wait()

            slow_one = asyncio.create_task(client.post("/v1/count", content=slow_body(), headers=JPEG))
            await begun.wait()
            while not service.bodies.buffered_bytes:  # noqa: ASYNC110  # the server takes the chunk when it likes
                await asyncio.sleep(0.01)
            refused = await client.post("/v1/count", content=bytes(2_000), headers=JPEG)
            gate.set()
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert (await slow_one).json()["code"] == "not_an_image"
            assert (await count(client)).status_code == 200
            assert service.bodies.buffered_bytes == 0

    asyncio.run(story())


def test_a_model_that_answers_nan_fails_its_own_photos_alone(checkpoints: dict[str, str]) -> None:
    settings = Settings(checkpoint=checkpoints["first"], models={"second": checkpoints["second"]})
    models = load_models(settings)
    with torch.no_grad():
        for parameter in models["second"]._checkpoint.model.parameters():  # noqa: SLF001  # no other way to spoil it once loaded
            parameter.fill_(float("nan"))
    photos = {name: one.decode(photo())[0] for name, one in models.items()}
    jobs = [Job(models[name], photos[name]) for name in ("default", "second", "default")]
    results = count_jobs(jobs, Instruments())
    assert [type(result) for result in results] == [Counted, CheckpointError, Counted]


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
            answered = asyncio.Event()

            async def ask_on() -> None:
                while True:
                    replies.append(await count(client))
                    answered.set()

            asking = asyncio.create_task(ask_on())
            await answered.wait()
            await service.reload(second)
            for _ in range(2):  # the first may still be one of before
                answered.clear()
                await answered.wait()
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
        ({"batch_wait_s": math.nan}, "batch_wait_s"),
        ({"request_timeout_s": math.nan}, "request_timeout_s"),
        ({"body_timeout_s": math.inf}, "body_timeout_s"),
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


def set_answer(service: CounterService, change: Callable[[Answer], Answer]) -> None:
    """Let the first model answer otherwise."""
    predictor = service.models["default"]
    predictor._runtime = replace(predictor.runtime, answer=change(predictor.runtime.answer))  # noqa: SLF001  # the seam


def test_a_slow_model_at_work_is_well_whatever_waits_for_it(checkpoints: dict[str, str]) -> None:
    """A probe would wait for all photos before it."""

    def slow_down(answer: Answer) -> Answer:
        def answer_slowly(photos: Photos) -> Probabilities:
            time.sleep(0.7)
            return answer(photos)

        return answer_slowly

    async def run() -> None:
        async with running(Settings(checkpoint=checkpoints["first"], max_batch_size=1)) as (client, service):
            set_answer(service, slow_down)
            waiting = [asyncio.create_task(count(client)) for _ in range(4)]
            await asyncio.sleep(0.3)  # by now the first is counted
            assert (await asyncio.wait_for(client.get("/readyz"), 0.3)).status_code == 200
            assert [reply.status_code for reply in await asyncio.gather(*waiting)] == [200] * 4
            waiting = [asyncio.create_task(count(client)) for _ in range(3)]
            assert (await asyncio.wait_for(client.get("/readyz"), 0.3)).status_code == 200  # just after a batch
            await asyncio.gather(*waiting)

    asyncio.run(run())


def test_a_model_that_hangs_or_answers_nan_is_not_well(
    checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.service.HANGS_S", 0.1)
    gate = threading.Event()

    def hang(answer: Answer) -> Answer:
        def answer_late(photos: Photos) -> Probabilities:
            gate.wait(20)
            return answer(photos)

        return answer_late

    async def run() -> None:
        async with running(Settings(checkpoint=checkpoints["first"])) as (client, service):
            before = service.models["default"].runtime
            set_answer(service, hang)
            waiting = asyncio.create_task(count(client))
            await asyncio.sleep(0.5)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(service.check_ready(), 0.5)
            gate.set()
            assert (await waiting).status_code == 200
            assert (await client.get("/readyz")).status_code == 200
            set_answer(service, lambda answer: lambda photos: answer(photos) * math.nan)
            assert (await count(client)).json()["code"] == "model_unhealthy"
            assert (await client.get("/readyz")).status_code == 503
            set_answer(service, lambda _: before.answer)
            assert (await client.get("/readyz")).status_code == 200

    asyncio.run(run())


def test_each_refusal_is_counted_once(checkpoints: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("x\n")

    async def run() -> dict[str, float]:
        settings = Settings(
            checkpoint=checkpoints["first"], token_file=str(tmp_path / "tokens"), max_in_flight=1, max_batch_size=1
        )
        async with running(settings) as (client, service):
            client.headers["authorization"] = "Bearer x"
            asked: list[tuple[bytes, dict[str, str]]] = [
                (b"", JPEG),
                (photo(), {"content-type": "text/plain"}),
                (photo(), JPEG | {"authorization": "Bearer y"}),
                (b"none", JPEG),
                (photo(), JPEG | {"content-length": "99000000"}),
            ]
            for content, headers in asked:
                await client.post("/v1/count", content=content, headers=headers)
            gate = asyncio.Event()
            seen = slow(service, gate)
            waiting = asyncio.create_task(count(client))
            await seen.get()
            await count(client)
            gate.set()
            await waiting
            files = [("photo", ("a.jpg", content)) for content in (photo(), b"none", b"")]
            assert (await client.post("/v1/count:batch", files=files)).json()["num_failed"] == 2
            lines = service.instruments.text().decode().splitlines()
        figures = (line for line in lines if line.startswith("bintally_refused_total{"))
        return {line.split('"')[1]: float(line.split()[-1]) for line in figures}

    assert asyncio.run(run()) == {
        "empty_body": 2,
        "unsupported_media_type": 1,
        "unauthorized": 1,
        "not_an_image": 2,
        "body_too_large": 1,
        "overloaded": 1,
    }


def test_the_document_tells_of_token_and_front(checkpoints: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("x\n")

    async def run(settings: Settings) -> dict[str, Any]:
        async with running(settings) as (client, _):
            document: dict[str, Any] = (await client.get("/openapi.json")).json()
            return document

    without = Settings(checkpoint=checkpoints["first"])
    with_tokens = replace(without, token_file=str(tmp_path / "tokens"))
    for settings, security in ((without, [{}, {"token": []}]), (with_tokens, [{"token": []}])):
        document = asyncio.run(run(settings))
        assert document["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
        counting, health = document["paths"]["/v1/count"]["post"], document["paths"]["/healthz"]["get"]
        assert counting["security"] == security
        assert "security" not in health
        assert {"429", "431", "502"} <= counting["responses"].keys() & health["responses"].keys()


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
