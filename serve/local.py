"""The engine that is one process, uvicorn and a micro-batcher: for laptops, CI and slim containers."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import torch
import uvicorn
from fastapi import FastAPI

from bintally.errors import BinTallyError, CheckpointError
from serve.api import build_api
from serve.batcher import MicroBatcher
from serve.models import load_models
from serve.predictor import Counted
from serve.service import CounterService, Job
from serve.settings import Settings
from serve.telemetry import Instruments, log_json, server_log

GRACE_S: Final = 15  # for requests under way when the server is told to end
KEEP_ALIVE_S: Final = 75  # above the idle time of the usual proxies, so that they close first


def build_local(settings: Settings) -> tuple[FastAPI, CounterService]:
    """The application with its models loaded, and the service in it.

    Raises:
        BinTallyError: a model cannot be loaded.
    """
    torch.set_num_threads(1)  # processes are the unit of scale; spinning OpenMP threads starve each other
    service = CounterService(settings, load_models(settings), Instruments())

    async def run(jobs: list[Job]) -> list[Counted | CheckpointError]:
        return await asyncio.to_thread(service.count_batch, jobs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher = MicroBatcher(run, max_size=settings.max_batch_size, max_wait_s=settings.batch_wait_s)
        service.engine = batcher
        yield
        await batcher.close()
        await service.close()

    return build_api(service, lifespan), service


def serve_local(
    settings: Settings,
    host: str,
    port: int,
    reread: Callable[[], Settings] | None = None,
    then: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way. SIGHUP loads the models anew.

    Args:
        settings: what to serve.
        host: address to listen on.
        port: its port.
        reread: gives the settings that SIGHUP takes; None keeps these.
        then: does what else is to be reloaded, once the models are.

    Raises:
        BinTallyError: a model cannot be loaded.
    """
    log_json()
    app, service = build_local(settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
        lifespan="on",
    )

    def reload() -> None:
        task = asyncio.ensure_future(_reload(service, reread or (lambda: settings), then))
        service.background.add(task)
        task.add_done_callback(service.background.discard)

    async def serve() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        await uvicorn.Server(config).serve()

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(serve())


async def _reload(service: CounterService, reread: Callable[[], Settings], then: Callable[[], None]) -> None:
    told = "nothing was reloaded: %s"
    try:
        await service.reload(reread())
        told = "the models were reloaded, but not all else: %s"
        then()
    except BinTallyError as error:
        server_log.error(told, error)
    except Exception as bug:  # noqa: BLE001  # the server goes on, and nobody else would tell of it
        server_log.exception(told, bug)
