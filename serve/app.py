"""The engine that is Ray Serve: one deployment, each replica of which is the whole server.

    serve run serve.app:app checkpoint=runs/x/checkpoint
    serve run serve/config.yaml
    curl --data-binary @bin.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/v1/count

The arguments are the fields of serve.settings.Settings; BINTALLY_CHECKPOINT names the checkpoint where none does. They
reach the replicas as Serve's user_config, so that deploying other ones swaps models in running replicas.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import ray
from fastapi.concurrency import run_in_threadpool
from ray import serve
from ray.serve._private.logging_utils import get_serve_logs_dir
from starlette.types import ASGIApp, Receive, Scope, Send

from bintally.errors import BinTallyError, CheckpointError, ConfigError
from serve.batcher import MicroBatcher
from serve.front import CARRIED_TIMEOUT, TIMEOUT
from serve.models import load_models
from serve.predictor import Counted
from serve.service import CounterService, Job
from serve.settings import Settings, settings_from_dict, with_absolute_paths
from serve.telemetry import Instruments, log_json, server_log

CHECKPOINT_VARIABLE: Final = "BINTALLY_CHECKPOINT"
# The server refuses by itself what it has no room for (Settings.max_in_flight), with JSON and Retry-After, and holds
# slow senders at no cost; Ray's limits only have to lie above.
MAX_ONGOING_REQUESTS: Final = 1000
DRAIN_S: Final = 15
_RENAMED: Final = {CARRIED_TIMEOUT.encode(): TIMEOUT.encode()}


class LateApp:
    """Stands in for the application, for which Ray asks before it tells the settings."""

    def __init__(self) -> None:
        self.api: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; the application has nothing to start or stop."""
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        assert self.api is not None
        scope["headers"] = [(_RENAMED.get(name, name), value) for name, value in scope["headers"]]
        await self.api(scope, receive, send)


@serve.ingress()
class BinCounter:
    """A replica: the application over its own models."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)  # replicas are the unit of scale; spinning OpenMP threads starve each other
        log_json(_log_path())
        self._instruments = Instruments(_metrics_dir(), ray.util.get_node_ip_address())
        self._counting = ThreadPoolExecutor(1, "count")
        self._batcher = MicroBatcher(self._count_batch, max_size=1)  # not Serve's: docs/decisions/0008
        self._service: CounterService | None = None
        self._app = LateApp()

    def __serve_build_asgi_app__(self) -> ASGIApp:  # Ray's name
        return self._app

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take settings: the first ones, or others while requests are answered.

        Raises:
            BinTallyError: the first models cannot be loaded. Later ones only leave a line in the log.
        """
        from serve.api import build_api

        settings = settings_from_dict(user_config)
        self._batcher.max_size, self._batcher.max_wait_s = settings.max_batch_size, settings.batch_wait_s
        if self._service is not None:
            try:
                await self._service.reload(settings)
            except BinTallyError as error:
                server_log.error("the models stay as they were: %s", error)
            except Exception:  # noqa: BLE001  # Ray would replace the replica by one that cannot start
                server_log.exception("the models stay as they were: a bug met the new ones")
            return
        device = "cuda" if ray.get_gpu_ids() else "cpu"  # Ray gives as many as num_gpus says
        models = await run_in_threadpool(load_models, settings, device)
        self._service = CounterService(settings, models, self._instruments, device)
        self._service.engine = self._batcher
        self._app.api = build_api(self._service)

    async def check_health(self) -> None:
        """Ray Serve replaces a replica in which this raises."""
        if self._service is not None:
            await self._service.check_ready()

    async def _count_batch(self, jobs: list[Job]) -> list[Counted | CheckpointError]:
        assert self._service is not None
        return await asyncio.get_running_loop().run_in_executor(self._counting, self._service.count_batch, jobs)


def _log_path() -> Path:
    """Beside Serve's own logs, which take what a replica writes to stderr into lines of text, held back and costly."""
    return Path(get_serve_logs_dir()) / f"bintally_{serve.get_replica_context().replica_tag}.jsonl"


def _metrics_dir() -> Path:
    """In the folder of this Ray's session, so that it is empty when a node starts."""
    return Path(get_serve_logs_dir()).parent / f"bintally-metrics-{serve.get_replica_context().app_name}"


deployment = serve.deployment(
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_queued_requests=MAX_ONGOING_REQUESTS,
    graceful_shutdown_timeout_s=DRAIN_S,
    health_check_period_s=2,
    health_check_timeout_s=10,
    logging_config={"enable_access_log": False},  # the server's own has the same lines
)(BinCounter)


def app(args: dict[str, Any]) -> serve.Application:
    """Build the application that `serve run` starts.

    Args:
        args: fields of Settings, `name=value` after `serve run serve.app:app`, or `args:` of a config file.

    Raises:
        ConfigError: an argument is wrong, or there is no checkpoint.
        CheckpointError: a checkpoint cannot be served.
    """
    settings = with_absolute_paths(settings_of(args))
    load_models(settings)  # here a fault is one line; in a replica it is three restarts and a long log
    return deployment.options(user_config=asdict(settings)).bind()


def settings_of(args: dict[str, Any]) -> Settings:
    """Settings, with the checkpoint of the environment if the arguments name none.

    Raises:
        ConfigError: an argument is wrong, or there is no checkpoint.
    """
    named = {"checkpoint": os.environ[CHECKPOINT_VARIABLE]} if os.environ.get(CHECKPOINT_VARIABLE) else {}
    values = named | args
    if not values.get("checkpoint"):
        raise ConfigError(
            "there is no checkpoint to serve; name one by the argument checkpoint=... or the environment variable"
            f" {CHECKPOINT_VARIABLE}"
        )
    return settings_from_dict(values)


bound = deployment.bind()
"""The application of config files, whose `user_config` has the settings; deploying others changes running replicas."""
