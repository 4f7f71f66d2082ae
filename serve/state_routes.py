"""Routes that tell of the server: its models, health and metrics."""

from fastapi import FastAPI, Query, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from serve.problems import describe_problems
from serve.schema import Live, ModelAnswer, ModelName, ModelsAnswer, Ready
from serve.service import CounterService
from serve.settings import DEFAULT_MODEL


def add_state_routes(api: FastAPI, service: CounterService) -> None:
    """GET /v1/model, /v1/models, /healthz, /readyz and /metrics."""

    @api.get(
        "/v1/model", responses=describe_problems("unauthorized", "unknown_model", "invalid_request"), tags=["model"]
    )
    async def model(name: str = Query(DEFAULT_MODEL, alias="model")) -> ModelAnswer:
        """The card of a model: what it was trained by, its figures and calibration."""
        _, predictor = service.choose(name, "")
        return ModelAnswer(name=name, **predictor.card)

    @api.get("/v1/models", responses=describe_problems("unauthorized"), tags=["model"])
    async def models() -> ModelsAnswer:
        """All models that requests may ask for."""
        return ModelsAnswer(
            models=[
                ModelName(name=name, version=one.version, runtime=one.runtime.name)
                for name, one in service.models.items()
            ]
        )

    @api.get("/healthz", tags=["state"])
    async def healthz() -> Live:
        """The server runs; restart it if this does not answer."""
        return Live()

    @api.get("/readyz", responses=describe_problems("internal_error", "model_unhealthy", "overloaded"), tags=["state"])
    async def readyz() -> Ready:
        """A loaded model counts; send photos only while this answers 200."""
        await service.check_ready()
        predictor = service.models[DEFAULT_MODEL]
        return Ready(model=ModelName(name=DEFAULT_MODEL, version=predictor.version, runtime=predictor.runtime.name))

    @api.get("/metrics", responses=describe_problems("unauthorized"), response_class=PlainTextResponse, tags=["state"])
    async def metrics() -> Response:
        """Prometheus's text format."""
        return Response(service.instruments.text(), media_type=CONTENT_TYPE_LATEST)
