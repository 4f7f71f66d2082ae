"""The application of AWS's Ray Serve image: one replica that counts on all cores, as our own container does."""

from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from ray import serve

from serve.container.app import build_app
from serve.container.invocation import load_model

MODEL_DIR: Final = Path(__file__).parent
# The application refuses by itself what it has no room for; Ray's limit only has to lie above.
MAX_ONGOING_REQUESTS: Final = 1000


def build_asgi() -> FastAPI:
    """The application, in the replica."""
    return build_app(MODEL_DIR)


def app(_: dict[str, Any]) -> serve.Application:
    """What Ray Serve is to run.

    Raises:
        CheckpointError: the model is broken. Told here, it is one line in the log, and Ray's proxy, by which AWS's
            image answers /ping, never gets ready; told in a replica, the proxy would say that all is well.
    """
    load_model(MODEL_DIR)
    deployment = serve.deployment(name="BinCounter", max_ongoing_requests=MAX_ONGOING_REQUESTS)
    return deployment(serve.ingress(build_asgi)()).bind()
