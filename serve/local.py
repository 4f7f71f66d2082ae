"""The engine that is one process, uvicorn and a micro-batcher: for laptops, CI and slim containers."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import torch
import uvicorn
from fastapi import FastAPI

from bintally.errors import BinTallyError
from serve.api import build_api
from serve.batcher import MicroBatcher
from serve.models import load_models
from serve.predictor import Counted
from serve.service import CounterService, Job, count_jobs
from serve.settings import Settings
from serve.telemetry import Instruments, log_json, server_log

GRACE_S = 15  # for requests under way when the server is told to end


def build_local(settings: Settings, reread: Callable[[], Settings] | None = None) -> FastAPI:
    """The application with its models loaded.

    Args:
        settings: what to serve.
        reread: gives the settings of now when SIGHUP asks to reload; None loads from the same places.

    Raises:
        BinTallyError: a model cannot be loaded.
    """
    torch.set_num_threads(1)  # processes are the unit of scale; spinning OpenMP threads starve each other
    instruments = Instruments()
    service = CounterService(settings, load_models(settings), instruments)

    async def run(jobs: list[Job]) -> list[Counted]:
        return await asyncio.to_thread(count_jobs, jobs, instruments)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher = MicroBatcher(run, max_size=settings.max_batch_size, max_wait_s=settings.batch_wait_s)
        service.engine = batcher
        if threading.current_thread() is threading.main_thread():  # the one that signals reach
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        yield
        await batcher.close()
        await service.close()

    def reload() -> None:
        task = asyncio.ensure_future(service.reload((reread or (lambda: settings))()))
        task.add_done_callback(_swallow_expected)

    return build_api(service, lifespan)


def _swallow_expected(task: "asyncio.Task[None]") -> None:
    """What could not be reloaded is in the log already."""
    if not task.cancelled() and not isinstance(task.exception(), BinTallyError | None):
        server_log.error("the reload failed", exc_info=task.exception())


def serve_local(settings: Settings, host: str, port: int, reread: Callable[[], Settings] | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way.

    Raises:
        BinTallyError: a model cannot be loaded.
    """
    log_json()
    app = build_local(settings, reread)
    uvicorn.run(
        app,
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=75,
        server_header=False,
        lifespan="on",
    )
