"""The application of every SageMaker host: /ping and /invocations over an unpacked tarball.

In AWS's Ray Serve image it runs in a replica behind AWS's adapter, which hands /invocations on as POST /, and answers
/ping by what Ray's proxy says of itself: that is 200 before a model is loaded. Below PROXY_PREFIX, both come here.
"""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from bintally.errors import BinTallyError, ConfigError
from serve.bodies import BodyReader
from serve.container.invocation import (
    ATTRIBUTES,
    answer_type_of,
    count,
    load_model,
    media_type_of,
    problem_body,
    read,
    write,
)
from serve.predictor import Predictor, probe_photo
from serve.problems import MEDIA_TYPE, Refusal, refusal_of

MAX_BODY_VARIABLE: Final = "BINTALLY_MAX_BODY_BYTES"
MAX_BODY_BYTES: Final = 6 * 2**20  # of a real-time endpoint; a serverless one lets 4 MiB through
PROBLEMS_VARIABLE: Final = "BINTALLY_ANSWER_PROBLEMS"
"""`true`: a bad photo is answered by its problem with status 200. By an error, it would fail a whole transform job."""
PROXY_PREFIX: Final = "/model"
BODY_TIMEOUT_S: Final = 30.0
MAX_WAITING: Final = 64
KEEP_ALIVE_S: Final = 75  # above the idle time of whoever keeps connections to this server
GRACE_S: Final = 15  # for requests under way when the container is told to end


class Host:
    """Counts requests in threads, one for each core."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "count")
        self._num_waiting = 0

    async def answer(self, body: bytes, media_type: str, answer_type: str, attributes: str) -> bytes:
        """The body of the answer to a request.

        Raises:
            Refusal: the request is wrong, or too many others wait.
            ImageError: its one photo cannot be used.
            CheckpointError: the model answers NaN.
        """
        if self._num_waiting >= MAX_WAITING:
            raise Refusal("overloaded", f"{self._num_waiting} requests are waiting; try again")

        def work() -> bytes:
            return write(count(self._predictor, read(body, media_type, attributes)), answer_type)

        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._num_waiting -= 1

    async def check_ready(self) -> None:
        """Let the model count a photo, beside the requests: those that wait are no fault of it.

        Raises:
            CheckpointError: it does not answer with probabilities.
        """
        photo, _ = self._predictor.decode(probe_photo())
        await asyncio.to_thread(self._predictor.count, [photo])


def max_body_bytes() -> int:
    """The largest body of a request, from the environment.

    Raises:
        ConfigError: what stands there is no number of bytes.
    """
    text = os.environ.get(MAX_BODY_VARIABLE, str(MAX_BODY_BYTES))
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ConfigError(f"{MAX_BODY_VARIABLE} must be a number of bytes, not {text!r}")
    return int(text)


def build_app(model_dir: Path) -> FastAPI:
    """The application, once its model has counted a photo.

    Args:
        model_dir: where the tarball was unpacked.

    Raises:
        CheckpointError: the model is missing or damaged, or gives no probabilities.
        ConfigError: a variable of the environment is wrong.
    """
    max_bytes = max_body_bytes()
    host = Host(load_model(model_dir))
    bodies = BodyReader(timeout_s=BODY_TIMEOUT_S)

    async def invoke(request: Request) -> Response:
        headers = request.headers
        media_type = media_type_of(headers.get("content-type", ""))
        answer_type = answer_type_of(media_type, headers.get("accept", ""))
        async with bodies.read(request, max_bytes=max_bytes) as body:
            answer = await host.answer(body, media_type, answer_type, headers.get(ATTRIBUTES, ""))
        return Response(answer, media_type=answer_type)

    async def ping() -> Response:
        await host.check_ready()
        return Response()

    api = FastAPI(openapi_url=None, redirect_slashes=False)
    answer_error = _answer_problem if os.environ.get(PROBLEMS_VARIABLE) == "true" else _answer_error
    for kind in (HTTPException, BinTallyError, Exception):
        api.add_exception_handler(kind, answer_error)
    for path in ("/invocations", "/", f"{PROXY_PREFIX}/"):
        api.add_api_route(path, invoke, methods=["POST"])
    for path in ("/ping", f"{PROXY_PREFIX}/-/healthz"):
        api.add_api_route(path, ping)
    return api


async def _answer_error(_: Request, error: Exception) -> Response:
    """A problem; the traceback of a bug goes to the log alone, which the framework writes."""
    if isinstance(error, HTTPException) and not isinstance(error, Refusal):  # the framework's own
        headers = error.headers
        error = Refusal(HTTPStatus(error.status_code).name.lower(), error.detail, error.status_code)
        error.headers = headers
    refusal = refusal_of(error)
    return JSONResponse(problem_body(refusal), refusal.status_code, dict(refusal.headers or {}), MEDIA_TYPE)


async def _answer_problem(request: Request, error: Exception) -> Response:
    """As a list has it in the place of a photo; what another try may mend stays an error."""
    response = await _answer_error(request, error)
    if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return response
    return JSONResponse({"problem": json.loads(bytes(response.body))})


def serve_model(model_dir: Path, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM. Nobody listens before the model has counted a photo.

    Raises:
        BinTallyError: as `build_app`.
    """
    uvicorn.run(
        build_app(model_dir),
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
    )
