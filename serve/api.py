"""The ASGI application: routes of the API over a CounterService. The same for every engine."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from serve.audit_routes import add_audit_routes
from serve.count_routes import add_count_routes
from serve.middleware import Watched
from serve.openapi import describe_surroundings
from serve.page_routes import add_page_routes
from serve.problems import add_problem_handlers
from serve.service import CounterService
from serve.state_routes import add_state_routes

VERSION: Final = "1"


def build_api(service: CounterService, lifespan: Callable[[FastAPI], Any] | None = None) -> FastAPI:
    """The application of a server.

    Args:
        service: counts; its engine must be set before the first request.
        lifespan: starts and stops what belongs to the engine.
    """
    api = FastAPI(
        title="BinTally",
        version=VERSION,
        description="Counts the items in photos of warehouse bins, and checks inventory records against them.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    add_problem_handlers(api)
    add_count_routes(api, service)
    add_audit_routes(api, service)
    add_state_routes(api, service)
    add_page_routes(api)
    describe_surroundings(api, service)
    if service.settings.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id", "x-request-timeout-seconds"],
            expose_headers=["x-request-id", "retry-after"],
        )
    api.add_middleware(Watched, service=service)
    return api
