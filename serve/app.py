"""The counter over HTTP, one Ray Serve deployment.

    serve run serve.app:app checkpoint=/path/to/checkpoint
    curl --data-binary @bin.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/count

The environment variable BINTALLY_CHECKPOINT names the checkpoint where the argument does not.
"""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, PositiveFloat
from ray import serve
from ray.serve.config import BackpressureConfig

from bintally.errors import CheckpointError
from serve.schema import (
    PHOTO_BODY,
    CountAnswer,
    Health,
    add_error_handlers,
    check_photo_headers,
    describe_errors,
    read_body,
)

if TYPE_CHECKING:  # imports torch, which takes seconds
    from serve.predictor import Photo, Prediction

CHECKPOINT_VARIABLE: Final = "BINTALLY_CHECKPOINT"
MAX_BATCH_SIZE: Final = 8
MAX_ONGOING_REQUESTS: Final = 4 * MAX_BATCH_SIZE  # near the batch size, batches never fill and the router backs off
MAX_DECODING: Final = 2  # a photo of 25 MP takes up to 100 MB while it is decoded

api = FastAPI(title="BinTally", version="0.1.0", docs_url=None, redoc_url=None, redirect_slashes=False)
add_error_handlers(api)


@serve.ingress(api)
class BinCounter:
    """Decodes each photo on its own, so that a bad one harms no other, and counts them in batches."""

    def __init__(self, checkpoint: str, body_timeout_s: float) -> None:
        import torch

        from serve.predictor import Predictor, probe_photo

        torch.set_num_threads(1)  # replicas are the unit of scale; spinning OpenMP threads starve each other
        self._predictor = Predictor.load(Path(checkpoint))
        self._probe = probe_photo()
        self._body_timeout_s = body_timeout_s
        self._decoding = asyncio.Semaphore(MAX_DECODING)

    @api.post("/count", openapi_extra=PHOTO_BODY, responses=describe_errors(400, 408, 413, 415, 500, 503))
    async def count(self, request: Request) -> CountAnswer:
        """Count the items in a photo of a bin."""
        check_photo_headers(request.headers)
        data = await read_body(request, timeout_s=self._body_timeout_s)
        prediction = await self._predict(data)
        return CountAnswer(
            count=prediction.count,
            probabilities={str(count): p for count, p in enumerate(prediction.probabilities)},
            model_version=self._predictor.version,
        )

    @api.get("/healthz", responses=describe_errors(500, 503))
    async def healthz(self) -> Health:
        """Let the model count a probe photo, the way of every other photo."""
        await self.check_health()
        return Health(model_version=self._predictor.version)

    async def check_health(self) -> None:
        """Ray Serve replaces a replica in which this raises."""
        await self._predict(self._probe)

    async def _predict(self, data: bytes) -> "Prediction":
        async with self._decoding:
            photo = await run_in_threadpool(self._predictor.decode, data)
        return await self._count_batch(photo)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0)  # a CPU core gains nothing by waiting
    async def _count_batch(self, photos: "list[Photo]") -> "list[Prediction]":
        return await run_in_threadpool(self._predictor.count, photos)


deployment = serve.deployment(
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_queued_requests=64,  # per proxy; more are told to retry (503)
    backpressure_config=BackpressureConfig(retry_after_s=1),
    graceful_shutdown_timeout_s=15,
)(BinCounter)


class ServerArgs(BaseModel):
    """Arguments of the application: `name=value` after `serve run serve.app:app`, or `args:` of a config file."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str | None = None
    """A checkpoint folder, at the same path on every node; None takes it from BINTALLY_CHECKPOINT."""
    body_timeout_s: PositiveFloat = 10
    """A photo must have arrived after so many seconds."""


def app(args: ServerArgs) -> serve.Application:
    """Build the application that `serve run` starts.

    Raises:
        CheckpointError: there is no usable checkpoint.
    """
    named = args.checkpoint or os.environ.get(CHECKPOINT_VARIABLE)
    how = f"name a checkpoint folder by the argument checkpoint=... or the environment variable {CHECKPOINT_VARIABLE}"
    if not named:
        raise CheckpointError(f"there is no checkpoint to serve; {how}")
    from serve.predictor import Predictor

    checkpoint = Path(named).expanduser().absolute()  # replicas run in another folder
    try:
        Predictor.load(checkpoint)  # here the fault is one line; in a replica it is three restarts and a long log
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {how}") from None
    return deployment.bind(str(checkpoint), args.body_timeout_s)
